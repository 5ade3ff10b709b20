"""Files of every kind: what is read is what was written, to the character, and written again."""

import csv
import gzip
import io
import json
import uuid
from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runtime import formats
from runtime.flags import UserError
from runtime.formats import (
    Dialect,
    as_strings,
    format_of,
    read_chunks,
    read_columns,
    read_dialect,
    stem_of,
    write_chunks,
)

in_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tables = st.integers(1, 4).flatmap(
    lambda width: st.tuples(
        st.lists(cells.filter(str.strip), min_size=width, max_size=width, unique=True),
        st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=7),
    )
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(cells, inner, max_size=3),
    max_leaves=5,
)


def read_strings(path) -> list[list]:
    chunks = read_chunks(path, read_columns(path))
    return [
        list(row)
        for chunk in chunks
        for row in zip(*(as_strings(c).to_pylist() for c in chunk.columns), strict=True)
    ]


@in_folder
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")).filter(
            lambda text: not text.endswith("\r")
        )
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["x.txt", "x.TXT", "x.txt.gz"]),
)
@example(["one\rtext", "\rb"], "\n", "x.txt")
def test_a_text_file_has_a_text_on_each_line(tmp_path, texts, end, name):
    """Quotes, commas and the separators of str.splitlines are parts of it, and so is a single \\r.
    Red: `.splitlines()`; `.strip()`; format_of without `.lower()`; newline=""."""
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wb") as file:
        file.write("".join(text + end for text in texts).encode())
    first = texts and texts[0].removeprefix("\ufeff")
    assert read_strings(tmp_path / name) == [[text] for text in [first, *texts[1:]] if texts]
    assert read_columns(tmp_path / name) == ["text"]


def copy(source, target) -> None:
    """As predictions are written: chunk by chunk."""
    with write_chunks(target, read_dialect(source)) as write:
        for chunk in read_chunks(source, read_columns(source)):
            write(chunk)


@given(
    tables,
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from([".csv", ".CSV.gz"]),
)
@in_folder
def test_a_csv_file_is_read_and_copied_to_the_character(
    tmp_path, monkeypatch, table, delimiter, line_end, mark, suffix
):
    """Delimiters, quotes, line breaks and blanks in cells, a byte order mark, in chunks of 3 rows.

    Red: `newline=None` in open_text; `lineterminator="\\n"` in write_csv; no utf-8-sig.
    """
    monkeypatch.setattr(formats, "CHUNK", 3)
    header, rows = table
    # A first line whose own delimiter cuts it most is the rule; a lone cell cannot be empty.
    header = [
        f"c{index}" + "".join(c for c in name if c not in ",;\t\r\n\"'")
        for index, name in enumerate(header)
    ]
    path = tmp_path / f"x{suffix}"
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    writer.writerows([header, *rows])
    content = (b"\xef\xbb\xbf" if mark else b"") + text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert read_columns(path) == header
    assert read_strings(path) == rows
    copied = tmp_path / f"y{suffix}"
    copy(path, copied)
    assert read_columns(copied) == header
    assert read_strings(copied) == rows
    if len(header) > 1:
        assert read_dialect(copied) == read_dialect(path) == Dialect(delimiter, "\r\n", mark)


@given(tables)
@in_folder
def test_csv_is_read_as_pandas_reads_it_if_told_to_change_nothing(tmp_path, table):
    """An independent implementation. Red: `strip` of the cells in read_csv."""
    _, rows = table
    header = [f"c{index}" for index in range(len(rows[0]))]
    path = tmp_path / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    options = {"dtype": str, "keep_default_na": False, "encoding": "utf-8"}
    if not any("\0" in cell for row in rows for cell in row):
        expected = pd.read_csv(path, **options, skip_blank_lines=False)
        assert read_strings(path) == expected.to_numpy().tolist()


@given(
    st.lists(st.dictionaries(cells, json_values, min_size=1, max_size=4), min_size=1, max_size=7)
)
@in_folder
def test_json_is_copied_value_for_value(tmp_path, monkeypatch, rows):
    """Lines and arrays, any types in a column, absent cells absent. Red: `parse_float` left out of
    DECODER; absent cells as null in read_json."""
    monkeypatch.setattr(formats, "CHUNK", 3)
    monkeypatch.setattr(formats, "BLOCK", 7)
    lines, array, copied = (tmp_path / name for name in ("x.jsonl", "x.json", "y.ndjson.gz"))
    lines.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    array.write_text(json.dumps(rows, indent=1))
    for path in (lines, array):
        copy(path, copied)
        with gzip.open(copied, "rt", encoding="utf-8") as file:
            again = [json.loads(line) for line in file]
        assert again == rows
        assert read_strings(path) == read_strings(copied)


def test_numbers_of_json_keep_their_digits(tmp_path):
    """Red: `parse_float` left out of DECODER."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1.10, "b": 12345678901234567890, "c": [1.50, "1.50"], "d": 1e5}\n')
    assert read_strings(path) == [["1.10", "12345678901234567890", '[1.50, "1.50"]', "1e5"]]
    copy(path, tmp_path / "y.jsonl")
    assert (tmp_path / "y.jsonl").read_text() == path.read_text()


def test_half_a_pair_of_json_escapes_is_no_traceback(tmp_path):
    """A cut emoji, as in exports of messages: U+FFFD as a text, and itself in a copy. Red: to_json
    without its second dumps."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "w1 \\ud83d"}\n{"text": "w2 \\ud83d\\ude00"}\n')
    assert read_strings(path) == [["w1 \ufffd"], ["w2 \U0001f600"]]
    copy(path, tmp_path / "y.jsonl")
    assert [json.loads(line)["text"] for line in (tmp_path / "y.jsonl").open()] == [
        "w1 \ud83d",
        "w2 \U0001f600",
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".stream.arrow", ".parquet.gz"])
def test_typed_files_keep_their_types_and_are_text_when_asked(tmp_path, suffix):
    """Red: `select` left out of open_arrow (all columns of an .arrow file); 1.0 as "1"."""
    table = pa.table(
        {
            "when": [date(2020, 1, 2), None],
            "number": [1.0, None],
            "flag": [True, False],
            "tags": [["a"], []],
            "text": pa.array(["w1", "w2"]).dictionary_encode(),
        }
    )
    path = tmp_path / f"x{suffix}"
    plain = tmp_path / "plain"
    if "parquet" in suffix:
        pq.write_table(table, plain)
    else:
        make = pa.ipc.new_stream if "stream" in suffix else pa.ipc.new_file
        with make(plain, table.schema) as writer:
            writer.write_table(table)
    path.write_bytes(
        gzip.compress(plain.read_bytes()) if suffix.endswith("gz") else plain.read_bytes()
    )
    assert read_strings(path) == [
        ["2020-01-02", "1.0", "true", '["a"]', "w1"],
        [None, None, "false", "[]", "w2"],
    ]
    (chunk,) = read_chunks(path, ["text", "when"])
    assert chunk.column_names == ["text", "when"]
    copy(path, tmp_path / "y.parquet")
    copied = pq.read_table(tmp_path / "y.parquet")
    assert copied.to_pydict() == table.to_pydict()
    assert copied.schema.field("when").type == pa.date32()


def test_bytes_and_intervals_can_be_written_as_csv(tmp_path):
    """And others that Arrow cannot cast to text. Red: `"binary" in str(kind)` left out of
    is_compound; intervals, durations or extension types cast as other types are."""
    nano = pa.scalar((1, 2, 3), pa.month_day_nano_interval())
    columns = {
        "large": pa.array([b"\xff", None], pa.large_binary()),
        "fixed": pa.array([b"\xff", None], pa.binary(1)),
        "view": pa.array([b"\xff", None], pa.binary_view()),
        "span": pa.array([nano, None]),
        "id": pa.array([uuid.UUID(int=7).bytes, None], pa.uuid()),
        "time": pa.array([timedelta(seconds=5), None]),
        "code": pa.array([1.0, None]).dictionary_encode(),
    }
    with pa.ipc.new_file(tmp_path / "x.arrow", pa.table(columns).schema) as writer:
        writer.write_table(pa.table(columns))
    copy(tmp_path / "x.arrow", tmp_path / "y.csv")
    first, second = read_strings(tmp_path / "y.csv")
    assert first[:3] == ["\"b'\\\\xff'\""] * 3
    assert first[3:] == ["[1, 2, 3]", str(uuid.UUID(int=7)), "0:00:05", "1.0"]
    assert second == [""] * 7


def test_tabs_become_commas_in_a_csv_file(tmp_path):
    """Red: read_dialect with find_delimiter for every kind."""
    (tmp_path / "x.tsv").write_text("a\tb\n1\t2\n")
    copy(tmp_path / "x.tsv", tmp_path / "y.csv")
    assert (tmp_path / "y.csv").read_text() == "a,b\n1,2\n"


def test_a_text_of_several_lines_may_stand_between_tabs(tmp_path):
    """If its lines are not rows themselves. Red: require_one_row without the second condition."""
    (tmp_path / "x.tsv").write_text('a\tb\n"w1\nw2"\t1\n')
    assert read_strings(tmp_path / "x.tsv") == [["w1\nw2", "1"]]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")
def test_a_disk_that_fails_is_no_broken_file(tmp_path):
    """/proc/self/mem cannot be read at 0. Red: `explained` without its case of errno."""
    (tmp_path / "x.csv").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"x.csv: Input/output error; remove the cause, and start"):
        read_strings(tmp_path / "x.csv")


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    """Red: write_chunks with `new = path`."""
    target = tmp_path / "y.csv"
    target.write_text("mine")

    def fail():
        with write_chunks(target, Dialect()) as write:
            write(pa.table({"a": ["1"]}))
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "kind", "stem"),
    [
        ("a.csv", ".csv", "a"),
        ("A.TSV.GZ", ".tsv", "A"),
        ("r[1].x.JSONL", ".jsonl", "r[1].x"),
        ("a.csv.bak", None, "a.csv"),
        ("csv", None, ""),
        ("a.parquet.gz", ".parquet", "a"),
    ],
)
def test_the_name_says_the_kind(tmp_path, name, kind, stem):
    """Red: format_of without `lower`; stem_of without .gz."""
    assert format_of(tmp_path / name) == kind
    assert stem_of(tmp_path / name) == stem


def test_a_row_longer_than_any_buffer_is_read(tmp_path):
    """Ten million characters in a cell. Red: csv's field_size_limit as it is."""
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "x" * 10_000_000 + ",1\n")
    assert len(read_strings(path)[0][0]) == 10_000_000


def test_rows_are_counted_from_one_below_the_header(tmp_path):
    """Whatever the line: the first field has a line break. Red: `done + len(batch) + 1`."""
    path = tmp_path / "x.csv"
    path.write_text('a,b\n"x\ny",1\n\nz,1,2\n')
    with pytest.raises(UserError, match="row 2 has 3 values, the header 2"):
        read_strings(path)
