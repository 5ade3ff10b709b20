"""A look at a data set before hours are spent on it, `python data.py`; what is learnt of it without
a Transformer, which eval.py's report sets beside the model.

In: labelled texts to train and to validate on; how many tokens each has. Out: a dict that can be
saved as JSON, and lines for a person. Independent of: how texts are read, chosen and tokenized.
"""

import time
from collections.abc import Iterator

import numpy as np

from report.texts import own_training, training_texts
from runtime.display import WIDEST, letters_wide, shorten_middle
from runtime.draw import sample
from runtime.flags import UserError
from runtime.notes import count_repeats, largest_class
from runtime.tables import LabelledTexts

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
MOST = 50_000  # texts that the bag of words learns from; more hardly help it, and take minutes
MOST_WEIGHTS = 5_000_000  # of all its classes: lbfgs keeps some twenty copies of 8 bytes each


def examine(
    train: LabelledTexts, validation: LabelledTexts, lengths: dict[str, np.ndarray], limit: int
) -> dict:
    """What the look finds.

    Args:
        lengths: tokens of each text, not cut, for "train" and "validation".
        limit: the tokens of a text that the model will read.
    """
    of_train = lengths["train"]
    return {
        "texts": {"train": len(train), "validation": len(validation)},
        "classes": {
            name: {
                "train": int((train.labels == number).sum()),
                "validation": int((validation.labels == number).sum()),
                "median_tokens": middle(of_train[train.labels == number]),
                "cut": share(of_train[train.labels == number] > limit),
            }
            for number, name in enumerate(train.names)
        },
        "max_length": limit,
        "tokens": {
            f"{percent}%": int(np.percentile(of_train, percent, method="lower"))
            for percent in PERCENTILES
        },
        "cut": {name: share(tokens > limit) for name, tokens in lengths.items()},
        "left_out": train.left_out + validation.left_out * (validation.table is not train.table),
        "repeats": count_repeats(train, validation),
        "in_both": int(np.isin(validation.hashes, train.hashes).sum()),
        "baselines": {
            "largest_class": float(largest_class(validation.labels)[1]),
            "bag_of_words": bag_of_words(train, validation),
        },
    }


def middle(tokens: np.ndarray) -> int | None:
    return int(np.median(tokens)) if len(tokens) else None


def share(which: np.ndarray) -> float:
    return float(which.mean()) if len(which) else 0.0


# A run of letters and digits; of a script that puts no blanks between words, each letter.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
WORD = rf"[{UNSPACED}]|[^\W{UNSPACED}]+"


def bag_of_words(train: LabelledTexts, validation: LabelledTexts) -> dict:
    """Accuracy on the validation texts of a logistic regression on TF-IDF of words and pairs of
    words, and how long it took: what a model without any idea of order or meaning reaches.

    None, if there is nothing to learn: only one class, or no word that occurs often enough.
    """
    # Not at the top: they take a second to import.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    begun = time.perf_counter()
    part = sample(train, MOST, seed=0)
    vectorize = TfidfVectorizer(
        token_pattern=WORD,
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=min_rows(len(part)),
        max_features=MOST_WEIGHTS // len(train.names),
    )
    try:
        features = vectorize.fit_transform(joined(part))
    except ValueError:  # there is no word, or each is in one text alone
        features = None
    accuracy = None
    if features is not None and len(set(part.labels)) > 1:
        model = LogisticRegression(C=10, max_iter=200).fit(features, part.labels)
        predicted = model.predict(vectorize.transform(joined(validation)))
        accuracy = float((predicted == validation.labels).mean())
    seconds = round(time.perf_counter() - begun, 1)
    return {"accuracy": accuracy, "trained_on": len(part), "seconds": seconds}


def measure_baselines(classifier, texts: LabelledTexts) -> tuple[dict, list[str]]:
    """Accuracies on `texts` without the model: of one answer for all, and of a bag of words learnt
    from the training texts; None where these cannot be read. And a line that says so, or that only
    some of them are there."""
    known = np.unique(own_training(classifier.folder))
    found = {"bag_of_words": None, "learnt_from": 0, "of": len(known)}
    found = {"largest_class": float(largest_class(texts.labels)[1])} | found
    if not len(known):
        return found, [f"no bag of words: {classifier.folder} has no record of its training texts"]
    try:
        trained = training_texts(classifier, known)
    except UserError as error:
        return found, [f"no bag of words, as the training texts cannot be read ({error.args[0]})"]
    there = len(np.unique(trained.hashes))
    if not there:
        return found, ["no bag of words, as none of the training texts is there any more"]
    found |= {"bag_of_words": bag_of_words(trained, texts)["accuracy"], "learnt_from": there}
    if there == len(known):
        return found, []
    return found, [
        f"the bag of words has {there:,} of the {len(known):,} texts that the model was trained "
        f"on: the others are not in {trained.table.source}"
    ]


def min_rows(texts: int) -> int:
    """Words of a single text are left out, which halves the memory, unless there are few texts."""
    return 2 if texts > 1000 else 1


def joined(texts: LabelledTexts) -> Iterator[str]:
    return (" \n ".join(text) for chunk in texts.chunks() for text in chunk)


# ---------------------------------------------------------------- for a person


def show_look(look: dict) -> None:
    texts, limit = look["texts"], look["max_length"]
    rows = [(shorten_middle(name, WIDEST), row) for name, row in look["classes"].items()]
    whole = {**texts, "median_tokens": look["tokens"]["50%"], "cut": look["cut"]["train"]}
    rows.append(("all texts", whole))
    width = max(letters_wide(name) for name, _ in rows)
    head = f"{'':{width}}  {'train':>9} {'':6}  {'validation':>10} {'':6}"
    print(f"{head}  median tokens  cut at {limit} (train)")
    for name, row in rows:
        sides = "  ".join(
            f"{row[side]:>{wide},} {row[side] / texts[side]:6.1%}"
            for side, wide in (("train", 9), ("validation", 10))
        )
        median = "-" if row["median_tokens"] is None else row["median_tokens"]
        pad = " " * (width - letters_wide(name))
        print(f"{name}{pad}  {sides}  {median:>13}  {row['cut']:>{7 + len(str(limit))}.1%}")
    percentiles = ", ".join(f"{name} {tokens:,}" for name, tokens in look["tokens"].items())
    print(f"tokens of a training text, percentiles: {percentiles}")
    repeats = look["repeats"]
    print(
        f"texts of both that occur more than once: {repeats['texts']:,}, in {repeats['rows']:,} "
        f"rows; with different labels: {repeats['contradictions']:,}"
    )
    print(f"validation texts that are trained on, too: {look['in_both']:,}")
    largest, words = look["baselines"]["largest_class"], look["baselines"]["bag_of_words"]
    part = words["trained_on"] < texts["train"]
    reached = "none" if words["accuracy"] is None else f"{words['accuracy']:.4f}"
    print(
        f"validation accuracy to beat: {largest:.4f} by the largest class alone, {reached} by a "
        "bag of words (TF-IDF of words and pairs of words, logistic regression"
        f"{f', {MOST:,} texts' * part}; {words['seconds']:.0f} s)"
    )
