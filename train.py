"""Fine-tune a pretrained Transformer classifier: the order of things in time.

    accelerate launch train.py                       # IMDb + DistilBERT, as published
    accelerate launch train.py --dataset reviews.csv --model FOLDER_OR_HUB_NAME --output_dir run

In: a `Config`. Out: `best/` (to use), `last/` (to resume), `runs/` (TensorBoard) in --output_dir.
Refuses to know: the test split, other tasks, benchmarks. A `step` is one optimizer update.
"""

import contextlib
import math
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import checkpoint
import engines
from config import GO_ON, Config, UserError, parse
from data import (
    BatchPlan,
    Collator,
    column,
    fingerprint,
    read_labelled,
    read_table,
    sample,
    split_validation,
    tokenize,
    train_loader,
)
from engines import clip_gradient, make_accelerator
from eval import Scores, predict, score, to_device
from model import load_model, load_tokenizer, parameter_groups
from processes import Stop, Stopped, on_main, one_goes_first, run_command
from state import (
    SUMS,
    Progress,
    Run,
    clock_stopped,
    find_last,
    need_room,
    output,
    read_sums,
    resume,
    save_best,
    save_last,
    settings_of,
    start_anew,
    with_batch_of,
)

# ---------------------------------------------------------------- the loop


def train(run: Run) -> None:
    config, accelerator, model, progress = run.config, run.accelerator, run.model, run.progress
    accumulation, processes = config.gradient_accumulation_steps, accelerator.num_processes
    if progress.marks_due:
        at_marks(run)
    steps = range(progress.step, run.total_steps)
    collator = Collator(run.tokenizer)
    micro_batches = iter(
        train_loader(
            run.train, run.plan, steps, accumulation, accelerator.process_index, processes, collator
        )
    )
    model.train()

    for step in range(progress.step + 1, run.total_steps + 1):
        torch.manual_seed(dropout_seed(config.seed, step, accelerator.process_index))
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(step, run.total_steps, config)
        examples = len(run.plan[step - 1])  # over all processes and micro-batches
        step_loss = torch.zeros((), device=accelerator.device)
        for _ in range(accumulation):
            run.stop.check()
            batch = to_device(next(micro_batches), accelerator.device)
            labels = batch.pop("labels")
            with accelerator.accumulate(model):  # gradients cross processes once, in the last
                logits = model(**batch).logits.float()
                # The sum / the examples of the whole batch is the mean, however it was dealt. But
                # backward divides by the micro-batches, and the average over processes by those.
                loss = F.cross_entropy(logits, labels, reduction="sum") / examples
                accelerator.backward(loss * accumulation * processes)
            step_loss += loss.detach()

        norm = clip_gradient(accelerator, model, config.max_grad_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()

        # Summed on the device: an .item() a step would make it wait. A gradient that is not finite
        # is an fp16 overflow, whose update the scaler skipped, or the end: see read_sums.
        finite = norm.isfinite()
        run.sums += torch.stack([step_loss.where(finite, 0), norm.where(finite, 0), ~finite])
        progress.step = step
        at_marks(run)
        run.bar.update()


def at_marks(run: Run) -> None:
    """What is due after some steps: looks at the validation split, `best/`, scalars, `last/`.

    Evaluations may end in `Stopped`, and come before all that changes the sums: with `marks_due` in
    `last/` a resume does the whole of it once more, and its scalars replace those written before.
    """
    config, progress = run.config, run.progress
    step, finished = progress.step, progress.step == run.total_steps
    validates = finished or step % (config.validate_steps or run.plan.steps_per_epoch) == 0
    progress.marks_due = True
    if validates:
        read_sums(run)  # raises, if a step was not finite, before its weights become best/
    if step % config.eval_steps == 0:
        quick_look(run)
    if validates:
        validate_and_keep_best(run)
    if step % config.logging_steps == 0 or finished:
        log_window(run)
    progress.marks_due = False
    if validates or (step % config.save_steps == 0 and can_afford_a_save(run)):
        save_last(run)


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


def log_window(run: Run) -> None:
    """Scalars of the steps since the last ones; the sums back to 0."""
    progress, plan = run.progress, run.plan
    window = range(progress.window_start, progress.step)
    sums = read_sums(run)
    # Each process has its part of the loss, and all have the norm of the whole gradient.
    loss_sum, (_, grad_norm_sum, skipped) = sums[:, 0].sum().item(), sums[0].tolist()
    parts = run.accelerator.num_processes * run.config.gradient_accumulation_steps
    tokens = {step: int(plan.lengths[plan[step]].sum()) for step in window}
    padded = sum(plan.padded_tokens(step, parts) for step in window)
    timed = [step for step in window if step >= run.first_step]  # not those before a resume
    seconds = time.perf_counter() - run.started
    examples_per_second = sum(len(plan[step]) for step in timed) / seconds
    scalars = {
        "train/learning_rate": learning_rate(progress.step, run.total_steps, run.config),
        "train/padding_fraction": 1 - sum(tokens.values()) / padded,
        "train/examples_per_second": examples_per_second,
        "train/tokens_per_second": sum(tokens[step] for step in timed) / seconds,
        "train/epoch": progress.step / plan.steps_per_epoch,
    }
    if updates := len(window) - int(skipped):
        scalars |= {"train/loss": loss_sum / updates, "train/grad_norm": grad_norm_sum / updates}
    if run.accelerator.scaler:
        scalars["train/skipped_updates"] = skipped
    write_scalars(run, scalars)
    seconds_a_step = seconds / max(1, len(timed))
    left = tqdm.format_interval((run.total_steps - progress.step) * seconds_a_step)
    loss = scalars.get("train/loss", math.nan)
    run.shown |= {"loss": f"{loss:.4f}", "reviews/s": f"{examples_per_second:.1f}"}
    run.bar.set_postfix(run.shown, refresh=False)
    if run.bar.disable:  # no terminal: a line instead
        figures = ", ".join(f"{name} {value}" for name, value in run.shown.items())
        say(run, f"step {progress.step}/{run.total_steps}: {figures}, {left} left")
        run.shown.clear()  # an accuracy is said at its own step alone
    run.sums.zero_()
    progress.window_start = progress.step
    run.started = time.perf_counter()


def quick_look(run: Run) -> None:
    """Scores on a fixed, stratified part of the validation split: for the curve, not `best/`."""
    scores = evaluate(run, run.quick, "validation_sample")
    run.shown["sample accuracy"] = f"{scores.accuracy:.3f}"


def validate_and_keep_best(run: Run) -> None:
    """`best/` is the earliest highest validation accuracy; neither a tie nor a NaN replaces it."""
    scores = evaluate(run, run.validation, "validation")
    progress = run.progress
    better = scores.accuracy > progress.best_accuracy and math.isfinite(scores.loss)
    if better:
        progress.best_step, progress.best_accuracy = progress.step, scores.accuracy
        save_best(run, scores)
    say(
        run,
        f"step {progress.step}/{run.total_steps}: validation accuracy {scores.accuracy:.4f} on "
        f"{scores.examples:,} texts" + (", written to best/" if better else ""),
    )


def evaluate(run: Run, data: datasets.Dataset, name: str) -> Scores:
    """Scores of the model as it is, in the precision of training; the window's clock stands."""
    # The bare model: DDP's wrapper would broadcast buffers before each forward pass, for nothing.
    model = run.accelerator.unwrap_model(run.model)
    batch_size = run.config.per_device_eval_batch_size
    with clock_stopped(run):
        logits = predict(
            model, data, Collator(run.tokenizer), batch_size, run.accelerator, run.stop.check
        )
    scores = score(logits, torch.as_tensor(data["labels"][:]))
    write_scalars(run, {f"{name}/loss": scores.loss, f"{name}/accuracy": scores.accuracy})
    return scores


def can_afford_a_save(run: Run) -> bool:
    """Whether a save that takes as long as the one before keeps within --max_save_share.

    On a GPU 200 steps may take four seconds and a save one: then they come less often. The main
    process decides for all; the first save after a start is always affordable.
    """
    since = time.perf_counter() - run.saved_at
    within = run.save_seconds <= run.config.max_save_share * (since + run.save_seconds)
    return bool(run.stop.largest(run.accelerator.is_main_process and within))


def write_scalars(run: Run, scalars: dict[str, float]) -> None:
    for name, value in scalars.items() if run.writer else ():
        run.writer.add_scalar(name, value, run.progress.step)


def say(run: Run, line: str) -> None:
    if run.accelerator.is_main_process:
        tqdm.write(line)  # above the bar, if there is one
        sys.stdout.flush()


# ---------------------------------------------------------------- set-up


def prepare(config: Config, accelerator: Accelerator, settings: dict | None = None) -> Run:
    """Everything before the first step, cheap checks first. Writes nothing into --output_dir."""
    settings = settings or settings_of(config, accelerator)
    with one_goes_first():  # the others find what was downloaded and tokenised
        tokenizer = load_tokenizer(config.model, config.revision, config.max_length)
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
    settings |= {
        "data": fingerprint(train, validation),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if settings["data"] != on_main(lambda: settings["data"]):
        raise UserError(
            f"--dataset {config.dataset}: process {accelerator.process_index} reads other texts "
            "than the main one, so their batches differ; give all machines the same data"
        )
    if config.torch_compile:
        # Its cuts at the buckets of DDP fail where lengths vary (torch 2.13: 'int' has no 'meta').
        torch._dynamo.config.optimize_ddp = False
        model.compile()
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    model, optimizer = engines.prepare(accelerator, config, model, optimizer)
    plan = BatchPlan(
        column(train, "length").to_numpy(),
        settings["global_batch_size"],
        config.seed,
        config.train_sampling_strategy,
    )
    epochs_steps = math.ceil(config.num_train_epochs * plan.steps_per_epoch)
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
        sums=torch.tensor(SUMS, device=accelerator.device),
        stop=Stop(accelerator.num_processes),
    )


def main(argv=None) -> int:
    """The exit status: 0, or 128 + the signal that asked the run to end."""
    config = parse(Config, argv)
    accelerator = make_accelerator(config)
    with contextlib.ExitStack() as held:
        on_main(lambda: held.enter_context(checkpoint.lock(Path(config.output_dir))))
        return run_to_end(config, accelerator)


def run_to_end(config: Config, accelerator: Accelerator) -> int:
    settings = settings_of(config, accelerator)
    state = on_main(lambda: find_last(config, settings))
    if state:
        settings["global_batch_size"] = state["settings"]["global_batch_size"]
        given, config = config, with_batch_of(state["settings"], config, accelerator.num_processes)
        if config != given:
            accelerator.print(
                f"the batches of {settings['global_batch_size']} are kept, with "
                f"--per_device_train_batch_size {config.per_device_train_batch_size} "
                f"--gradient_accumulation_steps {config.gradient_accumulation_steps}"
            )
    run = prepare(config, accelerator, settings)
    on_main(lambda: need_room(run))
    resume(run, state) if state else start_anew(run)
    progress = run.progress
    if progress.step == run.total_steps and not progress.marks_due:
        say(run, f"{output(run)} holds a finished run; --overwrite starts anew")
    elif number := go_on(run):
        say(run, f"stopped at step {progress.step}; to go on from there, {GO_ON}")
        return 128 + number
    if not progress.best_step:
        raise UserError(
            "no validation loss was finite, so there is no best/; lower --learning_rate"
        )
    if accelerator.is_main_process:
        for name in ("best", "last"):
            checkpoint.remove_copies(output(run) / name)
    other = " --dataset OTHER_TEXTS" if Path(config.dataset).is_file() else ""  # it has one split
    say(
        run,
        f"best/ is step {progress.best_step} of {run.total_steps}, validation accuracy "
        f"{progress.best_accuracy:.4f} on {len(run.validation):,} texts; "
        f"next: python eval.py --ckpt {output(run) / 'best'}{other}",
    )
    return 0


def go_on(run: Run) -> int:
    """Train to the end, or until asked to stop: then the number of that signal."""
    progress = run.progress
    say(run, describe(run))
    if run.accelerator.is_main_process:
        # Scalars of steps that are run again are dropped, and of marks that are done again.
        purge = progress.step if progress.marks_due else progress.step + 1
        run.writer = SummaryWriter(str(output(run) / "runs"), purge_step=purge)
    hidden = run.writer is None or not sys.stderr.isatty()
    run.first_step = progress.step
    run.bar = tqdm(total=run.total_steps, initial=progress.step, disable=hidden, dynamic_ncols=True)
    run.started = time.perf_counter()
    with run.writer or contextlib.nullcontext(), run.bar, run.stop:
        try:
            train(run)
        except Stopped as stopped:
            save_last(run)
            return stopped.signal
    return 0


def describe(run: Run) -> str:
    accelerator, config = run.accelerator, run.config
    start = f"resuming at step {run.progress.step}" if run.progress.step else "starting"
    return (
        f"{start}: {config.model} ({run.settings['parameters'] / 1e6:.1f}M parameters) on "
        f"{config.dataset}: {len(run.train):,} training and {len(run.validation):,} validation "
        f"texts, {run.total_steps:,} steps ({run.plan.steps_per_epoch:,} an epoch) of batch "
        f"{run.plan.batch_size}: {accelerator.num_processes} x {accelerator.device.type} "
        f"({engines.SUPPORTED[accelerator.distributed_type.value]}) x "
        f"{config.gradient_accumulation_steps} of at most {config.per_device_train_batch_size}; "
        f"{torch.get_num_threads()} CPU threads each, mixed precision {accelerator.mixed_precision}"
    )


if __name__ == "__main__":
    run_command(main)
