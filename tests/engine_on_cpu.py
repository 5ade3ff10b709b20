"""Run a script as torchrun's worker on CPU, under the engine that a file of configs/ asks for.

    torchrun --nproc_per_node 2 tests/engine_on_cpu.py configs/fsdp2.yaml train.py FLAGS

FSDP2 and DeepSpeed know gloo; it is Accelerate that has them on GPUs alone (FSDP2 on CPU silently
becomes DDP). So the environment is the one that `accelerate launch --config_file` would export, and
Accelerate is told that this is a machine of several GPUs whose device is the CPU. All else,
sharding, gathering, clipping and updates, is what runs on GPUs.
"""

import os
import runpy
import sys
from pathlib import Path

import accelerate.state
from accelerate import DistributedType
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env


def environment_of(config_file: str, script: str) -> dict[str, str]:
    asked = launch_command_parser().parse_args(["--config_file", config_file, script])
    asked, defaults, _ = _validate_launch_command(asked)
    if asked.use_deepspeed:
        asked.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, env = prepare_deepspeed_cmd_env(asked)
    else:
        env = prepare_multi_gpu_env(asked)
    return {key: value for key, value in env.items() if key.startswith(("ACCELERATE_", "FSDP_"))}


if __name__ == "__main__":
    config_file, script, *flags = sys.argv[1:]
    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ |= environment_of(config_file, script)
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    accelerate.state.PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    sys.argv = [script, *flags]
    sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name="__main__")
