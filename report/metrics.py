"""A report on predictions: how many are right, of which classes, and which texts they fail on.

In: logits and true classes of a split. Out: a dict that is saved as JSON. Independent of: models,
data sets, files, words for people. `evaluate` and scikit-learn take seconds to import.
"""

import datasets
import evaluate
import numpy as np
import torch
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from report.predictions import Predicted
from runtime.intervals import wilson


class ClassificationReport(evaluate.Metric):
    """Per-class precision, recall and F1, and the confusion matrix [true][predicted], as counts.

    A metric of `evaluate`, but ours: `evaluate.load("accuracy")` needs the Hub.
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


def make_report(scores, predicted: Predicted, names: list[str]) -> dict:
    """`scores` of model.score; the classes' names."""
    metric = ClassificationReport()
    counts = metric.compute(
        predictions=predicted.classes.tolist(), references=predicted.labels.tolist(), names=names
    )
    return {
        "loss": scores.loss,
        "accuracy": counts.pop("accuracy"),
        "interval_95": wilson(scores.accuracy, scores.examples),
        "macro_f1": scores.macro_f1,
        "examples": scores.examples,
        **counts,
        **rank_metrics(predicted),
        "confused": confused_pairs(counts["confusion"], names),
        "by_length": accuracy_by_length(predicted),
        "by_cut": {
            name: accuracy_of(predicted.right[which])
            for name, which in (("cut", predicted.cut), ("whole", ~predicted.cut))
            if which.any()
        },
    }


def rank_metrics(predicted: Predicted) -> dict:
    """Of two classes: ROC AUC and average precision of the second, and both curves, at 200 points
    or fewer; None where the texts are of one class."""
    if predicted.logits.shape[1] != 2:
        return {}
    if len(set(predicted.labels)) < 2:
        return {"roc_auc": None, "average_precision": None}
    of_second = predicted.labels, predicted.probabilities()[:, 1]
    false, true, _ = roc_curve(*of_second)
    precision, recall, _ = precision_recall_curve(*of_second)
    return {
        "roc_auc": float(roc_auc_score(*of_second)),
        "average_precision": float(average_precision_score(*of_second)),
        "curves": {"roc": thin_out(false, true), "precision_recall": thin_out(recall, precision)},
    }


def thin_out(x: np.ndarray, y: np.ndarray, most: int = 200) -> list[list[float]]:
    kept = np.unique(np.linspace(0, len(x) - 1, most).round().astype(int))
    return np.stack([x[kept], y[kept]], axis=1).tolist()


def confused_pairs(confusion: list[list[int]], names: list[str], most: int = 20) -> list[dict]:
    """The most frequent mistakes."""
    pairs = [
        {"true": true, "predicted": predicted, "texts": count, "share": count / sum(row)}
        for true, row in zip(names, confusion, strict=True)
        for predicted, count in zip(names, row, strict=True)
        if count and predicted != true
    ]
    return sorted(pairs, key=lambda pair: -pair["texts"])[:most]


def accuracy_by_length(predicted: Predicted, groups: int = 5) -> list[dict]:
    """In groups of about as many texts; texts of equal length are in one."""
    length = predicted.length
    bounds = np.unique(np.quantile(length, np.linspace(0, 1, groups + 1), method="higher"))
    group = np.searchsorted(bounds[1:], length)
    return [
        {"from": int(length[of].min()), "to": int(length[of].max())}
        | accuracy_of(predicted.right[of])
        for of in (group == number for number in np.unique(group))
    ]


def accuracy_of(right: np.ndarray) -> dict:
    accuracy, texts = float(right.mean()), len(right)
    return {"texts": texts, "accuracy": accuracy, "interval_95": wilson(accuracy, texts)}
