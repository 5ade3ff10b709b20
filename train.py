"""Fine-tune a pretrained Transformer classifier: the training loop.

    accelerate launch train.py                       # IMDb + DistilBERT, as published
    accelerate launch train.py --dataset reviews.csv --model FOLDER_OR_HUB_NAME --output_dir run

In: a `Config`. Out: `best/` (to use), `last/` (to resume), `runs/` (TensorBoard) in --output_dir.
Independent of: the test split, other tasks, benchmarks. A `step` is one optimizer update.
"""

from config import Config
from runtime.flags import RUN_AGAIN, UserError, answer_at_once, parse

if __name__ == "__main__":
    answer_at_once(Config)  # --help and mistyped flags, before the imports below take seconds

import contextlib
import dataclasses
import math
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from torch.nn import functional as F

from data import BatchPlan, Collator, eval_batches, load_splits, sample, train_loader
from model import Scores, load_model, load_tokenizer, parameter_groups, predict, score, to_device
from runtime import checkpoint
from runtime.checkpoint import Progress
from runtime.engines import clip_gradient, make_accelerator, wrap_for_engine
from runtime.environment import describe_environment
from runtime.folders import lock_folder, remove_copies
from runtime.monitor import Monitor, describe_end, describe_start
from runtime.processes import Stop, Stopped, on_main, one_goes_first, require_same, run_command
from runtime.tables import column, fingerprint


@dataclasses.dataclass
class Run:
    """What the loop works with. Only `progress`, the weights and the optimizer change."""

    config: Config
    settings: dict  # what must not change on a resume: flags, data, global batch size
    environment: dict  # what runs where: commit, versions, device, threads
    accelerator: Accelerator
    tokenizer: transformers.PreTrainedTokenizerBase
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    train_set: datasets.Dataset
    validation_set: datasets.Dataset
    validation_sample: datasets.Dataset  # the part of it that is evaluated every --eval_steps
    plan: BatchPlan  # which rows of train_set are the batch of a step
    total_steps: int
    progress: Progress
    monitor: Monitor  # sums of the steps, TensorBoard, the progress line, the clock
    stop: Stop  # whether a signal asked the run to stop

    @property
    def output(self) -> Path:
        return Path(self.config.output_dir)


# ---------------------------------------------------------------- the loop


def train(run: Run) -> None:
    """Every step from where the run stands to the last, and what follows each.

    A run that was stopped in an evaluation resumes with what follows the step before it.
    """
    progress, accumulation = run.progress, run.config.gradient_accumulation_steps
    share = run.accelerator.process_index, run.accelerator.num_processes
    steps, collator = range(progress.step + 1, run.total_steps + 1), Collator(run.tokenizer)
    loader = train_loader(run.train_set, run.plan, steps, accumulation, *share, collator)
    micro_batches = iter(loader)
    run.model.train()
    for step in range(progress.step + (not progress.follow_up_due), run.total_steps + 1):
        if step > progress.step:
            loss, norm = update(run, step, micro_batches)
            run.monitor.add_step(loss, norm)
            progress.step = step
        follow_up(run)


def update(run: Run, step: int, micro_batches) -> tuple[torch.Tensor, torch.Tensor]:
    """One step: (this process's part of the mean loss, norm of the whole gradient), both ()."""
    config, accelerator, model = run.config, run.accelerator, run.model
    accumulation, processes = config.gradient_accumulation_steps, accelerator.num_processes
    torch.manual_seed(dropout_seed(config.seed, step, accelerator.process_index))
    # The rate is set before the forward pass: under DeepSpeed the last backward pass updates.
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(step, run.total_steps, config)
    examples = len(run.plan[step])  # over all processes and micro-batches
    step_loss = torch.zeros((), device=accelerator.device)
    for _ in range(accumulation):
        run.stop.check()
        batch = to_device(next(micro_batches), accelerator.device)
        labels = batch.pop("labels")
        with accelerator.accumulate(model):  # processes exchange gradients in the last one only
            logits = model(**batch).logits.float()
            # A sum divided by the examples of the whole batch is its mean, however it was dealt.
            loss = F.cross_entropy(logits, labels, reduction="sum") / examples
            # backward() divides by the accumulation, and gradients are averaged over processes.
            accelerator.backward(loss * accumulation * processes)
        step_loss += loss.detach()
    norm = clip_gradient(accelerator, model, config.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return step_loss, norm


def dropout_seed(seed: int, step: int, process: int) -> int:
    """A seed for torch's generators: randomness as a function of (seed, step, process).

    So there is no random state to save, to lose in a resume, or to disturb by an evaluation.
    """
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0])


def learning_rate(step: int, total_steps: int, config: Config) -> float:
    """The rate of update `step` (from 1), as transformers' get_scheduler has it: the first is 0.

    A function of the step: a scheduler prepared by Accelerate advances once per process, so its
    rate reaches 0 at 1/processes of the run (accelerate#2142).
    """
    done = step - 1
    share = config.warmup_steps < 1
    warmup = math.ceil(total_steps * config.warmup_steps) if share else int(config.warmup_steps)
    if done < warmup:
        return config.learning_rate * done / warmup
    rest = (done - warmup) / max(1, total_steps - warmup)
    decay = {"linear": 1 - rest, "cosine": (1 + math.cos(math.pi * rest)) / 2, "constant": 1.0}
    return config.learning_rate * decay[config.lr_scheduler_type]


# ---------------------------------------------------------------- what follows a step


def follow_up(run: Run) -> None:
    """What is due after some steps: evaluations, `best/`, scalars, `last/`.

    An evaluation may end in `Stopped`, so evaluations come before everything that changes the sums:
    with `follow_up_due` in `last/`, a resume does all of it again, and its scalars replace those
    that were already written.
    """
    config, progress, monitor = run.config, run.progress, run.monitor
    step, finished = progress.step, progress.step == run.total_steps
    validates = finished or step % (config.validate_steps or run.plan.steps_per_epoch) == 0
    progress.follow_up_due = True
    if validates:
        monitor.read_sums(run.model, progress)  # raises if a step was not finite, before best/
    if step % config.eval_steps == 0:
        scores = evaluate(run, run.validation_sample, "validation_sample")
        monitor.shown["sample accuracy"] = f"{scores.accuracy:.3f}"
    if validates:
        keep_best(run, evaluate(run, run.validation_set, "validation"))
    if step % config.logging_steps == 0 or finished:
        parts = run.accelerator.num_processes * config.gradient_accumulation_steps
        rate = learning_rate(step, run.total_steps, config)
        monitor.log_window(run.model, progress, run.plan, parts, rate)
    progress.follow_up_due = False
    if validates or (step % config.save_steps == 0 and can_afford_save(run)):
        checkpoint.save_last(run)


def evaluate(run: Run, data: datasets.Dataset, name: str) -> Scores:
    """Scores of the model as it is, in the precision of training; written to TensorBoard."""
    accelerator, size = run.accelerator, run.config.per_device_eval_batch_size
    # The bare model: DDP's wrapper would broadcast buffers before each forward pass, for nothing.
    model = accelerator.unwrap_model(run.model)
    share = accelerator.process_index, accelerator.num_processes
    with run.monitor.clock_stopped():
        batches = eval_batches(data, size, *share, Collator(run.tokenizer))
        logits = predict(model, batches, len(data), accelerator, run.stop.check)
    scores = score(logits, torch.as_tensor(data["labels"][:]))
    scalars = {f"{name}/loss": scores.loss, f"{name}/accuracy": scores.accuracy}
    run.monitor.write(scalars, run.progress.step)
    return scores


def keep_best(run: Run, scores: Scores) -> None:
    """`best/` is the earliest highest validation accuracy; neither a tie nor a NaN replaces it."""
    progress = run.progress
    better = scores.accuracy > progress.best_accuracy and math.isfinite(scores.loss)
    if better:
        progress.best_step, progress.best_accuracy = progress.step, scores.accuracy
        checkpoint.save_best(run, dataclasses.asdict(scores))
    run.monitor.say(
        f"step {progress.step}/{run.total_steps}: validation accuracy {scores.accuracy:.4f} on "
        f"{scores.examples:,} texts" + (", written to best/" if better else "")
    )


def can_afford_save(run: Run) -> bool:
    affordable = run.monitor.can_afford_save(run.config.max_save_share)
    return bool(run.stop.largest(int(affordable)))


# ---------------------------------------------------------------- set-up


def set_up(config: Config, accelerator: Accelerator, settings: dict | None = None) -> Run:
    """Everything before the first step, cheap checks first. Writes nothing into --output_dir."""
    settings = settings or checkpoint.settings_of(config, accelerator)
    with one_goes_first():  # the others find what was downloaded and tokenized
        tokenizer = load_tokenizer(config.model, config.revision, config.max_length)
        train_set, validation_set = load_splits(config, tokenizer)
        names = train_set.features["labels"].names
        torch.manual_seed(config.seed)  # for the new head
        dropouts = config.attention_dropout, config.dropout
        model = load_model(config.model, names, config.revision, *dropouts)
    settings |= {
        "data": fingerprint(train_set, validation_set),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    require_same(
        settings["data"],
        f"--dataset {config.dataset}: process {accelerator.process_index} reads other texts than "
        "the main one, so their batches differ; give all machines the same data",
    )
    if config.torch_compile:
        # Its cuts at DDP's buckets fail if lengths vary (torch 2.13: 'int' has no 'meta').
        torch._dynamo.config.optimize_ddp = False
        model.compile()
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    model, optimizer = wrap_for_engine(accelerator, config, model, optimizer)
    lengths, batch = column(train_set, "length").to_numpy(), settings["global_batch_size"]
    plan = BatchPlan(lengths, batch, config.seed, config.train_sampling_strategy)
    epochs = math.ceil(config.num_train_epochs * plan.steps_per_epoch)
    total_steps = config.max_steps if config.max_steps > 0 else epochs
    return Run(
        config=config,
        settings=settings,
        environment=describe_environment(accelerator),
        accelerator=accelerator,
        tokenizer=tokenizer,
        model=model,
        optimizer=optimizer,
        train_set=train_set,
        validation_set=validation_set,
        validation_sample=sample(validation_set, config.eval_samples, config.validation_seed),
        plan=plan,
        total_steps=total_steps,
        progress=Progress(),
        monitor=Monitor(accelerator, Path(config.output_dir), total_steps),
        stop=Stop(accelerator.num_processes),
    )


def start_or_resume(config: Config, accelerator: Accelerator) -> Run:
    """A run that stands where `last/` says, or at step 0, with a first `last/` written."""
    settings = checkpoint.settings_of(config, accelerator)
    state = on_main(lambda: checkpoint.find_last(config, settings))
    if state:
        settings["global_batch_size"] = state["settings"]["global_batch_size"]
        config = checkpoint.keep_global_batch(settings, config, accelerator.num_processes)
    run = set_up(config, accelerator, settings)
    on_main(lambda: checkpoint.require_room_for_saves(run.output, settings))
    if state:
        checkpoint.load_last(run, state)
    else:
        on_main(lambda: checkpoint.delete_run(run.output))
        checkpoint.save_last(run)  # so that a run killed before its first step is resumed, too
    return run


# ---------------------------------------------------------------- the command


def main(argv=None) -> int:
    """The exit status: 0, or 128 + the signal that asked the run to stop."""
    config = parse(Config, argv)
    accelerator = make_accelerator(config)
    with contextlib.ExitStack() as held:
        on_main(lambda: held.enter_context(lock_folder(Path(config.output_dir))))
        run = start_or_resume(config, accelerator)
        if run.progress.step == run.total_steps and not run.progress.follow_up_due:
            run.monitor.say(f"{run.output} holds a finished run; --overwrite starts anew")
        else:
            signal = train_until_stopped(run)
            if signal:
                return 128 + signal
        conclude(run)
    return 0


def train_until_stopped(run: Run) -> int:
    """Train to the end (0), or until a signal asks to stop (its number), with `last/` saved."""
    run.monitor.say(describe_start(run))
    with run.monitor.watch(run.progress), run.stop:
        try:
            train(run)
        except Stopped as stopped:
            checkpoint.save_last(run)
            run.monitor.say(f"stopped at step {run.progress.step}; to resume, {RUN_AGAIN}")
            return stopped.signal
    return 0


def conclude(run: Run) -> None:
    """Tidy up after the last step, and say what to do next."""
    if not run.progress.best_step:
        raise UserError(
            "no validation loss was finite, so there is no best/; lower --learning_rate"
        )
    if run.accelerator.is_main_process:
        for name in ("best", "last"):
            remove_copies(run.output / name)
    run.monitor.say(describe_end(run))


if __name__ == "__main__":
    run_command(main)
