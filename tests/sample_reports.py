"""Made-up predictions, and the report on them with the figures of scikit-learn itself."""

import numpy as np
from sklearn import metrics

LATIN = ["negative", "positive"]
FORTY = [f"Support: Rückerstattung und Zahlung, Fall {number}" for number in range(34)]
FORTY += ["负面的评论", "技术支持", "退款", "شكوى من العملاء", "إيجابي", "سلبي جدا"]
TEXTS = [
    "A film that I wanted to like, and which I did like, in the end.",
    "这部电影的开头很慢\uff0c但是结尾非常精彩\uff0c值得一看。",
    "كان الفيلم طويلا جدا لكنه جميل في النهاية.",
    'Plot & <b>acting</b> are "fine"; the rest isn\'t. ' * 20,
]


def make_predictions(classes: int, texts: int, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """(Probabilities (texts, classes), labels) of a model that is too sure of itself."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes, 3.0))
    labels = rng.choice(classes, texts, p=shares)
    logits = rng.normal(size=(texts, classes)) * 1.6
    logits[np.arange(texts), labels] += rng.normal(3.4, 2, texts)
    exponentials = np.exp(logits * 1.5)
    return exponentials / exponentials.sum(1, keepdims=True), labels


def make_sample(names: list[str], texts=2000, seed=0) -> tuple[dict, dict, list[dict], dict]:
    """What write_page takes: report, run, mistakes, curves."""
    probabilities, labels = make_predictions(len(names), texts, seed)
    predicted = probabilities.argmax(1)
    report = old_report(names, labels, predicted, probabilities)
    report |= new_figures(names, labels, predicted, probabilities)
    (wrong,) = np.nonzero(predicted != labels)
    wrong = wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")][:50]
    mistakes = [
        {
            "text": [TEXTS[number % len(TEXTS)]],
            "true": names[labels[row]],
            "predicted": names[predicted[row]],
            "probability": float(probabilities[row].max()),
        }
        for number, row in enumerate(wrong)
    ]
    return report, make_run(), mistakes, make_curves()


def interval(right: np.ndarray) -> list[float]:
    """Not Wilson's, but near it: the page shows what it is given."""
    spread = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / len(right))
    return [float(max(0, right.mean() - spread)), float(min(1, right.mean() + spread))]


def old_report(names, labels, predicted, probabilities) -> dict:
    """The keys that reports have always had."""
    numbers = list(range(len(names)))
    scores = metrics.precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=0
    )
    environment = {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "python": "3.11.9",
        "hardware": "x86_64 (AVX2), 2 cores, Linux",
        "device": "cpu",
        "processes": 1,
        "threads": 2,
    }
    return {
        "loss": float(metrics.log_loss(labels, probabilities, labels=numbers)),
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "interval_95": interval(labels == predicted),
        "examples": len(labels),
        "classes": {
            name: dict(
                zip(("precision", "recall", "f1"), map(float, row[:3]), strict=True),
                examples=int(row[3]),
            )
            for name, row in zip(names, np.transpose(scores), strict=True)
        },
        "confusion": metrics.confusion_matrix(labels, predicted, labels=numbers).tolist(),
        "of": {
            "dataset": "/data/reviews.csv",
            "split": "test",
            "test_split": "test",
            "text_column": "text",
            "label_column": "label",
            "max_test_samples": None,
            "weights": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "also_in": {"training": 3, "validation": 0},
            "precision": "no",
            "device": "cpu",
        },
        "environment": environment,
        "training_environment": environment | {"device": "cuda"},
    }


def new_figures(names, labels, predicted, probabilities) -> dict:
    right, sure = labels == predicted, probabilities.max(1)
    parts = {"cut": right[: len(right) // 6], "whole": right[len(right) // 6 :]}
    confusion = metrics.confusion_matrix(labels, predicted, labels=range(len(names)))
    pairs = [
        {
            "true": names[true],
            "predicted": names[other],
            "texts": int(confusion[true, other]),
            "share": float(confusion[true, other] / confusion[true].sum()),
        }
        for true, other in np.argwhere(confusion * (1 - np.eye(len(names), dtype=int)))
    ]
    figures = {
        "macro_f1": float(metrics.f1_score(labels, predicted, average="macro")),
        "confused": sorted(pairs, key=lambda pair: -pair["texts"])[:20],
        "calibration": calibrate(right, sure),
        "by_length": by_length(right),
        "by_cut": {
            kind: {
                "texts": len(part),
                "accuracy": float(part.mean()),
                "interval_95": interval(part),
            }
            for kind, part in parts.items()
            if len(part)
        },
        "baselines": {
            "largest_class": float(np.bincount(labels).max() / len(labels)),
            "bag_of_words": float(right.mean()) - 0.04,
            "learnt_from": 800,
            "of": 800,
        },
        "thresholds": thresholds(right, sure, len(names)),
        "at_stored_threshold": None,
        "comparison": {
            "models": {
                side: [{"ckpt": ckpt, "weights": ckpt[1] * 64, "also_in": {"training": 0}}]
                for side, ckpt in (("ours", "/a/best"), ("other", "/b/best"))
            },
            "accuracy": compared(0.912, 0.9, [-0.003, 0.027]),
            "macro_f1": compared(0.904, 0.89, [0.002, 0.03]),
            "mcnemar": {"only_ours_right": 61, "only_other_right": 37, "p": 0.0198},
            "differ": 98,
        },
    }
    return figures | (rank(labels, probabilities[:, 1]) if len(names) == 2 else {})


def compared(ours: float, other: float, interval: list[float]) -> dict:
    difference = ours - other
    return {"ours": ours, "other": other, "difference": difference, "interval_95": interval}


def calibrate(right, sure) -> dict:
    bins = []
    for low in range(10):
        within = np.clip((sure * 10).astype(int), 0, 9) == low
        bins.append(
            {
                "from": low / 10,
                "to": (low + 1) / 10,
                "texts": int(within.sum()),
                "confidence": float(sure[within].mean()) if within.any() else None,
                "accuracy": float(right[within].mean()) if within.any() else None,
            }
        )
    gaps = [one["texts"] * abs(one["confidence"] - one["accuracy"]) for one in bins if one["texts"]]
    after = [dict(one, accuracy=one["confidence"]) for one in bins]
    return {
        "bins": bins,
        "ece": float(sum(gaps) / len(right)),
        "temperature": 1.5,
        "at_limit": False,
        "fitted_on": 800,
        "ece_after": 0.0123,
        "bins_after": after,
    }


def by_length(right) -> list[dict]:
    ends = [0, 41, 87, 160, 301, 512]
    return [
        {
            "from": ends[number] + 1,
            "to": ends[number + 1],
            "texts": len(part),
            "accuracy": float(part.mean()),
            "interval_95": interval(part),
        }
        for number, part in enumerate(np.array_split(right, 5))
        if len(part)
    ]


def thresholds(right, sure, classes) -> list[dict]:
    rows = []
    for least in (0, *np.arange(0.5, 0.96, 0.05).round(2).tolist(), 0.99):
        kept = sure >= least
        if least == 0 or least >= 1 / classes:
            rows.append(
                {
                    "min_probability": least,
                    "coverage": float(kept.mean()),
                    "accuracy": float(right[kept].mean()) if kept.any() else None,
                    "interval_95": interval(right[kept]) if kept.any() else None,
                    "texts": int(kept.sum()),
                }
            )
    return rows


def rank(labels, positive) -> dict:
    false, true, _ = metrics.roc_curve(labels, positive)
    precision, recall, _ = metrics.precision_recall_curve(labels, positive)
    return {
        "roc_auc": float(metrics.roc_auc_score(labels, positive)),
        "average_precision": float(metrics.average_precision_score(labels, positive)),
        "curves": {
            "roc": np.transpose([false, true])[spread(false)].tolist(),
            "precision_recall": np.transpose([recall, precision])[spread(recall)].tolist(),
        },
    }


def spread(points) -> np.ndarray:
    return np.unique(np.linspace(0, len(points) - 1, 200).astype(int))


def make_run() -> dict:
    defaults = {"model": "distilbert-base-uncased", "learning_rate": 2e-5, "seed": 42}
    return {
        "name": "stars/best",
        "settings": defaults | {"learning_rate": 1e-4, "dataset": "/data/reviews.csv"},
        "defaults": defaults,
        "validation": {
            "step": 800,
            "loss": 0.3123,
            "accuracy": 0.8912,
            "macro_f1": 0.8801,
            "examples": 800,
        },
        "dates": ["2026-01-02 03:04 UTC", "2026-01-02 04:05 UTC"],
    }


def make_curves() -> dict:
    rng = np.random.default_rng(1)
    steps = list(range(10, 1201, 10))

    def curve(start, end, noise, chosen=steps):
        fall = start + (end - start) * (1 - np.exp(-np.array(chosen) / 300))
        return list(zip(chosen, (fall + rng.normal(0, noise, len(chosen))).tolist(), strict=True))

    return {
        "train/loss": curve(0.7, 0.1, 0.02),
        "train/learning_rate": curve(1, 0, 0),
        "eval_sample/loss": curve(0.7, 0.25, 0.02, steps[4::5]),
        "eval_sample/accuracy": curve(0.5, 0.9, 0.02, steps[4::5]),
        "eval/loss": [(400, 0.35), (800, 0.3123), (1200, 0.38)],
        "eval/accuracy": [(400, 0.86), (800, 0.8912), (1200, 0.887)],
        "eval/macro_f1": [(400, 0.85), (800, 0.8801), (1200, 0.879)],
    }
