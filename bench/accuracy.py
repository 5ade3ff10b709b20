"""Test accuracy of train.py and of HF Trainer after equal steps, over several seeds, paired tests.

    python bench/accuracy.py --seeds 42 43 44 --folder SCRATCH --json FILE FLAGS OF train.py

Every arm trains on the same texts, from the same initial weights, for the same number of steps. The
arms differ in the order of the texts and in attention dropout (HF Trainer with its defaults:
shuffled, the model's own dropout). Give one epoch: over several, ours would keep the best by
validation, and Trainer its last. What is finished stays in SCRATCH, and the same command continues.

The differences between arms come with two standard errors. Over the texts: for each, the share of
seeds in which one arm is right, minus that of the other; mean and standard error over the texts.
Over the seeds: the difference of each seed; mean and standard error. Only the second accounts for
another seed giving another model; with few seeds it is large. In the JSON, "reviews" are texts.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.common import write_json
from config import EvalConfig
from eval import load_split, open_classifier
from runtime.environment import describe_machine
from runtime.flags import UserError
from runtime.processes import run_command

ARMS = {  # script, order of the texts, attention dropout
    "ours": ("train.py", "group_by_length", "0"),
    "HF Trainer": ("bench/peer_trainer.py", "random", "0.1"),
    "ours, random order": ("train.py", "random", "0"),
}


def train_arm(arm: str, seed: int, folder: Path, flags: list[str]) -> None:
    script, order, dropout = ARMS[arm]
    command = [sys.executable, str(ROOT / script), *flags, "--eval_steps=999999"]
    command += [f"--train_sampling_strategy={order}", f"--attention_dropout={dropout}"]
    command += [f"--seed={seed}", f"--output_dir={folder}"]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"{' '.join(command)}: failed; see above")


def measure(arm: str, seed: int, folder: Path, flags: list[str], texts: int) -> np.ndarray:
    """(texts,) booleans: which of the test texts are classified correctly after that training."""
    result = folder / f"right_{texts}.npy"
    if not result.exists():
        begun = time.perf_counter()
        if not (folder / "best" / "training_config.json").exists():
            train_arm(arm, seed, folder, flags)
        np.save(result, right(str(folder / "best"), texts))
        seconds = time.perf_counter() - begun
        print(f"{arm}, seed {seed}: {np.load(result).mean():.4f} ({seconds:.0f} s)", flush=True)
    return np.load(result)


def right(folder: str, samples: int | None) -> np.ndarray:
    """(texts,) booleans: which of the test split are classified correctly."""
    AcceleratorState._reset_state()  # each checkpoint in the precision of its own training
    config = EvalConfig(ckpt=folder, max_test_samples=samples)
    classifier = open_classifier(config)
    return classifier.predict_split(load_split(config, classifier).texts).right


def compare(a: np.ndarray, b: np.ndarray) -> dict:
    """Mean of a - b, and its standard errors; a and b are (seeds, texts) booleans."""
    difference = a.astype(float) - b
    by_text, by_seed = difference.mean(0), difference.mean(1)
    return {
        "difference": difference.mean(),
        "standard_error_over_reviews": by_text.std(ddof=1) / len(by_text) ** 0.5,
        "standard_error_over_seeds": by_seed.std(ddof=1) / len(by_seed) ** 0.5,
        "right_only": [int((difference > 0).sum()), int((difference < 0).sum())],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--test", type=int, default=2000, help="test texts")
    parser.add_argument("--folder", type=Path, required=True, help="scratch")
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
        **describe_machine(),
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
    write_json(options.json, result)


if __name__ == "__main__":
    run_command(main)
