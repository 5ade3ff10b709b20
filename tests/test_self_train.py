"""recipes/self_train.py: learning from texts that a model has labelled."""

import csv
import dataclasses
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import make_rows, write_csv
from datasets import ClassLabel, Dataset, Features, Value
from events import dying_at
from hypothesis import given
from hypothesis import strategies as st
from test_loop import assert_same_bits

import eval as evaluation
from config import EvalConfig
from eval import open_classifier
from recipes import self_train
from recipes.pseudo_labels import choose_balanced, find_unsure
from recipes.round_data import digest, identify
from runtime.flags import UserError
from runtime.seen import read_seen
from runtime.tables import hash_texts

SMALL = {
    "max_length": 32,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-3,
    "max_steps": 60,
    "validate_steps": 20,
    "save_steps": 8,
    "eval_steps": 20,
    "eval_samples": 20,
    "num_threads": 1,
    "max_save_share": 1.0,
    "max_train_samples": 40,
    "min_probability": 0.55,
}
QUICK = {"max_steps": 40, "min_probability": 0.5}  # where it need not be sure


@pytest.fixture
def command(tiny, corpus, tmp_path):
    """command(flag=value, ...) runs the recipe with 40 labels; returns its folder."""
    rows = [(text, "") for text, _ in make_rows(80, seed=9)]
    more = write_csv(tmp_path / "more.csv", rows)

    def run(**flags):
        given = {"model": tiny, "dataset": corpus, "unlabelled": more}
        given |= SMALL | {"output_dir": tmp_path / "out"} | flags
        teachers = [f"--teacher={folder}" for folder in given.pop("teachers", ())]
        words = [f"--{name}={value}" for name, value in given.items()]
        assert self_train.main([*words, *teachers]) == 0
        return given["output_dir"]

    return run


@given(
    st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), max_size=60),
    st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any),
    st.floats(0.34, 0.9),
    st.none() | st.integers(1, 20),
)
def test_of_each_class_the_surest_are_learnt_from_in_the_proportions_of_the_labels(
    rows, of_labelled, least, most
):
    """Red: `least` ignored; the least sure; all of the most frequent class."""
    shares = np.array(rows, dtype=float).reshape(-1, 3)
    shares /= shares.sum(1, keepdims=True)
    of_labelled = np.array(of_labelled)
    chosen = choose_balanced(shares, of_labelled, least, most)
    labels, top = shares.argmax(1), shares.max(1)
    assert len(set(chosen.tolist())) == len(chosen) <= (most or len(rows))
    assert (top[chosen] >= least).all()
    count = np.bincount(labels[chosen], minlength=3)
    expected = of_labelled / of_labelled.sum() * len(chosen)
    assert (np.abs(count - expected) <= 2).all()
    for label in range(3):
        left = np.setdiff1d(np.flatnonzero(labels == label), chosen)
        own = chosen[labels[chosen] == label]
        assert not len(own) or not len(left) or top[own].min() >= top[left].max()


def test_a_round_learns_from_the_mean_of_what_its_teachers_say(command, tmp_path):
    """As eval.py says it, beside the labelled texts, of each class as many. One teacher has the
    classes in the other order. Red: the classes in the order of the teacher; the labelled texts
    left out; one teacher alone."""
    (tmp_path / "reversed").mkdir()
    texts, labels = zip(*make_rows(150, seed=1), strict=True)
    kinds = {"text": Value("string"), "label": ClassLabel(names=["positive", "negative"])}
    rows = Dataset.from_dict({"text": texts, "label": labels}, features=Features(kinds))
    rows.to_parquet(str(tmp_path / "reversed" / "train.parquet"))
    teachers = [
        command(output_dir=tmp_path / f"{seed}", seed=seed, **other) / "round_0" / "best"
        for seed, other in ((1, {}), (2, {"dataset": tmp_path / "reversed"}))
    ]
    both = command(output_dir=tmp_path / "both", teachers=teachers)
    assert not (both / "round_0").exists()
    table = pq.read_table(both / "round_1" / "data" / "train.parquet").to_pylist()
    labelled, added = table[:40], table[40:]
    assert all(np.isnan(row["p_negative"]) for row in labelled)
    said = []
    for number, best in enumerate(teachers):
        written = tmp_path / f"said_{number}.csv"
        given = [f"--input={tmp_path / 'more.csv'}", f"--output={written}", "--num_threads=1"]
        evaluation.main([f"--ckpt={best}", *given])
        with written.open(newline="") as file:
            said.append({row["text"]: row for row in csv.DictReader(file)})
    assert len(added) > 10
    for row in added:
        shares = {
            name: np.mean([float(one[row["text"]][f"p_{name}"]) for one in said])
            for name in ("negative", "positive")
        }
        assert ["negative", "positive"][row["label"]] == max(shares, key=shares.get)
        for name, share in shares.items():
            assert row[f"p_{name}"] == pytest.approx(share, rel=1e-4)
    classes = [row["label"] for row in added]
    assert classes.count(0) == classes.count(1)


def test_neither_validation_nor_test_texts_are_learnt_from(command, tmp_path):
    """Where they stand among those without labels. Red: hash_test_split empty; `known` empty."""
    rows = make_rows(150, seed=1) + make_rows(61, seed=2) + make_rows(60, seed=9)
    more = write_csv(tmp_path / "all.csv", [(text, "") for text, _ in [*rows, *rows, ("", "")]])
    out = command(unlabelled=more)
    first, second = (read_seen(out / f"round_{number}" / "best") for number in (0, 1))
    assert set(first.validation) == set(second.validation)
    test = hash_texts([(text,) for text, _ in make_rows(61, seed=2)])
    assert not np.isin(second.training, np.concatenate([test, first.validation])).any()
    assert len(set(second.training.tolist())) == len(second.training) > 40


def test_rounds_that_are_killed_end_in_the_same_bits(command, tmp_path):
    """In each round, and between. Red: `random.shuffle` of the unlabelled texts; a round's data
    labelled by the model that was stopped."""
    whole = command(output_dir=tmp_path / "whole", rounds=2)
    for step in (33, 9):
        with dying_at(step):
            command(rounds=2)
    command(rounds=1)
    with dying_at(9):
        command(rounds=2)
    resumed = command(rounds=2)
    for number in (0, 1, 2):
        assert_same_bits(whole / f"round_{number}", resumed / f"round_{number}")


def test_a_round_of_other_flags_is_not_gone_on_with(command, tmp_path):
    """The path of the texts may change. Red: `about` without the flags; `unlabelled` in DECIDE."""
    command()
    (tmp_path / "more.csv").rename(tmp_path / "moved.csv")
    command(unlabelled=tmp_path / "moved.csv")
    with pytest.raises(UserError, match=r"was made with --min_probability 0\.55, not 0\.6"):
        command(min_probability=0.6, unlabelled=tmp_path / "moved.csv")


def test_a_round_of_other_texts_is_not_gone_on_with(command, corpus, tmp_path):
    """Nor of other white space, which some tokenizers read, nor of other names of the classes. How
    a file is cut into chunks does not matter.
    Red: hash_texts in place of repr in digest; the names left out of it; repr of a chunk."""
    assert digest([["a"], ["b", "c"]]) == digest([["a", "b"], ["c"]])
    command(**QUICK)
    rows = [(text.replace(" ", "  ", 1), "") for text, _ in make_rows(80, seed=9)]
    with pytest.raises(UserError, match="was made with other unlabelled texts;"):
        command(unlabelled=write_csv(tmp_path / "spaced.csv", rows), **QUICK)
    renamed = {"negative": "bad", "positive": "good"}
    for name, rows in ("train", make_rows(150, seed=1)), ("test", make_rows(61, seed=2)):
        path = tmp_path / "renamed" / f"{name}.csv"
        write_csv(path, [(text, renamed[label]) for text, label in rows])
    with pytest.raises(UserError, match="other labelled texts, other validation texts;"):
        command(dataset=tmp_path / "renamed", **QUICK)


def test_what_was_begun_with_teachers_goes_on_with_them(command, tmp_path):
    """And says so before a model is trained in their place.
    Red: "teachers at the start" left out of describe; a teacher known by its weights alone."""
    teacher = command(output_dir=tmp_path / "a", **QUICK) / "round_0" / "best"
    command(teachers=[teacher], **QUICK)
    with pytest.raises(UserError, match="was made with other teachers at the start"):
        command(**QUICK)
    assert not (tmp_path / "out" / "round_0").exists()
    other = open_classifier(EvalConfig(ckpt=str(teacher)))
    assert identify(other) == identify(open_classifier(EvalConfig(ckpt=str(teacher))))
    cut_otherwise = dataclasses.replace(other, trained=other.trained | {"truncation": "tail"})
    assert identify(other) != identify(cut_otherwise)


def test_a_teacher_of_pairs_does_not_label_single_texts(command, train_command, tmp_path):
    """Red: the columns not compared in check_teacher."""
    rows = [(text, text, label) for text, label in make_rows(150, seed=1)]
    pairs = write_csv(tmp_path / "pairs.csv", rows, ("text", "more", "label"))
    given = {"dataset": pairs, "text_column": "text,more", "max_steps": 1}
    teacher = train_command(**given) / "best"
    with pytest.raises(UserError, match=r"was trained on --text_column text,more; give one of"):
        command(teachers=[teacher])


def test_texts_that_chose_the_step_of_the_model_at_the_start_are_not_learnt_from(
    command, train_command, tmp_path
):
    """Though they are not in the data. Red: `validated` left out of `known`."""
    rows = make_rows(60, seed=9)
    other = write_csv(tmp_path / "other.csv", rows)
    start = train_command(dataset=other, output_dir=tmp_path / "start", max_steps=20) / "best"
    held_out = read_seen(start).validation
    assert np.isin(hash_texts([(text,) for text, _ in rows]), held_out).sum() == 18
    learnt = read_seen(command(model=start, **QUICK) / "round_1" / "best")
    assert not np.isin(learnt.training, held_out).any()


def test_data_of_a_round_that_are_damaged_are_made_again(command, tmp_path):
    """Once they are deleted, as the error says.
    Red: no remedy given to newest_whole; ValueError not caught in require_begun_alike."""
    whole = command(**QUICK) / "round_1" / "data"
    before = (whole / "train.parquet").read_bytes()
    for name in ("train.parquet", "about.json"):
        (whole / name).write_bytes(b"damaged")
        with pytest.raises(UserError, match=r"not what was written; .* delete that folder: the"):
            command(**QUICK)
    shutil.rmtree(whole)
    command(**QUICK)
    assert (whole / "train.parquet").read_bytes() == before


def test_files_without_labels_that_are_not_read_are_named(command, tmp_path, capsys):
    """Red: no unused_files in read_unlabelled."""
    rows = [(text, "") for text, _ in make_rows(80, seed=9)]
    for name in ("train_one", "more"):
        write_csv(tmp_path / "folder" / f"{name}.csv", rows)
    command(unlabelled=tmp_path / "folder", **QUICK)
    assert f"not used here, of {tmp_path / 'folder'}: more.csv" in capsys.readouterr().out


def test_a_teacher_that_knows_the_validation_texts_is_named(command, tmp_path, capsys):
    """Red: the hashes of its training not looked at."""
    teacher = command(output_dir=tmp_path / "a", **QUICK) / "round_0" / "best"
    assert "warning: --teacher" not in capsys.readouterr().out
    command(output_dir=tmp_path / "b", teachers=[teacher], validation_seed=5, **QUICK)
    assert "warning: --teacher" in capsys.readouterr().out


def test_the_class_that_lacks_sure_texts_is_named():
    """Of those that have labelled texts. Red: `max` for `min`; all classes for `flatnonzero`."""
    names = ["a", "b", "c"]
    shares = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1]])
    found = find_unsure(shares, np.array([5, 5, 0]), names)
    assert found == "the surest unlabelled text of class 'b' has 0.7"
    found = find_unsure(shares, np.array([5, 5, 5]), names)
    assert found == "no unlabelled text is taken for class 'c'"


def test_no_text_that_is_sure_enough_is_a_line(command, tmp_path):
    """And leaves no empty round behind. Red: the check of `rows` left out; mkdir in is_made."""
    with pytest.raises(UserError, match=r"--min_probability 1\.0: the surest unlabelled"):
        command(min_probability=1.0)
    assert not (tmp_path / "out" / "round_1").exists()
