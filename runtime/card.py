"""The model card: README.md of a model, from what lies in its folder.

In: best/ as train.py wrote it, with the reports that eval.py put beside. Out: the card, with the
metadata that the Hub reads. Independent of: how anything was trained or measured, the Hub itself.
"""

import dataclasses
import hashlib
import json
import os
import re
import shlex
import textwrap
from collections.abc import Iterable
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from runtime.flags import UserError
from runtime.folders import CARD, MANIFEST, sha256_of
from runtime.hub import in_few_words, weight_files
from runtime.intervals import wilson
from runtime.seen import SETTINGS
from runtime.tables import split_columns

VALIDATED = "validation.json"
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1", "loss": "loss"}  # words for them
PATHS = ("dataset", "validation_dataset", "model", "output_dir")  # flags that may name a local path


@dataclasses.dataclass(frozen=True)
class Scored:
    """What was measured on some texts, and what a model-index says of these."""

    what: str  # "validation", or the split's name
    scores: dict  # accuracy, examples, loss; macro_f1 if known
    texts: dict  # dataset_... of an EvalResult

    @property
    def interval(self) -> str:
        low, high = wilson(self.scores["accuracy"], self.scores["examples"])
        return f"{low:.4f} to {high:.4f}"


def make_card(folder: Path, flags: type, name: str | None = None) -> ModelCard:
    """The card of the model in `folder`; local files are named without the folders they are in.

    Args:
        flags: the dataclass of train.py's flags, for their defaults.
        name: of the model on the Hub, if it goes there.
    """
    settings = hide_paths(load_json(folder / SETTINGS))
    model, dataset = settings["model"], settings["dataset"]
    title = Path(name or f"{Path(model).name}-{Path(dataset).stem}").name
    reports = reports_in(folder).values()
    # That of --split validation has the scores of validation_of once more.
    # And a pipeline cuts texts: what --long window measured is not what it gives.
    tested = [
        report_of(report)
        for report in reports
        if "test_split" in report["of"] and report["of"].get("long", "cut") == "cut"
    ]
    scored = [validation_of(folder, settings), *tested]
    data = ModelCardData(
        base_model=None if is_local(model) else model,
        datasets=None if is_local(dataset) else [dataset],
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["reference-loop"],
        metrics=["accuracy"] + ["f1"] * any("macro_f1" in each.scores for each in scored),
        model_name=flat(title),
        eval_results=[result for each in scored for result in eval_results(each)],
    )
    text = describe_model(folder, settings, flags, scored, name or "FOLDER")
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def card_for_hub(folder: Path, flags: type, name: str) -> ModelCard:
    """`make_card`; but one that the user edited keeps its text and fields, and gets the scores that
    it lacks. Raises `UserError` if its fields cannot be read."""
    card, path = make_card(folder, flags, name), folder / CARD
    listed = load_json(folder / MANIFEST).get(CARD, {})
    if not path.is_file() or sha256_of(path) == listed.get("sha256"):
        return card
    try:
        users = ModelCard.load(path)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {in_few_words(error)}; correct it, or remove it") from None
    there = users.data.eval_results or []
    users.data.model_name = users.data.model_name or name
    users.data.eval_results = there + [
        result
        for result in card.data.eval_results
        if not any(result.is_equal_except_value(other) for other in there)
    ]
    print(f"{path} was edited: it keeps its words, and gets the scores that it lacks")
    return users


def json_for_hub(folder: Path) -> dict[str, bytes]:
    """By file name: the settings and the reports, without the folders that local data are in."""
    contents = {SETTINGS: hide_paths(load_json(folder / SETTINGS))}
    for name, report in reports_in(folder).items():
        with_folders = {key: report[key] for key in ("of", "comparison") if key in report}
        contents[name] = report | hide_folders(with_folders)
    return {name: json.dumps(content, indent=1).encode() for name, content in contents.items()}


# ---------------------------------------------------------------- what lies in the folder


def load_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def is_local(name: str) -> bool:
    """Whether a setting that was saved names a local path: train.py makes these absolute, and
    `hide_folder` leaves "./" and their last part."""
    return Path(name).is_absolute() or name.startswith("./")


def hide_folder(name: str) -> str:
    """A local path without its folder, which may name a person or a client. What is left begins
    with "./": no name on the Hub does, so none is taken for it."""
    return f"./{Path(name).name}" if is_local(name) else name


def hide_folders(content):
    """`hide_folder` of every text in what JSON holds."""
    if isinstance(content, dict):
        return {key: hide_folders(value) for key, value in content.items()}
    if isinstance(content, list):
        return [*map(hide_folders, content)]
    return hide_folder(content) if isinstance(content, str) else content


def hide_paths(settings: dict) -> dict:
    """`settings` with `hide_folder` of all that may name a local path."""
    # Relative ones are made absolute. Not recorded, by an older version: it may have been one.
    relative = ["output_dir"] + ["model"] * settings["environment"].get("local_model", True)
    paths = {name: settings[name] for name in PATHS if settings[name]}
    paths |= {name: os.path.abspath(settings[name]) for name in relative}
    return settings | {name: hide_folder(path) for name, path in paths.items()}


def reports_in(folder: Path) -> dict[str, dict]:
    """By file name: the reports of the weights that are there now. Those of weights that a better
    model has replaced are left out."""
    found = {}
    for path in sorted(folder.glob("report_*.json")):
        try:
            found[path.name] = load_json(path)
            found[path.name]["of"]["weights"]
        except (ValueError, KeyError, TypeError):  # not a report of ours
            found.pop(path.name, None)
    weights = checksum(weight_files(folder)) if found else None
    return {name: each for name, each in found.items() if each["of"]["weights"] == weights}


def checksum(files: Iterable[Path]) -> str:
    """That of a file, or of several as one."""
    sums = [sha256_of(file) for file in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def validation_of(folder: Path, settings: dict) -> Scored:
    names = ("dataset", "dataset_config_name", "dataset_revision")
    own = settings["validation_dataset"]
    name, config, revision = (own, None, None) if own else map(settings.get, names)
    texts = name_texts(name, config, settings["validation_split"], revision)
    return Scored("validation", load_json(folder / VALIDATED), texts)


def report_of(report: dict) -> Scored:
    of = report["of"]
    name, split = of["dataset"], of["test_split"]
    revision = of["texts"] if is_local(name) else of["dataset_revision"]
    return Scored(split, report, name_texts(name, of["dataset_config_name"], split, revision))


def name_texts(name: str, config: str | None, split: str | None, revision: str | None) -> dict:
    """A local data set is told from others by "local-" and the hash of its texts, as its revision:
    a model-index joins results whose type, configuration, split and revision are the same."""
    local = is_local(name)
    last = flat(Path(name).name) or "texts"
    return {
        "dataset_type": f"local-{re.sub(r'[^0-9A-Za-z._-]+', '-', last)}" if local else name,
        "dataset_name": last if local else name,
        "dataset_config": config,
        "dataset_split": split,
        "dataset_revision": revision,
    }


def flat(name: str) -> str:
    return " ".join(name.split())


# ---------------------------------------------------------------- what the card says


def eval_results(scored: Scored) -> list[EvalResult]:
    """A model-index has no field for an interval or a number of texts: they are in the names."""
    scores, on = scored.scores, f"on {scored.scores['examples']:,} texts"
    kinds = {
        "accuracy": ("accuracy", f"accuracy {on} (95 % interval {scored.interval})", None),
        "macro_f1": ("f1", f"macro F1 {on}", {"average": "macro"}),
        "loss": ("loss", f"loss {on}", None),
    }
    return [
        EvalResult(
            task_type="text-classification",
            task_name="Text Classification",
            metric_type=kind,
            metric_value=round(scores[key], 6),
            metric_name=f"{scored.what} {words}",
            metric_args=args,
            **scored.texts,
        )
        for key, (kind, words, args) in kinds.items()
        if key in scores
    ]


def training_command(settings: dict, flags: type) -> str:
    """With the flags that differ from their defaults, but for where the run was put."""
    processes = settings["environment"]["processes"]
    launcher = ["accelerate", "launch", f"--num_processes={processes}"]
    words = [
        f"--{field.name}={settings[field.name]}"
        for field in dataclasses.fields(flags)
        if field.name != "output_dir" and settings.get(field.name, field.default) != field.default
    ]
    return shlex.join([*(launcher if processes > 1 else ["python"]), "train.py", *words])


def describe_model(
    folder: Path, settings: dict, flags: type, scored: list[Scored], address: str
) -> str:
    """The card's text. `address`: what a pipeline is given to load it."""
    names = list(load_json(folder / "config.json")["id2label"].values())
    pairs = len(split_columns(settings["text_column"])) == 2
    machine = settings["environment"]
    return CARD_TEXT.format(
        **settings,
        start=code(settings["model"]),
        data=code(settings["dataset"]),
        kind="pairs of texts" if pairs else "texts",
        count=len(names),
        names=", ".join(code(str(name)) for name in names),
        address=json.dumps(address),
        example='{"text": "...", "text_pair": "..."}' if pairs else '"..."',
        kept="last" if settings["truncation"] == "tail" else "first",
        note=HEAD_TAIL_NOTE if settings["truncation"] == "head_tail" else "",
        rows="\n".join(map(table_row, scored)),
        step=scored[0].scores["step"],
        metric=METRICS[settings.get("metric_for_best_model", "accuracy")],
        seen="".join(map(describe_also_in, scored)),
        command=textwrap.indent(training_command(settings, flags), "    "),
        machine="{hardware}; processes: {processes}, on {device}".format(**machine),
        versions=", ".join(f"{name} {of}" for name, of in machine["versions"].items()),
        python=machine["python"],
        commit=machine["commit"],
    )


def code(name: str) -> str:
    """In backticks, of which none is left in it, on one line: a name may be any text."""
    return f"`{flat(name).replace('`', chr(39))}`"


def table_row(scored: Scored) -> str:
    scores, name = scored.scores, code(scored.texts["dataset_name"]).replace("|", "\\|")
    macro_f1 = f"{scores['macro_f1']:.4f}" if "macro_f1" in scores else "-"
    return (
        f"| {flat(scored.what)}, {name} | {scores['examples']:,} | {scores['accuracy']:.4f} | "
        f"{scored.interval} | {macro_f1} | {scores['loss']:.4f} |"
    )


def describe_also_in(scored: Scored) -> str:
    also = scored.scores.get("of", {}).get("also_in", {})
    return "".join(
        f" {number:,} of those of {code(scored.texts['dataset_name'])} are among the {side} texts."
        for side, number in also.items()
        if number
    )


CARD_TEXT = """{start} fine-tuned on {data} to tell {count} classes of {kind} apart: {names}.

## Use

    from transformers import pipeline
    classify = pipeline("text-classification", {address}, truncation=True)
    classify({example})

Of a longer text the {kept} {max_length} tokens are read.{note}

## Scores

| Texts | Number | Accuracy | 95 % interval | Macro F1 | Loss |
|---|---|---|---|---|---|
{rows}

The intervals are Wilson's, of the accuracy: they say how far it may be from that on all texts of
that kind, and nothing of other seeds. The validation chose the step (step {step}, with the best
{metric}), so its scores are a little too good.{seen}

## Training

{command}

Files and folders are given without where they were. `training_config.json` holds every setting,
`validation.json` and `report_*.json` the scores.

- {machine}; precision {mixed_precision}, seed {seed}
- Python {python}, {versions}
- code: commit {commit}
"""

HEAD_TAIL_NOTE = """ The model was trained on
the start and the end of longer texts (`--truncation head_tail`). Only eval.py cuts like this: a
pipeline keeps the start alone."""
