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


def find_commit() -> str:
    """Of the code that runs, with "modified" after it if tracked files differ; or "unknown"."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= modified"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"
