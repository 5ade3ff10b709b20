"""Fine-tune a pretrained Transformer classifier: the order of things in time.

    accelerate launch train.py                       # IMDb + DistilBERT, as published
    accelerate launch train.py --dataset reviews.csv --model FOLDER_OR_HUB_NAME --output_dir run

In: a `Config`. Out: `best/` (to use), `last/` (to resume), `runs/` (TensorBoard) in --output_dir.
Refuses to know: the test split, other tasks, benchmarks. A `step` is one optimizer update.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import checkpoint
from config import Config, UserError, changed_settings, parse, run_command
from data import (
    BatchPlan,
    Collator,
    fingerprint,
    read_labelled,
    read_table,
    sample,
    split_validation,
    tokenize,
    train_loader,
)
from eval import Scores, predict, score, set_threads
from model import load_model, load_tokenizer, parameter_groups


@dataclasses.dataclass
class Progress:
    """Where a run stands: with the weights and the optimizer's moments, all that it takes to go on.

    There is no random state: dropout is seeded by (seed, step, process), the order of reviews by
    (seed, epoch). There is no schedule either: the rate is a function of the step.
    """

    step: int = 0
    best_step: int = 0
    best_accuracy: float = -1.0
    window_start: int = 0  # the step of the last scalars; the sums below run from there
    loss_sum: float = 0.0
    grad_norm_sum: float = 0.0


@dataclasses.dataclass
class Run:
    config: Config
    settings: dict  # what must not change on a resume
    accelerator: Accelerator
    tokenizer: transformers.PreTrainedTokenizerBase
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    train: datasets.Dataset
    validation: datasets.Dataset
    quick: datasets.Dataset  # the part of it for quick looks
    plan: BatchPlan
    total_steps: int
    progress: Progress
    writer: SummaryWriter | None = None  # on the main process only
    bar: tqdm | None = None
    shown: dict[str, str] = dataclasses.field(default_factory=dict)  # beside the bar
    started: float = 0.0  # clock at the start of the window, evaluations and saves taken out


# ---------------------------------------------------------------- the loop


def train(run: Run) -> None:
    config, accelerator, model, progress = run.config, run.accelerator, run.model, run.progress
    accumulation, processes = config.gradient_accumulation_steps, accelerator.num_processes
    steps = range(progress.step, run.total_steps)
    collator = Collator(run.tokenizer)
    micro_batches = iter(
        train_loader(
            run.train, run.plan, steps, accumulation, accelerator.process_index, processes, collator
        )
    )
    # Loss and gradient norm are summed on the device: an .item() a step would make it wait.
    sums = torch.tensor([progress.loss_sum, progress.grad_norm_sum], device=accelerator.device)
    validate_steps = config.validate_steps or run.plan.steps_per_epoch
    model.train()

    for step in range(progress.step + 1, run.total_steps + 1):
        torch.manual_seed(dropout_seed(config.seed, step, accelerator.process_index))
        examples = len(run.plan[step - 1])  # over all processes and micro-batches
        for micro_batch in range(1, accumulation + 1):
            batch = {
                key: value.to(accelerator.device) for key, value in next(micro_batches).items()
            }
            labels = batch.pop("labels")
            # Gradients are averaged over processes once, in the last micro-batch.
            last = micro_batch == accumulation
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                logits = model(**batch).logits.float()
                # The sum / the examples of the whole batch is the mean, however it was dealt;
                # x processes, because DDP's average over processes divides by their number.
                loss = F.cross_entropy(logits, labels, reduction="sum") / examples
                accelerator.backward(loss * processes)
            sums[0] += loss.detach()

        sums[1] += accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(step, run.total_steps, config)
        run.optimizer.step()
        run.optimizer.zero_grad()

        progress.step = step
        finished = step == run.total_steps
        if step % config.eval_steps == 0:
            quick_look(run)
        if step % validate_steps == 0 or finished:
            validate_and_keep_best(run)
        if step % config.logging_steps == 0 or finished:
            log_window(run, sums)
        if step % config.save_steps == 0 or step % validate_steps == 0 or finished:
            save_last(run, sums)
        run.bar.update()


def dropout_seed(seed: int, step: int, process: int) -> int:
    """A seed for torch's generators: randomness as a function of (seed, step, process).

    So no random state is saved, lost in a resume, or disturbed by an evaluation or an iterator.
    """
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0])


def learning_rate(step: int, total_steps: int, config: Config) -> float:
    """The rate of update `step` (from 1), as get_scheduler of transformers has it: the first is 0.

    A function of the step: a scheduler that Accelerate prepared advances once a process, and so
    reaches 0 at 1/processes of the run (accelerate#2142).
    """
    done = step - 1
    share = config.warmup_steps < 1
    warmup = math.ceil(total_steps * config.warmup_steps) if share else int(config.warmup_steps)
    if done < warmup:
        return config.learning_rate * done / warmup
    rest = (done - warmup) / max(1, total_steps - warmup)
    decay = {"linear": 1 - rest, "cosine": (1 + math.cos(math.pi * rest)) / 2, "constant": 1.0}
    return config.learning_rate * decay[config.lr_scheduler_type]


# ---------------------------------------------------------------- what the loop calls at its marks


def log_window(run: Run, sums: torch.Tensor) -> None:
    """Scalars of the steps since the last ones; `sums` back to 0. The only sync of training."""
    progress, plan = run.progress, run.plan
    window = range(progress.window_start, progress.step)
    # Each process has its part of the loss, and all have the norm of the whole gradient.
    loss_sum, grad_norm_sum = run.accelerator.reduce(sums, "sum")[0].item(), sums[1].item()
    parts = run.accelerator.num_processes * run.config.gradient_accumulation_steps
    examples = sum(len(plan[step]) for step in window)
    tokens = sum(int(plan.lengths[plan[step]].sum()) for step in window)
    padded = sum(plan.padded_tokens(step, parts) for step in window)
    seconds = time.perf_counter() - run.started
    scalars = {
        "train/loss": loss_sum / len(window),
        "train/grad_norm": grad_norm_sum / len(window),
        "train/learning_rate": learning_rate(progress.step, run.total_steps, run.config),
        "train/padding_fraction": 1 - tokens / padded,
        "train/examples_per_second": examples / seconds,
        "train/tokens_per_second": tokens / seconds,
        "train/epoch": progress.step / plan.steps_per_epoch,
    }
    write_scalars(run, scalars)
    left = tqdm.format_interval((run.total_steps - progress.step) * seconds / len(window))
    run.shown |= {"loss": f"{scalars['train/loss']:.4f}", "reviews/s": f"{examples / seconds:.1f}"}
    run.bar.set_postfix(run.shown, refresh=False)
    if run.bar.disable:  # no terminal: a line instead
        figures = ", ".join(f"{name} {value}" for name, value in run.shown.items())
        say(run, f"step {progress.step}/{run.total_steps}: {figures}, {left} left")
    sums.zero_()
    progress.window_start = progress.step
    run.started = time.perf_counter()


def quick_look(run: Run) -> None:
    """Scores on a fixed, stratified part of the validation split: for the curve, not `best/`."""
    scores = evaluate(run, run.quick, "validation_sample")
    run.shown["validation accuracy"] = f"{scores.accuracy:.3f}"


def validate_and_keep_best(run: Run) -> None:
    """`best/` is the earliest highest validation accuracy; neither a tie nor a NaN replaces it."""
    scores = evaluate(run, run.validation, "validation")
    progress = run.progress
    better = scores.accuracy > progress.best_accuracy and math.isfinite(scores.loss)
    if better:
        progress.best_step, progress.best_accuracy = progress.step, scores.accuracy
        if run.accelerator.is_main_process:
            with clock_stopped(run):
                checkpoint.write(output(run) / "best", lambda to: fill_best(run, scores, to))
    say(
        run,
        f"step {progress.step}/{run.total_steps}: validation accuracy {scores.accuracy:.4f} on "
        f"{scores.examples:,} texts" + (", written to best/" if better else ""),
    )


def evaluate(run: Run, data: datasets.Dataset, name: str) -> Scores:
    """Scores of the model as it is, in the precision of training; the window's clock stands."""
    # The bare model: the wrapper for several processes would exchange buffers in each forward pass,
    # and wait for ever for a process whose share has one batch less.
    model = run.accelerator.unwrap_model(run.model)
    batch_size = run.config.per_device_eval_batch_size
    with clock_stopped(run):
        logits = predict(model, data, Collator(run.tokenizer), batch_size, run.accelerator)
    scores = score(logits, torch.as_tensor(data["labels"][:]))
    write_scalars(run, {f"{name}/loss": scores.loss, f"{name}/accuracy": scores.accuracy})
    return scores


@contextlib.contextmanager
def clock_stopped(run: Run):
    """Evaluations and saves are no part of the time that the speed scalars divide by."""
    if run.accelerator.device.type == "cuda":
        torch.cuda.synchronize()  # the steps before are done in their own time
    begun = time.perf_counter()
    yield
    run.started += time.perf_counter() - begun


def write_scalars(run: Run, scalars: dict[str, float]) -> None:
    for name, value in scalars.items() if run.writer else ():
        run.writer.add_scalar(name, value, run.progress.step)


def say(run: Run, line: str) -> None:
    if run.accelerator.is_main_process:
        tqdm.write(line)  # above the bar, if there is one
        sys.stdout.flush()


# ---------------------------------------------------------------- what is written


def output(run: Run) -> Path:
    return Path(run.config.output_dir)


def save_last(run: Run, sums: torch.Tensor) -> None:
    """`last/`: all that `resume` reads."""
    progress, accelerator = run.progress, run.accelerator
    progress.loss_sum = accelerator.reduce(sums, "sum")[0].item()
    progress.grad_norm_sum = sums[1].item()
    with clock_stopped(run):
        if run.writer:
            run.writer.flush()  # every two minutes by itself; a resume must find all up to `step`
        if accelerator.is_main_process:
            checkpoint.write(output(run) / "last", lambda folder: fill_last(run, folder))
        accelerator.wait_for_everyone()


def fill_last(run: Run, folder: Path) -> None:
    save_weights(run.accelerator.unwrap_model(run.model), str(folder / "model.safetensors"))
    scaler = run.accelerator.scaler
    state = {
        "optimizer": run.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
    }
    torch.save(state, folder / "optimizer.pt")
    state = {"progress": dataclasses.asdict(run.progress), "settings": run.settings}
    (folder / "progress.json").write_text(json.dumps(state, indent=1))


def fill_best(run: Run, scores: Scores, folder: Path) -> None:
    """What `from_pretrained` and `pipeline("text-classification", "best/")` load."""
    run.accelerator.unwrap_model(run.model).save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)
    config = {name: run.settings[name] for name in dataclasses.asdict(run.config)}
    (folder / "training_config.json").write_text(json.dumps(config, indent=1))
    validation = {"step": run.progress.step, **dataclasses.asdict(scores)}
    (folder / "validation.json").write_text(json.dumps(validation, indent=1))
    (folder / "README.md").write_text(MODEL_CARD.format(**config, **validation))


MODEL_CARD = """---
base_model: {model}
datasets: [{dataset}]
library_name: transformers
pipeline_tag: text-classification
---
{model} fine-tuned on {dataset}, learning rate {learning_rate}, seed {seed}. Step {step}:
validation accuracy {accuracy:.4f}, loss {loss:.4f} on {examples} texts kept from the training
split, among which this step was chosen. `training_config.json` holds every setting; for test
figures run `python eval.py --ckpt` on this folder.
"""


# ---------------------------------------------------------------- set-up


def make_accelerator(config: Config) -> Accelerator:
    precision = config.mixed_precision
    if precision == "auto":
        # `accelerate launch` always exports a value, "no" where nobody asked for one.
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        cuda = torch.cuda.is_available()
        if precision == "no" and cuda and torch.cuda.is_bf16_supported(including_emulation=False):
            precision = "bf16"
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed_precision fp16: needs a CUDA GPU; give bf16 or no")
    # One accumulation step as Accelerate counts: the loop does its own, and with
    # ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment `backward` would divide again.
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if accelerator.distributed_type.value not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        raise UserError(
            f"accelerate is configured for {accelerator.distributed_type.value}; "
            "only one process or data parallelism (DDP) is supported: run `accelerate config` again"
        )
    set_threads(config.num_threads)
    return accelerator


def prepare(config: Config) -> Run:
    """Everything before the first step, cheap checks first. Writes nothing into --output_dir."""
    accelerator = make_accelerator(config)
    tokenizer = load_tokenizer(config.model, config.revision, config.max_length)
    with accelerator.main_process_first():  # the others find the download and the tokens cached
        table = read_table(
            config.dataset, config.train_split, config.dataset_config_name, config.dataset_revision
        )
        labelled = read_labelled(table, config.text_column, config.label_column)
        train, validation = (
            tokenize(part, tokenizer, config.max_length, config.truncation)
            for part in split_validation(labelled, config)
        )
    torch.manual_seed(config.seed)  # for the new head
    model = load_model(
        config.model,
        train.features["labels"].names,
        config.revision,
        config.attention_dropout,
        config.dropout,
    )
    if config.torch_compile:
        model.compile()
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)

    batch_size = config.per_device_train_batch_size
    batch_size *= config.gradient_accumulation_steps * accelerator.num_processes
    plan = BatchPlan(train["length"][:], batch_size, config.seed, config.train_sampling_strategy)
    epochs_steps = math.ceil(config.num_train_epochs * plan.steps_per_epoch)
    settings = {
        **dataclasses.asdict(config),
        "mixed_precision": accelerator.mixed_precision,
        "global_batch_size": batch_size,
        "data": fingerprint(train, validation),
    }
    return Run(
        config=config,
        settings=settings,
        accelerator=accelerator,
        tokenizer=tokenizer,
        model=model,
        optimizer=optimizer,
        train=train,
        validation=validation,
        quick=sample(validation, config.eval_samples, config.validation_seed),
        plan=plan,
        total_steps=config.max_steps if config.max_steps > 0 else epochs_steps,
        progress=Progress(),
    )


def find_last(config: Config) -> Path | None:
    """The `last/` to resume from. Raises `UserError` for a folder that cannot be written, or that
    holds what no `last/` accounts for."""
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: {error.strerror}; give another folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir {folder}: cannot be written; give another folder")
    if config.overwrite:
        for path in (folder / "best", folder / "last"):
            if path.exists() and not (path / checkpoint.MANIFEST).exists():
                raise UserError(
                    f"--overwrite: {path} has no {checkpoint.MANIFEST}, so it may not be ours to "
                    "delete; remove it, or give another --output_dir"
                )
        return None
    last = checkpoint.newest(folder / "last")
    for name in ("best", "runs"):
        if last is None and (folder / name).exists():
            raise UserError(
                f"--output_dir {folder}: holds {name}/ of another run and no last/ to resume from; "
                "give another folder, or --overwrite to delete it"
            )
    return last


def start_anew(run: Run) -> None:
    """Clear the way, if --overwrite says so, and write a `last/` of step 0."""
    if run.accelerator.is_main_process:
        for name in ("best", "last", ".best.new", ".last.new"):
            shutil.rmtree(output(run) / name, ignore_errors=True)
        for events in (output(run) / "runs").glob("events.out.tfevents.*"):
            events.unlink()  # and nothing else that may lie there
    # From here on a run that is killed is resumed like any other, even before its first save.
    save_last(run, torch.zeros(2, device=run.accelerator.device))


def resume(run: Run, last: Path) -> None:
    """Go on from `last`. Raises `UserError` naming both values of each setting that changes the
    result and differs."""
    state = json.loads((last / "progress.json").read_text())
    old, new = state["settings"], run.settings
    changed = changed_settings(old, new)
    changed += [name for name in ("global_batch_size", "data") if old[name] != new[name]]
    if changed:
        raise UserError(
            *(
                f"{last} was written with {name} {old[name]}, not {new[name]}: "
                "give the old value, another --output_dir, or --overwrite to delete that run"
                for name in changed
            )
        )
    load_weights(run.accelerator.unwrap_model(run.model), str(last / "model.safetensors"))
    tensors = torch.load(
        last / "optimizer.pt", weights_only=True, map_location=run.accelerator.device
    )
    run.optimizer.load_state_dict(tensors["optimizer"])
    if run.accelerator.scaler and tensors["scaler"]:
        run.accelerator.scaler.load_state_dict(tensors["scaler"])
    run.progress = Progress(**state["progress"])
    if run.progress.best_step and checkpoint.newest(output(run) / "best") is None:
        raise UserError(
            f"{output(run) / 'best'} is gone; restore it, or start anew with --overwrite"
        )
    if not run.accelerator.is_main_process:
        run.progress.loss_sum = 0.0  # the saved sum is that of all processes


def main(argv=None) -> None:
    config = parse(Config, argv)
    last = find_last(config)
    run = prepare(config)
    if last:
        resume(run, last)
    else:
        start_anew(run)
    progress, main_process = run.progress, run.accelerator.is_main_process
    if progress.step < run.total_steps:
        if main_process:
            say(run, describe(run))
            # Scalars after the resumed step belong to steps that are run again.
            purge = progress.step + 1
            run.writer = SummaryWriter(str(output(run) / "runs"), purge_step=purge)
        hidden = not (main_process and sys.stderr.isatty())
        run.bar = tqdm(
            total=run.total_steps, initial=progress.step, disable=hidden, dynamic_ncols=True
        )
        run.started = time.perf_counter()
        with contextlib.closing(run.writer or run.bar), run.bar:
            train(run)
    elif main_process:
        print(f"{output(run)} holds a finished run; --overwrite starts anew")
    if main_process and progress.best_step:
        best = output(run) / "best"
        print(
            f"best/ is step {progress.best_step} of {run.total_steps}, validation accuracy "
            f"{progress.best_accuracy:.4f} on {len(run.validation):,} texts; "
            f"next: python eval.py --ckpt {best}"
        )
    accelerator = run.accelerator
    # The wrapped model goes before the process group: if it held the group's last reference, gloo's
    # thread would wait for the interpreter lock that this thread keeps in its join (pytorch#56297).
    del run
    accelerator.free_memory()
    accelerator.end_training()
    if not progress.best_step:
        raise UserError(
            "no validation loss was finite, so there is no best/; lower --learning_rate"
        )


def describe(run: Run) -> str:
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    accelerator = run.accelerator
    start = f"resuming at step {run.progress.step}" if run.progress.step else "starting"
    return (
        f"{start}: {run.config.model} ({parameters / 1e6:.1f}M parameters) on "
        f"{run.config.dataset}: {len(run.train):,} training and {len(run.validation):,} validation "
        f"texts, batch {run.plan.batch_size}, {run.total_steps:,} steps "
        f"({run.plan.steps_per_epoch:,} an epoch); {accelerator.num_processes} x "
        f"{accelerator.device.type}, {torch.get_num_threads()} threads, "
        f"mixed precision {accelerator.mixed_precision}"
    )


if __name__ == "__main__":
    run_command(main)
