"""One data file as Arrow tables of a thousand rows, and such tables as a file.

In: the path of a CSV, JSON, Parquet, Arrow or plain text file, also gzipped. Out: its columns and
rows, exactly as they are written there; a file that is written whole or not at all.
Independent of: what the columns mean, splits, the Hub.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.flags import UserError

CHUNK = 1_000  # rows of a table; a tokenizer takes 1.3 GB more for 10,000 texts of 1,000 characters
BLOCK = 2**20  # characters of a JSON array that are read at once
LONGEST = 2**26  # characters of one element of a JSON array
csv.field_size_limit(sys.maxsize)  # or a field of more than 131,072 characters is an error

DELIMITERS = {".csv": ",\t;", ".tsv": "\t,;"}  # the first is the usual one
JSON = (".jsonl", ".ndjson", ".json")
ARROW = (".parquet", ".arrow")
FORMATS = (*DELIMITERS, *JSON, *ARROW)
LINES = ".txt"  # a text on each line; where it is named alone: in a folder it is rather a readme
OUTPUT_FORMATS = (*DELIMITERS, ".jsonl", ".ndjson", ".parquet")


def format_of(path: Path) -> str | None:
    """The one of `FORMATS` or `LINES` that the name says, in any case of letters and also before
    .gz."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in (*FORMATS, LINES) if name.endswith(ending)), None)


def stem_of(path: Path) -> str:
    """The name without .csv, .csv.gz and so on."""
    return re.sub(r"(\.gz)?$", "", path.name, flags=re.I).rpartition(".")[0]


# ---------------------------------------------------------------- reading


def read_columns(path: Path) -> list[str]:
    """The names of the columns; of a JSON file those of any row, in the order of the first."""
    with explained(path):
        kind = format_of(path)
        if kind == LINES:
            return ["text"]
        if kind in DELIMITERS:
            with open_csv(path) as (_, header):
                return header
        if kind in JSON:
            return list(dict.fromkeys(itertools.chain.from_iterable(read_objects(path))))
        with open_arrow(path) as (schema, _):
            return schema.names


def read_classes(path: Path) -> dict[str, list[str]]:
    """The names of the classes in each column of class numbers, if the datasets library wrote the
    file, which keeps them in its metadata."""
    if format_of(path) not in ARROW:
        return {}
    with explained(path), open_arrow(path) as (schema, _):
        about = json.loads((schema.metadata or {}).get(b"huggingface", "{}"))
    features = about.get("info", {}).get("features") or {}
    return {
        field.name: strip_all(features[field.name]["names"])
        for field in schema
        # Not of integers if another program has changed the column since, and kept the metadata.
        if pa.types.is_integer(field.type)
        and isinstance(features.get(field.name), dict)
        and features[field.name].get("_type") == "ClassLabel"
    }


def strip_all(names: list[str]) -> list[str]:
    return [name.strip() for name in names]


def read_chunks(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows, in tables of at most `CHUNK` of those columns; by default of all, of which several
    may have the same name.

    Cells of a CSV file are strings, those of a JSON file JSON (a column that a row does not have is
    null), and Parquet and Arrow files have types. Raises `UserError` for a file that is not what
    its name says.
    """
    kind = format_of(path)
    read = read_csv if kind in DELIMITERS else read_json if kind in JSON else read_arrow
    with explained(path):
        yield from read_lines_of(path) if kind == LINES else read(path, columns)


@contextlib.contextmanager
def explained(path: Path):
    """What reading raises for a broken file, as one `UserError`."""
    try:
        yield
    except UnicodeDecodeError:
        reason = f"line {find_undecodable(path)} is not UTF-8; save it as UTF-8, or correct"
        raise UserError(f"{path}: {reason} the file") from None
    except BROKEN as error:
        if getattr(error, "errno", None):  # not of what the file holds: permissions, or the disk
            where = error.filename or path
            raise UserError(
                f"{where}: {error.strerror}; remove the cause, and start again"
            ) from None
        reason = " ".join(str(error).split()).rstrip(".!") or type(error).__name__
        raise UserError(f"{path}: {reason}; correct the file") from None


BROKEN = (
    OSError,  # cannot be read; is not gzipped, or no Parquet
    EOFError,  # gzip: cut off
    zlib.error,
    csv.Error,  # in strict mode: a quote that is never closed, text after a closing quote
    ValueError,  # of json, and of what follows here
    RecursionError,  # JSON nested too deeply
    pa.ArrowException,
)


def find_undecodable(path: Path) -> int:
    """The first line (from 1) that is not UTF-8; the decoder itself reads ahead."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def is_gzipped(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def open_text(path: Path, newline=""):
    # utf-8-sig drops the byte order mark that Excel writes; newline="" keeps \r\n inside fields.
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline=newline)


def open_bytes(path: Path):
    return gzip.open(path, "rb") if is_gzipped(path) else path.open("rb")


def read_lines_of(path: Path) -> Iterator[pa.Table]:
    with open_text(path, newline="\n") as file:  # a single \r is part of a text
        texts = (line.removesuffix("\n").removesuffix("\r") for line in file)
        while rows := list(itertools.islice(texts, CHUNK)):
            yield pa.table({"text": rows})


# ---------------------------------------------------------------- CSV

# By the standard library. pyarrow's reader, about three times as fast, takes everything after a
# quote that is never closed as one field, in silence, if that is in the last column; and pandas'
# takes the first column for row names if rows hold one value more than the header.


@contextlib.contextmanager
def open_csv(path: Path):
    """(Rows below the header, as lists of strings; the header.) Of several columns, blank lines are
    no rows."""
    with open_text(path) as file:
        lines = csv.reader(file, delimiter=find_delimiter(path), strict=True)
        header = next(filter(None, lines), None)
        if header is None:
            raise ValueError("is empty")
        yield (count_blank_lines(lines) if len(header) == 1 else filter(None, lines)), header


def count_blank_lines(lines: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows of a file with one column, where a blank line is an empty cell, but at the end."""
    blank = 0
    for row in lines:
        if not row:
            blank += 1
            continue
        yield from [[""]] * blank
        yield row
        blank = 0


def find_delimiter(path: Path) -> str:
    """Comma, tab or semicolon: the one that cuts the first line into most columns. In a .tsv file
    any tab decides."""
    usual, *_ = candidates = DELIMITERS[format_of(path)]
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
    columns = {each: len(next(csv.reader([first], delimiter=each), [])) for each in candidates}
    if usual == "\t" and columns[usual] > 1:
        return usual
    return max(candidates, key=columns.get)


def read_csv(path: Path, columns: list[str] | None) -> Iterator[pa.Table]:
    delimiter = find_delimiter(path)
    with open_csv(path) as (rows, header):
        require_single(path, header, columns or [])
        wanted = range(len(header)) if columns is None else list(map(header.index, columns))
        names = [header[i] for i in wanted]
        done = 0
        while batch := take_rows(path, rows, len(header), done, delimiter):
            done += len(batch)
            values = list(zip(*batch, strict=True))
            yield pa.table([pa.array(values[i], pa.string()) for i in wanted], names=names)


def require_single(path: Path, header: list[str], columns: list[str]) -> None:
    for name in columns:
        if header.count(name) > 1:
            raise UserError(f"{path}: has {header.count(name)} columns {name!r}; rename them")


def take_rows(
    path: Path, rows: Iterator[list[str]], width: int, done: int, delimiter: str
) -> list[list[str]]:
    """The next rows, at most `CHUNK`; `done` were taken before."""
    batch = []
    try:
        for row in itertools.islice(rows, CHUNK):
            batch.append(row)
            if len(row) != width:
                remedy = "put texts that hold the delimiter in quotes, or " * (len(row) > width)
                raise UserError(
                    f"{path}: row {done + len(batch)} has {len(row)} value{'s'[: len(row) - 1]}, "
                    f"the header {width}; {remedy}correct that row"
                )
            if delimiter == "\t":
                require_one_row(row, f"{path}: row {done + len(batch)}")
    except csv.Error as error:
        reason = next((words for sign, words in CSV_ERRORS if sign in str(error)), str(error))
        raise csv.Error(f"row {done + len(batch) + 1}: {reason}") from None
    return batch


CSV_ERRORS = (
    ("unexpected end of data", "its last quote is never closed"),
    ("expected after", "text follows a closing quote; write a quote inside a text twice"),
)


def require_one_row(row: list[str], given: str) -> None:
    """Raises `UserError` if quotes enclose lines that look like rows themselves.

    Many a file with tabs has no quoting at all, such as those of GLUE. There a quote at the start
    of a text and one at the end of a later text would make all between them one row, in silence.
    """
    lines = LINE_END.split("\t".join(row))
    if len(lines) > 1 and {line.count("\t") for line in lines} == {len(row) - 1}:
        raise UserError(
            f"{given}: quotes enclose {len(lines)} lines that may be rows; leave the quotes out, "
            "or, if it is one row, save the file as .csv, with commas"
        )


LINE_END = re.compile("\r\n|\r|\n")


# ---------------------------------------------------------------- JSON


class Number(str):
    """A number as it is written: 1.10 stays 1.10, and 12345678901234567890.0 keeps its digits."""


DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number)


def read_objects(path: Path) -> Iterator[dict]:
    """The rows of a file with one object per line, or with an array of objects."""
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
    number = 1
    with open_text(path) as file:
        values = read_array(file) if first.lstrip().startswith("[") else read_lines(file)
        try:
            for value in values:
                yield require_object(value, path, number)
                number += 1
        except json.JSONDecodeError as error:
            layout = "; give one object per line, or an array of them" * (number == 1)
            raise ValueError(f"row {number}: {error}{layout}") from None


def require_object(value, path: Path, number: int) -> dict:
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: row {number} is no object; give one per line, or an array of them: "
            '{"text": ..., "label": ...}'
        )
    return value


def read_lines(file) -> Iterator:
    return (DECODER.decode(line) for line in file if line.strip())


def read_array(file) -> Iterator:
    """The elements of an array, of which never more than a few blocks are in memory."""
    separator = re.compile(r"[\s,]*")
    text, at = file.read(BLOCK), 0
    at = text.index("[") + 1
    while True:
        at = separator.match(text, at).end()
        if text[at : at + 1] == "]":
            if (text[at + 1 :] + file.read()).strip():
                raise ValueError("something follows the array")
            return
        try:
            value, at = DECODER.raw_decode(text, at)
        except ValueError:
            more = file.read(BLOCK)
            if not more or len(text) - at > LONGEST:
                raise
            text, at = text[at:] + more, 0
        else:
            yield value


def read_json(path: Path, columns: list[str] | None) -> Iterator[pa.Table]:
    columns = read_columns(path) if columns is None else columns
    objects = read_objects(path)
    while rows := list(itertools.islice(objects, CHUNK)):
        yield pa.table(
            {
                name: pa.array(
                    [to_json(row[name]) if name in row else None for row in rows], pa.json_()
                )
                for name in columns
            }
        )


def to_json(value) -> str:
    """`value` as JSON, its numbers as they were written."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_json(k)}: {to_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_json, value)) + "]"
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of \ud83d\ude00 stays an escape
        text = json.dumps(value)
    return text


def from_json(cell: str | None) -> str | None:
    """A cell as text: a string without quotes, anything else as it is written. Python writes a
    missing number as NaN."""
    if cell in (None, "null", "NaN"):
        return None
    if not cell.startswith('"'):
        return cell
    text = json.loads(cell)
    # Half a pair is no character: U+FFFD, as decoders put for what they cannot read.
    return (
        text
        if text.isascii()
        else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


# ---------------------------------------------------------------- Parquet and Arrow


@contextlib.contextmanager
def open_arrow(path: Path):
    """(schema; function of column names that gives the record batches)."""
    with contextlib.ExitStack() as stack:
        file = path
        if is_gzipped(path):
            file = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(open_bytes(path)), file)
        if format_of(path) == ".parquet":
            parquet = stack.enter_context(pq.ParquetFile(file))
            yield (
                parquet.schema_arrow,
                lambda columns: parquet.iter_batches(CHUNK, columns=columns),
            )
            return
        source = stack.enter_context(pa.OSFile(str(path)) if file is path else pa.PythonFile(file))
        try:
            reader = pa.ipc.open_file(source)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        except pa.ArrowInvalid:  # a stream, as the datasets library writes
            source.seek(0)
            batches = reader = pa.ipc.open_stream(source)
        yield (
            reader.schema,
            lambda columns: (
                batch if columns is None else batch.select(columns) for batch in batches
            ),
        )


def read_arrow(path: Path, columns: list[str] | None) -> Iterator[pa.Table]:
    with open_arrow(path) as (schema, read):
        require_single(path, schema.names, columns or [])
        for batch in read(columns):
            table = pa.Table.from_batches([batch])
            yield from (table.slice(at, CHUNK) for at in range(0, len(table), CHUNK))


# ---------------------------------------------------------------- cells


def as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each cell as a string; null where there is none, and NaN is none."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if kind == pa.json_():
        cells = map(from_json, column.cast(pa.string()).to_pylist())
    elif pa.types.is_floating(kind):  # Arrow would write 1.0 as 1
        cells = (None if v is None or v != v else repr(v) for v in column.to_pylist())
    elif isinstance(kind, pa.BaseExtensionType) or pa.types.is_duration(kind):
        cells = (None if v is None else str(v) for v in column.to_pylist())
    elif is_compound(kind) or pa.types.is_interval(kind):
        cells = (None if v is None else json.dumps(v, default=str) for v in column.to_pylist())
    else:
        return column.cast(pa.string())
    return pa.chunked_array([pa.array(cells, pa.string())])


def is_compound(kind: pa.DataType) -> bool:
    """Whether a cell holds several values, or bytes."""
    return pa.types.is_nested(kind) or "binary" in str(kind)


def to_json_cells(column: pa.ChunkedArray) -> list[str | None]:
    """Each cell as JSON; None where a row of a JSON file does not have the column."""
    if column.type == pa.json_():
        return column.cast(pa.string()).to_pylist()
    return [json.dumps(value, ensure_ascii=False, default=str) for value in column.to_pylist()]


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written, besides its cells."""

    delimiter: str = ","
    line_end: str = "\n"
    byte_order_mark: bool = False


def read_dialect(path: Path) -> Dialect:
    """That of the file if it is CSV, for a copy that opens in the same programs as the original."""
    if format_of(path) not in DELIMITERS:
        return Dialect()
    with open_bytes(path) as file:
        first = file.readline()
    line_end = "\r\n" if first.endswith(b"\r\n") else "\n"
    delimiter = find_delimiter(path) if format_of(path) == ".csv" else ","
    return Dialect(delimiter, line_end, first.startswith(b"\xef\xbb\xbf"))


@contextlib.contextmanager
def write_chunks(path: Path, dialect: Dialect):
    """A function that appends a table to a file, which has its name only once it is whole."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    kind = format_of(path)
    write = write_csv if kind in DELIMITERS else write_json if kind in JSON else write_parquet
    try:
        with write(new, path, dialect) as append:
            yield append
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def open_new(new: Path, path: Path, encoding: str = "utf-8"):
    with (
        gzip.open(new, "wb") if is_gzipped(path) else new.open("wb") as file,
        io.TextIOWrapper(file, encoding, newline="") as text,
    ):
        yield text


@contextlib.contextmanager
def write_csv(new: Path, path: Path, dialect: Dialect):
    encoding = "utf-8-sig" if dialect.byte_order_mark else "utf-8"
    with open_new(new, path, encoding) as file:
        # The writer quotes a field for any character of its own line end: \r too must be quoted.
        lines = SimpleNamespace(write=lambda line: file.write(line[:-2] + dialect.line_end))
        delimiter = "\t" if format_of(path) == ".tsv" else dialect.delimiter
        rows = csv.writer(lines, delimiter=delimiter, lineterminator="\r\n")
        header = []

        def append(table: pa.Table) -> None:
            if not header:
                header.extend(table.column_names)
                rows.writerow(header)
            rows.writerows(zip(*(as_strings(c).to_pylist() for c in table.columns), strict=True))

        yield append


@contextlib.contextmanager
def write_json(new: Path, path: Path, dialect: Dialect):
    with open_new(new, path) as file:

        def append(table: pa.Table) -> None:
            keys = [json.dumps(name, ensure_ascii=False) for name in table.column_names]
            for row in zip(*map(to_json_cells, table.columns), strict=True):
                cells = (f"{key}: {cell}" for key, cell in zip(keys, row, strict=True) if cell)
                file.write("{" + ", ".join(cells) + "}\n")

        yield append


@contextlib.contextmanager
def write_parquet(new: Path, path: Path, dialect: Dialect):
    with contextlib.ExitStack() as stack:
        writers = []

        def append(table: pa.Table) -> None:
            columns = [as_strings(c) if c.type == pa.json_() else c for c in table.columns]
            table = pa.table(columns, names=table.column_names)
            if not writers:
                writers.append(stack.enter_context(pq.ParquetWriter(new, table.schema)))
            writers[0].write_table(table)

        yield append
