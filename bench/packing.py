"""On one GPU: are packing or CUDA graphs faster than length windows by enough to be worth it?

    python bench/packing.py --json FILE FLAGS OF train.py

Measured: texts per second and peak memory of training steps of a DistilBERT (give
--mixed_precision bf16) on 50 batches of an epoch, after two passes of warm-up. Each arm has a
process of its own:

- windows: as in train.py, padded to the longest, without a mask where nothing is padded;
- packed: the texts of a batch in one row without padding, attention by torch's varlen_attn within
  each text, registered through transformers' AttentionInterface;
- compiled: the windows, with torch.compile and dynamic lengths;
- CUDA graphs: the same with mode reduce-overhead, and lengths padded to multiples of 64.

Without a GPU it prints by how much the logits of packed texts differ from those of padded ones, in
float32, with one call of attention per text in place of varlen_attn: a check of the packing, not of
its speed.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.common import this_command, write_json
from config import Config
from data import BatchPlan, Collator
from model import to_device
from runtime.engines import make_accelerator
from runtime.environment import describe_machine
from runtime.flags import parse
from runtime.processes import run_command
from train import set_up

# ---------------------------------------------------------------- packing


def packed_attention(module, query, key, value, mask, ends=None, longest=0, **_):
    """(1, heads, tokens, width) of one row of texts that end at `ends`, each by itself, with the
    usual scale of 1 / sqrt(width)."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if query.is_cuda:
        out = varlen_attn(query, key, value, ends, ends, longest, longest)
        return out[None], None
    texts = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    alone = [
        F.scaled_dot_product_attention(*(t[a:b].transpose(0, 1) for t in (query, key, value)))
        for a, b in texts
    ]
    return torch.cat(alone, dim=1).transpose(0, 1)[None], None


AttentionInterface.register("packed", packed_attention)


def pack(rows: list[dict], device) -> dict:
    lengths = [len(row["input_ids"]) for row in rows]
    ids = torch.tensor([[token for row in rows for token in row["input_ids"]]])
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    batch = {"input_ids": ids, "position_ids": places, "ends": ends}
    labels = torch.tensor([row["labels"] for row in rows])
    return to_device(batch | {"labels": labels}, device) | {"longest": max(lengths)}


def packed_logits(model, batch) -> torch.Tensor:
    """DistilBERT's head on the first token of each text."""
    hidden = model.distilbert(**batch)[0][0, batch["ends"][:-1].long()]
    return model.classifier(model.dropout(F.relu(model.pre_classifier(hidden))))


def open_run(config: Config):
    """With all of the last layer: packed texts have their first tokens in many places."""
    config = dataclasses.replace(config, last_layer="all")
    return set_up(config, make_accelerator(config))


def check_packing(config: Config) -> float:
    """The largest difference of a logit between packed and padded texts of one batch."""
    run = open_run(config)
    model = run.accelerator.unwrap_model(run.model).eval()
    rows = choose_batches(run)[0]
    packed, padded = pack(rows, run.accelerator.device), Collator(run.tokenizer)(rows)
    del packed["labels"], padded["labels"]
    with torch.no_grad():
        expected = model(**padded).logits
        model.set_attn_implementation("packed")
        return (packed_logits(model, packed) - expected).abs().max().item()


# ---------------------------------------------------------------- speed

COMPILED = {"compiled": {"dynamic": True}, "CUDA graphs": {"mode": "reduce-overhead"}}
ARMS = ("packed", "windows", *COMPILED)


def choose_batches(run) -> list[list[dict]]:
    config = run.config
    plan = BatchPlan(run.plan.lengths, config.per_device_train_batch_size, config.seed)
    data = run.train_set.select_columns(["input_ids", "labels"])
    return [data.select(rows).to_list() for rows in plan.batches_of(0)[:50]]


def train_on(run, arm: str, batches: list[list[dict]]) -> None:
    """One update per batch."""
    model, optimizer, device = run.model, run.optimizer, run.accelerator.device
    collate = Collator(run.tokenizer, pad_to_multiple_of=64 if arm == "CUDA graphs" else None)
    for rows in batches:
        batch = pack(rows, device) if arm == "packed" else to_device(collate(rows), device)
        labels = batch.pop("labels")
        with run.accelerator.autocast():
            logits = packed_logits(model, batch) if arm == "packed" else model(**batch).logits
            loss = F.cross_entropy(logits.float(), labels)
        run.accelerator.backward(loss)
        run.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()


def measure(config: Config, arm: str, rounds: int) -> dict:
    run = open_run(config)
    run.model.train()
    bare = run.accelerator.unwrap_model(run.model, keep_torch_compile=False)
    if arm == "packed":
        bare.set_attn_implementation("packed")
    elif arm in COMPILED:
        # Past its limit of 8 graphs dynamo silently runs the model uncompiled; and here each
        # length, with a mask or without, may be a graph.
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        bare.compile(**COMPILED[arm])
    batches, times = choose_batches(run), [time.perf_counter()]
    # Two passes of warm-up: a CUDA graph is recorded when its shape comes for the second time.
    for _ in range(2 + rounds):
        train_on(run, arm, batches)
        times.append(time.perf_counter())
    seconds = np.diff(times[2:]).tolist()
    return {
        "texts_per_second": sum(map(len, batches)) / statistics.median(seconds),
        "seconds": seconds,
        "warm_up_seconds": times[2] - times[0],
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def measure_alone(arm: str, rounds: int, flags: list[str]) -> dict:
    """`measure`, in a process of its own."""
    command = [sys.executable, __file__, "--one", arm, f"--rounds={rounds}", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(arm, result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=ARMS, help=argparse.SUPPRESS)
    options, flags = parser.parse_known_args()
    config = parse(Config, flags)
    if options.one:
        print(json.dumps(measure(config, options.one, options.rounds)))
        return
    if not torch.cuda.is_available():
        print(f"no GPU; largest difference of a logit by packing {check_packing(config):.1e}")
        return
    result = {
        **describe_machine(),
        "command": this_command(options.json),
        "batch": config.per_device_train_batch_size,
        "arms": {arm: measure_alone(arm, options.rounds, flags) for arm in ARMS},
    }
    print(json.dumps(result, indent=1))
    write_json(options.json, result)


if __name__ == "__main__":
    run_command(main)
