"""Texts longer than the model reads: windows over the whole of each, and the mean of their logits.

In: token ids of uncut texts; a tokenizer. Out: token ids of windows; the logits of each text.
Independent of: models, files.
"""

import dataclasses

import numpy as np
import torch

from runtime.tokenizer import count_special_tokens

OVERLAP = 0.25  # at least so much of a window stands in the next one, too


@dataclasses.dataclass(frozen=True)
class Windows:
    """Token ids of windows, each with the special tokens of a whole text."""

    input_ids: list[list[int]]
    text: np.ndarray  # (windows,) the text of each, from 0, ascending

    @property
    def columns(self) -> dict[str, list]:
        return {"input_ids": self.input_ids, "length": list(map(len, self.input_ids))}

    def mean(self, logits: torch.Tensor) -> torch.Tensor:
        """(texts, classes) of (windows, classes)."""
        counts = torch.as_tensor(np.bincount(self.text))
        sums = torch.zeros(len(counts), logits.shape[1], dtype=torch.float64)
        sums.index_add_(0, torch.as_tensor(self.text), logits.double())
        return (sums / counts[:, None]).float()


def spread_windows(rows: list[list[int]], tokenizer) -> Windows:
    """Windows of `tokenizer.model_max_length` tokens, evenly spaced from the first token of a text
    to its last, as few as overlap by `OVERLAP`. A text that fits is one window.

    Args:
        rows: token ids of texts, uncut, with special tokens.
    """
    before, after = count_special_tokens(tokenizer)
    width = tokenizer.model_max_length - before - after
    windows, texts = [], []
    for number, row in enumerate(rows):
        first, last = row[:before], row[len(row) - after :]
        words = row[before : len(row) - after]
        for start in starts_of_windows(len(words), width):
            windows.append(first + words[start : start + width] + last)
            texts.append(number)
    return Windows(windows, np.array(texts, dtype=np.int64))


def describe_windows(lengths: np.ndarray, classifier) -> list[str]:
    """Of a report on texts of so many tokens."""
    if not classifier.in_windows:
        return []
    width = classifier.tokenizer.model_max_length
    longer = f"{(lengths > width).sum():,} of {len(lengths):,} texts have more than {width} tokens"
    return [f"{longer}: all of each was read, in overlapping windows, whose logits are averaged"]


def starts_of_windows(length: int, width: int) -> list[int]:
    """Where they begin in a text of so many tokens, the special ones not counted."""
    if length <= width:
        return [0]
    step = max(1, width - int(OVERLAP * width))
    count = 1 + -(-(length - width) // step)
    return np.linspace(0, length - width, count).round().astype(int).tolist()
