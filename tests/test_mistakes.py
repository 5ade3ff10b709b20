"""Every mistake of a user's: one line that names the value and the remedy, before any work.

A case is data: the flags over those of a good run, the files there, and the lines that come of it,
whole, where `...` stands for what a library says. All go through `main` of train.py or eval.py.

Red: any check left out of flags.convert, of the functions of hub.py, tables.py and report/files.py,
of load_tokenizer, find_last, load_last or eval.check_flags (the case ends in a traceback, or
trains); a value or remedy left out of a line; a `print` before a check; an error class left out of
hub.LOADING_ERRORS; `logging.set_verbosity` left out of tables.py (a second line on stderr).
"""

import dataclasses
import gzip
import io
import json
import os
import pickle
import re
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_rows, write_csv
from datasets import ClassLabel, Features, Value
from forked import Forked

import eval as evaluation
import train
from recipes import export_onnx, push_to_hub
from runtime import hub
from runtime.flags import UserError
from runtime.processes import run_command
from runtime.seen import Seen
from runtime.splits import read_table
from runtime.tables import label_rows

REMEDY = re.compile(
    r"[;:] (.* )?(give|check|correct|remove|rename|restore|save|make|choose|write|put|leave)\b"
    r"|did you mean|--help lists|flags start with"
)


@dataclasses.dataclass
class Case:
    """`files`: path under <tmp> -> what it holds (None: removed; a function: of what it held).

    Paths under model/, best/ and run/ are in copies of the tiny model, its best/, and its run.
    """

    id: str
    flags: list[str]
    lines: list[str]
    files: dict = dataclasses.field(default_factory=dict)


def one(id, flags, line, files=None):
    return Case(id, flags if isinstance(flags, list) else [flags], [line], files or {})


def flag(words: str, line: str):
    """A mistake in the flags alone, all of whose line we know."""
    return one(words or "empty", [words], line)


def dataset(id, file, content, line, *flags):
    """A mistake in a data set. `line` without a flag of its own is that of --dataset."""
    start = "" if line.startswith("--") else f"--dataset <tmp>/{file.rstrip('/')}: "
    return one(id, [f"--dataset=<tmp>/{file}", *flags], start + line, {file: content})


def broken(id, file, content, line):
    """A file that cannot be read, which the line begins with."""
    return one(id, [f"--dataset=<tmp>/{file}"], f"<tmp>/{file}: {line}", {file: content})


def model(id, line, **files):
    names = {
        "config": "config.json",
        "weights": "model.safetensors",
        "tokenizer": "tokenizer.json",
        "tokenizer_config": "tokenizer_config.json",
    }
    files = {f"model/{names[name]}": content for name, content in files.items()}
    return one(id, "--model=<tmp>/model", f"--model <tmp>/model: {line}", files)


def edited(**changes):
    """JSON with other fields; None takes one out."""

    def edit(old: bytes) -> str:
        fields = json.loads(old) | changes
        return json.dumps({key: value for key, value in fields.items() if value is not None})

    return edit


def rewritten(**names):
    """progress.json with fields of other names."""

    def edit(old: bytes) -> str:
        state = json.loads(old)
        state["progress"] = {names.get(k, k): value for k, value in state["progress"].items()}
        return json.dumps(state)

    return edit


def without(name: str):
    """A manifest that does not list that file, which may then be anything."""
    return lambda old: json.dumps({k: v for k, v in json.loads(old).items() if k != name})


def shorter(old: bytes) -> bytes:
    return old[:-200]


def altered(old: bytes) -> bytes:
    return old[:-1] + bytes([old[-1] ^ 1])


def jsonl(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def csv_of(*rows: str) -> str:
    return "\n".join(["text,label", *rows]) + "\n"


def parquet(labels: list[int], names=("no", "yes")) -> bytes:
    """As the datasets library writes it."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    columns = {"text": [f"w{index}" for index in range(len(labels))], "label": labels}
    table = pa.table(columns).replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(table, file := io.BytesIO())
    return file.getvalue()


CLASSES = ["no", "yes"]
GOOD = [f"w{index} w{index + 1},{CLASSES[index % 2]}" for index in range(30)]
TWO_TEXTS = "\n".join(["a,text,label", *(f"w3,{row}" for row in GOOD)])
ONE_TEXT = {  # of a tokenizer whose author did not think of pairs
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
    "special_tokens": {
        token: {"id": token, "ids": [number], "tokens": [token]}
        for token, number in (("[CLS]", 2), ("[SEP]", 3))
    },
}
PAIRS = [{"text": f"w{index}", "label": CLASSES[index % 2]} for index in range(30)]
BYTES = bytes(range(128, 256)) * 20

NO_DATA_FILE = (
    "holds no .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow file; "
    "check its files, --train_split"
)
NO_VALUE = ": expected one argument; give --flag VALUE, or --flag=VALUE for one that starts with -"
WHOLE_FOLDER = "; give a folder that save_pretrained wrote whole"
SEED = "give a whole number from 0 to 4294967295"
SHARE = "give a number of at least 0 and below 1"
INSIDE = "give a number above 0 and below 1"
STEPS = "give a share of at least 0 and below 1, or a whole number"
NONE_OF = "split gets none of class"
INVALID = "; correct them, or give --drop_invalid to leave them out"
NO_COPY = (
    "no whole copy is left; restore it, or start anew with --overwrite "
    "(move best/ away before, if it is still of use)"
)
BROKEN = f"run/last: ...; {NO_COPY}"
ANOTHER = "give the old value, another --output_dir, or --overwrite to delete that run"

FLAGS = [
    flag("--learning_rte=1", "unknown flag --learning_rte: did you mean --learning_rate?"),
    flag("--learn=1", "unknown flag --learn: did you mean --learning_rate?"),
    flag("--epochs=1", "unknown flag --epochs: did you mean --num_train_epochs?"),
    flag("--zzz", "unknown flag --zzz: --help lists the flags"),
    flag("-lr", "unknown flag -lr: --help lists the flags"),
    flag("film", "'film' is not a flag: flags start with --, and take one value at most"),
    flag("--seed", f"--seed{NO_VALUE}"),
    flag("--learning_rate=fast", "--learning_rate fast: give a number above 0"),
    flag("--learning_rate=nan", "--learning_rate nan: give a number above 0"),
    flag("--learning_rate=inf", "--learning_rate inf: give a number above 0"),
    flag("--learning_rate=0", "--learning_rate 0: give a number above 0"),
    flag("--learning_rate=-1e-5", "--learning_rate -1e-5: give a number above 0"),
    flag("--learning_rate=", "--learning_rate : give a number above 0"),
    flag("--weight_decay=-0.1", "--weight_decay -0.1: give a number of at least 0"),
    flag("--weight_decay=inf", "--weight_decay inf: give a number of at least 0"),
    flag("--max_grad_norm=nan", "--max_grad_norm nan: give a number of at least 0"),
    flag("--max_length=0", "--max_length 0: give a whole number of at least 1"),
    flag("--save_steps=-5", "--save_steps -5: give a whole number of at least 1"),
    flag("--eval_steps=10.5", "--eval_steps 10.5: give a whole number of at least 1"),
    flag("--max_save_share=0", "--max_save_share 0: give a number above 0 and at most 1"),
    flag("--max_save_share=2%", "--max_save_share 2%: give a number above 0 and at most 1"),
    flag("--num_threads=all", "--num_threads all: give a whole number of at least 1"),
    flag("--attention_dropout=1", f"--attention_dropout 1: {SHARE}"),
    flag("--dropout=none", f"--dropout none: {SHARE}"),
    flag("--validation_size=0", f"--validation_size 0: {INSIDE}"),
    flag("--validation_size=1", f"--validation_size 1: {INSIDE}"),
    flag("--validation_size=30%", f"--validation_size 30%: {INSIDE}"),
    flag("--warmup_steps=-1", f"--warmup_steps -1: {STEPS}"),
    flag("--warmup_steps=1.5", f"--warmup_steps 1.5: {STEPS}"),
    flag("--warmup_steps=inf", f"--warmup_steps inf: {STEPS}"),
    flag("--max_steps=0", "--max_steps 0: give -1 (no limit) or a whole number of at least 1"),
    flag("--seed=-1", f"--seed -1: {SEED}"),
    flag("--seed=4294967296", f"--seed 4294967296: {SEED}"),
    flag("--seed=1e3", f"--seed 1e3: {SEED}"),
    flag("--truncation=middle", "--truncation middle: give one of head, tail, head_tail"),
    flag("--mixed_precision=fp32", "--mixed_precision fp32: give one of auto, no, fp16, bf16"),
    flag("--overwrite=perhaps", "--overwrite perhaps: give true or false"),
    flag("--output_dir=", "--output_dir : give a text"),
    flag("--dataset= ", "--dataset  : give a text"),
    Case(
        "several at once",
        ["--lr=1", "--seed=x", "--dropout=nan", "--truncation=a\nb", "--eval_steps=-2"],
        [
            "unknown flag --lr: --help lists the flags",
            f"--seed x: {SEED}",
            f"--dropout nan: {SHARE}",
            "--truncation a b: give one of head, tail, head_tail",
            "--eval_steps -2: give a whole number of at least 1",
        ],
    ),
    one(
        "config missing",
        "--config=<tmp>/c.json",
        "--config <tmp>/c.json: No such file or directory; give a JSON file of flags",
    ),
    one("config without a name", "--config", f"--config{NO_VALUE}"),
    one(
        "config a folder",
        "--config=<tmp>",
        "--config <tmp>: Is a directory; give a JSON file of flags",
    ),
    one(
        "config not JSON",
        "--config=<tmp>/c.json",
        "--config <tmp>/c.json: not JSON (...); correct the file",
        {"c.json": '{"seed": 1'},
    ),
    one(
        "config of bytes",
        "--config=<tmp>/c.json",
        "--config <tmp>/c.json: not JSON (...); correct the file",
        {"c.json": BYTES},
    ),
    one(
        "config not an object",
        "--config=<tmp>/c.json",
        '--config <tmp>/c.json: holds no flags; write {"flag": value, ...}',
        {"c.json": "[1]"},
    ),
    Case(
        "config of wrong values",
        ["--config=<tmp>/c.json"],
        [
            "unknown flag --learning_rte: did you mean --learning_rate?",
            f"--seed True: {SEED}",
            "--revision 5: give a text",
            "--eval_steps 3.0: give a whole number of at least 1",
            "--weight_decay [1]: give a number of at least 0",
            "--overwrite 1: give true or false",
        ],
        {
            "c.json": json.dumps(
                {
                    "learning_rte": 1,
                    "seed": True,
                    "revision": 5,
                    "eval_steps": 3.0,
                    "weight_decay": [1],
                    "overwrite": 1,
                }
            )
        },
    ),
    one(
        "config and the command line",
        ["--config=<tmp>/c.json", "--seed=x"],
        f"--seed x: {SEED}",
        {"c.json": '{"seed": "y"}'},
    ),
    one(
        "fp16 without a GPU",
        "--mixed_precision=fp16",
        "--mixed_precision fp16: needs a CUDA GPU; give bf16 or no",
    ),
]

DATA = [
    one(
        "file missing",
        "--dataset=<tmp>/x.csv",
        "--dataset <tmp>/x.csv: no such file or folder; check the path",
    ),
    one(
        "folder missing",
        "--dataset=./no_such_folder",
        "--dataset ./no_such_folder: no such file or folder; check the path",
    ),
    one(
        "home of nobody",
        "--dataset=~nobody_of_that_name/x",
        "--dataset ~nobody_of_that_name/x: no such file or folder; check the path",
    ),
    one(
        "name too long",
        f"--dataset=/{'x' * 300}",
        f"--dataset /{'x' * 300}: no such file or folder; check the path",
    ),
    one(
        "deep folder missing",
        "--dataset=my/data/reviews",
        "--dataset my/data/reviews: no such folder, nor a Hub name (OWNER/NAME); check it",
    ),
    one(
        "Hub name, no network",
        "--dataset=nobody/nothing",
        "--dataset nobody/nothing: ...; check the name (or unset HF_HUB_OFFLINE to download it), "
        "--dataset_config_name and --train_split",
    ),
    dataset("folder empty", "folder/", "", NO_DATA_FILE),
    dataset("folder named x.csv", "x.csv/", "", NO_DATA_FILE),
    one(
        "folder without data files",
        "--dataset=<tmp>/folder",
        f"--dataset <tmp>/folder: {NO_DATA_FILE}",
        {"folder/notes.md": "hello"},
    ),
    one(
        "folder without that split",
        "--dataset=<tmp>/folder",
        "--dataset <tmp>/folder: no file for the split train among test.csv; "
        "check its files, --train_split",
        {"folder/test.csv": csv_of(*GOOD)},
    ),
    one(
        "split misspelt",
        "--train_split=trian",
        "--dataset <corpus>: no file for the split trian among test.csv, train.csv; "
        "check its files, --train_split",
    ),
    one(
        "configuration unknown",
        "--dataset_config_name=sst2",
        "--dataset <corpus>: a local path has no configuration sst2; give none",
    ),
    dataset(
        "part of a file",
        "x.csv",
        csv_of(*GOOD),
        "has no split train[:50%]; give a plain name for it",
        "--train_split=train[:50%]",
    ),
    dataset(
        "configuration of a file",
        "x.csv",
        csv_of(*GOOD),
        "a local path has no configuration sst2; give none",
        "--dataset_config_name=sst2",
    ),
    one(
        "revision of a folder",
        "--dataset_revision=v2",
        "--dataset <corpus>: a local path has no revision v2; give one or the other",
    ),
    dataset(
        "kind unknown",
        "x.xlsx",
        "text\tlabel\n",
        "unknown kind of file; "
        "give .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow, also with .gz",
    ),
    broken("csv empty", "x.csv", "", "is empty; correct the file"),
    dataset("csv of a header alone", "x.csv", csv_of(), "holds no rows; give a data set that does"),
    broken(
        "csv with a quote left open",
        "x.csv",
        csv_of(*GOOD, 'w1,"no', "w2,yes"),
        "row 31: its last quote is never closed; correct the file",
    ),
    broken(
        "csv with a single quote inside a text",
        "x.csv",
        csv_of(*GOOD, '"a "big" one",no'),
        "row 31: text follows a closing quote; write a quote inside a text twice; correct the file",
    ),
    broken(
        "csv with a longer row",
        "x.csv",
        csv_of(*GOOD, "w1,w2,no"),
        "row 31 has 3 values, the header 2; "
        "put texts that hold the delimiter in quotes, or correct that row",
    ),
    broken(
        "csv with longer rows throughout",
        "x.csv",
        csv_of(*(f"w{index},{row}" for index, row in enumerate(GOOD))),
        "row 1 has 3 values, the header 2; "
        "put texts that hold the delimiter in quotes, or correct that row",
    ),
    broken(
        "csv with a shorter row",
        "x.csv",
        csv_of(*GOOD, "w1"),
        "row 31 has 1 value, the header 2; correct that row",
    ),
    broken(
        "csv with two columns of one name",
        "x.csv",
        "text,text,label\nw1,w2,no\n",
        "has 2 columns 'text'; rename them",
    ),
    broken(
        "csv of bytes", "x.csv", BYTES, "line 1 is not UTF-8; save it as UTF-8, or correct the file"
    ),
    broken(
        "csv in Latin-1",
        "x.csv",
        csv_of(*GOOD, "caf\xe9,no").encode("latin-1"),
        "line 32 is not UTF-8; save it as UTF-8, or correct the file",
    ),
    broken(
        "csv in UTF-16",
        "x.csv",
        csv_of(*GOOD).encode("utf-16"),
        "line 1 is not UTF-8; save it as UTF-8, or correct the file",
    ),
    broken(
        "gzip that is none", "x.csv.gz", csv_of(*GOOD), "Not a gzipped file (...); correct the file"
    ),
    broken(
        "gzip cut off",
        "x.csv.gz",
        gzip.compress(csv_of(*GOOD).encode())[:-20],
        "Compressed file ended before the end-of-stream marker was reached; correct the file",
    ),
    dataset("jsonl empty", "x.jsonl", "", "holds no rows; give a data set that does"),
    broken(
        "jsonl cut off",
        "x.jsonl",
        jsonl(*PAIRS)[:-15],
        "row 30: Unterminated string starting at: line 1 column 17 (char 16); correct the file",
    ),
    broken(
        "json array cut off", "x.json", json.dumps(PAIRS)[:-15], "row 30: ...; correct the file"
    ),
    broken(
        "two json arrays",
        "x.json",
        json.dumps(PAIRS) * 2,
        "something follows the array; correct the file",
    ),
    broken(
        "jsonl of lists",
        "x.jsonl",
        jsonl({"text": "w1"}, ["w2", "yes"]),
        'row 2 is no object; give one per line, or an array of them: {"text": ..., "label": ...}',
    ),
    broken(
        "csv named jsonl", "x.jsonl", csv_of(*GOOD), "row 1: Expecting value...; correct the file"
    ),
    broken("parquet empty", "x.parquet", "", "Parquet file size is 0 bytes; correct the file"),
    broken(
        "parquet cut off",
        "x.parquet",
        parquet([0, 1])[:-20],
        "Parquet magic bytes not found...; correct the file",
    ),
    broken("arrow of text", "x.arrow", csv_of(*GOOD), "...; correct the file"),
    one(
        "no text column",
        "--text_column=review",
        "--text_column review: no such column in train.csv; give one of text, label",
    ),
    one(
        "no label column",
        "--label_column=stars",
        "--label_column stars: no such column in train.csv; give one of text, label",
    ),
    one(
        "one column for both",
        "--label_column=text",
        "--label_column text: is the --text_column too; give another",
    ),
    one(
        "three text columns",
        "--text_column=text,label,text",
        "--text_column text,label,text: give one column, or two with a comma between them",
    ),
    dataset(
        "labels that are numbers of a regression",
        "x.csv",
        csv_of("w1,0.5", "w2,0.7"),
        "--label_column label: 2 different values in 2 rows, such as '0.5'; "
        "give a column of classes, or more rows (regression is not supported)",
    ),
    dataset(
        "labels that are lists",
        "x.jsonl",
        jsonl({"text": "w1", "label": ["no"]}, {"text": "w2", "label": ["no", "yes"]}),
        """column 'label' holds ["no"]; give a column with one value per text """
        "(several labels per text are not supported)",
    ),
    dataset(
        "texts that are objects",
        "x.jsonl",
        jsonl(*PAIRS, {"text": {"de": "w1"}, "label": "no"}),
        """column 'text' holds {"de": "w1"}; give a column with one value per text """
        "(several labels per text are not supported)",
    ),
    dataset(
        "label missing",
        "x.csv",
        csv_of("w1,0", "w2,1", "w3,0", "w4,1", "w5,"),
        f"1 of 5 rows without a label (row 5){INVALID}",
    ),
    dataset(
        "label of blanks",
        "x.csv",
        csv_of("w1,no", "w2,yes", "w3,no", "w4,yes", "w5, "),
        f"1 of 5 rows without a label (row 5){INVALID}",
    ),
    dataset(
        "label null",
        "x.jsonl",
        jsonl(*PAIRS, {"text": "w1", "label": None}),
        f"1 of 31 rows without a label (row 31){INVALID}",
    ),
    dataset(
        "class label -1",
        "x.parquet",
        parquet([0, 1, 0, -1]),
        f"1 of 4 rows without a label (row 4){INVALID}",
    ),
    dataset(
        "class label beyond its names",
        "x.parquet",
        parquet([0, 1, 0, 2]),
        "column 'label' holds class 2, but names 2; correct the data",
    ),
    one(
        "class labels beside codes",
        "--dataset=<tmp>/d",
        "--dataset <tmp>/d: label '0' (b.csv row 1) and 1 more are none of the classes; "
        "give one of no, yes",
        {"d/a.parquet": parquet([0, 1] * 9), "d/b.csv": csv_of("w1,0", "w2,1")},
    ),
    one(
        "the same file twice",
        "--dataset=<tmp>/d",
        "--dataset <tmp>/d: has train.csv and train.parquet; keep one, or, if they hold different "
        "rows, give them different names",
        {"d/train.csv": csv_of(*GOOD), "d/train.parquet": parquet([0, 1])},
    ),
    one(
        "a folder of save_to_disk that is broken",
        "--dataset=<tmp>/d",
        "--dataset <tmp>/d: ...; save it anew with save_to_disk",
        {"d/state.json": "{bad", "d/dataset_info.json": "{}"},
    ),
    one(
        "validation texts in a folder of save_to_disk that is broken",
        "--validation_dataset=<tmp>/d",
        "--validation_dataset <tmp>/d: ...; save it anew with save_to_disk",
        {"d/state.json": "{bad", "d/dataset_info.json": "{}"},
    ),
    dataset(
        "label NaN of JSON",
        "x.jsonl",
        jsonl(*PAIRS, {"text": "w1", "label": float("nan")}),
        f"1 of 31 rows without a label (row 31){INVALID}",
    ),
    broken(
        "tabs, and quotes around what may be rows",
        "x.tsv",
        'text\tlabel\nw1\tno\n"w2\tno\nw3"\tyes\n',
        "row 2: quotes enclose 2 lines that may be rows; leave the quotes out, or, if it is one "
        "row, save the file as .csv, with commas",
    ),
    broken(
        "semicolons, and text behind a quote",
        "x.csv",
        'text;label\n"w1" w2;no\n',
        "row 1: text follows a closing quote; write a quote inside a text twice; correct the file",
    ),
    dataset(
        "one class",
        "x.csv",
        csv_of("w1,no", "w2,no"),
        "--label_column label: only class 'no'; give two or more",
    ),
    dataset(
        "text empty",
        "x.csv",
        csv_of(*GOOD, ",no"),
        f"1 of 31 rows without a text (row 31){INVALID}",
    ),
    Case(
        "texts of blanks and labels missing",
        ["--dataset=<tmp>/x.csv"],
        [
            "--dataset <tmp>/x.csv: 6 of 37 rows without a text "
            f"(first: row 31, row 32, row 33, row 34, row 35){INVALID}",
            f"--dataset <tmp>/x.csv: 1 of 37 rows without a label (row 37){INVALID}",
        ],
        {"x.csv": csv_of(*GOOD, *["  ,no"] * 6, "w1,")},
    ),
    dataset(
        "text null",
        "x.jsonl",
        jsonl(*PAIRS, {"text": None, "label": "no"}),
        f"1 of 31 rows without a text (row 31){INVALID}",
    ),
    dataset(
        "one class left",
        "x.csv",
        csv_of(*["w1,no", "w2,no"] * 5, ",yes"),
        "--label_column label: only class 'no'; give two or more",
        "--drop_invalid",
    ),
    dataset(
        "nothing left",
        "x.csv",
        csv_of("w1,", ",no", ",no", ",yes", ",yes"),
        "no row has a text and a label; give a data set that holds some",
        "--drop_invalid",
    ),
    dataset(
        "equal texts",
        "x.csv",
        csv_of(*["w1,no", "w2,yes"] * 20),
        f"--validation_size 0.3: the validation {NONE_OF} 'no' (20 rows, 1 different texts; "
        "equal texts stay on one side); give more texts, or another value",
    ),
    one(
        "a file that is not there, of a kind that is not read",
        "--dataset=reviews.xlsx",
        "--dataset reviews.xlsx: no such file or folder; check the path",
    ),
    one(
        "another split of a file",
        ["--dataset=<corpus>/train.csv", "--validation_split=validation"],
        "--validation_split validation: --dataset <corpus>/train.csv is one file, which has no "
        "other split; give --validation_dataset FILE",
    ),
    dataset(
        "a blank in the header",
        "x.csv",
        "text, label\nw1,no\n",
        "--label_column label: no such column in x.csv; give one of text, ' label'",
    ),
    dataset(
        "JSON that is one object",
        "x.json",
        '{"data": [{"text": "w1", "label": 1}]}',
        "--text_column text: no such column in x.json; give one of data",
    ),
    broken(
        "JSON that is one object on several lines",
        "x.json",
        '{"data": [\n{"text": "w1", "label": 1}]}',
        "row 1: ...; give one object per line, or an array of them; correct the file",
    ),
    one(
        "two places to validate on",
        ["--validation_size=0.2", "--validation_split=train"],
        "--validation_size 0.2: given with --validation_dataset or --validation_split; "
        "give one of them",
    ),
    one(
        "validated on what is trained on",
        "--validation_dataset=<corpus>/train.csv",
        "--validation_dataset <corpus>/train.csv: 150 of the 150 texts to validate on are among "
        "those to train on; give other texts",
    ),
    one(
        "a class of the validation texts alone",
        "--validation_dataset=<tmp>/v.csv",
        "--validation_dataset <tmp>/v.csv: label 'maybe' (row 2) is none of the classes; "
        "give one of negative, positive",
        {"v.csv": csv_of("w1,positive", "w2,maybe")},
    ),
    one(
        "no such split to validate on",
        "--validation_split=dev",
        "--dataset <corpus>: no file for the split dev among test.csv, train.csv; "
        "check its files, --validation_split",
    ),
    one(
        "half of a pair cut in the middle",
        ["--dataset=<tmp>/x.csv", "--text_column=a,text", "--truncation=head_tail"],
        "--truncation head_tail: cuts one text, not a pair; give head or tail",
        {"x.csv": TWO_TEXTS},
    ),
    one(
        "no room for a pair",
        ["--dataset=<tmp>/x.csv", "--text_column=a,text", "--max_length=4"],
        "--max_length 4: <tiny> adds 3 tokens to each pair of texts; give 5 or more",
        {"x.csv": TWO_TEXTS},
    ),
    one(
        "tokenizer that knows no pairs",
        ["--model=<tmp>/model", "--dataset=<tmp>/x.csv", "--text_column=a,text"],
        "<tmp>/model: its tokenizer adds 2 tokens to a text and 0 to a pair of texts; choose "
        "another model, or correct the post_processor in its tokenizer.json",
        {"x.csv": TWO_TEXTS, "model/tokenizer.json": edited(post_processor=ONE_TEXT)},
    ),
]

ADAPTER = (
    "holds an adapter (LoRA), not a whole model; make one with peft's merge_and_unload() and "
    "save_pretrained, and give that folder"
)

MODELS = [
    one(
        "model longer",
        "--max_length=33",
        "--max_length 33: <tiny> adds 2 tokens to each text and reads at most 32; give 3 to 32",
    ),
    one(
        "no room for a word",
        "--max_length=2",
        "--max_length 2: <tiny> adds 2 tokens to each text and reads at most 32; give 3 to 32",
    ),
    one(
        "passes smaller than a text",
        ["--max_length=16", "--max_tokens_per_forward=15"],
        "--max_tokens_per_forward 15: the longest training text has 16 tokens; give as many, or "
        "more",
    ),
    one(
        "model missing",
        "--model=/no/such/model",
        "--model /no/such/model: no such file or folder; check the path",
    ),
    one(
        "model on the Hub, no network",
        "--model=nobody/nothing",
        "--model nobody/nothing: cannot be loaded (...); "
        "check the name (or unset HF_HUB_OFFLINE to download it)",
    ),
    one(
        "model revision of a folder",
        "--revision=v2",
        "--model <tiny>: a local path has no revision v2; give one or the other",
    ),
    one(
        "model is a data set",
        "--model=<corpus>",
        "--model <corpus>: holds no config.json; give a folder that save_pretrained wrote",
    ),
    model(
        "model without config.json",
        "holds no config.json; give a folder that save_pretrained wrote",
        config=None,
    ),
    model("model config broken", f"cannot be loaded (...){WHOLE_FOLDER}", config="{bad"),
    model("model config empty", f"cannot be loaded (...){WHOLE_FOLDER}", config="{}"),
    model(
        "model type unknown",
        f"cannot be loaded (...frobnicate...){WHOLE_FOLDER}",
        config=edited(model_type="frobnicate"),
    ),
    model(
        "model config of a wrong type",
        f"cannot be loaded (...'dim' expected int...){WHOLE_FOLDER}",
        config=edited(dim="x"),
    ),
    model(
        "model with code of its own",
        f"cannot be loaded (...custom code...){WHOLE_FOLDER}",
        config=edited(model_type="own", auto_map={"AutoConfig": "own.Config"}),
    ),
    model("no weights", f"cannot be loaded (...no file...){WHOLE_FOLDER}", weights=None),
    model("weights cut off", f"cannot be loaded (...incomplete...){WHOLE_FOLDER}", weights=shorter),
    model("weights of git-lfs", f"cannot be loaded (...){WHOLE_FOLDER}", weights="version 1\n" * 9),
    model(
        "weights of another size",
        "34 of its weights are missing or of another size, such as "
        "distilbert.embeddings.LayerNorm.bias; check its config.json",
        config=edited(dim=64),
    ),
    model(
        "weights of fewer layers",
        "16 of its weights are missing or of another size, such as "
        "distilbert.transformer.layer.2.attention.k_lin.bias; check its config.json",
        config=edited(n_layers=3),
    ),
    model(
        "no tokenizer",
        "holds no tokenizer; save it with tokenizer.save_pretrained there",
        tokenizer=None,
        tokenizer_config=None,
    ),
    one(
        "model is an adapter",
        "--model=<tmp>/x",
        f"--model <tmp>/x: {ADAPTER}",
        {"x/adapter_config.json": "{}", "x/adapter_model.safetensors": ""},
    ),
    one(
        "keep_head of an encoder",
        "--keep_head",
        "--keep_head: --model <tiny> has no classification head; leave it out",
    ),
    one(
        "keep_head of other classes",
        ["--model=<tmp>/best", "--keep_head", "--dataset=<tmp>/x.csv"],
        "--dataset <tmp>/x.csv: label 'no' (20 times, first in row 1) and 1 more are none of the "
        "classes; give one of negative, positive",
        {
            "x.csv": csv_of(*(f"w{n},{'yes' if n % 2 else 'no'}" for n in range(40))),
            "best/note": "",
        },
    ),
    one(
        "keep_head of a regression",
        ["--model=<tmp>/best", "--keep_head"],
        "--keep_head: --model <tmp>/best: its head gives a number, not a class...; "
        "choose a classifier",
        {"best/manifest.json": None, "best/config.json": edited(problem_type="regression")},
    ),
    model("tokenizer broken", f"cannot be loaded (...){WHOLE_FOLDER}", tokenizer="{bad"),
    model(
        "tokenizer without padding",
        "has no padding token; give it one (tokenizer.pad_token = tokenizer.eos_token, "
        "save_pretrained there), or choose a model such as DistilBERT",
        tokenizer_config=edited(pad_token=None),
    ),
    model(
        "tokenizer of another model",
        "its tokenizer has token 44 and the model only 20 of them; "
        "save the tokenizer that belongs to it there",
        config=edited(vocab_size=20),
    ),
]

OUTPUT = [
    one(
        "output is a file",
        "--output_dir=<tmp>/x",
        "--output_dir <tmp>/x: File exists; give another folder",
        {"x": "mine"},
    ),
    one(
        "output under a file",
        "--output_dir=<tmp>/x/run",
        "--output_dir <tmp>/x/run: Not a directory; give another folder",
        {"x": "mine"},
    ),
    one(
        "output not writable",
        "--output_dir=<tmp>/locked/run",
        "--output_dir <tmp>/locked/run: Permission denied; give another folder",
        {"locked/": ""},
    ),
    one(
        "best without last",
        "--output_dir=<tmp>/run",
        "--output_dir <tmp>/run: holds best/ of another run and no last/ to resume from; "
        "give another folder, or --overwrite to delete it",
        {"run/last/": None},
    ),
    one(
        "runs without last",
        "--output_dir=<tmp>/run",
        "--output_dir <tmp>/run: holds runs/ of another run and no last/ to resume from; "
        "give another folder, or --overwrite to delete it",
        {"run/last/": None, "run/best/": None},
    ),
    Case(
        "other settings",
        ["--learning_rate=0.001", "--seed=7"],
        [
            f"<tmp>/run/last was written with learning_rate 2e-05, not 0.001: {ANOTHER}",
            f"<tmp>/run/last was written with seed 42, not 7: {ANOTHER}",
        ],
        {"run/note": ""},
    ),
    one(
        "other batch",
        "--per_device_train_batch_size=4",
        "<tmp>/run/last was written with batches of 16, not 4: give "
        "--per_device_train_batch_size 16 --gradient_accumulation_steps 1, another --output_dir, "
        "or --overwrite to delete that run",
        {"run/note": ""},
    ),
    one(
        "last: of another version",
        [],
        "<tmp>/run/last was written by another version of this project; resume it with that "
        "version, give another --output_dir, or --overwrite to delete that run",
        {
            "run/last/progress.json": rewritten(best_step="best_at"),
            "run/last/manifest.json": without("progress.json"),
        },
    ),
    one("last: a file cut off", [], f"<tmp>/{BROKEN}", {"run/last/optimizer.safetensors": shorter}),
    one("last: a file missing", [], f"<tmp>/{BROKEN}", {"run/last/optimizer.safetensors": None}),
    one("last: weights altered", [], f"<tmp>/{BROKEN}", {"run/last/model.safetensors": altered}),
    one("last: manifest broken", [], f"<tmp>/{BROKEN}", {"run/last/manifest.json": "{bad"}),
    one("last: manifest missing", [], f"<tmp>/{BROKEN}", {"run/last/manifest.json": None}),
    one("last: manifest of nothing", [], f"<tmp>/{BROKEN}", {"run/last/manifest.json": "{}"}),
    one(
        "a start that the run would replace",
        ["--model=<tmp>/run/best", "--overwrite"],
        "--model <tmp>/run/best: is in the --output_dir, where this run would replace it; "
        "give another --output_dir",
        {"run/note": "mine"},
    ),
    one(
        "last without its best",
        [],
        "<tmp>/run/best is gone; restore it, or start anew with --overwrite",
        {"run/best/": None},
    ),
    one(
        "last with a damaged best",
        [],
        f"<tmp>/run/best: model.safetensors is not what was written; {NO_COPY}",
        {"run/best/model.safetensors": altered},
    ),
]

REVIEWS = "text,stars\nw1 w2,1\nw3,2\n"
NO_CHECKPOINT = "; give the best/ folder that train.py wrote"
TRAINED_ON = (
    ": 150 of the 150 texts are among those that the model was trained or validated on; "
    "give --dataset TEST_FILE, or another split "
    "(--split validation evaluates those that chose the step)"
)

EVAL = [
    flag("--ckp=x", "unknown flag --ckp: did you mean --ckpt?"),
    flag("--config=x", "unknown flag --config: --help lists the flags"),
    flag("--max_test_samples=0", "--max_test_samples 0: give a whole number of at least 1"),
    flag("--text=", "--text ['']: give texts that are not empty"),
    one("second text blank", ["--text=w1", "--text= "], "--text ['w1', ' ']: give texts..."),
    one("text from a dash", ["--text", "-bad"], f"--text{NO_VALUE}"),
    one(
        "ckpt missing",
        "--ckpt=<tmp>/best",
        f"--ckpt <tmp>/best: no checkpoint there (no config.json){NO_CHECKPOINT}",
    ),
    one(
        "ckpt a file",
        "--ckpt=<tmp>/x",
        f"--ckpt <tmp>/x: no checkpoint there (no config.json){NO_CHECKPOINT}",
        {"x": "mine"},
    ),
    one(
        "ckpt empty",
        "--ckpt=<tmp>/x",
        f"--ckpt <tmp>/x: no checkpoint there (no config.json){NO_CHECKPOINT}",
        {"x/": ""},
    ),
    one(
        "ckpt is last",
        "--ckpt=<tmp>/run/last",
        f"--ckpt <tmp>/run/last: no checkpoint there (no config.json){NO_CHECKPOINT}",
        {"run/note": ""},
    ),
    one(
        "ckpt without weights",
        [],
        f"--ckpt <tmp>/best: no checkpoint there (no weights){NO_CHECKPOINT}",
        {"best/model.safetensors": None},
    ),
    one(
        "ckpt altered",
        [],
        "--ckpt <tmp>/best: model.safetensors is not what was written; restore it or train anew",
        {"best/model.safetensors": altered},
    ),
    one(
        "ckpt manifest broken",
        [],
        "--ckpt <tmp>/best: ...; restore it or train anew",
        {"best/manifest.json": "{bad"},
    ),
    one(
        "ckpt settings broken",
        [],
        "--ckpt <tmp>/best/training_config.json: ...; restore it or train anew",
        {"best/manifest.json": None, "best/training_config.json": "{bad"},
    ),
    one(
        "ckpt weights cut off",
        [],
        f"--ckpt <tmp>/best: cannot be loaded (...){WHOLE_FOLDER}",
        {"best/manifest.json": None, "best/model.safetensors": shorter},
    ),
    one(
        "ckpt without a head",
        "--ckpt=<tiny>",
        "--ckpt <tiny>: has no classification head; train it, and give its best/",
    ),
    one(
        "ckpt without class names",
        [],
        "--ckpt <tmp>/best: config.json names its 2 classes {0: 'a', 5: 'b'}; "
        "give each a name of its own under id2label",
        {"best/manifest.json": None, "best/config.json": edited(id2label={"0": "a", "5": "b"})},
    ),
    one(
        "ckpt is an adapter",
        "--ckpt=<tmp>/x",
        f"--ckpt <tmp>/x: {ADAPTER}",
        {"x/adapter_config.json": "{}", "x/adapter_model.safetensors": ""},
    ),
    one(
        "ckpt pickled with code in it",
        [],
        f"--ckpt <tmp>/best: cannot be loaded (...){WHOLE_FOLDER}",
        {
            "best/manifest.json": None,
            "best/model.safetensors": None,
            "best/pytorch_model.bin": pickle.dumps(print, protocol=2),
        },
    ),
    one(
        "ckpt on the Hub, no network",
        "--ckpt=nobody/nothing",
        "--ckpt nobody/nothing: no such folder, and not on the Hub (...); "
        "check the name (or unset HF_HUB_OFFLINE to download it)",
    ),
    one(
        "ckpt of a regression",
        [],
        "--ckpt <tmp>/best: its head gives a number, not a class...; choose a classifier",
        {"best/manifest.json": None, "best/config.json": edited(problem_type="regression")},
    ),
    one(
        "ckpt with several labels a text",
        [],
        "--ckpt <tmp>/best: its head gives several labels to a text...; choose a classifier",
        {
            "best/manifest.json": None,
            "best/config.json": edited(problem_type="multi_label_classification"),
        },
    ),
    one(
        "ckpt that names no data set",
        [],
        "--ckpt <tmp>/best: does not say what it was trained on; give --dataset",
        {"best/manifest.json": None, "best/training_config.json": None},
    ),
    one(
        "label unknown",
        "--dataset=<tmp>/x.csv",
        "--dataset <tmp>/x.csv: label 'maybe' (row 2) is none of the classes; "
        "give one of negative, positive",
        {"x.csv": csv_of("w1,positive", "w2,maybe")},
    ),
    one(
        "no test split",
        "--dataset=<tmp>/folder",
        "--dataset <tmp>/folder: no file for the split test among train.csv; check its files, "
        "--test_split, or give --dataset TEST_FILE",
        {"folder/train.csv": csv_of(*GOOD)},
    ),
    one(
        "the training split",
        "--test_split=train",
        f"--dataset <corpus> --test_split train{TRAINED_ON}",
    ),
    one(
        "the training file of the folder",
        "--dataset=<corpus>/train.csv",
        f"--dataset <corpus>/train.csv --test_split test{TRAINED_ON}",
    ),
    one(
        "the training file",
        [],
        f"--dataset <corpus>/train.csv --test_split test{TRAINED_ON}",
        {
            "best/manifest.json": None,
            "best/training_config.json": edited(dataset="<corpus>/train.csv"),
        },
    ),
    one(
        "no labels to test on",
        "--dataset=<tmp>/x.csv",
        "--label_column label: no such column in x.csv; give one of id, text, "
        "or --input FILE --output FILE to predict labels",
        {"x.csv": "id,text\n1,w1\n"},
    ),
    one(
        "rows to test on without a text",
        "--dataset=<tmp>/x.csv",
        f"--dataset <tmp>/x.csv: 1 of 2 rows without a text (row 2){INVALID}",
        {"x.csv": csv_of("w1,positive", ",negative")},
    ),
    one(
        "the training file gone",
        [],
        "--dataset <tmp>/x.csv: no such file or folder; check the path",
        {"best/manifest.json": None, "best/training_config.json": edited(dataset="<tmp>/x.csv")},
    ),
    one(
        "input alone",
        "--input=<tmp>/in.csv",
        "--input <tmp>/in.csv: needs --output FILE; give both",
        {"in.csv": REVIEWS},
    ),
    one(
        "output alone",
        "--output=<tmp>/out.csv",
        "--output <tmp>/out.csv: needs --input FILE; give both",
    ),
    Case(
        "modes mixed",
        ["--text=w1", "--input=<tmp>/in.csv", "--report=<tmp>/r.json", "--max_test_samples=3"],
        [
            "--input <tmp>/in.csv: needs --output FILE; give both",
            "--input <tmp>/in.csv: given with --text; give one of the two",
            "--max_test_samples 3: is for a report on the test split; leave it out with --text",
            "--report <tmp>/r.json: is for a report; leave it out with --text",
        ],
        {"in.csv": REVIEWS},
    ),
    Case(
        "flags of other modes",
        ["--min_probability=0.9", "--store_threshold=0.8", "--seeds=<tmp>/best"],
        [
            "--min_probability 0.9: is for --text and --input; leave it out",
            "--seeds <tmp>/best: needs --compare FOLDER; give both",
            "--store_threshold 0.8: needs --thresholds; give both",
        ],
    ),
    one(
        "rows to drop of the validation split",
        ["--split=validation", "--drop_invalid"],
        "--drop_invalid: is for a report on the test split; leave it out with --split validation",
    ),
    one(
        "validation and another data set",
        ["--split=validation", "--dataset=<tmp>/x.csv"],
        "--dataset <tmp>/x.csv: is for a report on the test split; leave it out with --split "
        "validation",
    ),
    one(
        "min_probability above 1",
        ["--text=w1", "--min_probability=90"],
        '--min_probability 90: give a number from 0 to 1, or "stored"',
    ),
    one(
        "no stored threshold",
        ["--text=w1", "--min_probability=stored"],
        "--min_probability stored: <tmp>/best has none; give a number, or store one with "
        "--thresholds --store_threshold",
        {"best/x": "mine"},
    ),
    one(
        "a stored threshold for whole texts",
        ["--text=w1", "--min_probability=stored", "--long=window"],
        "--min_probability stored: was chosen for cut texts, not for --long window; give a "
        "probability",
        {"best/x": "mine"},
    ),
    one(
        "damaged threshold",
        ["--text=w1", "--min_probability=stored"],
        "<tmp>/best/threshold.json: is damaged (...); write it again, by --thresholds "
        "--store_threshold",
        {"best/threshold.json": "[1]"},
    ),
    one(
        "thresholds of a model without its validation",
        ["--thresholds"],
        "--thresholds: <tmp>/best does not hold its validation; give the best/ that train.py wrote",
        {"best/manifest.json": None, "best/validation.npz": None},
    ),
    one(
        "validation of a model that does not hold it",
        ["--split=validation"],
        "--split validation: <tmp>/best does not hold what it was validated on; give the best/ "
        "that train.py wrote",
        {"best/manifest.json": None, "best/validation_texts.npy": None},
    ),
    one(
        "predictions there",
        ["--predictions=<tmp>/x.csv"],
        "--predictions <tmp>/x.csv: exists; give another name, or --overwrite",
        {"x.csv": "predicted_label,probability"},
    ),
    one(
        "predictions over a file of the test set",
        ["--dataset=<tmp>/d", "--predictions=<tmp>/d/test.csv", "--overwrite"],
        "--predictions <tmp>/d/test.csv: exists, and is not of this program; give another name",
        {"d/test.csv": "text,label\nw1,positive\n"},
    ),
    one(
        "a report over a file of settings",
        ["--report=<tmp>/x", "--overwrite"],
        "--report <tmp>/x: exists, and is not of this program; give another name",
        {"x": "{}"},
    ),
    one(
        "a column that predictions would have, too",
        ["--dataset=<tmp>/x.csv", "--errors=<tmp>/wrong.csv"],
        "--predictions, --errors: x.csv has a column 'probability' already; rename it",
        {"x.csv": "text,label,probability\nw1,positive,1\nw2,negative,0\n"},
    ),
    one(
        "a label in other letters",
        ["--dataset=<tmp>/x.csv"],
        "--dataset <tmp>/x.csv: label 'Positive' (2 times, first in row 2) and 1 more are none of "
        "the classes (is it 'positive'?); give one of negative, positive",
        {"x.csv": "text,label\nw1,positive\nw2,Positive\nw3,Positive\nw4,bad\n"},
    ),
    one(
        "errors where the predictions go",
        ["--errors=<tmp>/x.csv", "--predictions=<tmp>/x.csv"],
        "--errors <tmp>/x.csv: is the --predictions too; give another name",
    ),
    one(
        "predictions over the test file",
        ["--dataset=<tmp>/x.csv", "--predictions=<tmp>/x.csv", "--overwrite"],
        "--predictions <tmp>/x.csv: is the --dataset too; give another name",
        {"x.csv": "text,label\nw1,positive\n"},
    ),
    one(
        "errors as what",
        ["--errors=<tmp>/x.txt"],
        "--errors <tmp>/x.txt: unknown kind of file; give one of .csv, .tsv, .jsonl, .ndjson, "
        ".parquet",
    ),
    one(
        "output there",
        ["--input=<tmp>/in.csv", "--output=<tmp>/out.csv"],
        "--output <tmp>/out.csv: exists, and is not of this program; give another name",
        {"in.csv": REVIEWS, "out.csv": "mine"},
    ),
    one(
        "output is the input",
        ["--input=<tmp>/in.csv", "--output=<tmp>/in.csv", "--overwrite"],
        "--output <tmp>/in.csv: is the --input itself; give another name",
        {"in.csv": REVIEWS},
    ),
    one(
        "output a folder",
        ["--input=<tmp>/in.csv", "--output=<tmp>/out.csv", "--overwrite"],
        "--output <tmp>/out.csv: is a folder; give the name of a file",
        {"in.csv": REVIEWS, "out.csv/": ""},
    ),
    one(
        "output in no folder",
        ["--input=<tmp>/in.csv", "--output=<tmp>/no/out.csv"],
        "--output <tmp>/no/out.csv: folder <tmp>/no is not there; make it, or give another",
        {"in.csv": REVIEWS},
    ),
    one(
        "output of unknown kind",
        ["--input=<tmp>/in.csv", "--output=<tmp>/out.xlsx"],
        "--output <tmp>/out.xlsx: unknown kind of file; "
        "give one of .csv, .tsv, .jsonl, .ndjson, .parquet",
        {"in.csv": REVIEWS},
    ),
    one(
        "input missing",
        ["--input=in.csv", "--output=<tmp>/out.csv"],
        "--input in.csv: no such file; check the path",
    ),
    one(
        "input is a folder",
        ["--input=<tmp>/d", "--output=<tmp>/out.csv"],
        "--input <tmp>/d: is no file; "
        "give a .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow, .txt file",
        {"d/in.csv": REVIEWS},
    ),
    one(
        "input of lines, a pair",
        ["--input=<tmp>/in.txt", "--output=<tmp>/out.csv", "--text_column=a,b"],
        "--text_column a: no such column in in.txt; give one of text",
        {"in.txt": "fine\n"},
    ),
    one(
        "input without texts",
        ["--input=<tmp>/in.csv", "--output=<tmp>/out.csv"],
        "--text_column text: no such column in in.csv; give one of review, stars",
        {"in.csv": REVIEWS.replace("text", "review")},
    ),
    one(
        "input with a longer row",
        ["--input=<tmp>/in.csv", "--output=<tmp>/out.csv"],
        "<tmp>/in.csv: row 3 has 3 values, the header 2; "
        "put texts that hold the delimiter in quotes, or correct that row",
        {"in.csv": REVIEWS + "w1, w2,3\n"},
    ),
    one(
        "pairs for a text",
        ["--text=w1"],
        "--text: the model reads pairs of texts (title,text); give --input FILE",
        {"best/manifest.json": None, "best/training_config.json": edited(text_column="title,text")},
    ),
    one(
        "input with two columns of a name",
        ["--input=<tmp>/in.csv", "--output=<tmp>/out.jsonl"],
        "<tmp>/in.csv: has 2 columns 'n'; rename them",
        {"in.csv": "n,text,n\n1,w1,2\n"},
    ),
    one(
        "input with two columns of texts",
        ["--input=<tmp>/in.csv", "--output=<tmp>/out.csv"],
        "<tmp>/in.csv: has 2 columns 'text'; rename them",
        {"in.csv": "text,text\nw1,w2\n"},
    ),
    one(
        "pair to be cut in the middle",
        ["--input=<tmp>/in.csv", "--output=<tmp>/out.csv", "--text_column=n,text"],
        "--truncation head_tail: cuts one text, not a pair; give head or tail",
        {
            "in.csv": "n,text\nw1,w2\n",
            "best/manifest.json": None,
            "best/training_config.json": edited(truncation="head_tail"),
        },
    ),
    one(
        "input with predictions",
        ["--input=<tmp>/in.csv", "--output=<tmp>/out.csv"],
        "--input <tmp>/in.csv: has a column probability already; rename it",
        {"in.csv": REVIEWS.replace("stars", "probability")},
    ),
    one(
        "report of something else",
        [],
        "<tmp>/best/report_test.json holds a report that differs in --dataset, --test_split, "
        "--text_column, --label_column, texts, weights; give --report FILE, or --overwrite",
        {"best/report_test.json": '{"of": {"dataset": "other"}}'},
    ),
    one(
        "report is a note",
        "--report=<tmp>/x",
        "--report <tmp>/x: exists, and is not of this program; give another name",
        {"x": "mine"},
    ),
    one(
        "report a folder",
        "--report=<tmp>/x",
        "--report <tmp>/x: is a folder; give the name of a file",
        {"x/": ""},
    ),
    one(
        "report in no folder",
        "--report=<tmp>/no/r.json",
        "--report <tmp>/no/r.json: folder <tmp>/no is not there; make it, or give another",
    ),
    flag("--html=page.txt", "--html page.txt: give a name that ends in .html"),
    one(
        "html is the report",
        ["--html=<tmp>/r.html", "--report=<tmp>/r.html"],
        "--html <tmp>/r.html: is the --report itself; give another name",
    ),
    one(
        "html of the user's",
        ["--html=<tmp>/r.html", "--overwrite"],
        "--html <tmp>/r.html: exists, and is not of this program; give another name",
        {"r.html": "<p>mine"},
    ),
    one(
        "the validation split of texts",
        ["--split=validation", "--text=w1"],
        "--split validation: is for a report; leave it out with --text",
    ),
    one(
        "its validation is gone",
        [],
        "--ckpt <tmp>/best: validation.npz is missing; restore it or train anew",
        {"best/validation.npz": None},
    ),
    one(
        "html in no folder",
        "--html=<tmp>/no/r.html",
        "--html <tmp>/no/r.html: folder <tmp>/no is not there; make it, or give another",
    ),
    one(
        "html with text",
        ["--text=w1", "--html=<tmp>/r.html"],
        "--html <tmp>/r.html: is for a report; leave it out with --text",
    ),
]


EXPORT = [
    one(
        "output there",
        "--output=<tmp>/onnx",
        "--output <tmp>/onnx: exists; give another folder (or --overwrite, for an export)",
        {"onnx/mine.txt": "mine"},
    ),
    one(
        "output a folder of the user's, to be replaced",
        ["--output=<tmp>/onnx", "--overwrite"],
        "--output <tmp>/onnx: exists; give another folder (or --overwrite, for an export)",
        {"onnx/mine.txt": "mine"},
    ),
    one(
        "output in no folder",
        "--output=<tmp>/no/onnx",
        "--output <tmp>/no/onnx: cannot be written in <tmp>/no; give another folder",
    ),
    one(
        "no such checkpoint",
        "--ckpt=<tmp>/x",
        f"--ckpt <tmp>/x: no checkpoint there (no config.json){NO_CHECKPOINT}",
    ),
    one(
        "input without a text",
        "--input=<tmp>/x.csv",
        "--input <tmp>/x.csv: holds no text; give a file that does",
        {"x.csv": "text\n \n"},
    ),
    one(
        "input without the column",
        "--input=<tmp>/x.csv",
        "--text_column text: no such column in x.csv; give one of body",
        {"x.csv": "body\nw1\n"},
    ),
]

PUSH = [
    one("no name", [], "--name: is missing; give USER/MODEL"),
    flag("--name=stars", "--name stars: give USER/MODEL, letters, digits, -_."),
    one(
        "a name, and no token",
        "--name=me/stars",
        "--name me/stars: no token; give one by hf auth login, or HF_TOKEN",
    ),
    one(
        "another program's model",
        ["--ckpt=<tmp>/model", "--name=me/stars", "--dry_run"],
        "--ckpt <tmp>/model: train.py did not write it; give the best/ of a training",
        {"model/mine": ""},
    ),
]


def table(cases: list[Case]):
    def marks(case):
        if case.id == "output not writable":
            yield pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")

    params = [pytest.param(case, id=case.id, marks=[*marks(case)]) for case in cases]
    return pytest.mark.parametrize("case", params)


@pytest.fixture(scope="module")
def finished(tiny, corpus, tmp_path_factory) -> Path:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    train.main([*good_flags(tiny, corpus), f"--output_dir={folder}"])
    return folder


def good_flags(tiny, corpus) -> list[str]:
    sizes = {"max_length": 32, "num_threads": 1, "max_steps": 2}
    return [
        f"--{key}={value}" for key, value in {"model": tiny, "dataset": corpus, **sizes}.items()
    ]


@pytest.fixture
def places(tiny, corpus, finished, tmp_path) -> dict[str, Path]:
    return {"tiny": tiny, "corpus": corpus, "finished": finished, "tmp": tmp_path}


def put(text: str, places) -> str:
    for name, path in places.items():
        text = text.replace(f"<{name}>", str(path))
    return text


def lay_out(files: dict, places) -> None:
    originals = {
        "model": places["tiny"],
        "run": places["finished"],
        "best": places["finished"] / "best",
    }
    for top in {name.split("/")[0] for name in files} & set(originals):
        shutil.copytree(originals[top], places["tmp"] / top)
    for name, content in files.items():
        path = places["tmp"] / name
        if callable(content):
            content = content(path.read_bytes())
        if content is None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif name.endswith("/"):
            path.mkdir(parents=True, mode=0o500 if "locked" in name else 0o700)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = put(content, places).encode() if isinstance(content, str) else content
            path.write_bytes(content)


def all_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_lines(case: Case, main, good: list[str], places, capfd) -> None:
    """`main` raises those lines, all and whole, having printed, written and lost nothing."""
    lay_out(case.files, places)
    before = all_files(places["tmp"])
    capfd.readouterr()
    with pytest.raises(UserError) as raised:
        main([*good, *(put(flag, places) for flag in case.flags)])
    lines = list(raised.value.args)
    for line, expected in zip(lines, case.lines, strict=True):
        pattern = re.escape(put(expected, places)).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, line), f"{line}\nis not\n{put(expected, places)}"
        assert REMEDY.search(line), line
        assert line.splitlines() == [line]
    assert capfd.readouterr() == ("", "")
    assert all_files(places["tmp"]) == before


@table(FLAGS + DATA + MODELS)
def test_train(case, places, capfd):
    """Red: see above."""
    good = good_flags(places["tiny"], places["corpus"])
    assert_lines(case, train.main, [*good, f"--output_dir={places['tmp']}/out"], places, capfd)


@table(OUTPUT)
def test_train_where_something_is(case, places, capfd):
    """Red: find_last or load_last without one of its checks; newest_whole without verify_folder."""
    good = good_flags(places["tiny"], places["corpus"])
    assert_lines(case, train.main, [*good, f"--output_dir={places['tmp']}/run"], places, capfd)


@table(EVAL)
def test_eval(case, places, capfd):
    """Red: see above."""
    copied = any(name.startswith("best/") for name in case.files)
    ckpt = places["tmp"] / "best" if copied else places["finished"] / "best"
    assert_lines(case, evaluation.main, [f"--ckpt={ckpt}", "--num_threads=1"], places, capfd)


@table(EXPORT)
def test_export_onnx(case, places, capfd):
    """Red: require_own without one of its checks; read_input without its look for texts."""
    ckpt = f"--ckpt={places['finished'] / 'best'}"
    good = [ckpt, "--num_threads=1", f"--output={places['tmp'] / 'new'}"]
    assert_lines(case, export_onnx.main, good, places, capfd)


@table(PUSH)
def test_push_to_hub(case, places, capfd, monkeypatch):
    """Red: push without one of its checks."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    ckpt = f"--ckpt={places['finished'] / 'best'}"
    assert_lines(case, push_to_hub.main, [ckpt], places, capfd)


@pytest.mark.parametrize("flag", ["--dataset=nobody/nothing", "--model=nobody/nothing"])
def test_a_hub_that_does_not_answer_is_one_line_within_seconds(flag, places, monkeypatch):
    """The Hub's own code retries for 23 s. Red: `locate` without its probe."""
    monkeypatch.setattr(hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    begun = time.perf_counter()
    with pytest.raises(UserError) as raised:
        train.main([*good_flags(places["tiny"], places["corpus"]), flag])
    assert time.perf_counter() - begun < 10
    (line,) = raised.value.args
    given = flag.replace("=", " ")
    remedy = "give a local path, or set HF_HUB_OFFLINE=1 if it was downloaded before"
    assert re.fullmatch(rf"{given}: http://127.0.0.1:9 does not answer \(\w+\); {remedy}", line)


def test_a_config_file_may_be_a_pipe(places, tmp_path):
    """As in `--config <(command)`, whose contents come once. Red: `main` for `fine_tune` in the
    last line of train.py, which parses the command line again."""
    os.mkfifo(pipe := tmp_path / "pipe")
    flags = good_flags(places["tiny"], places["corpus"])
    with Forked("train.py", *flags, f"--config={pipe}", f"--output_dir={tmp_path}") as process:
        pipe.write_text('{"max_steps": 1}')
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err


@pytest.mark.parametrize("word", ["null", "NA", "nan", "None", "N/A"])
def test_words_that_pandas_takes_for_nothing_are_texts(word, tmp_path):
    """In a file and in a folder. Red: such words taken for nothing in read_csv."""
    write_csv(tmp_path / "train.csv", [(word, "no"), ("w1", word)] * 2)
    for path in (tmp_path, tmp_path / "train.csv"):
        texts = label_rows(read_table(str(path), "train"), "text", "label")
        assert [text for chunk in texts.chunks() for (text,) in chunk] == [word, "w1"] * 2
        assert texts.names == sorted(["no", word])


def test_another_data_set_is_read_without_the_configuration_of_the_training(places):
    """Red: choose_test without the line that takes them out."""
    write_csv(places["tmp"] / "x.csv", make_rows(20, seed=3))
    settings = json.loads((places["finished"] / "best" / "training_config.json").read_text())
    trained = settings | {"dataset_config_name": "sst2", "dataset_revision": "v2"}
    asked = evaluation.EvalConfig(dataset=str(places["tmp"] / "x.csv"))
    about = evaluation.choose_test(asked, trained)
    test, _ = evaluation.load_test(about, Seen([], []), ["negative", "positive"], False)
    assert len(test) == 20
    assert about["dataset_config_name"] is about["dataset_revision"] is None


@pytest.mark.parametrize(("rank", "expected"), [("0", "error: a b\nerror: c\n"), ("1", "")])
def test_lines_come_from_the_first_process_and_the_status_is_2(rank, expected, monkeypatch, capsys):
    """Red: explain with status 1, or with the first of `error.args` alone; failed_first without its
    look at LOCAL_RANK."""
    monkeypatch.setenv("LOCAL_RANK", rank)

    def main():
        raise UserError("a\nb", "c")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", expected)


def test_a_long_value_leaves_a_line_readable():
    """Red: UserError without its cut, or with one that drops the remedy."""
    (line,) = UserError(f"label {'very ' * 1000} is unknown; give another").args
    assert len(line) <= 700
    assert line.startswith("label very")
    assert line.endswith("; give another")


@pytest.fixture(scope="module")
def processes(tiny, corpus, tmp_path_factory):
    """Commands as processes of their own: name -> (status, stdout, stderr)."""
    broken = tmp_path_factory.mktemp("broken") / "x.jsonl"
    broken.write_text(jsonl(*PAIRS)[:-15])  # datasets logs an error of its own for it
    commands = {
        "train": ["train.py", *good_flags(tiny, corpus), f"--dataset={broken}"],
        "eval": ["eval.py", "--ckpt=/no/such/folder"],
    }
    running = {name: Forked(*words) for name, words in commands.items()}
    ends = {name: process.communicate(timeout=120) for name, process in running.items()}
    return {name: (running[name].returncode, *ends[name]) for name in running}


@pytest.mark.parametrize("name", ["train", "eval"])
def test_as_a_shell_sees_it(processes, name):
    """Status 2, nothing but the lines, no traceback. Red: train.py ending in a bare
    `fine_tune(GIVEN)`, without run_command."""
    status, out, err = processes[name]
    assert status == 2
    assert out == ""
    assert re.fullmatch("error: .*; .*\n", err), err
