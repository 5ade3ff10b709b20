"""The same training by HF Trainer, by a plain Accelerate loop and by ours, side by side.

    python bench/speed.py --rounds 5 --json FILE FLAGS OF train.py
    python bench/speed.py --ablations ...          ours with one thing taken away at a time

The work is a small sample with the lengths of the whole training split: whole batches of our plan,
evenly spaced by length, so that random order and length grouping each have the padding that they
have on the whole. Every arm trains on those reviews, shuffled or grouped as it does, in a process
of its own (bench/speed_arm.py), one after another, the order turned round every second round.
Warm-up steps (reviews of the greatest length; on a GPU batches of many lengths too) are left out.
Before that, one start of Trainer and of ours with an empty cache of datasets: the time to the first
step with tokenising.

Useful FLOPs: those of the matrix products of the model for the tokens that are no padding (forward,
and twice that backward), from the shapes of its layers and the lengths of the reviews. They are set
against the rate of a product of two large matrices in the same process, right after the training.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.machine import about_machine
from bench.speed_arm import ABLATIONS, ARMS
from config import Config, UserError, parse
from data import BatchPlan
from processes import run_command
from train import make_accelerator, prepare


def choose_work(run, batches: int) -> dict:
    """The reviews of so many whole batches, shuffled; and those of the warm-up."""
    config = run.config
    batch = config.per_device_train_batch_size
    plan = BatchPlan(run.plan.lengths, batch, config.seed).epoch(0)
    plan = sorted((r for r in plan if len(r) == batch), key=lambda r: run.plan.lengths[r].max())
    places = ((np.arange(batches) + 0.5) * len(plan) / batches).astype(int)
    rows = np.random.default_rng(0).permutation(np.concatenate([plan[at] for at in places]))
    warm = [np.argsort(-run.plan.lengths, kind="stable")[:batch]]
    if run.accelerator.device.type == "cuda":  # kernels are chosen, and loaded, for each length
        warm += plan[:: max(1, len(plan) // 15)]
    data = run.train.select_columns(["input_ids", "labels"])
    return {
        "work": data.select(rows).to_list(),
        "warm": data.select(np.concatenate(warm)).to_list(),
    }


def flops_of(model, lengths) -> float:
    """Of a forward and a backward pass over reviews of those lengths, without padding."""
    linear = torch.nn.Linear
    encoder = [m.weight.numel() for m in model.base_model.modules() if isinstance(m, linear)]
    every = [m.weight.numel() for m in model.modules() if isinstance(m, linear)]
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    lengths = np.asarray(lengths, dtype=float)
    a_token, a_review = 2 * sum(encoder), 2 * (sum(every) - sum(encoder))
    attention = 4 * layers * width * lengths**2
    return float(3 * (a_token * lengths + a_review + attention).sum())


def run_arm(arm: str, work: dict, seed: int, flags: list[str], first=False) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, **({"HF_DATASETS_CACHE": f"{folder}/cache"} if first else {})}
        file = Path(folder) / "work.json"
        script = str(ROOT / "bench" / "speed_arm.py")
        command = [sys.executable, script, arm, str(file), *flags]
        if arm.endswith("accelerate launch"):
            command[:1] = [sys.executable, "-m", "accelerate.commands.launch"]
        command += [f"--output_dir={folder}", f"--seed={seed}"]
        file.write_text(json.dumps({**work, "begun": time.time()}))
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise UserError(f"{' '.join(command)}: status {done.returncode}; see above")
        return json.loads(done.stdout.splitlines()[-1])


def summary(found: list[dict], work: dict, flops: float) -> dict:
    """Medians and ranges over the rounds."""
    reviews, tokens = len(work["work"]), sum(len(row["input_ids"]) for row in work["work"])
    figures = {
        "reviews_per_second": [reviews / one["seconds"] for one in found],
        "tokens_per_second": [tokens / one["seconds"] for one in found],
        "share_of_matmul_rate": [
            flops / one["seconds"] / one["matmul_flops_per_second"] for one in found
        ],
        "padding_fraction": [one["padding_fraction"] for one in found],
        "peak_gigabytes": [one["peak_bytes"] / 1e9 for one in found],
        "first_step_seconds": [one["first_step_seconds"] for one in found],
    }
    for name in ("predict_seconds", "predict_default_seconds"):
        if name in found[0]:
            figures[name.replace("seconds", "reviews_per_second")] = [
                reviews / one[name] for one in found
            ]
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=6)
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    some.add_argument("--ablations", action="store_true")
    parser.add_argument("--json", type=Path)
    options, flags = parser.parse_known_args()
    options.arms = ["ours", *ABLATIONS] if options.ablations else options.arms
    config = parse(Config, flags)
    run = prepare(config, make_accelerator(config))
    command = shlex.join(["python", "bench/speed.py", *sys.argv[1:]])
    command = command.replace(str(options.json), "FILE")
    flags += [f"--mixed_precision={run.accelerator.mixed_precision}"]
    work = choose_work(run, options.batches)
    lengths = [len(row["input_ids"]) for row in work["work"]]
    flops = flops_of(run.accelerator.unwrap_model(run.model), lengths)
    result = {
        **about_machine(),
        "command": command,
        "parameters": run.settings["parameters"],
        "mixed_precision": run.accelerator.mixed_precision,
        "work": {
            "reviews": len(lengths),
            "batch": config.per_device_train_batch_size,
            "mean_tokens": float(np.mean(lengths)),
            "mean_tokens_of_the_data_set": float(run.plan.lengths.mean()),
            "useful_flops": flops,
        },
        "first_start_seconds": {},
        "arms": {},
        "rounds": {arm: [] for arm in options.arms},
    }
    del run
    short = [row | {"input_ids": row["input_ids"][:16]} for row in work["work"]]
    short = short[: config.per_device_train_batch_size]
    for arm in () if options.ablations else ("HF Trainer", "ours"):
        started = run_arm(arm, {"warm": short, "work": short}, 0, flags, first=True)
        result["first_start_seconds"][arm] = seconds = started["first_step_seconds"]
        print(f"{arm}: first step of a first start after {seconds:.1f} s", flush=True)
    for index in range(options.rounds):
        for arm in options.arms[:: 1 if index % 2 == 0 else -1]:
            found = result["rounds"][arm]
            found.append(run_arm(arm, work, index, flags))
            speed, rate = len(lengths) / found[-1]["seconds"], found[-1]["matmul_flops_per_second"]
            print(f"{arm}: {speed:.3f} reviews/s beside {rate / 1e9:.0f} GFLOP/s", flush=True)
            result["arms"][arm] = summary(found, work, flops)
            if options.json:  # every time: a failure costs no hours
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result[name] for name in ("work", "arms")}, indent=1))


if __name__ == "__main__":
    run_command(main)
