"""What eval.py says of a classifier: every figure beside scikit-learn's or scipy's."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_rows, train_small, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.dummy import DummyClassifier

import eval as evaluation
from model import score
from report.calibration import calibration_error, fit_temperature, reliability
from report.comparison import compare_sides
from report.metrics import accuracy_by_length, make_report
from report.predictions import Predicted
from report.thresholds import coverage, coverage_table
from runtime.flags import UserError


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
    assert fit_temperature(predicted) == pytest.approx(3, rel=0.05)
    assert calibration_error(reliability(predicted, 3.0)) < 0.02
    assert calibration_error(reliability(predicted)) > 0.1


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
    assert [row["min_probability"] for row in coverage_table(predicted)][:3] == [0.0, 0.5, 0.55]
    assert coverage_table(None) == []
    assert coverage(predicted, 1.01)["accuracy"] is None


# ---------------------------------------------------------------- comparison


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 5]))
def test_intervals_are_those_of_scipys_paired_bootstrap(seed, classes):
    """Nearly: both draw. Red: percentiles of 16 and 84; `counts` unchanged for each resample."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 300)
    ours, other = (
        np.where(rng.random(300) < share, labels, rng.integers(0, classes, 300))
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
            rng=seed,
        ).confidence_interval
        width = drawn.high - drawn.low
        assert found[name]["interval_95"] == pytest.approx(list(drawn), abs=0.2 * width)
    b, c = (
        ((ours == labels) & (other != labels)).sum(),
        ((other == labels) & (ours != labels)).sum(),
    )
    assert found["mcnemar"]["p"] == stats.binomtest(int(b), int(b + c)).pvalue
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
    texts = evaluation.training_texts(classifier, hashes)
    assert len(texts) == len(hashes) == 105
    true = [("negative", "positive").index(label) for _, label in make_rows(61, seed=2)]
    dummy = DummyClassifier(strategy="most_frequent").fit(texts.rows, texts.labels)
    assert found["largest_class"] == dummy.score(true, true)
    assert found["bag_of_words"] > 0.8


def test_a_threshold_is_chosen_stored_and_applied(trained, tmp_path, capsys):
    """With its evidence; to other weights it does not belong. Red: the label left in
    predict_texts; `weights` left out of read_threshold."""
    best, other = trained
    with np.load(best / "validation.npz") as kept:
        confidence = torch.as_tensor(kept["logits"]).softmax(-1).max(-1).values.numpy()
    limit = round(float(np.median(confidence)), 4)
    evaluation.main([f"--ckpt={best}", "--thresholds", f"--store_threshold={limit}"])
    assert f"{limit} is stored there" in capsys.readouterr().out
    stored = json.loads((best / "threshold.json").read_text())
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
    with pytest.raises(UserError, match=r"--compare .*80 of the 80 texts are among those"):
        evaluation.main([f"--ckpt={best}", f"--dataset={mine}", f"--compare={own}"])
