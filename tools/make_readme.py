"""The README's loop, from train.py, and its table, from the newest results: `python
tools/make_readme.py`. A test compares them."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))
from make_dealing import newest


def loop() -> str:
    """The functions `train` and `update`, as they stand in train.py."""
    source = (ROOT / "train.py").read_text()
    functions = {
        node.name: ast.get_source_segment(source, node)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    return f"```python\n{functions['train']}\n\n\n{functions['update']}\n```\n"


def table() -> str:
    arms = newest("speed")["arms"]
    ours, trainer = arms["ours"], arms["HF Trainer"]
    given_both = arms["HF Trainer, length grouping, attention dropout 0"]
    factor = {
        loop: max(
            factor
            for row in newest("dealing")["results"]
            if row.get("loop") == loop and (row["processes"], row["accumulation"]) == (1, 4)
            for factor in row["factors"][:-1]
        )
        for loop in ("ours", "HF Trainer")
    }

    def texts_per_second(arm) -> tuple[str, str]:
        """Trainer's, and ours with the ratio of each round beside it."""
        ratio = arm["ours_times_as_fast"]
        spread = (
            f"{ratio['median']:.1f} times; {ratio['min']:.1f} to {ratio['max']:.1f} in the rounds"
        )
        own, theirs = (one["reviews_per_second"]["median"] for one in (ours, arm))
        return f"{theirs:.2f}", f"{own:.2f} ({spread})"

    def medians(name, digits) -> tuple[str, str]:
        return tuple(f"{arm[name]['median']:.{digits}f}" for arm in (trainer, ours))

    def same(loop, order) -> str:
        """What `loop` ends in, beside the run that nothing stopped."""
        (row,) = (
            row
            for row in newest("resume")["results"]
            if (row["loop"], row["order"]) == (loop, order)
        )
        differ = row["weights_that_differ"]
        return f"{differ / row['weights']:.0%} of the weights differ" if differ else "same bits"

    rows = [
        (
            "Gradient at accumulation 4, as a multiple of the right one",
            *(f"{factor[name]:.2f}" for name in ("HF Trainer", "ours")),
        ),
        ("Training, texts/s", *texts_per_second(trainer)),
        (
            "The same, Trainer given length grouping and attention dropout 0 as well",
            *texts_per_second(given_both),
        ),
        ("Evaluation at batch 16, texts/s", *medians("predict_reviews_per_second", 1)),
        ("Peak memory, GB", *medians("peak_gigabytes", 1)),
        *(
            (
                f"Stopped in the second epoch and resumed, {order}",
                same("HF Trainer", key),
                same("ours", key),
            )
            for key, order in (("random", "random order"), ("group_by_length", "length grouping"))
        ),
    ]
    lines = ["| | HF Trainer | ours |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def readme() -> str:
    text = (ROOT / "README.md").read_text()
    for name, content in (("loop", loop()), ("table", table())):
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        block = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
        text = block.sub(lambda _, new=begin + content + end: new, text)
    return text


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme())
