"""The same training by HF Trainer, by a plain Accelerate loop and by ours, side by side.

    python bench/speed.py --rounds 5 --json FILE FLAGS OF train.py
    python bench/speed.py --ablations ...          ours with one thing taken away at a time

The work: batches from evenly spaced places of one length-sorted window of 50, so that a few
batches have the lengths of the whole data set, and length grouping of either side the padding it
has there. Every arm trains on those reviews, shuffled or grouped as it does, in a process of its
own (bench/speed_arm.py), one after another, the order turned round every second round. Warm-up
steps on reviews of the greatest length are left out. A first start of each, which fills the caches
of token ids, is reported as such and not otherwise counted.

Useful FLOPs: those of the matrix products of the model for the tokens that are no padding (forward,
and twice that backward), from the shapes of its layers and the lengths of the reviews. The rate of
the machine is that of a product of two large matrices, measured at the start of every round.
"""

import argparse
import json
import os
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

SIDE_BY_SIDE = [arm for arm in ARMS if arm not in ABLATIONS]


def choose_work(run, batches: int) -> dict:
    """`batches` batches evenly over one sorted window, their reviews shuffled, and a warm-up of the
    longest reviews."""
    config = run.config
    batch = config.per_device_train_batch_size
    window = BatchPlan(run.plan.lengths, batch, config.seed).epoch(0)[:50]
    window = sorted(window, key=lambda rows: run.plan.lengths[rows].max())
    places = ((np.arange(batches) + 0.5) * len(window) / batches).astype(int)
    rows = np.random.default_rng(0).permutation(np.concatenate([window[at] for at in places]))
    longest = np.argsort(-run.plan.lengths, kind="stable")[:batch]
    data = run.train.select_columns(["input_ids", "labels"])
    return {"work": data.select(rows).to_list(), "warm": data.select(longest).to_list()}


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


def matmul_rate(dtype, device, seconds: float = 2.0) -> float:
    """FLOP/s of the best of many products, each of two square matrices."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def run_arm(arm: str, work: dict, seed: int, flags: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "work.json"
        script = str(ROOT / "bench" / "speed_arm.py")
        command = [sys.executable, script, arm, str(file), *flags]
        if arm.endswith("accelerate launch"):
            command[:1] = [sys.executable, "-m", "accelerate.commands.launch"]
        command += [f"--output_dir={folder}", f"--seed={seed}"]
        file.write_text(json.dumps({**work, "begun": time.time()}))
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{' '.join(command)}: failed\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def summary(found: list[dict], work: dict, flops: float, rates: list[float]) -> dict:
    """Medians and ranges over the rounds."""
    reviews, tokens = len(work["work"]), sum(len(row["input_ids"]) for row in work["work"])
    figures = {
        "reviews_per_second": [reviews / one["seconds"] for one in found],
        "tokens_per_second": [tokens / one["seconds"] for one in found],
        "share_of_matmul_rate": [
            flops / one["seconds"] / rate for one, rate in zip(found, rates, strict=True)
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
    parser.add_argument("--arms", nargs="+", default=SIDE_BY_SIDE, choices=ARMS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ablations", action="store_true")
    options, flags = parser.parse_known_args()
    options.arms = ["ours", *ABLATIONS] if options.ablations else options.arms
    config = parse(Config, flags)
    run = prepare(config, make_accelerator(config))
    device = run.accelerator.device.type
    work = choose_work(run, options.batches)
    lengths = [len(row["input_ids"]) for row in work["work"]]
    flops = flops_of(run.accelerator.unwrap_model(run.model), lengths)
    dtype = torch.bfloat16 if run.accelerator.mixed_precision == "bf16" else torch.float32
    parameters = run.settings["parameters"]
    all_lengths = run.plan.lengths
    del run

    first = {}
    short = [row | {"input_ids": row["input_ids"][:16]} for row in work["warm"]]
    for arm in options.arms:
        first[arm] = run_arm(arm, {"warm": short, "work": short}, 0, flags)["first_step_seconds"]
        print(f"{arm}: first step of a first start after {first[arm]:.1f} s", flush=True)
    found, rates = {arm: [] for arm in options.arms}, []
    for index in range(options.rounds):
        rates.append(matmul_rate(dtype, device))
        print(f"round {index + 1}: matrix product {rates[-1] / 1e9:.1f} GFLOP/s", flush=True)
        for arm in options.arms[:: 1 if index % 2 == 0 else -1]:
            found[arm].append(run_arm(arm, work, index, flags))
            speed = len(work["work"]) / found[arm][-1]["seconds"]
            print(f"  {arm}: {speed:.3f} reviews/s", flush=True)
    result = {
        **about_machine(),
        "command": " ".join(["python", "bench/speed.py", *sys.argv[1:]]),
        "load_average": os.getloadavg(),
        "parameters": parameters,
        "mixed_precision": str(dtype).removeprefix("torch."),
        "work": {
            "reviews": len(lengths),
            "batch": config.per_device_train_batch_size,
            "mean_tokens": float(np.mean(lengths)),
            "mean_tokens_of_the_data_set": float(all_lengths.mean()),
            "useful_flops": flops,
        },
        "matmul_flops_per_second": rates,
        "first_start_first_step_seconds": first,
        "arms": {arm: summary(found[arm], work, flops, rates) for arm in options.arms},
        "rounds": found,
    }
    print(json.dumps({name: result[name] for name in ("work", "arms")}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
