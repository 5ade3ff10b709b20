"""A report as one HTML file for a browser, which asks nothing of any other place: `--html FILE`.

In: a report, what is known of the training, mistakes with their texts, curves. Out: a file; the
same bytes for the same input. All text of the user's becomes text of the page, never markup: the
page is built as a tree of elements. Independent of: models, data sets, how figures are computed.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from config import Config
from report import findings, plots
from report.files import PAGE_MARK
from report.findings import percent, points
from report.history import read_history
from report.predictions import Predicted, find_mistakes, pick_rows
from runtime.card import METRICS
from runtime.display import printable, shorten
from runtime.tables import LabelledTexts, text_tuples

MOST_MISTAKES = 50
FOLDED = 280  # letters of a text that are shown before it is unfolded
LONGEST = 5000  # letters of a text that are on the page at all


def write_html(
    config, classifier, report: dict, texts: LabelledTexts, predicted: Predicted
) -> None:
    """The page of --html."""
    run, curves = read_history(classifier.folder, classifier.trained)
    parts = Path(config.ckpt).resolve().parts[-2:]
    name = "/".join(parts) if os.path.exists(config.ckpt) else config.ckpt
    run |= {"name": name, "defaults": dataclasses.asdict(Config())}
    mistakes = list_mistakes(texts, predicted)
    write_page(Path(config.html), report, run, mistakes, curves)
    print(f"written to {config.html}, for a browser")


def list_mistakes(texts: LabelledTexts, predicted: Predicted) -> list[dict]:
    """The mistakes in which the model was most sure, the worst first."""
    rows = find_mistakes(predicted)[:MOST_MISTAKES]
    wrong = text_tuples(pick_rows(texts, rows, texts.text_columns), texts.text_columns)
    names, of = texts.names, predicted.select(rows)
    return [
        {
            "text": list(text),
            "true": names[label],
            "predicted": names[said],
            "probability": float(shares.max()),
        }
        for text, label, said, shares in zip(
            wrong, of.labels, of.classes, of.probabilities(), strict=True
        )
    ]


def write_page(path: Path, report: dict, run: dict, mistakes: list[dict], curves: dict) -> None:
    """
    Args:
        report: what eval.py writes as JSON; sections whose figures it lacks are left out.
        run: `settings`, `validation` and `dates` of the training (history.py), each empty if
            unknown; `defaults`, the default of each setting; `name`, of the model.
        mistakes: of `list_mistakes`.
        curves: tag of TensorBoard -> [(step, value), ...]; may be empty.
    """
    sections, missing = [], []
    for title, make in SECTIONS.items():
        content = make(report, run, mistakes, curves)
        if content is None:
            missing.append(title)
        else:
            sections.append(section(title, *content))
    texts = Path(report["of"]["dataset"]).name
    title = f"Report: {run['name']} on {texts}"
    title += ", validation" * findings.on_validation(report)
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    contents = [
        part("li", part("a", found[0].text, href=f"#{found.get('id')}")) for found in sections
    ]
    left_out = f"Left out, because the report has no figures for it: {', '.join(missing)}."
    page = part(
        "html",
        part(
            "head",
            part("meta", charset="utf-8"),
            part("meta", name="viewport", content="width=device-width, initial-scale=1"),
            part("meta", name="generator", content=PAGE_MARK),
            part("meta", name="color-scheme", content="light dark"),
            part("meta", http_equiv="Content-Security-Policy", content=NOTHING_FROM_ELSEWHERE),
            part("title", shorten(title, 100)),
            part("style", style),
        ),
        part(
            "body",
            part("header", part("h1", own(shorten(title, 100))), headline(report)),
            part("nav", part("ul", *contents), aria_label="Sections"),
            part("main", *sections),
            part("footer", part("p", left_out)) if missing else None,
        ),
        lang="en",
    )
    html = ElementTree.tostring(page, encoding="unicode", method="html")
    path.write_text(f"<!doctype html>\n{html}\n", encoding="utf-8")


NOTHING_FROM_ELSEWHERE = "default-src 'none'; style-src 'unsafe-inline'"

# ---------------------------------------------------------------- elements


def part(tag: str, *children, **attributes) -> ElementTree.Element:
    """An element. A child is a text, an element or None; `class_` is the attribute class."""
    element = ElementTree.Element(
        tag,
        {
            key.rstrip("_").replace("_", "-"): printable(str(value))
            for key, value in attributes.items()
        },
    )
    for child in children:
        if isinstance(child, ElementTree.Element):
            element.append(child)
        elif child is not None and len(element):
            element[-1].tail = (element[-1].tail or "") + printable(str(child))
        elif child is not None:
            element.text = (element.text or "") + printable(str(child))
    return element


def own(text: str, tag: str = "bdi", **attributes) -> ElementTree.Element:
    """Text of the user's: of any language, in the direction of its script."""
    return part(tag, text, dir="auto", lang="", **attributes)


def section(title: str, sentences: list[str], *content) -> ElementTree.Element:
    """Sentences, the plots of `content`, and what else it has: tables. On a wide screen the plots
    stand beside the rest, unless they are wide or two."""
    name = title.lower().replace(" ", "-")
    figures = [one for one in content if one.tag == "figure"]
    rest = [one for one in content if one.tag != "figure"]
    words = [part("p", sentence) for sentence in sentences]
    beside = len(figures) == 1 and figures[0].get("class") != "wide"
    return part(
        "section",
        part("h2", title, id=f"{name}-title"),
        part(
            "div",
            part("div", *words, class_="words") if words else None,
            part("div", *figures, class_="plots") if figures else None,
            part("div", *rest, class_="rest") if rest else None,
            class_="beside" if beside else "stacked",
        ),
        id=name,
        aria_labelledby=f"{name}-title",
    )


def figure(svg: str, wide: bool = False) -> ElementTree.Element:
    element = ElementTree.fromstring(svg)
    if not wide:
        return part("figure", element)
    return part("figure", scrollable(element, element.get("aria-label")), class_="wide")


def scrollable(child: ElementTree.Element, label: str) -> ElementTree.Element:
    """What may be wider than a phone scrolls by itself, by the keyboard too."""
    return part("div", child, class_="scroll", tabindex="0", role="region", aria_label=label)


def table(caption: str, head: list[str], rows: list[list], class_: str = "") -> ElementTree.Element:
    """The first cell of a row is its heading. A number is set to the right."""
    columns = part("tr", *(part("th", word, scope="col") for word in head))
    lines = []
    for first, *others in rows:
        heading = part("th", first, scope="row")
        lines.append(part("tr", heading, *(part("td", cell) for cell in others)))
    whole = part(
        "table",
        part("caption", caption),
        part("thead", columns),
        part("tbody", *lines),
        class_=class_ or "numbers",
    )
    return scrollable(whole, caption)


# ---------------------------------------------------------------- sections


def headline(report: dict) -> ElementTree.Element:
    baselines = report["baselines"]
    figures = {
        "Accuracy": report["accuracy"],
        "Macro-F1": report["macro_f1"],
        "Bag of words": baselines["bag_of_words"],
        "Largest class": baselines["largest_class"],
    }
    notes = {
        "Accuracy": f"95\u00a0% interval {span(report['interval_95'])}",
        "Macro-F1": "mean over the classes",
        "Bag of words": "accuracy without word order",
        "Largest class": "accuracy of one answer",
    }
    boxes = [
        part("div", part("dt", word), part("dd", percent(value)), part("dd", notes[word]))
        for word, value in figures.items()
        if value is not None
    ]
    loss = f"mean loss {report['loss']:.4f}"
    boxes.append(
        part("div", part("dt", "Texts"), part("dd", f"{report['examples']:,}"), part("dd", loss))
    )
    sentences = [part("p", sentence) for sentence in findings.of_headline(report)]
    return part("div", part("dl", *boxes, class_="figures"), *sentences)


def run_section(report, run, mistakes, curves) -> tuple:
    of, settings, best = report["of"], run["settings"], run["validation"]
    rows = {
        "Evaluated on": f"{of['dataset']}, {name_split(of)}",
        "Part of it": of.get("max_test_samples") and f"{of['max_test_samples']:,} texts at most",
        "Weights": f"SHA-256 {of['weights'][:16]}",
        "Precision": of["precision"].replace("no", "float32"),
        "Fine-tuned from": settings.get("model"),
        "Trained on": settings.get("dataset"),
        "Training": " to ".join(run["dates"]),
    }
    if best:
        metric = METRICS[settings.get("metric_for_best_model", "accuracy")]
        scores = [
            f"{word} {f'{best[name]:.4f}' if name == 'loss' else percent(best[name])}"
            for name, word in METRICS.items()
            if name in best  # an older train.py did not write macro-F1
        ]
        rows["Validation"] = (
            f"{', '.join(scores)} on {best['examples']:,} texts, at step {best['step']:,}, the "
            f"best by {metric}"
        )
    content = [
        part("tr", part("th", word, scope="row"), own(value, "td"))
        for word, value in rows.items()
        if value
    ]
    about = part(
        "table", part("caption", "Model and texts"), part("tbody", *content), class_="facts"
    )
    return findings.of_run(report), about, changed_table(run), *environment_table(report)


def name_split(of: dict) -> str:
    if of["split"] == "validation":
        return "the validation texts, which chose the step"
    return f"split {of['test_split']}"


SHOWN_ABOVE = ("model", "dataset", "output_dir")


def changed_table(run: dict) -> ElementTree.Element:
    """Settings of the training that differ from their defaults."""
    settings = run["settings"]
    changed = [
        (f"--{name}", own(str(settings[name])))
        for name, default in run["defaults"].items()
        if name in settings and settings[name] != default and name not in SHOWN_ABOVE
    ]
    if not changed:
        known = "all settings are the defaults" if settings else "not known"
        return part("p", f"Settings of the training: {known}.")
    caption = "Settings other than the defaults"
    return table(caption, ["Setting", "Value"], changed, "facts")


def environment_table(report: dict) -> Iterator[ElementTree.Element]:
    both = [flatten(report[name] or {}) for name in findings.ENVIRONMENTS]
    rows = [
        [name, *(own(str(side.get(name, ""))) for side in both)] for name in {**both[1], **both[0]}
    ]
    if rows:
        caption = "Commit, hardware and versions"
        whole = table(caption, ["", "Training", "Evaluation"], rows, "facts")
        yield part("details", part("summary", caption), whole)


def flatten(environment: dict) -> dict:
    flat = {name: value for name, value in environment.items() if not isinstance(value, dict)}
    return flat | environment.get("versions", {})


def curves_section(report, run, mistakes, curves) -> tuple:
    if not curves:
        return (
            ["There are none: no event files (runs/) of this run are beside the model's folder."],
        )
    step = run["validation"]["step"]
    metric = run["settings"].get("metric_for_best_model", "accuracy")
    label = "Loss, accuracy and macro-F1 by step, in training and on validation texts"
    plot = figure(plots.plot_curves(curves, step, label=label))
    return findings.of_curves(curves, step, metric), plot


def classes_section(report, run, mistakes, curves) -> tuple:
    rows = [
        [
            own(name),
            *(bar(row[key]) for key in ("precision", "recall", "f1")),
            f"{row['examples']:,}",
        ]
        for name, row in report["classes"].items()
    ]
    head = ["Class", "Precision", "Recall", "F1", "Texts"]
    return findings.of_classes(report), table("Figures of each class", head, rows)


def bar(share: float) -> ElementTree.Element:
    """A number with a line below it that is as long as the number is large."""
    return part("span", f"{share:.3f}", class_="bar", style=f"--share:{share:.3f}")


def confusion_section(report, run, mistakes, curves) -> tuple:
    names = [*report["classes"]]
    label = f"Confusion matrix of {len(names)} classes; the table and the text tell its main points"
    plot = figure(plots.plot_confusion(report["confusion"], names, label=label), len(names) > 5)
    pairs = [
        [
            part("span", own(pair["true"]), " taken for ", own(pair["predicted"])),
            f"{pair['texts']:,}",
            percent(pair["share"]),
        ]
        for pair in report["confused"]
    ]
    head = ["Mistake", "Texts", "Of the class"]
    tables = [table("Most frequent mistakes", head, pairs)] if pairs else []
    return findings.of_confusion(report), plot, *tables


def calibration_section(report, run, mistakes, curves) -> tuple:
    calibration = report["calibration"]
    bins, after = calibration["bins"], calibration["bins_after"]
    sentences = findings.of_calibration(calibration, findings.on_validation(report))
    plot = plots.plot_reliability(bins, after, label=f"Reliability diagram. {sentences[1]}")
    rows = [
        [
            f"{group['from']:.1f} to {group['to']:.1f}",
            f"{group['texts']:,}",
            f"{group['confidence']:.3f}",
            f"{group['accuracy']:.3f}",
        ]
        for group in bins
        if group["texts"]
    ]
    head = ["Probability", "Texts", "Mean", "Share right"]
    return sentences, figure(plot), table("Right by probability", head, rows)


def ranking_section(report, run, mistakes, curves) -> tuple | None:
    found = report.get("curves")  # of two classes alone, of which there are texts
    if not found:
        return None
    auc, average = report["roc_auc"], report["average_precision"]
    share = findings.share_of_second(report)
    roc = plots.plot_roc(found["roc"], label=f"ROC curve, area {auc:.3f}")
    label = f"Precision by recall, average precision {average:.3f}"
    precision = plots.plot_precision_recall(found["precision_recall"], share, label=label)
    return findings.of_two_classes(report), figure(roc), figure(precision)


def span(interval) -> str:
    low, high = map(percent, interval)
    return low.removesuffix("\u00a0%") + f" to {high}"


def lengths_section(report, run, mistakes, curves) -> tuple:
    groups, kinds = report["by_length"], report["by_cut"]
    in_windows = report["of"].get("long") == "window"
    sentences = findings.of_lengths(groups) + findings.of_cut(kinds, in_windows)
    named_groups = {f"{group['from']} to {group['to']}": group for group in groups}
    if len(kinds) > 1:
        named_groups |= {f"all {kind}": group for kind, group in kinds.items()}
    rows = [
        [name, f"{group['texts']:,}", percent(group["accuracy"]), span(group["interval_95"])]
        for name, group in named_groups.items()
    ]
    plot = figure(plots.plot_lengths(groups, label="Accuracy by the length of the text"))
    head = ["Tokens", "Texts", "Accuracy", "95\u00a0% interval"]
    return sentences, plot, table("Accuracy by tokens", head, rows)


def thresholds_section(report, run, mistakes, curves) -> tuple | None:
    rows = [row for row in report["thresholds"] if row["texts"]]
    if not rows:
        return None
    label = "Accuracy by the share of texts that are decided"
    plot = figure(plots.plot_thresholds(rows, label=label))
    lines = [
        [
            f"{row['min_probability']:g}",
            percent(row["coverage"]),
            percent(row["accuracy"]),
            " to ".join(map(percent, row["interval_95"])),
            f"{row['texts']:,}",
        ]
        for row in rows
    ]
    head = ["Probability at least", "Decided", "Accuracy", "95\u00a0% interval", "Texts"]
    return (
        findings.of_thresholds(report),
        plot,
        table("Thresholds, on validation texts", head, lines),
    )


def mistakes_section(report, run, mistakes, curves) -> tuple:
    wrong = report["examples"] - findings.number_right(report)
    items = [part("li", *describe_mistake(mistake)) for mistake in mistakes]
    listing = part("ol", *items, class_="mistakes") if items else None
    return findings.of_mistakes(mistakes, wrong), *([listing] if items else [])


def describe_mistake(mistake: dict) -> Iterator[ElementTree.Element]:
    yield part(
        "p",
        part("strong", own(mistake["predicted"])),
        f" with probability {percent(mistake['probability'])}; it is ",
        part("strong", own(mistake["true"])),
    )
    for text in mistake["text"]:
        shown = text[:LONGEST]
        shown += f" … ({len(text):,} letters in all)" if len(text) > LONGEST else ""
        if len(text) <= FOLDED:
            yield own(shown, "blockquote")
        else:
            start = own(shorten(text[:FOLDED], FOLDED) + " …")
            yield part("details", part("summary", start), own(shown, "blockquote"))


def comparison_section(report, run, mistakes, curves) -> tuple | None:
    comparison = report.get("comparison")
    if not comparison:
        return None
    rows = [
        [
            findings.start_line(word),
            percent(found["ours"]),
            percent(found["other"]),
            points(found["difference"]),
            " to ".join(map(points, found["interval_95"])),
        ]
        for word, found in ((METRICS[key], comparison[key]) for key in COMPARED)
    ]
    head = ["", "This", "Other", "Difference", "95\u00a0% interval"]
    facts = table("This model beside the other; differences in points", head, rows)
    folders = [
        part("li", f"{word}: ", own(", ".join(of["ckpt"] for of in comparison["models"][side])))
        for word, side in (("this", "ours"), ("other", "other"))
    ]
    return findings.of_comparison(comparison), part("ul", *folders), facts


COMPARED = ("accuracy", "macro_f1")

SECTIONS = {
    "Run": run_section,
    "Learning curves": curves_section,
    "Classes": classes_section,
    "Confusion matrix": confusion_section,
    "Calibration": calibration_section,
    "ROC and precision-recall of two classes": ranking_section,
    "Length of the texts": lengths_section,
    "Thresholds": thresholds_section,
    "Worst mistakes": mistakes_section,
    "Comparison": comparison_section,
}
