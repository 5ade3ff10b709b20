"""What DeepSpeed ZeRO keeps in attributes of its own: shards of weights and of AdamW's moments.

In: a model and an optimizer that DeepSpeed wrapped. Out: whole tensors on the main process, and
back. Independent of: data, files. Written against DeepSpeed 0.19.8, whose private names it uses.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from runtime.processes import on_main

MOMENTS = ("exp_avg", "exp_avg_sq")


def gather_zero_weights(accelerator: Accelerator, model) -> dict[str, torch.Tensor]:
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


def gather_zero_moments(accelerator: Accelerator, model, optimizer) -> dict[str, dict]:
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


def scatter_zero_state(accelerator: Accelerator, model, optimizer, weights, moments) -> None:
    """Put weights and moments of the main process into the shards of all."""
    scatter_zero_weights(accelerator, model, weights)
    step = on_main(lambda: next((state["step"] for state in moments.values()), None))
    if step is not None:
        scatter_zero_moments(accelerator, model, optimizer.optimizer, moments, step)


def scatter_zero_weights(accelerator: Accelerator, model, weights) -> None:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in model.module.named_parameters():
        weight = from_main(accelerator, weights.get(name), parameter)
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, weight)
        with GatheredParameters([parameter], modifier_rank=0):  # the copy that computes
            parameter.data.copy_(weight)
    for name, buffer in saved_buffers(model.module).items():
        buffer.copy_(from_main(accelerator, weights.get(name), buffer))


def scatter_zero_moments(accelerator: Accelerator, model, zero, moments, step) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state

    shards = getattr(zero, "fp32_partitioned_groups_flat", None)  # ZeRO 3; else 1 and 2
    for shard in zero.single_partition_of_fp32_groups if shards is None else shards:
        zeros = {key: torch.zeros_like(shard) for key in MOMENTS}
        zero.optimizer.state[shard] = {"step": step.clone().to(shard.device), **zeros}
    link_moments(zero)
    for name, parameter in trained(model):
        for key in MOMENTS:
            moment = from_main(accelerator, moments.get(name, {}).get(key), parameter)
            safe_set_full_optimizer_state(parameter, moment, key)


def from_main(accelerator: Accelerator, value: torch.Tensor | None, like) -> torch.Tensor:
    """`value` of the main process on all, in the shape of the whole parameter `like`."""
    whole = torch.empty(whole_shape(like), device=accelerator.device)
    if accelerator.is_main_process:
        whole.copy_(value)
    return broadcast(whole)


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


def own_zero_shard(parameter) -> torch.Tensor:
    """What this process holds of `parameter`. ZeRO 3 pads the last shard with arbitrary numbers."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter
    size = parameter.ds_tensor.numel()
    begin = torch.distributed.get_rank() * size
    return parameter.ds_tensor[: max(0, parameter.ds_numel - begin)]
