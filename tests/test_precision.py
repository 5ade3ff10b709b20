"""Mixed precision and compiled models change what they should, and nothing else."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import scalars, weights_of
from events import dying_at
from safetensors.torch import load_file
from test_loop import assert_same_bits
from torch.nn import functional

import train
from runtime.flags import UserError


def losses(folder) -> list[float]:
    return [value for _, value in scalars(folder)["train/loss"]]


# ---------------------------------------------------------------- bf16


@pytest.mark.parametrize("flags", [{"mixed_precision": "bf16"}, {}])
def test_bf16_is_for_the_arithmetic_alone(flags, train_command, tmp_path, monkeypatch):
    """By the flag, or as `accelerate launch` and its config files ask for it. Validation has it
    too, and says so; weights and moments are float32.

    Red: choose_precision returning "no" for "auto"; a model cast to bfloat16.
    """
    plain = train_command(logging_steps=1, dropout=0.0, output_dir=tmp_path / "plain")
    if not flags:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    half = train_command(logging_steps=1, dropout=0.0, output_dir=tmp_path / "half", **flags)
    assert losses(half) != losses(plain)
    assert losses(half) == pytest.approx(losses(plain), rel=0.02)
    said = [json.loads((run / "best" / "validation.json").read_text()) for run in (plain, half)]
    assert [validation["precision"] for validation in said] == ["no", "bf16"]
    loss = dict(scalars(half)["eval/loss"])[said[1]["step"]]
    assert said[1]["loss"] == pytest.approx(loss, rel=1e-6)
    for name in ("last", "best"):
        weights = torch.cat([tensor.flatten() for tensor in weights_of(half, name).values()])
        assert weights.dtype == torch.float32
        assert (weights.bfloat16().float() != weights).float().mean() > 0.9


# ---------------------------------------------------------------- fp16


@pytest.fixture
def fp16(monkeypatch):
    """fp16(scale): a run with autocast to float16 and a loss scale that begins there.

    Accelerate has fp16 on GPUs alone; autocast and the scaler know the CPU. What is set here is
    what `Accelerator(mixed_precision="fp16")` sets.
    """
    make = train.make_accelerator

    def made(config):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = make(config)
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale[0], growth_interval=4)
        return accelerator

    scale = []
    monkeypatch.setattr(train, "make_accelerator", made)
    return scale.append


def test_an_fp16_step_that_overflows_is_skipped_counted_and_a_step(fp16, train_command, tmp_path):
    """The scale begins at 2^30: some halvings are needed, each a step without an update.

    Red: no `where` around the norm in Monitor.add_step; loss and norm written for steps without an
    update.
    """
    fp16(2.0**30)
    folder = train_command(logging_steps=1, dropout=0.0)
    curves = scalars(folder)
    skipped = [value for _, value in curves["train/skipped_updates"]]
    assert len(skipped) == 28
    assert skipped[0] == 1
    assert 3 < sum(skipped) < 28
    updated = [step for step, out in enumerate(skipped, 1) if not out]
    for tag in ("train/loss", "train/grad_norm"):
        assert [step for step, _ in curves[tag]] == updated
    moments = load_file(folder / "last" / "optimizer.safetensors")
    counts = {tensor.item() for name, tensor in moments.items() if name.startswith("step ")}
    assert counts == {28 - sum(skipped)}


def test_an_fp16_run_stopped_and_started_again_ends_in_the_same_bits(fp16, train_command, tmp_path):
    """With its loss scale. Red: the scaler's state left out of save_last, or of load_last."""
    fp16(2.0**30)
    whole = train_command(output_dir=tmp_path / "whole")
    with dying_at(9):  # updates: those that were skipped do not count
        train_command(output_dir=tmp_path / "stopped")
    assert_same_bits(whole, train_command(output_dir=tmp_path / "stopped"))


def test_an_fp16_run_that_diverges_ends(fp16, train_command, tmp_path, monkeypatch):
    """Every loss infinite: the scale is halved at each step. Red: read_sums without get_scale; no
    `where` around the loss in Monitor.add_step (the run then ends at the first overflow, from which
    it might have recovered)."""
    entropy = functional.cross_entropy
    monkeypatch.setattr(
        functional, "cross_entropy", lambda *a, **k: entropy(*a, **k) * float("inf")
    )
    fp16(1.0)
    with pytest.raises(UserError, match="NaN or infinite between steps 11 and 14 of 28"):
        train_command()


# ---------------------------------------------------------------- torch.compile


def test_a_compiled_model_trains_alike(train_command, tmp_path, monkeypatch):
    """To rounding, with lengths that vary; `best/` has the plain names. Compiled without inductor,
    which takes minutes (bench/compiled.py of commit 760e513 has it).

    Red: no model.compile in wrap_for_engine; `torch.compile(model)` (its names begin with
    _orig_mod).
    """
    compiled, compile_ = [], torch.nn.Module.compile

    def fast(self, *arguments, **keywords):
        compiled.append(self)
        compile_(self, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", fast)
    flags = {"dropout": 0.0, "logging_steps": 1, "gradient_accumulation_steps": 2, "max_steps": 6}
    plain = train_command(output_dir=tmp_path / "plain", **flags)
    assert not compiled
    faster = train_command(output_dir=tmp_path / "faster", torch_compile=True, **flags)
    assert compiled
    assert losses(faster) == pytest.approx(losses(plain), rel=1e-5)
    best = [weights_of(folder, "best") for folder in (plain, faster)]
    assert best[0].keys() == best[1].keys()
    assert max((best[0][name] - best[1][name]).abs().max() for name in best[0]) < 1e-4
