"""What the folder of a model tells of its training, for the page that eval.py writes.

In: the folder best/ that train.py wrote. Out: settings, curves, dates. Independent of: the report.
"""

import datetime
import json
import tempfile
from pathlib import Path

import numpy as np

from runtime.card import METRICS, VALIDATED
from runtime.checkpoint import EVENTS


def read_history(folder: Path, trained: dict) -> tuple[dict, dict[str, list[tuple[int, float]]]]:
    """(What the page says of the run, the curves of its event files: tag -> [(step, value), ...]).

    Args:
        trained: the settings in `folder`; {} if train.py did not write it, which leaves both empty.
    """
    validation = folder / VALIDATED
    run = {"settings": trained, "validation": {}, "dates": []}
    if not (trained and validation.is_file()):
        return run, {}
    run["validation"] = best = json.loads(validation.read_text(encoding="utf-8"))
    scalars = read_scalars(folder.resolve().parent / "runs")
    curves = {tag: [(event.step, event.value) for event in found] for tag, found in scalars.items()}
    # A copy of best/ may lie beside the runs/ of another training.
    if not all(
        (best["step"], float(np.float32(best[name]))) in curves.get(f"eval/{name}", [])
        for name in METRICS
        if name in best
    ):
        return run, {}
    times = [event.wall_time for found in scalars.values() for event in found]
    run["dates"] = [day_of(time) for time in (min(times), max(times))]
    return run, curves


def read_scalars(runs: Path) -> dict[str, list]:
    """By tag, from the event files of train.py: another program's may be beside them."""
    # Not at the top: it takes half a second to import.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    every = [*runs.glob("events.out.tfevents.*")]
    own = [file for file in every if file.name.endswith(EVENTS)]
    with tempfile.TemporaryDirectory() as folder:
        for file in own or every:  # an older version's have no such end
            Path(folder, file.name).symlink_to(file)
        events = EventAccumulator(folder, size_guidance={"scalars": 0})
        events.Reload()
        return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def day_of(time: float) -> str:
    return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
