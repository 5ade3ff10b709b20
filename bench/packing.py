"""On one GPU: do packing or CUDA graphs beat the length windows by enough to earn their lines?

    python bench/packing.py --json FILE FLAGS OF train.py

Training steps of a DistilBERT (give --mixed_precision bf16) on 50 batches of an epoch of length
windows, each arm in a process of its own, after two rounds of warm-up:

- windows: as train.py has them, padded to the longest, without a mask where nothing is padded;
- packed: the reviews of a batch in one row, attention by torch's varlen_attn within each review,
  registered through transformers' AttentionInterface; no padding at all;
- compiled: the windows, torch.compile with dynamic lengths;
- CUDA graphs: the same with mode reduce-overhead, lengths padded to multiples of 64.

Without a GPU it says by how much the logits of packed reviews differ from those of padded ones, in
float32, one review at a time where varlen_attn would run: a check of the packing, not of its speed.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.machine import about_machine, alone, this_command
from config import Config, parse
from data import BatchPlan, Collator, column
from eval import to_device
from processes import run_command
from train import make_accelerator, prepare


def packed_attention(module, query, key, value, mask, ends=None, longest=0, **_):
    """(1, heads, tokens, width) of a row of reviews that end at `ends`, each by itself, with the
    usual scale of 1 / sqrt(width)."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if query.is_cuda:
        out = varlen_attn(query, key, value, ends, ends, longest, longest)
        return out[None], None
    reviews = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    alone = [
        F.scaled_dot_product_attention(*(t[a:b].transpose(0, 1) for t in (query, key, value)))
        for a, b in reviews
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
    """DistilBERT's head on the first token of each review."""
    hidden = model.distilbert(**batch)[0][0, batch["ends"][:-1].long()]
    return model.classifier(model.dropout(F.relu(model.pre_classifier(hidden))))


def steps_of(run, arm: str, batches: list[list[dict]]):
    """A function that trains on all batches once."""
    model, optimizer, device = run.model, run.optimizer, run.accelerator.device
    plain = Collator(run.tokenizer, pad_to_multiple_of=64 if arm == "CUDA graphs" else None)

    def make(rows):
        return pack(rows, device) if arm == "packed" else to_device(plain(rows), device)

    def logits_of(batch):
        return packed_logits(model, batch) if arm == "packed" else model(**batch).logits

    def epoch():
        for rows in batches:
            batch = make(rows)
            labels = batch.pop("labels")
            with run.accelerator.autocast():
                loss = F.cross_entropy(logits_of(batch).float(), labels)
            run.accelerator.backward(loss)
            run.accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return epoch, make, logits_of


COMPILED = {"compiled": {"dynamic": True}, "CUDA graphs": {"mode": "reduce-overhead"}}


def measure(config: Config, arm: str, rounds: int) -> dict:
    run = prepare(config, make_accelerator(config))
    run.model.train()
    cuda = run.accelerator.device.type == "cuda"
    bare = run.accelerator.unwrap_model(run.model, keep_torch_compile=False)
    if arm == "packed":
        bare.set_attn_implementation("packed")
    elif arm in COMPILED:
        # Past its limit, 8 graphs, dynamo runs the model uncompiled, in silence; and here each
        # length, with a mask or without, may be one.
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        bare.compile(**COMPILED[arm])
    batch = config.per_device_train_batch_size
    lengths = column(run.train, "length").to_numpy()
    window = BatchPlan(lengths, batch, config.seed).epoch(0)[:50]
    data = run.train.select_columns(["input_ids", "labels"])
    batches = [data.select(rows).to_list() for rows in window]
    epoch, make, logits_of = steps_of(run, arm, batches)
    if not cuda:
        run.model.eval()
        rows = batches[0]
        with torch.no_grad():
            found = logits_of({k: v for k, v in make(rows).items() if k != "labels"})
            bare.set_attn_implementation("sdpa")
            padded = Collator(run.tokenizer)(rows)
            padded.pop("labels")
            difference = (found - run.model(**padded).logits).abs().max().item()
        return {"largest_difference_of_a_logit": difference}
    begun = time.perf_counter()
    epoch()  # compilation; and a CUDA graph is recorded at the second visit of its shape
    epoch()
    torch.cuda.synchronize()
    warm_up, seconds = time.perf_counter() - begun, []
    for _ in range(rounds):
        begun = time.perf_counter()
        epoch()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    reviews = sum(map(len, batches))
    return {
        "reviews_per_second": reviews / statistics.median(seconds),
        "seconds": seconds,
        "warm_up_seconds": warm_up,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one")
    options, flags = parser.parse_known_args()
    config = parse(Config, flags)
    if options.one:
        return print(json.dumps(measure(config, options.one, options.rounds)))
    arms = ["packed"]
    if torch.cuda.is_available():
        arms += ["windows", *COMPILED]
    rounds = f"--rounds={options.rounds}"
    result = {
        **about_machine(),
        "command": this_command(options.json),
        "batch": config.per_device_train_batch_size,
        "arms": {arm: alone(__file__, arm, rounds, *flags) for arm in arms},
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
