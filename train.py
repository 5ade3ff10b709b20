"""Fine-tune a pretrained Transformer classifier: the training loop.

    accelerate launch train.py                       # IMDb + DistilBERT, as published
    accelerate launch train.py --dataset reviews.csv --model FOLDER_OR_HUB_NAME --output_dir run

In: a `Config`. Out: `best/` (to use), `last/` (to resume), `runs/` (TensorBoard) in --output_dir.
Independent of: the test split, other tasks, benchmarks. A `step` is one optimizer update.
"""

import sys
from pathlib import Path

if sys.flags.safe_path:  # python -P, PYTHONSAFEPATH: the folder of this file is not searched
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from config import Config
from runtime.flags import RUN_AGAIN, parse, parse_or_exit

if __name__ == "__main__":
    GIVEN = parse_or_exit(Config)  # before the imports below, which take seconds

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator

from data import BatchPlan, Splits, eval_batches, load_splits, train_loader
from model import (
    Scores,
    load_model,
    load_tokenizer,
    parameter_groups,
    predict,
    score,
    summed_loss,
    to_device,
    weigh_classes,
)
from runtime import checkpoint
from runtime.checkpoint import Progress
from runtime.draw import sample
from runtime.engines import clip_gradient, make_accelerator, set_passes, wrap_for_engine
from runtime.environment import describe_environment
from runtime.folders import lock_folder, remove_copies
from runtime.hub import full_path, locate
from runtime.monitor import Diverged, Monitor, describe_end, describe_start, describe_validation
from runtime.processes import Stop, Stopped, on_main, one_goes_first, require_same, run_command
from runtime.seen import Seen
from runtime.soft import weigh_texts
from runtime.tables import column, fingerprint


@dataclasses.dataclass
class Run:
    """What the loop works with. The state that a resume restores is in model, optimizer, progress,
    the monitor's sums and the accelerator's loss scale (fp16)."""

    config: Config
    settings: dict  # what a resume is compared with: flags, data, global batch size
    environment: dict  # what runs where: commit, versions, device, threads
    accelerator: Accelerator
    tokenizer: transformers.PreTrainedTokenizerBase
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    train_set: datasets.Dataset
    validation_set: datasets.Dataset
    validation_sample: datasets.Dataset  # the part of it that is evaluated every --eval_steps
    seen: Seen  # hashes of the texts of both, and of what --model had seen, for best/
    notes: list[str]  # what is said of the data before the first step
    plan: BatchPlan  # which rows of train_set are the batch of a step
    text_weights: np.ndarray  # (rows of train_set,) 1, or of the text's class
    summed_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of logits and labels
    total_steps: int
    progress: Progress
    monitor: Monitor  # sums of loss and gradient norm, TensorBoard, the progress line, the clock
    stop: Stop  # whether a signal asked the run to stop

    @property
    def output(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def at_last_step(self) -> bool:
        return self.progress.step == self.total_steps or self.out_of_patience

    @property
    def out_of_patience(self) -> bool:
        patience, every = self.config.early_stopping_patience, self.validate_steps
        since = self.progress.step // every - self.progress.best_step // every
        return patience is not None and since >= patience

    @property
    def validate_steps(self) -> int:
        return self.config.validate_steps or self.plan.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.at_last_step and not self.progress.follow_up_due


# ---------------------------------------------------------------- the loop


def train(run: Run) -> None:
    """Every step from where the run stands to the last, and what follows each."""
    progress, updates = run.progress, range(run.progress.step + 1, run.total_steps + 1)
    micro_batches = iter(
        train_loader(run.train_set, run.plan, updates, run.tokenizer, run.accelerator)
    )
    run.model.train()
    for step in remaining_steps(run):
        if step in updates:
            loss, norm = update(run, step, micro_batches)
            run.monitor.add_step(loss, norm)
            progress.step = step
        follow_up(run)


def remaining_steps(run: Run) -> Iterator[int]:
    """From where the run stands to its end, which --early_stopping_patience may bring forward.

    A run that was stopped in the evaluations after a step begins with these, not with an update.
    """
    while not run.finished:
        yield run.progress.step if run.progress.follow_up_due else run.progress.step + 1


def update(run: Run, step: int, micro_batches) -> tuple[torch.Tensor, torch.Tensor]:
    """One step. Returns two 0-d tensors on the device: this process's part of the mean loss of the
    batch, and the norm of the whole gradient before clipping."""
    config, accelerator, model = run.config, run.accelerator, run.model
    passes, processes = run.plan.passes(step), accelerator.num_processes
    torch.manual_seed(dropout_seed(config.seed, step, accelerator.process_index))
    # Before the forward pass: DeepSpeed updates inside the last backward(), not in step().
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(step, run.total_steps, config)
    # Over all processes and micro-batches: the number of texts, or with --class_weights their sum.
    weight = run.text_weights[run.plan[step]].sum()
    step_loss = torch.zeros((), device=accelerator.device)
    set_passes(accelerator, passes)
    for _ in range(passes):
        run.stop.check()  # raises Stopped, on all processes or on none
        batch = to_device(next(micro_batches), accelerator.device)
        labels = batch.pop("labels")
        with accelerator.accumulate(model):  # processes exchange gradients in the last one only
            logits = model(**batch).logits.float()
            # The parts add up to the mean loss of the whole batch, however it was dealt.
            loss = run.summed_loss(logits, labels) / weight
            # The factors undo backward()'s division by the passes and DDP's mean over processes.
            accelerator.backward(loss * passes * processes)
        step_loss += loss.detach()
    norm = clip_gradient(accelerator, model, config.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return step_loss, norm


def dropout_seed(seed: int, step: int, process: int) -> int:
    """A seed for torch's generators: randomness as a function of (seed, step, process).

    So no random state need be saved, and an evaluation cannot disturb it. Each process draws its
    own masks: with dropout, the result depends on the number of processes.
    """
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0])


def learning_rate(step: int, total_steps: int, config: Config) -> float:
    """The rate of update `step` (from 1), equal to that of transformers' get_scheduler ("constant"
    is its "constant_with_warmup"). With a warm-up the first rate is 0.

    A function of the step: a scheduler prepared by Accelerate advances once per process, so its
    rate reaches 0 at 1/processes of the run (accelerate#2142).
    """
    done = step - 1
    warmup = config.warmup_steps
    warmup = math.ceil(total_steps * warmup) if warmup < 1 else int(warmup)
    if done < warmup:
        return config.learning_rate * done / warmup
    rest = (done - warmup) / max(1, total_steps - warmup)
    decay = {"linear": 1 - rest, "cosine": (1 + math.cos(math.pi * rest)) / 2, "constant": 1.0}
    return config.learning_rate * decay[config.lr_scheduler_type]


# ---------------------------------------------------------------- what follows a step


def follow_up(run: Run) -> None:
    """Evaluations, `best/`, scalars and `last/`, each after the steps at which it is due.

    A signal may stop an evaluation. `last/` is then saved with `follow_up_due`, and the resumed run
    calls this again for the same step. So the monitor's sums may be reset only after the last
    evaluation.
    """
    config, progress, monitor = run.config, run.progress, run.monitor
    step = progress.step
    validation_due = step == run.total_steps or step % run.validate_steps == 0
    progress.follow_up_due = True
    if validation_due:
        monitor.read_sums(run.model, progress)  # raises if anything is not finite
    if step % config.eval_steps == 0:
        scores, _ = evaluate(run, run.validation_sample, "eval_sample")
        monitor.shown["sample accuracy"] = f"{scores.accuracy:.3f}"
    if validation_due:
        keep_best(run, *evaluate(run, run.validation_set, "eval"))
    if step % config.logging_steps == 0 or run.at_last_step:
        monitor.log_window(run, learning_rate(step, run.total_steps, config))
    progress.follow_up_due = False
    save_due = step % config.save_steps == 0
    if validation_due or (save_due and on_main(monitor.can_afford_save)):
        checkpoint.save_last(run)


def evaluate(run: Run, data: datasets.Dataset, name: str) -> tuple[Scores, torch.Tensor]:
    """Scores and logits of the model as it is, in the precision of training; written to
    TensorBoard."""
    # The bare model: DDP's wrapper would broadcast buffers before each forward pass, for nothing.
    model = run.accelerator.unwrap_model(run.model)  # keeps autocast
    size = run.config.per_device_eval_batch_size
    with run.monitor.clock_stopped():
        most = run.config.max_tokens_per_forward
        batches = eval_batches(data, size, run.tokenizer, run.accelerator, most)
        logits = predict(model, batches, len(data), run.accelerator, run.stop.check)
    scores = score(logits, torch.as_tensor(data["labels"][:]))
    run.monitor.write_scores(name, scores, run.progress.step)
    return scores, logits


def keep_best(run: Run, scores: Scores, logits: torch.Tensor) -> None:
    """`best/` is the best by --metric_for_best_model; at a tie the earlier step stays, and a loss
    that is not finite never wins."""
    progress, metric = run.progress, run.config.metric_for_best_model
    new = dataclasses.asdict(scores)
    sign = -1 if metric == "loss" else 1
    better = math.isfinite(scores.loss) and (
        not progress.best_step or sign * new[metric] > sign * progress.best_scores[metric]
    )
    if better:
        progress.best_step, progress.best_scores = progress.step, new
        run.monitor.write_scores("best", scores, progress.step)
        checkpoint.save_best(run, new, logits)
    run.monitor.write_pictures(run, logits)
    run.monitor.say(describe_validation(run, scores, better))


# ---------------------------------------------------------------- set-up


def set_up(config: Config, accelerator: Accelerator, settings: dict | None = None) -> Run:
    """Everything before the first step, cheap checks first. Writes nothing into --output_dir."""
    settings = settings or checkpoint.settings_of(config, accelerator)
    # Now, because the files of the project may be edited while the run lasts.
    environment = on_main(lambda: describe_environment(accelerator))
    environment["local_model"] = Path(config.model).exists()  # or else it is a name on the Hub
    with one_goes_first():  # the others find what was downloaded and tokenized
        locate(config.dataset, "--dataset", config.dataset_revision)  # raises for a wrong path
        tokenizer = load_tokenizer(config.model, config.revision, config.max_length)
        splits = load_splits(config, tokenizer)
        torch.manual_seed(config.seed)  # for the new head
        model, notes = load_model(config, splits.names, tokenizer)
    splits.notes.extend(notes)
    return assemble(config, accelerator, settings, environment, tokenizer, splits, model)


def assemble(
    config: Config,
    accelerator: Accelerator,
    settings: dict,
    environment: dict,
    tokenizer: transformers.PreTrainedTokenizerBase,
    splits: Splits,
    model: torch.nn.Module,
) -> Run:
    """A run at step 0 of these texts and this model, which recipes/ may give another objective."""
    settings |= {
        "data": fingerprint(splits.train, splits.validation),
        "classes": splits.names,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    require_same(
        settings["data"],
        f"--dataset {config.dataset}: process {accelerator.process_index} reads other texts than "
        "the main one, so their batches differ; give all machines the same data",
    )
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    model, optimizer = wrap_for_engine(accelerator, config, model, optimizer)
    plan = BatchPlan(
        column(splits.train, "length").to_numpy(),
        settings["global_batch_size"],
        config.seed,
        config.train_sampling_strategy,
        accelerator.num_processes,
        config.gradient_accumulation_steps,
        config.max_tokens_per_forward,
    )
    labels = column(splits.train, "labels").to_numpy()
    weights = weigh_classes(labels, len(splits.names), config.class_weights == "balanced")
    total_steps = config.max_steps
    if total_steps == -1:
        total_steps = math.ceil(config.num_train_epochs * plan.steps_per_epoch)
    return Run(
        config=config,
        settings=settings,
        environment=environment,
        accelerator=accelerator,
        tokenizer=tokenizer,
        model=model,
        optimizer=optimizer,
        train_set=splits.train,
        validation_set=splits.validation,
        validation_sample=sample(splits.validation, config.eval_samples, config.validation_seed),
        seen=splits.seen,
        notes=splits.notes,
        plan=plan,
        text_weights=weigh_texts(splits.train, weights),
        summed_loss=summed_loss(weights, config.label_smoothing_factor, accelerator.device),
        total_steps=total_steps,
        progress=Progress(),
        monitor=Monitor(config, accelerator, total_steps),
        stop=Stop(accelerator.num_processes),
    )


def start_or_resume(config: Config, accelerator: Accelerator, set_up=set_up) -> Run:
    """A run that stands where `last/` says, or at step 0, with a first `last/` written."""
    settings = checkpoint.settings_of(config, accelerator)
    state = on_main(lambda: checkpoint.find_last(config, settings))
    if state:  # keep the run's global batch, also on another number of processes
        size = state["settings"]["global_batch_size"]
        settings["global_batch_size"] = size
        config = checkpoint.keep_global_batch(size, config, accelerator.num_processes)
    run = set_up(config, accelerator, settings)
    if state:
        checkpoint.load_last(run, state)
    if not run.finished:
        on_main(lambda: checkpoint.require_room_for_saves(run.output, run.settings))
    if not state:  # there is nothing to resume, or --overwrite was given (see find_last)
        on_main(lambda: checkpoint.delete_run(run.output))
        checkpoint.save_last(run)  # so that a run killed before its first step is resumed, too
    return run


# ---------------------------------------------------------------- the command

IF_OUT_OF_MEMORY = (
    "give --max_tokens_per_forward N (lower, if it was given; not with DeepSpeed), "
    "--gradient_checkpointing, a lower --per_device_train_batch_size with as much more "
    "--gradient_accumulation_steps, a lower --per_device_eval_batch_size (the run then resumes), "
    "or another --output_dir with a lower --max_length"
)


def conclude(run: Run) -> None:
    """Remove the copies that a crash would have needed, and say what to do next.

    Raises `Diverged` if no validation had a finite loss, so that there is no `best/`.
    """
    if not run.progress.best_step:
        raise Diverged("no validation loss was finite, so no best/; lower --learning_rate")
    if run.accelerator.is_main_process:
        for name in ("best", "last"):
            remove_copies(run.output / name)
    run.monitor.say(describe_end(run))


def main(argv=None) -> int:
    return fine_tune(parse(Config, argv))


def fine_tune(config: Config, set_up=set_up, train=train, conclude=conclude) -> int:
    """The exit status: 0, or 128 + the signal that asked the run to stop.

    A recipe of another objective gives functions of its own for the last three.
    """
    own = config.validation_dataset
    config = dataclasses.replace(
        config, dataset=full_path(config.dataset), validation_dataset=own and full_path(own)
    )
    accelerator = make_accelerator(config)
    with contextlib.ExitStack() as held:
        # The main process holds the lock until the run has ended.
        on_main(lambda: held.enter_context(lock_folder(Path(config.output_dir))))
        run = start_or_resume(config, accelerator, set_up)
        if run.finished:
            run.monitor.say(f"{run.output} holds a finished run; another --output_dir starts anew")
        else:
            number = train_until_stopped(run, train)
            if number:
                return 128 + number
        conclude(run)
    return 0


def train_until_stopped(run: Run, train=train) -> int:
    """Train to the end (0), or until a signal asks to stop (its number), with `last/` saved."""
    for line in (*run.notes, describe_start(run)):
        run.monitor.say(line)
    with run.monitor.watch(run), run.stop:
        try:
            train(run)
        except Stopped as stopped:
            checkpoint.save_last(run)
            run.monitor.say(f"stopped at step {run.progress.step}; to resume, {RUN_AGAIN}")
            return stopped.signal
    return 0


if __name__ == "__main__":
    run_command(lambda: fine_tune(GIVEN), IF_OUT_OF_MEMORY)
