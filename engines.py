"""What DDP, FSDP2 and DeepSpeed ZeRO do each in its own way, under one name each.

In: a config; a prepared model and optimizer. Out: an Accelerator; the gradient's norm; the whole
state of training on the main process, and back. Refuses to know: data, files, time.
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
    broadcast,
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

from config import Config, UserError
from processes import check_world, keep_freed_memory, on_main, set_threads

# What Accelerate calls the engines, and what everybody else does.
SUPPORTED = {
    "NO": "one process",
    "MULTI_CPU": "DDP",
    "MULTI_GPU": "DDP",
    "FSDP": "FSDP2",
    "DEEPSPEED": "DeepSpeed",
}
SHARDED = {"FSDP": "ACCELERATE_USE_FSDP", "DEEPSPEED": "ACCELERATE_USE_DEEPSPEED"}


def make_accelerator(config: Config) -> Accelerator:
    """Accelerate as its launcher or config file says, in the precision of the run.

    Raises `UserError` for what this project does not do, or does not do right.
    """
    if config.full_determinism:
        transformers.enable_full_determinism(config.seed)  # before the GPU is touched
    precision = config.mixed_precision
    if precision == "auto":
        # `accelerate launch` always exports a value, "no" where nobody asked for one.
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        cuda = torch.cuda.is_available()
        if precision == "no" and cuda and torch.cuda.is_bf16_supported(including_emulation=False):
            precision = "bf16"
    if precision not in ("no", "fp16", "bf16"):
        raise UserError(f"accelerate is configured for {precision}; give --mixed_precision bf16")
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed_precision fp16: needs a CUDA GPU; give bf16 or no")
    if asked_for("DEEPSPEED") and not is_deepspeed_available():
        raise UserError(
            "accelerate is configured for DeepSpeed, which is not installed; pip install deepspeed"
        )
    accelerator = Accelerator(
        mixed_precision=precision,
        # Given like this, or ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment would win.
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation_steps),
        # While the main process tokenises millions of texts, the others wait.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    check_engine(accelerator)
    # Or from_pretrained would shard the model as it loads, all processes at a time, under ZeRO 3.
    unset_hf_deepspeed_config()
    set_threads(config.num_threads)
    keep_freed_memory()
    return accelerator


def asked_for(engine: str) -> bool:
    """As Accelerate's state reads it: "true", and neither "1" nor "yes"."""
    return os.environ.get(SHARDED[engine], "").lower() == "true"


def check_engine(accelerator: Accelerator) -> None:
    check_world()
    engine = accelerator.distributed_type.value
    for wanted in SHARDED:
        if asked_for(wanted) and engine != wanted:
            raise UserError(
                f"accelerate is configured for {SUPPORTED[wanted]}, which it has on GPUs alone; "
                "here it would be plain DDP: give no configuration file"
            )
    if engine not in SUPPORTED or (engine == "FSDP" and not accelerator.is_fsdp2):
        engine = "FSDP version 1" if engine == "FSDP" else engine
        raise UserError(
            f"accelerate is configured for {engine}; only DDP, FSDP2 and DeepSpeed ZeRO are "
            "supported: give a file of configs/, or run `accelerate config` again"
        )
    if engine == "DEEPSPEED" and accelerator.mixed_precision == "fp16":
        # Its own loss scale, which we could neither log nor resume.
        raise UserError("--mixed_precision fp16: not with DeepSpeed; give bf16 or no")


def prepare(accelerator: Accelerator, config: Config, model, optimizer):
    """(model, optimizer) as the engine wants them.

    DeepSpeed clips and updates in its own `backward`: it must know the norm beforehand, and the
    batch, which it would otherwise ask of a loader.
    """
    accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "gradient_clipping": config.max_grad_norm,
        }
    return accelerator.prepare(model, optimizer)


def clip_gradient(accelerator: Accelerator, model, max_norm: float) -> torch.Tensor:
    """Scale the gradient to `max_norm`, if that is not 0 and less; its norm before that: ()."""
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return torch.as_tensor(norm, device=accelerator.device)


def all_finite(model) -> torch.Tensor:
    """Whether every weight, or every one of this process's shard, is finite: ()."""
    shards = [own_shard(parameter) for parameter in model.parameters()]
    return torch.stack([shard.isfinite().all() for shard in shards]).all()


def own_shard(parameter) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    if hasattr(parameter, "ds_tensor"):  # ZeRO 3: the last shard is padded with anything
        size = parameter.ds_tensor.numel()
        begin = torch.distributed.get_rank() * size
        return parameter.ds_tensor[: max(0, parameter.ds_numel - begin)]
    return parameter


# ---------------------------------------------------------------- the state of training


def gather_weights(accelerator: Accelerator, model) -> dict[str, torch.Tensor]:
    """Every weight by name, whole, float32: on the main process, on the CPU; {} elsewhere.

    All processes must call it, for each has a part; so with the next two.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return gather_weights_of_deepspeed(accelerator, model)
    return get_model_state_dict(model, options=StateDictOptions(**ON_MAIN))


def gather_moments(accelerator: Accelerator, model, optimizer) -> dict[str, dict]:
    """AdamW's `exp_avg`, `exp_avg_sq` and `step` by name of weight; {} before the first update."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return gather_moments_of_deepspeed(accelerator, model, optimizer)
    # Moments that are not there yet it would make by a step of its own, and count that step: the
    # first update would then be corrected as if it were the second.
    if not optimizer.state:
        return {}
    options = StateDictOptions(**ON_MAIN)
    return get_optimizer_state_dict(model, optimizer.optimizer, options=options).get("state", {})


ON_MAIN = {"full_state_dict": True, "cpu_offload": True}


def scatter_state(accelerator: Accelerator, model, optimizer, weights: dict, moments: dict) -> None:
    """What was gathered, back in its place, on any number of processes. What the main process gives
    counts; the others give {}."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        scatter_to_deepspeed(accelerator, model, optimizer, weights, moments)
        return
    shared = accelerator.num_processes > 1
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=shared)
    set_model_state_dict(model, weights, options=options)
    if on_main(lambda: bool(moments)):
        groups = get_optimizer_state_dict(model, optimizer.optimizer)["param_groups"]
        state = {"state": moments, "param_groups": groups} if moments else {}
        set_optimizer_state_dict(model, optimizer.optimizer, state, options=options)


# ---------------------------------------------------------------- its way through DeepSpeed

MOMENTS = ("exp_avg", "exp_avg_sq")


def gather_weights_of_deepspeed(accelerator: Accelerator, model) -> dict[str, torch.Tensor]:
    """From the float32 shards: `model.state_dict()` has the bfloat16 copies."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in model.module.named_parameters(remove_duplicate=False):  # tied ones, too
        frozen = [] if parameter.requires_grad else [parameter]  # which has no float32 copy
        with GatheredParameters(frozen):
            whole = parameter if frozen else safe_get_full_fp32_param(parameter)
            if accelerator.is_main_process:  # one at a time: the others keep their shards alone
                weights[name] = whole.detach().view(whole_shape(parameter)).float().cpu().clone()
    if accelerator.is_main_process:
        weights |= {name: buffer.cpu() for name, buffer in saved_buffers(model.module).items()}
    return weights


def gather_moments_of_deepspeed(accelerator: Accelerator, model, optimizer) -> dict[str, dict]:
    from deepspeed.utils import safe_get_full_optimizer_state

    states = list(optimizer.optimizer.optimizer.state.values())
    link_moments(optimizer.optimizer)
    moments = {}
    for name, parameter in trained(model) if states else ():
        found = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        if accelerator.is_main_process:
            shape = whole_shape(parameter)
            moments[name] = {key: tensor.view(shape).cpu() for key, tensor in found.items()}
            moments[name]["step"] = torch.as_tensor(states[0]["step"]).cpu()
    return moments


def scatter_to_deepspeed(accelerator: Accelerator, model, optimizer, weights, moments) -> None:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    def from_main(value: torch.Tensor | None, like) -> torch.Tensor:
        whole = torch.empty(whole_shape(like), device=accelerator.device)
        if accelerator.is_main_process:
            whole.copy_(value)
        return broadcast(whole)

    for name, parameter in model.module.named_parameters():
        weight = from_main(weights.get(name), parameter)
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, weight)
        with GatheredParameters([parameter], modifier_rank=0):  # the copy that computes
            parameter.data.copy_(weight)
    for name, buffer in saved_buffers(model.module).items():
        buffer.copy_(from_main(weights.get(name), buffer))

    step = on_main(lambda: next((state["step"] for state in moments.values()), None))
    if step is None:
        return
    zero = optimizer.optimizer
    shards = getattr(zero, "fp32_partitioned_groups_flat", None)  # ZeRO 3; else 1 and 2
    for shard in zero.single_partition_of_fp32_groups if shards is None else shards:
        zeros = {key: torch.zeros_like(shard) for key in MOMENTS}
        zero.optimizer.state[shard] = {"step": step.clone().to(shard.device), **zeros}
    link_moments(zero)
    for name, parameter in trained(model):
        for key in MOMENTS:
            moment = from_main(moments.get(name, {}).get(key), parameter)
            safe_set_full_optimizer_state(parameter, moment, key)


def trained(model):
    return ((name, p) for name, p in model.module.named_parameters() if p.requires_grad)


def link_moments(zero) -> None:
    """ZeRO 1 and 2 do this themselves when the first parameter group has been updated: too early
    for the second one (DeepSpeed 0.19.8)."""
    if hasattr(zero, "_hp_optimizer_states_linked"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def whole_shape(parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def saved_buffers(module) -> dict[str, torch.Tensor]:
    """Few models have any."""
    saved = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}
