"""What eval.py finds, as a person reads it in a terminal.

In: the dicts of metrics.py, calibration.py and comparison.py. Out: lines. Independent of: how they
were computed, files.
"""

from report.findings import FEW_TEXTS
from runtime.card import METRICS
from runtime.display import FEW_CLASSES, WIDEST, letters_wide, shorten_middle


def show(report: dict) -> None:
    low, high = report["interval_95"]
    print(
        f"accuracy {report['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), macro-F1 "
        f"{report['macro_f1']:.4f}, loss {report['loss']:.4f}, {texts(report['examples'])}"
    )
    show_baselines(report)
    show_classes(report)
    show_confused(report)
    show_calibration(report["calibration"], report["of"])
    if report.get("roc_auc") is not None:
        print(
            f"ROC AUC {report['roc_auc']:.4f}, average precision {report['average_precision']:.4f} "
            f"of {list(report['classes'])[1]!r}"
        )
    show_groups(report)
    show_stored(report["at_stored_threshold"])


def texts(count: int) -> str:
    return f"{count:,} {'text' if count == 1 else 'texts'}"


def show_baselines(report: dict) -> None:
    largest, words = (report["baselines"][name] for name in ("largest_class", "bag_of_words"))
    said = f"on these texts the largest class alone has {largest:.4f}"
    if words is not None:
        better = ": the bag of words is better" * (words > report["accuracy"])
        said += f", a bag of words {words:.4f}{better}"
    print(said)


def show_classes(report: dict) -> None:
    names = list(report["classes"])
    short = {name: shorten_middle(name, WIDEST) for name in names}
    width = max(9, *map(letters_wide, short.values()))
    columns = head_columns(names) if len(names) <= FEW_CLASSES else []
    head = "   predicted as " * bool(columns) + " ".join(columns)
    print(f"{'':{width}}  precision  recall      f1  examples{head}")
    for (name, row), counts in zip(report["classes"].items(), report["confusion"], strict=True):
        figures = (
            f"{row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['examples']:8,}"
        )
        cells = zip(columns, counts, strict=False)
        line = " ".join(f"{count:>{len(column)},}" for column, count in cells)
        pad = " " * (width - letters_wide(short[name]))
        print(f"{short[name]}{pad}  {figures}{' ' * 16 * bool(columns)}{line}")


def head_columns(names: list[str]) -> list[str]:
    """Headings of columns, each as wide as a count: the names, cut where they are long, but not so
    far that two are alike."""
    for width in range(10, WIDEST + 1):
        short = [f"{shorten_middle(name, width):>7}" for name in names]
        if len(set(short)) == len(names):
            return short
    return [f"{number}. {shorten_middle(name, 10)}" for number, name in enumerate(names, 1)]


def show_confused(report: dict) -> None:
    if len(report["classes"]) > 2 and report["confused"]:
        print("most frequent mistakes:")
        for pair in report["confused"][:5]:
            print(
                f"  {shorten_middle(pair['true'], WIDEST)} taken for "
                f"{shorten_middle(pair['predicted'], WIDEST)}: {pair['texts']:,} "
                f"({pair['share']:.1%} of the class)"
            )


def show_calibration(found: dict, of: dict) -> None:
    line = f"expected calibration error {found['ece']:.4f}"
    if found["temperature"] is not None:
        same = "these" if of["split"] == "validation" else f"{found['fitted_on']:,} validation"
        kind = "limit of those tried on" if found["at_limit"] else "temperature that fits"
        line += (
            f"; with logits divided by {found['temperature']:.2f}, the {kind} {same} texts, it is "
            f"{found['ece_after']:.4f}{', no better' * (found['ece_after'] >= found['ece'])}"
        )
    print(line)


def show_stored(found: dict | None) -> None:
    if not found:
        return
    right = f", of which {found['accuracy']:.1%} are right" if found["texts"] else ""
    print(
        f"at the stored threshold of {found['min_probability']:g}: {found['texts']:,} of these "
        f"texts ({found['coverage']:.1%}) have a label{right}"
    )


def show_groups(report: dict) -> None:
    rows = [(f"{row['from']:,} to {row['to']:,} tokens", row) for row in report["by_length"]]
    words = {"cut": "cut at --max_length", "whole": "read whole"}
    rows += [(words[name], row) for name, row in report["by_cut"].items()]
    width = max(len(name) for name, _ in rows)
    for name, row in rows:
        low, high = row["interval_95"]
        print(
            f"{name:>{width}}: accuracy {row['accuracy']:.4f} ({low:.4f} to {high:.4f}), "
            f"{texts(row['texts'])}"
        )


def show_thresholds(rows: list[dict], names: list[str], count: int) -> None:
    print(f"of the {count:,} validation texts, those whose probability is at least the threshold:")
    few = len(names) <= FEW_CLASSES
    columns = head_columns(names) if few else [f"lowest of those with {FEW_TEXTS} texts"]
    columns = [f"{column:>8}" for column in columns]
    print(f"threshold  coverage  accuracy   95 % interval      precision {' '.join(columns)}")
    for row in rows:
        if not row["texts"]:
            print(f"{row['min_probability']:9.2f}  {0:8.1%}")
            break
        low, high = row["interval_95"]
        shares = [*map(mark_few, row["precision"], row["texts_of_class"])]
        if not few:
            shares = [min((share for share in shares if share.endswith(" ")), default="-")]
        cells = zip(columns, shares, strict=True)
        line = " ".join(f"{share:>{len(column)}}" for column, share in cells)
        print(
            f"{row['min_probability']:9.2f}  {row['coverage']:8.1%}  {row['accuracy']:8.4f}  "
            f"{low:.4f} to {high:.4f}             {line}"
        )

    if few and any(0 < count < FEW_TEXTS for row in rows for count in row["texts_of_class"]):
        print(f"* of fewer than {FEW_TEXTS} texts, which says little")


def mark_few(share: float | None, texts: int) -> str:
    """With a star; a blank in its place if they are enough."""
    return "-" if share is None else f"{share:.4f}{'*' if texts < FEW_TEXTS else ' '}"


def show_comparison(found: dict, kept: bool) -> None:
    if kept:
        print("the comparison that the report had before, of the same weights and texts:")
    for flag, side in (("--ckpt", "ours"), ("--compare", "other")):
        models = [model["ckpt"] for model in found["models"][side]]
        each = ", ".join(f"{value:.4f}" for value in found["accuracies"][side])
        mean = f" (mean {found['accuracy'][side]:.4f})" * (len(models) > 1)
        macro_f1 = f"{found['macro_f1'][side]:.4f}"
        print(f"{flag} {', '.join(models)}: accuracy {each}{mean}, macro-F1 {macro_f1}")
    for metric in ("accuracy", "macro_f1"):
        low, high = found[metric]["interval_95"]
        chance = ", which holds 0: it may be chance" * (low <= 0 <= high and found["differ"] > 0)
        print(
            f"{METRICS[metric]}, --ckpt minus --compare: {found[metric]['difference']:+.4f} (95 % "
            f"interval {low:+.4f} to {high:+.4f}{chance})"
        )
    print(f"they differ on {texts(found['differ'])}", end="")
    if exact := found["mcnemar"]:
        print(
            f"; only --ckpt is right on {exact['only_ours_right']:,}, only --compare on "
            f"{exact['only_other_right']:,} (McNemar's exact test: p = {exact['p']:.3g})",
            end="",
        )
    print()
