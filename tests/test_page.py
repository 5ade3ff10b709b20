"""The page of eval.py --html: what a browser and a reader are given."""

import copy
import json
import math
import re
import shutil
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import sample_reports as samples
import torch
from conftest import make_rows, write_csv
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

import eval as evaluation
from report import findings
from report.files import check_page
from report.history import read_history
from report.page import SECTIONS, list_mistakes, write_page
from report.predictions import Predicted
from runtime.display import letters_wide, printable, shorten_middle
from runtime.flags import UserError
from runtime.intervals import wilson
from runtime.splits import read_table
from runtime.tables import label_rows

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "</title><script>alert(1)</script>\"><img src=x onerror='a()'> & $x^2$ \0\x1b\x85\ud800"


class Page(HTMLParser):
    """A page, read: its elements in order, each with what is around it, and its texts."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        self.elements.append((tag, dict(attributes), [*self.open]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((data, [*self.open]))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

    def words(self, *inside: str) -> list[str]:
        """The texts that are within all these elements."""
        return [text for text, around in self.texts if set(inside) <= set(around)]


NOT_OURS = {"name": "a classifier", "settings": {}, "validation": {}, "dates": [], "defaults": {}}


def make_page(tmp_path, report, run=NOT_OURS, mistakes=(), curves=None) -> Page:
    path = tmp_path / "page.html"
    write_page(path, report, run, list(mistakes), curves or {})
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def two():
    return samples.make_sample(samples.LATIN)


@pytest.fixture(scope="module")
def pages(two, tmp_path_factory) -> list[Page]:
    """Of two and of forty classes."""
    folders = [tmp_path_factory.mktemp(name) for name in ("two", "forty")]
    forty = samples.make_sample(samples.FORTY, texts=3000)
    read = [make_page(*both) for both in ((folders[0], *two), (folders[1], *forty))]
    assert all((folder / "page.html").stat().st_size < 500_000 for folder in folders)
    return read


@pytest.mark.parametrize("which", [0, 1], ids=["two", "forty"])
def test_a_page_is_well_formed_accessible_and_asks_nothing_of_any_place(which, pages):
    """Red: ids of matplotlib left as they are (plots share them); `caption` left out of `table`;
    a font or a picture by its address; `aria-label` left out of fit_to_page."""
    page = pages[which]
    ids = [one["id"] for _, one, _ in page.elements if "id" in one]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in page.elements:
        for name, value in attributes.items():
            if name in ("href", "src", "clip-path") or "url(" in value:
                assert re.sub(r"^url\(|\)$|^#|^url\(#", "", value).lstrip("#") in ids
            assert "://" not in value
            assert value or name == "lang"
    style = "".join(page.words("style"))
    assert "url(" not in style
    assert "@import" not in style
    tags = [tag for tag, _, _ in page.elements]
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels == [1] + [2] * (len(levels) - 1)
    assert not {"script", "link", "iframe", "object", "image"} & set(tags)
    assert tags.count("table") == tags.count("caption") > 5
    assert all(one["scope"] in ("row", "col") for one in page.all("th"))
    assert all(one["role"] == "img" and one["aria-label"] for one in page.all("svg"))
    assert len(page.words("svg", "title")) == tags.count("svg") > 4
    assert all(one.get("tabindex") == "0" for one in page.all("div") if one.get("role"))


def test_every_colour_of_a_plot_is_one_of_the_page(pages):
    """So the plots follow light, dark and paper. Red: "xtick.color" left out of STYLE; a colour
    left out of VARIABLES."""
    for page in pages:
        style = "".join(page.words("style"))
        drawn = [one for tag, one, around in page.elements if "svg" in around]
        for attributes in drawn:
            css = dict(part.split(": ") for part in attributes.get("style", "").split("; ") if part)
            for colour in (css.get("fill", "none"), css.get("stroke", "none")):
                assert colour == "none" or colour.removeprefix("var(").removesuffix(")") in style
                assert "#" not in colour
            assert "font-family" not in css
        assert all("fill: var(" in one["style"] for tag, one, _ in page.elements if tag == "text")


def test_text_of_the_users_is_text_wherever_it_stands(tmp_path):
    """Markup, quotes, dollars, what no HTML may hold. Red: `printable` left out of `part`, or of
    `shorten` (XML that cannot be parsed); "text.parse_math" left out of STYLE."""
    names = [f"a {HOSTILE}", "b\0 $x^2$"]
    report, run, mistakes, curves = samples.make_sample(names, texts=200)
    report["of"]["dataset"] = run["settings"]["dataset"] = f"/data/{HOSTILE}/x.csv"
    report["environment"]["hardware"] = HOSTILE
    run["settings"]["model"] = HOSTILE
    run["settings"]["learning_rate"] = HOSTILE
    mistakes[0]["text"] = [HOSTILE, HOSTILE * 20]
    page = make_page(tmp_path, report, run, mistakes, curves)
    tags = {tag for tag, _, _ in page.elements}
    assert not {"script", "img"} & tags
    assert not any("onerror" in one for _, one, _ in page.elements)
    whole = HOSTILE[:-4] + "\ufffd" * 4
    assert len(page.words("head", "title")) == 1
    for inside in (("td",), ("blockquote",), ("th", "bdi"), ("strong", "bdi")):
        assert any(whole in words for words in page.words(*inside)), inside
    assert any(words.startswith("a </") for words in page.words("svg", "text"))
    assert "b\ufffd $x^2$" in page.words("svg", "text")
    read = (tmp_path / "page.html").read_bytes()
    assert not re.search(b"[\0-\x08\x0b-\x1f]", read)


def test_three_scripts_keep_their_letters_and_their_direction(tmp_path):
    """Red: `dir` left out of `own`; "svg.fonttype" left out of STYLE (letters become paths)."""
    names = ["positive", "负面的评论", "شكوى من العملاء"]
    page = make_page(tmp_path, *samples.make_sample(names, texts=300))
    for name in names:
        assert name in page.words("svg", "text")
        assert name in page.words("th", "bdi")
    assert all(one["dir"] == "auto" and one["lang"] == "" for one in page.all("bdi"))
    assert all(one["dir"] == "auto" for one in page.all("blockquote"))
    assert set(samples.TEXTS[:3]) <= set(page.words("blockquote"))


def test_the_figures_of_a_page_are_those_of_the_report(two, pages, tmp_path):
    """Red: recall and precision swapped; a row of `confusion` transposed; shares of the wrong
    class."""
    report, *rest = samples.make_sample(samples.FORTY[:5], texts=900)
    page = make_page(tmp_path, report, *rest)
    headline = page.words("dl")
    baselines = [report["baselines"][name] for name in ("largest_class", "bag_of_words")]
    for value in (report["accuracy"], report["macro_f1"], *baselines):
        assert f"{value:.1%}".replace("%", "\u00a0%") in headline
    cells = page.words("tbody")
    for name, row in report["classes"].items():
        place = cells.index(name)
        shown = [f"{row[key]:.3f}" for key in ("precision", "recall", "f1")]
        assert cells[place : place + 5] == [name, *shown, str(row["examples"])]
    for pair in report["confused"]:
        found = [pair["true"], " taken for ", pair["predicted"], str(pair["texts"])]
        assert any(cells[i : i + 4] == found for i in range(len(cells)))
    counts = [f"{count:,}" for row in report["confusion"] for count in row]
    drawn = page.words("svg", "text")
    start = drawn.index(counts[0])
    assert drawn[start : start + len(counts)] == counts
    for row in report["thresholds"]:
        shown = [f"{row[key]:.1%}".replace("%", "\u00a0%") for key in ("coverage", "accuracy")]
        shown.append(" to ".join(map(findings.percent, row["interval_95"])))
        assert [*shown, str(row["texts"])] == cells[cells.index(shown[0]) :][:4]
    two_classes = pages[0].words("main", "p")
    assert any(f"{two[0]['roc_auc']:.3f}" in words for words in two_classes)


def test_cells_are_as_strong_as_their_share_of_the_row(two, pages):
    """And without numbers as their share of the largest mistake. Red: `if strongest == 1` left out
    of shades; columns in place of rows there."""
    confusion = np.array(two[0]["confusion"])
    shares = (confusion / confusion.sum(1, keepdims=True)).ravel()
    strong = [opacities(page, "Confusion") for page in pages]
    assert strong[0] == pytest.approx(0.08 + 0.37 * shares, abs=1e-4)
    assert max(strong[1]) == 1


def opacities(page: Page, label: str) -> list[float]:
    """Of the filled paths of a plot, in their order."""
    labels = iter([one["aria-label"] for one in page.all("svg")])
    inside, found = "", []
    for tag, one, _ in page.elements:
        inside = next(labels) if tag == "svg" else inside
        filled = re.match(r"fill: var\(--(blue|orange)\)", one.get("style", ""))
        if tag == "path" and filled and inside.startswith(label):
            opacity = re.search("fill-opacity: ([0-9.]+)", one["style"])
            found.append(float(opacity[1]) if opacity else 1)
    return found


def test_the_same_report_gives_the_same_bytes_whatever_matplotlib_is_set_to(two, tmp_path):
    """Red: "svg.hashsalt" left out of as_svg; "default" left out of it."""
    write_page(tmp_path / "a.html", *copy.deepcopy(two))
    with matplotlib.rc_context({"font.size": 30, "axes.linewidth": 5}):
        write_page(tmp_path / "b.html", *two)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_page_of_another_programs_model_names_what_it_lacks(two, tmp_path):
    """Red: an empty plot of thresholds; the footer left out; None as a baseline's percentage."""
    report = {key: value for key, value in two[0].items() if key not in ("curves", "comparison")}
    report["baselines"] = {"largest_class": 0.5, "bag_of_words": None, "learnt_from": 0, "of": 0}
    after = {
        "temperature": None,
        "at_limit": False,
        "fitted_on": 0,
        "ece_after": None,
        "bins_after": None,
    }
    report |= {"thresholds": [], "calibration": report["calibration"] | after}
    report["training_environment"] = None
    page = make_page(tmp_path, copy.deepcopy(report))
    shown, footer = page.words("main", "h2"), page.words("footer", "p")
    missing = {"ROC and precision-recall of two classes", "Thresholds", "Comparison"}
    assert {*shown} == {*SECTIONS} - missing
    assert all(title in footer[0] for title in missing)
    assert any("no event files" in words for words in page.words("main", "p"))
    assert "Settings of the training: not known." in page.words("main", "p")


def test_classes_without_texts_a_perfect_model_and_a_single_text(tmp_path):
    """Red: an empty list of `confused` taken for mistakes; `there` with all classes."""
    names = ["a", "b", "nobody's"]
    labels = np.array([0, 1] * 30)
    probabilities = np.eye(3)[labels] * 0.94 + 0.02
    for rows in (slice(None), slice(1)):
        true, p = labels[rows], probabilities[rows]
        report = samples.old_report(names, true, true, p)
        report |= samples.new_figures(names, true, true, p)
        page = make_page(tmp_path, report)
        assert "There are none." in page.words("main", "p")
        assert any("nobody's" in words and "No text" in words for words in page.words("p"))
        assert not any("nobody's" in words and "weakest" in words for words in page.words("p"))


def test_losses_that_are_not_finite_break_no_page(two, tmp_path):
    """Red: `math.isfinite` left out of of_curves (min is then of NaN)."""
    curves = copy.deepcopy(two[3])
    curves["eval/loss"][0] = (400, math.nan)
    curves["train/loss"][3] = (40, math.inf)
    words = " ".join(make_page(tmp_path, *two[:3], curves).words("p"))
    assert "lowest at step 800 (0.312)" in words


# ---------------------------------------------------------------- sentences


def test_steps_are_proposed_in_one_direction_alone():
    """Not more of a model that over-fits. Red: `over_fits` always False in of_curves."""
    curves = {"eval/accuracy": [(1, 0.5), (2, 0.6)], "eval/loss": [(1, 0.5), (2, 0.4)]}
    for end, words in ((0.4, "more steps may help."), (0.9, "the last validation.")):
        said = findings.of_curves(curves | {"eval/loss": [(1, 0.5), (2, end)]}, 2)
        assert said[-1].endswith(words)
        assert ("over-fits; fewer steps" in " ".join(said)) == (end > 0.5)


@given(st.floats(0, 1))
def test_a_percentage_is_100_or_0_only_if_the_share_is(share):
    """And near it. Red: `digits` fixed at 1 in percent."""
    shown = float(findings.percent(share).removesuffix("\u00a0%"))
    assert abs(shown - 100 * share) <= 0.05 + 1e-9
    if 1e-6 < share < 1 - 1e-6:
        assert 0 < shown < 100


@given(st.integers(0, 10_000))
def test_over_confident_is_surer_than_right(seed):
    """And so is the example. Red: `sum(gaps) < 0` in of_calibration; `== over` left out."""
    probabilities, labels = samples.make_predictions(3, 300, seed)
    rng = np.random.default_rng(seed)
    probabilities = probabilities ** rng.uniform(0.2, 2)
    probabilities /= probabilities.sum(1, keepdims=True)
    right, sure = labels == probabilities.argmax(1), probabilities.max(1)
    sentence = findings.of_calibration(samples.calibrate(right, sure))[1]
    if "well calibrated" not in sentence:
        assert ("over-confident" in sentence) == (sure.mean() > right.mean())
        mean, share = re.search(r"mean ([0-9.]+)\) it has ([0-9.]+)", sentence).groups()
        assert ("over-confident" in sentence) == (float(mean) > float(share) / 100)


@pytest.mark.parametrize(
    ("bag", "words"),
    [
        (0.95, "The bag of words is as good or better"),
        (0.89, "may be chance"),
        (0.80, "better than the bag of words by 10.0 points"),
        (None, "better than the largest class by 40.0 points"),
    ],
)
def test_the_model_is_judged_beside_the_best_baseline(two, bag, words):
    """Red: `accuracy` in place of `low` in beside_baseline; None taken for 0."""
    about = {"accuracy": 0.9, "interval_95": [0.88, 0.92]}
    baselines = two[0]["baselines"] | {"largest_class": 0.5, "bag_of_words": bag}
    report = two[0] | about | {"baselines": baselines}
    assert words in findings.of_headline(report)[1]


@given(st.text(max_size=40), st.integers(4, 30))
def test_a_name_is_cut_to_the_width_and_keeps_both_ends(text, width):
    """Red: the reversed end left reversed in shorten_middle."""
    line = " ".join(printable(text).split())
    short = shorten_middle(text, width)
    assert letters_wide(short) <= max(width, 1)
    start, _, end = short.partition("…") if short != line else (line, "", "")
    assert line.startswith(start)
    assert line.endswith(end)


def test_a_page_of_the_validation_split_warns_wherever_it_matters(two, tmp_path):
    """Red: `on_validation` always False; always True."""
    report, *rest = copy.deepcopy(two)
    other = " ".join(make_page(tmp_path, report, *rest).words("body"))
    del report["of"]["test_split"]
    report["of"]["split"] = "validation"
    page = make_page(tmp_path, report, *rest)
    here = " ".join(page.words("body"))
    assert page.words("h1", "bdi") == ["Report: stars/best on reviews.csv, validation"]
    for words in (
        "These texts chose the step of the weights",
        "reviews.csv, the validation texts, which chose the step",
        "fitted on these very texts, give",
        "These are the texts of this report: on others, expect a little less.",
    ):
        assert words in here
        assert words not in other


def test_a_comparison_is_judged_by_both_metrics(two):
    """Red: the accuracy's figures for both in of_comparison; `low <= 0` alone in judge; its last
    sentences left out."""
    found = copy.deepcopy(two[0]["comparison"])
    accuracy, macro_f1, differ = findings.of_comparison(found)
    assert accuracy.startswith("Accuracy: 91.2\u00a0% beside 90.0\u00a0%, +1.2 points;")
    assert accuracy.endswith("holds 0: the difference may be chance.")
    assert macro_f1.startswith("Macro-F1: 90.4")
    assert macro_f1.endswith("interval +0.2 to +3.0: this model is better.")
    assert differ.startswith(
        "They differ on 98 texts; only this one is right on 61, only the other"
    )
    assert findings.of_comparison(found | {"differ": 0}) == ["Both say the same of each text."]
    third = {"ckpt": "/c/best", "also_in": {"training": 3, "validation": 0}}
    found["models"]["other"].append(third)
    assert findings.of_comparison(found | {"mcnemar": None})[2:] == [
        "They differ on 98 texts.",
        "Figures of a side with several seeds are the means of these.",
        f"{findings.named('/c/best')} was trained on 3 of these texts.",
    ]


def test_a_low_macro_f1_is_explained_by_its_cause(two):
    """Classes that are only answered count as 0. Red: `foreign` always empty, or always all."""
    report = copy.deepcopy(two[0]) | {"accuracy": 0.9, "macro_f1": 0.5, "interval_95": [0.8, 0.95]}
    assert "mostly small ones" in findings.of_headline(report)[-1]
    report["confusion"] = [[0, 0], [10, 90]]
    report["classes"]["negative"]["examples"] = 0
    assert "negative" in (line := findings.of_headline(report)[-1])
    assert line.endswith("no text here but which the model answers, count as 0.")


@pytest.mark.parametrize(
    ("metric", "words"),
    [("macro_f1", "with the best macro-F1 of a"), ("loss", "with the lowest loss of a")],
)
def test_the_curves_say_by_what_the_step_was_chosen(two, tmp_path, metric, words):
    """Red: `metric` left out in curves_section; "macro_f1" left out of plot_curves."""
    report, run, mistakes, curves = copy.deepcopy(two)
    run["settings"]["metric_for_best_model"] = metric
    page = make_page(tmp_path, report, run, mistakes, curves)
    assert any(f"of step 800, {words} whole validation." in line for line in page.words("p"))
    assert {"loss", "accuracy", "macro-F1"} <= set(page.words("svg", "text"))


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ([(100, 80), (1, 1)], "No threshold is sure to have 90\u00a0% right"),
        ([(1000, 800), (500, 500)], "To have 99\u00a0% right"),
        ([(1000, 800), (300, 291)], "To have 90\u00a0% right"),
        ([(500, 476), (420, 412)], "To have 95\u00a0% right"),
        ([(1000, 960), (10, 10)], None),
    ],
)
def test_a_threshold_is_recommended_only_on_evidence(two, right, words):
    """One text that is right is none. Red: the accuracy in place of the low end of its interval, of
    a threshold or of all texts."""
    rows = [
        {
            "min_probability": threshold,
            "texts": texts,
            "coverage": texts / right[0][0],
            "accuracy": correct / texts,
            "interval_95": wilson(correct / texts, texts),
        }
        for threshold, (texts, correct) in zip((0.0, 0.65), right, strict=True)
    ]
    said = findings.of_thresholds(two[0] | {"thresholds": rows, "at_stored_threshold": None})
    assert (words in said[1]) if words else len(said) == 1


def test_a_temperature_that_does_not_help_is_said(two):
    """Red: no_better left out."""
    found = two[0]["calibration"] | {"ece": 0.037, "ece_after": 0.043}
    assert "give 0.043, which is no better;" in findings.of_calibration(found)[-1]
    assert "no better" not in findings.of_calibration(found | {"ece_after": 0.01})[-1]


def test_a_stored_threshold_is_judged_on_the_texts_of_the_report(two):
    """Red: of_stored left out."""
    stored = {"min_probability": 0.9, "coverage": 0.701, "accuracy": 0.9523, "texts": 1402}
    said = findings.of_thresholds(two[0] | {"at_stored_threshold": stored})[-1]
    assert said == (
        "The stored threshold is 0.9: of the texts of this report it decides 70.1\u00a0%; of these "
        "95.2\u00a0% are right."
    )


# ---------------------------------------------------------------- from eval.py


def test_the_worst_mistakes_are_those_the_model_was_most_sure_of(tmp_path):
    """With their own texts. Red: `rows` in place of `worst` at the end of worst_mistakes."""
    rows = make_rows(300, seed=3)
    texts = label_rows(
        read_table(str(write_csv(tmp_path / "x.csv", rows)), "train"), "text", "label"
    )
    logits = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    zeros = np.zeros(300, dtype=int)
    found = list_mistakes(texts, Predicted(logits.numpy(), texts.labels, zeros, zeros > 0))
    expected = sorted(
        (
            (-float(row.max()), text, label)
            for row, (text, label) in zip(logits.softmax(1), rows, strict=True)
            if texts.names[row.argmax()] != label
        )
    )[:50]
    assert [(-one["probability"], *one["text"], one["true"]) for one in found] == [
        (pytest.approx(p), text, label) for p, text, label in expected
    ]


def test_the_mistakes_of_a_page_are_read_from_the_text_column_alone(tmp_path):
    """Two other columns of one name are no obstacle. Red: all columns in list_mistakes."""
    rows = [(n, n, text, label) for n, (text, label) in enumerate(make_rows(20, seed=3))]
    source = write_csv(tmp_path / "x.csv", rows, ("id", "id", "text", "label"))
    texts = label_rows(read_table(str(source), "train"), "text", "label")
    nothing = np.zeros(20, dtype=int)
    wrong = np.eye(2, dtype=np.float32)[1 - texts.labels]
    assert len(list_mistakes(texts, Predicted(wrong, texts.labels, nothing, nothing > 0))) == 20


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "loss"])
def test_curves_are_those_of_the_weights_by_all_their_scores(train_command, tmp_path, name):
    """And of our own event files. Red: `name` left out of METRICS in read_history; every event file
    in read_scalars."""
    best = train_command(max_steps=4, validate_steps=2) / "best"
    trained = json.loads((best / "training_config.json").read_text())
    with SummaryWriter(str(best.parent / "runs"), filename_suffix=".other") as writer:
        writer.add_scalar("eval/of_another_program", 1.0, 2)
    run, curves = read_history(best, trained)
    assert len(run["dates"]) == 2
    assert [step for step, _ in curves[f"eval/{name}"]] == [2, 4]
    assert "eval/of_another_program" not in curves
    scores = best / "validation.json"
    before = scores.read_text()
    scores.write_text(json.dumps(json.loads(before) | {name: 0.123}))
    assert read_history(best, trained)[1] == {}
    # An older train.py wrote no macro-F1.
    found = json.loads(before)
    scores.write_text(json.dumps({key: found[key] for key in found if key != "macro_f1"}))
    assert read_history(best, trained)[1] == curves
    (best / "manifest.json").unlink()
    flags = [f"--html={tmp_path / 'page.html'}", f"--report={tmp_path / 'r.json'}"]
    evaluation.main([f"--ckpt={best}", *flags])
    (words,) = re.findall(
        ">(accuracy [^<]*the best by[^<]*)<", (tmp_path / "page.html").read_text()
    )
    assert "macro-F1" not in words


def test_eval_writes_the_page_and_replaces_only_one_of_its_own(train_command, tmp_path):
    """Its curves are those of the run itself. Red: write_html not called; PAGE_MARK not looked
    for in check_page; `runs` looked for in best/; curves of any runs/ beside it."""
    best = train_command(max_steps=10) / "best"
    page = tmp_path / "page.html"
    evaluation.main([f"--ckpt={best}", f"--html={page}"])
    read = Page(page.read_text(encoding="utf-8"))
    report = json.loads((best / "report_test.json").read_text())
    assert findings.percent(report["accuracy"]) in read.words("dl")
    assert "Loss, accuracy and macro-F1 by step, in training and on validation texts" in read.words(
        "svg"
    )
    assert "--max_length" in read.words("section", "th")
    assert len(read.words("ol", "blockquote")) == min(50, 61 - findings.number_right(report))
    with pytest.raises(UserError, match="exists"):
        evaluation.main([f"--ckpt={best}", f"--html={page}"])
    check_page(page, None, overwrite=True)
    other = train_command(max_steps=8, output_dir=tmp_path / "other")
    shutil.copytree(other / "best", best.parent / "copy")
    flags = [f"--html={tmp_path / 'copy.html'}", f"--report={tmp_path / 'r.json'}"]
    evaluation.main([f"--ckpt={best.parent / 'copy'}", *flags])
    copied = Page((tmp_path / "copy.html").read_text(encoding="utf-8"))
    assert any("no event files" in words for words in copied.words("p"))
    page.write_text("mine")
    with pytest.raises(UserError, match="exists"):
        check_page(page, None, overwrite=True)
