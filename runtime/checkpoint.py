"""What a run saves, what it resumes from, and what it refuses to resume: `last/` and `best/`.

In: a run (train.Run); `last/`. Out: `last/` (to resume) and `best/` (to use); the run as it was
saved. Independent of: when to save, and what a step does.
"""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file

from runtime.card import VALIDATED, checksum, make_card
from runtime.engines import gather_moments, gather_weights, scatter_state
from runtime.flags import UserError, changed_settings
from runtime.folders import (
    CARD,
    MANIFEST,
    Damaged,
    newest_whole,
    remove_folder,
    require_room,
    spare_of,
    verify_folder,
    write_folder,
)
from runtime.hub import refuse_adapter, weight_files
from runtime.processes import on_main
from runtime.seen import SETTINGS, Seen, write_seen
from runtime.tables import column


@dataclasses.dataclass
class Progress:
    """Where a run stands. With the weights and the optimizer's moments, this is all of its state.

    No random state is kept: dropout is seeded by (seed, step, process), the order of the texts by
    (seed, epoch). Nor is a schedule: the learning rate is a function of the step.
    """

    step: int = 0  # the last whose update is in the weights
    follow_up_due: bool = False  # stopped in an evaluation after `step`: to be done again
    best_step: int = 0
    best_scores: dict = dataclasses.field(default_factory=dict)  # of that step, on validation
    window_start: int = 0  # the step of the last scalars; the sums run from there
    sums: list[list[float]] = dataclasses.field(default_factory=lambda: [SUMS])  # per process


EVENTS = ".reference-loop"  # ends the names of our event files: runs/ may have another program's
VALIDATION = "validation.npz"  # logits, labels, lengths: what a threshold is chosen by
SUMS = [0.0, 0.0, 0.0]  # loss, gradient norm, updates whose gradient was not finite


# ---------------------------------------------------------------- writing


def save_last(run) -> None:
    """`last/`: everything that `load_last` reads."""
    run.progress.sums = run.monitor.read_sums(run.model, run.progress).tolist()
    with run.monitor.save_timed():
        weights = gather_weights(run.accelerator, run.model)
        moments = gather_moments(run.accelerator, run.model, run.optimizer)
        scaler = run.accelerator.scaler
        state = {
            "progress": dataclasses.asdict(run.progress),
            "settings": run.settings,
            "environment": run.environment,
            "scaler": scaler.state_dict() if scaler else {},
        }
        fill = partial(fill_last, weights, moments, state)
        size = 3 * weight_bytes(run.settings)  # AdamW keeps two moments per weight

        def write() -> None:
            run.monitor.flush()
            write_folder(run.output / "last", fill, size)

        on_main(write)


def fill_last(weights: dict, moments: dict, state: dict, folder: Path) -> None:
    flat = {f"{key} {name}": value for name, of in moments.items() for key, value in of.items()}
    for name, tensors in (("model", weights), ("optimizer", flat)):
        save_file(unshare_memory(tensors), folder / f"{name}.safetensors")
    (folder / "progress.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


def save_best(run, scores: dict, logits: torch.Tensor) -> None:
    """`best/`: what `from_pretrained` and `pipeline("text-classification", "best/")` load.

    Args:
        scores, logits: of the validation that chose this step.
    """
    # Not from run.settings: resumed on another number of processes, a run has other batch flags.
    flags = vars(run.config) | {"mixed_precision": run.accelerator.mixed_precision}
    # Without --overwrite: whoever gives this file as --config repeats the run, and deletes nothing.
    flags.pop("overwrite")
    validation = {
        "step": run.progress.step,
        **scores,
        "training_examples": len(run.train_set),
        "precision": run.accelerator.mixed_precision,
        "device": run.accelerator.device.type,
    }
    files = {SETTINGS: flags | {"environment": run.environment}, VALIDATED: validation}
    with run.monitor.clock_stopped():
        weights = gather_weights(run.accelerator, run.model)
        model = run.accelerator.unwrap_model(run.model)
        of_texts = {name: column(run.validation_set, name) for name in ("labels", "length", "cut")}
        fill = partial(
            fill_best,
            weights,
            model,
            run.tokenizer,
            run.seen,
            {"logits": logits.numpy()} | {name: of.to_numpy() for name, of in of_texts.items()},
            files,
            type(run.config),
        )
        on_main(lambda: write_folder(run.output / "best", fill, weight_bytes(run.settings)))


def fill_best(
    weights: dict,
    model,
    tokenizer,
    seen: Seen,
    validation: dict[str, np.ndarray],
    files: dict[str, dict],
    flags: type,
    folder: Path,
) -> None:
    model.save_pretrained(folder, state_dict=weights)
    model.config.dtype = "float32"  # what is saved, even if DeepSpeed computes in bfloat16
    model.config.save_pretrained(folder)
    # transformers 5.23 saves the side only if it had read one: a pipeline would cut the other.
    tokenizer.init_kwargs["truncation_side"] = tokenizer.truncation_side
    tokenizer.save_pretrained(folder)
    write_seen(folder, seen)
    np.savez(folder / VALIDATION, **validation)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / CARD).write_text(str(make_card(folder, flags)), encoding="utf-8")


def unshare_memory(tensors: dict) -> dict:
    """safetensors refuses memory with gaps or under two names (tied weights): copies, then."""
    seen = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor.contiguous()
        seen.add(memory)
    return tensors


def weight_bytes(settings: dict) -> int:
    """What a save of the weights takes, with a megabyte for the small files beside them."""
    return 2**20 + 4 * settings["parameters"]


def require_room_for_saves(output: Path, settings: dict) -> None:
    """Raises `UserError` unless two copies each of `last/` and `best/` fit on the disk."""
    there = sum(
        path.lstat().st_size
        for name in ("last", "best")
        for copy in (output / name, spare_of(output / name))
        for path in copy.glob("*")
    )
    require_room(output, 2 * (3 + 1) * weight_bytes(settings) - there)


# ---------------------------------------------------------------- resuming


def settings_of(config, accelerator) -> dict:
    """What must not change on a resume, as far as it is known before the data are read."""
    return {
        **dataclasses.asdict(config),
        "mixed_precision": accelerator.mixed_precision,
        "global_batch_size": config.per_device_train_batch_size
        * config.gradient_accumulation_steps
        * accelerator.num_processes,
    }


def find_last(config, settings: dict) -> dict | None:
    """The contents of `last/progress.json` if there is a run to resume; None for a new run.

    Raises `UserError` for a `last/` of other settings, for a `best/` that does not belong to it,
    and for a folder with results that no `last/` accounts for.
    """
    folder = Path(config.output_dir)
    for name in ("best", "last"):
        if Path(config.model).resolve().is_relative_to((folder / name).resolve()):
            raise UserError(
                f"--model {config.model}: is in the --output_dir, where this run would replace it; "
                "give another --output_dir"
            )
    if config.overwrite:
        refuse_to_delete(folder)
        return None
    last = newest_whole(folder / "last")
    if last is None:
        refuse_orphans(folder)
        return None
    state = json.loads((last / "progress.json").read_text(encoding="utf-8"))
    refuse_changes(type(config), last, state["settings"], settings)
    try:
        progress = Progress(**state["progress"])
    except TypeError:  # other fields: of another version of this project
        raise UserError(
            f"{last} was written by another version of this project; resume it with that "
            f"version, give another --output_dir, or --overwrite to delete that run"
        ) from None
    restore_best(folder / "best", progress.best_step)
    return state


def refuse_to_delete(folder: Path) -> None:
    for path in (folder / "best", folder / "last"):
        if path.exists() and not (path / MANIFEST).exists():
            raise UserError(
                f"--overwrite: {path} has no {MANIFEST}, so it may not be ours to "
                "delete; remove it, or give another --output_dir"
            )


def refuse_orphans(folder: Path) -> None:
    for name in ("best", "runs"):
        if (folder / name).exists():
            raise UserError(
                f"--output_dir {folder}: holds {name}/ of another run and no last/ to resume from; "
                "give another folder, or --overwrite to delete it"
            )


def restore_best(best: Path, step: int) -> None:
    """Put the `best/` of that step in its place, if there is one.

    After a kill between the writes of `best/` at step 400 and of `last/`, the run is back at step
    200, say. The best so far is then that of step 200, the other copy of `best/`; step 400 comes
    again.
    """

    def of_step(copy: Path) -> bool:
        return json.loads((copy / VALIDATED).read_text(encoding="utf-8"))["step"] == step

    if step and newest_whole(best, of_step) is None:
        raise UserError(f"{best} is gone; restore it, or start anew with --overwrite")


def refuse_changes(kind, last: Path, old: dict, new: dict) -> None:
    """Raises `UserError` naming both values of each setting that changes the result and differs."""
    flags = {field.name: field.default for field in dataclasses.fields(kind)}
    # An older version lacked some flags, whose defaults are what it did, but for this one.
    old = flags | {"last_layer": "all"} | old
    batch = "global_batch_size"
    names = changed_settings(kind, old, new)
    names += [name for name in new if name not in {*flags, batch} and old.get(name) != new[name]]
    lines = [
        f"{last} was written with {name} {old.get(name)}, not {new[name]}: "
        "give the old value, another --output_dir, or --overwrite to delete that run"
        for name in names
        if name != "data"
    ]
    if "data" in names:
        lines.append(
            f"{last} was written with other texts or labels ({old['dataset']}, {old.get('data')}) "
            f"than there are now ({new['dataset']}, {new['data']}): restore them, give another "
            "--output_dir (and --model best/, to go on from there), or --overwrite to delete that "
            "run"
        )
    if old[batch] != new[batch] and any(old[name] != new[name] for name in BATCH_FLAGS):
        values = " ".join(f"--{name} {old[name]}" for name in BATCH_FLAGS)
        lines.append(
            f"{last} was written with batches of {old[batch]}, not {new[batch]}: give {values}, "
            "another --output_dir, or --overwrite to delete that run"
        )
    if lines:
        raise UserError(*lines)


BATCH_FLAGS = ("per_device_train_batch_size", "gradient_accumulation_steps")


def keep_global_batch(batch: int, config, processes: int):
    """`config`, changed so that this number of processes keeps optimizer batches of `batch` texts.

    With the same flags, another number of processes would make other batches. So accumulation makes
    up for it, and no forward pass gets more than --per_device_train_batch_size examples (or, with
    --max_tokens_per_forward, more tokens than that).
    """
    size = config.per_device_train_batch_size
    if size * config.gradient_accumulation_steps * processes == batch:
        return config
    accumulation = -(-batch // (size * processes))
    size = -(-batch // (accumulation * processes))
    changed = dict(zip(BATCH_FLAGS, (size, accumulation), strict=True))
    if PartialState().is_main_process:
        flags = " ".join(f"--{name} {value}" for name, value in changed.items())
        print(f"the batches of {batch} are kept, with {flags}", flush=True)
    return dataclasses.replace(config, **changed)


def delete_run(output: Path) -> None:
    """Delete an older run, as --overwrite asks, and nothing else that may lie there."""
    for name in ("best", "last"):
        remove_folder(output / name)
    for events in (output / "runs").glob(f"events.out.tfevents.*{EVENTS}"):
        events.unlink()


def load_last(run, state: dict) -> None:
    """Make `run` what it was when it wrote `last/`, whose progress.json is `state`.

    Raises `UserError` if that run had other texts.
    """
    last, weights, moments = run.output / "last", {}, {}
    refuse_changes(type(run.config), last, state["settings"], run.settings)

    def read_tensors() -> None:
        weights.update(load_file(last / "model.safetensors"))
        for name, tensor in load_file(last / "optimizer.safetensors").items():
            key, name = name.split(" ")
            # A copy: the tensors of load_file are mapped from the file, whose disk space they keep.
            moments.setdefault(name, {})[key] = tensor.clone()

    on_main(read_tensors)  # alone: other machines need not have the folder
    scatter_state(run.accelerator, run.model, run.optimizer, weights, moments)
    if run.accelerator.scaler:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.progress = Progress(**state["progress"])
    run.monitor.restore_sums(run.progress.sums)


# ---------------------------------------------------------------- using best/


def read_training_settings(folder: Path, flag="--ckpt") -> dict:
    """What the checkpoint was trained with; {} if train.py did not write it."""
    refuse_adapter(folder, f"{flag} {folder}")
    for name, there in (
        ("config.json", (folder / "config.json").is_file()),
        ("weights", weight_files(folder)),
    ):
        if not there:
            raise UserError(
                f"{flag} {folder}: no checkpoint there (no {name}); "
                "give the best/ folder that train.py wrote"
            )
    if (folder / MANIFEST).exists():
        try:
            verify_folder(folder)
        except Damaged as error:
            raise UserError(f"{flag} {error}; restore it or train anew") from None
    settings = folder / SETTINGS
    try:
        return dict(json.loads(settings.read_text(encoding="utf-8"))) if settings.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{flag} {settings}: {error}; restore it or train anew") from None


def sum_of_weights(folder: Path, weights: dict[Path, os.stat_result]) -> str:
    """The checksum of the files that were loaded. Raises `UserError` if they were replaced since.

    Args:
        weights: taken before they were loaded.
    """
    found = checksum(weights)
    for file, then in weights.items():
        now = file.stat()
        if not os.path.samestat(now, then) or now.st_mtime_ns != then.st_mtime_ns:
            raise UserError(f"{folder}: a training replaced it meanwhile; start eval.py again")
    return found
