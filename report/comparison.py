"""Two classifiers, or two of several seeds each, on the same texts: which is better, and how sure
that is.

In: the classes that each predicted, and the true ones. Out: differences with intervals, a test.
Independent of: models, data sets, files, words for people.
"""

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000


def compare_sides(
    labels: np.ndarray, ours: list[np.ndarray], others: list[np.ndarray], classes: int
) -> dict:
    """Args: labels: (texts,) true classes. ours, others: (texts,) predicted classes, one array for
    each seed of a side; a side's figures are the means of its seeds'.

    The intervals are percentiles of a paired bootstrap over the texts (Efron & Tibshirani 1993),
    drawn once for both sides. The test is McNemar's, exact, of one model against one.
    """
    columns = np.stack([labels, *ours, *others], axis=1)
    kinds, counts = np.unique(columns, axis=0, return_counts=True)
    sides = kinds[:, 1 : 1 + len(ours)], kinds[:, 1 + len(ours) :]

    def measure(counts: np.ndarray) -> np.ndarray:
        """(metrics, sides, resamples) the means over a side's seeds."""
        of_sides = [
            np.mean([measure_seed(kinds[:, 0], seed, counts, classes) for seed in side.T], axis=0)
            for side in sides
        ]
        return np.stack(of_sides, axis=1)

    rng = np.random.default_rng(0)
    # A resample of texts is a number of texts of each kind; a thousand at a time, for the memory.
    drawn = [
        measure(rng.multinomial(len(labels), counts / len(labels), size=1000))
        for _ in range(RESAMPLES // 1000)
    ]
    intervals = np.quantile(
        np.diff(np.concatenate(drawn, axis=2)[:, ::-1], axis=1)[:, 0], [0.025, 0.975], axis=1
    ).T
    found = {}
    for metric, values, interval in zip(
        ("accuracy", "macro_f1"), measure(counts[None]), intervals, strict=True
    ):
        (mine,), (theirs,) = values
        found[metric] = {
            "ours": float(mine),
            "other": float(theirs),
            "difference": float(mine - theirs),
            "interval_95": interval.tolist(),
        }
    one_each = len(ours) == len(others) == 1
    return {
        **found,
        "accuracies": {
            name: [float((of == labels).mean()) for of in side]
            for name, side in (("ours", ours), ("other", others))
        },
        "mcnemar": mcnemar(ours[0] == labels, others[0] == labels) if one_each else None,
        "differ": int((np.stack(ours + others) != ours[0]).any(0).sum()),
    }


def measure_seed(
    labels: np.ndarray, predicted: np.ndarray, counts: np.ndarray, classes: int
) -> np.ndarray:
    """(2, resamples) accuracy and macro-F1 of the texts of which `counts` (resamples, kinds) are of
    each kind; `labels`, `predicted`: (kinds,)."""
    true, said = (np.eye(classes)[of] for of in (labels, predicted))
    both, either = counts @ (true * said), counts @ (true + said)
    f1 = np.divide(2 * both, either, where=either > 0, out=np.zeros(either.shape))
    return np.stack([both.sum(1) / counts.sum(1), f1.sum(1) / (either > 0).sum(1)])


def mcnemar(ours: np.ndarray, other: np.ndarray) -> dict:
    """Exact (McNemar 1947): `ours`, `other`: (texts,) whether each is right."""
    only_ours, only_other = int((ours & ~other).sum()), int((other & ~ours).sum())
    texts = only_ours + only_other
    p = float(binomtest(only_ours, texts).pvalue) if texts else 1.0
    return {"only_ours_right": only_ours, "only_other_right": only_other, "p": p}
