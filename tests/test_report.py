"""What eval.py says of a classifier: every figure beside scikit-learn's or scipy's."""

import dataclasses
import io
import json
import os
import re
import shutil
from contextlib import nullcontext
from functools import partial

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_rows, train_small, write_csv
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.dummy import DummyClassifier

import eval as evaluation
from model import score
from report.calibration import calibration_error, examine_calibration, fit_temperature, reliability
from report.comparison import compare_sides
from report.findings import of_calibration
from report.metrics import accuracy_by_length, make_report
from report.predictions import Predicted, write_errors, write_split
from report.terminal import head_columns, show_calibration, show_thresholds
from report.texts import training_texts
from report.thresholds import coverage, coverage_table
from runtime.flags import UserError
from runtime.splits import read_table as open_table
from runtime.tables import label_rows


def made_up(texts=400, classes=3, seed=0, sharp=2.0) -> Predicted:
    """Logits that are right more often than not, and not calibrated."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, texts)
    logits = rng.normal(size=(texts, classes)) * sharp
    logits[np.arange(texts), labels] += 1.5
    length = rng.integers(3, 60, texts)
    return Predicted(logits.astype(np.float32), labels, np.minimum(length, 50), length > 50)


def report_of(predicted: Predicted) -> dict:
    names = [f"class {number}" for number in range(predicted.logits.shape[1])]
    scores = score(torch.as_tensor(predicted.logits), torch.as_tensor(predicted.labels))
    return make_report(scores, predicted, names)


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_figures_are_scikit_learns(classes):
    """Red: the first class's probability in rank_metrics; another sum in confused_pairs."""
    predicted = made_up(classes=classes)
    report = report_of(predicted)
    true, said = predicted.labels, predicted.classes
    assert report["macro_f1"] == pytest.approx(metrics.f1_score(true, said, average="macro"))
    if classes == 2:
        second = predicted.probabilities()[:, 1]
        assert report["roc_auc"] == metrics.roc_auc_score(true, second)
        assert report["average_precision"] == metrics.average_precision_score(true, second)
        area = metrics.auc(*zip(*report["curves"]["roc"], strict=True))
        assert area == pytest.approx(report["roc_auc"], abs=0.01)
    else:
        assert "roc_auc" not in report
    table = pd.crosstab(true, said).stack()
    wrong = table[[a != b for a, b in table.index]].sort_values(ascending=False)
    assert [pair["texts"] for pair in report["confused"]] == wrong[wrong > 0].head(20).tolist()
    first = report["confused"][0]
    row = int(first["true"].split()[1])
    assert first["share"] == first["texts"] / (true == row).sum()
    assert sum(row["texts"] for row in report["by_cut"].values()) == len(true)
    assert report["by_cut"]["cut"]["accuracy"] == predicted.right[predicted.cut].mean()


def test_texts_of_one_class_have_no_area_under_a_curve():
    """Red: rank_metrics without its look at the classes that occur."""
    predicted = made_up(classes=2)
    one = predicted.labels == 1
    only = Predicted(*(of[one] for of in vars(predicted).values()))
    assert (report_of(only)["roc_auc"], report_of(only)["average_precision"]) == (None, None)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_groups_by_length_part_the_texts(lengths):
    """Each text in one, none empty, none overlapping. Red: groups by the order of the texts."""
    lengths = np.array(lengths)
    labels, logits = lengths % 2, np.eye(2, dtype=np.float32)[lengths % 3 % 2]
    groups = accuracy_by_length(Predicted(logits, labels, lengths, lengths > 99))
    assert sum(group["texts"] for group in groups) == len(lengths)
    edges = [edge for group in groups for edge in (group["from"], group["to"])]
    assert edges == sorted(edges)
    assert len(set(edges[1::2] + edges[:1])) >= len(groups)
    for group in groups:
        of = (lengths >= group["from"]) & (lengths <= group["to"])
        assert group["texts"] == of.sum()


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("classes", [2, 3])
def test_reliability_is_scikit_learns(classes):
    """Red: the probability of the true class; `ceil` for the bin."""
    predicted = made_up(classes=classes)
    bins = reliability(predicted)
    confidence = predicted.probabilities().max(1)
    accuracy, mean = calibration_curve(predicted.right, confidence, n_bins=10)
    filled = [row for row in bins if row["texts"]]
    assert [row["accuracy"] for row in filled] == pytest.approx(accuracy.tolist())
    assert [row["confidence"] for row in filled] == pytest.approx(mean.tolist())
    texts = np.array([row["texts"] for row in filled])
    expected = (texts * abs(accuracy - mean)).sum() / len(confidence)
    assert calibration_error(bins) == pytest.approx(expected)


def test_the_temperature_is_found_again():
    """Logits that are right as often as they say, times 3. Red: logits multiplied; a bound of 2."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20000, 4)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (shares.cumsum(1) > rng.random((20000, 1))).argmax(1)
    predicted = Predicted((3 * logits).astype(np.float32), labels, labels, labels > 9)
    assert fit_temperature(predicted) == (pytest.approx(3, rel=0.05), False)
    assert calibration_error(reliability(predicted, 3.0)) < 0.02
    assert calibration_error(reliability(predicted)) > 0.1


@pytest.mark.parametrize(("right", "limit"), [(True, 0.05), (False, 20.0)])
def test_a_temperature_at_its_limit_is_called_the_limit(right, limit, capsys):
    """Of a model without a mistake, and of one that is always wrong. Red: False for at_limit; the
    words of a fit in either place."""
    predicted = made_up(texts=50)
    logits = np.eye(3, dtype=np.float32)[predicted.labels] * (4 if right else -4)
    found = examine_calibration(predicted, dataclasses.replace(predicted, logits=logits))
    assert (found["temperature"], found["at_limit"]) == (pytest.approx(limit), True)
    show_calibration(found, {"split": "test"})
    assert "the limit of those tried on 50 validation texts" in capsys.readouterr().out
    assert "the limit of those tried on 50 validation texts" in of_calibration(found)[-1]


def test_a_precision_of_few_texts_is_marked_and_no_two_columns_are_alike(capsys):
    """The lowest of many classes is of those with enough texts. Red: `<=` in mark_few; `endswith`
    left out; names cut at 10 in head_columns; no numbers at its end; the footnote without `few`."""
    names = ["Technical support, hardware", "Technical support, software", "x"]
    labels = np.repeat([0, 1, 2], [30, 10, 9])
    logits = np.eye(3, dtype=np.float32)[labels] * 3
    validation = Predicted(logits, labels, labels, labels > 9)
    rows = coverage_table(validation)
    assert rows[0]["texts_of_class"] == [30, 10, 9]
    show_thresholds(rows, names, 49)
    head, first = capsys.readouterr().out.splitlines()[1:3]
    assert first.split()[-3:] == ["1.0000", "1.0000", "1.0000*"]
    assert len(set(head.split()[-3:])) == 3
    many = [f"class {number}" for number in range(13)]
    rows = [rows[0] | {"precision": [0.5] + [0.75] * 12, "texts_of_class": [9] + [10] * 12}]
    show_thresholds(rows, many, 49)
    said = capsys.readouterr().out.splitlines()
    assert said[2].split()[-1] == "0.7500"
    assert len(said) == 3
    assert len(set(head_columns([f"{'x' * 30}{n}{'y' * 30}" for n in range(3)]))) == 3


def test_the_temperature_is_of_validation_and_judged_on_the_split():
    """Red: fit_temperature(predicted); reliability(predicted) without it for `after`."""
    predicted, validation = made_up(sharp=2.0), made_up(seed=1, sharp=4.0)
    found = examine_calibration(predicted, validation)
    of_validation, of_split = fit_temperature(validation)[0], fit_temperature(predicted)[0]
    assert found["temperature"] == of_validation > 1.5 * of_split
    after = reliability(predicted, found["temperature"])
    assert (found["bins_after"], found["ece_after"]) == (after, calibration_error(after))
    assert found["ece_after"] != found["ece"]
    assert found["fitted_on"] == len(validation.labels)


# ---------------------------------------------------------------- thresholds


def test_coverage_and_accuracy_at_each_threshold():
    """Against pandas. Red: `>` for `>=` (a threshold that is a probability); precision of the true
    class."""
    predicted = made_up(classes=3)
    shares = predicted.probabilities()
    table = pd.DataFrame({"p": shares.max(1), "right": predicted.right, "said": predicted.classes})
    for threshold in (0.0, 0.5, 0.9, float(table.p.iloc[0])):
        row, sure = coverage(predicted, threshold), table[table.p >= threshold]
        assert row["texts"] == len(sure)
        assert row["coverage"] == len(sure) / len(table)
        assert row["accuracy"] == pytest.approx(sure.right.mean())
        assert row["precision"] == pytest.approx(sure.groupby("said").right.mean().tolist())
    assert [row["min_probability"] for row in coverage_table(predicted)][:3] == [0.0, 0.4, 0.5]
    assert coverage_table(None) == []
    assert coverage(predicted, 1.01)["accuracy"] is None


# ---------------------------------------------------------------- comparison


@pytest.mark.parametrize(("classes", "there"), [(2, 2), (5, 3)])
def test_intervals_are_those_of_scipys_paired_bootstrap(classes, there):
    """Nearly: both draw. Red: percentiles of 16 and 84; `counts` unchanged for each resample;
    macro-F1 over classes that do not occur; the counts of `mcnemar` swapped."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, there, 300)
    ours, other = (
        np.where(rng.random(300) < share, labels, rng.integers(0, there, 300))
        for share in (0.8, 0.7)
    )
    found = compare_sides(labels, [ours], [other], classes)
    for name, metric in (
        ("accuracy", lambda t, a, b: (t == a).mean() - (t == b).mean()),
        ("macro_f1", lambda t, a, b: macro_f1(t, a) - macro_f1(t, b)),
    ):
        assert found[name]["difference"] == pytest.approx(metric(labels, ours, other))
        drawn = stats.bootstrap(
            (labels, ours, other),
            metric,
            paired=True,
            vectorized=False,
            n_resamples=300,
            method="percentile",
            rng=0,
        ).confidence_interval
        width = drawn.high - drawn.low
        assert found[name]["interval_95"] == pytest.approx(list(drawn), abs=0.2 * width)
    b, c = (
        ((ours == labels) & (other != labels)).sum(),
        ((other == labels) & (ours != labels)).sum(),
    )
    p = stats.binomtest(int(b), int(b + c)).pvalue
    assert found["mcnemar"] == {"only_ours_right": b, "only_other_right": c, "p": p}
    assert found["differ"] == (ours != other).sum()


def macro_f1(true, said) -> float:
    return metrics.f1_score(true, said, average="macro")


def test_seeds_of_a_side_are_averaged():
    """Red: the first seed alone in `measure`."""
    predictions = [made_up(seed=seed).classes for seed in range(4)]
    labels = made_up().labels
    found = compare_sides(labels, predictions[:3], predictions[3:], 3)
    each = [(of == labels).mean() for of in predictions]
    assert found["accuracy"]["difference"] == pytest.approx(np.mean(each[:3]) - each[3])
    assert found["accuracies"] == {"ours": each[:3], "other": each[3:]}
    assert found["mcnemar"] is None


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def trained(tiny, corpus, tmp_path_factory):
    """Two runs of other seeds, and their data."""
    folder = tmp_path_factory.mktemp("two")
    for seed in (1, 2):
        flags = {"model": tiny, "dataset": corpus, "output_dir": folder / str(seed)}
        train_small(**flags, seed=seed, num_train_epochs=6, learning_rate=3e-3)
    return folder / "1" / "best", folder / "2" / "best"


def read_table(path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def test_a_split_is_written_text_by_text_with_what_others_say(trained, tmp_path, capsys):
    """In the order of the split; the mistakes by confidence. Red: names of the other model's own
    order in predict_as; `rows` ascending in write_errors; the test split for validation."""
    ours, other = trained
    rows = make_rows(61, seed=2)
    rows[::7] = [(text, "negative") for text, _ in rows[::7]]  # labels that are wrong
    source = write_csv(tmp_path / "test.csv", rows)
    flags = [f"--dataset={source}", "--num_threads=1"]
    files = [tmp_path / "all.csv", tmp_path / "wrong.csv"]
    asked = [f"--predictions={files[0]}", f"--errors={files[1]}", f"--compare={other}"]
    evaluation.main([f"--ckpt={ours}", *flags, *asked, f"--report={tmp_path / 'r.json'}"])
    table, wrong = map(read_table, files)
    assert list(zip(table.text, table.true_label, strict=True)) == rows
    report = json.loads((tmp_path / "r.json").read_text())
    right = table.predicted_label == table.true_label
    assert right.mean() == report["accuracy"]
    assert (table[["p_negative", "p_positive"]].max(axis=1) == table.probability).all()
    assert len(wrong) == (~right).sum() > 0
    assert wrong.probability.is_monotonic_decreasing
    assert set(wrong.text) == set(table.text[~right])
    differ = (table.compare_1 != table.predicted_label).sum()
    assert report["comparison"]["differ"] == differ
    evaluation.main([f"--ckpt={other}", *flags, f"--report={tmp_path / 'o.json'}"])
    accuracy = json.loads((tmp_path / "o.json").read_text())["accuracy"]
    assert (table.compare_1 == table.true_label).mean() == accuracy
    assert report["comparison"]["accuracies"]["other"] == [accuracy]
    assert f"they differ on {differ}" in capsys.readouterr().out


ROWS = [
    f"{number:05},{text},{label},{number / 3}"
    for number, (text, label) in enumerate(make_rows(2500, seed=4))
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_file_of_predictions_has_the_columns_of_the_users(tmp_path, suffix):
    """In the order of the texts, to the character; rows left out are not there. Red: `rows` from 0
    in each chunk of write_split; `columns` of the texts alone in read_whole; as_strings of a single
    part (a number of JSON becomes a string)."""
    source = tmp_path / f"in.{suffix}"
    table = pd.read_csv(io.StringIO("\n".join(["id,text,label,score", *ROWS])), dtype={"id": str})
    table.loc[7, "label"] = None
    if suffix == "jsonl":
        table.to_json(source, orient="records", lines=True)
    else:
        getattr(table, f"to_{suffix}")(source, index=False)
    texts = label_rows(open_table(str(source), "test"), "text", "label", drop_invalid=True)
    predicted = made_up(len(texts), classes=2, sharp=0.3)
    predicted = dataclasses.replace(predicted, labels=texts.labels)
    others = {"compare_1": 1 - predicted.classes}
    out, wrong = tmp_path / "out.parquet", tmp_path / f"wrong.{suffix}"
    write_split(out, texts, predicted, others)
    count = write_errors(wrong, texts, predicted, others)
    found, kept = pd.read_parquet(out), table.dropna()
    assert list(found)[:6] == ["id", "text", "label", "score", "true_label", "predicted_label"]
    for name in ("id", "text", "label"):
        assert found[name].tolist() == kept[name].tolist()
    assert found.score.astype(float).tolist() == pytest.approx(kept.score.tolist())
    assert (found.true_label == found.label).all()
    names = np.array(texts.names)
    assert (found.predicted_label == names[predicted.classes]).all()
    assert (found.compare_1 != found.predicted_label).all()
    assert found.p_positive.to_numpy() == pytest.approx(predicted.probabilities()[:, 1], rel=1e-5)
    mistakes = found[found.true_label != found.predicted_label]
    mistakes = mistakes.sort_values("probability", ascending=False, kind="stable")
    read = {
        "csv": pd.read_csv,
        "jsonl": partial(pd.read_json, lines=True),
        "parquet": pd.read_parquet,
    }
    again = read[suffix](wrong, **({} if suffix == "parquet" else {"dtype": {"id": str}}))
    assert count == len(again) == len(mistakes)
    assert again.id.tolist() == mistakes.id.tolist()
    if suffix == "jsonl":
        assert re.search(r'"score": \d', wrong.read_text())


def test_columns_of_a_table_of_several_files_are_text(tmp_path):
    """Their types may differ; a column that one lacks is left out. Red: `as_stored` for several
    parts (Parquet refuses the second file); `columns` for `common_columns`."""
    first = [("w1", "x", 1), ("w2", "y", 2), ("w3", "y", 3)]
    for name, rows in ("a", first), ("b", [("w4", "x", "n/a")]):
        table = pd.DataFrame(rows, columns=["text", "label", "id"])
        table.assign(**{name: 1}).to_parquet(tmp_path / f"{name}.parquet")
    texts = label_rows(open_table(str(tmp_path), "train"), "text", "label")
    nobody = np.zeros(4, dtype=int)
    predicted = Predicted(
        np.eye(2, dtype=np.float32)[texts.labels], texts.labels, nobody, nobody > 0
    )
    write_split(tmp_path / "out.parquet", texts, predicted, {})
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert found.id.tolist() == ["1", "2", "3", "n/a"]
    assert list(found)[:4] == ["text", "label", "id", "true_label"]
    assert write_errors(tmp_path / "wrong.parquet", texts, predicted, {}) == 0
    none = pq.read_schema(tmp_path / "wrong.parquet")
    assert none == pq.read_schema(tmp_path / "out.parquet")


def test_the_validation_split_of_a_model_that_started_from_another_is_its_own(
    trained, corpus, tmp_path, capsys
):
    """Red: np.union1d in Seen.and_then; all of `known.validation` in load_validation."""
    flags = {"model": trained[0], "dataset": corpus, "output_dir": tmp_path / "run"}
    train_small(**flags, max_steps=1, max_validation_samples=10)
    best = tmp_path / "run" / "best"
    evaluation.main([f"--ckpt={best}", "--split=validation", "--num_threads=1"])
    report = json.loads((best / "report_validation.json").read_text())
    then = json.loads((best / "validation.json").read_text())
    assert report["examples"] == then["examples"] == 10
    assert report["loss"] == pytest.approx(then["loss"])
    assert "have changed" not in capsys.readouterr().out


def test_several_seeds_make_one_side(trained, corpus, tmp_path, capsys):
    """Each in its side, on the validation split too, by which both chose their step. Red: --seeds
    left out of compare_with; count_seen of the validation texts for that split;
    full_path left out of open_classifier (a path as typed may name a client on the Hub)."""
    ours, other = trained
    report = tmp_path / "r.json"
    asked = [f"--seeds={other}", f"--compare={other}", f"--report={report}", "--num_threads=1"]
    for extra in ([], ["--split=validation", "--overwrite"]):
        evaluation.main([f"--ckpt={os.path.relpath(ours)}", *asked, *extra])
        found = json.loads(report.read_text())
        each = found["comparison"]["accuracies"]
        assert each["ours"] == [found["accuracy"], *each["other"]]
        models = found["comparison"]["models"]
        assert [model["ckpt"] for model in models["ours"]] == [str(ours), str(other)]
        assert {model["also_in"]["training"] for of in models.values() for model in of} == {0}
        assert f"{found['comparison']['accuracy']['ours']:.4f})" in capsys.readouterr().out


def test_classes_of_another_model_are_matched_by_their_names(trained, tmp_path):
    """Red: `own` left out of predict_as."""
    best, _ = trained
    turned = shutil.copytree(best, tmp_path / "turned")
    (turned / "manifest.json").unlink()
    config = json.loads((turned / "config.json").read_text())
    config["id2label"] = {"0": "positive", "1": "negative"}
    config["label2id"] = {"positive": 0, "negative": 1}
    (turned / "config.json").write_text(json.dumps(config))
    weights = load_file(turned / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, turned / "model.safetensors", {"format": "pt"})
    flags = [f"--compare={turned}", f"--report={tmp_path / 'r.json'}", "--num_threads=1"]
    evaluation.main([f"--ckpt={best}", *flags])
    assert json.loads((tmp_path / "r.json").read_text())["comparison"]["differ"] == 0


def test_a_model_of_other_columns_is_not_compared_on_these(trained, tiny, tmp_path, capsys):
    """Nor one of pairs; one whose column has another name here is. And how many of the texts each
    was trained on is said. Red: require_same_columns left out; its `there` True if names differ;
    describe_seen left out of open_rivals."""
    best, other = trained
    rows = [(text[::-1], text, label) for text, label in make_rows(60, seed=7)]
    data = write_csv(tmp_path / "two.csv", rows, ("title", "text", "label"))
    for columns in ("title", "title,text"):
        folder = tmp_path / columns
        train_small(model=tiny, dataset=data, text_column=columns, output_dir=folder, max_steps=1)
        test = [(text[::-1], text, label) for text, label in make_rows(20, seed=8)]
        file = write_csv(tmp_path / "test.csv", test, ("title", "text", "label"))
        flags = [f"--dataset={file}", f"--compare={folder / 'best'}", "--num_threads=1"]
        with pytest.raises(UserError, match=rf"was trained on --text_column {columns}, and these"):
            evaluation.main([f"--ckpt={best}", *flags])
    rows = [*make_rows(150, seed=1)[:8], *make_rows(20, seed=8)]
    file = write_csv(tmp_path / "body.csv", rows, ("body", "label"))
    flags = [f"--dataset={file}", "--text_column=body", f"--compare={other}", "--num_threads=1"]
    capsys.readouterr()
    evaluation.main([f"--ckpt={best}", *flags])
    said = capsys.readouterr().out
    assert re.search(
        rf"^--compare {other}: [1-8] of these texts are among those trained", said, re.M
    )


def test_the_validation_texts_that_were_trained_on_are_counted(tiny, tmp_path):
    """Of a file of its own, which the report names. Red: 0 of them in load_validation; the training
    file in its settings."""
    rows = make_rows(60, seed=1)
    data = write_csv(tmp_path / "train.csv", rows)
    own = write_csv(tmp_path / "own.csv", [*rows[:8], *make_rows(20, seed=3)])
    flags = {"dataset": data, "validation_dataset": own, "output_dir": tmp_path / "run"}
    train_small(model=tiny, **flags, max_steps=1)
    best = tmp_path / "run" / "best"
    evaluation.main([f"--ckpt={best}", "--split=validation", "--num_threads=1"])
    about = json.loads((best / "report_validation.json").read_text())["of"]
    assert about["dataset"] == str(own)
    assert about["also_in"] == {"training": 8, "validation": 28}


def test_a_comparison_is_known_by_weights_and_kept(trained, tmp_path, capsys):
    """A copy elsewhere is the same model, another in the same folder is not; a report without
    --compare keeps it. Red: `replaced` not looked at in report_on_split; list_weights of names;
    `sides and` left out of read_replaced; {} returned at its end; its old format not refused;
    other_settings of output_dir, too, or of none."""
    ours, other = trained
    copy = shutil.copytree(other, tmp_path / "copy" / "best")
    file = tmp_path / "r.json"
    report = [f"--ckpt={ours}", f"--report={file}", "--num_threads=1"]
    evaluation.main(report)
    evaluation.main([*report, f"--compare={other}"])
    evaluation.main([*report, f"--compare={copy}"])
    before = json.loads(file.read_text())["comparison"]
    assert before["models"]["other"][0]["ckpt"] == str(copy)
    said = capsys.readouterr().out
    assert said.count(f"--compare {other}: trained with --seed 2 (--ckpt: 1)\n") == 1
    evaluation.main(report)
    assert json.loads(file.read_text())["comparison"] == before
    assert f"--compare {copy}: accuracy" in capsys.readouterr().out
    shutil.rmtree(copy)
    shutil.copytree(ours, copy)
    evaluation.main([*report[:1], f"--report={tmp_path / 'x.json'}", f"--compare={other}"])
    for sides in ([f"--compare={copy}"], [f"--seeds={other}", f"--compare={other}"]):
        with pytest.raises(UserError, match="holds a comparison of other models"):
            evaluation.main([*report, *sides])
    old = json.loads(file.read_text())
    old["of"].pop("split")  # as an earlier version wrote it
    file.write_text(json.dumps(old))
    evaluation.main(report)
    file.write_text(json.dumps(old | {"comparison": {"ours": ["a"], "other": ["b"]}}))
    with pytest.raises(UserError, match="holds a comparison of other models"):
        evaluation.main(report)
    evaluation.main([*report, "--overwrite"])
    assert "comparison" not in json.loads(file.read_text())


def test_no_model_counts_twice_on_a_side(trained, tmp_path):
    """A copy of it neither; on both sides it may stand. Red: `twice` always empty."""
    ours, other = trained
    copy = shutil.copytree(ours, tmp_path / "copy")
    flags = [f"--ckpt={ours}", f"--report={tmp_path / 'r.json'}", "--num_threads=1"]
    for sides, twice in (
        ([f"--seeds={copy}", f"--compare={other}"], f"--seeds {copy}: has the weights of {ours};"),
        ([f"--compare={other}", f"--compare={other}"], f"{other}: has the weights of {other};"),
    ):
        with pytest.raises(UserError, match=re.escape(twice)):
            evaluation.main([*flags, *sides])
    evaluation.main([*flags, f"--compare={copy}"])
    assert json.loads((tmp_path / "r.json").read_text())["comparison"]["differ"] == 0


@pytest.mark.parametrize("flag", ["predictions", "errors", "report", "output"])
def test_nothing_is_written_among_the_texts(trained, corpus, tmp_path, flag):
    """Where the next command would take it for data: in the folder of --dataset or of the training.
    Red: keep_out_of_data with one of the two; without its call, or with one flag less."""
    data = tmp_path / "data"
    new = write_csv(data / "test.csv", make_rows(20, seed=8))
    asked = [f"--input={new}"] if flag == "output" else [f"--dataset={data}"]
    for folder, rest in ((data, asked), (corpus, asked if flag == "output" else [])):
        path = folder / "test_report.json" if flag == "report" else folder / "test_more.csv"
        if (folder, flag) != (data, "output"):  # --input is a file: its folder is no data set
            with pytest.raises(
                UserError,
                match=rf"--{flag} {path}: would be read as texts of the data set {folder}",
            ):
                evaluation.main([f"--ckpt={trained[0]}", *rest, f"--{flag}={path}"])
            assert not path.exists()


def test_the_validation_split_is_that_which_chose_the_step(trained):
    """Red: read_training without the choice by hashes."""
    best, _ = trained
    evaluation.main([f"--ckpt={best}", "--split=validation", "--num_threads=1"])
    report = json.loads((best / "report_validation.json").read_text())
    then = json.loads((best / "validation.json").read_text())
    for name in ("accuracy", "macro_f1", "examples"):
        assert report[name] == then[name]
    assert report["loss"] == pytest.approx(then["loss"])
    calibration = report["calibration"]
    assert calibration["fitted_on"] == then["examples"]
    (best / "report_validation.json").unlink()


def test_baselines_are_learnt_from_the_training_texts_alone(trained, tmp_path):
    """Red: training_texts without the choice by hashes (validation texts, too)."""
    best, _ = trained
    evaluation.main([f"--ckpt={best}", "--num_threads=1", f"--report={tmp_path / 'r.json'}"])
    found = json.loads((tmp_path / "r.json").read_text())["baselines"]
    hashes = np.load(best / "training_texts.npy")
    classifier = evaluation.open_classifier(evaluation.EvalConfig(ckpt=str(best), num_threads=1))
    texts = training_texts(classifier, hashes)
    assert len(texts) == len(hashes) == 105
    true = [("negative", "positive").index(label) for _, label in make_rows(61, seed=2)]
    dummy = DummyClassifier(strategy="most_frequent").fit(true, true)
    assert found["largest_class"] == dummy.score(true, true)
    assert found["bag_of_words"] > 0.8
    assert found["learnt_from"] == found["of"] == 105


def test_baselines_of_some_of_the_training_texts_are_said_to_be(tiny, tmp_path, capsys):
    """Red: `there == len(known)` always true in measure_baselines; `not there` never."""
    rows = make_rows(80, seed=5)
    data = write_csv(tmp_path / "train.csv", rows)
    test = write_csv(tmp_path / "test.csv", make_rows(20, seed=6))
    train_small(model=tiny, dataset=data, output_dir=tmp_path / "run", max_steps=1)
    flags = [f"--ckpt={tmp_path / 'run' / 'best'}", f"--dataset={test}", "--num_threads=1"]
    write_csv(data, rows[::2])
    evaluation.main(flags)
    found = json.loads((tmp_path / "run" / "best" / "report_test.json").read_text())["baselines"]
    assert 20 < found["learnt_from"] < 36
    assert f"has {found['learnt_from']} of the 56 texts that" in capsys.readouterr().out
    write_csv(data, make_rows(80, seed=7))
    evaluation.main(flags)
    assert "no bag of words, as none of the training texts is there" in capsys.readouterr().out


def test_a_threshold_is_chosen_stored_and_applied(trained, tmp_path, capsys):
    """With its evidence; to other weights it does not belong. Red: the label left in
    predict_texts; `weights` left out of read_threshold."""
    best, other = trained
    with np.load(best / "validation.npz") as kept:
        confidence = torch.as_tensor(kept["logits"]).double().softmax(-1).max(-1).values.numpy()
    limit = round(float(np.median(confidence)), 4)
    evaluation.main([f"--ckpt={best}", "--thresholds", f"--store_threshold={limit}"])
    assert f"{limit:g} is stored in {best / 'threshold.json'}; --min" in capsys.readouterr().out
    for higher in (0.999999, limit):
        with (
            pytest.raises(UserError, match=r"no validation text has .* highest is 0\.\d{4};")
            if (higher > 0.9)
            else nullcontext()
        ):
            evaluation.main([f"--ckpt={best}", "--thresholds", f"--store_threshold={higher}"])
    assert f", in the place of {limit:g}; --min" in capsys.readouterr().out
    stored = json.loads((best / "threshold.json").read_text())
    assert list(stored["precision"]) == ["negative", "positive"]
    evaluation.main([f"--ckpt={best}", f"--report={tmp_path / 'r.json'}", "--num_threads=1"])
    row = json.loads((tmp_path / "r.json").read_text())["at_stored_threshold"]
    said = f"at the stored threshold of {limit:g}: {row['texts']} of these texts"
    assert said in capsys.readouterr().out
    evaluation.main([f"--ckpt={best}", "--text=\udcff\nw1\x07"])
    assert "  ? w1\ufffd\n" in capsys.readouterr().out
    for least, label in ((0, ""), (1, "-  ")):
        evaluation.main([f"--ckpt={best}", "--text=w1 w12", f"--min_probability={least}"])
        assert capsys.readouterr().out.startswith(label)
    assert stored["texts"] == (confidence >= limit).sum()
    assert stored["validation_texts"] == len(confidence)
    source = write_csv(tmp_path / "in.csv", make_rows(40, seed=9))
    flags = [f"--ckpt={best}", f"--input={source}", "--num_threads=1"]
    for name, extra in (("plain", []), ("sure", ["--min_probability=stored"])):
        evaluation.main([*flags, *extra, f"--output={tmp_path / name}.csv"])
    plain, sure = (read_table(tmp_path / f"{name}.csv") for name in ("plain", "sure"))
    said = capsys.readouterr().out
    assert "threshold.json is not applied; --min_probability stored applies it" in said
    below = plain.probability < limit
    assert 0 < below.sum() < 40
    assert (sure.predicted_label == plain.predicted_label.where(~below, "")).all()
    assert (sure.probability == plain.probability).all()
    assert f"; {below.sum()} without a label, below a probability of {limit}" in said
    (other / "threshold.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="is of other weights than those there now"):
        evaluation.main([f"--ckpt={other}", "--text=w1", "--min_probability=stored"])
    for folder in (best, other):
        (folder / "threshold.json").unlink()


def test_what_cannot_be_compared_is_refused(trained, tiny, tmp_path):
    """Another one's classes, or texts that it was trained on. Red: open_rivals without count_seen;
    without its look at the names."""
    best, _ = trained
    rows = [(text, label.upper()) for text, label in make_rows(60, seed=1)]
    upper = write_csv(tmp_path / "upper.csv", rows)
    train_small(model=tiny, dataset=upper, output_dir=tmp_path / "run", max_steps=1)
    with pytest.raises(UserError, match=r"has the classes NEGATIVE, POSITIVE, and --ckpt negative"):
        evaluation.main([f"--ckpt={best}", f"--compare={tmp_path / 'run' / 'best'}"])
    mine = write_csv(tmp_path / "mine.csv", make_rows(80, seed=7))
    train_small(model=tiny, dataset=mine, output_dir=tmp_path / "own", max_steps=1)
    own = tmp_path / "own" / "best"
    flags = [f"--ckpt={best}", f"--dataset={mine}", f"--compare={own}"]
    with pytest.raises(UserError, match=r"--compare .*80 of the 80 texts are among those"):
        evaluation.main(flags)
    with pytest.raises(UserError, match=r"--seeds .*80 of the 80 texts are among those"):
        evaluation.main([*flags, f"--seeds={own}"])
