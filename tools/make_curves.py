"""Write docs/learning_curves.png from the event files of a run: python tools/make_curves.py RUN"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from report.history import read_history

SHOWN = {"train": ("training", "#2a78d6"), "eval_sample": ("sample", "#9aa3ad")}
SHOWN |= {"eval": ("validation", "#d95926")}


def draw(run: Path) -> Figure:
    """Loss and accuracy by step, side by side."""
    trained = json.loads((run / "best" / "training_config.json").read_text(encoding="utf-8"))
    about, curves = read_history(run / "best", trained)
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for source, (word, colour) in SHOWN.items():
            if points := curves.get(f"{source}/{what}"):
                marker = "o" if source == "eval" else None
                axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=word)
        axes.axvline(about["validation"]["step"], color="black", lw=1, ls=":", label="best/")
        axes.set(xlabel="step", ylabel=what)
        axes.grid(color="#e3e6ea")
        axes.spines[["right", "top"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    draw(Path(sys.argv[1])).savefig(ROOT / "docs" / "learning_curves.png", dpi=120)
