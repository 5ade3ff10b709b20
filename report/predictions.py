"""Predictions for new texts: printed, or written beside the columns of the user's file.

In: texts; a classifier (eval.Classifier), which gives logits and class names. Out: lines, a file.
Independent of: how logits are computed, test splits.
"""

from pathlib import Path

from datasets import Dataset

from report.files import WRITERS
from runtime.flags import UserError
from runtime.tables import check_texts, read_table


def print_predictions(texts: tuple[str, ...], classifier) -> None:
    logits = classifier.logits(Dataset.from_dict({"text": list(texts)}))
    for text, row in zip(texts, logits.softmax(-1), strict=True):
        label = classifier.names[row.argmax()]
        classifier.accelerator.print(f"{label}  {row.max():.4f}  {text}")


def write_predictions(config, classifier) -> None:
    """The table of --input with two more columns, `predicted_label` and `probability`."""
    name = config.text_column or classifier.trained.get("text_column", "text")
    table = read_table(config.input, "train", flag="--input")  # "train": a file has one split
    output = Path(config.output)
    for added in ("predicted_label", "probability"):
        if added in table.column_names:
            raise UserError(f"--input {config.input}: has a column {added} already; rename it")
    if name not in table.column_names:
        raise UserError(
            f"--text_column {name}: no such column; give one of {', '.join(table.column_names)}"
        )
    check_texts(table, name)
    logits = classifier.logits(Dataset.from_dict({"text": table[name][:]}))
    probability, label = logits.softmax(-1).max(-1)
    table = table.add_column("predicted_label", [classifier.names[index] for index in label])
    table = table.add_column("probability", probability.tolist())
    if classifier.accelerator.is_main_process:
        getattr(table, WRITERS[output.suffix])(str(output))
        print(f"{len(table):,} predictions written to {output}")
