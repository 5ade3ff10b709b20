"""Is a batch's gradient the same however it is split? Ours, HF Trainer, accelerator.accumulate.

    python bench/dealing.py --json FILE

For combinations of processes (1 to 3), accumulation (1 to 4), batch size and training split, one
epoch on the demo's model and texts, on CPU with gloo. Recorded are the gradient of each update as
it reaches the clipping (all three loops call Accelerator.clip_grad_norm_ once per update) and its
learning rate. Gradients are compared, as one vector, with that of the mean loss over the distinct
texts of the update, computed by one process in one forward pass in float64 on the same weights (the
rate is nearly 0 and dropout is off). HF Trainer and the loop on `accelerator.accumulate` draw their
own batches. Evaluations are compared with one text at a time in float64. On four processes, ours
alone is run.

The file is written for tools/make_dealing.py. Each number of processes is this script under
torchrun.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn import functional as F

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from peers import accumulate_epoch, fresh_model, trainer_epoch

import train
from bench.common import write_json
from config import Config
from data import Collator, eval_batches
from model import predict, score
from report.metrics import make_report
from report.predictions import Predicted
from runtime.engines import make_accelerator
from runtime.environment import describe_machine
from runtime.processes import run_command

GLOBAL_BATCHES = (12, 24)  # 24 is divisible by every processes x accumulation but 3 x 3
SIZES = (105, 50, 13)  # training texts: not divisible by a global batch
PROCESSES, ACCUMULATIONS = (1, 2, 3), (1, 2, 3, 4)
EVALUATIONS = [(size, batch) for size in (61, 30, 2) for batch in (1, 7, 64)]
PEAK = 1e-12  # a rate so small that no weight changes, while its schedule can still be read


def combinations(processes: int, sizes, batches):
    """(accumulation, texts per process and forward pass, training texts): whole numbers only."""
    for accumulation, batch, size in itertools.product(ACCUMULATIONS, batches, sizes):
        if batch % (processes * accumulation) == 0:
            yield accumulation, batch // (processes * accumulation), size


def config_of(accumulation: int, batch: int, size: int, folder: Path) -> Config:
    return Config(
        dataset=str(ROOT / "demo" / "corpus"),
        model=str(ROOT / "demo" / "model"),
        max_length=80,
        dropout=0.0,
        learning_rate=PEAK,
        warmup_steps=0.2,
        num_train_epochs=1,
        max_train_samples=size,
        max_validation_samples=max(size for size, _ in EVALUATIONS),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        output_dir=str(folder),
        num_threads=1,
    )


# ---------------------------------------------------------------- what is recorded


class Recorder:
    """The gradient, the rate and the texts (row numbers) of each update since `begin`."""

    def __init__(self):
        self.clip, self.step = Accelerator.clip_grad_norm_, torch.optim.AdamW.step
        Accelerator.clip_grad_norm_ = lambda *args, **options: self.at_clip(*args, **options)
        torch.optim.AdamW.step = lambda *args, **options: self.at_step(*args, **options)
        self.begin()

    def begin(self):
        self.gradients, self.rates, self.rows = [], [], []
        self.seen = []  # row numbers since the last update, on this process

    def at_clip(self, accelerator, parameters, norm, *rest):
        parameters = list(parameters)
        self.gradients.append(torch.cat([weight.grad.flatten() for weight in parameters]))
        self.rows.append(sorted(set(gather_object(self.seen))))
        self.seen.clear()
        return self.clip(accelerator, parameters, norm, *rest)

    def at_step(self, optimizer, *args, **options):
        self.rates.append(optimizer.param_groups[0]["lr"])
        return self.step(optimizer, *args, **options)


def ours(run, recorder: Recorder) -> None:
    train.train_until_stopped(run)
    recorder.rows = [sorted(run.plan[step].tolist()) for step in range(1, run.total_steps + 1)]


LOOPS = {
    "ours": ours,
    "HF Trainer": lambda run, recorder: trainer_epoch(run, recorder.seen),
    "accelerator.accumulate": lambda run, recorder: accumulate_epoch(run, recorder.seen),
}


# ---------------------------------------------------------------- what it is compared with


def closed_form(step: int, total: int, warmup: int) -> float:
    """The published schedule at update `step` (from 1), written independently of train.py."""
    done = step - 1
    return PEAK * (done / warmup if done < warmup else (total - done) / max(1, total - warmup))


def judge(recorder: Recorder, run) -> dict:
    """Gradients of the first, a middle and the last update, and all rates.

    `factors`: the length of the gradient's projection on the reference; 1 is right.
    `differences`: norm of the difference / norm of the reference.
    """
    model = fresh_model(run.config).double()
    total, factors, differences, examples = len(recorder.gradients), [], [], []
    for index in sorted({0, total // 2, total - 1}):
        expected = reference(model, run, recorder.rows[index])
        found = recorder.gradients[index].double()
        factors.append((found @ expected / (expected @ expected)).item())
        differences.append(((found - expected).norm() / expected.norm()).item())
        examples.append(len(recorder.rows[index]))
    warmup = math.ceil(run.config.warmup_steps * total)
    rates = [abs(rate - closed_form(t, total, warmup)) for t, rate in enumerate(recorder.rates, 1)]
    return {
        "updates": total,
        "examples": examples,
        "factors": factors,
        "differences": differences,
        "rate_difference": max(rates) / PEAK,
        "last_rate": recorder.rates[-1] / PEAK,
        "last_rate_expected": closed_form(total, total, warmup) / PEAK,
    }


def reference(model, run, rows: list[int]) -> torch.Tensor:
    """The gradient of the mean loss over `rows` in one forward pass."""
    model.zero_grad()
    data = run.train_set.select_columns(["input_ids", "labels"])
    batch = Collator(run.tokenizer)([data[row] for row in rows])
    labels = batch.pop("labels")
    F.cross_entropy(model(**batch).logits, labels).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


# ---------------------------------------------------------------- the worker


def worker(folder: Path, loops: list[str], sizes: list[int], batches: list[int]) -> list[dict]:
    """On every process of torchrun: all combinations for this number of processes."""
    recorder, results = Recorder(), []
    processes, output = int(os.environ["WORLD_SIZE"]), folder / "run"
    output.mkdir(exist_ok=True)
    mixes = combinations(processes, sizes, batches)
    for (accumulation, batch, size), name in itertools.product(mixes, loops):
        config = config_of(accumulation, batch, size, output)
        run = train.set_up(config, make_accelerator(config))
        recorder.begin()
        LOOPS[name](run, recorder)
        about = {"processes": processes, "accumulation": accumulation, "batch": batch}
        results.append({"loop": name, **about, "texts": size, **judge(recorder, run)})
    return results + evaluations(run)


def evaluations(run) -> list[dict]:
    accelerator, results = run.accelerator, []
    model, exact = accelerator.unwrap_model(run.model), fresh_model(run.config).double().eval()
    for size, batch in EVALUATIONS:
        data = run.validation_set.select(range(size))
        labels = torch.as_tensor(data["labels"][:])
        batches = eval_batches(data, batch, run.tokenizer, accelerator)
        report = report_on(predict(model, batches, size, accelerator), labels)
        with torch.inference_mode():
            rows = [exact(input_ids=torch.tensor([row])).logits[0] for row in data["input_ids"]]
        expected = report_on(torch.stack(rows), labels)
        results.append(
            {
                "evaluation": True,
                "processes": accelerator.num_processes,
                "batch": batch,
                "texts": size,
                "counted": report["examples"],
                "same_confusion": report["confusion"] == expected["confusion"],
                "loss_difference": abs(report["loss"] / expected["loss"] - 1),
            }
        )
    return results


def report_on(logits, labels) -> dict:
    nothing = np.zeros(len(labels), dtype=int)  # lengths, which are not compared
    predicted = Predicted(logits.numpy(), labels.numpy(), nothing, nothing > 0)
    return make_report(score(logits, labels), predicted, ["negative", "positive"])


# ---------------------------------------------------------------- the command


def torchrun(processes: int, *words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", *words]
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)


def launch(
    processes: int, loops=("ours",), sizes=SIZES, batches=GLOBAL_BATCHES, run=torchrun
) -> list[dict]:
    """The rows of `worker`, on so many processes that `run(processes, script, *flags)` starts."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--worker", folder, "--loops", *loops]
        words += ["--texts", *map(str, sizes), "--batches", *map(str, batches)]
        run(processes, __file__, *words)
        return json.loads((Path(folder) / "results.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--loops", nargs="+", default=list(LOOPS), choices=LOOPS)
    parser.add_argument("--texts", nargs="+", type=int, default=SIZES, help="of the training split")
    parser.add_argument("--batches", nargs="+", type=int, default=GLOBAL_BATCHES, help="of a step")
    options = parser.parse_args()
    if options.worker:
        results = worker(options.worker, options.loops, options.texts, options.batches)
        if os.environ["RANK"] == "0":
            (options.worker / "results.json").write_text(json.dumps(results))
        return
    results = []
    for processes in (*PROCESSES, 4):  # four: for the learning rate of ours
        loops = options.loops if processes in PROCESSES else ["ours"]
        results += launch(processes, loops, options.texts, options.batches)
        print(f"{processes} processes: {len(results)} rows so far", flush=True)
    write_json(options.json, {**describe_machine(), "results": results})


if __name__ == "__main__":
    run_command(main)
