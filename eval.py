"""A trained classifier's report on the test split, or its predictions for new texts.

    python eval.py --ckpt best/                   # the test split of what it was trained on
    python eval.py --ckpt best/ --text "A wonderful film." --text "Dull."
    python eval.py --ckpt best/ --input reviews.csv --output predictions.csv

In: a checkpoint folder; texts. Out: `report_test.json` beside the weights; predictions.
Independent of: optimizer, schedule, TensorBoard. The only file that opens the test split.
"""

from config import Config, EvalConfig
from runtime.flags import UserError, answer_at_once, parse

if __name__ == "__main__":
    answer_at_once(EvalConfig, config_file=False)  # before the imports below take seconds

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from datasets.fingerprint import Hasher

from data import Collator, eval_batches, sample, tokenize
from model import load_classifier, load_tokenizer, predict, score
from report.files import WRITERS, check_output, refuse_to_replace
from runtime.checkpoint import read_training_settings
from runtime.environment import describe_environment
from runtime.folders import sha256_of
from runtime.hub import read_class_names
from runtime.processes import check_world, keep_freed_memory, run_command, set_threads
from runtime.tables import check_texts, label_rows, read_table

# ---------------------------------------------------------------- the checkpoint


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A checkpoint, loaded."""

    folder: Path
    trained: dict  # the settings of its training; {} if train.py did not write it
    names: list[str]  # of the classes
    accelerator: Accelerator
    logits: Callable[[Dataset], torch.Tensor]  # of rows with a column `text`: (rows, classes)


def open_classifier(config: EvalConfig) -> Classifier:
    folder = Path(config.ckpt)
    trained = read_training_settings(folder)
    wanted, on_gpu = trained.get("mixed_precision", "no"), torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision=wanted if on_gpu else "no")
    check_world()
    set_threads(config.num_threads)
    keep_freed_memory()
    tokenizer = load_tokenizer(config.ckpt, max_length=trained.get("max_length"), flag="--ckpt")
    model = load_classifier(config.ckpt, flag="--ckpt")
    names = read_class_names(model, config.ckpt)
    model = accelerator.prepare_model(model, evaluation_mode=True)

    def logits(texts: Dataset) -> torch.Tensor:
        truncation = trained.get("truncation", "head")
        ids = tokenize(texts, tokenizer, tokenizer.model_max_length, truncation)
        size, collator = config.per_device_eval_batch_size, Collator(tokenizer)
        share = accelerator.process_index, accelerator.num_processes
        batches = eval_batches(ids, size, *share, collator)
        return predict(model, batches, len(ids), accelerator)

    return Classifier(folder, trained, names, accelerator, logits)


# ---------------------------------------------------------------- the test split


def report_on_test(config: EvalConfig, classifier: Classifier, opened: os.stat_result) -> None:
    # Not at the top: it takes two seconds to import, which --text and --input need not wait for.
    from report.metrics import make_report, show

    folder, accelerator = classifier.folder, classifier.accelerator
    about = choose_test(config, classifier.trained)
    test, learnt = load_test(about, classifier.trained, classifier.names)
    about |= {
        "texts": Hasher.hash((test["text"][:], test["labels"][:])),
        "weights": sha256_of(folder / "model.safetensors"),
    }
    if not os.path.samestat((folder / "model.safetensors").stat(), opened):
        raise UserError(f"--ckpt {folder}: a training replaced it meanwhile; start eval.py again")
    path = Path(config.report or folder / "report_test.json")
    refuse_to_replace(path, about, config.overwrite)
    logits, labels = classifier.logits(test), torch.as_tensor(test["labels"][:])
    report = make_report(score(logits, labels), logits.argmax(-1), labels, classifier.names)
    if accelerator.is_main_process:
        show(report)
        about |= {"also_in_training": learnt}
        about |= {"precision": accelerator.mixed_precision, "device": accelerator.device.type}
        report |= {
            "of": about,
            "environment": describe_environment(accelerator),
            "training_environment": classifier.trained.get("environment"),
        }
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(f"written to {path}")


TEST_SETTINGS = (
    "dataset",
    "dataset_config_name",
    "dataset_revision",
    "test_split",
    "text_column",
    "label_column",
    "max_test_samples",
)


def choose_test(config: EvalConfig, trained: dict) -> dict:
    """`TEST_SETTINGS`: those given, else those of the training."""
    fallback = trained or (dataclasses.asdict(Config(dataset="")) if config.dataset else {})
    if config.dataset not in (None, fallback.get("dataset")):  # another one, with its own
        fallback = fallback | {"dataset_config_name": None, "dataset_revision": None}
    asked = {key: getattr(config, key, None) for key in TEST_SETTINGS}
    about = {key: fallback.get(key) if value is None else value for key, value in asked.items()}
    if not about["dataset"]:
        raise UserError(
            f"--ckpt {config.ckpt}: does not say what it was trained on; give --dataset"
        )
    return about


def load_test(about: dict, trained: dict, names: list[str]) -> tuple[Dataset, int | None]:
    """(The labelled test split, how many of its texts before sampling were learnt from.)

    Raises `UserError` if those are half of them or more.
    """
    table = read_table(
        about["dataset"],
        about["test_split"],
        about["dataset_config_name"],
        about["dataset_revision"],
        choices="--dataset_config_name and --test_split, or give --dataset TEST_FILE",
    )
    test = label_rows(table, about["text_column"], about["label_column"], names)
    learnt = count_learnt(test, trained)
    if learnt is not None and learnt >= len(test) / 2:
        raise UserError(
            f"--dataset {about['dataset']} --test_split {about['test_split']}: {learnt} of its "
            f"{len(test)} texts are in the split that the model was trained on; give --dataset "
            "TEST_FILE, or another split"
        )
    return sample(test, about["max_test_samples"], seed=0), learnt


def count_learnt(test: Dataset, trained: dict) -> int | None:
    """How many of the test texts are in the split that the model was trained on; None if that is
    not there to compare. By content, since equal texts may have other paths and names of splits. A
    few are usual (52 of IMDb's 25,000)."""
    if not trained.get("dataset"):
        return None
    names = ("dataset", "train_split", "dataset_config_name", "dataset_revision")
    try:
        table = read_table(*(trained.get(name) for name in names))
        learnt = set(table[trained["text_column"]][:])
        return sum(text in learnt for text in test["text"])
    except (UserError, KeyError):
        return None


# ---------------------------------------------------------------- new texts


def print_predictions(texts: tuple[str, ...], classifier: Classifier) -> None:
    logits = classifier.logits(Dataset.from_dict({"text": list(texts)}))
    for text, row in zip(texts, logits.softmax(-1), strict=True):
        label = classifier.names[row.argmax()]
        classifier.accelerator.print(f"{label}  {row.max():.4f}  {text}")


def write_predictions(config: EvalConfig, classifier: Classifier) -> None:
    """The table of --input with two more columns, `predicted_label` and `probability`."""
    name = config.text_column or classifier.trained.get("text_column", "text")
    table, output = read_table(config.input, "train", flag="--input"), Path(config.output)
    for added in ("predicted_label", "probability"):
        if added in table.column_names:
            raise UserError(f"--input {config.input}: has a column {added} already; rename it")
    if name not in table.column_names:
        raise UserError(
            f"--text_column {name}: no such column; give one of {', '.join(table.column_names)}"
        )
    check_texts(table, name)
    logits = classifier.logits(Dataset.from_dict({"text": table[name][:]}))
    probability, label = logits.softmax(-1).max(-1)
    table = table.add_column("predicted_label", [classifier.names[index] for index in label])
    table = table.add_column("probability", probability.tolist())
    if classifier.accelerator.is_main_process:
        getattr(table, WRITERS[output.suffix])(str(output))
        print(f"{len(table):,} predictions written to {output}")


# ---------------------------------------------------------------- the command


def main(argv=None) -> None:
    config = parse(EvalConfig, argv, config_file=False)
    check_flags(config)
    weights = Path(config.ckpt, "model.safetensors")
    opened = weights.stat() if weights.exists() else None
    classifier = open_classifier(config)
    if config.text:
        print_predictions(config.text, classifier)
    elif config.input:
        write_predictions(config, classifier)
    else:
        report_on_test(config, classifier, opened)


def check_flags(config: EvalConfig) -> None:
    """All mistakes that show before anything is read."""
    errors = []
    if bool(config.input) != bool(config.output):
        given, other = ("input", "output") if config.input else ("output", "input")
        errors += [f"--{given} {getattr(config, given)}: needs --{other} FILE; give both"]
    if config.text and config.input:
        errors += [f"--input {config.input}: given with --text; give one of the two"]
    if config.text or config.input:
        errors += [
            f"--{name} {getattr(config, name)}: is for the test split; leave it out with "
            f"--{'text' if config.text else 'input'}"
            for name in ("report", *TEST_SETTINGS)
            if getattr(config, name) is not None and (name != "text_column" or config.text)
        ]
    if errors:
        raise UserError(*errors)
    if config.output:
        check_output(Path(config.input), Path(config.output), config.overwrite)


if __name__ == "__main__":
    run_command(main)
