"""Every choice of a run: its name, default, unit and reason, from the command line or a file.

In: a command line. Out: a frozen `Config` (train.py) or `EvalConfig` (eval.py), all checked.
Refuses to know: torch, networks, and any disk but for the one file that --config names.
"""

import argparse
import dataclasses
import difflib
import json
import math
import os
from pathlib import Path
from typing import get_args


class UserError(Exception):
    """Mistakes of the user's, one line each: what is wrong, the value, what to do.

    A value may be a whole review: its line breaks go, and a long line keeps both its ends.
    """

    def __init__(self, *lines: str):
        lines = (" ".join(line.splitlines()) for line in lines)
        lines = (line if len(line) < 700 else f"{line[:350]} ... {line[-340:]}" for line in lines)
        super().__init__(*lines)


GO_ON = "run the same command again (without --overwrite, if it was given)"


# What a value may be: a test, and the words for it in an error. NaN fails every comparison.
ABOVE_0 = (lambda v: 0 < v < math.inf, "a number above 0")
AT_LEAST_0 = (lambda v: 0 <= v < math.inf, "a number of at least 0")
AT_LEAST_1 = (lambda v: v >= 1, "a whole number of at least 1")
SHARE = (lambda v: 0 <= v < 1, "a number of at least 0 and below 1")
ABOVE_0_TO_1 = (lambda v: 0 < v <= 1, "a number above 0 and at most 1")
INSIDE_0_1 = (lambda v: 0 < v < 1, "a number above 0 and below 1")
SHARE_OR_STEPS = (
    lambda v: 0 <= v < 1 or (v >= 1 and v.is_integer()),
    "a share of at least 0 and below 1, or a whole number",
)
MINUS_1_OR_MORE = (lambda v: v == -1 or v >= 1, "-1 (no limit) or a whole number of at least 1")
SEED = (lambda v: 0 <= v < 2**32, "a whole number from 0 to 4294967295")


def one_of(*values: str):
    return (lambda v: v in values, "one of " + ", ".join(values))


def flag(default, help, allowed=None, changes_result=True):
    """A field of a config. `changes_result=False`: a resumed run may change it. No weight depends
    on it but through rounding, and through dropout masks where a batch is dealt otherwise."""
    about = {"help": help, "allowed": allowed, "changes_result": changes_result}
    return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run. Names are those of transformers' TrainingArguments where the meaning is."""

    # Data
    dataset: str = flag("stanfordnlp/imdb", "Hub name, folder, or CSV / JSON lines / Parquet file")
    dataset_config_name: str | None = flag(None, "configuration of a Hub data set that has several")
    dataset_revision: str | None = flag(None, "branch, tag or commit of a Hub data set")
    text_column: str = flag("text", "column that holds the text")
    label_column: str = flag("label", "column of class labels: names, integers or strings")
    train_split: str = flag("train", "split to train on; a part of it becomes the validation split")
    test_split: str = flag(
        "test", "split that eval.py opens; train.py never does", changes_result=False
    )
    validation_size: float = flag(
        0.3, "share of the training split kept for validation", INSIDE_0_1
    )
    validation_seed: int = flag(
        0, "seed of that split, apart from --seed: seeds compare on it", SEED
    )
    max_train_samples: int | None = flag(None, "train on a stratified part of so many", AT_LEAST_1)
    max_validation_samples: int | None = flag(None, "validate on so many, stratified", AT_LEAST_1)

    # Model
    model: str = flag("distilbert/distilbert-base-uncased", "Hub name or folder of an encoder")
    revision: str | None = flag(None, "branch, tag or commit of a Hub model")
    max_length: int = flag(512, "tokens kept of a text", AT_LEAST_1)
    truncation: str = flag(
        "head",
        "which end of a longer text is kept; head_tail: a quarter of its start, the rest its end",
        one_of("head", "tail", "head_tail"),
    )
    attention_dropout: float = flag(0.0, "above 0, no fused attention kernel runs on CPU", SHARE)
    dropout: float | None = flag(None, "every other dropout; default: the model's own", SHARE)

    # Optimization
    num_train_epochs: float = flag(3.0, "passes over the training split", ABOVE_0)
    max_steps: int = flag(-1, "optimizer updates; -1: as --num_train_epochs says", MINUS_1_OR_MORE)
    per_device_train_batch_size: int = flag(
        16, "examples a process and forward pass", AT_LEAST_1, False
    )
    per_device_eval_batch_size: int = flag(64, "the same in evaluation", AT_LEAST_1, False)
    gradient_accumulation_steps: int = flag(1, "forward passes an update", AT_LEAST_1, False)
    train_sampling_strategy: str = flag(
        "group_by_length",
        "group_by_length batches texts of like length; random is plain shuffling",
        one_of("group_by_length", "random"),
    )
    learning_rate: float = flag(2e-5, "peak rate; small models such as MiniLM want 1e-4", ABOVE_0)
    lr_scheduler_type: str = flag(
        "linear", "decay after the warm-up", one_of("linear", "cosine", "constant")
    )
    warmup_steps: float = flag(0.06, "updates of warm-up; below 1: a share of all", SHARE_OR_STEPS)
    weight_decay: float = flag(0.01, "of weight matrices; biases and norms have none", AT_LEAST_0)
    max_grad_norm: float = flag(1.0, "the gradient is clipped to this norm; 0: not", AT_LEAST_0)
    seed: int = flag(42, "of the new head, the order of reviews and the dropout", SEED)

    # Output
    output_dir: str = flag(".", "holds best/, last/ and runs/", changes_result=False)
    overwrite: bool = flag(False, "delete the run in --output_dir first", changes_result=False)
    logging_steps: int = flag(50, "steps between scalars", AT_LEAST_1, False)
    eval_steps: int = flag(50, "steps between quick looks at --eval_samples", AT_LEAST_1, False)
    eval_samples: int = flag(150, "validation reviews of a quick look", AT_LEAST_1, False)
    save_steps: int = flag(200, "steps between writes of last/", AT_LEAST_1, False)
    max_save_share: float = flag(
        0.02,
        "share of the time for writes of last/: where they take more, they come less often",
        ABOVE_0_TO_1,
        False,
    )
    validate_steps: int | None = flag(
        None, "steps between whole validations, which choose best/; default: an epoch", AT_LEAST_1
    )

    # Machine
    mixed_precision: str = flag(
        "auto",
        "auto: what accelerate's launcher or config file says, else bf16 where the GPU has it",
        one_of("auto", "no", "fp16", "bf16"),
    )
    num_threads: int | None = flag(
        None, "CPU threads a process; default: cores / processes", AT_LEAST_1, False
    )
    torch_compile: bool = flag(False, "compile the model; minutes of start-up on CPU")
    full_determinism: bool = flag(False, "ask a GPU for kernels that repeat their bits; slower")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """An evaluation. What is not given comes from the checkpoint's `training_config.json`."""

    ckpt: str = flag("best", "folder that train.py wrote, or any saved classifier")
    text: tuple[str, ...] = flag((), "a text to classify; may be repeated")
    input: str | None = flag(None, "CSV / JSON lines / Parquet file of texts to classify")
    output: str | None = flag(None, "where predictions for --input go: .csv, .jsonl or .parquet")
    dataset: str | None = flag(None, "Hub name, folder or file; default: that of the training")
    dataset_config_name: str | None = flag(None, "default: that of the training")
    dataset_revision: str | None = flag(None, "default: that of the training")
    text_column: str | None = flag(None, "default: that of the training")
    label_column: str | None = flag(None, "default: that of the training")
    test_split: str | None = flag(None, "default: that of the training")
    max_test_samples: int | None = flag(None, "a stratified part of so many", AT_LEAST_1)
    per_device_eval_batch_size: int = flag(64, "texts a forward pass", AT_LEAST_1)
    report: str | None = flag(None, "default: report_test.json beside the weights")
    overwrite: bool = flag(False, "replace an --output or a report of something else")
    num_threads: int | None = flag(None, "CPU threads; default: all cores", AT_LEAST_1)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        message = message.removeprefix("argument ")
        raise UserError(f"{message}; give --flag VALUE, or --flag=VALUE for one that starts with -")


def parse(kind, argv=None):
    """The command line (`--config FILE` first, the command line over it) as a `kind`.

    Values from both sides go through the same `read`. Raises `UserError` with all mistakes at once.
    """
    flags = {field.name: field for field in dataclasses.fields(kind)}
    parser = Parser(
        description=kind.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    if kind is Config:
        parser.add_argument("--config", metavar="FILE", help="flags from a JSON file")
    for name, field in flags.items():
        # A bare --overwrite is true, "--overwrite false" is false: type=bool would make it true.
        extra = {"nargs": "?", "const": True} if field.type is bool else {}
        extra |= {"action": "append"} if isinstance(field.default, tuple) else {}
        default = "" if field.default in (None, ()) else f" (default: {field.default})"
        help = field.metadata["help"].replace("%", "%%") + default
        parser.add_argument(f"--{name}", metavar=name.upper(), help=help, **extra)
    known, unknown = parser.parse_known_args(argv)
    given = vars(known)
    given = read_file(given.pop("config")) | given if "config" in given else given

    errors = [complain(word, flags) for word in unknown if word.startswith("-")]
    errors += [f"{word!r} is not a flag: flags start with --" for word in unknown[:1] if not errors]
    values = {}
    for name, value in given.items():
        try:
            values[name] = read(flags[name], value)
        except KeyError:
            errors.append(complain(f"--{name}", flags))
        except ValueError as error:
            errors.append(f"--{name} {value}: give {error}")
    if errors:
        raise UserError(*errors)
    return kind(**values)


def complain(word: str, flags) -> str:
    name = word.split("=")[0]
    near = difflib.get_close_matches(name, [f"--{known}" for known in flags], n=1)
    hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
    return f"unknown flag {name}: {hint}"


def read_file(path: str) -> dict:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give a JSON file of flags") from None
    except ValueError as error:
        raise UserError(f"--config {path}: not JSON ({error}); mend the file") from None
    if not isinstance(values, dict):
        raise UserError(f'--config {path}: holds no flags; write {{"flag": value, ...}}')
    return values


def read(field: dataclasses.Field, value):
    """`value` (a string, or what JSON held) as `field` has it. Raises ValueError: what to give."""
    optional = field.default is None
    if value is None and optional:
        return None
    if isinstance(field.default, tuple):
        if not all(text.strip() for text in value):
            raise ValueError("texts that are not empty")
        return tuple(value)
    kind = get_args(field.type)[0] if optional else field.type
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
    # An empty text is mostly a shell variable that was never set, as in --output_dir "$RUN".
    allowed, words = field.metadata["allowed"] or (lambda v: kind is not str or v.strip(), words)
    try:
        if kind is bool:
            value = {"true": True, "false": False}[str(value).lower()]
        elif (kind is str and not isinstance(value, str)) or isinstance(value, bool):
            raise TypeError
        else:
            value = kind(value) if kind is not int else int(str(value))
        if kind is str:  # the shell expands ~ in "--output_dir ~/run", not in "--output_dir=~/run"
            value = os.path.expanduser(value)
        if not allowed(value):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(words) from None
    return value


def changed_settings(old: dict, new: dict) -> list[str]:
    """Names of the settings that change the result and differ. Both map flag names to values."""
    return [
        field.name
        for field in dataclasses.fields(Config)
        if field.metadata["changes_result"] and old.get(field.name) != new.get(field.name)
    ]
