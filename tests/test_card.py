"""The model card says what was trained and measured, and where nothing of the user's machine."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL_RUN, train_small
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from safetensors.torch import save_file
from scipy.stats import binomtest

import eval as evaluation
import train
from config import Config
from runtime.card import card_for_hub, make_card
from runtime.flags import parse
from runtime.folders import sha256_of, verify_folder, write_manifest

SCORES = {"step": 5, "accuracy": 0.6, "macro_f1": 0.58, "loss": 0.7, "examples": 45}


def make_folder(folder: Path, local_model: bool = False, processes: int = 1, **flags) -> Path:
    """What best/ holds for its card, of a training with those flags."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"hardware": "x86_64, 2 cores, Linux", "device": "cpu", "processes": processes}
    machine |= {"python": "3.11", "versions": {"torch": "2"}, "commit": "abc"}
    settings = vars(Config(**flags)) | {"environment": machine | {"local_model": local_model}}
    for name, content in {
        "training_config.json": settings,
        "validation.json": SCORES,
        "config.json": {"id2label": {"0": "no", "1": "yes"}},
    }.items():
        (folder / name).write_text(json.dumps(content))
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    (folder / "README.md").write_text(str(make_card(folder, Config)))
    write_manifest(folder)
    return folder


def add_report(folder: Path, name: str, **of) -> None:
    """A report of `folder`'s weights, of which `of` is what eval.py says about the texts."""
    about = {"dataset": "owner/set", "dataset_config_name": None, "dataset_revision": None}
    about |= {"test_split": "test", "texts": "0" * 16}
    about |= {"weights": sha256_of(folder / "model.safetensors")} | of
    report = SCORES | {"accuracy": of.pop("accuracy", 0.5), "of": about}
    (folder / name).write_text(json.dumps(report))


def read_again(folder: Path) -> ModelCard:
    """The card as the Hub's own code reads it from the text."""
    return ModelCard(str(make_card(folder, Config)))


# ---------------------------------------------------------------- the scores


def test_the_hubs_own_code_reads_the_scores_back(tiny, corpus, tmp_path):
    """Of a real training, and of its report on the test split.

    Red: `round(scores[key], 2)`; the loss left out; a card without its reports.
    """
    best = train_small(model=tiny, dataset=corpus, output_dir=tmp_path / "run")[0] / "best"
    evaluation.main([f"--ckpt={best}", "--num_threads=1"])
    verify_folder(best)
    validation = json.loads((best / "validation.json").read_text())
    report = json.loads((best / "report_test.json").read_text())
    written = ModelCard.load(best / "README.md").data.eval_results
    later = read_again(best).data
    assert later.eval_results[: len(written)] == written
    for results, scores in (written, validation), (later.eval_results[len(written) :], report):
        values = {result.metric_type: result.metric_value for result in results}
        assert values["accuracy"] == pytest.approx(scores["accuracy"], abs=1e-6)
        assert values["loss"] == pytest.approx(scores["loss"], abs=1e-6)
        right = round(scores["accuracy"] * scores["examples"])
        bounds = binomtest(right, scores["examples"]).proportion_ci(0.95, method="wilson")
        interval = f"{bounds.low:.4f} to {bounds.high:.4f}"
        assert f"on {scores['examples']} texts (95 % interval {interval})" in results[0].metric_name
        assert interval in read_again(best).text
    index = eval_results_to_model_index(later.model_name, later.eval_results)
    assert index == later.to_dict()["model-index"]


def test_results_on_different_texts_stay_apart(tmp_path):
    """Files of one name in two folders, a file that has the name of a Hub data set, and that.

    Red: no `dataset_revision` for a local file; its name without "local-" as dataset_type.
    """
    folder = make_folder(
        tmp_path, dataset="imdb", dataset_config_name="plain", dataset_revision="v"
    )
    on_hub = {"dataset_config_name": "plain", "dataset_revision": "v"}
    add_report(folder, "report_test.json", dataset="imdb", **on_hub)
    for number, name in enumerate(("/a/imdb", "/b/imdb", "/b/june 1.csv")):
        add_report(folder, f"report_{number}.json", dataset=name, texts=str(number) * 16)
    groups = read_again(folder).data.to_dict()["model-index"][0]["results"]
    assert [group["dataset"] for group in groups] == [
        {"name": "imdb", "type": "imdb", "config": "plain", "revision": "v"},
        {"name": "imdb", "type": "local-imdb", "split": "test", "revision": "0" * 16},
        {"name": "imdb", "type": "local-imdb", "split": "test", "revision": "1" * 16},
        {"name": "june 1.csv", "type": "local-june-1.csv", "split": "test", "revision": "2" * 16},
        {"name": "imdb", "type": "imdb", "config": "plain", "split": "test", "revision": "v"},
    ]
    assert all(
        [m["type"] for m in group["metrics"]] == ["accuracy", "f1", "loss"] for group in groups
    )


def test_validation_texts_are_named_as_what_they_are(tmp_path):
    """Red: the configuration and revision of --dataset for --validation_dataset."""
    flags = {"dataset": "owner/set", "dataset_config_name": "en", "dataset_revision": "v"}
    own = make_folder(tmp_path / "a", validation_split="dev", **flags)
    other = make_folder(tmp_path / "b", validation_dataset="owner/other", **flags)
    first, second = (read_again(folder).data.eval_results[0] for folder in (own, other))
    assert first.unique_identifier[1:] == ("owner/set", "en", "dev", "v")
    assert second.unique_identifier[1:] == ("owner/other", None, None, None)


def test_a_report_of_other_weights_is_not_in_the_card(tmp_path):
    """As one that was copied along when a better model replaced best/, nor is what is no report.

    Red: reports_in without its last comparison; without its `except`.
    """
    folder = make_folder(tmp_path)
    add_report(folder, "report_test.json")
    add_report(folder, "report_old.json", dataset="owner/old", weights="f" * 64)
    for name, content in ("broken", "{"), ("list", "[]"), ("mine", '{"of": {}}'):
        (folder / f"report_{name}.json").write_text(content)
    names = [result.dataset_name for result in read_again(folder).data.eval_results]
    assert names == ["stanfordnlp/imdb"] * 3 + ["owner/set"] * 3


# ---------------------------------------------------------------- names


def test_the_card_names_what_is_on_the_hub_and_hides_where_files_are(tmp_path):
    """Red: `base_model=model` for a folder; the dataset of a report as it is; make_card without
    hide_paths."""
    hub = make_folder(tmp_path / "a", model="owner/model", dataset="owner/set")
    data = read_again(hub).data
    assert (data.base_model, data.datasets) == ("owner/model", ["owner/set"])
    local = {"dataset": f"{tmp_path}/x/reviews.csv", "validation_dataset": f"{tmp_path}/val.csv"}
    for model in f"{tmp_path}/x/model", "some/model":
        folder = make_folder(
            tmp_path / "b", model=model, local_model=True, output_dir=f"{tmp_path}/o", **local
        )
        add_report(folder, "report_test.json", dataset=f"{tmp_path}/x/june.csv")
        card = read_again(folder)
        assert (card.data.base_model, card.data.datasets) == (None, None)
        assert "`./model` fine-tuned on `./reviews.csv`" in card.text
        assert "june.csv" in card.text
        assert str(tmp_path) not in str(card)
        assert "some/" not in str(card)


@pytest.mark.parametrize("name", ["no: [list]", '"', "#", "- x", "{}", "null", "*a", "x\n---\ny"])
def test_no_name_breaks_the_fields_of_a_card(name, tmp_path):
    """Red: the fields written with an f-string, as `base_model: {model}`."""
    data = read_again(make_folder(tmp_path, model=name, dataset=name)).data
    assert (data.base_model, data.datasets) == (name, [name])
    assert data.eval_results[0].dataset_type == name


def test_a_card_shows_the_call_and_says_where_it_cuts_otherwise(tmp_path):
    """Red: no note for head_tail; the note for all; "first" for tail; one call for pairs, too."""
    for truncation in ("head", "tail", "head_tail"):
        folder = make_folder(tmp_path, truncation=truncation, text_column="a,b")
        text = str(make_card(folder, Config, "me/model"))
        assert 'pipeline("text-classification", "me/model", truncation=True)' in text
        assert 'classify({"text": "...", "text_pair": "..."})' in text
        assert ("Only eval.py cuts like this" in text) == (truncation == "head_tail")
        assert ("the last 512 tokens" in text) == (truncation == "tail")


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"dataset": "/home/me/it's here/re views.csv", "text_column": "my text", "seed": 3},
        {"dataset": "owner/set", "drop_invalid": True, "dropout": 0.2, "label_column": "-x"},
        {"model": "/m/bert", "validation_dataset": "/v.csv", "output_dir": "/o", "max_steps": 9},
    ],
)
def test_the_command_of_a_card_gives_the_flags_of_the_training(flags, tmp_path):
    """Red: no shlex; `--name value` for a value that begins with "-"; a flag left out."""
    text = read_again(make_folder(tmp_path, **flags)).text
    command = shlex.split(re.search(r"^    (python train.py.*)$", text, re.M)[1])
    paths = {name for name, value in flags.items() if str(value).startswith("/")} - {"output_dir"}
    expected = flags | {name: f"./{Path(flags[name]).name}" for name in paths}
    expected.pop("output_dir", None)
    assert parse(Config, command[2:]) == Config(**expected)
    assert len(command) == 2 + len(expected)


def test_the_command_of_many_processes_starts_them(tmp_path):
    """Red: `python train.py` for all."""
    text = read_again(make_folder(tmp_path, processes=4)).text
    assert "    accelerate launch --num_processes=4 train.py\n" in text


def test_a_run_resumed_on_fewer_processes_tells_flags_that_keep_its_batch(tiny, corpus, tmp_path):
    """Begun on two processes, ended on one. Red: the flags of `run.settings` in save_best."""
    flags = SMALL_RUN | {"model": tiny, "dataset": corpus, "output_dir": tmp_path, "max_steps": 2}
    config = parse(Config, [f"--{name}={value}" for name, value in flags.items()])
    train.start_or_resume(config, train.make_accelerator(config))
    state = json.loads((tmp_path / "last" / "progress.json").read_text())
    assert state["settings"]["global_batch_size"] == 8
    state["settings"]["global_batch_size"] = 16  # as two processes have it
    (tmp_path / "last" / "progress.json").write_text(json.dumps(state))
    (tmp_path / "last" / "manifest.json").unlink()
    write_manifest(tmp_path / "last")
    train_small(**flags)
    said = json.loads((tmp_path / "best" / "training_config.json").read_text())
    assert said["environment"]["processes"] == 1
    assert said["per_device_train_batch_size"] * said["gradient_accumulation_steps"] == 16


# ---------------------------------------------------------------- a card that was edited


def test_an_edited_card_keeps_its_words_and_gets_the_scores_that_it_lacks(tmp_path, capsys):
    """Red: card_for_hub that gives the new card; one without `is_equal_except_value`, which has the
    validation twice."""
    folder = make_folder(tmp_path)
    add_report(folder, "report_test.json")
    card = card_for_hub(folder, Config, "me/model")
    assert len(card.data.eval_results) == 6
    users = ModelCard.load(folder / "README.md")
    users.data.license = "mit"
    users.data.eval_results[0].metric_value = 0.9
    users.text = "My words."
    users.save(folder / "README.md")
    verify_folder(folder)
    card = card_for_hub(folder, Config, "me/model")
    assert "was edited" in capsys.readouterr().out
    assert (card.text, card.data.license) == ("My words.", "mit")
    results = ModelCard(str(card)).data.eval_results
    assert [result.metric_value for result in results] == [0.9, 0.58, 0.7, 0.5, 0.58, 0.7]
    (folder / "README.md").write_text("No fields.")
    card = card_for_hub(folder, Config, "me/model")
    assert len(ModelCard(str(card)).data.eval_results) == 6
    assert card.text == "No fields."
    (folder / "README.md").unlink()
    assert "FOLDER" not in card_for_hub(folder, Config, "me/model").text


def test_a_model_of_a_local_folder_is_remembered_as_such(tiny, corpus, tmp_path, monkeypatch):
    """Given as owner/name, which the Hub has names like, and pushed from elsewhere.

    Red: `local_model` False for all in train.set_up.
    """
    shutil.copytree(tiny, tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    train_small(model="owner/name", dataset=corpus, output_dir="run", max_steps=1)
    monkeypatch.chdir("/")
    data = ModelCard(str(make_card(tmp_path / "run" / "best", Config))).data
    assert data.base_model is None
