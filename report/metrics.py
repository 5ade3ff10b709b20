"""A report on predictions: accuracy with its interval, each class, the confusion matrix.

In: scores, predicted and true classes. Out: a dict that is saved as JSON, and lines for a person.
Independent of: models, data sets, files. `evaluate` takes two seconds to import.
"""

import datasets
import evaluate
import torch

from runtime.intervals import wilson


class ClassificationReport(evaluate.Metric):
    """Per-class precision, recall and F1, and the confusion matrix [true][predicted], as counts.

    A metric of `evaluate`, but ours: `evaluate.load("accuracy")` needs the Hub and scikit-learn.
    """

    def _info(self):
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="class numbers",
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, names):
        pairs = torch.as_tensor(references) * len(names) + torch.as_tensor(predictions)
        confusion = torch.bincount(pairs, minlength=len(names) ** 2).view(len(names), len(names))
        correct, predicted, true = confusion.diag(), confusion.sum(0), confusion.sum(1)
        return {
            "accuracy": ratio(correct.sum(), true.sum()),
            "classes": {
                name: {
                    "precision": ratio(correct[index], predicted[index]),
                    "recall": ratio(correct[index], true[index]),
                    "f1": ratio(2 * correct[index], predicted[index] + true[index]),
                    "examples": int(true[index]),
                }
                for index, name in enumerate(names)
            },
            "confusion": confusion.tolist(),
        }


def ratio(part, whole) -> float:
    """part / whole, and 0 for 0 / 0, as scikit-learn has it for a class that is never predicted."""
    return float(part) / float(whole) if whole else 0.0


def make_report(scores, predicted: torch.Tensor, labels: torch.Tensor, names: list[str]) -> dict:
    """`scores` of eval.score; (texts,) predicted and true class numbers; the classes' names."""
    metric = ClassificationReport()
    counts = metric.compute(predictions=predicted.tolist(), references=labels.tolist(), names=names)
    return {
        "loss": scores.loss,
        "accuracy": counts.pop("accuracy"),
        "interval_95": wilson(scores.accuracy, scores.examples),
        "examples": scores.examples,
        **counts,
    }


def show(report: dict) -> None:
    """The report as a person reads it."""
    low, high = report["interval_95"]
    print(f"accuracy {report['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})", end=", ")
    print(f"loss {report['loss']:.4f}, {report['examples']:,} texts")
    width = max(9, *(len(name) for name in report["classes"]))
    print(f"{'':{width}}  precision  recall      f1  examples   predicted as")
    for (name, row), line in zip(report["classes"].items(), report["confusion"], strict=True):
        figures = (
            f"{row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['examples']:8,}"
        )
        print(f"{name:{width}}  {figures}   {' '.join(f'{count:,}' for count in line)}")
