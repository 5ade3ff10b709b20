"""A trained classifier's report on the test split, or its predictions for new texts.

    python eval.py --ckpt best/                   # the test split of what it was trained on
    python eval.py --ckpt best/ --text "A wonderful film." --text "Dull."
    python eval.py --ckpt best/ --input reviews.csv --output predictions.csv

In: a checkpoint folder; texts. Out: a report, `report_test.json`, beside the weights; predictions.
Independent of: optimizer, schedule, TensorBoard. The only file that opens the test split.
"""

import sys
from pathlib import Path

if sys.flags.safe_path:  # python -P, PYTHONSAFEPATH: the folder of this file is not searched
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from config import Config, EvalConfig
from runtime.flags import UserError, parse, parse_or_exit

if __name__ == "__main__":
    GIVEN = parse_or_exit(EvalConfig, config_file=False)  # before the imports below take seconds

import dataclasses
import hashlib
import json
import os
from functools import cached_property

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from tqdm import tqdm

from data import UNCUT, encode, eval_batches
from model import load_classifier, load_tokenizer, predict, score
from report.asked import SPLIT_SETTINGS, check_flags
from report.files import keep_out_of_data, read_replaced
from report.look import measure_baselines
from report.predictions import (
    Predicted,
    print_predictions,
    require_new_columns,
    write_predictions,
    write_texts,
)
from report.texts import Split, count_seen, describe_seen, load_validation
from report.thresholds import (
    choose_threshold,
    coverage,
    coverage_table,
    read_min_probability,
    read_validation_of,
    stored_threshold,
)
from report.windows import describe_windows, spread_windows
from runtime.checkpoint import read_training_settings, sum_of_weights
from runtime.draw import sample
from runtime.environment import describe_environment
from runtime.formats import format_of, stem_of
from runtime.heads import read_class_names, require_one_label
from runtime.hub import find_checkpoint, full_path, weight_files
from runtime.processes import keep_freed_memory, require_asked_processes, run_command, set_threads
from runtime.seen import Seen, read_seen
from runtime.splits import read_table
from runtime.tables import LabelledTexts, label_rows, split_columns

# ---------------------------------------------------------------- the checkpoint


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A checkpoint, loaded."""

    name: str  # its folder in full, or its name on the Hub
    folder: Path
    trained: dict  # the settings of its training; {} if train.py did not write it
    names: list[str]  # of the classes
    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    accelerator: Accelerator
    batch_size: int
    in_windows: bool  # texts longer than the model reads (--long window)
    weights: dict[Path, os.stat_result]  # taken before loading, to notice a replacement since

    @cached_property  # it reads all weights
    def checksum(self) -> str:
        return sum_of_weights(self.folder, self.weights)

    @property
    def text_column(self) -> str:
        return self.trained.get("text_column", "text")

    @property
    def truncation(self) -> str:
        own = "tail" if self.tokenizer.truncation_side == "left" else "head"
        return self.trained.get("truncation", own)

    def encode(self, texts: list[tuple[str, ...]]) -> dict[str, list]:
        most = UNCUT if self.in_windows else self.tokenizer.model_max_length
        return encode(texts, self.tokenizer, most, self.truncation)

    def batches(self, ids: dict[str, list]):
        """Pairs of (row numbers, batch)."""
        return eval_batches(
            Dataset.from_dict(ids), self.batch_size, self.tokenizer, self.accelerator
        )

    def logits(self, ids: dict[str, list]) -> torch.Tensor:
        """(texts, classes) of the token ids of about a thousand texts."""
        if not self.in_windows:
            return self.logits_of_rows(ids)
        windows = spread_windows(ids["input_ids"], self.tokenizer)
        return windows.mean(self.logits_of_rows(windows.columns))

    def logits_of_rows(self, ids: dict[str, list]) -> torch.Tensor:
        return predict(self.model, self.batches(ids), len(ids["input_ids"]), self.accelerator)

    def predict_split(self, texts: LabelledTexts) -> Predicted:
        columns = {"logits": [], "length": [], "cut": []}
        with tqdm(total=len(texts), unit=" texts", disable=None) as bar:
            for chunk in texts.chunks():
                ids = self.encode(chunk)
                columns["logits"].append(self.logits(ids).numpy())
                columns["length"].append(ids["length"])
                columns["cut"].append(ids["cut"])
                bar.update(len(chunk))
        whole = {name: np.concatenate(parts) for name, parts in columns.items()}
        return Predicted(labels=texts.labels, **whole)


def open_classifier(
    config: EvalConfig, ckpt: str | None = None, flag="--ckpt", accelerator=None
) -> Classifier:
    """`ckpt`, by default that of the config. With an `accelerator`, in the precision of that."""
    given = f"{flag} {ckpt or config.ckpt}"
    folder = find_checkpoint(ckpt or config.ckpt, flag)
    trained = read_training_settings(folder, flag)
    weights = {file: file.stat() for file in weight_files(folder)}
    # On a GPU the precision of the training; on a CPU always float32.
    precision = trained.get("mixed_precision", "no") if torch.cuda.is_available() else "no"
    accelerator = accelerator or Accelerator(mixed_precision=precision, dynamo_backend="no")
    require_asked_processes()
    set_threads(config.num_threads)
    keep_freed_memory()
    in_windows = config.long == "window"
    asked = config.text_column or trained.get("text_column", "text")
    if in_windows and len(split_columns(asked)) == 2:
        raise UserError(f"--long window: {given} reads pairs of texts; leave it out")
    name = str(folder)
    tokenizer = load_tokenizer(name, max_length=trained.get("max_length", -1), flag=flag)
    whole = trained.get("last_layer") == "all"
    model = load_classifier(name, tokenizer, flag=flag, whole=whole)
    require_one_label(model.config, given)
    names = read_class_names(model.config, given)
    model = accelerator.prepare_model(model, evaluation_mode=True)
    return Classifier(
        name=full_path(ckpt or config.ckpt),
        folder=folder,
        trained=trained,
        names=names,
        model=model,
        tokenizer=tokenizer,
        accelerator=accelerator,
        batch_size=config.per_device_eval_batch_size,
        in_windows=in_windows,
        weights=weights,
    )


# ---------------------------------------------------------------- the report on a split


def report_on_split(config: EvalConfig, classifier: Classifier) -> None:
    # Not at the top: they take seconds to import, which --text and --input need not wait for.
    from report.calibration import examine_calibration
    from report.metrics import make_report
    from report.rivals import compare_with, examine_rivals, predict_as
    from report.terminal import show, show_comparison

    accelerator = classifier.accelerator
    # Now, because the files of the project may be edited during the predictions.
    environment = describe_environment(accelerator)
    split = load_split(config, classifier)
    texts = split.texts
    digest = hashlib.sha256(texts.hashes.tobytes() + texts.labels.tobytes()).hexdigest()
    identity = split.settings | {"texts": digest[:16], "weights": classifier.checksum}
    identity["long"] = config.long
    path = report_path(config, classifier)
    rivals = open_rivals(config, classifier)
    sides = examine_rivals(classifier, split.seen, rivals, texts, config.split)
    replaced = read_replaced(path, identity, sides, config.overwrite)
    if config.predictions or config.errors:
        require_new_columns(texts, rivals)
    predicted = classifier.predict_split(texts)
    others = {name: predict_as(rival, classifier.names, texts) for name, rival in rivals.items()}
    if not accelerator.is_main_process:
        return
    write_texts(config, texts, predicted, others)  # first: what follows may take a minute
    # What best/ keeps was found on texts as the training cut them.
    whole = classifier.in_windows
    validation = None if whole else read_validation_of(classifier.folder)
    scores = score(torch.as_tensor(predicted.logits), torch.as_tensor(predicted.labels))
    baselines, line = measure_baselines(classifier, texts)
    threshold = None if whole else stored_threshold(classifier.folder, identity["weights"])
    how = {"precision": accelerator.mixed_precision, "device": accelerator.device.type}
    report = make_report(scores, predicted, classifier.names) | {
        "calibration": examine_calibration(predicted, validation),
        "thresholds": coverage_table(validation),
        "at_stored_threshold": None if threshold is None else coverage(predicted, threshold),
        "baselines": baselines,
        "of": identity | {"also_in": split.seen} | how,
        "environment": environment,
        "training_environment": classifier.trained.get("environment"),
    }
    if others:
        report["comparison"] = compare_with(predicted, others, sides)
    elif "comparison" in replaced:
        report["comparison"] = replaced["comparison"]
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    read = describe_windows(predicted.length, classifier)
    for note in (*split.notes, *line, *read):
        print(note)
    show(report)
    if "comparison" in report:
        show_comparison(report["comparison"], kept=not others)
    print(f"written to {path}")
    if config.html:
        from report.page import write_html  # matplotlib and TensorBoard take a second to import

        write_html(config, classifier, report, texts, predicted)


def open_rivals(config: EvalConfig, classifier: Classifier) -> dict[str, Classifier]:
    """--seeds and --compare, by the names of their columns in --predictions."""
    folders = {"seeds": config.seeds, "compare": config.compare}
    return {
        f"{flag}_{number}": open_classifier(config, ckpt, f"--{flag}", classifier.accelerator)
        for flag, of in folders.items()
        for number, ckpt in enumerate(of, 1)
    }


# ---------------------------------------------------------------- the texts of a split


def choose_test(config: EvalConfig, trained: dict) -> dict:
    """`SPLIT_SETTINGS`: those given, else those of the training, else the defaults."""
    if not (config.dataset or trained.get("dataset")):
        raise UserError(
            f"--ckpt {config.ckpt}: does not say what it was trained on; give --dataset"
        )
    fallback = dataclasses.asdict(Config()) | trained
    dataset = full_path(config.dataset or fallback["dataset"])
    if dataset != fallback["dataset"]:
        # The configuration and the revision of the training belong to its own data set.
        fallback = fallback | {"dataset_config_name": None, "dataset_revision": None}
    given = {name: getattr(config, name) for name in SPLIT_SETTINGS} | {"dataset": dataset}
    return {name: fallback.get(name) if value is None else value for name, value in given.items()}


def load_split(config: EvalConfig, classifier: Classifier) -> Split:
    known = read_seen(classifier.folder)
    if config.split == "validation":
        return load_validation(classifier, known)
    settings = choose_test(config, classifier.trained)
    drop_invalid = config.drop_invalid or classifier.trained.get("drop_invalid", False)
    test, seen = load_test(settings, known, classifier.names, drop_invalid)
    said = describe_seen(known, seen, test, classifier.folder)
    return Split(test, {"split": "test"} | settings, seen, (*test.notes, said))


def load_test(
    settings: dict, known: Seen, names: list[str], drop_invalid: bool
) -> tuple[LabelledTexts, dict[str, int]]:
    """The labelled test split (sampled), by the settings of `choose_test`; and how many of its
    texts the model is known to have been trained and validated on.

    Raises `UserError` if half of its texts or more are among those.
    """
    table = read_table(
        settings["dataset"],
        settings["test_split"],
        settings["dataset_config_name"],
        settings["dataset_revision"],
        choices="--test_split, or give --dataset TEST_FILE",
    )
    columns = settings["text_column"], settings["label_column"]
    no_labels = ", or --input FILE --output FILE to predict labels"
    texts = label_rows(table, *columns, names, drop_invalid, no_labels)
    texts = sample(texts, settings["max_test_samples"], seed=0)
    given = f"--dataset {settings['dataset']} --test_split {settings['test_split']}"
    return texts, count_seen(texts, known, given)


# ---------------------------------------------------------------- the report's place


def report_path(config: EvalConfig, classifier: Classifier) -> Path:
    """Beside the weights report_test.json, and report_june.json of --dataset june.csv; here, if
    the weights are of the Hub, whose cache is not for files of ours."""
    if config.report:
        return Path(config.report)
    name = config.split
    if config.dataset and full_path(config.dataset) != classifier.trained.get("dataset"):
        path = Path(full_path(config.dataset))
        name = stem_of(path) if format_of(path) else path.name
    beside = classifier.folder if os.path.exists(config.ckpt) else Path()
    return beside / f"report_{name}.json"


# ---------------------------------------------------------------- the command

IF_OUT_OF_MEMORY = "give a lower --per_device_eval_batch_size"


def main(argv=None) -> None:
    predict_or_report(parse(EvalConfig, argv, config_file=False))


def predict_or_report(config: EvalConfig) -> None:
    check_flags(config)
    if config.thresholds:
        if os.environ.get("RANK", "0") == "0":  # which needs no other process
            choose_threshold(config)
        return
    classifier = open_classifier(config)
    outputs = {name: getattr(config, name) for name in ("predictions", "errors", "output")}
    if not (config.text or config.input):
        outputs["report"] = report_path(config, classifier)
    trained = map(classifier.trained.get, ("dataset", "validation_dataset"))
    datasets = [config.dataset, *(name for name in trained if os.path.isabs(name or ""))]
    keep_out_of_data(outputs, datasets)
    if config.text:
        print_predictions(config.text, classifier, read_min_probability(config, classifier))
    elif config.input:
        write_predictions(config, classifier, read_min_probability(config, classifier))
    else:
        report_on_split(config, classifier)


if __name__ == "__main__":
    run_command(lambda: predict_or_report(GIVEN), IF_OUT_OF_MEMORY)
