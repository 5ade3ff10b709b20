"""Test accuracy of ours and of HF Trainer at equal steps, over several seeds, and paired tests.

    python bench/accuracy.py --seeds 42 43 44 --folder SCRATCH --json FILE FLAGS OF train.py

Each arm trains on the same reviews, from the same first weights, for as many steps; the arms differ
in the order of the reviews and in attention dropout (HF Trainer as it comes: shuffled, the model's
own dropout). Give one epoch: of more, ours would keep its best by validation, Trainer its last.
What is finished stays in the folder, and the same command again goes on.

Two tests of a difference. Over the reviews: each one's share of seeds that are right under one arm,
minus that under the other; mean and standard error over reviews. Over the seeds: the difference of
each seed; mean and standard error (the only one that knows that another seed gives another model,
and at few seeds a blunt one).
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.compare import right
from bench.machine import about_machine
from config import UserError
from processes import run_command

ARMS = {
    "ours": ("train.py", "group_by_length", "0"),
    "HF Trainer": ("bench/peer_trainer.py", "random", "0.1"),
    "ours, random order": ("train.py", "random", "0"),
}


def train(arm: str, seed: int, folder: Path, flags: list[str]) -> None:
    script, order, dropout = ARMS[arm]
    command = [sys.executable, str(ROOT / script), *flags, "--eval_steps=999999"]
    command += [f"--train_sampling_strategy={order}", f"--attention_dropout={dropout}"]
    command += [f"--seed={seed}", f"--output_dir={folder}"]
    if subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ).returncode:
        raise UserError(f"{' '.join(command)}: failed; see above")


def measure(arm: str, seed: int, folder: Path, flags: list[str], test: int) -> np.ndarray:
    """(reviews,) booleans: which of the test reviews that training classifies correctly."""
    result = folder / f"right_{test}.npy"
    if not result.exists():
        begun = time.perf_counter()
        if not (folder / "best" / "training_config.json").exists():
            train(arm, seed, folder, flags)
        np.save(result, right(str(folder / "best"), test)[0].numpy())
        seconds = time.perf_counter() - begun
        print(f"{arm}, seed {seed}: {np.load(result).mean():.4f} ({seconds:.0f} s)", flush=True)
    return np.load(result)


def compare(a: np.ndarray, b: np.ndarray) -> dict:
    """Mean of a - b, and its standard errors; a and b are (seeds, reviews) booleans."""
    difference = a.astype(float) - b
    by_review, by_seed = difference.mean(0), difference.mean(1)
    return {
        "difference": difference.mean(),
        "standard_error_over_reviews": by_review.std(ddof=1) / len(by_review) ** 0.5,
        "standard_error_over_seeds": by_seed.std(ddof=1) / len(by_seed) ** 0.5,
        "right_only": [int((difference > 0).sum()), int((difference < 0).sum())],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options, flags = parser.parse_known_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    given = options.folder / "flags.json"
    if given.exists() and json.loads(given.read_text()) != flags:
        raise UserError(f"--folder {options.folder}: holds runs with other flags; give another")
    given.write_text(json.dumps(flags))
    found = {arm: [] for arm in options.arms}
    for seed, arm in itertools.product(options.seeds, options.arms):
        folder = options.folder / f"{arm.replace(', ', ' ').replace(' ', '_')}_{seed}"
        found[arm].append(measure(arm, seed, folder, flags, options.test))
    found = {arm: np.stack(rows) for arm, rows in found.items()}
    result = {
        **about_machine(),
        "flags": flags,
        "seeds": options.seeds,
        "test_reviews": options.test,
        "accuracy": {arm: rows.mean(1).tolist() for arm, rows in found.items()},
        "comparisons": {
            f"{a} - {b}": compare(found[a], found[b])
            for a, b in itertools.combinations(options.arms, 2)
        },
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
