"""Names to splits, rows to labelled texts: the file that was named, as it is now."""

import csv
import itertools
import json
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_rows, train_small, write_csv
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset_builder
from families import make_family
from huggingface_hub import constants
from tokenizers import normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizerFast

import eval as evaluation
from config import Config
from data import Collator, choose_texts, encode, load_splits, tokenize
from model import load_tokenizer
from runtime import formats, splits
from runtime.flags import UserError
from runtime.formats import Dialect, write_chunks
from runtime.hub import hub_remedy
from runtime.notes import describe_classes
from runtime.seen import read_seen
from runtime.splits import SPLITS, files_of, find_validation, may_be_read, read_table
from runtime.tables import LabelledTexts, find_text_columns, label_rows, list_names, numeric_order


def texts_of(texts: LabelledTexts) -> list:
    found = [text for chunk in texts.chunks() for text in chunk]
    return [text[0] if len(text) == 1 else text for text in found]


def read(path, **options) -> LabelledTexts:
    return label_rows(read_table(str(path), "train"), "text", "label", **options)


# ---------------------------------------------------------------- which file


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (
            "train",
            [
                *("a/train-0.parquet", "a/train-1.parquet", "en-train-0-of-1.csv"),
                *("reviews_train.csv", "train.json", "train/ab_test_group.csv"),
            ],
        ),
        ("test", ["ab_test_group.csv", "test/x.csv", "test2.jsonl.gz"]),
        ("dev", ["Dev.TSV"]),
        ("validation", ["validation_matched.csv", "validation_mismatched.csv"]),
        ("validation_matched", ["validation_matched.csv"]),
        ("extra", ["extra.csv"]),
        ("testing", ["testing.csv"]),
    ],
)
def test_a_file_belongs_to_the_split_that_its_name_or_folder_says(tmp_path, split, expected):
    """Red: `split in part` in split_names, or one of its patterns alone; the longest name left out;
    data_files without one of its conditions."""
    names = ["a/train-0.parquet", "a/train-1.parquet", "reviews_train.csv", "test/x.csv"]
    names += ["test2.jsonl.gz", "Dev.TSV", "extra.csv", "train/ab_test_group.csv", "train.json"]
    names += ["validation_matched.csv", "validation_mismatched.csv", "en-train-0-of-1.csv"]
    names += ["latest.csv", "ab_test_group.csv", "trainer.csv", "train_test.csv", "train.txt"]
    names += [".hidden/train.csv", "test/train_old.bak", "testing.csv"]
    names += ["run/last/manifest.json", "run/last/train.csv", "train/state.json", "notes.json"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    found = [str(path.relative_to(tmp_path)) for path in files_of(tmp_path, split)]
    assert sorted(found) == expected


def test_names_that_say_testing_are_not_trained_on(tmp_path):
    """Red: WORDS empty."""
    for name in ("reviews.csv", "testing.csv"):
        write_csv(tmp_path / name, make_rows(20, seed=1))
    with pytest.raises(UserError, match=r"no file for the split train among reviews.csv, testing"):
        read(tmp_path)


def test_a_folder_behind_a_link_is_read_once(tmp_path):
    """Red: `followlinks` left out of data_files; `seen` too (it would not end)."""
    write_csv(tmp_path / "elsewhere" / "x.csv", make_rows(20, seed=1))
    write_csv(tmp_path / "d" / "train.csv", make_rows(20, seed=2))
    (tmp_path / "d" / "validation").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "back").symlink_to(tmp_path / "d")
    assert find_validation(str(tmp_path / "d")) == "validation"
    assert len(read(tmp_path / "d")) == 20


def test_a_run_may_lie_in_the_folder_of_its_data(tmp_path, tiny):
    """And be resumed, its JSON files left alone. Red: MANIFEST left out of data_files."""
    write_csv(tmp_path / "d" / "reviews.csv", make_rows(40, seed=1))
    for _ in range(2):
        _, status = train_small(
            model=tiny, dataset=tmp_path / "d", output_dir=tmp_path / "d", max_steps=1
        )
        assert status == 0


@pytest.mark.parametrize(
    ("there", "read"),
    [
        (["reviews.json", "dataset_infos.json"], ["reviews.json"]),
        (["reviews.csv", "notes.json"], ["reviews.csv"]),
        (["reviews.csv", "train_2.json"], ["train_2.json"]),
    ],
)
def test_settings_in_json_are_no_texts(tmp_path, there, read):
    """Red: data_files without one of its conditions on .json."""
    for name in there:
        (tmp_path / name).touch()
    assert [path.name for path in files_of(tmp_path, "train")] == read


NEW = ["a.csv", "deep/a.jsonl", "a.html", ".a.csv", ".x/a.csv", "run/a.csv", "../data.csv"]
NEW += ["look.json", "report_test.json", "predictions.csv", "valid.tsv", "dataset_info.json"]


@pytest.mark.parametrize("there", [[], ["jan.csv"], ["train.csv", "test.csv"], ["a/train.json"]])
@pytest.mark.parametrize("name", NEW)
def test_whether_a_file_would_be_data_is_known_before_it_is_written(tmp_path, there, name):
    """Red: may_be_read without one of its conditions."""
    folder = tmp_path / "data"
    for inside in ("deep", ".x", "run", "a"):
        (folder / inside).mkdir(parents=True)
    (folder / "run" / "manifest.json").write_text("{}")
    for other in there:
        (folder / other).write_text("text,label\n")
    expected = may_be_read(folder, folder / name)
    (folder / name).write_text("text,label\n")
    read = {file.resolve() for split in SPLITS for file in files_of(folder, split)}
    assert expected == ((folder / name).resolve() in read)


def test_no_file_is_read_by_its_name_in_a_folder_of_save_to_disk(tmp_path):
    """Red: is_saved left out of may_be_read."""
    Dataset.from_dict({"text": ["w1"]}).save_to_disk(str(tmp_path))
    assert not may_be_read(tmp_path, tmp_path / "test_predictions.csv")


def test_predictions_alone_may_be_texts(tmp_path):
    """Such as labels that a person has corrected. Red: `< len(files)` left out of read_folder."""
    for name in ("june", "july"):
        with write_chunks(tmp_path / f"{name}.csv", Dialect()) as write:
            write(pa.table({"text": ["w1"], "predicted_label": ["a"], "probability": [0.5]}))
    assert len(read_table(str(tmp_path), "train").parts) == 2


@pytest.mark.parametrize("name", ["wrong.csv", "train_pred.jsonl", "all.parquet"])
def test_predictions_of_a_folder_are_not_taken_for_texts(tmp_path, name):
    """They would come twice. Red: holds_predictions left out of read_folder."""
    columns = {"text": ["w1", "w2"], "label": ["a", "b"]}
    if name.startswith("train"):
        write_csv(tmp_path / "train.csv", make_rows(9, seed=1))
    else:
        write_csv(tmp_path / "jan.csv", make_rows(9, seed=1))
    with write_chunks(tmp_path / name, Dialect()) as write:
        write(pa.table(columns | {"predicted_label": ["a", "a"], "probability": [0.5, 0.6]}))
    with pytest.raises(UserError, match=rf"{name} holds predictions .*; move it, or rename"):
        read_table(str(tmp_path), "train")


def test_files_that_name_no_split_are_all_trained_on(tmp_path):
    """Red: files_of without its second case."""
    for name in ("a", "b"):
        write_csv(tmp_path / f"{name}.csv", make_rows(20, seed=ord(name)))
    assert texts_of(read(tmp_path)) == [
        text for name in "ab" for text, _ in make_rows(20, seed=ord(name))
    ]


def test_the_files_of_a_split_are_said(tmp_path):
    """Red: `notes` of read_folder without its first line."""
    for name in ("train_1", "train_2"):
        write_csv(tmp_path / f"{name}.csv", make_rows(20, seed=1))
    (note,) = read_table(str(tmp_path), "train").notes
    assert note.endswith(": train is 2 files, train_1.csv, train_2.csv")


def test_other_columns_and_kinds_of_files_are_no_matter(tmp_path):
    """Of one split. Red: chunks with the columns of the first part for all."""
    write_csv(
        tmp_path / "train_1.csv",
        [("1", *row) for row in make_rows(20, seed=1)],
        ("id", "text", "label"),
    )
    lines = [json.dumps({"label": c, "n": {}, "text": t}) for t, c in make_rows(20, seed=2)]
    (tmp_path / "train_2.jsonl").write_text("\n".join(lines))
    assert len(texts_of(read(tmp_path))) == 40
    write_csv(tmp_path / "train_3.csv", [("w1",)], ("review",))
    with pytest.raises(UserError, match=r"train_3.csv: no column 'label', which other parts"):
        read(tmp_path)


def test_rows_of_several_files_are_named_by_file_and_row(tmp_path):
    """Red: `place = "row"` for all in Table.chunks."""
    write_csv(tmp_path / "train_1.csv", make_rows(20, seed=1))
    write_csv(tmp_path / "train_2.csv", [*make_rows(6, seed=2), ("", "negative")])
    with pytest.raises(UserError, match=r"1 of 27 rows without a text \(train_2.csv row 7\)"):
        read(tmp_path)
    assert len(read(tmp_path, drop_invalid=True)) == 26


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    """Red: is_saved returning False."""
    rows = make_rows(30, seed=1)
    columns = {"text": [text for text, _ in rows], "label": [i % 2 for i in range(30)]}
    data = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=["yes", "no"]))
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data, dev=data).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        texts = read(tmp_path / name)
        assert texts_of(texts) == columns["text"]
        assert texts.names == ["yes", "no"]  # the order of the data set, not the alphabet
        assert texts.labels.tolist() == columns["label"]
    assert find_validation(str(tmp_path / "two")) == "dev"
    with pytest.raises(UserError, match="has no split test; give one of train, dev"):
        read_table(str(tmp_path / "two"), "test")
    assert read_table(str(tmp_path / "one"), "train").source == "one"
    with pytest.raises(UserError, match=r"has no split train.:5.; give a plain name for it"):
        read_table(str(tmp_path / "one"), "train[:5]")


def test_a_folder_of_save_to_disk_has_the_librarys_slices(tmp_path):
    """Red: read_saved that ignores `from_` and `to`."""
    data = Dataset.from_dict({"text": [f"w{i}" for i in range(20)], "label": [0, 1] * 10})
    DatasetDict(train=data, dev=data.select([0, 1])).save_to_disk(tmp_path)
    table = read_table(str(tmp_path), "train[5%:25%]+train[-1:]+dev")
    texts = label_rows(table, "text", "label")
    assert texts_of(texts) == ["w1", "w2", "w3", "w4", "w19", "w0", "w1"]
    assert table.source == "train[1:5], train[19:20], dev[0:2]"


def test_the_names_of_the_classes_are_those_of_the_data_set_in_each_file(tmp_path):
    """One counts them in another order and with a blank, one holds words, and one has a column of a
    kind that this version of the library does not know. Red: the numbers of each file as they are;
    `strip_all` without its strip; `Features.from_arrow_schema` in read_classes."""
    orders = {"a": ["no", "yes "], "b": ["yes", "no"]}
    for file, names in orders.items():
        features = {"label": {"names": names, "_type": "ClassLabel"}, "x": {"_type": "New9"}}
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        columns = {"text": [f"{file}{i}" for i in range(6)], "label": [0, 1] * 3, "x": [0] * 6}
        pq.write_table(
            pa.table(columns).replace_schema_metadata(about), tmp_path / f"{file}.parquet"
        )
    write_csv(tmp_path / "c.csv", [("c0", "no"), ("c1", "yes")])
    texts = read(tmp_path)
    assert texts.names == ["no", "yes"]
    assert texts.labels.tolist() == [0, 1] * 3 + [1, 0] * 3 + [0, 1]


@pytest.mark.parametrize("column", [["no", "yes"] * 3, [0.0, 1.0] * 3, [False, True] * 3])
def test_class_names_are_for_numbers_of_classes_alone(tmp_path, column):
    """A program that changes the column may keep the metadata. Red: `is_integer` left out of
    read_classes."""
    features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": [f"w{i}" for i in range(6)], "label": column})
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "x.parquet")
    texts = read(tmp_path / "x.parquet")
    assert texts.labels.tolist() == [0, 1] * 3
    assert texts.names in (["no", "yes"], ["0", "1"], ["false", "true"])


def test_a_class_of_rows_without_a_text_alone_is_none(tmp_path):
    """Red: `written.setdefault` before the check in scan_rows."""
    path = write_csv(tmp_path / "x.csv", [*make_rows(20, seed=1), ("", "neutral")])
    assert read(path, drop_invalid=True).names == ["negative", "positive"]


def test_a_file_replaced_within_the_same_second_is_new_data(tmp_path, tiny):
    """Same name, size and date. Red: the path in the key of tokenize instead of the hashes."""
    path, seen = tmp_path / "x.csv", []
    for word in ("w1", "w2"):
        write_csv(path, [(f"{word} w{i}", i % 2) for i in range(10, 40)])
        os.utime(path, (1, 1))
        tokenizer = load_tokenizer(str(tiny), max_length=32)
        seen.append(tokenize(read(path), tokenizer, 32, "head")["input_ids"][:])
    assert seen[0] != seen[1]


def test_a_file_that_changes_while_it_is_read_is_no_silent_mixture(tmp_path):
    """Red: LabelledTexts.chunks without its comparison."""
    path = write_csv(tmp_path / "x.csv", make_rows(30, seed=1))
    texts = read(path)
    write_csv(path, make_rows(30, seed=2))
    with pytest.raises(UserError, match="changed while it was read; start again"):
        texts_of(texts)


def test_offline_a_name_is_not_what_another_project_cached(tmp_path, monkeypatch):
    """A folder called reviews that some other project read with load_dataset. Red:
    require_downloaded without its body."""
    from datasets import config as datasets_config
    from datasets import load_dataset

    write_csv(tmp_path / "reviews" / "train.csv", make_rows(30, seed=1))
    load_dataset(str(tmp_path / "reviews"))
    assert any(os.scandir(os.path.join(datasets_config.HF_DATASETS_CACHE, "reviews")))
    monkeypatch.chdir(tmp_path / "reviews")
    with pytest.raises(UserError, match="--dataset reviews: was not downloaded before; check the"):
        read_table("reviews", "train")


def test_a_csv_file_of_the_hub_whose_columns_pandas_shifts_is_refused(tmp_path, monkeypatch):
    """Red: read_from_hub without its look for `__index_level_0__`."""
    path = write_csv(tmp_path / "x.csv", [("an", *row) for row in make_rows(20, seed=1)])
    builder = load_dataset_builder("csv", data_files=str(path), keep_default_na=False)
    builder.download_and_prepare()
    monkeypatch.setattr(splits, "locate", lambda *_: None)
    monkeypatch.setattr(splits, "open_hub", lambda *_: builder)
    with pytest.raises(UserError, match="rows hold more values than the header has names; put"):
        read_table("owner/name", "train")


def test_a_relative_path_means_the_same_file_from_another_folder(
    tmp_path, tiny, monkeypatch, capsys
):
    """Red: full_path returning its argument."""
    write_csv(tmp_path / "d" / "train.csv", make_rows(60, seed=1))
    write_csv(tmp_path / "d" / "test.csv", make_rows(20, seed=2))
    monkeypatch.chdir(tmp_path)
    train_small(model=tiny, dataset="d", output_dir="run", max_steps=1)
    monkeypatch.chdir("/")
    evaluation.main([f"--ckpt={tmp_path / 'run' / 'best'}", "--num_threads=1"])
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(UserError, match=f"{tmp_path / 'd'}: no such file or folder"):
        evaluation.main([f"--ckpt={tmp_path / 'run' / 'best'}", "--num_threads=1"])


# ---------------------------------------------------------------- labels and texts


def test_rows_keep_their_text_and_label_across_chunks(tmp_path, monkeypatch):
    """In chunks of 7, rows left out, any selection. Red: `before` not added up in chunks."""
    monkeypatch.setattr(formats, "CHUNK", 7)
    rows = [(f"w{i} w{i + 1}" if i % 5 else "", ["a", "b", "c"][i % 3]) for i in range(60)]
    texts = read(write_csv(tmp_path / "x.csv", rows), drop_invalid=True)
    kept = [row for row in rows if row[0]]
    assert [(t, texts.names[c]) for t, c in zip(texts_of(texts), texts.labels, strict=True)] == kept
    which = np.array([0, 3, 4, 20, 47])
    assert texts_of(texts.select(which)) == [kept[i][0] for i in which]


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["2020-01-02", "NA", "TRUE"], ["2020-01-02", "NA", "TRUE"]),
        (["1.0", "2", "10.00"], ["1", "2", "10"]),
        (["1.5", "1.0", "0.5"], ["0.5", "1.0", "1.5"]),
        (["01.0", "2.0", "3.0"], ["01.0", "2.0", "3.0"]),
        (["b", "B", "a"], ["B", "a", "b"]),
    ],
)
def test_classes_are_as_they_are_written(tmp_path, written, names):
    """Red: `sorted(set(labels))` in name_labels; WHOLE that allows leading zeros."""
    texts = read(write_csv(tmp_path / "x.csv", [(f"w{i}", written[i % 3]) for i in range(30)]))
    assert texts.names == names
    assert any("differ only in case" in note for note in texts.notes) == ("B" in written)
    assert sorted(names, key=numeric_order) == names


def test_a_label_that_first_shows_after_ten_thousand_rows_is_a_class(tmp_path):
    """Red: the types of the first block for all, as load_dataset has it."""
    rows = [(f"w{i}", i % 2) for i in range(12_000)] + [("w", "late"), ("v", "late")]
    assert read(write_csv(tmp_path / "x.csv", rows)).names == ["0", "1", "late"]


def test_a_class_of_one_row_is_trained_on_and_said(tmp_path):
    """Red: `several` left out of split_validation."""
    rows = [*make_rows(60, seed=1), ("w39", "rare")]
    path = write_csv(tmp_path / "x.csv", rows)
    train, validation, notes = choose_texts(Config(dataset=str(path)))
    assert "w39" in texts_of(train)
    assert set(validation.labels) == {0, 1}
    assert any(note.startswith("no text of 'rare' to validate on") for note in notes)


def test_a_class_that_a_sample_does_not_have_is_said(tmp_path):
    """Red: describe_absent left out of choose_texts."""
    rows = [*make_rows(200, seed=1), *((f"w39 w{i}", "rare") for i in range(4))]
    path = write_csv(tmp_path / "x.csv", rows)
    train, _, notes = choose_texts(Config(dataset=str(path), max_train_samples=20))
    assert set(train.labels) == {0, 1}
    assert "no text of 'rare' among the train texts (--max_train_samples 20)" in notes


# ---------------------------------------------------------------- what is validated on


@pytest.fixture
def folder(tmp_path):
    for name, seed in (("train", 1), ("val", 2), ("fold2", 3)):
        write_csv(tmp_path / "d" / f"{name}.csv", make_rows(40, seed=seed))
    write_csv(tmp_path / "own.csv", make_rows(40, seed=4))
    write_csv(tmp_path / "unnamed" / "reviews.csv", make_rows(40, seed=5))
    return tmp_path / "d"


@pytest.mark.parametrize(
    ("flags", "seed"),
    [
        ({}, 2),
        ({"validation_split": "fold2"}, 3),
        ({"validation_dataset": "own.csv"}, 4),
        ({"validation_dataset": "unnamed"}, 5),
        ({"validation_size": 0.25}, None),
        ({"train_split": "val"}, None),
    ],
)
def test_the_validation_texts_are_those_asked_for(folder, monkeypatch, flags, seed):
    """Red: read_validation without one of its cases."""
    monkeypatch.chdir(folder.parent)
    train, validation, notes = choose_texts(Config(dataset=str(folder), **flags))
    if seed:
        assert texts_of(validation) == [text for text, _ in make_rows(40, seed=seed)]
        assert len(train) == 40
    else:
        assert len(train) + len(validation) == 40
    assert any(note.startswith(f"validating on {len(validation)} ") for note in notes)
    assert any("not used here" in note for note in notes)


def test_what_the_model_at_the_start_has_learnt_is_not_validated_on(tmp_path, tiny):
    """This month's file is last month's with rows added and in another order, and the model starts
    from last month's best/. Red: `learnt` or `validate` of split_validation all False."""
    first = write_csv(tmp_path / "a.csv", make_rows(200, seed=1))
    train_small(model=tiny, dataset=first, output_dir=tmp_path / "a", max_steps=1)
    learnt, validated, _ = choose_texts(Config(dataset=str(first), model=str(tiny)))
    rows = [*reversed(make_rows(200, seed=1)), *make_rows(60, seed=2)]
    second = write_csv(tmp_path / "b.csv", rows)
    best = str(tmp_path / "a" / "best")
    train, validation, notes = choose_texts(Config(dataset=str(second), model=best))
    assert not set(learnt.hashes) & set(validation.hashes)
    assert not set(validated.hashes) & set(train.hashes)
    assert len(validation) == len(validated) + 18  # of the new texts 30 %, too
    assert any(
        note.endswith("60 of them because --model kept them out of its training") for note in notes
    )
    again = choose_texts(Config(dataset=str(first), model=best))[1]
    assert set(again.hashes) == set(validated.hashes)


def test_a_model_has_seen_what_the_model_at_its_start_has_seen(tmp_path, tiny):
    """Red: `and_then` without `self`; describe_overlap without `before`; split_validation without
    its first error."""
    first = write_csv(tmp_path / "a.csv", make_rows(100, seed=1))
    second = write_csv(tmp_path / "b.csv", make_rows(60, seed=2))
    train_small(model=tiny, dataset=first, output_dir=tmp_path / "a", max_steps=1)
    best = tmp_path / "a" / "best"
    train_small(model=best, dataset=second, output_dir=tmp_path / "b", max_steps=1)
    seen = read_seen(tmp_path / "b" / "best")
    learnt, validated, _ = choose_texts(Config(dataset=str(first), model=str(tiny)))
    assert set(learnt.hashes) <= set(seen.training)
    assert set(validated.hashes) <= set(seen.validation)
    third = Config(dataset=str(second), model=str(best), validation_dataset=str(first))
    with pytest.raises(UserError, match=r"70 of the 100 texts to validate on are .*--model was"):
        choose_texts(third)
    texts = [text for (text,) in itertools.chain.from_iterable(learnt.chunks())]
    only_learnt = write_csv(tmp_path / "c.csv", [(text, i % 2) for i, text in enumerate(texts)])
    with pytest.raises(
        UserError, match=r"has seen 70 of the 70 texts of c.csv, which leaves none to"
    ):
        choose_texts(Config(dataset=str(only_learnt), model=str(best)))


def test_what_a_model_of_the_hub_has_seen_is_downloaded_with_it(tmp_path, tiny, monkeypatch):
    """Red: `fetch_files` returning None for a name."""
    path = write_csv(tmp_path / "a.csv", make_rows(60, seed=1))
    train_small(model=tiny, dataset=path, output_dir=tmp_path / "a", max_steps=1)
    there = Path(constants.HF_HUB_CACHE) / "models--me--m"
    shutil.copytree(tmp_path / "a" / "best", there / "snapshots" / "abc")
    (there / "refs").mkdir()
    (there / "refs" / "main").write_text("abc")
    expected = choose_texts(Config(dataset=str(path), model=str(tmp_path / "a" / "best")))
    found = choose_texts(Config(dataset=str(path), model="me/m", validation_seed=5))
    assert set(found[1].hashes) == set(expected[1].hashes)


def test_white_space_makes_no_other_text_but_other_token_ids(tmp_path, tiny):
    """As the next export may write it. Red: `split` left out of hash_texts; the hashes in the key
    of tokenize."""
    tokenizer = load_tokenizer(str(tiny), max_length=32)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    rows = make_rows(30, seed=1)
    sides = []
    for name, space in (("a", " "), ("b", " \r\n")):
        changed = [(text.replace(" ", space) + space, label) for text, label in rows]
        sides.append(read(write_csv(tmp_path / f"{name}.csv", changed)))
    assert np.array_equal(sides[0].hashes, sides[1].hashes)
    ids = [tokenize(side, tokenizer, 32, "head")["input_ids"][:] for side in sides]
    assert ids[0] != ids[1]


def test_it_is_said_if_nobody_knows_what_a_model_has_seen(tmp_path, bert, capsys):
    """Its hashes are gone, or of pairs, and now one column is read; in eval.py, too. Red: a case of
    why_unknown left out."""
    path, _ = write_pairs(tmp_path / "x.csv")
    flags = {"dataset": path, "max_steps": 1, "output_dir": tmp_path / "a"}
    train_small(model=bert, text_column="title,body", **flags)
    best = tmp_path / "a" / "best"
    config = Config(dataset=str(path), model=str(best), text_column="body")
    unknown = f"whether --model {best} has seen these texts is not known: it "
    assert f"{unknown}was trained on --text_column title,body" in choose_texts(config)[2]
    evaluation.main([f"--ckpt={best}", f"--dataset={path}", "--text_column=body"])
    assert "is not known: it was trained on --text_column title,body" in capsys.readouterr().out
    (best / "training_texts.npy").unlink()
    assert f"{unknown}does not hold what it was trained on" in choose_texts(config)[2]


# ---------------------------------------------------------------- pairs of texts


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A model that has token types."""
    path = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(40))]
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(path / "vocab.txt"), model_max_length=32).save_pretrained(path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(words), intermediate_size=64, **sizes))
    model.embeddings.token_type_embeddings.weight.data[1] += 1.0  # so that token types matter
    model.save_pretrained(path)
    return path


def write_pairs(path, seed=1, count=60):
    rows = [
        (" ".join(t.split()[:2]), " ".join(t.split()[2:12]), c) for t, c in make_rows(count, seed)
    ]
    return write_csv(path, rows, ("title", "body", "label")), rows


def test_a_pair_is_encoded_as_the_tokenizer_does(bert):
    """Token types, too. Red: `return_token_type_ids=False` in encode."""
    tokenizer = load_tokenizer(str(bert), max_length=12)
    pairs = [("w1 w2", "w3 w4 w5"), ("w6", " ".join(["w7"] * 20)), ("", "w8")]
    expected = tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=12)
    columns = encode(pairs, tokenizer, 12, "head")
    for name in ("input_ids", "token_type_ids"):
        assert columns[name] == expected[name]
    assert 1 in columns["token_type_ids"][0]
    assert "token_type_ids" not in encode([("w1",)], tokenizer, 12, "head")


def test_a_text_that_becomes_no_token_is_one_unknown_word(tmp_path):
    """A zero-width space, for a tokenizer that adds no token of its own, as GPT-2's. Red: no case
    of empty ids in encode."""
    tokenizer = load_tokenizer(str(make_family("gpt2", tmp_path)), max_length=12)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.backend_tokenizer.normalizer = normalizers.Nmt()  # as T5's, which drops such
    for texts in ([("\u200b",), ("w3 w4",)], [("\u200b",)]):
        columns = encode(texts, tokenizer, 12, "head")
        assert columns["input_ids"][0] == [tokenizer.unk_token_id]
        assert columns["length"][0] == 1
        batch = Collator(tokenizer)([{"input_ids": ids} for ids in columns["input_ids"]])
        assert batch["input_ids"].dtype == torch.int64


def test_a_pair_without_a_token_between_is_said_to_be(bert, tmp_path):
    """Red: describe_pairs left out of load_splits; `>=` for `>` there."""
    source, _ = write_pairs(tmp_path / "x.csv")
    model = make_family("gpt2", tmp_path / "gpt2")
    said = []
    for name, joined in ((bert, None), (model, None), (model, "title,body")):
        config = Config(model=str(name), dataset=str(source), text_column=joined or "body")
        tokenizer = load_tokenizer(str(name), max_length=12)
        if name == model:
            tokenizer.backend_tokenizer.post_processor = None
        notes = load_splits(config, tokenizer).notes
        said.append([line for line in notes if "puts no token between" in line])
    assert said[:2] == [[], []]
    assert said[2] == [
        f"warning: {model} puts no token between the two texts of a pair: it reads them as one"
    ]


@pytest.mark.parametrize(
    ("label", "declared", "taken"),
    [
        (["0", "1"], None, [0, 1]),
        (["LABEL_1", "LABEL_0"], None, [1, 0]),
        ([0, 1], ["neg", "pos"], [0, 1]),
        (["neg", "pos"], None, None),
        (["1", "2"], None, None),
        ([0, 2], ["a", "b", "c"], None),
    ],
)
def test_numbers_are_the_classes_of_a_model_that_names_none(label, declared, taken, tmp_path):
    """LABEL_0 is 0, or what the data set declares as its first of as many. Names alone say nothing
    of their order. Red: number_labels without `declared`; without its look at how many; without
    its look at all labels."""
    kind = Value("string") if declared is None else ClassLabel(names=declared)
    rows = {"text": [f"w{n}" for n in range(20)], "label": label * 10}
    path = tmp_path / "x.parquet"
    Dataset.from_dict(rows, Features({"text": Value("string"), "label": kind})).to_parquet(path)
    table = read_table(str(path), "test")
    if taken is None:
        with pytest.raises(UserError, match="none of the classes; give one of LABEL_0"):
            label_rows(table, "text", "label", ["LABEL_0", "LABEL_1"])
        return
    texts = label_rows(table, "text", "label", ["LABEL_0", "LABEL_1"])
    assert texts.labels.tolist() == taken * 10
    if "LABEL_0" not in label:
        first, second = declared or label
        said = f"labels are taken by their number: {first} as LABEL_0, {second} as LABEL_1"
        assert said in texts.notes


def test_labels_that_count_from_1_are_asked_about(tmp_path):
    """They are taken as they are. Red: no look at the first name in find_labels."""
    rows = [(f"w{n}", str(1 + n % 2)) for n in range(20)]
    table = read_table(str(write_csv(tmp_path / "x.csv", rows)), "test")
    texts = label_rows(table, "text", "label", [f"LABEL_{n}" for n in range(3)])
    assert any("none is LABEL_0: do these labels count from 1?" in line for line in texts.notes)


def test_tokens_that_the_tokenizer_does_not_know_are_said(tiny, tmp_path):
    """And warned of from a twentieth on. Red: describe_unknown left out of load_splits; tokens of
    padding or ends counted."""
    said = []
    for word, rows in (("w3", 40), ("雨", 1), ("雨", 40)):
        texts = [(f"w1 {word if n < rows else 'w2'} w{n}", "ab"[n % 2]) for n in range(40)]
        config = Config(model=str(tiny), dataset=str(write_csv(tmp_path / "x.csv", texts)))
        splits = load_splits(config, load_tokenizer(str(tiny), max_length=32))
        said.append([line for line in splits.notes if "unknown" in line])
        assert sum(splits.train["unknown"]) <= rows
    assert said[0] == []
    assert said[2] == [
        "warning: 20.0% of the tokens of the training texts (cut at 512) are unknown to the "
        "tokenizer, in 28 texts: choose a --model that knows their language and script"
    ]


def test_names_in_a_line_can_be_told_apart(tmp_path):
    """Red: quote_if_odd as it is given; left out of describe_classes; all names in list_names."""
    assert list_names(["a, b", "c", " d", "e\nf", ""]) == "'a, b', c, ' d', 'e\\nf', ''"
    assert list_names(map(str, range(25))).endswith(", 19 and 5 more")
    source = write_csv(tmp_path / "x.csv", [(f"w{n}", ("a, b", "c")[n % 2]) for n in range(8)])
    texts = label_rows(read_table(str(source), "train"), "text", "label")
    assert describe_classes(texts) == "2 classes, 'a, b': 4 (50.0%), c: 4 (50.0%)"


def test_texts_that_the_tokenizer_does_not_know_are_said_of_predictions_too(
    train_command, tmp_path, capsys
):
    """Red: describe_unknown left out of print_predictions, or of write_predictions; ids of an empty
    file's texts, of which there are none."""
    best = train_command(max_steps=1) / "best"
    capsys.readouterr()
    evaluation.main([f"--ckpt={best}", "--text=雨", "--text=w1 w2 w3"])
    said = capsys.readouterr().out
    assert (
        "warning: 12.5% of the tokens of these texts are unknown to the tokenizer, in 1 te" in said
    )
    for texts, words in (
        (["雨", "w1 w2 w3", " "], "warning: 12.5% of the tokens of the texts of i"),
        ([" "], ""),
    ):
        source = write_csv(tmp_path / "in.csv", [[text] for text in texts], ["text"])
        output = f"--output={tmp_path / 'out.csv'}"
        evaluation.main([f"--ckpt={best}", f"--input={source}", output, "--overwrite"])
        assert capsys.readouterr().out.count("unknown to") == bool(words)


@pytest.mark.parametrize("name", ["bert", "tiny"])
def test_two_columns_are_trained_on_and_predicted_as_a_pipeline_does(name, tmp_path, request):
    """With token types and without. Red: token types left out of make_loader."""
    from transformers import pipeline

    source, rows = write_pairs(tmp_path / "x.csv")
    train_small(
        model=request.getfixturevalue(name),
        dataset=source,
        text_column="title,body",
        output_dir=tmp_path / "run",
        num_train_epochs=3,
    )
    best, output = tmp_path / "run" / "best", tmp_path / "out.jsonl"
    evaluation.main([f"--ckpt={best}", f"--input={source}", f"--output={output}"])
    classify = pipeline("text-classification", str(best), truncation=True, top_k=None)
    for row, line in zip(rows[:9], output.read_text().splitlines(), strict=False):
        scores = {s["label"]: s["score"] for s in classify({"text": row[0], "text_pair": row[1]})}
        written = json.loads(line)
        assert written["title"] == row[0]
        for label, score in scores.items():
            assert written[f"p_{label}"] == pytest.approx(score, abs=2e-5)


def test_a_pair_with_one_text_is_counted_and_one_without_any_refused(tmp_path):
    """Red: `halves` left out of label_rows; `all` for `any` of the texts in scan_rows."""
    path, rows = write_pairs(tmp_path / "x.csv")
    rows = [("", "w1", "negative"), ("w1", " ", "positive"), *rows]
    table = read_table(str(write_csv(path, rows, ("title", "body", "label"))), "train")
    texts = label_rows(table, "title,body", "label")
    assert len(texts) == 62
    assert f"--dataset {path}: 2 rows have only one of their two texts" in texts.notes
    write_csv(path, [*rows, ("", " ", "negative")], ("title", "body", "label"))
    with pytest.raises(UserError, match="1 of 63 rows without a text"):
        label_rows(table, "title,body", "label")


def test_a_blank_may_stand_behind_the_comma(tmp_path):
    """Red: `strip` left out of split_columns."""
    path, rows = write_pairs(tmp_path / "x.csv")
    texts = label_rows(read_table(str(path), "train"), "title, body", "label")
    assert texts_of(texts) == [(title, body) for title, body, _ in rows]


# ---------------------------------------------------------------- predictions


def test_an_empty_text_gets_an_empty_prediction(tiny, corpus, tmp_path, monkeypatch):
    """In its row, in chunks of 4. Red: `range(len(valid))` in predict_texts."""
    monkeypatch.setattr(formats, "CHUNK", 4)
    train_small(model=tiny, dataset=corpus, output_dir=tmp_path / "run", max_steps=1)
    lines = [{"text": "" if i % 3 == 0 else f"w{i}", "n": i} for i in range(11)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = [f"--ckpt={tmp_path / 'run' / 'best'}", f"--input={tmp_path / 'x.jsonl'}"]
    evaluation.main([*flags, f"--output={tmp_path / 'y.jsonl'}"])
    written = [json.loads(line) for line in (tmp_path / "y.jsonl").open()]
    assert [row["n"] for row in written] == list(range(11))
    assert [row["predicted_label"] is None for row in written] == [i % 3 == 0 for i in range(11)]
    assert [row["p_positive"] is None for row in written] == [i % 3 == 0 for i in range(11)]


def test_columns_of_equal_names_are_repeated(tiny, corpus, tmp_path):
    """As in a sheet with several columns that have none. Red: `columns` for all in read_chunks."""
    train_small(model=tiny, dataset=corpus, output_dir=tmp_path / "run", max_steps=1)
    source, output = tmp_path / "x.csv", tmp_path / "y.csv"
    source.write_text(",text,,\n1,w1,2,\n3,w2,4,5\n")
    flags = [f"--ckpt={tmp_path / 'run' / 'best'}", f"--input={source}", f"--output={output}"]
    evaluation.main(flags)
    lines = zip(source.read_text().splitlines(), output.read_text().splitlines(), strict=True)
    assert all(after.startswith(f"{before},") for before, after in lines)


def test_a_mistake_in_the_last_row_is_found_before_the_first_prediction(
    tiny, corpus, tmp_path, monkeypatch
):
    """Red: `map(len, read_chunks(source))` in write_predictions."""
    train_small(model=tiny, dataset=corpus, output_dir=tmp_path / "run", max_steps=1)
    (tmp_path / "x.jsonl").write_text('{"text": "w1"}\n' * 2000 + '{"text": ["w2"]}\n')
    monkeypatch.setattr(evaluation.Classifier, "logits", None)
    flags = [f"--ckpt={tmp_path / 'run' / 'best'}", f"--input={tmp_path / 'x.jsonl'}"]
    with pytest.raises(UserError, match="column 'text' holds"):
        evaluation.main([*flags, f"--output={tmp_path / 'y.jsonl'}"])


def test_blank_lines_of_a_single_column_are_rows(tiny, corpus, tmp_path):
    """But at the end of the file. Red: `filter(None, lines)` for every file in open_csv."""
    train_small(model=tiny, dataset=corpus, output_dir=tmp_path / "run", max_steps=1)
    (tmp_path / "x.csv").write_text("text\nw1\n\nw2\n\n\n")
    flags = [f"--ckpt={tmp_path / 'run' / 'best'}", f"--input={tmp_path / 'x.csv'}"]
    evaluation.main([*flags, f"--output={tmp_path / 'y.csv'}"])
    with (tmp_path / "y.csv").open() as file:
        assert [row["text"] for row in csv.DictReader(file)] == ["w1", "", "w2"]


@pytest.mark.parametrize("size", [0, -200])
def test_token_ids_that_are_damaged_are_computed_anew(tiny, corpus, size):
    """Red: `suppress` left out of cached_rows."""
    tokenizer = load_tokenizer(str(tiny), max_length=32)
    texts = read(corpus)
    ids = tokenize(texts, tokenizer, 32, "head")
    (file,) = (Path(entry["filename"]) for entry in ids.cache_files)
    expected = ids["input_ids"][:]
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:size])
    assert tokenize(texts, tokenizer, 32, "head")["input_ids"][:] == expected


def test_a_cache_of_the_hub_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """Red: hub_remedy without its first case."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("runtime.hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert (
        hub_remedy("x")
        == f"set HF_HOME to a folder that can be written, which {tmp_path / 'file'} is not"
    )


def test_a_data_set_that_needs_a_script_is_refused_in_one_line(monkeypatch):
    """Red: RuntimeError left out of LIBRARY_ERRORS."""
    script = RuntimeError("Dataset scripts are no longer supported, but found x.py")
    monkeypatch.setattr(splits, "locate", lambda *_: None)
    monkeypatch.setattr(splits, "require_downloaded", lambda *_: None)
    monkeypatch.setattr(splits, "load_dataset_builder", Mock(side_effect=script))
    with pytest.raises(UserError, match=r"o/x: Dataset scripts are no .* x.py; check the name"):
        read_table("o/x", "train")


def test_a_cache_that_cannot_be_written_is_named(tiny, corpus, tmp_path, monkeypatch):
    """Red: cached_rows without its try."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("runtime.cache.datasets_config.HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(
        UserError, match=r"Not a directory, so token ids cannot be cached .* HF_HOME"
    ):
        train_small(model=tiny, dataset=corpus, output_dir=tmp_path / "run")


def test_the_column_of_a_text_file_fits_any_single_name(tmp_path):
    """No data set of labels is one, and none is read in a folder. Red: is_of_lines always false;
    `unlabelled` always true; LINES among what a folder's files may be."""
    (tmp_path / "x.txt").write_text("fine\nbad\n")
    table = read_table(str(tmp_path / "x.txt"), "train", flag="--unlabelled")
    assert find_text_columns(table, "review") == ("text",)
    with pytest.raises(UserError, match="no such column"):
        find_text_columns(table, "title,body")
    with pytest.raises(UserError, match="unknown kind of file"):
        read_table(str(tmp_path / "x.txt"), "train")
    write_csv(tmp_path / "reviews.csv", make_rows(3, seed=1))
    assert list(read_table(str(tmp_path), "train", flag="--unlabelled").parts) == ["reviews.csv"]
