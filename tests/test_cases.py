"""Small inputs that went wrong, made up after public bug reports: what the commands make of them.

Each is a folder of tests/cases. The commands are called as a user would, with the tiny model.
"""

import csv
import json
from pathlib import Path

import pytest
from conftest import ROOT

import eval as evaluation
import train
from runtime.flags import UserError

CASES = ROOT / "tests" / "cases"
TWO = {"negative": 30, "positive": 30}


def train_on(path: str, tiny, output: Path, capsys, *flags) -> tuple[list[str], list[str]]:
    """(The classes of best/, the lines that the training printed.)"""
    flags = [f"--dataset={CASES / path}", f"--model={tiny}", f"--output_dir={output}", *flags]
    train.main([*flags, "--max_length=32", "--max_steps=1", "--num_threads=1"])
    config = json.loads((output / "best" / "config.json").read_text())
    return list(config["id2label"].values()), capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("path", "classes", "said"),
    [
        # datasets#7468: a path is no pattern. Red: `glob` of the path in read_table.
        ("brackets_wrong_file/r[1].csv", TWO, []),
        # csvkit#977. Red: labels as int() in scan_rows.
        ("leading_zeros/r.csv", {"01": 30, "02": 30, "03": 30}, []),
        # datasets#2977. Red: is_gzipped returning False.
        ("csv_gz/r.csv.gz", TWO, []),
        ("jsonl_gz_file/r.jsonl.gz", TWO, []),
        # Red: ".tsv" left out of DELIMITERS.
        ("tsv/r.tsv", TWO, []),
        # Red: name_labels without whole_numbers.
        ("float_labels/r.csv", {"0": 30, "1": 30}, ["labels 0.0, 1.0 are taken as whole numbers"]),
        # Red: find_validation returning None.
        (
            "folder_valid_split/data",
            TWO,
            [
                "validating on 30 texts of validation.csv",
                f"not used here, of {CASES}/...: test.csv",
            ],
        ),
        # Red: scan_rows without `strip`.
        (
            "label_spaces/r.csv",
            {"negative": 45, "positive": 45},
            ["white space at the ends of 18 labels is left out, such as of 'negative '"],
        ),
        # datasets#4426. Red: all files of a folder read as one split.
        (
            "kaggle_folder/data",
            TWO,
            [f"not used here, of {CASES}/...: sample_submission.csv, test.csv"],
        ),
        # datasets#5021. Red: unused_files returning [].
        (
            "folder_files_ignored/data",
            TWO,
            [f"not used here, of {CASES}/...: ab_test_group.csv, reviews_extra.csv"],
        ),
        (
            "folder_jsonl_and_csv_note/data",
            TWO,
            [f"not used here, of {CASES}/...: notes.csv, test.jsonl"],
        ),
        # Red: "NA" taken for a missing label in scan_rows.
        ("na_in_folder_gz/data", {"EU": 45, "NA": 45}, []),
        # Red: labels of "TRUE" made booleans.
        ("predict_bool_names/r.csv", {"FALSE": 30, "TRUE": 30}, []),
    ],
)
def test_classes_are_those_in_the_file_that_was_named(path, classes, said, tiny, tmp_path, capsys):
    """And every guess is said. Red: beside each case."""
    names, lines = train_on(path, tiny, tmp_path / "run", capsys)
    assert names == list(classes)
    total = sum(classes.values())
    shares = ", ".join(f"{name}: {n} ({n / total:.1%})" for name, n in classes.items())
    assert f"{len(classes)} classes, {shares}" in lines
    start = next(number for number, line in enumerate(lines) if line.startswith("starting"))
    for line in said:
        line = line.replace(f"{CASES}/...", str(CASES / path))
        assert line in lines[:start]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        # pandas#15203. Red: take_rows without its look at the width.
        (
            "comma_id_column/r.csv",
            "r.csv: row 1 has 4 values, the header 3; "
            "put texts that hold the delimiter in quotes, or correct that row",
        ),
        # Red: "equal texts" left out of require_every_class.
        (
            "repeated_texts/r.csv",
            "the validation split gets none of class 'no' (100 rows, 1 different texts; "
            "equal texts stay on one side); give more texts, or another value",
        ),
        # Red: leave_out with the first row alone.
        (
            "many_empty/r.csv",
            "r.csv: 10 of 100 rows without a text (first: row 4, row 14, row 24, row 34, row 44); "
            "correct them, or give --drop_invalid to leave them out",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(path, line, tiny, tmp_path, capsys):
    """Red: beside each case."""
    with pytest.raises(UserError) as raised:
        train_on(path, tiny, tmp_path / "run", capsys)
    (said,) = raised.value.args
    assert said.endswith(line)


def test_rows_without_a_text_are_left_out_if_asked_and_counted(tiny, tmp_path, capsys):
    """Red: `rows = np.arange(len(valid))` in label_rows."""
    _, lines = train_on("many_empty/r.csv", tiny, tmp_path / "run", capsys, "--drop_invalid")
    assert any(
        line.endswith(
            "left out: 10 of 100 rows without a text (first: row 4, row 14, row 24, row 34, row 44)"
        )
        for line in lines
    )
    assert any("63 training and 27 validation texts" in line for line in lines)


def test_codes_of_one_file_are_found_in_another_of_another_kind(tiny, tmp_path, capsys):
    """Red: as for leading_zeros above."""
    train_on("leading_zeros/r.csv", tiny, tmp_path, capsys)
    evaluation.main([f"--ckpt={tmp_path / 'best'}", f"--dataset={CASES / 'leading_zeros/t.jsonl'}"])
    report = json.loads((tmp_path / "best" / "report_t.json").read_text())
    assert {name: row["examples"] for name, row in report["classes"].items()} == {
        "01": 10,
        "02": 10,
        "03": 10,
    }


def test_a_split_without_labels_is_for_predictions(tiny, tmp_path, capsys):
    """Red: no_labels left out of load_test."""
    train_on("kaggle_folder/data", tiny, tmp_path, capsys)
    with pytest.raises(
        UserError, match=r"label: no such column in test.csv; .* or --input FILE --output FILE"
    ):
        evaluation.main([f"--ckpt={tmp_path / 'best'}"])


@pytest.mark.parametrize("path", ["input_ids_zeros/in.csv", "predict_bool_names/in.csv"])
@pytest.mark.parametrize("trained", ["predict_bool_names/r.csv"])
def test_predictions_repeat_the_columns_of_the_user_to_the_character(
    path, trained, tiny, tmp_path, capsys
):
    """001, 1.10, FALSE; and classes as they were written. Red: pyarrow's own types in read_csv."""
    train_on(trained, tiny, tmp_path, capsys)
    output = tmp_path / "out.csv"
    evaluation.main(
        [f"--ckpt={tmp_path / 'best'}", f"--input={CASES / path}", f"--output={output}"]
    )
    with (CASES / path).open(newline="") as source, output.open(newline="") as written:
        before, after = list(csv.DictReader(source)), list(csv.DictReader(written))
    assert [{name: row[name] for name in before[0]} for row in after] == before
    assert {row["predicted_label"] for row in after} <= {"FALSE", "TRUE"}
    for row in after:
        shares = {name: float(row[f"p_{name}"]) for name in ("FALSE", "TRUE")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == max(shares.values()) == shares[row["predicted_label"]]
