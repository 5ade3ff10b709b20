"""`--soft_labels`: a probability of each class in place of one class."""

import json
import random
import re

import numpy as np
import pytest
import torch
from conftest import make_rows, write_csv
from events import dying_at
from test_loop import assert_same_bits, flags_of
from test_objective import flat_gradient, record_gradients

import eval as evaluation
import train
from config import Config
from runtime.flags import UserError, parse
from runtime.soft import read_soft_labels
from runtime.splits import read_table
from runtime.tables import label_rows

HEADER = ("text", "label", "p_negative", "p_positive")


def soften(rows, seed=0):
    """Each second row with probabilities, the others without."""
    rng = random.Random(seed)
    for index, (text, label) in enumerate(rows):
        share = rng.uniform(0, 1)
        yield text, label, *((f"{share:.4f}", f"{1 - share:.4f}") if index % 2 else ("", " "))


@pytest.fixture
def soft(tmp_path):
    return write_csv(tmp_path / "soft.csv", soften(make_rows(60, seed=1)), HEADER)


def set_up(output):
    config = parse(Config, flags_of(output))
    return train.set_up(config, train.make_accelerator(config))


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_the_gradient_is_that_of_the_cross_entropy_of_distributions(
    train_command, tmp_path, monkeypatch, weights
):
    """-sum p log q over the batch, by hand, one text at a time, however the batch is dealt. Two
    thirds of the texts are of one class.

    Red: the classes left in place of "soft" in Collator; weigh_texts by the classes.
    """
    uneven = [row for number, row in enumerate(make_rows(80, seed=1)) if number % 4 != 1]
    soft = write_csv(tmp_path / "soft.csv", soften(uneven), HEADER)
    gradients = record_gradients(monkeypatch)
    few = {"dataset": soft, "soft_labels": "p_", "learning_rate": 1e-30, "max_steps": 3}
    few |= {"dropout": 0.0, "class_weights": weights} if weights else {"dropout": 0.0}
    for parts in (1, 4):
        sizes = {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts}
        train_command(output_dir=tmp_path / f"{parts}", **sizes, **few)
    run = set_up(tmp_path / "1")
    count = np.bincount(run.train_set["labels"][:])
    assert count.tolist() == [28, 14]
    of_class = torch.tensor(len(run.train_set) / (2 * count) if weights else np.ones(2))
    for step in range(1, 4):
        total = weight = 0
        for row in map(run.train_set.__getitem__, map(int, run.plan[step])):
            target = torch.tensor(row["soft"]) * of_class
            logits = run.model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            total, weight = total - target @ logits.double().log_softmax(-1), weight + target.sum()
        run.model.zero_grad()
        (total / weight).backward()
        for ours in (gradients[step - 1], gradients[step + 2]):
            expected = flat_gradient(run.model.parameters())
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_each_text_has_its_own_probabilities(soft, train_command):
    """After the split, too; one of the class where the cells are empty, and validation has none.

    Red: the columns in another order than the classes; `hard` left out.
    """
    run = set_up(train_command(dataset=soft, soft_labels="p_", max_steps=1))
    expected = {}
    for text, label, *cells in soften(make_rows(60, seed=1)):
        ids = tuple(run.tokenizer(text, truncation=True, max_length=32)["input_ids"])
        hard = [float(label == name) for name in ("negative", "positive")]
        expected[ids] = list(map(float, cells)) if cells[0] else hard
    assert len(run.train_set) == 42
    for row in run.train_set:
        assert row["soft"] == pytest.approx(expected[tuple(row["input_ids"])], abs=1e-6)
    assert "soft" not in run.validation_set.column_names


def test_what_eval_writes_is_learnt_from(corpus, train_command, tmp_path):
    """Predictions for a file, as eval.py --output writes them; JSON, too. Red: p_ columns of
    numbers refused in read_numbers."""
    best = train_command(max_steps=60, learning_rate=3e-3) / "best"
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        out = tmp_path / name.split(".")[1] / name
        out.parent.mkdir()
        given = [f"--input={corpus / 'train.csv'}", f"--output={out}", "--num_threads=1"]
        evaluation.main([f"--ckpt={best}", *given])
        texts = label_rows(read_table(str(out), "train"), "text", "predicted_label")
        learnt = read_soft_labels(texts, "p_")
        assert (learnt.argmax(1) == texts.labels).all()
        assert 0.5 < learnt.max(1).mean() < 1


def test_what_soft_labels_may_hide_is_said(train_command, tmp_path, capsys):
    """Labels to validate on that a model may have given, labels that are not the likeliest class,
    columns of a class that no row has; and nothing of it where all is well.

    Red: each of the three left out; NaN taken for a probability in validation.
    """
    rows = make_rows(60, seed=1)
    shares = {"negative": ("0.9", "0.1"), "positive": ("0.1", "0.9")}
    sure = [(*row, *shares[row[1]]) for row in rows]
    people = {"validation_dataset": write_csv(tmp_path / "people.csv", make_rows(20, seed=5))}

    def said(rows, header=HEADER, **flags):
        data = write_csv(tmp_path / f"{len(list(tmp_path.iterdir()))}.csv", rows, header)
        given = {"dataset": data, "output_dir": data.with_suffix(""), "max_steps": 1}
        train_command(soft_labels="p_", **given, **flags)
        return capsys.readouterr().out

    quiet = said(sure, **people)
    assert "60 of 60 training texts have a share in more than one class\n" in quiet
    assert "likelier" not in quiet
    assert "to validate on have" not in quiet
    assert "18 of the 18 texts to validate on have probabilities" in said(sure)
    half = said([row if number % 3 else (*row[:2], "", " ") for number, row in enumerate(sure)])
    assert 0 < int(re.search(r"(\d+) of the 18 texts to validate on have", half)[1]) < 18
    other = [(text, label, second, first) for text, label, first, second in sure]
    assert "of 60 training texts another class is likelier" in said(other, **people)
    third = (*HEADER, "p_other")
    assert "one class (columns of no class: p_oth" in said([(*row, "0") for row in sure], third)
    with pytest.raises(
        UserError, match=r"p_positive \(first: 0\.6, 0\.1\).* \(columns of no class: p_o"
    ):
        said([(*row[:2], "0.6", "0.1", "0.3") for row in rows], third)


def test_other_probabilities_are_other_data(soft, train_command):
    """A resume says so, and one with the same ends in the same bits. Red: `soft` left out of
    fingerprint."""
    flags = {"dataset": soft, "soft_labels": "p_", "max_steps": 6, "save_steps": 2}
    whole = train_command(output_dir=soft.parent / "whole", **flags)
    with dying_at(5):
        train_command(**flags)
    assert_same_bits(whole, train_command(**flags))
    with dying_at(5):
        train_command(**flags, overwrite=True)
    write_csv(soft, soften(make_rows(60, seed=1), seed=1), HEADER)
    with pytest.raises(UserError, match="was written with other texts or labels"):
        train_command(**flags)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("0.4", "0.4"), r"1 rows have no probabilities with a sum of 1 .* \(first: 0.4, 0.4\)"),
        (("1.2", "-0.2"), "1 rows have no probabilities"),
        (("1", ""), "1 rows have no probabilities"),
        (("nan", "1"), "1 rows have no probabilities"),
        (("high", "low"), "column 'p_negative': .*high.*; give numbers"),
    ],
)
def test_what_is_no_distribution_is_refused(tmp_path, cells, message):
    """Red: `wrong` all False; the `except` in read_numbers left out."""
    rows = [*soften(make_rows(20, seed=1)), ("w1 w2", "negative", *cells)]
    texts = label_rows(
        read_table(str(write_csv(tmp_path / "x.csv", rows, HEADER)), "train"), "text", "label"
    )
    with pytest.raises(UserError, match=message):
        read_soft_labels(texts, "p_")


def test_the_user_is_told_how_many_texts_are_shared_between_classes(soft, train_command, capsys):
    """Red: the note left out of load_splits."""
    best = train_command(dataset=soft, soft_labels="p_", max_steps=1) / "best"
    assert "of 42 training texts have a share in more than one class" in capsys.readouterr().out
    assert json.loads((best / "training_config.json").read_text())["soft_labels"] == "p_"
