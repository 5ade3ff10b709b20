"""Two and three processes on CPU (gloo, torchrun) give what one gives."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, scalars, weights_of

FLAGS = [
    "--max_length=32",
    "--learning_rate=1e-3",
    "--dropout=0",
    "--max_steps=9",
    "--logging_steps=1",
    "--validate_steps=4",
    "--num_threads=1",
]


def launch(processes: int, script: str, *flags: str) -> str:
    """`accelerate launch --cpu --num_processes 2` starts one process unless MPI is there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", str(ROOT / script), *flags]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(("processes", "accumulation", "size"), [(2, 1, 4), (2, 4, 1)])
def test_processes_and_accumulation_change_no_loss_gradient_rate_or_validation(
    tiny, corpus, tmp_path, processes, accumulation, size
):
    """Invariants 1, 5 and 8; batches of 7 and 8 over 8 parts leave a process without an example.

    Red: `loss` without `* processes`; a prepared scheduler; predict without its reduce.
    """
    common = [f"--model={tiny}", f"--dataset={corpus}", *FLAGS]
    one = [*common, "--per_device_train_batch_size=8", f"--output_dir={tmp_path / 'one'}"]
    several = [
        *common,
        f"--per_device_train_batch_size={size}",
        f"--gradient_accumulation_steps={accumulation}",
        f"--output_dir={tmp_path / 'several'}",
    ]
    import train

    train.main(one)
    said = launch(processes, "train.py", *several)
    assert said.count("starting:") == 1  # only the main process prints
    assert f"{processes} x cpu" in said
    curves = [scalars(tmp_path / name) for name in ("one", "several")]
    for tag in (
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "validation/loss",
        "validation/accuracy",
    ):
        assert [step for step, _ in curves[1][tag]] == [step for step, _ in curves[0][tag]]
        expected = [value for _, value in curves[0][tag]]
        assert [value for _, value in curves[1][tag]] == pytest.approx(expected, rel=1e-4)
    differences = [
        (tensor - weights_of(tmp_path / "several")[name]).abs().max()
        for name, tensor in weights_of(tmp_path / "one").items()
    ]
    assert max(differences) < 1e-4


def test_a_report_is_the_same_on_three_processes(tiny, corpus, tmp_path):
    """Invariant 5: 61 texts over 3 processes in batches of 7. Red: predict without its reduce."""
    import eval as evaluation
    import train

    train.main([f"--model={tiny}", f"--dataset={corpus}", f"--output_dir={tmp_path}", *FLAGS])
    best = tmp_path / "best"
    evaluation.main([f"--ckpt={best}", f"--report={tmp_path / 'one.json'}"])
    flags = [f"--ckpt={best}", f"--report={tmp_path / 'three.json'}", "--num_threads=1"]
    launch(3, "eval.py", *flags, "--per_device_eval_batch_size=7")
    one, three = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "three"))
    assert three["examples"] == 61
    assert three["confusion"] == one["confusion"]
    assert three["loss"] == pytest.approx(one["loss"], rel=1e-6)
