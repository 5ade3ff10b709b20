"""Counting: every example once, integers exact, sums divided once; and what eval.py reports."""

import csv
import itertools
import json
import math
import platform
import resource
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import load_named, make_rows, write_csv
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import metrics
from transformers import DataCollatorWithPadding

import eval as evaluation
import train
from config import EvalConfig
from data import Collator, eval_batches, tokenize
from model import load_tokenizer, predict, score
from report.metrics import make_report
from report.predictions import Predicted
from runtime import folders
from runtime.checkpoint import read_training_settings
from runtime.flags import UserError
from runtime.intervals import wilson
from runtime.processes import keep_freed_memory
from runtime.seen import Seen, read_seen
from runtime.splits import read_table
from runtime.tables import label_rows


@pytest.fixture(scope="module")
def trained(tiny, corpus, tmp_path_factory):
    """A checkpoint folder, trained for a few steps."""
    output = tmp_path_factory.mktemp("trained")
    train.main(
        [
            f"--model={tiny}",
            f"--dataset={corpus}",
            f"--output_dir={output}",
            "--max_length=32",
            "--max_steps=60",
            "--learning_rate=3e-3",
            "--num_threads=1",
        ]
    )
    return output / "best"


@pytest.fixture(scope="module")
def test_set(tiny, corpus):
    table = read_table(str(corpus), "test")
    tokenizer = load_tokenizer(str(tiny), max_length=32)
    return tokenizer, tokenize(label_rows(table, "text", "label"), tokenizer, 32, "head")


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_a_tokenizer_is_saved_alike_whether_the_token_ids_were_cached_or_not(
    corpus, tiny, tmp_path, monkeypatch, truncation
):
    """Red: encode without its clear_last_call."""
    monkeypatch.setattr("runtime.cache.datasets_config.HF_DATASETS_CACHE", tmp_path)
    table = label_rows(read_table(str(corpus / "test.csv"), "train"), "text", "label")
    saved = []
    for _ in ("cold", "warm"):
        tokenizer = load_tokenizer(str(tiny), max_length=16)
        ids = tokenize(table, tokenizer, 16, truncation)
        saved.append((tokenizer.backend_tokenizer.to_str(), ids["input_ids"][:]))
    assert len(list((tmp_path / "token_ids").iterdir())) == 1
    assert saved[0] == saved[1]


def process_of(index: int, processes: int) -> SimpleNamespace:
    cpu = torch.device("cpu")
    return SimpleNamespace(process_index=index, num_processes=processes, device=cpu)


ONE_PROCESS = process_of(0, 1)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(1, 7),
    st.none() | st.integers(50, 200),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_shares_of_all_processes_are_every_row_once(tiny, lengths, size, processes, most):
    """For any count and processes, in equally many batches, of no more texts or tokens than asked.

    Red: `[process::processes]` left out; `fitting` without `most`, or without `batch_size`; `at`
    moved by `fitting` alone.
    """
    ids = [[6] * length for length in lengths]
    data = Dataset.from_dict({"length": lengths, "labels": lengths, "input_ids": ids})
    tokenizer = load_tokenizer(str(tiny), max_length=32)
    each = [process_of(index, processes) for index in range(processes)]
    shares = [list(eval_batches(data, size, tokenizer, process, most)) for process in each]
    for numbers, batch in itertools.chain(*shares):
        assert batch["labels"].tolist() == ([lengths[number] for number in numbers] or [-100])
        assert len(numbers) <= size
        assert batch["input_ids"].numel() <= (most or math.inf)
    rows = [row for share in shares for numbers, _ in share for row in numbers]
    assert sorted(rows) == list(range(len(lengths)))
    assert len({len(share) for share in shares}) == 1


@pytest.mark.parametrize("batch_size", [1, 7, 61, 100])
def test_a_prediction_does_not_depend_on_the_batch_size(test_set, tiny, batch_size):
    """Red: logits written in the loader's order; the mask not passed on."""
    tokenizer, rows = test_set
    model = load_named(tiny, ["negative", "positive"]).eval()
    alone = [model(torch.tensor([ids])).logits[0] for ids in rows["input_ids"]]
    batches = eval_batches(rows, batch_size, tokenizer, ONE_PROCESS)
    logits = predict(model, batches, len(rows), Accelerator())
    torch.testing.assert_close(logits, torch.stack(alone).detach(), rtol=1e-5, atol=1e-6)


def test_a_row_counted_twice_or_never_is_an_error(test_set, tiny):
    """Red: the check of the last column removed from predict."""
    tokenizer, rows = test_set
    model = load_named(tiny, ["negative", "positive"])

    batches = list(eval_batches(rows, 8, tokenizer, ONE_PROCESS))
    batches[0][0][0] = batches[0][0][1]
    with pytest.raises(RuntimeError, match="1 of 61 rows were not predicted exactly once"):
        predict(model, batches, len(rows), Accelerator())


def test_padding_changes_no_logit_and_gets_no_attention(tiny):
    """Whatever stands in the padding. Red: collator drops every attention_mask."""
    tokenizer = load_tokenizer(str(tiny), max_length=32)
    model = load_named(tiny, ["negative", "positive"]).eval()
    rows = [{"input_ids": [2, 9, 8, 3], "labels": 0}, {"input_ids": [2, *[7] * 20, 3], "labels": 1}]
    batch = Collator(tokenizer)(rows)
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    alone = model(torch.tensor([rows[0]["input_ids"]])).logits
    torch.testing.assert_close(logits[:1], alone, rtol=1e-5, atol=1e-6)
    other = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 11)
    assert torch.equal(model(other, batch["attention_mask"]).logits, logits)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    multiple=st.sampled_from([None, 1, 8]),
    side=st.sampled_from(["left", "right"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_batches_are_those_of_the_library(tiny, lengths, multiple, side):
    """Tensors and their types, on either side. Red: `values[::-1]` in Collator."""
    tokenizer = load_tokenizer(str(tiny), max_length=32)
    tokenizer.padding_side = side
    rows = [{"input_ids": list(range(5, 5 + n)), "labels": n % 2} for n in lengths]
    batch = Collator(tokenizer, pad_to_multiple_of=multiple)(rows)
    expected = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)(rows)
    for name, values in expected.items():
        torch.testing.assert_close(batch.get(name, torch.ones_like(values)), values)


def test_a_batch_without_padding_has_no_mask_and_an_idle_process_a_row_that_counts_nothing(tiny):
    """Red: the mask kept; label 0 for the idle row."""
    collate = Collator(load_tokenizer(str(tiny), max_length=32))
    rows = [{"input_ids": [2, 9, 3], "labels": 0}, {"input_ids": [2, 7, 3], "labels": 1}]
    assert set(collate(rows)) == {"input_ids", "labels"}
    assert collate([])["labels"].tolist() == [-100]


def test_token_ids_are_cached_on_disk_under_what_they_depend_on(tiny, corpus):
    """A second start tokenizes nothing. Red: cached_rows without its look for the file; the
    truncation left out of the key."""
    labelled = label_rows(read_table(str(corpus), "test"), "text", "label")
    files = []
    for length, truncation in [(32, "head"), (32, "head"), (16, "head"), (16, "tail")]:
        tokenizer = load_tokenizer(str(tiny), max_length=32)
        files += [tokenize(labelled, tokenizer, length, truncation).cache_files[0]["filename"]]
    assert files[0] == files[1]
    assert len(set(files)) == 3


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_report_equals_scikit_learns(pairs):
    """Red: confusion transposed (precision and recall change places)."""
    names = ["a", "b", "c", "d"]
    true, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    logits = torch.nn.functional.one_hot(torch.as_tensor(predicted), 4).float() * 3
    true, predicted = torch.as_tensor(true), torch.as_tensor(predicted)
    length, cut = np.full(len(true), 9), np.zeros(len(true), dtype=bool)
    split = Predicted(logits.numpy(), true.numpy(), length, cut)
    report = make_report(score(logits, true), split, names)
    labels = range(4)
    expected = metrics.precision_recall_fscore_support(
        true, predicted, labels=labels, zero_division=0
    )
    for key, column in zip(("precision", "recall", "f1", "examples"), expected, strict=True):
        assert [row[key] for row in report["classes"].values()] == pytest.approx(list(column))
    assert report["confusion"] == metrics.confusion_matrix(true, predicted, labels=labels).tolist()
    assert report["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    probabilities = logits.double().softmax(-1).numpy()
    assert report["loss"] == pytest.approx(metrics.log_loss(true, probabilities, labels=labels))


@given(st.integers(1, 2000), st.floats(0, 1))
def test_the_interval_is_wilsons(count, share):
    """Against scipy's, and never -0.0000. Red: z = 1.645; `max` and `min` left out."""
    from scipy.stats import binomtest

    right = round(count * share)
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, high = wilson(right / count, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-7)
    assert 0 <= low <= high <= 1


@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.35"), reason="glibc 2.35 or newer")
def test_what_a_step_frees_the_next_one_has_without_page_faults():
    """Activations of 50 MB, 12,288 pages each. Red: keep_freed_memory without its body."""
    keep_freed_memory()
    faults = []
    for _ in range(6):
        activations = [torch.ones(16 * 512, 1536)]
        for _ in range(3):
            activations.append(torch.nn.functional.gelu(activations[-1]))
        del activations
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    assert faults[-1] - faults[-2] < 1000


def test_the_test_split_of_the_training_data_is_the_default(trained, capsys):
    """Red: train_split for test_split in load_test."""
    evaluation.main([f"--ckpt={trained}", "--num_threads=1"])
    report = json.loads((trained / "report_test.json").read_text())
    assert report["examples"] == 61
    assert report["of"]["test_split"] == "test"
    assert sum(map(sum, report["confusion"])) == 61
    assert f"accuracy {report['accuracy']:.4f}" in capsys.readouterr().out
    assert report["accuracy"] > 0.8  # the label shows in one word of each text


def test_a_report_gives_way_only_to_one_of_the_same(trained):
    """Red: refuse_to_replace without the comparison."""
    evaluation.main([f"--ckpt={trained}"])
    evaluation.main([f"--ckpt={trained}"])
    with pytest.raises(UserError, match="report that differs in"):
        evaluation.main([f"--ckpt={trained}", "--max_test_samples=20"])
    evaluation.main([f"--ckpt={trained}", "--max_test_samples=20", "--overwrite"])
    report = json.loads((trained / "report_test.json").read_text())
    assert report["examples"] == 20
    (trained / "report_test.json").unlink()


def test_every_file_has_a_report_of_its_own(trained, tmp_path, monkeypatch):
    """This month's does not refuse the next one's. Red: report_test.json for every data set;
    `Path(config.dataset)` for its full path in report_path (report_.json of a folder's ".")."""
    for name in ("june", "july"):
        path = write_csv(tmp_path / f"{name}.csv", make_rows(20, seed=8))
        evaluation.main([f"--ckpt={trained}", f"--dataset={path}", "--num_threads=1"])
        report = json.loads((trained / f"report_{name}.json").read_text())
        assert report["of"]["dataset"] == str(path)
        (trained / f"report_{name}.json").unlink()
    write_csv(tmp_path / "may.2026" / "test.csv", make_rows(20, seed=8))
    monkeypatch.chdir(tmp_path / "may.2026")
    evaluation.main([f"--ckpt={trained}", "--dataset=.", "--num_threads=1"])
    (trained / "report_may.2026.json").unlink()


def test_texts_and_files_get_the_predictions_of_the_test_split(trained, tmp_path, capsys):
    """One path for all three. Red: rows of --input sorted by length and left so."""
    rows = make_rows(30, seed=5)
    evaluation.main([f"--ckpt={trained}", *(f"--text={text}" for text, _ in rows)])
    lines = capsys.readouterr().out.splitlines()
    told = [line.split()[0] for line in lines]
    source = write_csv(tmp_path / "in.csv", [(i, text) for i, (text, _) in enumerate(rows)], "nx")
    output = tmp_path / "out.csv"
    evaluation.main(
        [f"--ckpt={trained}", f"--input={source}", f"--output={output}", "--text_column=x"]
    )
    with output.open() as file:
        written = list(csv.DictReader(file))
    assert [row["predicted_label"] for row in written] == told
    assert [row["n"] for row in written] == [str(i) for i in range(30)]
    assert sum(label == truth for label, (_, truth) in zip(told, rows, strict=True)) > 22


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".jsonl", ".JSONL.gz", ".parquet"])
def test_every_kind_of_file_is_read_and_written(trained, tmp_path, suffix):
    """Red: `write_json` for every kind in write_chunks."""
    rows = make_rows(8, seed=5)
    source = write_csv(tmp_path / "in.csv", rows)
    first = tmp_path / f"first{suffix}"
    evaluation.main([f"--ckpt={trained}", f"--input={source}", f"--output={first}"])
    again = label_rows(
        read_table(str(first), "train"), "text", "predicted_label", ["negative", "positive"]
    )
    assert [text for chunk in again.chunks() for (text,) in chunk] == [text for text, _ in rows]


def test_labels_of_the_model_decide_not_their_order_in_the_data(trained, tmp_path):
    """Red: load_test without the model's names."""
    rows = [row for row in make_rows(20, seed=6) if row[1] == "positive"]
    path = write_csv(tmp_path / "only_positive.csv", rows)
    trained_on = read_training_settings(trained)
    config = EvalConfig(ckpt=str(trained), dataset=str(path))
    about = evaluation.choose_test(config, trained_on)
    test, _ = evaluation.load_test(about, Seen([], []), ["negative", "positive"], False)
    assert set(test.labels) == {1}


def test_texts_that_were_seen_are_counted_among_those_that_are_tested(trained, corpus, tmp_path):
    """Once each, though training and validation may share some. Red: `sample` after the count;
    the sum of the two counts in the error."""
    path = write_csv(tmp_path / "x.csv", [*make_rows(150, seed=1)[:20], *make_rows(60, seed=3)])
    about = evaluation.choose_test(EvalConfig(ckpt=str(trained), dataset=str(path)), {})
    about |= {"text_column": "text", "label_column": "label", "max_test_samples": 40}
    known = read_seen(trained)
    both = Seen(known.training, np.union1d(known.validation, known.training))
    test, seen = evaluation.load_test(about, both, ["negative", "positive"], False)
    assert len(test) == 40
    assert 0 < seen["training"] < seen["validation"] < 20


def test_a_model_that_does_not_hold_what_it_was_trained_on_is_said_to(trained, tmp_path, capsys):
    """Nobody can then look for the test texts in it. Red: describe_seen without its first case."""
    best = shutil.copytree(trained, tmp_path / "best")
    for name in ("manifest.json", "training_texts.npy", "validation_texts.npy"):
        (best / name).unlink()
    texts = write_csv(tmp_path / "x.csv", make_rows(20, seed=3))
    evaluation.main([f"--ckpt={best}", f"--dataset={texts}", "--num_threads=1"])
    assert "is not known: it does not hold what it was trained on" in capsys.readouterr().out


def test_training_texts_are_recognised_after_the_file_has_changed_and_from_anywhere(
    tiny, tmp_path, monkeypatch
):
    """By hashes in best/. Red: write_seen left out of fill_best; `text.strip()` left out of
    nothing but the file: count by path."""
    texts = write_csv(tmp_path / "data" / "train.csv", make_rows(60, seed=1))
    output = tmp_path / "run"
    flags = ["--max_length=32", "--max_steps=2", "--num_threads=1"]
    train.main([f"--model={tiny}", f"--dataset={texts}", f"--output_dir={output}", *flags])
    write_csv(texts, make_rows(60, seed=2))
    copy = write_csv(tmp_path / "copy.csv", make_rows(60, seed=1)[:30] + make_rows(10, seed=3))
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(UserError, match="30 of the 40 texts are among those that the model was"):
        evaluation.main([f"--ckpt={output / 'best'}", f"--dataset={copy}"])


def test_what_a_checkpoint_does_not_say_is_the_default():
    """Red: `fallback = trained` in choose_test."""
    about = evaluation.choose_test(EvalConfig(dataset="x.csv"), {"max_length": 32})
    names = ("dataset", "text_column", "test_split")
    assert [about[name] for name in names] == ["x.csv", "text", "test"]


def test_a_checkpoint_that_a_training_replaces_meanwhile_gets_no_report(
    trained, tmp_path, monkeypatch
):
    """The figures would be of other weights than the report names. Red: no samestat in
    sum_of_weights."""
    best = shutil.copytree(trained, tmp_path / "best")
    load = evaluation.load_test

    def replacing(*arguments):
        folders.write_folder(best, lambda new: shutil.copytree(trained, new, dirs_exist_ok=True))
        return load(*arguments)

    monkeypatch.setattr(evaluation, "load_test", replacing)
    report = tmp_path / "report.json"
    with pytest.raises(UserError, match="a training replaced it meanwhile"):
        evaluation.main([f"--ckpt={best}", f"--report={report}", "--num_threads=1"])
    assert not report.exists()
