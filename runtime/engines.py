"""What DDP, FSDP2 and DeepSpeed ZeRO do differently, behind one function each.

In: a config; a prepared model and optimizer. Out: an Accelerator; the gradient's norm; the whole
training state on the main process, and back. Independent of: data, files, time.
"""

import math
import os
from datetime import timedelta

import torch
import transformers
from accelerate import Accelerator, DistributedType
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    is_deepspeed_available,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from runtime.deepspeed import (
    gather_zero_moments,
    gather_zero_weights,
    own_zero_shard,
    scatter_zero_state,
)
from runtime.flags import UserError
from runtime.processes import keep_freed_memory, on_main, require_asked_processes, set_threads

# Accelerate's names of the engines, and the usual ones.
ENGINES = {
    "NO": "",
    "MULTI_CPU": "DDP",
    "MULTI_GPU": "DDP",
    "FSDP": "FSDP2",
    "DEEPSPEED": "DeepSpeed",
}
SHARDED = {"FSDP": "ACCELERATE_USE_FSDP", "DEEPSPEED": "ACCELERATE_USE_DEEPSPEED"}


def make_accelerator(config) -> Accelerator:
    """Accelerate as its launcher or config file says, in the precision of the run's config.

    Raises `UserError` for an engine or a precision that this project does not support.
    """
    if config.full_determinism:
        transformers.enable_full_determinism(config.seed)  # before the GPU is touched
    precision = choose_precision(config.mixed_precision)
    if asked_for("DEEPSPEED") and not is_deepspeed_available():
        raise UserError(
            "accelerate is configured for DeepSpeed, which is not installed; "
            "pip install -r requirements-deepspeed.txt"
        )
    accelerator = Accelerator(
        mixed_precision=precision,
        # --torch_compile alone decides: ACCELERATE_DYNAMO_BACKEND, which a file of `accelerate
        # config` may set, would compile the model (once more), and say nothing of it.
        dynamo_backend="no",
        # Given like this, or ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment would win.
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation_steps),
        # While the main process tokenizes millions of texts, the others wait.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    check_engine(accelerator)
    check_passes(accelerator, config)
    # Otherwise from_pretrained would shard the model while loading it under ZeRO 3, which all
    # processes would have to do at the same time.
    unset_hf_deepspeed_config()
    set_threads(config.num_threads)
    keep_freed_memory()
    return accelerator


def choose_precision(asked: str) -> str:
    """ "no", "fp16" or "bf16" for --mixed_precision `asked`."""
    if asked == "auto":
        # `accelerate launch` always exports a value, "no" if nobody asked for one.
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        cuda = torch.cuda.is_available()
        if asked == "no" and cuda and torch.cuda.is_bf16_supported(including_emulation=False):
            asked = "bf16"
    if asked not in ("no", "fp16", "bf16"):
        raise UserError(f"accelerate is configured for {asked}; give --mixed_precision bf16")
    if asked == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed_precision fp16: needs a CUDA GPU; give bf16 or no")
    return asked


def asked_for(engine: str) -> bool:
    """As Accelerate reads it: "true", and neither "1" nor "yes"."""
    return os.environ.get(SHARDED[engine], "").lower() == "true"


def check_engine(accelerator: Accelerator) -> None:
    require_asked_processes()
    engine = accelerator.distributed_type.value
    for wanted in SHARDED:
        if asked_for(wanted) and engine != wanted:
            raise UserError(
                f"accelerate is configured for {ENGINES[wanted]}, which it supports on GPUs "
                "alone; here it would be plain DDP: give no configuration file"
            )
    if engine not in ENGINES or (engine == "FSDP" and not accelerator.is_fsdp2):
        engine = "FSDP version 1" if engine == "FSDP" else engine
        raise UserError(
            f"accelerate is configured for {engine}; only DDP, FSDP2 and DeepSpeed ZeRO are "
            "supported: give a file of configs/, or run `accelerate config` again"
        )
    if engine == "DEEPSPEED" and accelerator.mixed_precision == "fp16":
        # DeepSpeed scales the loss itself, which we could neither log nor resume.
        raise UserError("--mixed_precision fp16: not with DeepSpeed; give bf16 or no")


def check_passes(accelerator: Accelerator, config) -> None:
    most = config.max_tokens_per_forward
    if most and accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UserError(
            f"--max_tokens_per_forward {most}: not with DeepSpeed, whose passes are fixed; "
            "give --gradient_accumulation_steps"
        )


def wrap_for_engine(accelerator: Accelerator, config, model, optimizer):
    """(model, optimizer) as the engine needs them, the model compiled on request.

    DeepSpeed clips and updates inside its `backward`, so it must know the norm beforehand, and the
    batch size, which it would otherwise read from a prepared loader.
    """
    if config.torch_compile:
        # Its cuts at DDP's buckets fail if lengths vary (torch 2.13: 'int' has no 'meta').
        torch._dynamo.config.optimize_ddp = False
        model.compile()
    accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "gradient_clipping": config.max_grad_norm,
        }
    return accelerator.prepare(model, optimizer)


def set_passes(accelerator: Accelerator, passes: int) -> None:
    """Make the last of the next `passes` uses of `accumulate` the one that exchanges gradients.
    DeepSpeed's number is fixed (see `check_passes`)."""
    accelerator.gradient_accumulation_steps = passes
    accelerator.step = 0


def clip_gradient(accelerator: Accelerator, model, max_norm: float) -> torch.Tensor:
    """Scale the gradient to norm `max_norm`, if larger (0: never). Returns the norm before: ()."""
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return torch.as_tensor(norm, device=accelerator.device)


def all_finite(model) -> torch.Tensor:
    """Whether every weight of this process (of its shard, if sharded) is finite: ()."""
    shards = [own_shard(parameter) for parameter in model.parameters()]
    return torch.stack([shard.isfinite().all() for shard in shards]).all()


def own_shard(parameter) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    return own_zero_shard(parameter)


# ---------------------------------------------------------------- the state of training


def gather_weights(accelerator: Accelerator, model) -> dict[str, torch.Tensor]:
    """Every weight by name, whole, float32: on the main process, on the CPU; {} elsewhere.

    All processes must call this and the next two functions, because each may hold a part.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return gather_zero_weights(accelerator, model)
    return get_model_state_dict(model, options=StateDictOptions(**ON_MAIN))


def gather_moments(accelerator: Accelerator, model, optimizer) -> dict[str, dict]:
    """AdamW's `exp_avg`, `exp_avg_sq` and `step` by name of weight; {} before the first update."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return gather_zero_moments(accelerator, model, optimizer)
    # If there are no moments yet, torch would make them by a step of its own and count it: AdamW's
    # bias correction of the first update would then be that of the second.
    if not optimizer.state:
        return {}
    options = StateDictOptions(**ON_MAIN)
    return get_optimizer_state_dict(model, optimizer.optimizer, options=options).get("state", {})


ON_MAIN = {"full_state_dict": True, "cpu_offload": True}


def scatter_state(accelerator: Accelerator, model, optimizer, weights: dict, moments: dict) -> None:
    """Put back what was gathered, on any number of processes. The main process's `weights` and
    `moments` count; the others give {}."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        scatter_zero_state(accelerator, model, optimizer, weights, moments)
        return
    shared = accelerator.num_processes > 1
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=shared)
    set_model_state_dict(model, weights, options=options)
    if on_main(lambda: bool(moments)):
        groups = get_optimizer_state_dict(model, optimizer.optimizer)["param_groups"]
        state = {"state": moments, "param_groups": groups} if moments else {}
        set_optimizer_state_dict(model, optimizer.optimizer, state, options=options)
