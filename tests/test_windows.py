"""`--long window`: all of a text that is longer than the model reads."""

import csv
import itertools
import json
import shutil

import pytest
import torch
from conftest import WORDS, make_rows, write_csv
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import eval as evaluation
import train
from config import Config, EvalConfig
from report.windows import OVERLAP, starts_of_windows
from runtime.card import make_card
from runtime.flags import UserError


@pytest.fixture(scope="module")
def best(tiny, tmp_path_factory):
    """A model that reads 16 tokens, 14 of them of the text."""
    folder = tmp_path_factory.mktemp("windows")
    write_csv(folder / "data" / "train.csv", make_rows(60, seed=1))
    write_csv(folder / "data" / "test.csv", make_rows(31, seed=2))
    flags = ["--max_length=16", "--max_steps=12", "--learning_rate=3e-3", "--num_threads=1"]
    train.main(
        [f"--model={tiny}", f"--dataset={folder / 'data'}", f"--output_dir={folder}", *flags]
    )
    return folder / "best"


def open_best(best, long, **flags):
    asked = EvalConfig(ckpt=str(best), num_threads=1, long=long, **flags)
    return evaluation.open_classifier(asked)


@given(st.integers(0, 3000), st.integers(1, 600))
def test_windows_lie_over_all_of_a_text_and_overlap(length, width):
    """As few as do so. Red: `linspace` to `length`; `count` one more, or one less."""
    starts = starts_of_windows(length, width)
    most = max(1, width - int(OVERLAP * width))  # from one start to the next
    assert starts[0] == 0
    assert starts[-1] == max(0, length - width)
    steps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(0 < step <= most for step in steps)
    assert most * (len(starts) - 2) < max(0, length - width) or len(starts) == 1


def test_the_logits_of_a_long_text_are_the_mean_over_its_windows(best):
    """By hand: 30 words are three windows of 14, from 0, 8 and 16. Red: the mean over all texts;
    a window without its [SEP]; encode cut."""
    words = [WORDS[number % 40] for number in range(30)]
    tokenizer = AutoTokenizer.from_pretrained(best)
    model = AutoModelForSequenceClassification.from_pretrained(best).eval()
    assert starts_of_windows(30, 14) == [0, 8, 16]
    windows = [" ".join(words[start : start + 14]) for start in (0, 8, 16)]
    with torch.no_grad():
        of_each = model(**tokenizer(windows, return_tensors="pt")).logits
    classifier = open_best(best, "window")
    ids = classifier.encode([("w1",), (" ".join(words),), ("w2 w3",)])
    found = classifier.logits(ids)
    torch.testing.assert_close(found[1], of_each.mean(0), rtol=1e-5, atol=1e-6)
    assert ids["length"] == [3, 32, 4]


def test_a_text_that_fits_has_the_logits_that_it_has_without(best):
    """To the bit. Red: a window of `width` alone, without its special tokens."""
    texts = [(text,) for text, _ in make_rows(40, seed=3) if len(text.split()) <= 14]
    assert len(texts) > 5
    cut, windows = (open_best(best, long) for long in ("cut", "window"))
    assert torch.equal(cut.logits(cut.encode(texts)), windows.logits(windows.encode(texts)))


def test_the_commands_read_whole_texts(best, tmp_path, capsys):
    """A report, the predictions of a file, and --text agree. The report has nothing that was fitted
    on cut texts. Red: `in_windows` false; `validation` read all the same."""
    long = " ".join(WORDS[number % 40] for number in range(5, 35))
    write_csv(tmp_path / "new.csv", [(long, "")])
    ckpt = [f"--ckpt={best}", "--long=window", "--num_threads=1"]
    evaluation.main([*ckpt, f"--input={tmp_path / 'new.csv'}", f"--output={tmp_path / 'out.csv'}"])
    evaluation.main([*ckpt, f"--text={long}"])
    shown = capsys.readouterr().out.splitlines()[-1].split()
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert shown[:2] == [row["predicted_label"], f"{float(row['probability']):.4f}"]
    classifier = open_best(best, "window")
    share = classifier.logits(classifier.encode([(long,)])).softmax(-1).max().item()
    assert float(row["probability"]) == pytest.approx(share, rel=1e-5)

    evaluation.main([*ckpt, f"--report={tmp_path / 'whole.json'}"])
    longer = sum(len(text.split()) > 14 for text, _ in make_rows(31, seed=2))
    assert f"{longer} of 31 texts have more than 16 tokens" in capsys.readouterr().out
    report = json.loads((tmp_path / "whole.json").read_text())
    assert set(report["by_cut"]) == {"whole"}
    assert report["by_length"][-1]["to"] > 30
    assert report["at_stored_threshold"] is None
    assert report["thresholds"] == []
    assert report["calibration"]["temperature"] is None


def test_a_report_of_whole_texts_does_not_replace_one_of_cut_texts(best, tmp_path):
    """Nor stand in the model card, for a pipeline cuts. Red: `identity` without `long`; the
    condition in make_card left out."""
    ckpt = [f"--ckpt={best}", "--num_threads=1"]
    evaluation.main([*ckpt, f"--report={tmp_path / 'r.json'}"])
    with pytest.raises(UserError, match=r"report that differs in --long; give --report FILE"):
        evaluation.main([*ckpt, "--long=window", f"--report={tmp_path / 'r.json'}"])
    copy = shutil.copytree(best, tmp_path / "best")
    for long, splits in (("window", 1), ("cut", 2)):  # validation alone, and test
        evaluation.main([f"--ckpt={copy}", "--num_threads=1", f"--long={long}", "--overwrite"])
        results = make_card(copy, Config).data.eval_results
        assert len({result.dataset_split for result in results}) == splits


def test_pairs_have_no_windows(best, tmp_path, tiny):
    """Of a model of another program, too, which does not say what it was trained on.
    Red: the check in open_classifier left out; the given --text_column left out of it."""
    rows = [(text, "w1", label) for text, label in make_rows(60, seed=1)]
    write_csv(tmp_path / "pairs.csv", rows, header=("a", "b", "label"))
    flags = ["--text_column=a,b", "--max_length=16", "--max_steps=1", "--num_threads=1"]
    given = [f"--model={tiny}", f"--dataset={tmp_path / 'pairs.csv'}"]
    train.main([*given, f"--output_dir={tmp_path / 'run'}", *flags])
    with pytest.raises(UserError, match="reads pairs of texts; leave it out"):
        open_best(tmp_path / "run" / "best", "window")
    for name in ("training_config.json", "manifest.json"):
        (tmp_path / "run" / "best" / name).unlink()
    with pytest.raises(UserError, match="reads pairs of texts; leave it out"):
        open_best(tmp_path / "run" / "best", "window", text_column="a,b")
