"""`best/` answers alike wherever it is used: in eval.py, a pipeline, scikit-learn's hands."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_rows, train_small, write_csv
from huggingface_hub import constants
from safetensors.torch import save_file
from sklearn import metrics
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import eval as evaluation
from config import EvalConfig
from runtime.checkpoint import sum_of_weights
from runtime.flags import UserError
from runtime.folders import write_folder
from runtime.hub import weight_files

TEXTS = [text for text, _ in make_rows(40, seed=9)]


@pytest.fixture(scope="module")
def bests(tiny, corpus, tmp_path_factory):
    """By --truncation: best/ of a run that keeps 16 tokens. The model's tokenizer cuts on the left,
    as if somebody had saved it so."""
    base = tmp_path_factory.mktemp("base") / "model"
    AutoModelForSequenceClassification.from_pretrained(tiny).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny, truncation_side="left").save_pretrained(base)
    return {
        (truncation, model == base): train_small(
            model=model,
            dataset=corpus,
            output_dir=tmp_path_factory.mktemp(truncation),
            truncation=truncation,
            max_length=16,
            max_steps=30,
            learning_rate=3e-3,
        )[0]
        / "best"
        for truncation, model in (("head", tiny), ("head", base), ("tail", tiny))
    }


@pytest.mark.parametrize("which", [("head", False), ("head", True), ("tail", False)], ids=str)
def test_a_pipeline_gives_the_labels_and_scores_of_eval(bests, which):
    """Most of the texts are longer than what the model keeps.

    Red: `truncation_side` not put into init_kwargs in fill_best (tail); no `truncation_side` set in
    tokenize (head of a tokenizer that cut on the left); no model_max_length set in load_tokenizer.
    """
    best = bests[which]
    assert sum(len(text.split()) > 14 for text in TEXTS) > 20
    classifier = evaluation.open_classifier(EvalConfig(ckpt=str(best), num_threads=1))
    scores, labels = (
        classifier.logits(classifier.encode([(text,) for text in TEXTS])).softmax(-1).max(-1)
    )
    classify = pipeline("text-classification", str(best), truncation=True, device="cpu")
    assert classify.tokenizer.model_max_length == 16
    answers = classify(TEXTS)
    assert [answer["label"] for answer in answers] == [classifier.names[label] for label in labels]
    assert [answer["score"] for answer in answers] == pytest.approx(scores.tolist(), abs=1e-5)


def test_scikit_learn_finds_the_report_in_the_predictions(bests, corpus, tmp_path):
    """Red: `predicted_label` of the least probable class in write_predictions."""
    ckpt = f"--ckpt={bests['head', False]}"
    evaluation.main([ckpt, f"--report={tmp_path / 'report.json'}"])
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    output = tmp_path / "predictions.csv"
    evaluation.main([ckpt, f"--input={corpus / 'test.csv'}", f"--output={output}"])
    with output.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    true, predicted = ([row[name] for row in rows] for name in ("label", "predicted_label"))
    assert report["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    names = list(report["classes"])
    assert [report["classes"][name]["f1"] for name in names] == pytest.approx(
        metrics.f1_score(true, predicted, labels=names, average=None)
    )


# ---------------------------------------------------------------- who may read it


def test_files_are_as_readable_as_the_umask_says(tmp_path):
    """A user's own file keeps its mode. Red: no make_readable in write_folder; its call after
    keep_users_files."""

    def fill(folder):
        save_file({"a": torch.ones(1)}, folder / "model.safetensors")
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x", encoding="utf-8")

    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "best", fill)
        (tmp_path / "best" / "script").touch(0o700)
        write_folder(tmp_path / "best", fill)
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777
        for path in sorted(tmp_path.rglob("*"))
    }
    here = {name: mode for name, mode in modes.items() if not name.startswith(".")}
    assert here == {
        "best": 0o750,
        "best/manifest.json": 0o640,
        "best/model.safetensors": 0o640,
        "best/script": 0o700,
        "best/sub": 0o750,
        "best/sub/file": 0o640,
    }


# ---------------------------------------------------------------- classifiers of other programs


def logits_of(ckpt) -> torch.Tensor:
    classifier = evaluation.open_classifier(EvalConfig(ckpt=str(ckpt), num_threads=1))
    return classifier.logits(classifier.encode([(text,) for text in TEXTS]))


@pytest.fixture
def foreign(bests, tmp_path):
    """A classifier that train.py did not write, nor say anything of; its tokenizer cuts on the left
    and its classes are numbers."""
    folder = tmp_path / "owner" / "name"
    config = AutoConfig.from_pretrained(bests["head", False], id2label={0: 1, 1: 2})
    model = AutoModelForSequenceClassification.from_pretrained(bests["head", False], config=config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bests["head", False], truncation_side="left").save_pretrained(
        folder
    )
    return folder


def test_a_classifier_of_another_program_answers_as_in_a_pipeline(foreign):
    """It cuts on the side that its tokenizer does. Red: "head" for `own` in Classifier.logits;
    read_class_names without str."""
    classifier = evaluation.open_classifier(EvalConfig(ckpt=str(foreign), num_threads=1))
    assert classifier.names == ["1", "2"]
    scores, labels = logits_of(foreign).softmax(-1).max(-1)
    classify = pipeline("text-classification", str(foreign), truncation=True, device="cpu")
    answers = classify(TEXTS)
    assert [str(answer["label"]) for answer in answers] == [classifier.names[n] for n in labels]
    assert [answer["score"] for answer in answers] == pytest.approx(scores.tolist(), abs=1e-5)
    right = AutoTokenizer.from_pretrained(foreign, truncation_side="right")
    right.save_pretrained(foreign)
    assert not torch.equal(logits_of(foreign).softmax(-1).max(-1).values, scores)


@pytest.mark.parametrize("kind", ["in pieces", "pickled"])
def test_weights_are_read_from_every_kind_of_file(kind, foreign, corpus):
    """And a report knows them by a checksum of all. Red: `weight_files` without its other patterns;
    sum_of_weights of the first file alone."""
    whole = logits_of(foreign)
    model = AutoModelForSequenceClassification.from_pretrained(foreign)
    (foreign / "model.safetensors").unlink()
    if kind == "in pieces":
        model.save_pretrained(foreign, max_shard_size="20KB")
    else:
        torch.save(model.state_dict(), foreign / "pytorch_model.bin")
    files = weight_files(foreign)
    assert (len(files) > 1) == (kind == "in pieces")
    assert torch.equal(logits_of(foreign), whole)
    classifier = evaluation.open_classifier(EvalConfig(ckpt=str(foreign), num_threads=1))
    before = sum_of_weights(classifier.folder, classifier.weights)
    files[-1].write_bytes(files[-1].read_bytes() + b" ")
    with pytest.raises(UserError, match="a training replaced it meanwhile"):
        sum_of_weights(classifier.folder, classifier.weights)
    classifier.weights[files[-1]] = files[-1].stat()
    assert sum_of_weights(classifier.folder, classifier.weights) != before


def test_a_name_on_the_hub_is_a_classifier_too(foreign, tmp_path, monkeypatch, corpus):
    """Its report goes into the current folder. Red: `Path(name)` for every name in find_checkpoint;
    the report beside the weights, in the cache."""
    cache = Path(constants.HF_HUB_CACHE) / "models--owner--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    shutil.copytree(foreign, cache / "snapshots" / "abc")
    monkeypatch.chdir(corpus)
    assert torch.equal(logits_of("owner/name"), logits_of(foreign))
    data = write_csv(tmp_path / "x.csv", make_rows(20, seed=3, classes=("1", "2")))
    monkeypatch.chdir(tmp_path / "owner")
    evaluation.main(["--ckpt=owner/name", f"--dataset={data}", "--num_threads=1"])
    assert json.loads((tmp_path / "owner" / "report_x.json").read_text())["examples"] == 20
    assert not (cache / "snapshots" / "abc" / "report_x.json").exists()
