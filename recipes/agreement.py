"""Whether other forms of a classifier, such as ONNX files, answer as it does, and how fast.

In: a checkpoint as eval.py opens it; functions from a batch to logits. Out: texts to try, the
probabilities of each form, differences, texts per second, a table of them. Independent of: what the
forms are.
"""

import dataclasses
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from report.predictions import read_texts
from report.texts import load_validation
from runtime.draw import sample
from runtime.flags import UserError
from runtime.formats import read_chunks
from runtime.intervals import Z_95
from runtime.seen import read_seen
from runtime.splits import read_table
from runtime.tables import LabelledTexts, find_text_columns, label_rows, split_columns

# ---------------------------------------------------------------- texts


@dataclasses.dataclass(frozen=True)
class Sample:
    """Texts to try, or pairs of them."""

    real: list[tuple[str, ...]]
    labels: np.ndarray | None  # (real,) class numbers, if they are known
    source: str  # words for a person
    made_up: list[tuple[str, ...]] = ()

    @property
    def all(self) -> list[tuple[str, ...]]:
        return [*self.real, *self.made_up]


def choose_sample(config, classifier) -> Sample:
    """At most `config.max_samples` texts of --input, else of those that chose the step of best/,
    else, if they cannot be read, none; and made-up texts. Raises `UserError` for an --input that
    cannot be read."""
    if config.input:
        found = read_input(config, classifier)
    else:
        try:
            texts = load_validation(classifier, read_seen(classifier.folder)).texts
            found = of_labelled(texts, config.max_samples, "texts that it was validated on")
        except UserError as error:
            found = Sample([], None, f"no text that it was validated on ({error.args[0]})")
    return dataclasses.replace(found, made_up=make_up_texts(classifier))


def of_labelled(texts: LabelledTexts, limit: int, words: str) -> Sample:
    texts = sample(texts, limit, seed=0)
    tuples = [text for chunk in texts.chunks() for text in chunk]
    return Sample(tuples, texts.labels, f"{len(texts):,} {words}")


def read_input(config, classifier) -> Sample:
    table = read_table(config.input, "train", flag="--input")  # "train": a file has one split
    asked = config.text_column or classifier.text_column
    label = config.label_column or classifier.trained.get("label_column", "label")
    name = Path(config.input).name
    if label in table.columns or config.label_column:
        texts = label_rows(table, asked, label, classifier.names, drop_invalid=True)
        return of_labelled(texts, config.max_samples, f"labelled texts of {name}")
    columns = find_text_columns(table, asked)
    chunks = (read_texts(chunk, columns, config.input) for chunk in read_chunks(Path(config.input)))
    texts = [text for chunk in chunks for text in chunk if any(map(str.strip, text))]
    if not texts:
        raise UserError(f"--input {config.input}: holds no text; give a file that does")
    texts = random.Random(0).sample(texts, min(config.max_samples, len(texts)))
    return Sample(texts, None, f"{len(texts):,} texts of {name}")


def make_up_texts(classifier) -> list[tuple[str, ...]]:
    """Texts of random words of the vocabulary, from one word to more than the model reads, and one
    with special tokens inside: what another form gets wrong, it may get wrong for some lengths."""
    tokenizer, rng = classifier.tokenizer, random.Random(0)
    words = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    lengths = [2**power for power in range(tokenizer.model_max_length.bit_length() + 1)]
    texts = [tokenizer.decode(rng.choices(words, k=length)) for length in lengths]
    texts += [" ".join([texts[2], *tokenizer.all_special_tokens, texts[1]])]
    pairs = zip(texts, reversed(texts), strict=True)
    parts = len(split_columns(classifier.text_column))
    return [pair[:parts] for pair in pairs if all(map(str.strip, pair))]


# ---------------------------------------------------------------- answers

Form = Callable[[dict[str, torch.Tensor]], np.ndarray]  # a batch to logits (texts, classes)


def probabilities(form: Form, batches, texts: int) -> torch.Tensor:
    """(texts, classes), float64, from pairs of (row numbers, batch)."""
    table = [None] * texts
    for rows, batch in batches:
        for row, logits in zip(rows, form(batch), strict=True):
            table[row] = torch.as_tensor(logits)
    return torch.stack(table).double().softmax(-1)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one form says, beside PyTorch."""

    difference: float  # the largest of a probability, over all texts
    same: float  # share of the sample with the same label
    right: np.ndarray | None  # (texts of the sample,) booleans, if their classes are known
    speed: float  # texts per second


def compare(forms: dict[str, Form], classifier, sample: Sample) -> dict[str, Answers]:
    """By the name of each form; the first is PyTorch."""
    texts = len(sample.all)
    batches = list(classifier.batches(classifier.encode(sample.all)))
    shares = {name: probabilities(form, batches, texts) for name, form in forms.items()}
    speed = texts_per_second(forms, batches)
    count = len(sample.real) or texts
    reference, *_ = shares.values()
    found = {}
    for name, of in shares.items():
        predicted = of[:count].argmax(-1)
        found[name] = Answers(
            difference=(of - reference).abs().max().item(),
            same=(predicted == reference[:count].argmax(-1)).double().mean().item(),
            right=None if sample.labels is None else predicted.numpy() == sample.labels,
            speed=speed[name],
        )
    return found


def describe_forms(found: dict[str, Answers], sizes: dict[str, int]) -> list[str]:
    """A table; with classes known also the last form's accuracy minus the one's before it."""
    lines = [f"{'':12}  {'MB':>7}  texts/s  largest difference  same label  accuracy"]
    for name, of in found.items():
        right = "-" if of.right is None else f"{of.right.mean():.4f}"
        lines.append(
            f"{name:12}  {sizes[name] / 1e6:7.1f}  {of.speed:7.1f}  {of.difference:18.1e}  "
            f"{of.same:10.2%}  {right:>8}"
        )
    (before, b), (last, a) = list(found.items())[-2:]
    if a.right is not None:
        by, low, high = paired_difference(a.right, b.right)
        lines.append(
            f"accuracy, {last} - {before}: {by:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"
        )
    return lines


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Accuracy of a - that of b and its 95 % interval; a and b are (texts,) booleans, right or not.

    Half a text is added to each of the four counts (Agresti and Min 2005): without, the interval of
    two that are right on the same texts would have no width.
    """
    texts, only_a, only_b = len(a) + 2, (a & ~b).sum() + 0.5, (b & ~a).sum() + 0.5
    centre = (only_a - only_b) / texts
    spread = Z_95 * np.sqrt((only_a + only_b) / texts - centre**2) / np.sqrt(texts)
    return a.mean() - b.mean(), centre - spread, centre + spread


def texts_per_second(forms: dict[str, Form], batches, rounds: int = 5) -> dict[str, float]:
    """The median of rounds in which each form has the same four batches, one form after the other;
    a round before them warms up."""
    every = -(-len(batches) // 4)
    batches = batches[every // 2 :: every]
    seconds = {name: [] for name in forms}
    for _ in range(1 + rounds):
        for name, form in forms.items():
            begun = time.perf_counter()
            for _, batch in batches:
                form(batch)
            seconds[name].append(time.perf_counter() - begun)
    texts = sum(len(rows) for rows, _ in batches)
    return {name: texts / statistics.median(of[1:]) for name, of in seconds.items()}
