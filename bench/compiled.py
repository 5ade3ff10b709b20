"""Does --torch_compile change a result? Losses of each step with and without it, by inductor.

    python bench/compiled.py --json FILE

40 steps of the demo (dropout off, lengths that vary) on one process, with accumulation, on two
processes under DDP and under FSDP2 (on CPU, tests/engine_on_cpu.py), in float32 and bfloat16.
Compiling takes minutes on CPU; the seconds are those of the whole command, not a timing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.machine import about_machine
from processes import run_command

FLAGS = [
    f"--config={ROOT / 'demo' / 'config.json'}",
    f"--dataset={ROOT / 'demo' / 'corpus'}",
    f"--model={ROOT / 'demo' / 'model'}",
    "--max_train_samples=800",
    "--max_validation_samples=100",
    "--max_steps=40",
    "--logging_steps=1",
]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TRAIN = str(ROOT / "train.py")
FSDP2 = [str(ROOT / "tests" / "engine_on_cpu.py"), str(ROOT / "configs" / "fsdp2.yaml"), TRAIN]
JOBS = {
    "one process": [TRAIN, "--mixed_precision=no"],
    "accumulation 2": [TRAIN, "--mixed_precision=no", "--gradient_accumulation_steps=2"],
    "bfloat16": [TRAIN, "--mixed_precision=bf16"],
    "two processes, DDP": [*TWO, TRAIN, "--mixed_precision=no"],
    "two processes, FSDP2": [*TWO, *FSDP2, "--mixed_precision=no"],
}


def losses(words: list[str]) -> tuple[list[float], float]:
    """(loss of each step, seconds of the command)."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        begun = time.monotonic()
        command = [sys.executable, *words, *FLAGS, f"--output_dir={folder}"]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - begun
        events = EventAccumulator(f"{folder}/runs", size_guidance={"scalars": 0}).Reload()
        return [event.value for event in events.Scalars("train/loss")], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=JOBS)
    options = parser.parse_args()
    result = about_machine() | {"jobs": {}}
    for name in options.jobs:
        words = JOBS[name]
        plain, before = losses(words)
        compiled, after = losses([*words, "--torch_compile"])
        pairs = list(zip(plain, compiled, strict=True))
        result["jobs"][name] = {
            "steps": len(pairs),
            "largest_relative_difference": max(abs(a - b) / a for a, b in pairs),
            "equal_to_the_bit": sum(a == b for a, b in pairs),
            "loss": [plain[0], plain[-1]],
            "seconds": [before, after],
        }
        print(name, json.dumps(result["jobs"][name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
