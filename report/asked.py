"""Which flags of eval.py belong together: mistakes in them, found before anything is read.

In: a config. Out: a `UserError` with all of them, or nothing. Independent of: models, texts.
"""

import dataclasses
from pathlib import Path

from report.files import check_output, check_page, check_source
from runtime.flags import UserError

SPLIT_SETTINGS = (
    "dataset",
    "dataset_config_name",
    "dataset_revision",
    "test_split",
    "text_column",
    "label_column",
    "max_test_samples",
)
EVERYWHERE = ("ckpt", "per_device_eval_batch_size", "num_threads")
# The flags of each thing that can be asked for, besides those.
ASKED = {
    "text": ("min_probability", "long"),
    "input": ("output", "text_column", "min_probability", "long", "overwrite"),
    "thresholds": ("store_threshold",),
}
OF_TEST = (*SPLIT_SETTINGS, "drop_invalid")  # for other texts, those of the training hold
REPORT = ("report", "split", "drop_invalid", "predictions", "errors", "html", "compare")
REPORT += (*SPLIT_SETTINGS, "seeds", "long", "overwrite")


# What a flag is nothing without: another flag, and its value.
NEEDS = {
    "input": ("output", " FILE"),
    "output": ("input", " FILE"),
    "seeds": ("compare", " FOLDER"),
    "store_threshold": ("thresholds", ""),
}


def check_flags(config) -> None:
    """Raises `UserError` with all mistakes that show before anything is read."""
    given = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    }
    first, *more = [name for name in ASKED if name in given] or ["report"]
    allowed = {*EVERYWHERE, first, *ASKED.get(first, REPORT)}
    where = "" if first == "report" else f" with --{first}"
    if config.split == "validation" and first == "report":
        allowed -= {*OF_TEST}
        where = " with --split validation"
    errors = []
    for name, value in given.items():
        flag = f"--{name}" if value is True else f"--{name} {values_of(value)}"
        needed, of_it = NEEDS.get(name, (name, ""))
        if needed not in given:
            errors.append(f"{flag}: needs --{needed}{of_it}; give both")
        if name in more:
            errors.append(f"{flag}: given with --{first}; give one of the two")
        elif name not in allowed and needed in given:
            errors.append(f"{flag}: is for {place_of(name)}; leave it out{where}")
    if (config.long, config.min_probability) == ("window", "stored"):
        errors.append(
            "--min_probability stored: was chosen for cut texts, not for --long window; give a "
            "probability"
        )
    if errors:
        raise UserError(*errors)
    check_files(config)


def values_of(value) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def place_of(name: str) -> str:
    of = [f"--{asked}" for asked, flags in ASKED.items() if name in flags]
    report = "a report on the test split" if name in OF_TEST else "a report"
    return " and ".join(of) or report


def check_files(config) -> None:
    require_apart({name: getattr(config, name) for name in FILES})
    if config.html:
        check_page(Path(config.html), config.report, config.overwrite)
    if config.output:
        check_source(Path(config.input), Path(config.output))
        check_output("--output", Path(config.output), config.overwrite)
    for name in ("predictions", "errors"):
        if path := getattr(config, name):
            check_output(f"--{name}", Path(path), config.overwrite)


FILES = ("dataset", "report", "predictions", "errors")


def require_apart(paths: dict[str, str | None]) -> None:
    """Raises `UserError` if two flags name one file: one would be written over the other."""
    first = {}
    for name, path in paths.items():
        other = first.setdefault(Path(path).resolve(), name) if path else name
        if other != name:
            raise UserError(f"--{name} {path}: is the --{other} too; give another name")
