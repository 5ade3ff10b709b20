"""Command line and JSON file to a checked dataclass, and the error that a user may cause.

In: a dataclass whose fields come from `flag`; a command line. Out: an instance of it.
Independent of: which flags there are, torch, and any disk but for the file that --config names.
"""

import argparse
import dataclasses
import difflib
import errno
import functools
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import get_args

from runtime.streams import open_streams


class UserError(Exception):
    """Mistakes of the user, one line each: what is wrong, the value, what to do.

    Line breaks inside a value are removed, and the middle of a long line is cut: a value may be a
    whole text of the user's.
    """

    def __init__(self, *lines: str):
        lines = (" ".join(line.splitlines()) for line in lines)
        lines = (line if len(line) < 700 else f"{line[:350]} ... {line[-340:]}" for line in lines)
        super().__init__(*lines)


RUN_AGAIN = "run the same command again (without --overwrite, if it was given)"
# Of a disk that is full or broken, whatever was being read or written.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy, torch (on CPU, CUDA or MPS) or the system had no memory to give."""
    words = ("Cannot allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError)) and any(word in str(error) for word in words)
    )


# ---------------------------------------------------------------- fields

# What a value may be: a test, and the words for it in an error. NaN fails every comparison.
ABOVE_0 = (lambda v: 0 < v < math.inf, "a number above 0")
AT_LEAST_0 = (lambda v: 0 <= v < math.inf, "a number of at least 0")
AT_LEAST_1 = (lambda v: v >= 1, "a whole number of at least 1")
FROM_0_BELOW_1 = (lambda v: 0 <= v < 1, "a number of at least 0 and below 1")
ABOVE_0_UP_TO_1 = (lambda v: 0 < v <= 1, "a number above 0 and at most 1")
BETWEEN_0_AND_1 = (lambda v: 0 < v < 1, "a number above 0 and below 1")
SHARE_OR_STEPS = (
    lambda v: 0 <= v < 1 or (v >= 1 and v.is_integer()),
    "a share of at least 0 and below 1, or a whole number",
)
MINUS_1_OR_ABOVE_0 = (lambda v: v == -1 or v >= 1, "-1 (no limit) or a whole number of at least 1")
SEED = (lambda v: 0 <= v < 2**32, "a whole number from 0 to 4294967295")


def is_probability(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


PROBABILITY_OR_STORED = (
    lambda v: v == "stored" or is_probability(v),
    'a number from 0 to 1, or "stored"',
)


def one_of(*values: str):
    return (lambda v: v in values, "one of " * (len(values) > 1) + ", ".join(values))


def flag(default, help, allowed=None, changes_result=True):
    """A field of a config.

    Args:
        allowed: a test of the value, and the words for it; default: any value of the field's type.
        changes_result: False for a flag that a resumed run may change. No weight depends on it,
            except through rounding and through dropout masks where a batch is dealt differently.
    """
    about = {"help": help, "allowed": allowed, "changes_result": changes_result}
    return dataclasses.field(default=default, metadata=about)


# A flag that does not change the result: a resumed run may be given another value.
adjustable = functools.partial(flag, changes_result=False)


def changed_settings(kind, old: dict, new: dict) -> list[str]:
    """Names of the flags of `kind` that change the result and differ between the two settings."""
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.metadata["changes_result"] and old.get(field.name) != new.get(field.name)
    ]


def changed_flags(config) -> dict:
    """Those that differ from their defaults."""
    default = type(config)()
    return {name: value for name, value in vars(config).items() if value != getattr(default, name)}


def require_unchanged(old: dict, new: dict, flags, made: str) -> None:
    """Raises `UserError` with both values of each of `flags` that differs, and the name of whatever
    else in `new` does. `made`: what was made with the old ones."""
    differs = [name for name in new if old.get(name) != new[name]]
    were = [
        f"no --{name}" if old.get(name) is None else f"--{name} {old[name]}, not {new[name]}"
        for name in differs
        if name in flags
    ]
    were += [f"other {name}" for name in differs if name not in flags]
    if were:
        raise UserError(
            f"{made} was made with {', '.join(were)}; give those, or another --output_dir"
        )


def require_defaults(config, names: tuple[str, ...], why: str) -> None:
    """Raises `UserError` for each of the flags that was given."""
    changed = changed_flags(config)
    if given := [name for name in names if name in changed]:
        raise UserError(*(f"--{name}: {why}; leave it out" for name in given))


# ---------------------------------------------------------------- parsing


class Parser(argparse.ArgumentParser):
    def error(self, message):
        message = message.removeprefix("argument ")
        raise UserError(f"{message}; give --flag VALUE, or --flag=VALUE for one that starts with -")


def parse_or_exit(kind, config_file=True):
    """`parse` of this process's command line, for a script that has not imported torch yet: a
    typing error or --help need not wait the seconds that takes. Exits with status 2 on a mistake.
    """
    open_streams()
    try:
        return parse(kind, config_file=config_file)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # all processes have one command line
            print_error(error)
        sys.exit(2)


def print_error(error: UserError) -> None:
    print(*(f"error: {line}" for line in error.args), sep="\n", file=sys.stderr)


def parse(kind, argv=None, config_file=True):
    """The command line (over the flags of `--config FILE`) as an instance of `kind`.

    Values from the command line and from the file go through the same `convert`.
    Raises `UserError` with all mistakes at once.
    """
    flags = {field.name: field for field in dataclasses.fields(kind)}
    known, unknown = make_parser(kind, config_file).parse_known_args(argv)
    given = vars(known)
    given = read_flags(given.pop("config")) | given if "config" in given else given

    errors = [name_unknown(word, flags) for word in unknown if word.startswith("-")]
    hint = "flags start with --, and take one value at most"
    errors += [f"{word!r} is not a flag: {hint}" for word in unknown[:1] if not errors]
    values = {}
    for name, value in given.items():
        try:
            values[name] = convert(flags[name], value)
        except KeyError:
            errors.append(name_unknown(f"--{name}", flags))
        except ValueError as error:
            errors.append(f"--{name} {value}: give {error}")
    if errors:
        raise UserError(*errors)
    return kind(**values)


def make_parser(kind, config_file: bool) -> Parser:
    parser = Parser(
        description=kind.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    if config_file:
        parser.add_argument("--config", metavar="FILE", help="flags from a JSON file")
    for field in dataclasses.fields(kind):
        # A bare --overwrite is true, "--overwrite false" is false: type=bool would make it true.
        extra = {"nargs": "?", "const": True} if field.type is bool else {}
        extra |= {"action": "append"} if isinstance(field.default, tuple) else {}
        default = "" if field.default in (None, ()) else f" (default: {field.default})"
        help = help_of(field).replace("%", "%%") + default
        parser.add_argument(f"--{field.name}", metavar=field.name.upper(), help=help, **extra)
    return parser


def help_of(field: dataclasses.Field) -> str:
    """Also the values to choose from, unless its help names each."""
    help, (_, words) = field.metadata["help"], field.metadata["allowed"] or (None, "")
    _, is_list, values = words.partition("one of ")
    named = set(re.findall(r"\w+", help))
    return f"{help}; {words}" if is_list and not named.issuperset(values.split(", ")) else help


def name_unknown(word: str, flags) -> str:
    name = word.split("=")[0]
    bare = name.lstrip("-")
    near = [known for known in flags if len(bare) > 2 and known.startswith(bare)]
    near = near or difflib.get_close_matches(bare, flags, n=1, cutoff=0.65)
    near = near or [known for known in flags if known.endswith(f"_{bare}")]
    hint = f"did you mean --{near[0]}?" if near else "--help lists the flags"
    return f"unknown flag {name}: {hint}"


def read_flags(path: str) -> dict:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give a JSON file of flags") from None
    except ValueError as error:
        raise UserError(f"--config {path}: not JSON ({error}); correct the file") from None
    if not isinstance(values, dict):
        raise UserError(f'--config {path}: holds no flags; write {{"flag": value, ...}}')
    values.pop("environment", None)  # in the training_config.json of a run: where it ran
    return values


def convert(field: dataclasses.Field, value):
    """`value` (a string or from JSON) in the field's type. Raises ValueError: what to give."""
    optional = field.default is None
    if value is None and optional:
        return None
    if isinstance(field.default, tuple):
        if not all(text.strip() for text in value):
            raise ValueError("texts that are not empty")
        return tuple(value)
    kind = get_args(field.type)[0] if optional else field.type
    convert_to, words = CONVERSIONS[kind]
    allowed, words = field.metadata["allowed"] or (lambda v: True, words)
    try:
        value = convert_to(value)
        if not allowed(value):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(words) from None
    return value


def to_bool(value) -> bool:
    return {"true": True, "false": False}[str(value).lower()]


def to_int(value) -> int:
    return int(str(value))  # int(3.5) would be 3, int(True) 1


def to_float(value) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def to_text(value) -> str:
    # An empty text is mostly a shell variable that was never set, as in --output_dir "$RUN".
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return os.path.expanduser(value)  # which the shell does not do in "--output_dir=~/run"


CONVERSIONS = {
    bool: (to_bool, "true or false"),
    int: (to_int, "a whole number"),
    float: (to_float, "a number"),
    str: (to_text, "a text"),
}
