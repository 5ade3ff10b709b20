"""What the processes of a run do as one: fail together, and end together when asked to.

In: signals, the launcher's death. Out: `Stopped`, raised between two batches, everywhere at one.
Refuses to know: what is trained, and what is saved then.
"""

import os
import signal
import time
from signal import SIGINT, SIGTERM

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from config import UserError

PARENT = os.getppid()  # now: in the minutes before the first step a launcher may die, too


def on_main(work):
    """`work()` on the main process alone; what it returned, or what it raised, on all of them.

    The others wait for it. An error that only one process knew would leave them waiting for ever.
    """
    outcome, failed = [None, None], None
    if PartialState().is_main_process:
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = error
        except Exception as error:
            failed, outcome[1] = error, RuntimeError(f"the main process failed: {error!r}")
    result, error = broadcast_object_list(outcome)
    if error:
        raise failed or error
    return result


class Stopped(Exception):
    """The run was asked to end by `signal`; its exit status is 128 + that number."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Stop:
    """While entered, SIGTERM and Ctrl-C ask the run to end, and `check` says when it does.

    A second Ctrl-C ends the process at once. A launcher that dies counts as SIGTERM, for
    `accelerate launch` passes no signal on.
    """

    def __init__(self, processes: int):
        self.signal = 0
        self.asked_at = 0.0
        # What `accelerate launch` and torchrun set, and nobody else has a reason to.
        launched = {"ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID"} & set(os.environ)
        self.launcher = PARENT if launched else None  # a shell may go and leave us running
        # A group of its own on the CPU: to ask NCCL would make each step wait for the GPU. A
        # process that died breaks it within a moment, where NCCL waits for ten minutes.
        self.group = torch.distributed.new_group(backend="gloo") if processes > 1 else None

    def __enter__(self):
        self.before = {number: signal.getsignal(number) for number in (SIGTERM, SIGINT)}
        for number, handler in self.before.items():
            if handler is not signal.SIG_IGN:  # as for a script's background jobs
                signal.signal(number, self.ask)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number, frame) -> None:
        # torchrun sends one Ctrl-C twice: the terminal's goes to its workers too.
        again = self.signal and time.monotonic() - self.asked_at > 0.5
        if number == SIGINT and again:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.signal:
            self.signal, self.asked_at = number, time.monotonic()

    def check(self) -> None:
        """Raises `Stopped` if any process was asked to end. For every batch of every loop: between
        steps alone it would come too late for an evaluation of minutes."""
        if self.launcher not in (None, os.getppid()):
            self.signal = self.signal or SIGTERM
        if number := self.largest(self.signal):
            raise Stopped(number)

    def largest(self, value: int) -> int:
        """Of the processes' values. Raises RuntimeError if one of them has died."""
        if self.group is None:
            return value
        values = torch.tensor([value])
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=self.group)
        return values.item()
