"""Labelled text to padded batches: splits, token ids, and the batch plan that decides every step.

    python data.py --dataset reviews.csv      # a look before a training, with the flags of train.py

In: a data set's name, a tokenizer, a seed. Out: tokenized splits, and loaders over them.
Independent of: weights, optimizers.
"""

import sys
from pathlib import Path

if sys.flags.safe_path:  # python -P, PYTHONSAFEPATH: the folder of this file is not searched
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from config import LookConfig
from runtime.flags import UserError, parse, parse_or_exit

if __name__ == "__main__":
    GIVEN = parse_or_exit(LookConfig)  # before the imports below, which take seconds

import dataclasses
import hashlib
import json
import math
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from runtime.cache import cached_rows
from runtime.draw import sample, split_validation
from runtime.heads import kept_classes
from runtime.hub import fetch_files
from runtime.notes import (
    describe_absent,
    describe_classes,
    describe_cut,
    describe_draw,
    describe_largest,
    describe_overlap,
    describe_repeats,
    describe_unknown,
)
from runtime.processes import run_command
from runtime.seen import FILES, SETTINGS, Seen, read_seen
from runtime.soft import describe_soft, read_soft_labels
from runtime.splits import read_training, read_validation, unused_files
from runtime.tables import LabelledTexts, column, label_rows
from runtime.tokenizer import clear_last_call, describe_pairs, require_pairs, set_truncation_side

# ---------------------------------------------------------------- splits


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a run learns from and what chooses its best step, as token ids."""

    train: Dataset
    validation: Dataset
    names: list[str]  # of the classes
    seen: Seen  # by the model that comes of it, for best/
    notes: list[str]  # lines for the user: what was read, drawn and left out


def load_splits(config, tokenizer) -> Splits:
    train, validation, notes = choose_texts(config)
    if config.soft_labels:  # before the long work
        soft = read_soft_labels(train, config.soft_labels)
        notes += describe_soft(soft, train, validation, config.soft_labels)
    ids = [
        tokenize(texts, tokenizer, config.max_length, config.truncation)
        for texts in (train, validation)
    ]
    if config.soft_labels:
        ids[0] = ids[0].add_column("soft", list(soft))
    notes += describe_pairs(train.text_columns, tokenizer)
    pairs = len(train.text_columns) == 2
    notes += [describe_cut(*ids, config.max_length, pairs), describe_largest(ids[1], train.names)]
    counts = (column(ids[0], name).to_numpy() for name in ("unknown", "length"))
    notes += describe_unknown(*counts, f"the training texts (cut at {config.max_length})")
    start, hashes = what_model_has_seen(config), (train.hashes, validation.hashes)
    seen = start.and_then(*hashes, train.text_columns)
    return Splits(*ids, train.names, seen, notes)


def choose_texts(config) -> tuple[LabelledTexts, LabelledTexts, list[str]]:
    """(The texts to train on, those to validate on, lines for the user.)"""
    columns = config.text_column, config.label_column
    texts = label_rows(
        read_training(config), *columns, kept_classes(config), drop_invalid=config.drop_invalid
    )
    notes = [*texts.notes, describe_classes(texts), describe_repeats(texts)]
    start = what_model_has_seen(config)
    if start.text_column and (why := start.why_unknown(texts.text_columns)):
        notes += [f"whether --model {config.model} has seen these texts is not known: {why}"]
    table = read_validation(config)
    if table is None:
        train, validation = split_validation(texts, start, config)
        notes += describe_draw(texts, validation, start.validation, config.validation_seed)
    else:
        train = texts
        validation = label_rows(table, *columns, texts.names, config.drop_invalid)
        notes += [*validation.notes, describe_overlap(train, validation, start.training)]
        notes += describe_absent(texts, validation, f"in {table.given}")
    notes += unused_files(config.dataset, train.table, validation.table)
    sides = []
    for name, side in ("train", train), ("validation", validation):
        limit = getattr(config, f"max_{name}_samples")
        sides.append(sample(side, limit, config.validation_seed))
        notes += describe_absent(
            side, sides[-1], f"among the {name} texts (--max_{name}_samples {limit})"
        )
    return *sides, notes


def what_model_has_seen(config) -> Seen:
    return read_seen(fetch_files(config.model, config.revision, SETTINGS, *FILES))


# ---------------------------------------------------------------- text -> token ids


def tokenize(texts: LabelledTexts, tokenizer, max_length: int, truncation: str) -> Dataset:
    """Columns `input_ids` (at most `max_length` of them), `length`, `labels`, `cut`: whether there
    were more, and `unknown`: how many are of words that the tokenizer does not know; for pairs of
    texts also `token_type_ids`, if the model has them.

    They are cached on the disk, under what they depend on: the texts themselves, not the name or
    date of a file. The key is computed here, because that of the `datasets` library includes the
    tokenizer's mutable state, and so would differ from run to run.
    """
    set_truncation_side(tokenizer, truncation)  # also if the ids are there: best/ will hold it
    clear_last_call(tokenizer)  # so that the key does not depend on earlier calls
    state = type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str()
    about = *state, tokenizer.model_input_names, len(texts.text_columns), max_length, truncation
    about = *about, "cut", "unknown"  # since these columns are there
    key = hashlib.sha256(repr(about).encode())
    key.update(texts.content.encode())  # not the hashes, to which white space is all the same
    key.update(texts.rows.tobytes())
    key.update(texts.labels.tobytes())

    def compute():
        done = 0
        for chunk in texts.chunks():
            columns = encode(chunk, tokenizer, max_length, truncation)
            labels = texts.labels[done : done + len(chunk)]
            kinds = {name: pa.list_(pa.int32()) for name in columns}
            kinds |= {"length": pa.int64(), "cut": pa.bool_(), "unknown": pa.int64()}
            columns = {name: pa.array(rows, kinds[name]) for name, rows in columns.items()}
            yield pa.table(columns | {"labels": labels})
            done += len(chunk)

    return cached_rows("token_ids", key.hexdigest()[:32], compute)


UNCUT = 2**31  # a max_length beyond any text


def encode(texts: list[tuple[str, ...]], tokenizer, max_length: int, truncation: str) -> dict:
    """`input_ids`, `length`, `cut` and `unknown` of each text or pair (see `tokenize`); for pairs
    `token_type_ids`, if the model has them."""
    set_truncation_side(tokenizer, truncation)
    cut_later = truncation == "head_tail"  # no tokenizer cuts in the middle
    limit = {} if cut_later else {"truncation": True, "max_length": max_length}
    first, *second = map(list, zip(*texts, strict=True))
    if second:
        require_pairs(tokenizer, truncation)
    types = bool(second) and "token_type_ids" in tokenizer.model_input_names
    encoded = tokenizer(
        first,
        *second,
        return_attention_mask=False,
        return_token_type_ids=types,
        verbose=False,
        **limit,
    )
    clear_last_call(tokenizer)  # so that best/ does not hold the truncation of this call
    ids = [cut_middle(row, max_length) for row in encoded["input_ids"]]
    if not all(ids):  # GPT-2 adds no token, so that a text of a zero-width space has none
        nothing = tokenizer.pad_token_id if tokenizer.unk_token is None else tokenizer.unk_token_id
        ids = [row or [nothing] for row in ids]
    cut = [
        bool(each.overflowing) or len(each) > max_length  # of the tokenizer's cut, and of ours
        for each in encoded.encodings
    ]
    ends = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
    known = tokenizer.unk_token_id in ends  # GPT-2's, which knows every byte
    unknown = [0 if known else row.count(tokenizer.unk_token_id) for row in ids]
    lengths = list(map(len, ids))
    return {**encoded, "input_ids": ids, "length": lengths, "cut": cut, "unknown": unknown}


def cut_middle(ids: list[int], max_length: int) -> list[int]:
    """The ids, if too many, without their middle: of 512, [CLS] + 128 and 382 + [SEP] are kept (Sun
    et al., arXiv:1905.05583)."""
    head = max_length // 4 + 1
    tail = max_length - head
    return ids if len(ids) <= max_length else ids[:head] + ids[len(ids) - tail :]


# ---------------------------------------------------------------- the batch plan


def plan_epoch(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, window: int
) -> list[np.ndarray]:
    """The optimizer batches of one epoch (from 0), as arrays of row numbers.

    It depends on its arguments alone, so any process can compute it at any time.

    Shuffle; cut into windows of `window` batches; sort each by length and cut it into batches;
    shuffle the batches. A batch then holds texts of similar length, so little of it is padding
    (IMDb at 512 tokens, batch 16: 1.6 % instead of 47.5 %), and every epoch mixes the texts anew.
    Every row comes exactly once, and there is no small last batch: sizes differ by at most one.
    With a window of one batch this is plain shuffling.

    Args:
        lengths: (rows,) tokens of each text.
        batch_size: examples per batch over all processes and accumulation steps, at most.
        window: number of batches within which texts are sorted.
    """
    rng = np.random.default_rng((seed, epoch))
    batches = np.array_split(rng.permutation(len(lengths)), -(-len(lengths) // batch_size))
    plan = []
    for start in range(0, len(batches), window):
        unsorted = batches[start : start + window]
        rows = np.concatenate(unsorted)
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        plan += np.array_split(rows, len(unsorted))
    return [plan[index] for index in rng.permutation(len(plan))]


class BatchPlan:
    """`plan[step]` is the optimizer batch of that step (from 1), in whichever epoch it falls.

    To resume after step k is to ask for the batches from k + 1 on; nothing is skipped or re-seeded.

    Args:
        passes: forward passes per process and step.
        max_tokens: instead of `passes`, as few as keep each at so many tokens, padding included.
    """

    def __init__(
        self,
        lengths,
        batch_size: int,
        seed: int,
        strategy: str = "group_by_length",
        processes: int = 1,
        passes: int = 1,
        max_tokens: int | None = None,
    ):
        self.lengths = np.asarray(lengths)
        if max_tokens and max_tokens < (longest := self.lengths.max()):
            raise UserError(
                f"--max_tokens_per_forward {max_tokens}: the longest training text has {longest} "
                "tokens; give as many, or more"
            )
        self.batch_size = batch_size
        self.processes, self.fixed_passes, self.max_tokens = processes, passes, max_tokens
        self.steps_per_epoch = -(-len(self.lengths) // batch_size)
        window = {"group_by_length": 50, "random": 1}[strategy]
        # Two epochs are cached: the steps between two scalars may lie in both.
        self.batches_of = lru_cache(maxsize=2)(
            lambda epoch: plan_epoch(self.lengths, batch_size, seed, epoch, window)
        )

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        return self.batches_of(epoch)[position]

    def deal(self, step: int) -> list[np.ndarray]:
        """The batch, cut into processes x passes parts; a part may be empty.

        With two processes and two passes, process 0 computes parts 0 and 2, process 1 parts 1 and
        3. A batch is sorted by length, so texts that are computed at the same time are similar in
        length, and no process waits for another. All processes make equally many passes.
        """
        batch, passes, most = self[step], self.fixed_passes, math.inf
        if self.max_tokens:
            most = self.max_tokens
            passes = max(1, math.ceil(self.lengths[batch].sum() / (most * self.processes)))
        parts = np.array_split(batch, passes * self.processes)
        while passes < len(batch) and max(map(self.padded_tokens, parts)) > most:
            passes += 1
            parts = np.array_split(batch, passes * self.processes)
        return parts

    def passes(self, step: int) -> int:
        """Forward passes of each process."""
        return len(self.deal(step)) // self.processes

    def padded_tokens(self, part: np.ndarray) -> int:
        return len(part) * int(self.lengths[part].max(initial=0))

    def count(self, steps: range) -> dict[str, int]:
        """Texts, tokens, and tokens with padding in `steps`."""
        dealt = [part for step in steps for part in self.deal(step)]
        return {
            "texts": sum(map(len, dealt)),
            "tokens": int(sum(self.lengths[part].sum() for part in dealt)),
            "padded_tokens": sum(map(self.padded_tokens, dealt)),
        }


# ---------------------------------------------------------------- padded batches


@dataclasses.dataclass
class Collator(DataCollatorWithPadding):
    """Rows (`input_ids`, `labels`) to tensors: (rows, longest) token ids and (rows,) labels; with
    --soft_labels (rows, classes), which torch's cross-entropy takes just as well.

    Drops an `attention_mask` of ones: it would cost a device sync per forward pass (`mask.all()`)
    and rule out the flash kernel. A process without texts in a step must still exchange gradients:
    an empty list becomes one text of label -100, which cross-entropy ignores.
    """

    return_tensors: str | None = None  # for "pt", transformers 5.23 visits each token in Python

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        idle = {"input_ids": [self.tokenizer.pad_token_id], "labels": -100}
        padded = super().__call__(rows or [idle])
        batch = {name: torch.from_numpy(np.array(values)) for name, values in padded.items()}
        if "soft" in batch:
            batch["labels"] = batch.pop("soft").float()
        if batch["attention_mask"].all():
            del batch["attention_mask"]
        return batch


def make_loader(data: Dataset, batches, collator) -> DataLoader:
    """A loader of the given lists of row numbers, in their order.

    It has a generator of its own: without one, it would draw its seed from torch's global
    generator, and an evaluation would change every dropout mask after it (pytorch#122697).
    """
    columns = [name for name in data.column_names if name not in ("length", "cut", "unknown")]
    return DataLoader(
        data.select_columns(columns),
        batch_sampler=batches,
        collate_fn=collator,
        generator=torch.Generator(),
    )


def train_loader(
    data: Dataset, plan: BatchPlan, steps: range, tokenizer, accelerator
) -> DataLoader:
    """This process's part of those steps: `plan.passes(step)` batches per step."""
    own = slice(accelerator.process_index, None, accelerator.num_processes)
    batches = (part.tolist() for step in steps for part in plan.deal(step)[own])
    return make_loader(data, batches, Collator(tokenizer))


# On a CPU more do not stay in its caches: 64 reviews of 512 tokens at a time took a third longer
# than 16 (docs/speed.md).
EVAL_TOKENS = {"cpu": 8192}


def eval_batches(
    data: Dataset, batch_size: int, tokenizer, accelerator, max_tokens: int | None = None
):
    """This process's part of all rows: pairs of (row numbers, batch), of at most `batch_size`
    texts, and of so many that they have at most `max_tokens` tokens, padding included, nor more
    than `EVAL_TOKENS`.

    Longest first: a batch too large for the memory fails at once. All processes get equally many
    batches, because they check together before each whether to stop; a process's last one may be
    empty.
    """
    process, processes = accelerator.process_index, accelerator.num_processes
    most = min(max_tokens or math.inf, EVAL_TOKENS.get(accelerator.device.type, math.inf))
    lengths = column(data, "length").to_numpy()
    longest_first = np.argsort(-lengths, kind="stable")
    rows, at = [], 0
    while at < len(data):
        fitting = max(1, int(min(batch_size, most / lengths[longest_first[at]])))
        together = longest_first[at : at + fitting * processes]
        rows.append(together[process::processes].tolist())
        at += len(together)
    return zip(rows, make_loader(data, rows, Collator(tokenizer)), strict=True)


# ---------------------------------------------------------------- the command


def main(argv=None) -> None:
    look_at(parse(LookConfig, argv))


def look_at(config: LookConfig) -> None:
    """Print, and write as JSON, what a training would read. Rows that it would refuse are left out,
    and counted."""
    # Not at the top: train.py does not need them.
    from model import load_tokenizer
    from report.files import check_look, keep_out_of_data
    from report.look import examine, show_look

    if config.json:
        check_look(Path(config.json), config.overwrite)
        keep_out_of_data({"json": config.json}, (config.dataset, config.validation_dataset))
    train, validation, notes = choose_texts(dataclasses.replace(config, drop_invalid=True))
    tokenizer = load_tokenizer(config.model, config.revision, config.max_length)
    unknown, of_train = count_tokens(train, tokenizer, config.truncation)
    lengths = {
        "train": of_train,
        "validation": count_tokens(validation, tokenizer, config.truncation)[1],
    }
    notes += describe_pairs(train.text_columns, tokenizer)
    notes += describe_unknown(unknown, of_train, "the training texts (not cut)")
    look = examine(train, validation, lengths, config.max_length)
    look["unknown_tokens"] = float(unknown.sum() / of_train.sum())
    if config.json:
        Path(config.json).write_text(json.dumps(look, indent=1) + "\n", encoding="utf-8")
    for line in notes:
        print(line)
    if look["left_out"] and not config.drop_invalid:
        print("train.py refuses rows without a text or a label, unless --drop_invalid is given")
    show_look(look)


def count_tokens(texts: LabelledTexts, tokenizer, truncation: str) -> np.ndarray:
    """(2, texts): unknown tokens, and all of them, not cut, with those that the tokenizer adds."""
    encoded = (encode(chunk, tokenizer, UNCUT, truncation) for chunk in texts.chunks())
    return np.concatenate([[ids["unknown"], ids["length"]] for ids in encoded], axis=1)


if __name__ == "__main__":
    run_command(lambda: look_at(GIVEN))
