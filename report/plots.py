"""The plots of the page that eval.py writes, as SVG.

In: parts of a report. Out: strings of SVG, to be put into an HTML page. Their colours are variables
of report/page.css, so that they follow the reader's light or dark setting, and their text is text,
in the page's font. Independent of: HTML, files, models.
"""

import functools
import io
import re
import warnings
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from report.findings import FEW_TEXTS
from runtime.card import METRICS
from runtime.display import FEW_CLASSES, letters_wide, shorten_middle

# Colours that nobody would choose, replaced by the variables when the SVG is finished.
INK, MUTED, LINE, BLUE, ORANGE = "#000001", "#000002", "#000003", "#000004", "#000005"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
}
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in the name of a class is a dollar
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "legend.columnspacing": 1.2,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
WIDTH = 360  # of most plots, in px: what a phone shows without making the letters smaller


def as_svg(draw):
    """Make of a function that draws a figure one that returns its SVG: the same for the same data.

    The returned function also takes `label`, the words for those who cannot see the plot.
    """

    @functools.wraps(draw)
    def drawn(*args, label: str) -> str:
        settings = STYLE | {"svg.hashsalt": draw.__name__}
        with warnings.catch_warnings(), matplotlib.style.context(["default", settings]):
            # matplotlib's own font lacks the letters of many scripts; the reader's has them.
            warnings.filterwarnings("ignore", "Glyph")
            buffer = io.StringIO()
            draw(*args).savefig(buffer, format="svg", metadata={"Date": None})
        return fit_to_page(buffer.getvalue(), draw.__name__.removeprefix("plot_"), label)

    return drawn


def fit_to_page(svg: str, name: str, label: str) -> str:
    """matplotlib's SVG for use inside HTML: ids of its own, the page's font, colours and styles."""
    root = ElementTree.fromstring(svg)
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: fit_attribute(key, value, name)
            for key, value in element.attrib.items()
            if (element.tag, key) != ("g", "id")  # which nothing refers to
        }
        element.tail = None
    size = {side: root.attrib[side].removesuffix("pt") for side in ("width", "height")}
    root.attrib = {"viewBox": root.attrib["viewBox"], **size, "role": "img", "aria-label": label}
    title = ElementTree.Element("title")
    title.text = label
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def fit_attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key.endswith(("href", "clip-path")):
        return value.replace("#", f"#{name}-")
    if key == "d":
        return " ".join(value.split())
    if key == "style":
        value = re.sub(r"font-family: [^;]*(; )?", "", value)
        for colour, variable in VARIABLES.items():
            value = value.replace(colour, variable)
    return value


def make_axes(height, width=WIDTH, left=52, right=14, top=30, bottom=42, **grid):
    """A figure of that many px, and its axes, with fixed margins: those that matplotlib would
    measure are of its own font, not of the page's."""
    figure = Figure(figsize=(width / 72, height / 72))  # an SVG has 72 units per inch
    axes = figure.subplots(**grid)
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    for one in figure.axes:
        one.yaxis.set_label_coords((11 - left) / (width - left - right), 0.5)
    return figure, axes


def legend_above(axes, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.03), ncols=columns, borderaxespad=0)


# ---------------------------------------------------------------- the plots

CURVES = {  # the word for a curve, its colour, and its marker
    "train": ("training", MUTED, ""),
    "eval_sample": ("sample", BLUE, ""),
    "eval": ("validation", ORANGE, "o"),
}


@as_svg
def plot_curves(curves: dict[str, list], best_step: int):
    """Loss, accuracy and macro-F1 by step. Args: curves: tag -> [(step, value), ...]."""
    shown = [key for key in ("loss", "accuracy", "macro_f1") if f"eval/{key}" in curves]
    grid = {"nrows": len(shown), "sharex": True, "gridspec_kw": {"hspace": 0.14}}
    figure, stacked = make_axes(72 + 144 * len(shown), **grid)
    for axes, what in zip(stacked, shown, strict=True):
        for source, (word, colour, marker) in CURVES.items():
            if points := curves.get(f"{source}/{what}"):
                axes.plot(*np.transpose(points), marker=marker, color=colour, label=word)
        axes.axvline(best_step, color=INK, lw=1, ls=":", label="best/")
        axes.set_ylabel(METRICS[what])
    legend_above(stacked[0], 4)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure


@as_svg
def plot_confusion(confusion: list[list[int]], names: list[str]):
    """Rows are true, columns predicted classes. Blue: right; orange: mistakes; the stronger, the
    larger the share of the true class. Numbers are counts of texts."""
    counts = np.array(confusion)
    numbers = len(names) <= FEW_CLASSES
    short = [shorten_middle(name, 20) for name in names]
    longest = 6.2 * max(map(letters_wide, short)) + 8
    cell = max(34 if len(names) > 3 else 56, 7 * len(f"{counts.max():,}") + 8) if numbers else 13
    upright = longest > cell
    side, left, bottom = cell * len(names), longest + 26, (longest if upright else 20) + 24
    width = max(side + left + 6, left + 110)  # room for the words under a small matrix
    figure, axes = make_axes(side + bottom + 6, width, left, width - left - side, 6, bottom)
    rows, columns = np.nonzero(counts >= (0 if numbers else 1))
    axes.add_collection(
        PolyCollection(
            [
                [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]
                for y, x in np.transpose([rows, columns])
            ],
            facecolors=shades(counts, 0.45 if numbers else 1)[rows, columns],
            edgecolors=LINE if numbers else "none",
        )
    )
    for row, column in np.ndindex(counts.shape) if numbers else ():
        count = counts[row, column]
        place = {"ha": "center", "va": "center_baseline", "color": INK if count else MUTED}
        axes.text(column + 0.5, row + 0.5, f"{count:,}", **place)
    places = np.arange(len(names)) + 0.5
    turned = {"rotation": 90, "ha": "right", "va": "center", "rotation_mode": "anchor"}
    axes.set_xticks(places, short, **(turned if upright else {}))
    axes.set_yticks(places, short)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set(xlim=(0, len(names)), ylim=(len(names), 0))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    figure.text(11 / width, 1 - (6 + side / 2) / (side + bottom + 6), "true", rotation=90, **MIDDLE)
    figure.text((left + side / 2) / width, 8 / (side + bottom + 6), "predicted", **MIDDLE)
    return figure


MIDDLE = {"ha": "center", "va": "center", "rotation_mode": "anchor"}


def shades(counts: np.ndarray, strongest: float) -> np.ndarray:
    """(classes, classes, 4) colours of the cells."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    colours = np.where(right[..., None], to_rgba(BLUE), to_rgba(ORANGE))
    if strongest == 1:  # without numbers, the mistakes of a good model would be too pale to see
        shares[~right] /= max(shares[~right].max(), 0.02)
    colours[..., 3] = np.where(counts > 0, 0.08 + (strongest - 0.08) * shares, 0)
    return colours


@as_svg
def plot_reliability(bins: list[dict], after: list[dict] | None):
    """Share right by mean probability, and below how many texts have such a probability."""
    grid = {"nrows": 2, "sharex": True, "gridspec_kw": {"height_ratios": [3, 1], "hspace": 0.12}}
    figure, (axes, below) = make_axes(360, **grid)
    filled = [group for group in [*bins, *(after or [])] if group["texts"]]
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--", label="ideal")
    for groups, word, colour in ((bins, "as it is", BLUE), (after, "with temperature", ORANGE)):
        if groups:
            points = [(one["confidence"], one["accuracy"]) for one in groups if one["texts"]]
            x, y = np.transpose(points)
            many = np.array([one["texts"] for one in groups if one["texts"]]) >= FEW_TEXTS
            axes.plot(x[many], y[many], "o-", color=colour, label=word)
            axes.plot(x[~many], y[~many], "o", color=colour, markerfacecolor="none")
    places = [group["from"] for group in bins], [group["texts"] for group in bins]
    wide = [group["to"] - group["from"] for group in bins]
    below.bar(*places, wide, align="edge", color=BLUE, edgecolor=LINE, alpha=0.6)
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    below.yaxis.set_major_formatter(EngFormatter(sep=""))
    below.set(xlabel="probability of the predicted class", ylabel="texts")
    lowest = min(min(group["from"], group["accuracy"]) for group in filled)
    axes.set(xlim=(min(group["from"] for group in filled), 1.01), ylim=(lowest - 0.03, 1.03))
    axes.set_ylabel("share right")
    legend_above(axes, 3)
    return figure


@as_svg
def plot_roc(points: list):
    figure, axes = make_axes(300, top=10)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
    axes.plot(*np.transpose(points), color=BLUE)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="false positives", ylabel="true positives")
    return figure


@as_svg
def plot_precision_recall(points: list, share: float):
    """Args: share: of the second class, which is the precision of a model that knows nothing."""
    figure, axes = make_axes(300, top=10)
    axes.axhline(share, color=MUTED, lw=1, ls="--")
    axes.plot(*np.transpose(points), color=BLUE)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    return figure


@as_svg
def plot_lengths(groups: list[dict]):
    """Accuracy with its interval for each group of lengths."""
    figure, axes = make_axes(260, top=10)
    middle = [group["accuracy"] for group in groups]
    ends = np.transpose([group["interval_95"] for group in groups])
    errors = np.abs(ends - middle)
    axes.errorbar(range(len(groups)), middle, errors, fmt="o", color=BLUE, lw=1.4, capsize=4)
    axes.set_xticks(range(len(groups)), [f"{one['from']}\u2013{one['to']}" for one in groups])
    axes.set(xlim=(-0.5, len(groups) - 0.5), xlabel="tokens", ylabel="accuracy")
    axes.grid(False, axis="x")
    return figure


@as_svg
def plot_thresholds(rows: list[dict]):
    """Accuracy on the texts that a threshold leaves, by their share; some with the threshold."""
    figure, axes = make_axes(280, top=16, right=22)
    points = [(row["coverage"], row["accuracy"]) for row in rows]
    axes.plot(*np.transpose(points), "o-", color=BLUE)
    axes.set(xlabel="share of the texts that are decided", ylabel="accuracy on these")
    axes.margins(0.09, 0.12)
    last = None
    for row, point in zip(rows, points, strict=True):
        place = axes.transData.transform(point) * 72 / figure.dpi
        if last is None or np.abs(place - last).max() > 28:
            word = f"{row['min_probability']:g}"
            axes.annotate(word, point, (0, 7), textcoords="offset points", ha="center", color=MUTED)
            last = place
    return figure
