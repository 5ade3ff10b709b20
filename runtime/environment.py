"""Which code ran on what: the commit, package versions, hardware.

In: nothing but the machine. Out: a dict for JSON files. Independent of: what is run.
"""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors")


def describe_machine() -> dict:
    """Package versions and hardware, as bench/ records them too."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}{gpu}",
    }


def describe_environment(accelerator) -> dict:
    """What a result depends on besides its settings. To be called at the start of a run: the files
    of the project may be edited while it lasts."""
    return {
        "commit": find_commit(),
        **describe_machine(),
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": accelerator.mixed_precision,
    }


def find_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the code in `folder`, followed by "modified" if tracked files differ from it;
    "unknown" outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= modified"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # git is not installed, or hangs
        return "unknown"
    return done.stdout.strip() or "unknown"
