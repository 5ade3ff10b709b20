"""After how many seconds does train.py reach the validation accuracy that HF Trainer ends with?

    python bench/time_to_accuracy.py --every 10 --json FILE FLAGS OF train.py

Trains HF Trainer with its defaults to its last step (bench/peer_trainer.py: shuffled, attention
dropout 0.1), then train.py with its own (length windows, attention dropout 0) and the same flags,
validated on the same texts after every --every steps. Seconds are of training alone: no start-up,
evaluations or saves, and every batch counted as full. A bag of words learns from the same texts.

It is a result of one seed, as noisy as an accuracy on that many texts (its standard error is
given), and too early by that noise, because the first of many accuracies is compared with one final
value. Where Trainer has learnt nothing it means nothing.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.accuracy import train_arm
from bench.common import this_command, write_json
from config import EvalConfig
from eval import open_classifier
from report.look import bag_of_words
from report.texts import load_validation, own_training, training_texts
from runtime.environment import describe_machine
from runtime.processes import run_command
from runtime.seen import read_seen


def validations(folder: Path) -> list[dict]:
    """Step, seconds of training so far and accuracy, at each validation of train.py."""
    events = EventAccumulator(str(folder / "runs"), size_guidance={"scalars": 0}).Reload()
    given = json.loads((folder / "best" / "training_config.json").read_text())
    batch = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    points, seconds, before = [], 0.0, 0
    for speed, accuracy in zip(
        events.Scalars("train/examples_per_second"), events.Scalars("eval/accuracy"), strict=True
    ):
        assert speed.step == accuracy.step
        seconds += (speed.step - before) * batch / speed.value
        before = speed.step
        points.append({"step": before, "seconds": seconds, "accuracy": accuracy.value})
    return points


def beside(best: Path) -> dict:
    """A bag of words: learnt from the texts that the model was trained on, judged by those that it
    was validated on."""
    classifier = open_classifier(EvalConfig(ckpt=str(best)))
    learnt_from = training_texts(classifier, own_training(best))
    return bag_of_words(learnt_from, load_validation(classifier, read_seen(best)).texts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", type=Path)
    options, flags = parser.parse_known_args()
    often = [f"--logging_steps={options.every}", f"--validate_steps={options.every}"]
    with tempfile.TemporaryDirectory() as scratch:
        peer, own = Path(scratch) / "peer", Path(scratch) / "own"
        train_arm("HF Trainer", options.seed, peer, flags)
        theirs = json.loads((peer / "best" / "validation.json").read_text())
        trained = json.loads((peer / "best" / "training_config.json").read_text())
        train_arm("ours", options.seed, own, [*flags, *often, "--save_steps=999999"])
        points, words = validations(own), beside(own / "best")
    half_a_text = 0.5 / theirs["examples"]  # scalars are float32
    least = theirs["accuracy"] - half_a_text
    reached = [point for point in points if point["accuracy"] > least]
    error = (theirs["accuracy"] * (1 - theirs["accuracy"]) / theirs["examples"]) ** 0.5
    result = {
        **describe_machine(),
        "command": this_command(options.json),
        "threads": trained["environment"]["threads"],
        "bag of words": words,
        "HF Trainer": theirs,
        "standard_error_of_an_accuracy": error,
        "ours": points,
        "reached": reached[0] if reached else None,
        "times_as_fast": theirs["seconds"] / reached[0]["seconds"] if reached else None,
    }
    print(json.dumps(result, indent=1))
    write_json(options.json, result)


if __name__ == "__main__":
    run_command(main)
