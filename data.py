"""Labelled text to padded batches: splits, token ids, and the batch plan that decides every step.

In: a data set's name, a tokenizer, a seed. Out: tokenised splits, and loaders over them.
Refuses to know: weights, optimizers, devices, time.
"""

import hashlib
import itertools
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset, List, Value, disable_progress_bars, load_dataset, logging
from datasets import config as caching
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher
from huggingface_hub import constants, get_session, is_offline_mode
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from config import UserError

if not sys.stderr.isatty():
    disable_progress_bars()
logging.set_verbosity(logging.CRITICAL)  # it logs what it then raises, and we say it once

FORMATS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


# ---------------------------------------------------------------- text -> labelled split


def locate(name: str, flag: str, revision: str | None = None) -> Path | None:
    """The local path that `name` means, or None for a name on the Hub.

    A Hub name is probed for first, because the Hub's own code retries for 23 s before it gives up.
    """
    path = Path(name)
    if os.path.exists(path):
        if revision:
            raise UserError(
                f"{flag} {name}: a local path has no revision {revision}; give one or the other"
            )
        return path
    if path.suffix in FORMATS or path.is_absolute() or name.startswith((".", "~")):
        raise UserError(f"{flag} {name}: no such file or folder; check the path")
    if name.count("/") > 1 or not name.strip("/"):
        raise UserError(f"{flag} {name}: no such folder, nor a Hub name (OWNER/NAME); check it")
    if not is_offline_mode():
        try:
            probe(constants.ENDPOINT)
        except Exception as error:  # whatever the HTTP library of the day raises for "no network"
            raise UserError(
                f"{flag} {name}: {constants.ENDPOINT} does not answer ({type(error).__name__}); "
                "give a local path, or set HF_HUB_OFFLINE=1 if it was downloaded before"
            ) from None
    return None


@lru_cache  # one round trip a start, not one for each name
def probe(endpoint: str) -> None:
    get_session().head(endpoint, timeout=10)


def read_table(
    name: str,
    split: str,
    config_name: str | None = None,
    revision: str | None = None,
    flag="--dataset",
    choices="--dataset_config_name and --train_split",
) -> Dataset:
    """One split, as it stands. A file is whichever split is asked for; all else has its own.

    `choices`: the flags that an error names as what else may be wrong.
    """
    path = locate(name, flag, revision)
    options = {"split": split, "name": config_name, "revision": revision}
    source = name if path is None else str(path)
    if path and path.is_file():
        if path.suffix not in FORMATS:
            raise UserError(f"{flag} {name}: unknown kind of file; give {', '.join(FORMATS)}")
        if config_name:
            raise UserError(f"{flag} {name}: a file has no configuration {config_name}; give none")
        if set("[+") & set(split):
            raise UserError(f"{flag} {name}: a file has no split {split}; give a plain name for it")
        source = FORMATS[path.suffix]
        options = {"split": split, "data_files": {split: str(path)}}
    has_csv = source == "csv" or bool(path and path.is_dir() and any(path.rglob("*.csv")))
    if has_csv:
        options["keep_default_na"] = False  # or pandas reads the texts "null" and "NA" as missing
    try:
        table = load_dataset(source, **options)
    except (DatasetsError, OSError, ValueError, StopIteration) as error:
        # A JSON lines file of no line makes it run out of an iterator, and say nothing.
        reason = " ".join(str(error.__cause__ or error).split()) or "holds no rows"
        if path is None:
            remedy = f"check the name{offline_hint()}, {choices}"
        else:
            remedy = "mend the file" if path.is_file() else f"check its files, {choices}"
            if path.is_dir() and not any(file.suffix in FORMATS for file in path.rglob("*")):
                reason = f"holds no {', '.join(FORMATS)} file"
        raise UserError(f"{flag} {name}: {reason.rstrip('.!')}; {remedy}") from None
    if has_csv and "__index_level_0__" in table.column_names:
        # pandas takes the first of them for row names, and every column for its right neighbour.
        raise UserError(
            f"{flag} {name}: rows hold more values than the header has names; "
            "put texts that hold commas in quotes"
        )
    return table


def offline_hint() -> str:
    return " (or unset HF_HUB_OFFLINE to download it)" if is_offline_mode() else ""


def read_labelled(
    table: Dataset, text_column: str, label_column: str, names: list[str] | None = None
) -> Dataset:
    """Columns `text` (string) and `labels` (ClassLabel), every row checked.

    Args:
        table: any columns; labels are class labels, integers, booleans or strings.
        names: those of a trained model, which must include the table's; default: the table's.
    """
    for flag, wanted in (("--text_column", text_column), ("--label_column", label_column)):
        if wanted not in table.column_names:
            raise UserError(
                f"{flag} {wanted}: no such column; give one of {', '.join(table.column_names)}"
            )
    if text_column == label_column:
        raise UserError(f"--label_column {label_column}: is the --text_column too; give another")
    if not len(table):
        raise UserError("the data set holds no rows; give one that does")
    check_texts(table, text_column)
    own, values, which = read_labels(table, label_column)
    if names is None and len(set(values)) < 2:
        raise UserError(
            f"--label_column {label_column}: only class {values[0]!r}; give two or more"
        )
    names = own if names is None else names
    if unknown := sorted(set(values) - set(names)):
        raise UserError(
            f"label {unknown[0]!r} is unknown to the model; give one of {', '.join(names)}"
        )
    labels = np.array([names.index(value) for value in values])[which]
    columns = {"text": column(table, text_column), "labels": labels}
    identity = Hasher.hash((table._fingerprint, text_column, label_column, names))
    result = Dataset(pa.table(columns), fingerprint=identity)
    return result.cast_column("labels", ClassLabel(names=names))


def read_labels(table: Dataset, name: str) -> tuple[list[str], list[str], np.ndarray]:
    """The names of all classes; those that occur; and (rows,) which of these each row has.

    Raises `UserError` for a column that holds no classes, or a row without one.
    """
    feature = table.features[name]
    kind = "lists" if isinstance(feature, List) else getattr(feature, "dtype", "mixed values")
    classes = ("int", "uint", "bool", "string", "large_string", "timestamp", "date", "null")
    if not isinstance(feature, ClassLabel | Value) or not kind.startswith(classes):
        raise UserError(
            f"--label_column {name}: holds {kind}; give one class label a text, as integer "
            "or string (regression and several labels a text are not supported)"
        )
    encoded = pc.dictionary_encode(column(table, name), null_encoding="encode").combine_chunks()
    values, which = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    for number, label in enumerate(values):
        unnamed = label == -1 and isinstance(feature, ClassLabel)  # -1 / 1 are classes elsewhere
        if label is None or not str(label).strip() or unnamed:
            raise UserError(
                f"--label_column {name}: row {np.argmax(which == number)} of {len(table)} "
                f"has no label ({label!r}); remove such rows"
            )
    if isinstance(feature, ClassLabel):
        return feature.names, [feature.names[label] for label in values], which
    return [str(label) for label in sorted(values)], [str(label) for label in values], which


def column(data: Dataset, name: str) -> pa.ChunkedArray:
    """One column, where it lies: no list of Python objects, which takes several times the room."""
    return data.select_columns([name]).with_format("arrow")[:][name]


def check_texts(table: Dataset, name: str) -> None:
    """Raises `UserError` at the first value that is no text or an empty one."""
    texts = column(table, name)
    if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
        empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0).fill_null(True)
    else:  # no text, or values of several kinds
        empty = pa.array(not (isinstance(text, str) and text.strip()) for text in table[name])
    row = pc.index(empty, True).as_py()
    if row >= 0:
        text = table[name][row]
        what = "is empty" if text is None or isinstance(text, str) else f"is {text!r}, not text"
        raise UserError(f"row {row} of column {name!r} {what}; remove or fill such rows")


# ---------------------------------------------------------------- rows of a split


def stratified_part(labels, size: int, seed: int, texts=None) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (the part, the rest), ascending; each class has its share to within one row.

    Equal texts stay on one side: 97 of IMDb's training reviews stand there twice, and a copy in
    the validation split would be scored from memory. A text goes to the part if all its copies
    fit into their classes' quotas, so sizes are exact wherever unique texts can fill the quotas.

    Args:
        texts: a hashable for each row. Those of one hash count as equal; that Python salts hashes
            does no harm, for nothing else is made of them.
    """
    labels = np.asarray(labels)
    counts = np.bincount(labels)
    exact = counts * size / len(labels)
    quota = np.floor(exact).astype(int)
    largest_remainders = np.argsort(-(exact - quota), kind="stable")
    quota[largest_remainders[: size - quota.sum()]] += 1
    quota = quota.tolist()

    copies = {}  # of a hash, the rows: for most of them, one
    for row, text in enumerate(map(hash, texts) if texts is not None else range(len(labels))):
        copies.setdefault(text, []).append(row)
    groups, class_of = list(copies.values()), labels.tolist()
    part = np.zeros(len(labels), dtype=bool)
    for index in np.random.default_rng(seed).permutation(len(groups)):
        need = [class_of[row] for row in groups[index]]
        if all(quota[label] >= need.count(label) for label in set(need)):
            part[groups[index]] = True
            for label in need:
                quota[label] -= 1
    return np.flatnonzero(part), np.flatnonzero(~part)


def split_validation(data: Dataset, config) -> tuple[Dataset, Dataset]:
    """(train, validation) of a labelled split; IMDb gives the published 17,500 and 7,500."""
    seed, size = config.validation_seed, config.validation_size
    labels, names = column(data, "labels").to_numpy(), data.features["labels"].names
    texts = (text for chunk in column(data, "text").chunks for text in chunk.to_pylist())
    validation, train = stratified_part(labels, round(len(data) * size), seed, texts)
    parts = []
    for side, rows in (("train", train), ("validation", validation)):
        limit = getattr(config, f"max_{side}_samples")
        whole = data.select(rows)
        part = sample(whole, limit, seed)
        for given, kept in (
            (f"--validation_size {size}", whole),
            (f"--max_{side}_samples {limit}", part),
        ):
            if len(missing := np.setdiff1d(labels, column(kept, "labels"))):
                raise UserError(
                    f"{given}: of {len(data)} texts the {side} split gets none of class "
                    f"{names[missing[0]]!r}; give more texts, or another value"
                )
        parts.append(part)
    return tuple(parts)


def sample(data: Dataset, size: int | None, seed: int) -> Dataset:
    """A stratified part of so many rows; all of them for None or where there are fewer."""
    if size is None or size >= len(data):
        return data
    return data.select(stratified_part(column(data, "labels").to_numpy(), size, seed)[0])


# ---------------------------------------------------------------- text -> token ids


def tokenize(data: Dataset, tokenizer, max_length: int, truncation: str = "head") -> Dataset:
    """Columns `input_ids` (at most `max_length` of them), `length`, and `labels` if there were any.

    Cached on disk under a fingerprint of (texts, tokenizer, max_length, truncation). Ours, because
    the one that datasets derives hashes the tokenizer's mutable state and misses from run to run.
    `head_tail`: of 512, 128 tokens of the start and 382 of the end (Sun et al., arXiv:1905.05583).
    """
    tokenizer.truncation_side = "left" if truncation == "tail" else "right"
    cut = {} if truncation == "head_tail" else {"truncation": True, "max_length": max_length}

    def encode(batch):
        ids = tokenizer(batch["text"], return_attention_mask=False, verbose=False, **cut)[
            "input_ids"
        ]
        head = max_length // 4 + 1  # the special tokens at both ends stay where they are
        ids = [
            row if len(row) <= max_length else row[:head] + row[head - max_length :] for row in ids
        ]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    forget_calls(tokenizer)  # the state of the last call is no part of its identity
    identity = tokenizer.backend_tokenizer.to_str()
    key = Hasher.hash(
        (data._fingerprint, type(tokenizer).__name__, identity, max_length, truncation)
    )
    folder = Path(caching.HF_DATASETS_CACHE) / "token_ids"
    folder.mkdir(parents=True, exist_ok=True)
    ids = data.map(
        encode,
        batched=True,
        remove_columns="text",
        new_fingerprint=key,
        # By name: of a table in memory, `map` would keep the result there and cache nothing.
        cache_file_name=str(folder / f"{key}.arrow"),
    )
    forget_calls(tokenizer)  # nor of what is saved in best/, which then told a warm cache from none
    return ids


def forget_calls(tokenizer) -> None:
    """A fast tokenizer keeps, and saves, the truncation and padding of the call before."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def fingerprint(*splits: Dataset) -> str:
    """A SHA-256 (16 digits of it) of all token ids and labels, in order, to know data again."""
    digest = hashlib.sha256()
    for split in splits:
        for table in split.with_format("arrow").iter(batch_size=1000):
            digest.update(pc.list_flatten(table["input_ids"]).to_numpy().tobytes())
            digest.update(table["length"].to_numpy().tobytes())
            digest.update(table["labels"].to_numpy().tobytes())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------- the batch plan


def plan_epoch(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, window: int
) -> list[np.ndarray]:
    """The optimizer batches of one epoch as arrays of row numbers: a pure function.

    Shuffle; cut into windows of `window` batches; sort each by length, cut it into batches;
    shuffle the batches. Texts of like length meet, so that little is padding (IMDb at 512 tokens:
    1.6 % against 47.5 %), and yet every epoch mixes anew. Every row comes exactly once, and there
    is no ragged last batch: sizes differ by at most one. A window of one batch is plain shuffling.

    Args:
        lengths: (rows,) tokens of each text.
        batch_size: examples of a batch over all processes and accumulation steps, at most.
        window: batches within which texts are sorted.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    batches = -(-len(lengths) // batch_size)
    small, larger = divmod(len(lengths), batches)
    ends = np.cumsum(np.full(batches, small) + (np.arange(batches) < larger))
    starts = np.concatenate([[0], ends[:-1]])
    # By window, then by length: one sort for all windows, in which the order of equals stands.
    windows = np.repeat(np.arange(batches) // window, ends - starts)
    order = order[np.argsort(windows * (lengths.max() + 1) + lengths[order], kind="stable")]
    shuffled = rng.permutation(batches)
    return [order[start:end] for start, end in zip(starts[shuffled], ends[shuffled], strict=True)]


class BatchPlan:
    """`plan[step]` is the optimizer batch of that step (from 0), in whichever epoch it falls.

    Resuming at step k is asking for the batches after k; nothing is skipped, wrapped or re-seeded.
    """

    def __init__(self, lengths, batch_size: int, seed: int, strategy: str = "group_by_length"):
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.window = {"group_by_length": 50, "random": 1}[strategy]
        self.steps_per_epoch = -(-len(self.lengths) // batch_size)
        self.epoch = lru_cache(maxsize=2)(self.epoch)  # of this plan: it goes when the plan goes

    def epoch(self, epoch: int) -> list[np.ndarray]:
        return plan_epoch(self.lengths, self.batch_size, self.seed, epoch, self.window)

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch)[position]

    def padded_tokens(self, step: int, parts: int) -> int:
        """Tokens computed on in that step, padding included, when it is dealt in so many parts."""
        return sum(
            len(part) * self.lengths[part].max() for part in deal(self[step], parts) if len(part)
        )


def deal(batch: np.ndarray, parts: int) -> list[np.ndarray]:
    """One optimizer batch over processes x accumulation steps; a part may be empty.

    Neighbours in the list are alike in length, so they go to the processes of one accumulation
    step: none waits for another's long texts.
    """
    return np.array_split(batch, parts)


# ---------------------------------------------------------------- padded batches


@dataclass
class Collator(DataCollatorWithPadding):
    """Rows (`input_ids`, `labels`) to tensors of (rows, longest) token ids and (rows,) labels.

    Without `attention_mask` where nothing is padded: the mask costs a device sync a forward pass
    (`mask.all()`) and rules out the flash kernel. No row at all (a process for which a step has no
    example must still take part in its all-reduce) becomes one text of label -100, which
    cross-entropy ignores.
    """

    return_tensors: str | None = None  # for others, transformers 5.23 visits each token in Python

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        idle = {"input_ids": [self.tokenizer.pad_token_id], "labels": -100}
        padded = super().__call__(rows or [idle])
        batch = {name: torch.from_numpy(np.array(values)) for name, values in padded.items()}
        if batch["attention_mask"].all():
            del batch["attention_mask"]
        return batch


def make_loader(data: Dataset, batches, collator) -> DataLoader:
    """A loader of the given lists of row numbers, in their order.

    With a generator of its own: a loader without one draws its seed from the global generator, and
    so an evaluation would shift every dropout mask after it (pytorch#122697).
    """
    columns = [name for name in ("input_ids", "labels") if name in data.column_names]
    return DataLoader(
        data.select_columns(columns),
        batch_sampler=batches,
        collate_fn=collator,
        generator=torch.Generator(),
    )


def train_loader(
    data, plan, steps: range, accumulation: int, process: int, processes: int, collator
):
    """This process's share of those steps: `accumulation` batches a step."""
    parts = (deal(plan[step], accumulation * processes)[process::processes] for step in steps)
    batches = (part.tolist() for part in itertools.chain.from_iterable(parts))
    return make_loader(data, batches, collator)


def eval_loader(data, batch_size: int, process: int, processes: int, collator):
    """This process's share of all rows, and the numbers of those rows, batch by batch.

    Longest first: what does not fit into memory fails at once, not at the end. All processes have
    equally many batches, so that they can agree on something before each; the last may be empty.
    """
    order = np.argsort(-column(data, "length").to_numpy(), kind="stable")[process::processes]
    most = -(-len(data) // processes)
    batches = [order[at : at + batch_size].tolist() for at in range(0, most, batch_size)]
    return make_loader(data, batches, collator), batches
