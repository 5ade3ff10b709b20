"""After how many seconds of training has ours the validation accuracy that HF Trainer ends with?

    python bench/time_to_accuracy.py --every 10 --json FILE FLAGS OF train.py

First Trainer as it comes (bench/peer_trainer.py: shuffled, the model's attention dropout of 0.1) to
its last step. Then ours as it comes (length windows, attention dropout 0) with the same flags and
schedule, looking at the same validation reviews every so many steps, in the middle of the schedule
too. Seconds are of training alone, after start-up, without evaluations and saves, all batches
taken as full. The answer is of one seed, as noisy as an accuracy on that many reviews (its standard
error is given), and early by that noise, for the first of many looks is set against one final
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
from bench.accuracy import train
from bench.machine import about_machine, this_command
from processes import run_command


def looks(folder: Path) -> list[dict]:
    """Step, seconds of training so far and accuracy, at each validation of ours."""
    events = EventAccumulator(str(folder / "runs"), size_guidance={"scalars": 0}).Reload()
    given = json.loads((folder / "best" / "training_config.json").read_text())
    batch = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    points, seconds, before = [], 0.0, 0
    for speed, accuracy in zip(
        events.Scalars("train/examples_per_second"),
        events.Scalars("validation/accuracy"),
        strict=True,
    ):
        assert speed.step == accuracy.step
        seconds += (speed.step - before) * batch / speed.value
        before = speed.step
        points.append({"step": before, "seconds": seconds, "accuracy": accuracy.value})
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", type=Path)
    options, flags = parser.parse_known_args()
    result = {**about_machine(), "command": this_command(options.json)}
    often = [f"--logging_steps={options.every}", f"--validate_steps={options.every}"]
    with tempfile.TemporaryDirectory() as scratch:
        peer, own = Path(scratch) / "peer", Path(scratch) / "own"
        train("HF Trainer", options.seed, peer, flags)
        theirs = json.loads((peer / "best" / "validation.json").read_text())
        train("ours", options.seed, own, [*flags, *often, "--save_steps=999999"])
        points = looks(own)
    half_a_review = 0.5 / theirs["examples"]  # scalars are float32
    least = theirs["accuracy"] - half_a_review
    reached = [point for point in points if point["accuracy"] > least]
    error = (theirs["accuracy"] * (1 - theirs["accuracy"]) / theirs["examples"]) ** 0.5
    result |= {
        "HF Trainer": theirs,
        "standard_error_of_an_accuracy": error,
        "ours": points,
        "reached": reached[0] if reached else None,
        "times_as_fast": theirs["seconds"] / reached[0]["seconds"] if reached else None,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
