"""What a model has seen: hashes of the texts that it was trained and validated on, kept in best/.

In: a model folder. Out: a `Seen`, also of a model that starts from it. Independent of: splits,
tokenizers, what is done about a text that was seen.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from runtime.flags import UserError
from runtime.tables import split_columns

SETTINGS = "training_config.json"
FILES = ("training_texts.npy", "validation_texts.npy")


@dataclasses.dataclass(frozen=True)
class Seen:
    """First those of its own training, in the order of the texts, then those of the models that
    it started from. Both are empty if nothing is known."""

    training: np.ndarray  # (texts,) uint64, from `hash_texts`
    validation: np.ndarray
    text_column: str | None = None  # that of its training, if train.py made it

    def and_then(self, training: np.ndarray, validation: np.ndarray, columns) -> "Seen":
        """What a model has seen that started from this one and was trained on other texts, of which
        these are the hashes."""
        return Seen(
            np.concatenate([training, np.setdiff1d(self.training, training)]),
            np.concatenate([validation, np.setdiff1d(self.validation, validation)]),
            ",".join(columns),
        )

    def why_unknown(self, columns: tuple[str, ...]) -> str:
        """Why this cannot tell whether texts of those columns were seen; empty if it can."""
        if not len(self.training):
            return "it does not hold what it was trained on"
        # A pair of texts has another hash than each of them.
        if self.text_column and len(split_columns(self.text_column)) != len(columns):
            return f"it was trained on --text_column {self.text_column}"
        return ""


def write_seen(folder: Path, seen: Seen) -> None:
    for name, hashes in zip(FILES, (seen.training, seen.validation), strict=True):
        np.save(folder / name, hashes)


def read_seen(folder: Path | None) -> Seen:
    """What a model folder says of it: nothing if train.py did not write it.

    Raises `UserError` for files that are damaged.
    """
    folder = folder or Path("nowhere")
    settings = folder / SETTINGS
    try:
        about = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        hashes = [np.load(folder / name) for name in FILES if (folder / name).is_file()]
    except (EOFError, ValueError) as error:
        raise UserError(f"{folder}: is damaged ({error}); restore it, or train it anew") from None
    if len(hashes) < len(FILES):
        hashes = [np.array([], "<u8")] * len(FILES)
    return Seen(*hashes, about.get("text_column"))
