"""What TensorBoard shows besides curves: a validation in pictures, the command, the settings.

In: a SummaryWriter; logits and labels of a validation; what a run is. Out: events in `runs/`.
Independent of: how a step is made, scalars.
"""

import shlex
import sys
import warnings

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from runtime.display import FEW_CLASSES, shorten_middle

TUNED = ("learning_rate", "num_train_epochs", "model", "seed", "max_length", "dropout")
TUNED += ("weight_decay", "warmup_steps", "class_weights", "label_smoothing_factor")
MOST_NAMES = 40  # classes whose names can be read beside a matrix


def write_validation(
    writer: SummaryWriter, logits: torch.Tensor, labels: torch.Tensor, names: list[str], step: int
) -> None:
    """The confusion matrix as a picture, and a precision-recall curve of each class (of the second
    alone, if there are two)."""
    figure = draw_confusion(count_confusion(logits.argmax(-1), labels, len(names)), names)
    with warnings.catch_warnings():
        # matplotlib's font lacks the letters of many scripts, and it would say so of each.
        warnings.filterwarnings("ignore", "Glyph")
        writer.add_figure("eval/confusion", figure, step, close=False)
    if len(names) > FEW_CLASSES:  # nobody looks at the curve of each
        return
    probabilities = logits.softmax(-1)
    for number, name in list(enumerate(names))[len(names) == 2 :]:
        writer.add_pr_curve(
            f"precision_recall/{name}", labels == number, probabilities[:, number], step
        )


def count_confusion(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(classes, classes) texts by true and predicted class."""
    pairs = labels * classes + predicted
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def draw_confusion(confusion: torch.Tensor, names: list[str]):
    """A figure: colours are shares of a true class, numbers are texts."""
    from matplotlib.figure import Figure  # half a second, which only the main process waits for

    classes = len(names)
    size = 2.5 + 0.45 * min(classes, MOST_NAMES)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if classes <= MOST_NAMES:
        short = [shorten_middle(name, 24) for name in names]
        plain = {"parse_math": False}  # or two dollars in a name would be a formula, or an error
        axes.set_xticks(range(classes), short, rotation=90, **plain)
        axes.set_yticks(range(classes), short, **plain)
    for row, column in torch.nonzero(confusion).tolist() if classes <= FEW_CLASSES else ():
        color = "white" if shares[row, column] > 0.5 else "black"
        count = f"{confusion[row, column]:,}"
        axes.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
    return figure


def write_about(writer: SummaryWriter, config, environment: dict, step: int) -> None:
    """The command and the versions as text, and the settings for the page of hyper-parameters,
    beside the scores of the best step."""
    writer.add_text("about/command", f"    {shlex.join(sys.argv)}", step)
    rows = [f"| {name} | {value} |" for name, value in environment.items()]
    writer.add_text("about/environment", "\n".join(["| | |", "|---|---|", *rows]), step)
    settings = {name: getattr(config, name) for name in TUNED}
    settings = {name: "" if value is None else value for name, value in settings.items()}
    scores = dict.fromkeys(["best/accuracy", "best/macro_f1", "best/loss"])
    for summary in hparams(settings, scores):  # not add_hparams, which makes a run of its own
        writer.file_writer.add_summary(summary)
