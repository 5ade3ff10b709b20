"""What each process takes of its machine, and what all do as one: fail, and end when asked to.

In: errors, signals, the launcher's death. Out: one line and a status; `Stopped`, raised between two
batches, everywhere at one. Refuses to know: what is trained, and what is saved then.
"""

import contextlib
import ctypes
import errno
import gc
import os
import signal
import sys
import time
from signal import SIGINT, SIGTERM

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from config import GO_ON, UserError

PARENT = os.getppid()  # now: in the minutes before the first step a launcher may die, too


# ---------------------------------------------------------------- cores and memory


def set_threads(asked: int | None) -> None:
    """`asked` CPU threads, else cores / processes of this machine: `accelerate launch` exports
    OMP_NUM_THREADS=1, which halves the speed of two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(asked or max(1, cores // local_processes))


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step. It gives blocks above 32 MB back to the
    system at once, and those of activations come back as pages to be zeroed, one fault each.
    Before version 2.35 it refuses that threshold; then nothing is changed."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, never = -1, -3, -1  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and libc.mallopt(M_MMAP_THRESHOLD, 2**30):
        libc.mallopt(M_TRIM_THRESHOLD, never)


# ---------------------------------------------------------------- failing


def run_command(main):
    """Call `main()` and end the process with its status; a `UserError` becomes lines and status 2.

    So does a disk that is full or broken. Ctrl-C becomes status 130, as a shell has it. Where
    several processes fail, the first says why and the others end in silence: they fail of its end.
    """
    try:
        status = main()
    except (Exception, KeyboardInterrupt) as error:
        lines, status = explain(error)
        met, first = torch.distributed.is_initialized(), failed_first()
        if lines is None and not met:
            raise
        if lines is None and first:
            sys.excepthook(type(error), error, error.__traceback__)  # torch's, which names the rank
        elif first:
            print(*(f"error: {line}" for line in lines), sep="\n", file=sys.stderr)
        if met:
            # The launcher ends all as soon as one has ended: the first must have had its say. And
            # to part from the others in order could take until the timeout of what they wait for.
            time.sleep(0 if first else 1)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    # The wrapped model, which has no name any more, goes before the process group: if it held the
    # group's last reference, gloo's thread would wait for the interpreter lock that this thread
    # keeps in its join (pytorch#56297).
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)


def explain(error: BaseException) -> tuple[list[str] | None, int]:
    """The lines for a user, None for a fault of ours that wants its traceback; and the status."""
    if isinstance(error, UserError):
        return error.args, 2
    if isinstance(error, KeyboardInterrupt):
        return ["stopped by Ctrl-C"], 130
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return [f"{error.filename or 'a file'}: {error.strerror}; mend that, and {GO_ON}"], 2
    if isinstance(error, RuntimeError) and any(words in str(error) for words in PEER_DIED):
        return [f"another process of this run died (see what the launcher says); {GO_ON}"], 1
    return None, 1


# gloo's: closed or reset, and of a write that comes before it has read of that.
PEER_DIED = (" by peer", ": Broken pipe")
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def failed_first() -> bool:
    """Whether no other process of the run failed before this one. It may be asked again.

    The store through which the processes found each other knows: its compare_set is one move, and
    needs no answer of the others, who may wait for something else. Before the processes have met,
    all of them fail of the same command line, and the first of each machine is the one to say so.
    """
    if not torch.distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    rank = str(torch.distributed.get_rank())
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return store.compare_set("failed_first", "", rank).decode() == rank
    except torch.distributed.DistError:  # whoever kept it is gone
        return True


def on_main(work):
    """`work()` on the main process alone; what it returned, or what it raised, on all of them.

    The others wait for it. An error that only one process knew would leave them waiting for ever.
    """
    outcome, failed = [None, None], None
    if PartialState().is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:
            failed_first()  # before the others hear of it
            failed, outcome[1] = error, error
            if not isinstance(error, UserError):
                outcome[1] = RuntimeError(f"the main process failed: {error!r}")
    result, error = broadcast_object_list(outcome)
    if error:
        raise failed or error
    return result


def check_world() -> None:
    """Raises `UserError` unless as many processes are here as were asked for.

    Where there is no GPU, Accelerate makes each of torchrun's processes a run of its own unless
    ACCELERATE_USE_CPU is set, and `accelerate launch --cpu --num_processes 2` starts one, of which
    the only trace is a port; all in silence.
    """
    state, asked = PartialState(), os.environ.get("WORLD_SIZE")
    traces = {"ACCELERATE_DYNAMO_MODE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    if not asked and traces and state.device.type == "cpu":
        asked = "several"
    if (asked or "1") != str(state.num_processes):
        raise UserError(
            f"{asked} processes were asked for, and Accelerate made each a run of its own, as it "
            "does without GPUs; on CPU start them with ACCELERATE_USE_CPU=1 torchrun "
            "--nproc_per_node N train.py"
        )


@contextlib.contextmanager
def one_goes_first():
    """The main process goes through the block, then the first of each other machine, then the rest:
    what one has downloaded or computed, those after it find on their disk."""
    state = PartialState()
    with state.main_process_first(), state.local_main_process_first():
        yield


# ---------------------------------------------------------------- ending


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
        # process that died breaks it within a moment, where NCCL waits for its timeout.
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
