"""Which code ran on what: the commit, package versions, hardware.

In: nothing but the machine. Out: a dict for JSON files. Independent of: what is run.
"""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers", "numpy")


def describe_machine() -> dict:
    """Package versions and hardware, as bench/ records them too."""
    # With the instruction set that torch uses: results differ between them in the last bits.
    cpu = f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": f"{cpu}, {os.cpu_count()} cores, {platform.system()}{gpu}",
    }


def describe_environment(accelerator) -> dict:
    """What a result depends on besides its settings."""
    return {
        "commit": find_commit(),
        **describe_machine(),
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }


def find_commit(file: Path = Path(__file__)) -> str:
    """The commit that `file` is from, followed by "modified" if tracked files differ from it;
    "unknown" if git does not track `file`."""
    tracked = git(file, "ls-files", "--error-unmatch", file.name)
    commit = git(file, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= modified")
    return commit if tracked and commit else "unknown"


def git(file: Path, *words: str) -> str:
    """What git says in the folder of `file`; "" if it fails, is not installed, or hangs."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=file.parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
