"""What is watched while a run trains: sums of the steps, the finite check, scalars, the clock.

In: loss and gradient norm of each step, on the device. Out: TensorBoard's scalars, the progress
line, a `UserError` when something is no longer finite. Independent of: how a step is made.
"""

import contextlib
import dataclasses
import math
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from runtime.board import write_about, write_validation
from runtime.checkpoint import EVENTS, SUMS, Progress
from runtime.engines import ENGINES, all_finite
from runtime.flags import UserError
from runtime.notes import largest_class
from runtime.tables import column


class Diverged(UserError):
    """A loss, a gradient or a weight is no longer finite."""


class Monitor:
    """Sums of the steps since the last scalars, and what is made of them.

    The sums stay on the device: reading one per step (`.item()`) would make the host wait for it.
    """

    def __init__(self, config, accelerator, total_steps: int):
        self.accelerator = accelerator
        self.output = Path(config.output_dir)
        self.max_save_share = config.max_save_share
        self.total_steps = total_steps
        self.sums = torch.tensor(SUMS, device=accelerator.device)  # of this process
        self.writer: SummaryWriter | None = None  # on the main process only
        self.bar = tqdm(disable=True)
        self.shown: dict[str, str] = {}  # beside the bar
        self.first_step = 0  # the step at which this process started, or resumed
        self.started = 0.0  # clock at the start of the window, moved on by evaluations and saves
        self.saved_at = 0.0  # clock after the last save, and the seconds it took
        self.save_seconds = 0.0

    @contextlib.contextmanager
    def watch(self, run):
        """TensorBoard, the progress bar and the clock, while a run (train.Run) trains."""
        progress = run.progress
        if self.accelerator.is_main_process:
            # Drop the scalars of steps that come again, and of a follow-up that comes again.
            purge = progress.step if progress.follow_up_due else progress.step + 1
            self.writer = SummaryWriter(
                str(self.output / "runs"), purge_step=purge, filename_suffix=EVENTS
            )
            write_about(self.writer, run.config, run.environment, progress.step)
        hidden = self.writer is None or not sys.stderr.isatty()
        self.first_step = progress.step
        self.bar = tqdm(
            total=self.total_steps, initial=progress.step, disable=hidden, dynamic_ncols=True
        )
        self.started = time.perf_counter()
        with self.writer or contextlib.nullcontext(), self.bar:
            yield

    # ------------------------------------------------------------ sums

    def add_step(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Count one step: this process's part of the mean loss, the norm of the whole gradient.

        A norm that is not finite is an fp16 overflow, whose update the scaler skipped, or the end
        of the run: `read_sums` decides.
        """
        finite = norm.isfinite()
        self.sums += torch.stack([loss.where(finite, 0), norm.where(finite, 0), ~finite])
        self.bar.update()

    def restore_sums(self, saved: list[list[float]]) -> None:
        """The sums of each process, from `last/`, on any number of processes."""
        sums, processes = torch.tensor(saved), self.accelerator.num_processes
        if len(sums) == processes:
            sums = sums[self.accelerator.process_index]
        else:  # the loss is a sum over processes; the others are the same on each
            sums = sums.mean(0) * torch.tensor([len(sums) / processes, 1, 1])
        self.sums.copy_(sums)

    def read_sums(self, model, progress: Progress) -> torch.Tensor:
        """(processes, 3): `SUMS` of each process since the last scalars. Waits for the device.

        Raises `UserError` if a loss, a gradient or a weight is not finite. It is called before
        anything is saved, so a save is always finite. An overflow in fp16 is no error: the scaler
        skips the update and halves its scale. A scale that no usual gradient needs (1e-4, as in
        fairseq) means that the training diverges.
        """
        accelerator = self.accelerator
        weights = all_finite(model)
        gathered = accelerator.gather(torch.cat([self.sums, weights[None]])[None]).cpu().double()
        sums, weights = gathered[:, :-1], gathered[:, -1]
        scaler = accelerator.scaler
        overflow = scaler.get_scale() < 1e-4 if scaler else sums[:, 2].any()
        if overflow or not sums.isfinite().all() or not weights.all():
            raise Diverged(
                f"a loss, gradient or weight was NaN or infinite between steps "
                f"{progress.window_start + 1} and {progress.step} of {self.total_steps}; last/ and "
                f"best/ in {self.output} are of earlier steps; start anew, with --overwrite or in "
                "another --output_dir, and lower --learning_rate"
            )
        return sums

    # ------------------------------------------------------------ scalars and the progress line

    def log_window(self, run, learning_rate: float) -> None:
        """Write the scalars of the steps of a run since the last ones, and begin a new window."""
        progress, plan = run.progress, run.plan
        sums = self.read_sums(run.model, progress)
        window = range(progress.window_start + 1, progress.step + 1)
        timed = range(max(window.start, self.first_step + 1), window.stop)  # after a resume
        seconds = time.perf_counter() - self.started
        counts = plan.count(window)
        done = counts if timed == window else plan.count(timed)
        scalars = {
            **self.means(sums, len(window)),
            "train/learning_rate": learning_rate,
            "train/padding_fraction": 1 - counts["tokens"] / counts["padded_tokens"],
            "train/epoch": progress.step / plan.steps_per_epoch,
        }
        if timed:  # else the run resumed with the evaluations after the window's last step
            scalars["train/examples_per_second"] = done["texts"] / seconds
            scalars["train/tokens_per_second"] = done["tokens"] / seconds
        self.write(scalars, progress.step)
        self.show(scalars, progress.step, seconds / len(timed) if timed else None)
        self.sums.zero_()
        progress.window_start = progress.step
        self.started = time.perf_counter()

    def means(self, sums: torch.Tensor, steps: int) -> dict[str, float]:
        """Loss and gradient norm, mean over the updates of so many steps; none if none was made."""
        # Each process has its part of the loss; all have the norm of the whole gradient.
        loss, (_, norm, skipped) = sums[:, 0].sum().item(), sums[0].tolist()
        scalars = {"train/skipped_updates": skipped} if self.accelerator.scaler else {}
        if updates := steps - int(skipped):
            scalars |= {"train/loss": loss / updates, "train/grad_norm": norm / updates}
        return scalars

    def show(self, scalars: dict[str, float], step: int, seconds_per_step: float | None) -> None:
        """The progress bar's figures; without a terminal, a line instead."""
        loss = scalars.get("train/loss", math.nan)
        self.shown["loss"] = f"{loss:.4f}"
        if seconds_per_step is not None:
            self.shown["texts/s"] = f"{scalars['train/examples_per_second']:.1f}"
        self.bar.set_postfix(self.shown, refresh=False)
        if self.bar.disable:
            figures = ", ".join(f"{name} {value}" for name, value in self.shown.items())
            if seconds_per_step is not None:
                left = (self.total_steps - step) * seconds_per_step
                figures += f", {tqdm.format_interval(left)} left"
            self.say(f"step {step}/{self.total_steps}: {figures}")
            self.shown.clear()  # an accuracy belongs to its own step alone

    def write(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items() if self.writer else ():
            self.writer.add_scalar(name, value, step)

    def write_scores(self, name: str, scores, step: int) -> None:
        values = {"loss": scores.loss, "accuracy": scores.accuracy, "macro_f1": scores.macro_f1}
        self.write({f"{name}/{metric}": value for metric, value in values.items()}, step)

    def write_pictures(self, run, logits: torch.Tensor) -> None:
        """Of a validation of the whole split."""
        if self.writer:
            labels = torch.as_tensor(run.validation_set["labels"][:])
            with self.clock_stopped():
                names = run.settings["classes"]
                write_validation(self.writer, logits, labels, names, run.progress.step)

    def flush(self) -> None:
        """To be called before each save: TensorBoard flushes every two minutes, and a resume must
        find all scalars up to the save."""
        if self.writer:
            self.writer.flush()

    def say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(line)  # above the bar, if there is one
            sys.stdout.flush()

    # ------------------------------------------------------------ the clock

    @contextlib.contextmanager
    def clock_stopped(self):
        """Take evaluations and saves out of the time that the speed scalars divide by."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()  # the steps before end in their own time
        begun = time.perf_counter()
        yield
        self.started += time.perf_counter() - begun

    @contextlib.contextmanager
    def save_timed(self):
        begun = time.perf_counter()
        with self.clock_stopped():
            yield
        self.saved_at = time.perf_counter()
        self.save_seconds = self.saved_at - begun

    def can_afford_save(self) -> bool:
        """Whether a save that takes as long as the previous one keeps within --max_save_share.

        On a GPU 200 steps may take four seconds and a save one. The first save after a resume is
        always affordable. The clocks of processes differ: one must decide for all.
        """
        since = time.perf_counter() - self.saved_at
        return self.save_seconds <= self.max_save_share * (since + self.save_seconds)


def describe_start(run) -> str:
    """The line that a run (train.Run) begins with."""
    accelerator, config = run.accelerator, run.config
    processes, passes = accelerator.num_processes, config.gradient_accumulation_steps
    engine = ENGINES[accelerator.distributed_type.value]
    engine = f" ({engine})" if engine else ""
    threads = torch.get_num_threads()
    each = f"{threads} CPU {'thread' if threads == 1 else 'threads'}"
    parts = [
        f"{config.model} ({run.settings['parameters'] / 1e6:.1f}M parameters) on {config.dataset}",
        f"{len(run.train_set):,} training and {len(run.validation_set):,} validation texts",
        f"{run.total_steps:,} steps of {run.plan.batch_size} texts, "
        f"{run.plan.steps_per_epoch:,} per epoch",
        f"{'one process' if processes == 1 else f'{processes} processes'}{engine} on "
        f"{accelerator.device.type}, {each}{'' if processes == 1 else ' each'}",
        {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
    ]
    if most := config.max_tokens_per_forward:
        parts.append(f"as few passes of at most {most:,} tokens as a step needs")
    elif processes * passes > 1:
        size = config.per_device_train_batch_size
        parts.append(f"per process and step {passes} x at most {size} texts")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    changed = [name for name in OBJECTIVE if getattr(config, name) != defaults[name]]
    parts += [f"--{name} {getattr(config, name)}" for name in changed]
    start = f"resuming at step {run.progress.step}" if run.progress.step else "starting"
    return f"{start}: {'; '.join(parts)}"


# Flags that decide what is learnt and which step is kept: said if they are not the defaults.
OBJECTIVE = ("class_weights", "label_smoothing_factor")
OBJECTIVE += ("metric_for_best_model", "early_stopping_patience")


def describe_validation(run, scores, better: bool) -> str:
    """The line on a validation, which also says when nothing has been learnt.

    Where classes are uneven, a model that always answers the largest looks like a trained one.
    """
    line = (
        f"step {run.progress.step}/{run.total_steps}: validation accuracy {scores.accuracy:.4f}, "
        f"macro-F1 {scores.macro_f1:.4f}, loss {scores.loss:.4f} on {scores.examples:,} texts"
        + f", written to {run.output / 'best'}"
        * better
    )
    labels = column(run.validation_set, "labels").to_numpy()
    _, largest = largest_class(labels)
    if largest == 1:
        return f"{line}; these are all of one class, which any model that answers it has right"
    f1_of_largest = 2 * largest / (1 + largest) / len(set(labels))
    if scores.accuracy > largest:
        return line
    if scores.macro_f1 > f1_of_largest + ROUNDING:
        return f"{line}; the largest class alone has an accuracy of {largest:.4f}"
    remedy = ": raise --learning_rate, or train longer" * run.at_last_step
    return f"{line}; no more than its largest class ({largest:.4f}): nothing learnt yet{remedy}"


ROUNDING = 1e-9  # of a mean of fractions; a single text more that is right changes it by more


def describe_end(run) -> str:
    """The line that a run (train.Run) ends with."""
    progress, best = run.progress, run.progress.best_scores
    _, largest = largest_class(column(run.validation_set, "labels").to_numpy())
    words = [python_here(), name_here(EVAL), "--ckpt", str(run.output / "best")]
    if Path(run.config.dataset).is_file():  # which has no split for testing
        words += ["--split", "validation"]
    early = f"ended at step {progress.step}, out of patience; " * (progress.step < run.total_steps)
    return (
        f"{early}best/ is step {progress.best_step} of {run.total_steps}, validation accuracy "
        f"{best['accuracy']:.4f} (of the largest class alone: {largest:.4f}), macro-F1 "
        f"{best['macro_f1']:.4f}, loss {best['loss']:.4f} on {best['examples']:,} texts; next: "
        f"{shlex.join(words)}"
    )


EVAL = Path(__file__).parent.parent / "eval.py"


def python_here() -> str:
    """The interpreter that runs this, as one would type it."""
    found = shutil.which("python")
    is_this = found and os.path.dirname(found) == os.path.dirname(sys.executable)
    return "python" if is_this else name_here(Path(sys.executable))


def name_here(path: Path) -> str:
    """`path` from the current folder on, if it is in it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
