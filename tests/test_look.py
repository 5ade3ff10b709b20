"""A look at the data: every figure beside one that pandas and scikit-learn give."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORDS, make_rows, train_small, write_csv
from datasets import Dataset
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

import data
from config import Config
from data import choose_texts
from model import Scores, load_tokenizer, score
from report import look
from report.files import check_look
from runtime.checkpoint import Progress
from runtime.flags import UserError
from runtime.monitor import describe_validation
from runtime.notes import describe_cut


@pytest.fixture
def uneven(tmp_path):
    """A CSV file of 8 classes named by strings, very uneven, with texts that repeat, some of them
    with other labels, and rows without a text or a label."""
    rng = np.random.default_rng(0)
    sizes = {"billing": 200, "login": 90, "07": 60, "Spam": 30, "no idea": 12, "x": 8, "y": 4}
    sizes["z"] = 3
    rows = [
        (" ".join([WORDS[number], *rng.choice(WORDS[8:], rng.integers(1, 50))]), name)
        for number, (name, size) in enumerate(sizes.items())
        for _ in range(size)
    ]
    rows += rows[:5] + [(text, "login") for text, _ in rows[10:13]]
    rows += [("", "x"), ("  ", "y"), ("w1 w2", "")]
    table = pd.DataFrame(rows, columns=["text", "label"]).sample(frac=1, random_state=0)
    table.to_csv(tmp_path / "uneven.csv", index=False)
    return tmp_path / "uneven.csv"


def sides_of(path) -> list[pd.DataFrame]:
    """(train, validation) as tables of pandas."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    texts = choose_texts(Config(dataset=str(path), model="nowhere/none", drop_invalid=True))[:2]
    return [table.iloc[side.rows] for side in texts]


def repeats_of(*sides) -> tuple[int, int, int]:
    """Texts that occur more than once, their rows, and how many of them have several labels."""
    groups = pd.concat(sides).groupby("text").label.agg(["size", "nunique"])
    repeated = groups[groups["size"] > 1]
    return len(repeated), repeated["size"].sum(), (repeated["nunique"] > 1).sum()


def test_every_figure_is_that_of_pandas_and_scikit_learn(uneven, tiny, tmp_path, capsys):
    """Red: any figure of report/look.py another, such as `>=` for `>` in `cut`, `labels[1]` in
    count_repeats, a mean for the median."""
    found = tmp_path / "look.json"
    data.main([f"--dataset={uneven}", f"--model={tiny}", "--max_length=20", f"--json={found}"])
    look, said = json.loads(found.read_text()), capsys.readouterr().out
    train, validation = sides_of(uneven)
    tokenizer = load_tokenizer(str(tiny), max_length=32)
    for side in (train, validation):
        side.insert(0, "tokens", [len(tokenizer(text)["input_ids"]) for text in side.text])
    assert look["texts"] == {"train": len(train), "validation": len(validation)}
    for name, row in look["classes"].items():
        own = train[train.label == name]
        assert row["train"] == len(own)
        assert row["validation"] == (validation.label == name).sum()
        assert row["median_tokens"] == int(own.tokens.median())
        assert row["cut"] == pytest.approx((own.tokens > 20).mean())
    assert look["cut"]["validation"] == pytest.approx((validation.tokens > 20).mean())
    assert look["tokens"] == {
        f"{percent}%": train.tokens.quantile(percent / 100, interpolation="lower")
        for percent in (0, 5, 25, 50, 75, 95, 100)
    }
    assert look["left_out"] == 3
    assert tuple(look["repeats"].values()) == repeats_of(train, validation)
    assert look["in_both"] == validation.text.isin(train.text).sum() == 0
    dummy = DummyClassifier(strategy="most_frequent").fit(validation.text, validation.label)
    assert look["baselines"]["largest_class"] == dummy.score(validation.text, validation.label)
    vectorize = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=200)
    model.fit(vectorize.fit_transform(train.text), train.label)
    words = model.score(vectorize.transform(validation.text), validation.label)
    assert look["baselines"]["bag_of_words"]["accuracy"] == words
    assert f"{words:.4f} by a bag of words" in said
    assert "train.py refuses rows without a text or a label, unless --drop_invalid is given" in said


def test_a_training_says_what_matters_of_its_texts(uneven, tiny, tmp_path, capsys):
    """And that nothing was learnt. Red: `0.25` in describe_cut 0.95; one of its notes left out of
    load_splits or choose_texts; `last` True in describe_validation."""
    flags = {"model": tiny, "dataset": uneven, "drop_invalid": True, "output_dir": tmp_path / "run"}
    train_small(max_length=20, learning_rate=1e-9, seed=1, num_train_epochs=2, **flags)
    said = capsys.readouterr().out
    train, validation = sides_of(uneven)
    lengths = load_tokenizer(str(tiny), max_length=32)(
        [*train.text, *validation.text], return_length=True
    )["length"]
    cut = np.mean(np.array(lengths) > 20)
    largest = (validation.label == "billing").mean()
    assert f"warning: {cut:.1%} of the texts are cut at 20 tokens; --truncation head_tail" in said
    texts, rows, different = repeats_of(train, validation)
    assert texts > different > 2
    repeats = f"{texts} texts of uneven.csv occur more than once, in {rows} rows; {different} of"
    assert repeats in said
    assert f"'billing' for every text: right for {largest:.1%} of the validation" in said
    nothing = f"no more than its largest class ({largest:.4f}): nothing learnt yet"
    assert said.count(nothing) == 2
    assert said.count(f"{nothing}: raise --learning_rate, or train longer") == 1


def test_to_be_as_good_as_the_largest_class_is_to_have_learnt_nothing(tmp_path):
    """By accuracy and by macro-F1; if by one of them alone, that is said; and one class's accuracy,
    of all, says nothing. Red: `>=` for `>` in describe_validation; no case of one class; no look at
    macro-F1, or no words about it."""
    validation = Dataset.from_dict({"labels": [0, 1, 1, 1]})
    run = SimpleNamespace(
        progress=Progress(step=3), total_steps=9, validation_set=validation, output=tmp_path
    )
    run.at_last_step = False
    f1 = f1_score([0, 1, 1, 1], [1, 1, 1, 1], average="macro")
    for accuracy, macro_f1, learnt in ((0.75, f1, False), (0.76, 0, True), (0.5, f1 + 0.01, True)):
        line = describe_validation(run, Scores(0.5, accuracy, macro_f1, 4), True)
        assert ("nothing learnt" in line) != learnt
        assert line.endswith("; the largest class alone has an accuracy of 0.7500") == (
            accuracy == 0.5
        )
    run.validation_set = Dataset.from_dict({"labels": [1, 1]})
    line = describe_validation(run, Scores(0.5, 1.0, 1.0, 2), True)
    assert line.endswith("; these are all of one class, which any model that answers it has right")
    assert "nothing learnt" not in line


@given(st.lists(st.integers(0, 3), min_size=2).filter(lambda labels: len(set(labels)) > 1))
@example([0] * 30 + [1] * 33)
def test_one_answer_for_every_text_has_learnt_nothing_of_whatever_counts(labels):
    """In whatever number of texts and classes. Red: ROUNDING 0; float32 in score."""
    largest = max(set(labels), key=labels.count)
    logits = torch.eye(4)[torch.full((len(labels),), largest)]
    run = SimpleNamespace(progress=Progress(step=3), total_steps=9, at_last_step=False)
    run.output = Path("run")
    run.validation_set = Dataset.from_dict({"labels": labels})
    scores = score(logits, torch.tensor(labels))
    assert "nothing learnt" in describe_validation(run, scores, False)


@pytest.mark.parametrize("most", [40, 10_000])
def test_the_weights_of_the_bag_of_words_are_bounded(uneven, monkeypatch, most):
    """By the most frequent words, fewer with more classes. Red: max_features left out, or without
    the number of classes."""
    monkeypatch.setattr(look, "MOST_WEIGHTS", most)
    train, validation, _ = choose_texts(Config(dataset=str(uneven), drop_invalid=True))
    texts, others = (
        [text for chunk in side.chunks() for (text,) in chunk] for side in (train, validation)
    )
    vectorize = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=most // 8)
    model = LogisticRegression(C=10, max_iter=200).fit(vectorize.fit_transform(texts), train.labels)
    expected = model.score(vectorize.transform(others), validation.labels)
    assert look.bag_of_words(train, validation)["accuracy"] == expected


def test_a_name_that_is_long_or_has_line_breaks_takes_one_line(tmp_path, tiny, capsys):
    """Of two such names that look alike, both. Red: `name` whole in show_look; a dict of rows."""
    names = ["a\nb", f"{'x' * 90}1{'y' * 90}", f"{'x' * 90}2{'y' * 90}"]
    rows = [(f"w{n} w9", names[n % 3]) for n in range(30)]
    source = write_csv(tmp_path / "x.csv", rows)
    data.main([f"--dataset={source}", f"--model={tiny}", "--max_length=20"])
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("a b  ") for line in said) == 1
    assert sum(line.startswith("xxxx") and "…" in line for line in said) == 2
    heads = [line.index("  median tokens") for line in said if "  median tokens" in line]
    assert heads == [77]


HAN = [chr(0x4E00 + number) for number in range(500)]
TEXTS = {  # of 1200, each with a word that shows its class, and words by chance
    "Chinese without blanks": lambda mark, rng: mark + "".join(rng.choice(HAN[2:], 40)),
    "words of one letter": lambda mark, rng: f"{HAN[mark == HAN[0]]} {rng.choice(HAN[2:])}",
    "no words": lambda mark, rng: "!" * rng.integers(1, 20) + "?" * rng.integers(1, 20),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_of_any_script_are_looked_at(kind, tiny, tmp_path, capsys):
    """Red: TfidfVectorizer without WORD; without `except ValueError`."""
    rng = np.random.default_rng(0)
    rows = [(TEXTS[kind](HAN[n % 2], rng), "ab"[n % 2]) for n in range(1200)]
    source, found = write_csv(tmp_path / "x.csv", rows), tmp_path / "look.json"
    data.main([f"--dataset={source}", f"--model={tiny}", "--max_length=20", f"--json={found}"])
    accuracy = json.loads(found.read_text())["baselines"]["bag_of_words"]["accuracy"]
    said = capsys.readouterr().out
    if kind == "no words":
        assert accuracy is None
        assert "none by a bag of words" in said
    else:
        assert accuracy > 0.9


def test_a_look_at_texts_of_one_class_says_so(tiny, tmp_path, capsys):
    """To train on, by a sample of one; to validate on, by a file. Red: no look at the classes in
    bag_of_words; no describe_absent of a validation file."""
    source = write_csv(tmp_path / "x.csv", make_rows(40, seed=1))
    own = write_csv(tmp_path / "own.csv", [("w3 w4", "positive"), ("w5", "positive")])
    flags = [f"--dataset={source}", f"--model={tiny}", "--max_length=20"]
    data.main([*flags, "--max_train_samples=1"])
    said = capsys.readouterr().out
    assert "no text of 'positive' among the train texts (--max_train_samples 1)" in said
    assert "none by a bag of words" in said
    data.main([*flags, f"--validation_dataset={own}"])
    assert f"no text of 'negative' in --validation_dataset {own}" in capsys.readouterr().out


def test_pairs_are_looked_at_as_they_are_trained_on(tiny, tmp_path):
    """Red: "head" for config.truncation in look_at."""
    rows = [("w1", *row) for row in make_rows(40, seed=1)]
    source = write_csv(tmp_path / "x.csv", rows, ("title", "text", "label"))
    flags = [f"--dataset={source}", f"--model={tiny}", "--text_column=title,text"]
    with pytest.raises(UserError, match="head_tail: cuts one text, not a pair"):
        data.main([*flags, "--max_length=20", "--truncation=head_tail"])
    with pytest.raises(UserError, match="adds 3 tokens to each pair of texts; give 5 or more"):
        data.main([*flags, "--max_length=4"])


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_file_of_the_user_is_overwritten(uneven, tiny, overwrite):
    """Not even the data set, with --overwrite. Red: check_writable alone in check_look; True for
    its look at the key."""
    before = uneven.read_bytes()
    flags = [f"--dataset={uneven}", f"--model={tiny}", "--max_length=20", f"--json={uneven}"]
    with pytest.raises(UserError, match="exists, and is not of this program"):
        data.main([*flags, *["--overwrite"] * overwrite])
    assert uneven.read_bytes() == before
    look = uneven.with_name("look.json")
    look.write_text('{"in_both": 1}')
    check_look(look, overwrite=True)
    with pytest.raises(UserError, match="exists"):
        check_look(look, overwrite=False)


def test_a_cut_that_is_refused_for_pairs_is_not_proposed_for_them():
    """Red: `pairs` left out of describe_cut."""
    side = Dataset.from_dict({"cut": [True, False]})
    said = [describe_cut(side, side, 9, pairs) for pairs in (False, True)]
    assert ["head_tail" in line for line in said] == [True, False]
    assert all(line.startswith("warning: 50.0% of the texts are cut at 9 tokens;") for line in said)
