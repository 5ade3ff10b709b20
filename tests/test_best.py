"""`best/` answers alike wherever it is used: in eval.py, a pipeline, scikit-learn's hands, ONNX."""

import csv
import json
import os

import onnxruntime
import pytest
import torch
from conftest import make_rows, train_small
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from sklearn import metrics
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import eval as evaluation
from config import Config, EvalConfig
from runtime.checkpoint import model_card
from runtime.folders import write_folder

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
    scores, labels = classifier.logits([(text,) for text in TEXTS]).softmax(-1).max(-1)
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


def test_exported_to_onnx_it_has_the_same_logits(bests, tmp_path):
    """For another number of texts and another length than it was exported with, padding included.

    Red: no `dynamic_shapes`; the mask left out of what onnxruntime is given.
    """
    best = bests["head", False]
    model = AutoModelForSequenceClassification.from_pretrained(best).eval()
    tokenizer = AutoTokenizer.from_pretrained(best)
    sizes = {0: "texts", 1: "length"}
    torch.onnx.export(
        model,
        kwargs=dict(tokenizer(["w1 w2 w3", "w4"], padding=True, return_tensors="pt")),
        f=str(tmp_path / "model.onnx"),
        dynamo=True,
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    batch = tokenizer(TEXTS[:7], padding=True, truncation=True, return_tensors="pt")
    assert not batch["attention_mask"].all()
    given = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    (logits,) = session.run(None, given)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(logits), model(**batch).logits, atol=1e-5, rtol=1e-4
        )


# ---------------------------------------------------------------- the model card

VALIDATION = {"step": 5, "accuracy": 0.5, "loss": 0.7, "examples": 45}


def read_card(**flags) -> ModelCard:
    return ModelCard(model_card(**{**vars(Config(**flags)), **VALIDATION}))


def test_the_card_of_a_model_names_what_is_on_the_hub_alone(tiny, corpus):
    """Red: the names of local folders left in `base_model` and `datasets`."""
    fields = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "metrics": ["accuracy"],
    }
    hub = {"base_model": "owner/model", "datasets": ["owner/set"]}
    card = read_card(model="owner/model", dataset="owner/set")
    assert card.data.to_dict() == fields | hub
    card = read_card(model=str(tiny), dataset=str(corpus))
    assert card.data.to_dict() == fields
    assert f"`{tiny}` fine-tuned on `{corpus}`" in card.text


@pytest.mark.parametrize("name", ["no: [list]", '"', "#", "- x", "{}", "null", "*a", "x\n---\ny"])
def test_no_name_breaks_the_fields_of_a_card(name):
    """Red: the fields written with an f-string, as `base_model: {model}`."""
    data = read_card(model=name, dataset=name).data
    assert (data.base_model, data.datasets) == (name, [name])


def test_a_card_shows_the_call_and_says_where_it_cuts_otherwise():
    """Red: no note for head_tail; the note for all."""
    for truncation in ("head", "tail", "head_tail"):
        text = read_card(truncation=truncation).text
        assert 'pipeline("text-classification", FOLDER, truncation=True)' in text
        assert ("Only eval.py cuts like this" in text) == (truncation == "head_tail")


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
