"""One batch dealt over processes x accumulation: is it one gradient? Ours, HF Trainer, Accelerate.

    python bench/dealing.py --json FILE

Gradients are those that reach the clipping: all three loops call Accelerator.clip_grad_norm_ once
an update. Each is compared with the gradient of the mean loss over the distinct reviews of that
update, by one process in one forward pass in float64 on the same weights (the rate is next to 0,
dropout off): the whole gradient as one vector. HF Trainer and the loop on `accelerator.accumulate`
draw their own batches, as they come. Evaluations are compared with one text at a time, in float64.

The demo's model and reviews, on CPU with gloo. The worker is this file under torchrun.
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

import datasets
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from accelerate.utils import gather_object
from torch.nn import functional as F
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, get_scheduler

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train
from bench.machine import about_machine
from config import Config
from data import Collator
from eval import predict, score
from model import load_model
from processes import run_command
from report import make_report

GLOBAL_BATCHES = (12, 24)  # 24 texts are 1, 2, 3 processes x 1, 2, 3, 4 micro-batches but for 3 x 3
SIZES = (105, 50, 13)  # training texts: a global batch divides none of them
PROCESSES, ACCUMULATIONS = (1, 2, 3), (1, 2, 3, 4)
EVALUATIONS = [(size, batch) for size in (61, 30, 2) for batch in (1, 7, 64)]
PEAK = 1e-12  # a rate so small that no weight changes, and its schedule can still be read
SEED = 42


def combinations(processes: int, sizes):
    """(accumulation, batch of a process, texts) with a whole number of texts a process."""
    for accumulation, batch, size in itertools.product(ACCUMULATIONS, GLOBAL_BATCHES, sizes):
        if batch % (processes * accumulation) == 0:
            yield accumulation, batch // (processes * accumulation), size


# ---------------------------------------------------------------- what is recorded


class Recorder:
    """Gradients, rates and reviews of each update of the loop that runs now."""

    def __init__(self):
        self.clip, self.step = Accelerator.clip_grad_norm_, torch.optim.AdamW.step
        Accelerator.clip_grad_norm_ = lambda *args, **kwargs: self.at_clip(*args, **kwargs)
        torch.optim.AdamW.step = lambda *args, **kwargs: self.at_step(*args, **kwargs)
        self.begin()

    def begin(self):
        self.gradients, self.rates, self.rows, self.seen = [], [], [], []

    def at_clip(self, accelerator, parameters, norm, *rest):
        parameters = list(parameters)
        self.gradients.append(torch.cat([weight.grad.flatten() for weight in parameters]))
        self.rows.append(sorted(set(gather_object(self.seen))))
        self.seen = []
        return self.clip(accelerator, parameters, norm, *rest)

    def at_step(self, optimizer, *args, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])
        return self.step(optimizer, *args, **kwargs)


def closed_form(step: int, total: int, warmup: int) -> float:
    """The published schedule at update `step` (from 1), written without looking at train.py."""
    done = step - 1
    return PEAK * (done / warmup if done < warmup else (total - done) / max(1, total - warmup))


def judge(recorder: Recorder, model, data, collator, warmup: int) -> dict:
    """Factor, relative difference and rate of the first, a middle and the last update."""
    total = len(recorder.gradients)
    picked = sorted({0, total // 2, total - 1})
    factors, differences, examples = [], [], []
    for index in picked:
        expected = reference(model, data, collator, recorder.rows[index])
        ours = recorder.gradients[index].double()
        factors.append((ours @ expected / (expected @ expected)).item())
        differences.append(((ours - expected).norm() / expected.norm()).item())
        examples.append(len(recorder.rows[index]))
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


def reference(model, data, collator, rows: list[int]) -> torch.Tensor:
    """The gradient of the mean loss over `rows` in one forward pass, float64."""
    model.zero_grad()
    batch = collator([{key: data[row][key] for key in ("input_ids", "labels")} for row in rows])
    labels = batch.pop("labels")
    F.cross_entropy(model(**batch).logits, labels).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


# ---------------------------------------------------------------- the three loops


def flags_of(accumulation: int, batch: int, size: int, folder: Path) -> Config:
    return Config(
        dataset=str(ROOT / "demo" / "corpus"),
        model=str(ROOT / "demo" / "model"),
        max_length=80,
        dropout=0.0,
        seed=SEED,
        learning_rate=PEAK,
        warmup_steps=0.2,
        num_train_epochs=1,
        max_train_samples=size,
        max_validation_samples=max(size for size, _ in EVALUATIONS),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        output_dir=str(folder),
        overwrite=True,
        num_threads=1,
    )


def ours(recorder, config, accelerator, run) -> int:
    """train.py itself; its reviews are those of the plan."""
    train.run_to_end(config, accelerator)
    recorder.rows = [sorted(run.plan[step].tolist()) for step in range(run.total_steps)]
    return math.ceil(config.warmup_steps * run.total_steps)


def hf_trainer(recorder, config, accelerator, run) -> int:
    """transformers' Trainer, as it comes."""

    class Recorded(Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            recorder.seen += inputs.pop("row").tolist()
            return super().compute_loss(model, inputs, *args, **kwargs)

    arguments = TrainingArguments(
        output_dir=config.output_dir,
        num_train_epochs=1,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=PEAK,
        warmup_steps=config.warmup_steps,
        max_grad_norm=1e9,
        seed=SEED,
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Recorded(
        model=fresh_model(config),
        args=arguments,
        train_dataset=with_rows(run.train),
        data_collator=DataCollatorWithPadding(run.tokenizer),
    )
    trainer.train()
    return math.ceil(config.warmup_steps * trainer.state.max_steps)


def accelerate_loop(recorder, config, accelerator, run) -> int:
    """Accelerate's guide to gradient accumulation; the schedule as in its nlp_example.py, whose
    steps are counted before `prepare` makes the scheduler advance once a process."""
    GradientState._reset_state()
    accelerator = Accelerator(gradient_accumulation_steps=config.gradient_accumulation_steps)
    model = fresh_model(config)
    loader = torch.utils.data.DataLoader(
        with_rows(run.train),
        shuffle=True,
        batch_size=config.per_device_train_batch_size,
        collate_fn=DataCollatorWithPadding(run.tokenizer),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK)
    total = len(loader) // config.gradient_accumulation_steps
    scheduler = get_scheduler("linear", optimizer, math.ceil(config.warmup_steps * total), total)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    model.train()
    for batch in loader:
        with accelerator.accumulate(model):
            recorder.seen += batch.pop("row").tolist()
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1e9)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    GradientState._reset_state()
    return math.ceil(config.warmup_steps * len(recorder.gradients))


LOOPS = {"ours": ours, "HF Trainer": hf_trainer, "accelerator.accumulate": accelerate_loop}


def fresh_model(config: Config):
    torch.manual_seed(config.seed)
    return load_model(config.model, ["negative", "positive"], dropout=0.0)


def with_rows(data: datasets.Dataset) -> datasets.Dataset:
    data = data.select_columns(["input_ids", "labels"])
    return data.add_column("row", range(len(data)))


# ---------------------------------------------------------------- the worker


def worker(folder: Path, loops: list[str], sizes: list[int]) -> list[dict]:
    """On every process of torchrun: all combinations for this number of them."""
    recorder, results = Recorder(), []
    processes = int(os.environ["WORLD_SIZE"])
    (folder / "run").mkdir(exist_ok=True)
    for (accumulation, batch, size), name in itertools.product(
        combinations(processes, sizes), loops
    ):
        config = flags_of(accumulation, batch, size, folder / "run")
        accelerator = train.make_accelerator(config)
        run = train.prepare(config, accelerator)
        recorder.begin()
        warmup = LOOPS[name](recorder, config, accelerator, run)
        model = fresh_model(config).double()
        found = judge(recorder, model, run.train, Collator(run.tokenizer), warmup)
        about = {"processes": processes, "accumulation": accumulation, "batch": batch}
        results.append({"loop": name, **about, "texts": size, **found})
    return results + evaluations(accelerator, run)


def report_on(logits, labels) -> dict:
    return make_report(score(logits, labels), logits.argmax(-1), labels, ["negative", "positive"])


def evaluations(accelerator, run) -> list[dict]:
    results = []
    model = accelerator.unwrap_model(run.model)
    for size, batch in EVALUATIONS:
        data = run.validation.select(range(size))
        labels = torch.as_tensor(data["labels"][:])
        logits = predict(model, data, Collator(run.tokenizer), batch, accelerator)
        report = report_on(logits, labels)
        alone = fresh_model(run.config).double().eval()
        with torch.inference_mode():
            rows = [alone(input_ids=torch.tensor([row])).logits[0] for row in data["input_ids"]]
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


# ---------------------------------------------------------------- the command


def launch(processes: int, loops=("ours",), sizes=SIZES) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}", __file__, "--worker", folder]
        command += ["--loops", *loops, "--texts", *(str(size) for size in sizes)]
        env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "results.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="where the result goes")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--loops", nargs="+", default=list(LOOPS), choices=LOOPS)
    parser.add_argument("--texts", nargs="+", type=int, default=SIZES)
    options = parser.parse_args()
    if options.worker:
        results = worker(options.worker, options.loops, options.texts)
        if os.environ["RANK"] == "0":
            (options.worker / "results.json").write_text(json.dumps(results))
        return
    results = []
    for processes in (*PROCESSES, 4):  # on four the learning rate is asked for, of ours alone
        loops = options.loops if processes in PROCESSES else ["ours"]
        results += launch(processes, loops, options.texts)
        print(f"{processes} processes: {len(results)} rows so far", flush=True)
    if options.json:
        result = {**about_machine(), "results": results}
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
