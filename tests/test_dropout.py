"""Dropout by 16 bits is dropout."""

import math

import pytest
import torch
from conftest import load_named
from scipy.stats import chi2_contingency
from torch import nn
from torch.utils.checkpoint import checkpoint

from runtime.dropout import Dropout16


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("p", [0.0001, 0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_probability_and_the_mean_stays(p):
    """Within four standard errors of two million elements. Red: `STEPS // 2` left out; a factor of
    1 / p; int8."""
    x = torch.ones(1001, 1999)  # no multiple of four
    y = Dropout16(p)(x)
    error = 4 * math.sqrt(p * (1 - p) / x.numel())
    assert (y == 0).double().mean().item() == pytest.approx(p, abs=error + 1e-5)
    assert y.double().mean().item() == pytest.approx(1, abs=(error + 1e-5) / (1 - p))
    assert set(y.unique().tolist()) == {0, y.max().item()}
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)


def test_elements_are_dropped_independently_of_those_beside_them():
    """Also of the three that come of the same draw. Red: each draw's bits repeated four times."""
    dropped = (Dropout16(0.3)(torch.ones(4_000_000)) == 0).numpy()
    for distance in (1, 2, 3, 4, 8):
        pairs = dropped[:-distance] * 2 + dropped[distance:]
        counts = [[(pairs == 2 * a + b).sum() for b in (0, 1)] for a in (0, 1)]
        assert chi2_contingency(counts).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_has_the_zeros_and_the_factor_of_the_output(dtype):
    """For shapes of any size, also none; nothing of another dtype. Red: the mask drawn anew."""
    for shape in ((3, 5, 7), (1,), (0, 4), (2, 2)):
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        y = Dropout16(0.5)(x)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == dtype
        torch.testing.assert_close(y, x * x.grad)
        assert set(x.grad.unique().tolist()) <= {0, 2}


def test_a_seed_gives_the_masks_and_so_does_a_layer_that_is_computed_again():
    """Red: numpy's generator."""
    layer, x = Dropout16(0.4), torch.ones(4, 100, requires_grad=True)
    torch.manual_seed(7)
    y = layer(x)
    torch.manual_seed(7)
    assert torch.equal(layer(x), y)
    y = checkpoint(lambda x: layer(x).square(), x, use_reentrant=False)
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * y.detach())


def test_nothing_is_dropped_in_evaluation_or_at_0_and_all_at_1():
    """Red: `self.training` left out; at 1 a division by zero."""
    x = torch.randn(100)
    assert torch.equal(Dropout16(0.5).eval()(x), x)
    assert torch.equal(Dropout16(0.0)(x), x)
    assert not Dropout16(1.0)(x).any()


def test_the_layers_of_a_model_are_replaced_unless_it_is_compiled(tiny):
    """Red: draw_faster left out of load_model."""
    names = ["negative", "positive"]
    for flags, kind in ({}, Dropout16), ({"torch_compile": True}, nn.Dropout):
        layers = [
            m for m in load_named(tiny, names, **flags).modules() if isinstance(m, nn.Dropout)
        ]
        assert len(layers) > 2
        assert {type(layer) for layer in layers} == {kind}
