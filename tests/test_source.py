"""Rules about the source itself: who opens the test split, who imports whom, what is readable."""

import ast
import csv
import subprocess
import sys

import pytest
from conftest import ROOT, make_rows, write_csv

CORE = ["config", "data", "model", "checkpoint", "processes", "report", "eval", "engines", "state"]
CORE += ["train"]


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / f"{name}.py").read_text())


def test_only_eval_names_the_test_split():
    """Invariant 7. Red: `config.test_split` anywhere in train.py."""
    for name in set(CORE) - {"config", "eval"}:
        for node in ast.walk(tree_of(name)):
            word = (
                getattr(node, "attr", None)
                or getattr(node, "id", None)
                or getattr(node, "arg", None)
            )
            assert "test" not in (word or "").split("_"), f"{name}.py:{node.lineno}: {word}"


def test_imports_go_one_way():
    """In the order of CORE. Red: `import train` in eval.py."""
    for position, name in enumerate(CORE):
        for node in ast.walk(tree_of(name)):
            imported = {
                ast.Import: lambda n: [alias.name for alias in n.names],
                ast.ImportFrom: lambda n: [n.module],
            }.get(type(node), lambda n: [])(node)
            for module in imported:
                assert module not in CORE[position:], f"{name}.py imports {module}"


def test_train_does_not_wait_for_evaluate():
    """It takes two seconds to import, for a report that train.py does not make.

    Red: `import report` at the top of eval.py.
    """
    program = "import sys, train; sys.exit('evaluate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_test_split_has_no_part_in_training(tiny, tmp_path):
    """Invariant 7, by what happens: another test split, one fingerprint of what is learnt from.

    Red: `read_table(config.dataset, "test")` in train.py.
    """
    import train
    from config import Config

    seen = []
    for name, seed in (("a", 7), ("b", 8)):
        write_csv(tmp_path / name / "train.csv", make_rows(60, seed=1))
        write_csv(tmp_path / name / "test.csv", make_rows(30, seed=seed))
        config = Config(dataset=str(tmp_path / name), model=str(tiny), max_length=32)
        seen.append(train.prepare(config, train.make_accelerator(config)).settings["data"])
    assert seen[0] == seen[1]


def test_no_text_of_the_demo_stands_in_two_places():
    """Invariant 7 for the shipped example. Red: a line of test.csv copied into train.csv."""
    folder = ROOT / "demo" / "corpus"
    texts = []
    for name in ("train", "test"):
        with (folder / f"{name}.csv").open(newline="") as file:
            texts += [" ".join(row["text"].lower().split()) for row in csv.DictReader(file)]
    unlabelled = (ROOT / "demo" / "unlabelled.txt").read_text().lower().splitlines()
    texts += [" ".join(line.split()) for line in unlabelled]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("name", CORE)
def test_a_file_can_be_read(name):
    """Lines at most 100 wide, functions at most 60 long, nesting at most 4 in the loop, else 3.

    Red: another `if` inside the innermost `with` of the loop.
    """
    source = (ROOT / f"{name}.py").read_text()
    assert max(len(line) for line in source.splitlines()) <= 100
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{name}.{node.name} has {length} lines"
            limit = 4 if (name, node.name) == ("train", "train") else 3
            assert depth(node) - 1 <= limit, f"{name}.{node.name} is nested {depth(node) - 1} deep"


def depth(node: ast.AST) -> int:
    blocks = (ast.FunctionDef, ast.For, ast.While, ast.If, ast.With, ast.Try)
    chained = getattr(node, "orelse", []) if isinstance(node, ast.If) else []
    below = [
        depth(child) - (chained == [child] and isinstance(child, ast.If))  # an elif is no deeper
        for child in ast.iter_child_nodes(node)
    ]
    return max(below, default=0) + isinstance(node, blocks)
