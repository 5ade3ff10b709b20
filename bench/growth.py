"""Time and memory against the number of reviews, and the cost of a token against their length.

    python bench/growth.py --json FILE --most 1000000

Each measurement in a process of its own, on made-up data:

- plan: one epoch of the batch plan at batch 16, on lengths alone, for 1e3 to 1e7 reviews;
- start: everything before the first step, on Parquet files of 1e3 to --most distinct reviews of 35
  words, once without and once with token ids in the cache; and then, in the second, 40 steps;
- tokens: training steps of the DistilBERT class at MiniLM's size (6 layers, 384 wide, random
  weights) on batches of 4,096 tokens in reviews of 32 to 512.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.machine import about_machine, alone, peak_bytes, this_command


def plan(reviews: int) -> dict:
    from data import BatchPlan

    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5.4, 0.6, reviews).astype(np.int32) + 3, 512)
    before, begun = peak_bytes(), time.perf_counter()
    batches = BatchPlan(lengths, 16, seed=0)
    batches[0]
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "added_peak_bytes": peak_bytes() - before}


def write_reviews(reviews: int, path: Path) -> None:
    """Distinct texts of words of the demo's vocabulary, half of each class, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = np.array((ROOT / "demo" / "unlabelled.txt").read_text().lower().split())
    rng = np.random.default_rng(reviews)
    with pq.ParquetWriter(path, pa.schema({"text": pa.string(), "label": pa.int64()})) as file:
        for start in range(0, reviews, 10_000):
            rows = range(start, min(reviews, start + 10_000))
            texts = [
                " ".join(row) + f" {at}"
                for at, row in zip(rows, pick(words, rng, len(rows)), strict=True)
            ]
            file.write_table(pa.table({"text": texts, "label": [at % 2 for at in rows]}))


def pick(words, rng, rows: int):
    return words[rng.integers(0, len(words), (rows, 35))]


def start(path: str, folder: str, steps: int) -> dict:
    """Seconds until everything is ready; then those of a step, if any are asked for."""
    begun = time.perf_counter()
    import train
    from config import Config, parse

    imported = time.perf_counter()
    flags = [f"--dataset={path}", f"--model={ROOT / 'demo/model'}", f"--output_dir={folder}"]
    flags += ["--max_length=80"]
    config = parse(Config, [*flags, f"--max_steps={steps or 1}", "--validation_size=0.1"])
    run = train.prepare(config, train.make_accelerator(config))
    run.plan[0]
    ready = time.perf_counter()
    result = {"import_seconds": imported - begun, "prepare_seconds": ready - imported}
    if steps:
        run.validation = run.validation.select(range(16))
        train.start_anew(run)  # writes last/, as every start does
        run.started, run.bar = time.perf_counter(), Ticks()
        with run.stop:
            train.train(run)
        result["step_seconds"] = run.bar.median()
    return result | {"process_bytes": peak_bytes()}


class Ticks:
    """Stands for the progress bar: when did each step end?"""

    disable = True

    def __init__(self):
        self.times = []

    def update(self):
        self.times.append(time.perf_counter())

    def set_postfix(self, *_, **__):
        pass

    def median(self) -> float:
        return float(np.median(np.diff(self.times)[5:-1]))


def tokens(length: int) -> dict:
    """Seconds a token of a training step, on batches of 4,096 tokens: the best of five."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    from processes import keep_freed_memory, set_threads

    set_threads(None)
    keep_freed_memory()
    torch.manual_seed(0)
    config = DistilBertConfig(dim=384, hidden_dim=1536, n_heads=12, attention_dropout=0.0)
    model = DistilBertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(1000, 20000, (4096 // length, length))
    labels = torch.zeros(len(ids), dtype=torch.long)
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
    return {"seconds_a_token": min(seconds[1:]) / ids.numel(), "process_bytes": peak_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--one", nargs="+")
    options = parser.parse_args()
    if options.one:
        kind, *given = options.one
        if kind == "start":
            return print(json.dumps(start(given[0], given[1], int(given[2]))))
        return print(json.dumps({"plan": plan, "tokens": tokens}[kind](int(given[0]))))
    command = this_command(options.json)
    result = {**about_machine(), "command": command, "plan": [], "tokens": [], "start": []}
    for reviews in (10**power for power in range(3, 8)):
        result["plan"].append({"of": reviews, **alone(__file__, "plan", reviews)})
    for length in (32, 64, 128, 256, 512):
        result["tokens"].append({"of": length, **alone(__file__, "tokens", length)})
    sizes = [10**power for power in range(3, 8) if 10**power <= options.most]
    for reviews in sizes:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HF_HOME"] = f"{folder}/cache"
            path, output = Path(folder) / "train.parquet", Path(folder) / "run"
            output.mkdir()
            write_reviews(reviews, path)
            for cached in (False, True):
                measured = alone(__file__, "start", path, output, 40 * cached)
                result["start"].append(measured | {"reviews": reviews, "cached": cached})
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
