"""Rules about the source itself: who opens the test split, who imports whom, what is readable."""

import ast
import csv
import itertools
import re
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT, make_rows, write_csv

RUNTIME = [
    "display",
    "streams",
    "flags",
    "folders",
    "environment",
    "formats",
    "tokenizer",
    "hub",
    "last_layer",
    "dropout",
    "probe",
]
RUNTIME += [
    "tables",
    "soft",
    "heads",
    "seen",
    "notes",
    "draw",
    "splits",
    "cache",
    "processes",
    "deepspeed",
]
RUNTIME += ["intervals", "card", "engines", "checkpoint", "board", "monitor"]
REPORT = [
    "files",
    "asked",
    "findings",
    "terminal",
    "predictions",
    "metrics",
    "calibration",
    "comparison",
]
REPORT += ["windows", "thresholds", "texts", "rivals", "look", "plots", "history", "page"]
# In the order of imports: each may import those before it. train does not import eval, nor report.
HOUSE = [f"runtime.{name}" for name in RUNTIME] + ["config", "model"]
HOUSE += [f"report.{name}" for name in REPORT] + ["data", "eval", "train"]


def source_of(name: str) -> str:
    return (ROOT / f"{name.replace('.', '/')}.py").read_text()


def test_the_list_of_files_is_complete():
    """Red: "runtime.hub" left out of HOUSE."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("runtime/*.py"), *ROOT.glob("report/*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    assert sorted(HOUSE) == sorted(name for name in names if not name.endswith("__init__"))


def test_only_eval_names_the_test_split():
    """Red: `config.test_split` anywhere in train.py."""
    for name in set(HOUSE) - {"config", "eval"}:
        for node in ast.walk(ast.parse(source_of(name))):
            word = (
                getattr(node, "attr", None)
                or getattr(node, "id", None)
                or getattr(node, "arg", None)
            )
            assert "test" not in (word or "").split("_"), f"{name}:{node.lineno}: {word}"


def imports_of(name: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source_of(name))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(HOUSE)


def test_imports_go_one_way():
    """In the order of HOUSE; runtime/ imports no file of the top level, train.py neither eval.py
    nor report/. Red: `import config` in runtime/engines.py; `import eval` in train.py."""
    for position, name in enumerate(HOUSE):
        later = imports_of(name) & set(HOUSE[position:])
        assert not later, f"{name} imports {later}"
    assert not {name for name in imports_of("train") if name.startswith(("eval", "report"))}


def test_no_two_functions_share_a_name():
    """But `main`. Red: `gather_zero_weights` called `gather_weights`."""
    names = Counter(
        node.name
        for name in HOUSE
        for node in ast.parse(source_of(name)).body
        if isinstance(node, ast.FunctionDef)
    )
    assert {name for name, count in names.items() if count > 1} == {"main"}


def test_train_does_not_wait_for_evaluate():
    """It takes two seconds to import, for a report that train.py does not make.

    Red: `import report.metrics` in train.py.
    """
    program = "import sys, train; sys.exit('evaluate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_test_split_has_no_part_in_training(tiny, tmp_path):
    """By what happens: another test split, one fingerprint of what is learnt from.

    Red: `read_table(config.dataset, "test")` in train.py.
    """
    import train
    from config import Config

    seen = []
    for name, seed in (("a", 7), ("b", 8)):
        write_csv(tmp_path / name / "train.csv", make_rows(60, seed=1))
        write_csv(tmp_path / name / "test.csv", make_rows(30, seed=seed))
        config = Config(dataset=str(tmp_path / name), model=str(tiny), max_length=32)
        seen.append(train.set_up(config, train.make_accelerator(config)).settings["data"])
    assert seen[0] == seen[1]


def test_no_text_of_the_demo_stands_in_two_places():
    """In the shipped example. Red: a line of test.csv copied into train.csv."""
    folder = ROOT / "demo" / "corpus"
    texts = []
    for name in ("train", "test"):
        with (folder / f"{name}.csv").open(newline="") as file:
            texts += [" ".join(row["text"].lower().split()) for row in csv.DictReader(file)]
    unlabelled = (ROOT / "demo" / "unlabelled.txt").read_text().lower().splitlines()
    texts += [" ".join(line.split()) for line in unlabelled]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("name", HOUSE)
def test_a_file_can_be_read(name):
    """Functions at most 60 lines long, nested at most 4 deep in the loop, else 3 (ruff checks the
    width of lines and the complexity).

    Red: another `if` inside the innermost `with` of the loop.
    """
    for node in ast.walk(ast.parse(source_of(name))):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{name}.{node.name} has {length} lines"
            limit = 4 if (name, node.name) == ("train", "update") else 3
            assert depth(node) - 1 <= limit, f"{name}.{node.name} is nested {depth(node) - 1} deep"


def depth(node: ast.AST) -> int:
    blocks = (ast.FunctionDef, ast.For, ast.While, ast.If, ast.With, ast.Try)
    chained = getattr(node, "orelse", []) if isinstance(node, ast.If) else []
    below = [
        depth(child) - (chained == [child] and isinstance(child, ast.If))  # an elif is no deeper
        for child in ast.iter_child_nodes(node)
    ]
    return max(below, default=0) + isinstance(node, blocks)


@pytest.mark.parametrize("name", HOUSE)
def test_every_text_file_is_opened_as_utf8(name):
    """Whatever the locale. Red: a `read_text` without an encoding in runtime/checkpoint.py."""
    for node in ast.walk(ast.parse(source_of(name))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            binary = any(ast.unparse(word) in ("'rb'", "'wb'") for word in node.args)
            is_open = called.endswith("open") and called != "os.open" and not binary
            if is_open or called.endswith(("read_text", "write_text")):
                assert "encoding='utf-8'" in ast.unparse(node), f"{name}:{node.lineno}"


def test_flags_are_answered_before_torch_is_imported():
    """--help and a mistyped flag. Red: `import torch` above parse_or_exit in train.py."""
    without_torch = "import sys; sys.modules['torch'] = None; import runpy; "
    for script, flag in itertools.product(("train.py", "eval.py"), ("--help", "--learning_rte=1")):
        program = f"sys.argv = ['{script}', '{flag}']; runpy.run_path('{script}', {{}}, '__main__')"
        command = [sys.executable, "-c", without_torch + program]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if flag == "--help":
            assert done.returncode == 0
            assert "--num_threads" in done.stdout
        else:
            assert done.returncode == 2
            assert re.fullmatch("error: unknown flag --learning_rte: .*\n", done.stderr)
