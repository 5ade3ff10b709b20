"""Dropout whose random numbers take a fifth of the time on a CPU.

torch draws one number of 64 bits for each element of a tensor, one after another, in a single
thread: that was 5 % of a training. Here one draw gives four elements 16 bits each.

In: a model. Out: the same, with the same weights under the same names. Independent of: the rest.
"""

import torch
from torch import nn

STEPS = 2**16  # a probability is rounded to a multiple of 1/65,536: 0.1 to 0.100006


class Dropout16(nn.Dropout):
    """`nn.Dropout` (Srivastava et al. 2014). The masks are by torch's generator, too: a seed, and a
    layer that is computed again, give the same ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        dropped = round(self.p * STEPS)
        if dropped in (0, STEPS):
            return super().forward(x)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: x.numel()].view(x.shape)  # from -32,768 on
        keep = torch.ge(bits, dropped - STEPS // 2, out=torch.empty_like(x, requires_grad=False))
        return x * keep.mul_(STEPS / (STEPS - dropped))


def draw_faster(model: nn.Module) -> None:
    """Give the model's dropout layers the class above."""
    for layer in model.modules():
        if type(layer) is nn.Dropout:
            layer.__class__ = Dropout16
