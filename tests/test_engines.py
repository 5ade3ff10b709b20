"""FSDP2 and DeepSpeed ZeRO give what one process gives; on CPU, by tests/engine_on_cpu.py."""

import importlib.util
import json
import re
import shutil
import signal

import pytest
import torch
from conftest import ROOT, make_model, scalars, weights_of
from engine_on_cpu import environment_of
from test_processes import FLAGS, assert_same_training, launch
from transformers import AutoModelForSequenceClassification

import train
from runtime.processes import Stopped

ENGINES = ["fsdp2"]
if importlib.util.find_spec("deepspeed"):  # requirements-deepspeed.txt; .ci/run installs it
    ENGINES += ["deepspeed_zero2", "deepspeed_zero3"]


def launch_engine(engine: str, *flags: str) -> str:
    """train.py on two processes, in float32 unless `flags` say otherwise."""
    config = str(ROOT / "configs" / f"{engine}.yaml")
    flags = ["--mixed_precision=no", *flags]
    return launch(2, "tests/engine_on_cpu.py", config, str(ROOT / "train.py"), *flags)


@pytest.fixture(scope="module")
def one_process(corpus, tmp_path_factory):
    """(flags, a run of one process, another one stopped inside the validation of step 4).

    One layer 320 wide: ZeRO 3 leaves weights of less than 100,000 numbers whole.
    """
    folder = tmp_path_factory.mktemp("one_process")
    sizes = {"dim": 320, "hidden_dim": 320, "n_layers": 1}
    flags = [f"--model={make_model(folder / 'wide', **sizes)}", f"--dataset={corpus}", *FLAGS]
    one = [*flags, "--per_device_train_batch_size=8"]

    def stopped(*_):
        raise Stopped(signal.SIGTERM)

    train.main([*one, f"--output_dir={folder / 'run'}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", stopped)
        train.main([*one, f"--output_dir={folder / 'stopped'}"])
    return flags, folder / "run", folder / "stopped"


@pytest.mark.parametrize("engine", ENGINES)
def test_shards_change_no_loss_gradient_rate_or_weight(engine, one_process, tmp_path):
    """With two micro-batches, or under FSDP2 as few as the tokens allow; best/ is a plain model.

    Red: set_passes left out; `loss` without `* processes` in update; clip_gradient without
    full_tensor; for DeepSpeed: the rate set after the backward pass, "gradient_clipping" left out
    of wrap_for_engine.
    """
    flags, one, _ = one_process
    dealt = ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=2"]
    if engine == "fsdp2":
        dealt = ["--per_device_train_batch_size=4", "--max_tokens_per_forward=70"]
    said = launch_engine(engine, *flags, *dealt, f"--output_dir={tmp_path}")
    assert ("(FSDP2)" if engine == "fsdp2" else "(DeepSpeed)") in said  # and not DDP in its place
    assert_same_training(one, tmp_path, rounding=5e-5)
    best = AutoModelForSequenceClassification.from_pretrained(tmp_path / "best")
    assert {parameter.dtype for parameter in best.parameters()} == {torch.float32}
    assert type(best).__name__ == "DistilBertForSequenceClassification"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_goes_on_under_another_engine(engine, one_process, tmp_path):
    """From one process to two of another engine, in the middle of a run: `last/` is whole in all.
    It begins with an evaluation, and trains after it.

    Red: moments left out of scatter_state; inference_mode in predict; for DeepSpeed: one `step`
    tensor for all shards in scatter_zero_moments.
    """
    flags, one, stopped = one_process
    shutil.copytree(stopped, tmp_path / "run")
    same = [*flags, "--per_device_train_batch_size=8", f"--output_dir={tmp_path / 'run'}"]
    said = launch_engine(engine, *same)
    assert "resuming at step 4" in said
    assert "--per_device_train_batch_size 4 --gradient_accumulation_steps 1" in said
    assert_same_training(one, tmp_path / "run", rounding=5e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_computes_in_bf16_on_float32_weights(engine, one_process, tmp_path):
    """By the configuration's own `mixed_precision`. Red: choose_precision returning "no" for
    "auto"."""
    flags, one, _ = one_process
    dealt = ["--per_device_train_batch_size=4", "--mixed_precision=auto"]
    launch_engine(engine, *flags, *dealt, f"--output_dir={tmp_path}")
    validation = json.loads((tmp_path / "best" / "validation.json").read_text())
    assert validation["precision"] == "bf16"
    best = AutoModelForSequenceClassification.from_pretrained(tmp_path / "best")
    assert best.dtype == torch.float32  # as its config.json says
    weights = torch.cat([tensor.flatten() for tensor in weights_of(tmp_path, "best").values()])
    assert (weights.bfloat16().float() != weights).float().mean() > 0.9
    losses = [[value for _, value in scalars(run)["train/loss"]] for run in (one, tmp_path)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_configuration_is_what_its_name_says(path):
    """As Accelerate's launcher reads it. Red: `distributed_type: MULTI_GPU` in fsdp2.yaml."""
    env = environment_of(str(path), "train.py")
    assert ("ACCELERATE_USE_FSDP" in env) == (path.stem == "fsdp2")
    assert env.get("FSDP_VERSION", "2") == "2"
    stage = re.findall(r"zero(\d)", path.stem)
    assert ("ACCELERATE_USE_DEEPSPEED" in env) == bool(stage)
    if stage:
        assert env["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage[0]
    assert env["ACCELERATE_MIXED_PRECISION"] == "bf16"
