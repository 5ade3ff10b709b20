"""Speed and memory of train.py beside HF Trainer and a plain Accelerate loop, on the same texts.

    python bench/speed.py --rounds 5 --json FILE FLAGS OF train.py
    python bench/speed.py --ablations ...       train.py with one feature off at a time
    python bench/speed.py --first_starts ...    Trainer and train.py, with nothing in the cache

Measured for each arm: texts per second in training and (of some) in prediction, padding, peak
memory, seconds from the start of the process to the end of the first step.

The workload is a small sample of the training split: whole batches of our plan, evenly spaced by
length, so that random order and length grouping have the padding that they have on the whole split.
Every arm trains on these texts in its own order, in a process of its own (bench/speed_arm.py), one
after another; every second round runs them in reverse. Warm-up steps (the longest texts, an average
batch, both again; on a GPU many lengths more) are not timed. Predictions are made after a batch
of warm-up, at the batch size of training and at --per_device_eval_batch_size. A first start
tokenizes the data set, and trains on 16 tokens of each text.

Useful FLOPs are those of the model's matrix products, forward and backward, for tokens that are not
padding; they follow from the shapes of its layers and the lengths of the texts. They are compared
with the rate of a product of two large matrices, which each process measures for two seconds after
its training: with its own, and, since that varies more than the training does, with the median of
all.

Flags that not every arm would obey are refused. In the JSON, "reviews" are texts of any kind.
"""

import argparse
import dataclasses
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
from bench.common import this_command, write_json
from bench.speed_arm import ABLATIONS, ARMS, BATCH_SIZES
from config import Config
from data import BatchPlan
from runtime.engines import make_accelerator
from runtime.environment import describe_machine
from runtime.flags import UserError, parse
from runtime.processes import run_command
from train import set_up

OBEYED = {  # by every arm; speed.py gives each its seed, output_dir and attention_dropout
    "dataset",
    "model",
    "max_length",
    "max_train_samples",
    "max_validation_samples",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "learning_rate",
    "mixed_precision",
}


def check_flags(config: Config) -> None:
    for field in dataclasses.fields(config):
        given = getattr(config, field.name)
        obeyed = field.name in OBEYED and given != "fp16"
        if given != field.default and not obeyed:
            raise UserError(f"--{field.name} {given}: not every arm would obey it; leave it out")
    if Path(config.dataset).is_file():
        raise UserError(f"--dataset {config.dataset}: give a Hub name or a folder, for all arms")


def choose_work(run, batches: int) -> dict[str, list[dict]]:
    """Rows to train on ("work": so many whole batches, shuffled), to warm up on, to predict."""
    config, lengths = run.config, run.plan.lengths
    size = config.per_device_train_batch_size
    plan = BatchPlan(lengths, size, config.seed).batches_of(0)
    plan = sorted((rows for rows in plan if len(rows) == size), key=lambda r: lengths[r].max())
    if len(plan) < batches:
        raise UserError(f"--batches {batches}: the plan has {len(plan)} full ones; give fewer")
    spaced = ((np.arange(batches) + 0.5) * len(plan) / batches).astype(int)
    rows = np.random.default_rng(0).permutation(np.concatenate([plan[at] for at in spaced]))
    longest = np.argsort(-lengths, kind="stable")[:size]
    warm = 2 * [longest, plan[len(plan) // 2]]  # a heap grows until both have their room
    if run.accelerator.device.type == "cuda":  # kernels are chosen, and loaded, for each length
        warm += plan[:: max(1, len(plan) // 15)]
        warm += plan[: len(warm) % 2]  # whole batches of twice the size, too
    # Twice as many texts as the work, in whole batches of evaluation, evenly spaced by length.
    predicted = config.per_device_eval_batch_size
    predicted *= -(-2 * len(rows) // predicted)
    spaced = np.linspace(0, len(lengths) - 1, predicted).astype(int)
    predict = np.argsort(lengths, kind="stable")[spaced]
    data = run.train_set.select_columns(["input_ids", "labels"])
    return {
        "work": data.select(rows).to_list(),
        "warm": data.select(np.concatenate(warm)).to_list(),
        "predict": data.select(np.random.default_rng(0).permutation(predict)).to_list(),
    }


def shorten(work: dict[str, list[dict]], texts: int) -> dict[str, list[dict]]:
    """For a first start: the same few short texts everywhere."""
    short = [row | {"input_ids": row["input_ids"][:16]} for row in work["work"]]
    return dict.fromkeys(work, short[:texts])


def flops_of(model, lengths) -> float:
    """Of a forward and a backward pass over texts of those lengths in tokens, without padding.

    For encoders with full attention and without a pooler, such as DistilBERT.
    """
    linear = torch.nn.Linear
    encoder = [m.weight.numel() for m in model.base_model.modules() if isinstance(m, linear)]
    every = [m.weight.numel() for m in model.modules() if isinstance(m, linear)]
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    lengths = np.asarray(lengths, dtype=float)
    per_token, per_text = 2 * sum(encoder), 2 * (sum(every) - sum(encoder))
    attention = 4 * layers * width * lengths**2
    return float(3 * (per_token * lengths + per_text + attention).sum())


def run_arm(arm: str, work: dict, seed: int, flags: list[str], first_start: bool) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        cache = {"HF_DATASETS_CACHE": f"{folder}/cache"} if first_start else {}
        file = Path(folder) / "work.json"
        script = str(ROOT / "bench" / "speed_arm.py")
        command = [sys.executable, script, arm, str(file), *flags]
        if arm.endswith("accelerate launch"):
            command[:1] = [sys.executable, "-m", "accelerate.commands.launch"]
        command += [f"--output_dir={folder}", f"--seed={seed}"]
        file.write_text(json.dumps({**work, "begun": time.time()}))
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **cache})
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise UserError(f"{' '.join(command)}: status {done.returncode}; see above")
        return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- figures


def summaries(rounds: dict[str, list[dict]], work: dict) -> dict:
    """Of each arm that has run. `work` is that of the JSON."""
    every = [one["matmul_flops_per_second"] for found in rounds.values() for one in found]
    rate, ours = statistics.median(every), rounds.get("ours", [])
    return {arm: summary(found, ours, work, rate) for arm, found in rounds.items() if found}


def summary(found: list[dict], ours: list[dict], work: dict, rate: float) -> dict:
    """Median and range over the rounds. A ratio to ours is taken within each round."""
    texts, tokens = work["reviews"], work["reviews"] * work["mean_tokens"]
    figures = {
        "ours_times_as_fast": [  # in the rounds that both have run
            a["seconds"] / b["seconds"] for a, b in zip(found, ours, strict=False)
        ],
        "reviews_per_second": [texts / one["seconds"] for one in found],
        "tokens_per_second": [tokens / one["seconds"] for one in found],
        "share_of_matmul_rate": [work["useful_flops"] / one["seconds"] / rate for one in found],
        "share_of_own_matmul_rate": [
            work["useful_flops"] / one["seconds"] / one["matmul_flops_per_second"] for one in found
        ],
        "padding_fraction": [one["padding_fraction"] for one in found],
        "peak_gigabytes": [one["peak_bytes"] / 1e9 for one in found],
        "first_step_seconds": [one["first_step_seconds"] for one in found],
    }
    for name in ("predict_seconds", "predict_default_seconds"):
        if name in found[0]:
            figures[name.replace("seconds", "reviews_per_second")] = [
                work["predicted_reviews"] / one[name] for one in found
            ]
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in figures.items()
        if values  # a ratio needs a round of ours
    }


def describe_work(run, work: dict) -> dict:
    lengths = [len(row["input_ids"]) for row in work["work"]]
    return {
        "reviews": len(lengths),
        "batch": run.config.per_device_train_batch_size,
        "predicted_reviews": len(work["predict"]),
        "predict_default_batch": run.config.per_device_eval_batch_size,
        "mean_tokens": float(np.mean(lengths)),
        "mean_tokens_of_the_data_set": float(run.plan.lengths.mean()),
        "useful_flops": flops_of(run.accelerator.unwrap_model(run.model), lengths),
    }


# ---------------------------------------------------------------- the command


def read_options() -> tuple[argparse.Namespace, list[str]]:
    """(Options of this script, flags of train.py)."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="processes for each arm")
    parser.add_argument("--batches", type=int, default=6, help="full batches of the work")
    some = parser.add_mutually_exclusive_group()
    names = {"nargs": "+", "choices": ARMS | ABLATIONS, "metavar": "ARM"}
    usual = [arm for arm in ARMS if arm not in BATCH_SIZES]
    some.add_argument("--arms", **names, default=usual, help="; ".join(ARMS | ABLATIONS))
    some.add_argument("--ablations", action="store_true", help="see above")
    some.add_argument("--first_starts", action="store_true", help="see above")
    parser.add_argument("--json", type=Path, help="written anew after each process")
    options, flags = parser.parse_known_args()
    options.arms = ["ours", *ABLATIONS] if options.ablations else options.arms
    options.arms = ["HF Trainer", "ours"] if options.first_starts else options.arms
    return options, flags


def main() -> None:
    options, flags = read_options()
    config = parse(Config, flags)
    check_flags(config)
    run = set_up(config, make_accelerator(config))
    flags += [f"--mixed_precision={run.accelerator.mixed_precision}"]
    work = choose_work(run, options.batches)
    for arm in options.arms:
        size = BATCH_SIZES.get(arm, config.per_device_train_batch_size)
        if any(len(work[part]) % size for part in ("work", "warm")):
            raise UserError(f"--arms {arm}: no whole batches of {size}; give an even --batches")
    if options.first_starts:
        work = shorten(work, config.per_device_train_batch_size)
    result = {
        **describe_machine(),
        "command": this_command(options.json),
        "model": config.model,
        "dataset": config.dataset,
        "parameters": run.settings["parameters"],
        "mixed_precision": run.accelerator.mixed_precision,
        "work": describe_work(run, work),
        "arms": {},
        "rounds": {arm: [] for arm in options.arms},
    }
    del run  # the arms need its memory
    for index in range(options.rounds):
        for arm in options.arms[:: 1 if index % 2 == 0 else -1]:
            one = run_arm(arm, work, index, flags, options.first_starts)
            print(
                f"{arm}: first step after {one['first_step_seconds']:.1f} s, then "
                f"{len(work['work']) / one['seconds']:.3f} texts/s "
                f"beside {one['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s",
                flush=True,
            )
            result["rounds"][arm].append(one)
            result["arms"] = summaries(result["rounds"], result["work"])
            write_json(options.json, result)  # after each: a failure loses nothing
    print(json.dumps({name: result[name] for name in ("work", "arms")}, indent=1))


if __name__ == "__main__":
    run_command(main)
