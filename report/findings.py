"""What the figures of a report mean, in a sentence or two each.

In: a report, or parts of it. Out: lists of sentences. Independent of: HTML, plots, files.
"""

import math

from runtime.card import METRICS
from runtime.display import FEW_CLASSES, shorten_middle

SMALL_ERROR = 0.02  # of calibration
FEW_TEXTS = 10  # a share of fewer says little


def percent(share: float) -> str:
    """Such as "97.1 %"; with more decimals where "100.0 %" or "0.0 %" would be wrong."""
    digits = 1
    while 1e-6 < share < 1 - 1e-6 and float(f"{share:.{digits + 2}f}") in (0, 1):
        digits += 1
    return f"{100 * share:.{digits}f}\u00a0%"


def points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "\u2212")


def named(name: str) -> str:
    """A class name in a sentence. The isolates (Unicode TR9) keep the direction of its script from
    the rest of the sentence."""
    return f"“\u2068{shorten_middle(name, 60)}\u2069”"


def of_headline(report: dict) -> list[str]:
    texts, accuracy, (low, high) = report["examples"], report["accuracy"], report["interval_95"]
    said = [
        f"{number_right(report):,} of {texts:,} texts are right. Of other texts like these, expect "
        f"{percent(low)} to {percent(high)} (95\u00a0% interval)."
    ]
    if on_validation(report):
        said = [
            f"{number_right(report):,} of {texts:,} texts are right. These texts chose the step of "
            "the weights, so the figures are a little too good: show those of a test set."
        ]
    baselines = report["baselines"]
    words = {"bag_of_words": "bag of words", "largest_class": "largest class"}
    known = {word: baselines[key] for key, word in words.items() if baselines[key] is not None}
    best = max(known, key=known.get)
    said.append(beside_baseline(best, known[best], accuracy, low))
    said += of_part(baselines)
    macro = report["macro_f1"]
    if macro < accuracy - 0.05:
        said.append(
            f"Macro-F1, which counts every class alike, is only {percent(macro)}: {why_low(report)}"
        )
    return said


def on_validation(report: dict) -> bool:
    return report["of"]["split"] == "validation"


def why_low(report: dict) -> str:
    """Classes without a text here count with an F1 of 0 if the model says them."""
    columns = map(sum, zip(*report["confusion"], strict=True))
    said = zip(report["classes"].items(), columns, strict=True)
    foreign = [name for (name, row), times in said if times and not row["examples"]]
    if foreign:
        return (
            f"{listed(foreign)}, of which there is no text here but which the model answers, count "
            "as 0."
        )
    return (
        "some classes, mostly small ones, are recognized worse than the accuracy tells; see "
        "Classes."
    )


def of_part(baselines: dict) -> list[str]:
    there, count = baselines["learnt_from"], baselines["of"]
    if there == count or not there:
        return []
    return [
        f"The bag of words was learnt from {there:,} of {count:,} training texts, as the others "
        "are not there any more."
    ]


def number_right(report: dict) -> int:
    return sum(row[number] for number, row in enumerate(report["confusion"]))


def beside_baseline(word: str, baseline: float, accuracy: float, low: float) -> str:
    if baseline >= accuracy:
        return f"The {word} is as good or better: {percent(baseline)}."
    if baseline >= low:
        return (
            f"The {word} ({percent(baseline)}) is inside the interval: with so few texts, the lead "
            "of the model may be chance."
        )
    return f"The model is better than the {word} by {points(accuracy - baseline)[1:]} points."


def of_run(report: dict) -> list[str]:
    said = []
    seen = report["of"]["also_in"]
    if seen["training"]:
        share = percent(seen["training"] / report["examples"])
        said.append(
            f"{seen['training']:,} of these texts ({share}) were trained on as well: on those the "
            "model is better than it would be on new ones."
        )
    commits = [(report[name] or {}).get("commit") for name in ENVIRONMENTS]
    if all(commits) and commits[0] != commits[1]:
        said.append("Training and evaluation were done by different commits of the code.")
    return said


ENVIRONMENTS = ("training_environment", "environment")


def of_curves(curves: dict, best_step: int | None, metric: str = "accuracy") -> list[str]:
    """`metric`: by which the best step was chosen."""
    said = [
        "Both losses should fall and level off. A validation loss that rises again is over-fitting."
    ]
    finite = {
        tag: [(step, value) for step, value in values if math.isfinite(value)]
        for tag, values in curves.items()
    }
    over_fits = False
    losses = finite.get("eval/loss") or finite.get("eval_sample/loss") or []
    if len(losses) > 1:
        lowest, end = min(losses, key=lambda point: point[1]), losses[-1]
        if end[1] > 1.1 * lowest[1]:
            over_fits = True
            said.append(
                f"The validation loss was lowest at step {lowest[0]:,} ({lowest[1]:.3f}) and ends "
                f"at {end[1]:.3f}: the model over-fits; fewer steps or more texts may help."
            )
    full = finite.get("eval/accuracy", [])
    if best_step is not None and full:
        last = best_step == full[-1][0] and len(full) > 1
        more = ", the last validation"
        more = f"{more}{': more steps may help' * (not over_fits)}" if last else ""
        best = f"the best {METRICS[metric]}" if metric != "loss" else "the lowest loss"
        said.append(
            f"The weights reported on are those of step {best_step:,}, with {best} of a whole "
            f"validation{more}."
        )
    return said


def of_classes(report: dict) -> list[str]:
    classes = report["classes"]
    there = {name: row for name, row in classes.items() if row["examples"]}
    said = [
        "Precision: of the texts that are given this class, the share that has it. Recall: of the "
        "texts that have it, the share that is given it. F1 is high only if both are."
    ]
    if len(there) > 1:
        name = min(there, key=lambda name: there[name]["f1"])
        row = there[name]
        said.append(
            f"The weakest class is {named(name)}: F1 {row['f1']:.3f}; {percent(row['recall'])} of "
            f"its {row['examples']:,} texts are found."
        )
    if missing := [name for name in classes if name not in there]:
        said.append(f"No text here has the class {listed(missing)}: its figures mean nothing.")
    unused = [name for name in there if not classes[name]["recall"]]
    if unused:
        said.append(f"No text of {listed(unused)} is recognized.")
    return said


def listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(named, names[:3])) + more


def of_confusion(report: dict) -> list[str]:
    said = [
        "A row is a true class, a column what the model said. Blue is right, orange wrong; the "
        "stronger, the larger the share of the row."
    ]
    if len(report["classes"]) > FEW_CLASSES:
        said.append("The largest mistake has the full colour: the rest are compared with it.")
    if pairs := report["confused"]:
        first = pairs[0]
        said.append(
            f"The most frequent mistake: {named(first['true'])} taken for "
            f"{named(first['predicted'])} (texts: {first['texts']:,}, {percent(first['share'])} of "
            "the class)."
        )
        wrong = report["examples"] - number_right(report)
        share = sum(pair["texts"] for pair in pairs[:3]) / wrong
        if len(report["classes"]) > 2 and share > 0.25:
            said.append(f"The first three pairs of the table make up {percent(share)} of mistakes.")
    return said


def of_calibration(calibration: dict, validation: bool = False) -> list[str]:
    """`validation`: whether it is on the texts that the temperature was fitted on."""
    bins = [group for group in calibration["bins"] if group["texts"]]
    texts = sum(group["texts"] for group in bins)
    gaps = [group["texts"] * (group["confidence"] - group["accuracy"]) / texts for group in bins]
    over = sum(gaps) > 0
    said = [
        "Where the model gives a probability of 0.8, it should be right for 80\u00a0% of texts."
    ]
    # The example: most of the gap, in the direction of the whole, and if possible of many texts.
    alike = [(gap, group) for gap, group in zip(gaps, bins, strict=True) if (gap > 0) == over]
    many = [pair for pair in alike if pair[1]["texts"] >= FEW_TEXTS]
    _, worst = max(many or alike, key=lambda pair: abs(pair[0]))
    example = (
        f"of the {worst['texts']:,} texts with probability {worst['from']:.1f} to "
        f"{worst['to']:.1f} (mean {worst['confidence']:.3f}) it has {percent(worst['accuracy'])} "
        "right"
    )
    error = f"the mean gap (expected calibration error) is {calibration['ece']:.3f}"
    if calibration["ece"] < SMALL_ERROR:
        said.append(f"It is well calibrated: {error}.")
    else:
        kind = "over-confident" if over else "under-confident"
        said.append(f"The model is {kind}: {example}; {error}.")
    if any(group["texts"] < FEW_TEXTS for group in bins):
        said.append(f"Hollow points have fewer than {FEW_TEXTS} texts and say little.")
    if calibration["ece_after"] is not None:
        texts = f"{calibration['fitted_on']:,} validation texts"
        texts = "these very texts" if validation else texts
        how = "the limit of those tried" if calibration["at_limit"] else "fitted"
        no_better = ", which is no better" * (calibration["ece_after"] >= calibration["ece"])
        said.append(
            f"Logits divided by a temperature of {calibration['temperature']:.2f}, {how} on "
            f"{texts}, give {calibration['ece_after']:.3f}{no_better}; the predicted classes stay "
            "the same."
        )
    return said


def of_two_classes(report: dict) -> list[str]:
    first, second = report["classes"]
    return [
        f"How well the probability of {named(second)} ranks the texts, whatever the threshold. "
        "Dashed: a model that knows nothing.",
        f"Area under the ROC curve {report['roc_auc']:.3f}: a text of {named(second)} has a higher "
        f"probability of it than one of {named(first)} in {percent(report['roc_auc'])} of cases.",
        f"Average precision {report['average_precision']:.3f}; {percent(share_of_second(report))} "
        "of the texts are of that class.",
    ]


def share_of_second(report: dict) -> float:
    _, second = report["classes"].values()
    return second["examples"] / report["examples"]


def of_lengths(groups: list[dict]) -> list[str]:
    said = ["Tokens are those that the model read, after cutting; bars are 95\u00a0% intervals."]
    best = max(groups, key=lambda group: group["accuracy"])
    worst = min(groups, key=lambda group: group["accuracy"])
    if apart(best, worst):
        said.append(
            f"The accuracy differs by length: {percent(worst['accuracy'])} of texts of "
            f"{worst['from']} to {worst['to']} tokens are right, {percent(best['accuracy'])} of "
            f"{best['from']} to {best['to']}."
        )
    else:
        said.append("The intervals overlap: no effect of the length can be told on these texts.")
    return said


def apart(one: dict, other: dict) -> bool:
    """Whether the intervals of two groups do not overlap."""
    lows, highs = zip(one["interval_95"], other["interval_95"], strict=True)
    return max(lows) > min(highs)


def of_cut(kinds: dict, in_windows: bool) -> list[str]:
    if in_windows:
        return ["Of a text longer than --max_length all was read, in overlapping windows."]
    if len(kinds) < 2:
        only = "No text was" if "whole" in kinds else "Every text was"
        return [f"{only} cut at --max_length."]
    cut, whole = kinds["cut"], kinds["whole"]
    said = (
        f"{cut['texts']:,} texts were cut at --max_length; of these {percent(cut['accuracy'])} are "
        f"right, of the whole ones {percent(whole['accuracy'])}"
    )
    if not apart(cut, whole):
        return [f"{said}: no difference can be told."]
    worse = cut["accuracy"] < whole["accuracy"]
    return [f"{said}{': a larger --max_length may help' * worse}."]


def of_thresholds(report: dict) -> list[str]:
    rows = report["thresholds"]
    source = (
        "These are the texts of this report: on others, expect a little less."
        if on_validation(report)
        else "From the validation texts, so that the threshold is not chosen on those of the "
        "report."
    )
    said = [
        "If texts with a lower probability are left to a person, the rest is more often right. "
        + source
    ]
    decided = [row for row in rows if row["texts"]]
    everything, _ = decided[0]["interval_95"]
    for goal in (0.99, 0.95, 0.9):
        # The low end, because of few texts all may be right by chance.
        rest = [row for row in decided if row["interval_95"][0] >= goal]
        if rest and everything < goal:
            row = max(rest, key=lambda row: row["coverage"])
            low, high = map(percent, row["interval_95"])
            said.append(
                f"To have {100 * goal:.0f}\u00a0% right, decide at a probability of "
                f"{row['min_probability']:g} or more: {percent(row['coverage'])} of the texts, of "
                f"which {percent(row['accuracy'])} are right (95\u00a0% interval {low} to {high})."
            )
            break
    else:
        if everything < 0.9:
            said.append(
                "No threshold is sure to have 90\u00a0% right: too many mistakes, or too few "
                "validation texts."
            )
    return said + of_stored(report["at_stored_threshold"])


def of_stored(found: dict | None) -> list[str]:
    if not found:
        return []
    right = f"; of these {percent(found['accuracy'])} are right" if found["texts"] else ""
    return [
        f"The stored threshold is {found['min_probability']:g}: of the texts of this report it "
        f"decides {percent(found['coverage'])}{right}."
    ]


def of_mistakes(mistakes: list[dict], wrong: int) -> list[str]:
    if not wrong:
        return ["There are none."]
    count = f"All {wrong:,}" if wrong == len(mistakes) else f"{len(mistakes)} of the {wrong:,}"
    return [
        f"{count} mistakes, those first in which the model was most sure. Look for wrong labels, "
        "for texts that are of two classes, and for what they have in common."
    ]


def of_comparison(comparison: dict) -> list[str]:
    if not comparison["differ"]:
        return ["Both say the same of each text."]
    said = [judge(METRICS[name], comparison[name]) for name in ("accuracy", "macro_f1")]
    differ = f"They differ on {comparison['differ']:,} texts"
    if exact := comparison["mcnemar"]:
        differ += (
            f"; only this one is right on {exact['only_ours_right']:,}, only the other on "
            f"{exact['only_other_right']:,} (McNemar's exact test: p = {exact['p']:.3g})"
        )
    said.append(f"{differ}.")
    models = [model for side in comparison["models"].values() for model in side]
    if len(models) > 2:
        said.append("Figures of a side with several seeds are the means of these.")
    said += [
        f"{named(model['ckpt'])} was trained on {texts:,} of these texts."
        for model in models
        if (texts := model["also_in"]["training"])
    ]
    return said


def start_line(word: str) -> str:
    return word[0].upper() + word[1:]


def judge(word: str, found: dict) -> str:
    low, high = found["interval_95"]
    line = (
        f"{start_line(word)}: {percent(found['ours'])} beside {percent(found['other'])}, "
        f"{points(found['difference'])} points; 95\u00a0% interval {points(low)} to {points(high)}"
    )
    if low <= 0 <= high:
        return f"{line}, which holds 0: the difference may be chance."
    return f"{line}: this model is {'better' if low > 0 else 'worse'}."
