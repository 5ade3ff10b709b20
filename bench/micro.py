"""What the parts of a step cost: the numbers of docs/details.md that are of no whole training.

    python bench/micro.py --json FILE FLAGS OF train.py

Each in a process of its own, two or more times where it is a matter of seconds:

- memory: a step at three lengths, with freed memory kept and given back; its page faults;
- products: GFLOP/s of the model's linear layers by MKL, by oneDNN and with packed weights;
- share: a step's useful FLOPs a second, set against a large product before and after it;
- operators: where the time of a step goes;
- parts: a step of one batch dealt in micro-batches;
- evaluation: reviews/s by batch size;
- collating: milliseconds for a batch, by the library's tensors and by ours;
- graphs: how many dynamo makes of the demo, with lengths as they come and as multiples of 16.
"""

import argparse
import itertools
import json
import resource
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F
from transformers import DataCollatorWithPadding

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import engines
from bench.machine import about_machine, alone, this_command
from bench.speed import flops_of
from bench.speed_arm import matmul_rate
from config import Config, UserError, parse
from data import BatchPlan, Collator, make_loader, train_loader
from eval import predict
from processes import run_command
from train import make_accelerator, prepare


def prepared(flags: list[str]):
    config = parse(Config, flags)
    return prepare(config, make_accelerator(config))


def batches_of(run, *lengths: int) -> dict[int, list]:
    """For each length the rows of the batch of the plan whose longest review is nearest to it."""
    plan = [rows for rows in run.plan.epoch(0) if len(rows) == run.plan.batch_size]
    longest = np.array([run.plan.lengths[rows].max() for rows in plan])
    chosen = [plan[np.abs(longest - length).argmin()] for length in lengths]
    data = run.train.select_columns(["input_ids", "labels"])
    return {int(run.plan.lengths[rows].max()): data.select(rows).to_list() for rows in chosen}


def step(run, rows: list[dict], parts: int = 1) -> None:
    collate, size = Collator(run.tokenizer), len(rows) // parts
    for at in range(0, len(rows), size):
        batch = collate(rows[at : at + size])
        labels = batch.pop("labels")
        logits = run.model(**batch).logits
        (F.cross_entropy(logits, labels, reduction="sum") / len(rows)).backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()


def ready(flags: list[str], *lengths: int):
    """A run and batches of it, after a training step on each of them."""
    run = prepared(flags)
    run.model.train()
    batches = batches_of(run, *lengths)
    for rows in batches.values():
        step(run, rows)
    return run, batches


def timed(work, times: int) -> list[float]:
    """Seconds of each call after the first."""
    seconds = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def memory(flags, keep: str) -> dict:
    if keep == "given back":
        engines.keep_freed_memory = lambda: None
    run, batches = ready(flags, 512, 353, 201)
    result = {}
    for length, rows in batches.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        seconds = timed(lambda rows=rows: step(run, rows), times=3)
        faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4
        result[length] = {"seconds": seconds, "page_faults_a_step": faults}
    return result


def products(flags) -> dict:
    run = prepared(flags)
    modules = run.model.base_model.modules()
    shapes = sorted({tuple(m.weight.shape) for m in modules if isinstance(m, torch.nn.Linear)})
    tokens, square = 16 * 353, torch.randn(2048, 2048)
    found = {
        f"{tokens} x {k} x {n}": rates(torch.randn(tokens, k), torch.randn(n, k)) for n, k in shapes
    }
    return found | {"2048 x 2048 x 2048": {"MKL": rate(lambda: square @ square, 2048**3)}}


def rates(x, weight) -> dict:
    """Of x @ weight.T; a packed weight has no backward pass."""
    tokens, dnn, mkl = len(x), torch.ops.mkldnn, torch.ops.mkl
    packed = dnn._reorder_linear_weight(weight, tokens)
    packed_mkl = mkl._mkl_reorder_linear_weight(weight, tokens)
    ways = {
        "MKL": lambda: F.linear(x, weight),
        "oneDNN": lambda: dnn._linear_pointwise(x, weight, None, "none", [], ""),
        "oneDNN, packed": lambda: dnn._linear_pointwise(x, packed, None, "none", [], ""),
        "MKL, packed": lambda: mkl._mkl_linear(x, packed_mkl, weight, None, tokens),
    }
    return {name: rate(way, tokens * weight.numel()) for name, way in ways.items()}


def rate(product, multiplications: int) -> float:
    """GFLOP/s, the median of many."""
    return 2 * multiplications / median(timed(product, times=20)) / 1e9


KINDS = {
    "linear layers": ("aten::addmm", "aten::mm"),
    "attention": ("flash_attention", "attention_for_cpu"),
    "dropout": ("bernoulli", "dropout"),
    "GELU": ("gelu",),
    "layer norm": ("layer_norm",),
    "AdamW": ("adam",),
    "clipping": ("norm",),
}


def share(flags) -> dict:
    """Of each of six steps a length; the products take turns with them, for the machine's rate
    changes from minute to minute."""
    run, batches = ready(flags, 512, 353, 201)
    result = {}
    for length, rows in batches.items():
        flops = flops_of(run.model, [len(row["input_ids"]) for row in rows])
        rates, speeds = [matmul_rate(1.0)], []
        for _ in range(6):
            speeds += [flops / seconds for seconds in timed(lambda r=rows: step(run, r), times=1)]
            rates.append(matmul_rate(1.0))
        between = [(a + b) / 2 for a, b in itertools.pairwise(rates)]
        result[length] = {
            "share": [speed / rate for speed, rate in zip(speeds, between, strict=True)],
            "matmul_flops_per_second": rates,
        }
    return result


def operators(flags) -> dict:
    """Shares of the CPU time of a step of 353 tokens, forward and backward together."""
    run, batches = ready(flags, 353)
    ((length, rows),) = batches.items()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(run, rows)
    events = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total, shares = sum(events.values()), dict.fromkeys([*KINDS, "all else"], 0.0)
    for key, spent in events.items():
        kind = next((k for k, names in KINDS.items() if any(n in key for n in names)), "all else")
        shares[kind] += spent / total
    name = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
    backward = events.get(name, 0) / total
    return {"tokens": length, "seconds": total / 1e6, **shares, "attention, backward": backward}


def parts(flags) -> dict:
    run, batches = ready(flags, 512, 353, 201)
    result = {}
    for length, rows in batches.items():
        for number in (1, 2, 4):
            seconds = timed(lambda n=number, rows=rows: step(run, rows, n), times=4)
            result[f"{length} tokens, {number} x {len(rows) // number}"] = seconds
    return result


def evaluation(flags, reviews: int = 256) -> dict:
    run = prepared(flags)
    rows = np.random.default_rng(0).permutation(len(run.train))[:reviews]
    data, collate, result = run.train.select(rows), Collator(run.tokenizer), {}
    sizes = (8, 16, 32, 64)
    predict(run.model, data.select(range(64)), collate, 64, run.accelerator)  # room for the rest
    for size in (*sizes, *sizes[::-1]):
        begun = time.perf_counter()
        predict(run.model, data, collate, size, run.accelerator)
        result.setdefault(size, []).append(reviews / (time.perf_counter() - begun))
    return result


def collating(flags) -> dict:
    run = prepared(flags)
    result = {}
    for size in (16, 64):
        plan = BatchPlan(run.plan.lengths, size, run.config.seed)
        batches = [rows.tolist() for rows in plan.epoch(0)[:200]]
        for name, collate in (
            ("the library's tensors", DataCollatorWithPadding(run.tokenizer)),
            ("ours", Collator(run.tokenizer)),
        ):
            seconds = timed(lambda b=batches, c=collate: list(make_loader(run.train, b, c)), 2)
            result[f"{name}, batch {size}"] = [1000 * one / len(batches) for one in seconds]
    return result


def graphs(flags, multiple: str) -> dict:
    """Of the demo: an epoch in training mode, and an evaluation."""
    run = prepared(["--config", str(ROOT / "demo" / "config.json")])
    run.model.compile(backend="aot_eager")
    collate = Collator(run.tokenizer, pad_to_multiple_of=int(multiple) or None)
    steps, shapes, padded = range(run.plan.steps_per_epoch), set(), 0
    run.model.train()
    for batch in train_loader(run.train, run.plan, steps, 1, 0, 1, collate):
        labels = batch.pop("labels")
        F.cross_entropy(run.model(**batch).logits, labels).backward()
        shapes.add((*batch["input_ids"].shape, len(batch)))
        padded += batch["input_ids"].numel()
    predict(run.model, run.validation, collate, 64, run.accelerator)
    return {
        "shapes": len(shapes),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "padding_fraction": 1 - int(run.plan.lengths.sum()) / padded,
    }


MEASURES = {
    "memory": (memory, ("kept", "given back") * 3),
    "products": (products, ("",) * 2),
    "share": (share, ("",) * 2),
    "operators": (operators, ("",)),
    "parts": (parts, ("",)),
    "evaluation": (evaluation, ("",)),
    "collating": (collating, ("",)),
    "graphs": (graphs, ("0", "16")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--one", nargs=2)
    options, flags = parser.parse_known_args()
    if options.one:
        name, given = options.one
        measure = MEASURES[name][0]
        return print(json.dumps(measure(flags, given) if given else measure(flags)))
    if torch.cuda.is_available():
        raise UserError("bench/micro.py measures a CPU; hide the GPU: CUDA_VISIBLE_DEVICES=")
    result = {**about_machine(), "command": this_command(options.json)}
    for name in options.only:
        for given in MEASURES[name][1]:
            found = alone(__file__, name, given, *flags)
            result.setdefault(name, []).append({"given": given, **found})
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
