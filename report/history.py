"""What the folder of a model tells of its training, for the page that eval.py writes.

In: the folder best/ that train.py wrote. Out: settings, curves, dates. Independent of: the report.
"""

import datetime
import json
from pathlib import Path

import numpy as np


def read_history(folder: Path, trained: dict) -> tuple[dict, dict[str, list[tuple[int, float]]]]:
    """(What the page says of the run, the curves of its event files: tag -> [(step, value), ...]).

    Args:
        trained: the settings in `folder`; {} if train.py did not write it, which leaves both empty.
    """
    # Not at the top: it takes half a second to import.
    from tensorboard.backend.event_processing import event_accumulator

    validation, runs = folder / "validation.json", folder.resolve().parent / "runs"
    run = {"settings": trained, "validation": {}, "dates": []}
    if trained and validation.is_file():
        run["validation"] = json.loads(validation.read_text(encoding="utf-8"))
    if not (trained and any(runs.glob("events.out.tfevents.*"))):
        return run, {}
    events = event_accumulator.EventAccumulator(str(runs), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    times = [event.wall_time for found in scalars.values() for event in found]
    run["dates"] = [day_of(time) for time in (min(times), max(times))] if times else []
    curves = {tag: [(event.step, event.value) for event in found] for tag, found in scalars.items()}
    best = run["validation"]
    # A copy of best/ may lie beside the runs/ of another training.
    if (best["step"], float(np.float32(best["accuracy"]))) not in curves.get("eval/accuracy", []):
        return run | {"dates": []}, {}
    return run, curves


def day_of(time: float) -> str:
    return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
