"""Real processes without the seconds that they import: forked from one that imported the libraries.

multiprocessing's forkserver imports `LIBRARIES` once and never runs anything itself; each process
here is a fork of it, which imports the project's own files and runs a script as `__main__`. So
signals, kills, exit statuses and process groups are real. What differs from a new interpreter: the
libraries are imported already, and the end is an `os._exit`, without finalization.
"""

import contextlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import event_files

ROOT = Path(__file__).parent.parent
LIBRARIES = [
    "accelerate.commands.launch",
    "datasets",
    "evaluate",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "sklearn.metrics",
    "tensorboard.backend.event_processing.event_accumulator",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "torch.utils.tensorboard",
    "transformers.integrations.deepspeed",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.distilbert.modeling_distilbert",
    "transformers.trainer",
]
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(LIBRARIES)


def run_script(words: list[str], environment: dict, out: Path, err: Path) -> None:
    """In the child: become `python SCRIPT FLAGS`, started in the project's folder."""
    os.chdir(ROOT)
    for path, stream in ((out, 1), (err, 2)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    event_files.keep_in_order()
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")


class Forked:
    """One such process, with the methods of subprocess.Popen that tests use."""

    def __init__(self, *words, log: Path | None = None, **environment):
        """`log`: a file for what it prints; default: what `communicate` returns."""
        self.folder = tempfile.TemporaryDirectory(prefix="forked_")
        self.out, self.err = (log or Path(self.folder.name, name) for name in ("out", "err"))
        for path in (self.out, self.err):
            path.touch()
        arguments = [*map(str, words)], {**os.environ, **environment}, self.out, self.err
        self.process = context.Process(target=run_script, args=arguments, daemon=True)
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr), when it has ended."""
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.process.join()
        self.folder.cleanup()


class Group:
    """The processes of one run, as torchrun would start them. Unlike torchrun it does not end the
    others when one has failed: they must end by themselves."""

    def __init__(self, processes: int, *words, **environment):
        environment = {
            "ACCELERATE_USE_CPU": "1",
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            **environment,
        }
        self.members = [
            Forked(*words, **environment, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank in range(processes)
        ]

    @property
    def returncode(self) -> int | None:
        codes = [member.returncode for member in self.members]
        return None if None in codes else next(filter(None, codes), 0)

    def communicate(self, timeout: float) -> tuple[str, str]:
        end = time.monotonic() + timeout
        said = [member.communicate(max(0, end - time.monotonic())) for member in self.members]
        return tuple("".join(texts) for texts in zip(*said, strict=True))

    def terminate(self) -> None:
        for member in self.members:
            member.terminate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.ExitStack() as stack:
            for member in self.members:
                stack.push(member)


def wait_until(true, timeout: float = 60) -> None:
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < timeout
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
