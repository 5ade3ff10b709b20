"""TensorBoard reads the event files of a folder in the order of the second in their names."""

import time
from pathlib import Path
from types import SimpleNamespace

from tensorboard.summary.writer import event_file_writer
from tensorboard.summary.writer.event_file_writer import EventFileWriter

initialise = EventFileWriter.__init__


def keep_in_order() -> None:
    """Name each event file by a later second than those beside it, as if runs that tests start
    within one second were as far apart as a user's are."""
    EventFileWriter.__init__ = initialise_later


def initialise_later(self, logdir, *arguments, **keywords) -> None:
    there = [int(path.name.split(".")[3]) for path in Path(logdir).glob("events.out.tfevents.*")]
    second = max(int(time.time()), max(there, default=0) + 1)
    event_file_writer.time = SimpleNamespace(time=lambda: second)
    try:
        initialise(self, logdir, *arguments, **keywords)
    finally:
        event_file_writer.time = time
