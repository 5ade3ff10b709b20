"""What a result was measured on, for its JSON; and a measurement in a process of its own."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors")


def peak_bytes() -> int:
    """Of this process so far. Not getrusage's ru_maxrss: that begins at what the parent had when it
    forked."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def about_machine() -> dict:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}{gpu}",
    }


def this_command(file: Path | None) -> str:
    """As it was typed, for the JSON that it writes, but for the name of that file."""
    words = ["FILE" if word == str(file) else word for word in sys.argv[1:]]
    return shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *words])


def alone(script: str, *given) -> dict:
    """What `script --one given` prints in its last line, as JSON."""
    command = [sys.executable, script, "--one", *map(str, given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(*given, result, flush=True)
    return result
