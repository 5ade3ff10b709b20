"""Whether probabilities can be trusted.

In: predictions of a split; the validation in best/. Out: reliability, a temperature. Independent
of: models, data sets, words for people.
"""

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from report.predictions import Predicted


def examine_calibration(predicted: Predicted, validation: Predicted | None) -> dict:
    """Reliability as it is, and with the temperature that fits `validation` best."""
    bins = reliability(predicted)
    found = {"bins": bins, "ece": calibration_error(bins), "temperature": None, "at_limit": False}
    found["fitted_on"] = 0
    if validation is None:
        return found | {"ece_after": None, "bins_after": None}
    temperature, at_limit = fit_temperature(validation)
    after = reliability(predicted, temperature)
    return found | {
        "temperature": temperature,
        "at_limit": at_limit,
        "fitted_on": len(validation.labels),
        "ece_after": calibration_error(after),
        "bins_after": after,
    }


def reliability(predicted: Predicted, temperature: float = 1.0, bins: int = 10) -> list[dict]:
    """Texts by the probability of their predicted class: its mean, and the share that is right."""
    confidence = predicted.probabilities(temperature).max(1)
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for one in range(bins):
        of = number == one
        means = (
            {
                "confidence": float(confidence[of].mean()),
                "accuracy": float(predicted.right[of].mean()),
            }
            if of.any()
            else {"confidence": None, "accuracy": None}
        )
        rows.append({"from": one / bins, "to": (one + 1) / bins, "texts": int(of.sum()), **means})
    return rows


def calibration_error(bins: list[dict]) -> float:
    """Expected calibration error (Guo et al., arXiv:1706.04599): the mean distance between
    probability and share of right ones, over the texts."""
    filled = [row for row in bins if row["texts"]]
    texts = sum(row["texts"] for row in filled)
    return sum(row["texts"] * abs(row["confidence"] - row["accuracy"]) for row in filled) / texts


LIMITS = 0.05, 20.0  # a model without any mistake in validation asks for a temperature of 0


def fit_temperature(validation: Predicted) -> tuple[float, bool]:
    """What to divide logits by, for the lowest cross-entropy (Guo et al.), and whether that is one
    of `LIMITS`: then the best is beyond it."""
    logits = torch.as_tensor(validation.logits).double()
    labels = torch.as_tensor(validation.labels)

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    bounds = [*map(math.log, LIMITS)]
    found = minimize_scalar(loss, bounds=bounds, method="bounded")
    nearest = min(bounds, key=lambda bound: abs(bound - found.x))
    at_limit = bool(loss(nearest) <= found.fun)
    return math.exp(nearest if at_limit else found.x), at_limit
