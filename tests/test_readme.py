"""The README's commands, names and pages are those of the code."""

import json
import re
import shlex
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT, SET_UP
from datasets import load_dataset
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bench import kill
from config import Config, EvalConfig
from runtime.flags import parse

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / folder / "README.md" for folder in (".", "demo", "recipes")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
COMMANDS = [
    line
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_the_first_two_commands_set_everything_up_in_one_line():
    """Red: another file name than requirements.txt in the README."""
    assert [line.startswith(SET_UP) for line in COMMANDS[:2]] == [True, True]
    assert COMMANDS[1] == SET_UP + ".venv/bin/python -m pytest -q"


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_names_flags_that_exist(line):
    """Red: `--ouput_dir` in the README."""
    for command in line.split("#")[0].split("&&"):
        words = shlex.split(command)
        for script, kind in (("train.py", Config), ("eval.py", EvalConfig)):
            if script in words:
                parse(kind, words[words.index(script) + 1 :])


@pytest.mark.parametrize(
    "page",
    # mistakes.md is made of mistakes; the logbook has the commands of its days.
    [page for page in PAGES if page.name not in ("mistakes.md", "logbook.md")],
    ids=lambda page: page.name,
)
def test_every_name_on_a_page_exists(page):
    """Tests, flags and files. Red: a test renamed; a flag of the README removed from config.py;
    `--unlabeled` in recipes/README.md."""
    text = page.read_text()
    sources = {path.name: path.read_text() for path in (ROOT / "tests").glob("*.py")}
    for file, name in re.findall(r"tests/(\w+\.py)(?:::(\w+))?", text):
        assert f"def {name}(" in sources[file] if name else file in sources
    for name in re.findall(r"`(test_\w+)`", text):
        assert any(f"def {name}(" in source for source in sources.values()), name
    flags = {*Config.__dataclass_fields__, *EvalConfig.__dataclass_fields__, "config", "help"}
    launchers = {"num_processes", "multi_gpu", "nproc_per_node", "cpu", "config_file"}
    others = {"logdir", "machine_rank", *launchers}
    for script in (ROOT / "bench").glob("*.py"):
        others |= set(re.findall(r'"--(\w+)"', script.read_text()))
    for recipe in (ROOT / "recipes").glob("*.py"):
        others |= set(re.findall(r"^    (\w+): .+ = flag\(", recipe.read_text(), re.M))
    for flag in re.findall(r"(?<![\w-])--([a-z]\w+)", text):
        assert flag in flags | others, flag
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


def test_the_page_of_flags_is_that_of_config():
    """Red: a default changed in config.py."""
    sys.path.insert(0, str(ROOT / "tools"))
    from make_flags import flags_page

    assert (ROOT / "docs" / "flags.md").read_text() == flags_page()


def test_the_table_of_kills_is_that_of_the_newest_result():
    """And no chain of it ended in other bits. Red: a figure changed in docs/robustness.md."""
    path = max((ROOT / "bench" / "results").glob("*-kill.json"))
    result, page = json.loads(path.read_text()), (ROOT / "docs" / "robustness.md").read_text()
    assert kill.table(result) in page
    assert f"{result['kills']} SIGKILLs in {result['chains']} chains" in page
    assert result["chains_that_differ"] == []


def test_the_readme_shows_the_loop_as_it_is_and_the_newest_figures():
    """Red: a comment changed in `update` of train.py; a figure changed in the README."""
    sys.path.insert(0, str(ROOT / "tools"))
    from make_readme import loop, readme

    assert readme() == README
    assert loop() in README
    assert len(README.splitlines()) <= 150


def test_the_page_of_dealing_is_that_of_the_newest_result():
    """And ours is right in all of it. Red: a figure changed in the result."""
    sys.path.insert(0, str(ROOT / "tools"))
    from make_dealing import newest, page

    assert (ROOT / "docs" / "dealing.md").read_text() == page(newest())
    rows = [row for row in newest()["results"] if row.get("loop", "ours") == "ours"]
    mixes = [row for row in rows if "loop" in row]
    assert len(mixes) >= 20
    assert max(max(row["differences"]) for row in mixes) <= 1e-6
    assert max(row["rate_difference"] for row in mixes) <= 1e-12
    reports = [row for row in rows if "evaluation" in row]
    assert all(row["counted"] == row["texts"] and row["same_confusion"] for row in reports)
    assert max(row["loss_difference"] for row in reports) <= 1e-6


def test_the_page_of_speed_is_that_of_the_newest_results():
    """And ours is far enough ahead to be worth it. Red: a figure changed in it."""
    sys.path.insert(0, str(ROOT / "tools"))
    from make_speed import newest, page

    result = newest("speed")
    assert (ROOT / "docs" / "speed.md").read_text() == page()
    assert "medians of five rounds" in " ".join(README.split())
    assert len(result["rounds"]["ours"]) == 5
    both = "HF Trainer, length grouping, attention dropout 0"
    others = newest("speed-peers")["arms"]
    for arms, arm, times in (
        (result["arms"], "HF Trainer", 6),
        (result["arms"], both, 1.15),
        (others, "plain Accelerate loop", 5),
        (others, "HF Trainer, length grouping", 1.6),
    ):
        assert arms[arm]["ours_times_as_fast"]["median"] >= times
    ours, trainer = result["arms"]["ours"], result["arms"]["HF Trainer"]
    evaluation = "predict_reviews_per_second"
    assert ours[evaluation]["median"] >= 1.9 * trainer[evaluation]["median"]
    assert ours["peak_gigabytes"]["max"] <= 0.7 * trainer["peak_gigabytes"]["min"]
    assert ours["padding_fraction"]["max"] <= 0.02


@pytest.mark.parametrize(
    ("over_seeds", "over_texts", "chance"),
    [(0.002, 0.004, False), (0.003, 0.004, True), (0.002, 0.006, True), (None, 0.004, False)],
)
def test_a_difference_that_may_be_chance_is_called_so(over_seeds, over_texts, chance):
    """Of one point, by three seeds (4.3 standard errors) and by the texts (2), or by one seed.
    Red: `all` for `any`; 2 for the seeds, too."""
    sys.path.insert(0, str(ROOT / "tools"))
    from make_accuracy import points

    errors = {"seeds": over_seeds, "texts": over_texts}
    found = {f"standard_error_over_{of}": error for of, error in errors.items()}
    shown = points({"difference": 0.01} | found, [1, 2, 3] if over_seeds else [1])
    assert shown.startswith("+1.00 ± ")
    assert shown.endswith("may be chance") == chance


def test_what_has_learnt_nothing_is_not_in_a_time_to_accuracy():
    """Neither in the table nor in the picture; and what never came to Trainer's accuracy is said.
    Red: either look for None left out; the row of `reached` left out."""
    sys.path.insert(0, str(ROOT / "tools"))
    from make_accuracy import draw_time, time_rows

    ours = [{"seconds": second, "accuracy": second / 10} for second in (5.0, 8.0)]
    found = {"ours": ours, "HF Trainer": {"seconds": 20.0, "accuracy": 0.8}, "reached": ours[1]}
    found["bag of words"] = {"seconds": 0.1, "accuracy": None}
    names = [name for name, *_ in time_rows(found)]
    first = "ours, first as good as Trainer's last"
    assert names == ["", "HF Trainer, last step", "ours, last step", first]
    assert [*time_rows(found | {"reached": None})][-1] == (first, "not reached", "")
    (axes,) = draw_time(found).axes
    assert axes.get_legend_handles_labels()[1] == ["ours", "HF Trainer"]


def test_the_page_of_accuracy_is_that_of_the_newest_results():
    """And the README's figures are its. Red: a figure changed in either."""
    sys.path.insert(0, str(ROOT / "tools"))
    from make_accuracy import newest, page

    assert (ROOT / "docs" / "accuracy.md").read_text() == page()
    report = newest("imdb-report")
    low, high = (f"{100 * bound:.2f}" for bound in report["interval_95"])
    text = " ".join(README.split())
    assert f"**{100 * report['accuracy']:.2f} %** ({low} to {high})" in text
    assert f"a bag of words {100 * report['baselines']['bag_of_words']:.2f} %" in text
    windows = newest("imdb-report-window")["accuracy"]
    assert f"and with `eval.py --long window` {100 * windows:.2f} %" in text


def test_the_page_of_mistakes_is_that_of_the_tests():
    """Red: a line changed in tests/test_mistakes.py."""
    sys.path.insert(0, str(ROOT / "tools"))
    from make_mistakes import mistakes_page

    assert (ROOT / "docs" / "mistakes.md").read_text() == mistakes_page()


def test_everything_in_tensorboard_is_explained_and_all_that_is_explained_is_there(train_command):
    """Curves, pictures, texts. Red: a scalar added to log_window and not to docs/scalars.md; no
    write_pictures in keep_best; no write_about in watch."""
    events = EventAccumulator(str(train_command() / "runs")).Reload()
    tags = events.Tags()
    texts = [tag.removesuffix("/text_summary") for tag in tags["tensors"]]
    kinds = "about|best|eval|eval_sample|precision_recall|train"
    explained = re.findall(rf"`((?:{kinds})/[\w<>]+)`(?=[,| ])", SCALARS_PAGE)
    found = {*tags["scalars"], *tags["images"], *texts}
    assert {tag.replace("<class>", "positive") for tag in explained} == found
    assert min(tags["scalars"]).startswith("best/")  # the first cards that one sees


SCALARS_PAGE = "\n".join(
    line.rsplit("|", 3)[0]
    for line in (ROOT / "docs" / "scalars.md").read_text().splitlines()
    if line.startswith("| `")
)


# ---------------------------------------------------------------- the demo


def test_the_demo_reaches_its_accuracy(demo):
    """At least 0.95 on its test split. Red: a learning rate of 1e-9 in configs/demo.json."""
    report = json.loads((demo[0] / "best" / "report_test.json").read_text())
    assert report["accuracy"] >= 0.95
    assert report["examples"] == len(load_dataset(str(ROOT / "demo" / "corpus"), split="test"))


def test_the_run_ends_with_its_best_step_and_the_command_to_run_next(demo):
    """Red: describe_end without its last words."""
    last = demo[1].strip().splitlines()[-1]
    best = json.loads((demo[0] / "best" / "validation.json").read_text())
    assert f"step {best['step']} of" in last
    assert f"{best['accuracy']:.4f}" in last
    assert last.endswith("eval.py --ckpt run/best")


def test_word_counts_alone_stay_ten_points_below(demo):
    """Red: a corpus whose label shows in single words (drop the contrast sentences)."""
    corpus = load_dataset(str(ROOT / "demo" / "corpus"))
    vectorizer = CountVectorizer()
    train = vectorizer.fit_transform(corpus["train"]["text"])
    test = vectorizer.transform(corpus["test"]["text"])
    accuracy = max(
        LogisticRegression(C=c, max_iter=2000)
        .fit(train, corpus["train"]["label"])
        .score(test, corpus["test"]["label"])
        for c in (0.01, 0.1, 1.0)
    )
    report = json.loads((demo[0] / "best" / "report_test.json").read_text())
    assert accuracy <= report["accuracy"] - 0.10


def test_the_demo_is_ordinary_data(demo):
    """Red: `if "demo" in config.dataset` in any core file."""
    for path in (*ROOT.glob("*.py"), *ROOT.glob("runtime/*.py"), *ROOT.glob("report/*.py")):
        assert "demo" not in path.read_text().lower(), path.name
    corpus = load_dataset(str(ROOT / "demo" / "corpus"))
    assert set(corpus) == {"train", "test"}
    counts = Counter(corpus["train"]["label"][:])
    assert len(counts) == 2
    assert np.ptp(list(counts.values())) <= 1
