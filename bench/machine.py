"""What a result was measured on, for its JSON."""

import os
import platform
from importlib.metadata import version

import torch

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors")


def about_machine() -> dict:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}{gpu}",
    }
