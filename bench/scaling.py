"""Reviews per second on one and on two processes of one core each, and how even their shares are.

    python bench/scaling.py --rounds 3 --json FILE FLAGS OF train.py

The same optimizer batches by one process and by two (torchrun, gloo), in turn; the first steps are
left out. Efficiency: the speed of two / twice the speed of one. Two cores share caches, memory and
a host: what two trainings that know nothing of each other lose, side by side, is measured too
("side by side" / twice the speed of one), for no loop can do better than that here. Beside it, from
the batch plan of a whole epoch alone: tokens (padding included) of each process in a step, largest
/ mean.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.machine import about_machine
from config import Config, UserError, parse
from data import BatchPlan, deal
from processes import run_command
from train import make_accelerator, prepare

STEPS, WARM_UP = 12, 4  # warm-up steps are left out
CADENCE = ["--eval_steps=9999", "--save_steps=9999", "--logging_steps=2", f"--max_steps={STEPS}"]


def speed(processes: int, batch: int, flags: list[str], runs: int = 1) -> float:
    """Reviews per second of that many trainings at a time, together."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        command += ["--standalone", str(ROOT / "train.py"), *flags, *CADENCE, "--num_threads=1"]
        command += [f"--per_device_train_batch_size={batch // processes}"]
        env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        outputs = [f"{folder}/{index}" for index in range(runs)]
        running = [
            subprocess.Popen(
                [*command, f"--output_dir={output}"], env=env, stdout=subprocess.DEVNULL
            )
            for output in outputs
        ]
        statuses = [process.wait() for process in running]  # all of them, before the folder goes
        if any(statuses):
            raise UserError(f"{' '.join(command)}: failed; see above")
        return sum(steady_speed(output, batch) for output in outputs)


def steady_speed(output: str, batch: int) -> float:
    events = EventAccumulator(f"{output}/runs").Reload()
    points = events.Scalars("train/examples_per_second")
    seconds = sum(2 * batch / point.value for point in points if point.step > WARM_UP)
    return (STEPS - WARM_UP) * batch / seconds


def shares(plan: BatchPlan, processes: int) -> dict[str, float]:
    """Largest / mean over the processes of the padded tokens of a step; over an epoch's steps."""
    ratios = []
    for step in range(plan.steps_per_epoch):
        parts = [plan.lengths[part] for part in deal(plan[step], processes)]
        tokens = [len(part) * part.max(initial=0) for part in parts]
        ratios.append(max(tokens) / np.mean(tokens))
    return {"median": float(np.median(ratios)), "95th_percentile": float(np.quantile(ratios, 0.95))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options, flags = parser.parse_known_args()
    config = parse(Config, flags)
    batch = config.per_device_train_batch_size
    run = prepare(config, make_accelerator(config))
    balance = {
        f"{processes} processes of {each}": shares(
            BatchPlan(run.plan.lengths, processes * each, config.seed), processes
        )
        for processes in (2, 4, 8)
        for each in (batch // 2, batch)
    }
    arms = {"one": (1, 1), "two": (2, 1), "side by side": (1, 2)}
    speeds = {name: [] for name in arms}
    for index in range(options.rounds):
        for name in list(arms)[:: 1 if index % 2 == 0 else -1]:
            processes, runs = arms[name]
            speeds[name].append(speed(processes, batch, flags, runs))
            print(f"{name}: {speeds[name][-1]:.3f} reviews/s", flush=True)
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    result = {
        **about_machine(),
        "flags": flags,
        "reviews_per_second": speeds,
        "medians": medians,
        "efficiency": medians["two"] / (2 * medians["one"]),
        "efficiency_side_by_side": medians["side by side"] / (2 * medians["one"]),
        "tokens_largest_over_mean": balance,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
