"""Rows on a disk as labelled texts: every row checked, classes named, texts known by their hash.

In: a table; the names of its columns. Out: the numbers of the rows, their labels and hashes; the
texts themselves when asked for, in chunks. Independent of: splits, tokenizers, models.
"""

import collections
import dataclasses
import hashlib
import itertools
import marshal
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from runtime.flags import UserError
from runtime.formats import (
    CHUNK,
    LINES,
    as_strings,
    format_of,
    is_compound,
    read_chunks,
    read_classes,
    read_columns,
    strip_all,
)

# ---------------------------------------------------------------- a table


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that are read anew each time they are asked for. None stay in memory, so a file of a
    gigabyte needs no more of it than a small one."""

    given: str  # what the user wrote, such as "--dataset reviews.csv", for errors
    # By a name for people: files, or rows that the datasets library has on the disk.
    parts: dict[str, Path | Dataset]
    notes: tuple[str, ...] = ()  # lines for the user

    @property
    def source(self) -> str:
        return ", ".join(self.parts)

    @cached_property
    def layouts(self) -> dict[str, dict[str, list[str] | None]]:
        """`read_layout` of each part, once: all rows of a JSON file have to be read for it."""
        return {name: read_layout(part) for name, part in self.parts.items()}

    @property
    def columns(self) -> list[str]:
        """Those of any part, in the order of the first."""
        return list(dict.fromkeys(itertools.chain.from_iterable(self.layouts.values())))

    def classes(self, column: str) -> list[str] | None:
        """The names that the data set itself gives the classes in a column."""
        declared = (layout.get(column) for layout in self.layouts.values())
        return next(filter(None, declared), None)

    @property
    def is_of_lines(self) -> bool:
        files = (part for part in self.parts.values() if isinstance(part, Path))
        return any(format_of(file) == LINES for file in files)

    @property
    def common_columns(self) -> list[str]:
        """Those of all parts, in the order of the first."""
        return [name for name in self.columns if all(name in of for of in self.layouts.values())]

    def chunks(
        self, columns: Iterable[str], others: Iterable[str] = ()
    ) -> Iterator[tuple[str, int, pa.Table]]:
        """(Words for the place, such as "row" or "a.csv row"; rows of the part before; a table of
        those columns as text and of the others as they are stored), in the order of the rows.

        Of several parts the others are text, too: the same column may be of several types.
        """
        columns, others = list(columns), list(others)
        for part, layout in self.layouts.items():
            require_columns(part, layout, columns)
            place = f"{part} row" if len(self.parts) > 1 else "row"
            done = 0
            for chunk in read_part(self.parts[part], [*columns, *others]):
                cells = [
                    text_cells(chunk[name], f"{self.given}: column {name!r}", layout[name])
                    for name in columns
                ]
                as_stored = (lambda cell: cell) if len(self.parts) == 1 else as_strings
                cells += [as_stored(chunk[name]) for name in others]
                yield place, done, pa.table(cells, names=[*columns, *others])
                done += len(chunk)


def read_layout(part: Path | Dataset) -> dict[str, list[str] | None]:
    """Its columns, each with the names of its classes if it is of type ClassLabel, which the
    datasets library also keeps in Parquet."""
    if isinstance(part, Path):
        return dict.fromkeys(read_columns(part)) | read_classes(part)
    return {
        name: strip_all(feature.names) if isinstance(feature, ClassLabel) else None
        for name, feature in part.features.items()
    }


def require_columns(part: str, layout: dict, columns: list[str]) -> None:
    if missing := set(columns) - set(layout):
        raise UserError(
            f"{part}: no column {min(missing)!r}, which other parts of the data have; give one of "
            f"{list_names(layout)}"
        )


def read_part(part: Path | Dataset, columns: list[str]) -> Iterator[pa.Table]:
    if isinstance(part, Path):
        return read_chunks(part, columns)
    return part.select_columns(columns).with_format("arrow").iter(batch_size=CHUNK)


def name_classes(numbers: pa.ChunkedArray, names: list[str], given: str) -> pa.ChunkedArray:
    """Class numbers to names. -1 is none, as in the test splits of GLUE."""
    numbers = pc.if_else(pc.less(numbers, 0), None, numbers)
    if (highest := pc.max(numbers).as_py() or 0) >= len(names):
        raise UserError(f"{given} holds class {highest}, but names {len(names)}; correct the data")
    return pc.take(pa.chunked_array([names], pa.string()), numbers)


def text_cells(
    column: pa.ChunkedArray, given: str, names: list[str] | None = None
) -> pa.ChunkedArray:
    """The cells as text. Raises `UserError` if one of them holds several values, or bytes.

    `names`: the classes, for a column of class numbers.
    """
    if names:
        return name_classes(column, names, given)
    kind, found = column.type, None
    if is_compound(kind):
        found = str(kind)
    elif kind == pa.json_():
        cells = column.cast(pa.string())
        found = next((cell for cell in cells.to_pylist() if cell and cell[0] in "[{"), None)
    if found:
        raise UserError(
            f"{given} holds {found}; give a column with one value per text (several labels per "
            "text are not supported)"
        )
    return as_strings(column)


# ---------------------------------------------------------------- labelled texts


@dataclasses.dataclass(frozen=True)
class LabelledTexts:
    """Rows of a table with a text and a class. The texts are read when asked for."""

    table: Table
    text_columns: tuple[str, ...]  # one, or two for pairs of texts
    names: list[str]  # of the classes
    rows: np.ndarray  # (texts,) numbers of the rows, ascending, from 0 over all parts
    labels: np.ndarray  # (texts,) class numbers
    hashes: np.ndarray  # (texts,) uint64, from `hash_texts`
    left_out: int  # rows of the table that have no text or no label
    content: str  # SHA-256 of all texts of the table, with all their white space
    notes: tuple[str, ...]  # lines for the user: what was changed, left out or guessed

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, which: np.ndarray) -> "LabelledTexts":
        """Those of the given positions, ascending."""
        return dataclasses.replace(
            self, rows=self.rows[which], labels=self.labels[which], hashes=self.hashes[which]
        )

    def chunks(self) -> Iterator[list[tuple[str, ...]]]:
        """The texts, a thousand at a time: tuples of one text, or of two.

        Raises `UserError` if they are no longer those that were labelled.
        """
        return (text_tuples(chunk, self.text_columns) for chunk in self.tables())

    def tables(self, others: Iterable[str] = ()) -> Iterator[pa.Table]:
        """The same as tables, with other columns beside (see `Table.chunks`)."""
        before, done = 0, 0
        for _, _, chunk in self.table.chunks(self.text_columns, others):
            end = done + np.searchsorted(self.rows[done:], before + len(chunk))
            here = chunk.take(self.rows[done:end] - before)
            if not np.array_equal(
                hash_texts(text_tuples(here, self.text_columns)), self.hashes[done:end]
            ):
                break
            before, done = before + len(chunk), end
            if len(here):
                yield here
        if done < len(self):
            raise UserError(f"{self.table.given}: changed while it was read; start again")


def text_tuples(chunk: pa.Table, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Missing texts are empty ones."""
    texts = [pc.fill_null(chunk[name], "").to_pylist() for name in columns]
    return list(zip(*texts, strict=True))


def hash_texts(texts: list[tuple[str, ...]]) -> np.ndarray:
    """(texts,) 64 bits of each: equal for equal texts, and, for a million of them, with a
    probability of 3e-8 for any two others. White space counts as one blank, and at the ends as
    nothing: the next export may write it otherwise, and the text is as well known to a model."""
    words = ("\0".join(" ".join(part.split()) for part in text) for text in texts)
    digests = (hashlib.blake2b(text.encode(), digest_size=8) for text in words)
    return np.frombuffer(b"".join(digest.digest() for digest in digests), "<u8")


def label_rows(
    table: Table,
    text_column: str,
    label_column: str,
    names: list[str] | None = None,
    drop_invalid: bool = False,
    no_labels: str = "",
) -> LabelledTexts:
    """The rows of a table, each checked for a text and a label.

    Args:
        text_column: one column, or two with a comma between them.
        names: the classes, which must include those of the table; default: the table's own.
        drop_invalid: leave out rows without a text or a label, instead of raising `UserError`.
        no_labels: what else to do, for a table without that column.
    """
    if not table.columns:
        raise UserError(f"{table.given}: holds no rows; give a data set that does")
    text_columns = find_text_columns(table, text_column)
    require_column(table, "--label_column", label_column, no_labels)
    if label_column in text_columns:
        raise UserError(f"--label_column {label_column}: is the --text_column too; give another")
    found = scan_rows(table, text_columns, label_column)
    if not len(found.codes):
        raise UserError(f"{table.given}: holds no rows; give a data set that does")
    left_out = leave_out(found, table.given, drop_invalid)
    own = names is None
    if own:
        names = table.classes(label_column) or name_labels(found.written)
    numbers, notes = find_labels(found, names, table.classes(label_column), table.given)
    (rows,) = np.nonzero(found.codes >= 0)
    if found.halves:
        notes.append(f"{table.given}: {found.halves:,} rows have only one of their two texts")
    if own:
        notes += warn_of_similar(names)
        check_classes([names[number] for number in sorted(set(numbers))], len(rows), label_column)
    return LabelledTexts(
        table=table,
        text_columns=text_columns,
        names=names,
        rows=rows,
        labels=np.array(numbers, dtype=np.int64)[found.codes[rows]],
        hashes=found.hashes[rows],
        left_out=len(found.codes) - len(rows),
        content=found.content,
        notes=(*table.notes, *notes, *left_out),
    )


def find_text_columns(table: Table, asked: str) -> tuple[str, ...]:
    columns = split_columns(asked)
    if table.is_of_lines and len(columns) == 1:
        return tuple(table.columns)  # whose one column has no name in the file
    for name in columns:
        require_column(table, "--text_column", name)
    if len(columns) > 2 or len(set(columns)) < len(columns):
        raise UserError(f"--text_column {asked}: give one column, or two with a comma between them")
    return columns


def split_columns(asked: str) -> tuple[str, ...]:
    """One column of texts, or two: a comma always stands between two."""
    return tuple(name.strip() for name in asked.split(",")) if "," in asked else (asked,)


def require_column(table: Table, flag: str, name: str, else_do: str = "") -> None:
    if name not in table.columns:
        raise UserError(
            f"{flag} {name}: no such column in {table.source}; "
            f"give one of {list_names(table.columns)}{else_do}"
        )


def list_names(names: Iterable[str]) -> str:
    """In quotes where a reader would not see what they are; the first 20."""
    said = [*map(quote_if_odd, names)]
    return ", ".join(said[:20]) + f" and {len(said) - 20:,} more" * (len(said) > 20)


def quote_if_odd(name: str) -> str:
    plain = name and name == " ".join(name.split()) and "," not in name
    return name if plain else repr(name)


@dataclasses.dataclass
class Scan:
    """What one pass over a table finds."""

    hashes: np.ndarray  # (rows,)
    content: str  # SHA-256 of the texts
    halves: int  # rows with only one text of a pair
    codes: np.ndarray  # (rows,) which of `written` the label is; -1 without a label or a text
    written: list[str]  # the labels of the other rows, without white space at their ends
    first: list[str]  # the place of the first row of each
    spaced: collections.Counter  # labels as they are, for those that have it
    without: dict[str, list[str]]  # "text" and "label": places of the rows that have none


def scan_rows(table: Table, text_columns: tuple[str, ...], label_column: str) -> Scan:
    hashes, codes, written, first, spaced = [], [], {}, [], collections.Counter()
    content, halves = hashlib.sha256(), 0
    without = {"text": [], "label": []}
    for place, before, chunk in table.chunks([*text_columns, label_column]):
        texts = text_tuples(chunk, text_columns)
        hashes.append(hash_texts(texts))
        content.update(marshal.dumps(texts, 2))  # repr() takes longer; 2: no references
        labels = chunk[label_column].to_pylist()
        for row, (text, label) in enumerate(zip(texts, labels, strict=True), before + 1):
            stripped = (label or "").strip()
            filled = sum(map(bool, map(str.strip, text)))
            empty = not filled
            if empty:
                without["text"].append(f"{place} {row}")
            if not stripped:
                without["label"].append(f"{place} {row}")
            if empty or not stripped:
                codes.append(-1)
                continue
            halves += filled < len(text)
            codes.append(written.setdefault(stripped, len(written)))
            if len(written) > len(first):
                first.append(f"{place} {row}")
            if stripped != label:
                spaced[label] += 1
    return Scan(
        hashes=np.concatenate(hashes) if hashes else np.array([], "<u8"),
        content=content.hexdigest(),
        halves=halves,
        codes=np.array(codes, dtype=np.int64),
        written=list(written),
        first=first,
        spaced=spaced,
        without=without,
    )


def leave_out(found: Scan, given: str, drop_invalid: bool) -> list[str]:
    """A line that says how many rows are left out. Raises `UserError` if that was not asked for."""
    total = len(found.codes)
    said = [
        f"{len(places):,} of {total:,} rows {what} ({'first: ' * (len(places) > 5)}"
        f"{', '.join(places[:5])})"
        for what, places in (
            ("without a text", found.without["text"]),
            ("without a label", found.without["label"]),
        )
        if places
    ]
    if said and not drop_invalid:
        remedy = "correct them, or give --drop_invalid to leave them out"
        raise UserError(*(f"{given}: {line}; {remedy}" for line in said))
    if not found.written:
        raise UserError(f"{given}: no row has a text and a label; give a data set that holds some")
    return [f"{given}: left out: {line}" for line in said]


# ---------------------------------------------------------------- classes


def name_labels(written: list[str]) -> list[str]:
    """The names of the classes whose labels are written so."""
    return sorted(set(whole_numbers(written) or written), key=numeric_order)


def warn_of_similar(names: list[str]) -> list[str]:
    alike = collections.defaultdict(list)
    for name in names:
        alike[unicodedata.normalize("NFKC", name).casefold()].append(name)
    return [
        f"warning: classes {', '.join(map(repr, same))} differ only in case or in the form of "
        "their letters; if they are one class, write them alike"
        for same in alike.values()
        if len(same) > 1
    ]


def find_labels(
    found: Scan, names: list[str], declared: list[str] | None, given: str
) -> tuple[list[int], list[str]]:
    """(The class number of each label of the scan; lines on labels that are not taken as they are
    written). Raises `UserError` for one that is none of the names.

    `declared`: the names that the data set gives its classes.
    """
    labels, notes = found.written, tell_spaces(found)
    if not set(labels) <= set(names) and (whole := whole_numbers(labels)):
        notes.append(f"labels {', '.join(sorted(labels)[:5])} are taken as whole numbers")
        labels = whole
    if are_numbered(names) and (numbered := number_labels(labels, names, declared)):
        pairs = sorted(zip(numbered, labels, strict=True))
        said = ", ".join(f"{label} as {name}" for name, label in pairs[:20])
        if names[0] not in numbered:
            said += f"; none is {names[0]}: do these labels count from 1?"
        notes.append(f"labels are taken by their number: {said}")
        labels = numbered
    if unknown := [code for code, label in enumerate(labels) if label not in names]:
        raise UserError(f"{given}: {describe_foreign(found, unknown, names)}")
    return [names.index(label) for label in labels], notes


def describe_foreign(found: Scan, unknown: list[int], names: list[str]) -> str:
    """The first of the labels that are none of the classes: where it is, and what to give."""
    code, *others = unknown
    label, rows = found.written[code], int((found.codes == code).sum())
    place = f"{rows:,} times, first in {found.first[code]}" if rows > 1 else found.first[code]
    alike = [name for name in names if name.casefold() == label.casefold()]
    hint = f" (is it {alike[0]!r}?)" if alike else ""
    are = f"and {len(others):,} more are" if others else "is"
    remedy = f"give one of {list_names(names)}"
    return f"label {label!r} ({place}) {are} none of the classes{hint}; {remedy}"


def tell_spaces(found: Scan) -> list[str]:
    if not found.spaced:
        return []
    count, example = sum(found.spaced.values()), min(found.spaced)
    return [f"white space at the ends of {count:,} labels is left out, such as of {example!r}"]


def whole_numbers(labels: list[str]) -> list[str] | None:
    """0.0 and 1.0 as 0 and 1: pandas writes a column of integers so if a cell of it is empty.
    None unless all labels are whole numbers, and some are written with a decimal point."""
    if any("." in label for label in labels) and all(map(WHOLE.fullmatch, labels)):
        return [label.partition(".")[0] for label in labels]
    return None


WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0+)?")


def are_numbered(names: list[str]) -> bool:
    """Whether they are those of a model whose training gave its classes no names."""
    return names == [f"LABEL_{number}" for number in range(len(names))]


def number_labels(labels: list[str], names: list[str], declared: list[str] | None) -> list[str]:
    """LABEL_0 for 0, or for the first of as many names that the data set itself gives its classes;
    [] unless all labels are such."""
    numbers = declared if declared and len(declared) == len(names) else map(str, range(len(names)))
    numbered = dict(zip(numbers, names, strict=True))
    return [numbered[label] for label in labels if set(labels) <= set(numbered)]


def numeric_order(name: str) -> tuple:
    """10 after 9; numbers before words."""
    number = re.fullmatch(r"[-+]?\d+(\.\d+)?", name)
    return (not number, float(name) if number else 0.0, name)


def check_classes(names: list[str], rows: int, column: str) -> None:
    if len(names) == 1:
        raise UserError(f"--label_column {column}: only class {names[0]!r}; give two or more")
    if len(names) > rows / 2:
        raise UserError(
            f"--label_column {column}: {len(names):,} different values in {rows:,} rows, such as "
            f"{names[0]!r}; give a column of classes, or more rows (regression is not supported)"
        )


def count_different(texts: LabelledTexts) -> np.ndarray:
    """(classes,) how many different texts each class has."""
    order = np.lexsort((texts.hashes, texts.labels))
    labels, hashes = texts.labels[order], texts.hashes[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (labels[1:] != labels[:-1]) | (hashes[1:] != hashes[:-1])
    return np.bincount(labels[new], minlength=len(texts.names))


def require_every_class(whole: LabelledTexts, side: LabelledTexts, name: str, given: str) -> None:
    """Raises `UserError` if a class of `whole` has no text in `side`, blaming the flag `given`."""
    for number in np.setdiff1d(whole.labels, side.labels):
        rows = int((whole.labels == number).sum())
        raise UserError(
            f"{given}: the {name} split gets none of class {whole.names[number]!r} ({rows:,} rows, "
            f"{count_different(whole)[number]:,} different texts; equal texts stay on one side); "
            "give more texts, or another value"
        )


# ---------------------------------------------------------------- token ids


def column(data: Dataset, name: str) -> pa.ChunkedArray:
    """One column, where it lies: no list of Python objects, which takes several times the room."""
    return data.select_columns([name]).with_format("arrow")[:][name]


def fingerprint(*splits: Dataset) -> str:
    """16 digits of a SHA-256 of all token ids and labels, in order: to recognise the same data."""
    digest = hashlib.sha256()
    for split in splits:
        for table in split.with_format("arrow").iter(batch_size=1000):
            digest.update(pc.list_flatten(table["input_ids"]).to_numpy().tobytes())
            digest.update(table["length"].to_numpy().tobytes())
            digest.update(table["labels"].to_numpy().tobytes())
            if "soft" in table.column_names:
                digest.update(pc.list_flatten(table["soft"]).to_numpy().tobytes())
    return digest.hexdigest()[:16]
