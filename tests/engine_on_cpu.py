"""Run a script under FSDP2 or DeepSpeed ZeRO on CPU, over gloo, as torchrun's worker.

    torchrun --nproc_per_node 2 tests/engine_on_cpu.py fsdp2 train.py FLAGS

Both engines know gloo; it is Accelerate that has them on GPUs alone (FSDP2 on CPU silently becomes
DDP). So Accelerate is told that this is a machine of several GPUs whose device is the CPU. All
else, sharding, gathering, clipping and updates, is what runs on GPUs.
"""

import os
import runpy
import sys
from pathlib import Path

import accelerate.state
from accelerate import DistributedType

ENGINES = {
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
    **{
        f"zero{stage}": {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
            "DS_ACCELERATOR": "cpu",
        }
        for stage in (1, 2, 3)
    },
}

if __name__ == "__main__":
    engine, script, *flags = sys.argv[1:]
    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ |= ENGINES[engine] | {"ACCELERATE_TORCH_DEVICE": "cpu"}
    accelerate.state.PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    sys.argv = [script, *flags]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
