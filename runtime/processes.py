"""The processes of a run: their share of the machine, and how they fail and stop together.

In: errors, signals, the launcher's death. Out: one line and a status; `Stopped`, raised before the
same batch in every process. Independent of: what is trained, and what is saved then.
"""

import contextlib
import ctypes
import gc
import os
import re
import signal
import sys
import time
from signal import SIGHUP, SIGINT, SIGTERM

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from runtime.flags import DISK_ERRORS, RUN_AGAIN, UserError, is_out_of_memory, print_error

PARENT = os.getppid()  # now, because a launcher may die in the minutes before the first step


# ---------------------------------------------------------------- cores and memory


def set_threads(asked: int | None) -> None:
    """Use `asked` CPU threads, or by default the cores / the processes of this machine.

    `accelerate launch` exports OMP_NUM_THREADS=1, which halves the speed on two cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(asked or max(1, cores // local_processes))


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step.

    It returns blocks above 32 MB to the system at once, and the activations of the next step then
    cost a page fault for every 4 kB. glibc before 2.35 refuses this threshold: nothing changes.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, never = -1, -3, -1  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and libc.mallopt(M_MMAP_THRESHOLD, 2**30):
        libc.mallopt(M_TRIM_THRESHOLD, never)


# ---------------------------------------------------------------- failing


def run_command(main, if_out_of_memory="close other programs"):
    """Call `main()` and exit with its status; a `UserError` becomes its lines and status 2.

    So does a disk that is full or broken, and too little memory, with what to do then. Ctrl-C
    becomes status 130, as in a shell. If several processes fail, the first says why and the others
    exit silently: its exit made them fail.
    """
    try:
        status = main()
    except (Exception, KeyboardInterrupt) as error:
        lines, status = explain(error, if_out_of_memory)
        met, first = torch.distributed.is_initialized(), failed_first()
        if lines is None and not met:
            raise
        if lines is None and first:
            sys.excepthook(type(error), error, error.__traceback__)  # torch's, which names the rank
        elif first:
            print_error(UserError(*lines))
        if met:
            # The launcher ends all processes once one has ended, so the first to fail must have
            # printed before. An orderly shutdown could wait until the timeout of a collective.
            time.sleep(0 if first else 1)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    # The wrapped model, which nothing refers to any more, must go before the process group: if it
    # held the group's last reference, gloo's thread would wait for the interpreter lock that this
    # thread holds while it joins that thread (pytorch#56297).
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)


def explain(error: BaseException, if_out_of_memory: str) -> tuple[list[str] | None, int]:
    """(Lines for the user, or None for a bug, whose traceback is wanted; exit status.)"""
    said = str(error)
    if isinstance(error, UserError):
        return error.args, 2
    if isinstance(error, KeyboardInterrupt):
        return ["stopped by Ctrl-C"], 130
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = error.filename or "a file"
        return [f"{where}: {error.strerror}; remove the cause, and {RUN_AGAIN}"], 2
    if is_out_of_memory(error):
        asked = re.search(r"(?:to|unable to) (?:allocate|mmap) ([\d.]+ \w+)", said, re.IGNORECASE)
        wanted = f" ({in_megabytes(asked[1])} more were asked for)" if asked else ""
        return [f"out of memory{wanted}; {if_out_of_memory}"], 2
    if isinstance(error, RuntimeError) and any(words in said for words in PEER_DIED):
        return [f"another process of this run died (see what the launcher says); {RUN_AGAIN}"], 1
    return None, 1


def in_megabytes(amount: str) -> str:
    """Of the CPU's allocator, which counts in bytes; others give a unit that people read."""
    number, unit = amount.split()
    return f"{float(number) / 1e6:,.0f} MB" if unit == "bytes" else amount


# gloo's words for a peer that closed or reset the connection, on reading and on writing.
PEER_DIED = (" by peer", ": Broken pipe")


def failed_first() -> bool:
    """Whether no other process of the run failed before this one. May be called repeatedly.

    Decided by a key in the store through which the processes found each other: compare_set is
    atomic and needs no answer from the others, who may be waiting in a collective. Before the
    processes have met, all of them fail for the same command line: the first of each machine
    reports it.
    """
    if not torch.distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    rank = str(torch.distributed.get_rank())
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return store.compare_set("failed_first", "", rank).decode() == rank
    except torch.distributed.DistError:  # the process that kept the store is gone
        return True


def on_main(work):
    """Run `work()` on the main process alone; return, or raise, its outcome on all of them.

    The others wait for it. An error known to one process alone would leave them waiting for ever.
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


def require_same(value, complaint: str) -> None:
    """Raises `UserError(complaint)` if `value` is not what it is on the main process."""
    if value != on_main(lambda: value):
        raise UserError(complaint)


def require_asked_processes() -> None:
    """Raises `UserError` unless there are as many processes as were asked for.

    Without a GPU, Accelerate silently makes each of torchrun's processes a run of its own unless
    ACCELERATE_USE_CPU is set; and `accelerate launch --cpu --num_processes 2` silently starts one
    process, in whose environment only a port shows what was asked for.
    """
    state, asked = PartialState(), os.environ.get("WORLD_SIZE")
    traces = {"ACCELERATE_DYNAMO_MODE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    if not asked and traces and state.device.type == "cpu":
        asked = "several"
    if (asked or "1") != str(state.num_processes):
        raise UserError(
            f"{asked} processes were asked for, and Accelerate made each a run of its own, as it "
            "does without GPUs; on CPU start them with ACCELERATE_USE_CPU=1 torchrun "
            f"--nproc_per_node N {sys.argv[0]}"
        )


@contextlib.contextmanager
def one_goes_first():
    """The main process runs the block, then the first of each other machine, then all others: they
    find on their disk what was downloaded or computed before them."""
    state = PartialState()
    with state.main_process_first(), state.local_main_process_first():
        yield


# ---------------------------------------------------------------- ending


class Stopped(Exception):
    """The run was asked to stop by `signal`; its exit status is 128 + that number."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


SIGNALS = (SIGTERM, SIGINT, SIGHUP)


class Stop:
    """While entered, SIGTERM, SIGHUP and Ctrl-C are noted, and the next `check` raises `Stopped`.

    SIGHUP comes when the terminal is closed; nohup has it ignored. A second Ctrl-C ends the process
    at once. The death of the launcher counts as SIGTERM, because `accelerate launch` of one process
    passes no signal on.
    """

    def __init__(self, processes: int):
        self.signal = 0
        self.asked_at = 0.0
        # Set by `accelerate launch` and by torchrun, and by nothing else.
        launched = {"ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID"} & set(os.environ)
        self.launcher = PARENT if launched else None  # a shell may exit and leave us running
        # A separate group on the CPU: with NCCL every check would wait for the GPU. And gloo
        # notices a dead process within a moment, where NCCL waits for its timeout.
        self.group = torch.distributed.new_group(backend="gloo") if processes > 1 else None

    def __enter__(self):
        self.before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in self.before.items():
            if handler is not signal.SIG_IGN:  # ignored by nohup, and in a script's background jobs
                signal.signal(number, self.ask)
        return self

    def __exit__(self, kind, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if kind and self.group is not None:
            # As soon as one process has failed, the launcher sends SIGTERM to the others. They end
            # by themselves within a second, and the signal must not come before their last line.
            signal.signal(SIGTERM, signal.SIG_IGN)

    def ask(self, number, frame) -> None:
        # With torchrun one Ctrl-C arrives twice: from the terminal and from torchrun.
        again = self.signal and time.monotonic() - self.asked_at > 0.5
        if number == SIGINT and again:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.signal:
            self.signal, self.asked_at = number, time.monotonic()

    def check(self) -> None:
        """Raises `Stopped` in all processes if any was asked to stop, RuntimeError if one has died.

        Called before every batch, also of an evaluation, which may take longer than the grace time
        of a preemption.
        """
        if self.launcher not in (None, os.getppid()):
            self.signal = self.signal or SIGTERM
        number = self.signal
        if self.group is not None:
            numbers = torch.tensor([number])
            torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX, group=self.group)
            number = numbers.item()
        if number:
            raise Stopped(number)
