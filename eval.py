"""A trained classifier's report on the test split, or its predictions for new texts.

    python eval.py --ckpt best/                   # the test split of what it was trained on
    python eval.py --ckpt best/ --text "A wonderful film." --text "Dull."
    python eval.py --ckpt best/ --input reviews.csv --output predictions.csv

In: a checkpoint folder; texts. Out: `report_test.json` beside the weights; predictions.
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

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from tqdm import tqdm

from data import encode, eval_batches
from model import load_classifier, load_tokenizer, predict, score
from report.files import check_output, refuse_to_replace
from report.predictions import print_predictions, write_predictions
from runtime.card import checksum
from runtime.checkpoint import read_training_settings
from runtime.draw import sample
from runtime.environment import describe_environment
from runtime.formats import format_of, stem_of
from runtime.heads import read_class_names, require_one_label
from runtime.hub import find_checkpoint, full_path, weight_files
from runtime.processes import keep_freed_memory, require_asked_processes, run_command, set_threads
from runtime.seen import Seen, read_seen
from runtime.splits import read_table
from runtime.tables import LabelledTexts, label_rows

# ---------------------------------------------------------------- the checkpoint


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A checkpoint, loaded."""

    folder: Path
    trained: dict  # the settings of its training; {} if train.py did not write it
    names: list[str]  # of the classes
    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    accelerator: Accelerator
    batch_size: int
    weights: dict[Path, os.stat_result]  # taken before loading, to notice a replacement since

    @property
    def text_column(self) -> str:
        return self.trained.get("text_column", "text")

    def logits(self, texts: list[tuple[str, ...]]) -> torch.Tensor:
        """(texts, classes) of about a thousand texts, or pairs of them."""
        own = "tail" if self.tokenizer.truncation_side == "left" else "head"
        truncation = self.trained.get("truncation", own)
        ids = encode(texts, self.tokenizer, self.tokenizer.model_max_length, truncation)
        batches = eval_batches(
            Dataset.from_dict(ids), self.batch_size, self.tokenizer, self.accelerator
        )
        return predict(self.model, batches, len(texts), self.accelerator)

    def logits_of(self, texts: LabelledTexts) -> torch.Tensor:
        """(texts, classes) of a whole split."""
        chunks = []
        with tqdm(total=len(texts), unit=" texts", disable=None) as bar:
            for chunk in texts.chunks():
                chunks.append(self.logits(chunk))
                bar.update(len(chunk))
        return torch.cat(chunks)


def open_classifier(config: EvalConfig) -> Classifier:
    folder = find_checkpoint(config.ckpt)
    trained = read_training_settings(folder)
    weights = {file: file.stat() for file in weight_files(folder)}
    # On a GPU the precision of the training; on a CPU always float32.
    precision = trained.get("mixed_precision", "no") if torch.cuda.is_available() else "no"
    accelerator = Accelerator(mixed_precision=precision, dynamo_backend="no")
    require_asked_processes()
    set_threads(config.num_threads)
    keep_freed_memory()
    name = str(folder)
    tokenizer = load_tokenizer(name, max_length=trained.get("max_length", -1), flag="--ckpt")
    model = load_classifier(name, tokenizer, flag="--ckpt")
    require_one_label(model.config, f"--ckpt {config.ckpt}")
    names = read_class_names(model.config, f"--ckpt {config.ckpt}")
    model = accelerator.prepare_model(model, evaluation_mode=True)
    return Classifier(
        folder=folder,
        trained=trained,
        names=names,
        model=model,
        tokenizer=tokenizer,
        accelerator=accelerator,
        batch_size=config.per_device_eval_batch_size,
        weights=weights,
    )


# ---------------------------------------------------------------- the test split


def report_on_test(config: EvalConfig, classifier: Classifier) -> None:
    # Not at the top: it takes two seconds to import, which --text and --input need not wait for.
    from report.metrics import make_report, show

    accelerator = classifier.accelerator
    # Now, because the files of the project may be edited during the predictions.
    environment = describe_environment(accelerator)
    settings = choose_test(config, classifier.trained)
    known = read_seen(classifier.folder)
    test, seen = load_test(settings, known, classifier.names, config.drop_invalid)
    texts = hashlib.sha256(test.hashes.tobytes() + test.labels.tobytes()).hexdigest()
    identity = settings | {"texts": texts[:16], "weights": sum_of_weights(classifier)}
    path = report_path(config, classifier)
    refuse_to_replace(path, identity, config.overwrite)
    logits, labels = classifier.logits_of(test), torch.as_tensor(test.labels)
    report = make_report(score(logits, labels), logits.argmax(-1), labels, classifier.names)
    if accelerator.is_main_process:
        how = {"precision": accelerator.mixed_precision, "device": accelerator.device.type}
        report |= {
            "of": identity | {"also_in": seen} | how,
            "environment": environment,
            "training_environment": classifier.trained.get("environment"),
        }
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        for line in (*test.notes, describe_seen(known, seen, test, classifier.folder)):
            print(line)
        show(report)
        print(f"written to {path}")


def report_path(config: EvalConfig, classifier: Classifier) -> Path:
    """Beside the weights report_test.json, and report_june.json of --dataset june.csv; here, if
    the weights are of the Hub, whose cache is not for files of ours."""
    if config.report:
        return Path(config.report)
    name = "test"
    if config.dataset and full_path(config.dataset) != classifier.trained.get("dataset"):
        path = Path(full_path(config.dataset))
        name = stem_of(path) if format_of(path) else path.name
    beside = classifier.folder if os.path.exists(config.ckpt) else Path()
    return beside / f"report_{name}.json"


def sum_of_weights(classifier: Classifier) -> str:
    """A checksum of the files that were loaded. Raises `UserError` if they were replaced since."""
    found = checksum(classifier.weights)
    for file, then in classifier.weights.items():
        now = file.stat()
        if not os.path.samestat(now, then) or now.st_mtime_ns != then.st_mtime_ns:
            raise UserError(
                f"--ckpt {classifier.folder}: a training replaced it meanwhile; start eval.py again"
            )
    return found


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
    """`TEST_SETTINGS`: those given, else those of the training, else the defaults."""
    if not (config.dataset or trained.get("dataset")):
        raise UserError(
            f"--ckpt {config.ckpt}: does not say what it was trained on; give --dataset"
        )
    fallback = dataclasses.asdict(Config()) | trained
    dataset = full_path(config.dataset or fallback["dataset"])
    if dataset != fallback["dataset"]:
        # The configuration and the revision of the training belong to its own data set.
        fallback = fallback | {"dataset_config_name": None, "dataset_revision": None}
    given = {name: getattr(config, name) for name in TEST_SETTINGS} | {"dataset": dataset}
    return {name: fallback.get(name) if value is None else value for name, value in given.items()}


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
    # Texts are compared, not paths: a file may have been copied. A few are usual (52 of IMDb's).
    trained = np.isin(texts.hashes, known.training)
    validated = np.isin(texts.hashes, known.validation)
    either = (trained | validated).sum()
    if either >= len(texts) / 2:
        raise UserError(
            f"--dataset {settings['dataset']} --test_split {settings['test_split']}: {either:,} of "
            f"the {len(texts):,} texts are among those that the model was trained or validated on; "
            "give --dataset TEST_FILE, or another split"
        )
    return texts, {"training": int(trained.sum()), "validation": int(validated.sum())}


def describe_seen(known: Seen, seen: dict[str, int], test: LabelledTexts, folder: Path) -> str:
    if why := known.why_unknown(test.text_columns):
        return f"whether {folder} was trained on these texts is not known: {why}"
    words = "{training:,} of these texts are among those trained on, {validation:,} validated on"
    return words.format(**seen)


# ---------------------------------------------------------------- the command

IF_OUT_OF_MEMORY = "give a lower --per_device_eval_batch_size"


def main(argv=None) -> None:
    predict_or_report(parse(EvalConfig, argv, config_file=False))


def predict_or_report(config: EvalConfig) -> None:
    check_flags(config)
    classifier = open_classifier(config)
    if config.text:
        print_predictions(config.text, classifier)
    elif config.input:
        write_predictions(config, classifier)
    else:
        report_on_test(config, classifier)


def check_flags(config: EvalConfig) -> None:
    """Raises `UserError` with all mistakes that show before anything is read."""
    errors = []
    for given, other in (("input", "output"), ("output", "input")):
        if getattr(config, given) and not getattr(config, other):
            errors += [f"--{given} {getattr(config, given)}: needs --{other} FILE; give both"]
    if config.text and config.input:
        errors += [f"--input {config.input}: given with --text; give one of the two"]
    mode = "text" if config.text else "input" if config.input else None
    for name in ("report", "drop_invalid", *TEST_SETTINGS) if mode else ():
        value = getattr(config, name)
        if value not in (None, False) and (mode, name) != ("input", "text_column"):
            errors += [f"--{name} {value}: is for the test split; leave it out with --{mode}"]
    if errors:
        raise UserError(*errors)
    if config.output:
        check_output(Path(config.input), Path(config.output), config.overwrite)


if __name__ == "__main__":
    run_command(lambda: predict_or_report(GIVEN), IF_OUT_OF_MEMORY)
