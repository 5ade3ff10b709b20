"""A run: its parts, where it stands, how that is written and how it is gone on with.

In: a `Run`; `last/`. Out: `last/` (to resume) and `best/` (to use); a `Run` as it was saved.
Refuses to know: when to save, and what a step does.
"""

import contextlib
import dataclasses
import json
import time
from functools import partial
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import checkpoint
from config import Config, UserError, changed_settings
from data import BatchPlan
from engines import all_finite, gather_moments, gather_weights, scatter_state
from eval import Scores
from processes import Stop, on_main


@dataclasses.dataclass
class Progress:
    """Where a run stands: with the weights and the optimizer's moments, all that it takes to go on.

    There is no random state: dropout is seeded by (seed, step, process), the order of reviews by
    (seed, epoch). There is no schedule either: the rate is a function of the step.
    """

    step: int = 0
    marks_due: bool = False  # stopped inside an evaluation after `step`: a resume does it first
    best_step: int = 0
    best_accuracy: float = -1.0
    window_start: int = 0  # the step of the last scalars; the sums run from there
    sums: list[list[float]] = dataclasses.field(default_factory=lambda: [SUMS])  # a process each


SUMS = [0.0, 0.0, 0.0]  # loss, gradient norm, updates whose gradient was not finite


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
    sums: torch.Tensor  # this process's part of progress.sums, on the device
    stop: Stop
    writer: SummaryWriter | None = None  # on the main process only
    bar: tqdm | None = None
    shown: dict[str, str] = dataclasses.field(default_factory=dict)  # beside the bar
    first_step: int = 0  # of this life of the run: where it started or was resumed
    started: float = 0.0  # clock at the start of the window, evaluations and saves taken out
    saved_at: float = 0.0  # clock when last/ was written, and the seconds that took
    save_seconds: float = 0.0


def output(run: Run) -> Path:
    return Path(run.config.output_dir)


@contextlib.contextmanager
def clock_stopped(run: Run):
    """Evaluations and saves are no part of the time that the speed scalars divide by."""
    if run.accelerator.device.type == "cuda":
        torch.cuda.synchronize()  # the steps before are done in their own time
    begun = time.perf_counter()
    yield
    run.started += time.perf_counter() - begun


def read_sums(run: Run) -> torch.Tensor:
    """(processes, 3): `SUMS` of each, since the last scalars. Waits for the device.

    Raises `UserError` if a loss, a gradient or a weight is not finite; called before anything is
    kept, so that nothing after it is. A step that overflows in fp16 is no error: the scaler skips
    its update and halves its scale. At a scale that no usual gradient needs, it is the training
    that diverges (fairseq has the same limit).
    """
    accelerator, progress = run.accelerator, run.progress
    weights = all_finite(run.model)
    gathered = accelerator.gather(torch.cat([run.sums, weights[None]])[None]).cpu().double()
    sums, weights = gathered[:, :-1], gathered[:, -1]
    scaler = accelerator.scaler
    overflow = scaler.get_scale() < 1e-4 if scaler else sums[:, 2].any()
    if overflow or not sums.isfinite().all() or not weights.all():
        raise UserError(
            f"a loss, gradient or weight was NaN or infinite between steps "
            f"{progress.window_start + 1} and {progress.step} of {run.total_steps}; last/ and "
            f"best/ in {output(run)} are of steps before; start anew, with --overwrite or in "
            "another --output_dir, and lower --learning_rate"
        )
    return sums


# ---------------------------------------------------------------- writing


def save_last(run: Run) -> None:
    """`last/`: all that `resume` reads."""
    run.progress.sums = read_sums(run).tolist()
    begun = time.perf_counter()
    with clock_stopped(run):
        weights = gather_weights(run.accelerator, run.model)
        moments = gather_moments(run.accelerator, run.model, run.optimizer)
        size = 3 * weight_bytes(run)
        fill = partial(fill_last, run, weights, moments)
        on_main(lambda: checkpoint.write(output(run) / "last", fill, size))
    run.saved_at = time.perf_counter()
    run.save_seconds = run.saved_at - begun


def fill_last(run: Run, weights: dict, moments: dict, folder: Path) -> None:
    if run.writer:
        run.writer.flush()  # every two minutes by itself; a resume must find all up to `step`
    flat = {f"{key} {name}": value for name, of in moments.items() for key, value in of.items()}
    for name, tensors in (("model", weights), ("optimizer", flat)):
        save_file(unshared(tensors), folder / f"{name}.safetensors")
    scaler = run.accelerator.scaler
    state = {
        "progress": dataclasses.asdict(run.progress),
        "settings": run.settings,
        "scaler": scaler.state_dict() if scaler else {},
    }
    (folder / "progress.json").write_text(json.dumps(state, indent=1))


def save_best(run: Run, scores: Scores) -> None:
    """`best/`: what `from_pretrained` and `pipeline("text-classification", "best/")` load."""
    with clock_stopped(run):
        weights = gather_weights(run.accelerator, run.model)
        fill = partial(fill_best, run, weights, scores)
        on_main(lambda: checkpoint.write(output(run) / "best", fill, weight_bytes(run)))


def fill_best(run: Run, weights: dict, scores: Scores, folder: Path) -> None:
    model = run.accelerator.unwrap_model(run.model)
    model.save_pretrained(folder, state_dict=weights)
    model.config.dtype = "float32"  # what is saved, whatever DeepSpeed made of the model
    model.config.save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)
    config = {name: run.settings[name] for name in dataclasses.asdict(run.config)}
    (folder / "training_config.json").write_text(json.dumps(config, indent=1))
    validation = {
        "step": run.progress.step,
        **dataclasses.asdict(scores),
        "precision": run.accelerator.mixed_precision,
        "device": run.accelerator.device.type,
    }
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


def unshared(tensors: dict) -> dict:
    """safetensors takes no memory that has gaps or two names (tied weights): copies, then."""
    seen = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor.contiguous()
        seen.add(memory)
    return tensors


def weight_bytes(run: Run) -> int:
    """What a save of the weights takes, with a megabyte for the files beside them."""
    return 2**20 + 4 * run.settings["parameters"]


def need_room(run: Run) -> None:
    """Raises `UserError` unless two copies each of `last/` and `best/` fit on the disk."""
    there = sum(
        path.lstat().st_size
        for name in ("last", "best")
        for copy in (output(run) / name, checkpoint.spare(output(run) / name))
        for path in copy.glob("*")
    )
    checkpoint.need_room(output(run), 2 * (3 + 1) * weight_bytes(run) - there)


# ---------------------------------------------------------------- going on


def settings_of(config: Config, accelerator: Accelerator) -> dict:
    """What must not change on a resume, as far as it is known before the data are read."""
    return {
        **dataclasses.asdict(config),
        "mixed_precision": accelerator.mixed_precision,
        "global_batch_size": config.per_device_train_batch_size
        * config.gradient_accumulation_steps
        * accelerator.num_processes,
    }


def find_last(config: Config, settings: dict) -> dict | None:
    """What `last/progress.json` holds of the run to go on with; None for a new run.

    Raises `UserError` for a `last/` of other settings, for a `best/` that is not the one of its
    record, and for a folder that holds what no `last/` accounts for.
    """
    folder = Path(config.output_dir)
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
    if last is None:
        return None
    state = json.loads((last / "progress.json").read_text())
    refuse_changes(last, state["settings"], settings)

    def of_best_step(best: Path) -> bool:
        # Killed after best/ of step 400 was written and before last/, we are back at step 200: the
        # best so far is that of step 200, which is best/'s spare, and 400 is to come again.
        step = json.loads((best / "validation.json").read_text())["step"]
        return step == state["progress"]["best_step"]

    best = folder / "best"
    if state["progress"]["best_step"] and checkpoint.newest(best, of_best_step) is None:
        raise UserError(f"{best} is gone; restore it, or start anew with --overwrite")
    return state


def refuse_changes(last: Path, old: dict, new: dict) -> None:
    """Raises `UserError` naming both values of each setting that changes the result and differs."""
    flags, batch = Config.__dataclass_fields__, "global_batch_size"
    names = changed_settings(old, new)
    names += [name for name in new if name not in (*flags, batch) and old.get(name) != new[name]]
    lines = [
        f"{last} was written with {name} {old.get(name)}, not {new[name]}: "
        "give the old value, another --output_dir, or --overwrite to delete that run"
        for name in names
    ]
    if old[batch] != new[batch] and any(old[name] != new[name] for name in BATCH_FLAGS):
        values = " ".join(f"--{name} {old[name]}" for name in BATCH_FLAGS)
        lines.append(
            f"{last} was written with batches of {old[batch]}, not {new[batch]}: give {values}, "
            "another --output_dir, or --overwrite to delete that run"
        )
    if lines:
        raise UserError(*lines)


BATCH_FLAGS = ("per_device_train_batch_size", "gradient_accumulation_steps")


def with_batch_of(old: dict, config: Config, processes: int) -> Config:
    """`config`, dealing the optimizer batches of the run `old` over this number of processes.

    Its flags on another number of processes would make another batch; so accumulation makes up for
    the processes, and no forward pass is larger than --per_device_train_batch_size says.
    """
    batch, size = old["global_batch_size"], config.per_device_train_batch_size
    if size * config.gradient_accumulation_steps * processes == batch:
        return config
    accumulation = -(-batch // (size * processes))
    size = -(-batch // (accumulation * processes))
    return dataclasses.replace(config, **dict(zip(BATCH_FLAGS, (size, accumulation), strict=True)))


def start_anew(run: Run) -> None:
    """Clear the way, if --overwrite says so, and write a `last/` of step 0."""

    def clear() -> None:
        for name in ("best", "last"):
            checkpoint.remove(output(run) / name)
        for events in (output(run) / "runs").glob("events.out.tfevents.*"):
            events.unlink()  # and nothing else that may lie there

    on_main(clear)
    # From here on a run that is killed is resumed like any other, even before its first save.
    save_last(run)


def resume(run: Run, state: dict) -> None:
    """Go on from `last/`, whose progress.json is `state`. Raises `UserError` if the data differ."""
    last, accelerator = output(run) / "last", run.accelerator
    refuse_changes(last, state["settings"], run.settings)
    weights, moments = {}, {}

    def read() -> None:
        weights.update(load_file(last / "model.safetensors"))
        for name, tensor in load_file(last / "optimizer.safetensors").items():
            key, name = name.split(" ")
            # A copy: the tensors of load_file lie in the file itself, which would keep its room.
            moments.setdefault(name, {})[key] = tensor.clone()

    on_main(read)  # alone: other machines need not have the folder
    scatter_state(accelerator, run.model, run.optimizer, weights, moments)
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    run.progress = Progress(**state["progress"])
    sums = torch.tensor(run.progress.sums)
    processes = accelerator.num_processes
    if len(sums) == processes:
        sums = sums[accelerator.process_index]
    else:  # another number of them: the loss is a sum over all, the others are alike on each
        sums = sums.mean(0) * torch.tensor([len(sums) / processes, 1, 1])
    run.sums.copy_(sums)
