"""Two and three processes on CPU (gloo, torchrun) give what one gives."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, scalars, weights_of
from test_loop import assert_same_bits

FLAGS = [
    "--max_length=32",
    "--learning_rate=1e-3",
    "--dropout=0",
    "--max_steps=9",
    "--logging_steps=1",
    "--validate_steps=4",
    "--num_threads=1",
]


def start(processes: int, script: str, *flags: str) -> subprocess.Popen:
    """`accelerate launch --cpu --num_processes 2` starts one process unless MPI is there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", str(ROOT / script), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "ACCELERATE_USE_CPU": "1"}, **pipes)


def launch(processes: int, script: str, *flags: str) -> str:
    with start(processes, script, *flags) as running:
        out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err[-3000:]
    return out


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
    assert f"over {processes} x cpu" in said
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


def test_two_processes_stopped_and_one_of_them_killed_end_in_the_same_bits(tiny, corpus, tmp_path):
    """Invariant 3 on two processes, with dropout, stopped inside an evaluation or a window; after a
    SIGKILL of the main one the other ends within ten seconds.

    Red: each process raising its own flag in `check`; `sums` saved as their sum; no group in Stop
    (the other waits for the launcher to kill it).
    """
    flags = [f"--model={tiny}", f"--dataset={corpus}", *FLAGS, "--dropout=0.1", "--max_steps=300"]
    flags += ["--logging_steps=7", "--eval_steps=10", "--validate_steps=100", "--save_steps=20"]
    flags += ["--max_save_share=1", "--per_device_eval_batch_size=4"]
    launch(2, "train.py", *flags, f"--output_dir={tmp_path / 'whole'}")
    folder = tmp_path / "stopped"
    with start(2, "train.py", *flags, f"--output_dir={folder}") as running:
        wait_for_save(folder, after=20)
        running.terminate()
        out, err = running.communicate(timeout=60)
    assert out.count("stopped at step") == 1, err[-3000:]
    stopped_at = saved_step(folder)
    assert 20 < stopped_at < 300
    with start(2, "train.py", *flags, f"--output_dir={folder}") as running:
        wait_for_save(folder, after=stopped_at)
        os.kill(int((folder / ".lock").read_text().split()[1]), signal.SIGKILL)
        killed = time.monotonic()
        out, _ = running.communicate(timeout=60)
        assert time.monotonic() - killed < 10
    assert f"resuming at step {stopped_at}" in out
    assert running.returncode != 0
    launch(2, "train.py", *flags, f"--output_dir={folder}")
    assert_same_bits(tmp_path / "whole", folder)


def saved_step(folder) -> int:
    try:
        return json.loads((folder / "last" / "progress.json").read_text())["progress"]["step"]
    except FileNotFoundError:
        return -1


def wait_for_save(folder, after: int) -> None:
    begun = time.monotonic()
    while saved_step(folder) <= after:
        assert time.monotonic() - begun < 120
        time.sleep(0.02)


def test_what_fails_on_the_main_process_fails_on_all(tmp_path):
    """No process is left waiting. Red: on_main without its broadcast, or for UserError alone."""
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from accelerate import Accelerator\n"
        "from config import UserError\n"
        "from processes import on_main\n"
        "accelerator = Accelerator(cpu=True)\n"
        "rank = accelerator.process_index\n"
        "def fail(kind):\n"
        "    raise kind('the disk')\n"
        "for kind in (UserError, ValueError):\n"
        "    try:\n"
        "        on_main(lambda: fail(kind))\n"
        "    except Exception as error:\n"
        "        sys.stdout.write(f'{rank} {type(error).__name__} {error}\\n')\n"
        "sys.stdout.write(f'{rank} {on_main(lambda: 7)}\\n')\n"
        "sys.stdout.flush()\n"
        "accelerator.end_training()\n"
    )
    with start(2, script) as running:
        said, _ = running.communicate(timeout=60)
    assert sorted(said.splitlines()) == [
        "0 7",
        "0 UserError the disk",
        "0 ValueError the disk",
        "1 7",
        "1 RuntimeError the main process failed: ValueError('the disk')",
        "1 UserError the disk",
    ]
