"""Two and three processes on CPU (gloo, torchrun) give what one gives."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
import torch.distributed.run
from conftest import ROOT, scalars, weights_of
from events import dying_at
from forked import Forked, Group, free_port, wait_until
from safetensors.torch import load_file
from test_loop import assert_same_bits

import eval as evaluation
import train
from bench import dealing
from runtime.flags import UserError
from runtime.processes import explain

FLAGS = [
    "--max_length=32",
    "--learning_rate=1e-3",
    "--dropout=0",
    "--max_steps=9",
    "--logging_steps=1",
    "--validate_steps=4",
    "--num_threads=1",
]


def torchrun(processes: int, script: str, *flags: str) -> Forked:
    """`accelerate launch --cpu --num_processes 2` starts one process unless MPI is there."""
    words = ["--standalone", f"--nproc_per_node={processes}", ROOT / script, *flags]
    return Forked(torch.distributed.run.__file__, *words, ACCELERATE_USE_CPU="1")


def launch(processes: int, script: str, *flags: str) -> str:
    """What a run of so many processes printed; without a launcher, which adds seconds of start."""
    with Group(processes, ROOT / script, *flags) as running:
        out, err = running.communicate(timeout=300)
        assert running.returncode == 0, err[-3000:]
    return out


@pytest.mark.parametrize(("processes", "size"), [(2, 50), (3, 9)])
def test_every_mix_gives_one_gradient_one_rate_and_one_report(processes, size):
    """Against float64, one process, one forward pass: bench/dealing.py, which
    has more sizes, batches and the peers. In 12 parts of 9 texts a process has none.

    Red: `* accumulation` or `* processes` left out; a share dealt twice; a rate of step + 1.
    """
    rows = dealing.launch(processes, sizes=(size,), batches=(12,), run=launch)
    mixes = [row for row in rows if "loop" in row]
    assert len(mixes) == 3
    for row in mixes:
        assert max(row["differences"]) <= 1e-6, row
        assert row["factors"] == pytest.approx([1] * len(row["factors"]), abs=1e-6)
        assert row["rate_difference"] <= 1e-12
    reports = [row for row in rows if "evaluation" in row]
    assert len(reports) == 9
    for row in reports:
        assert row["counted"] == row["texts"]
        assert row["same_confusion"]
        assert row["loss_difference"] <= 1e-6


def test_a_report_is_the_same_on_three_processes(tiny, corpus, tmp_path):
    """61 texts over 3 processes in batches of 7. Red: predict without its reduce."""

    train.main([f"--model={tiny}", f"--dataset={corpus}", f"--output_dir={tmp_path}", *FLAGS])
    best = tmp_path / "best"
    evaluation.main([f"--ckpt={best}", f"--report={tmp_path / 'one.json'}"])
    flags = [f"--ckpt={best}", f"--report={tmp_path / 'three.json'}", "--num_threads=1"]
    launch(3, "eval.py", *flags, "--per_device_eval_batch_size=7")
    one, three = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "three"))
    assert three["examples"] == 61
    assert three["confusion"] == one["confusion"]
    assert three["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_thresholds_are_printed_once(one_process):
    """Red: choose_threshold called on all processes."""
    said = launch(2, "eval.py", f"--ckpt={one_process[1] / 'best'}", "--thresholds")
    assert said.count("of the 45 validation texts") == 1


def test_two_processes_stopped_and_one_of_them_killed_end_in_the_same_bits(tiny, corpus, tmp_path):
    """On two processes, with dropout, stopped inside an evaluation or a window; after a
    SIGKILL of the main one the other ends within ten seconds.

    Red: each process raising its own flag in `check`; `sums` saved as their sum; no group in Stop
    (the other waits for the launcher to kill it).
    """
    flags = [f"--model={tiny}", f"--dataset={corpus}", *FLAGS, "--dropout=0.1", "--max_steps=90"]
    flags += ["--logging_steps=7", "--eval_steps=10", "--validate_steps=50", "--save_steps=20"]
    flags += ["--max_save_share=1", "--per_device_eval_batch_size=4"]
    launch(2, "train.py", *flags, f"--output_dir={tmp_path / 'whole'}")
    folder = tmp_path / "stopped"
    with Group(2, ROOT / "train.py", *flags, f"--output_dir={folder}") as running:
        wait_for_save(folder, after=20)
        running.terminate()
        out, err = running.communicate(timeout=60)
    assert out.count("stopped at step") == 1, err[-3000:]
    stopped_at = saved_step(folder)
    assert 20 < stopped_at < 90
    with Group(2, ROOT / "train.py", *flags, f"--output_dir={folder}") as running:
        wait_for_save(folder, after=stopped_at)
        os.kill(int((folder / ".lock").read_text().split()[1]), signal.SIGKILL)
        killed = time.monotonic()
        out, _ = running.communicate(timeout=60)
        assert time.monotonic() - killed < 10
    assert f"resuming at step {stopped_at}" in out
    assert running.returncode != 0
    launch(2, "train.py", *flags, f"--output_dir={folder}")
    assert_same_bits(tmp_path / "whole", folder)


@pytest.fixture(scope="module")
def one_process(tiny, corpus, tmp_path_factory):
    """(flags, a run of one process at batch 8, another one as a kill after step 5 left it)."""
    folder = tmp_path_factory.mktemp("one_process")
    flags = [f"--model={tiny}", f"--dataset={corpus}", *FLAGS, "--save_steps=5"]
    flags += ["--max_save_share=1", "--class_weights=balanced", "--label_smoothing_factor=0.1"]
    one = [*flags, "--per_device_train_batch_size=8"]
    train.main([*one, f"--output_dir={folder / 'run'}"])
    with dying_at(6):
        train.main([*one, f"--output_dir={folder / 'killed'}"])
    return flags, folder / "run", folder / "killed"


def assert_same_training(one, several, rounding=1e-6):
    """Weights, moments and curves to rounding. (Where a gradient is next to 0, AdamW makes a whole
    step of its rounding: that shows in some weights of a larger model.)"""
    for name, tensor in weights_of(one).items():
        assert (tensor - weights_of(several)[name]).abs().max() < rounding
    moments = [load_file(folder / "last" / "optimizer.safetensors") for folder in (one, several)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.allclose(moments[0][key], moments[1][key], atol=1e-7) for key in moments[0])
    curves = [scalars(folder) for folder in (one, several)]
    for tag in ("train/loss", "train/grad_norm", "train/learning_rate", "eval/loss"):
        assert [step for step, _ in curves[0][tag]] == [step for step, _ in curves[1][tag]]
        expected = [value for _, value in curves[0][tag]]
        assert [value for _, value in curves[1][tag]] == pytest.approx(expected, rel=1e-5)


def test_a_run_of_one_process_goes_on_with_three(one_process, tmp_path):
    """The same command, the same texts, though 3 does not divide 8.

    Red: keep_global_batch returning `config`.
    """
    flags, one, killed = one_process
    shutil.copytree(killed, tmp_path / "run")
    same = [*flags, "--per_device_train_batch_size=8", f"--output_dir={tmp_path / 'run'}"]
    said = launch(3, "train.py", *same)
    assert said.count("resuming at step 5") == 1  # only the main process prints
    adapted = "--per_device_train_batch_size 3 --gradient_accumulation_steps 1"
    assert f"the batches of 8 are kept, with {adapted}" in said
    assert_same_training(one, tmp_path / "run")


def test_a_run_of_two_processes_goes_on_with_one(one_process, tmp_path, capsys):
    """And then with the flags that were worked out, given as flags; other flags are refused.

    Red: keep_global_batch returning `config`; run.settings from the adapted flags.
    """
    flags, one, _ = one_process
    output = f"--output_dir={tmp_path / 'run'}"
    dies = write_script(tmp_path, "if update == 6: raise KeyboardInterrupt")
    with Group(2, dies, *flags, "--per_device_train_batch_size=4", output) as running:
        running.communicate(timeout=100)
    with pytest.raises(UserError, match=r"batches of 8, not 2: give --per_device_train_batch_size"):
        train.main([*flags, "--per_device_train_batch_size=2", output])
    with dying_at(8):  # accumulation is worked out
        train.main([*flags, "--per_device_train_batch_size=4", output])
    adapted = "--per_device_train_batch_size 4 --gradient_accumulation_steps 2"
    assert f"the batches of 8 are kept, with {adapted}" in capsys.readouterr().out
    worked_out = ["--per_device_train_batch_size=4", "--gradient_accumulation_steps=2"]
    train.main([*flags, *worked_out, output])
    assert_same_training(one, tmp_path / "run")


def test_two_processes_make_as_few_passes_as_the_tokens_allow(one_process, tmp_path):
    """Some steps with one, some with more: the same training. Red: set_passes without its `step`,
    or left out (gradients are exchanged too early)."""
    flags, one, _ = one_process
    words = ["--per_device_train_batch_size=4", "--max_tokens_per_forward=70"]
    said = launch(2, "train.py", *flags, *words, f"--output_dir={tmp_path / 'run'}")
    assert "as few passes of at most 70 tokens as a step needs" in said
    assert_same_training(one, tmp_path / "run")


def write_script(folder, body: str, first: str = ""):
    """train.py with `body` before each update, knowing `update` and `rank`; `first` before all."""
    script = folder / "patched.py"
    script.write_text(
        "import os, runpy, sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from events import before_update\n"
        "from runtime.flags import UserError\n"
        f"{first}\n"
        "rank = int(os.environ['RANK'])\n"
        "def event(optimizer, update):\n"
        f"    {body}\n"
        "with before_update(event):\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    return script


DISK = ("raise UserError('the disk')", "error: the disk", None)
FAULT = ("raise ValueError('a fault')", None, "[rank1]: ValueError")
DEATH = ("os.kill(os.getpid(), 9)", "error: another process of this run died", None)


@pytest.mark.parametrize(
    ("start", "event", "line", "traceback"),
    [(Group, *DISK), (Group, *FAULT), (Group, *DEATH), (torchrun, *DISK)],
)
def test_one_failure_is_one_line(tiny, corpus, tmp_path, start, event, line, traceback):
    """Of whichever process fails first; the others end within seconds, and silently, whether a
    launcher ends them or nobody does.

    Red: failed_first always true; run_command that looks at LOCAL_RANK alone; no look for " by
    peer" in explain.
    """
    flags = [f"--model={tiny}", f"--dataset={corpus}", *FLAGS, f"--output_dir={tmp_path / 'run'}"]
    begun = time.monotonic()
    script = write_script(tmp_path, f"if (update, rank) == (3, 1): {event}")
    with start(2, script, *flags) as running:
        _, err = running.communicate(timeout=100)
    assert time.monotonic() - begun < 45  # of which nearly all is start-up
    assert running.returncode != 0
    lines = [said for said in err.splitlines() if said.startswith("error: ")]
    assert len(lines) == (line is not None), err
    assert all(said.startswith(line) for said in lines)
    ranks = {said.split(":")[0] for said in err.splitlines() if said.startswith("[rank")}
    assert ranks == ({traceback.split(":")[0]} if traceback else set())
    assert (traceback or "") in err


@pytest.mark.parametrize(
    "words", ["Read error [::1]:9: Connection reset by peer", "writev [::1]:9: Broken pipe"]
)
def test_the_death_of_another_process_is_told_in_each_of_gloos_words(words):
    """Which of them it is, is a race between its threads. Red: no ": Broken pipe"."""
    lines, status = explain(RuntimeError(f"[pair.cc:553] {words}. GLHF!"), "")
    assert lines[0].startswith("another process of this run died")
    assert status == 1


def test_the_main_process_decides_for_all_whether_a_save_is_affordable(tiny, corpus, tmp_path):
    """The clocks differ; a process that saved alone would wait for ever. Red: `on_main` left out of
    follow_up."""
    first = (
        "from runtime.monitor import Monitor\n"
        "Monitor.can_afford_save = lambda self: os.environ['RANK'] == '0'"
    )
    flags = [f"--model={tiny}", f"--dataset={corpus}", *FLAGS, f"--output_dir={tmp_path / 'run'}"]
    script = write_script(tmp_path, "pass", first)
    with Group(2, script, *flags, "--save_steps=1", "--validate_steps=99") as running:
        _, err = running.communicate(timeout=60)
        assert running.returncode == 0, err[-3000:]


def test_processes_that_read_other_texts_are_refused(tiny, corpus, tmp_path):
    """Red: require_same without its comparison."""
    first = (
        "import data\n"
        "label = data.label_rows\n"
        "if os.environ['RANK'] == '1':\n"
        "    data.label_rows = lambda *a, **b: label(*a, **b).select(list(range(1, 150)))"
    )
    flags = [f"--model={tiny}", f"--dataset={corpus}", *FLAGS, f"--output_dir={tmp_path / 'run'}"]
    with Group(2, write_script(tmp_path, "pass", first), *flags) as running:
        _, err = running.communicate(timeout=60)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [": process 1 reads other texts than the main one" in line for line in lines] == [True]


def test_scalars_up_to_a_save_are_on_the_disk_with_it(tiny, corpus, tmp_path):
    """A kill -9 after `last/` of step 6, with a slow disk under TensorBoard. Red: save_last
    without its flush."""
    slow = (
        "import time\n"
        "from tensorboard.summary.writer.record_writer import RecordWriter\n"
        "write = RecordWriter.write\n"
        "RecordWriter.write = lambda self, data: (time.sleep(0.05), write(self, data))"
    )
    flags = [f"--model={tiny}", f"--dataset={corpus}", *FLAGS, f"--output_dir={tmp_path / 'run'}"]
    flags += ["--logging_steps=2", "--save_steps=6", "--validate_steps=99", "--max_save_share=1"]
    script = write_script(tmp_path, "if update == 8: os.kill(os.getpid(), 9)", first=slow)
    with Group(1, script, *flags) as running:
        running.communicate(timeout=60)
    assert saved_step(tmp_path / "run") == 6
    assert [step for step, _ in scalars(tmp_path / "run")["train/loss"]] == [2, 4, 6]


def test_texts_are_tokenized_once_for_all_processes(tiny, corpus, tmp_path):
    """Red: one_goes_first without its waits."""
    counting = (
        "import data\n"
        "encode = data.encode\n"
        "def counted(texts, *rest):\n"
        "    sys.stdout.write(f'tokenized {len(texts)}\\n')\n"
        "    return encode(texts, *rest)\n"
        "data.encode = counted"
    )
    script = write_script(tmp_path, "pass", first=counting)
    flags = [f"--model={tiny}", f"--dataset={corpus}", *FLAGS, f"--output_dir={tmp_path / 'run'}"]
    flags += ["--max_length=31"]  # no other test has these token ids on disk
    with Group(2, script, *flags) as running:
        said, err = running.communicate(timeout=100)
    assert running.returncode == 0, err[-3000:]
    lines = said.splitlines()
    assert [lines.count(f"tokenized {texts}") for texts in (105, 45)] == [1, 1]


def test_two_machines_are_one_run(one_process, tmp_path):
    """Processes as two launchers start them on machines that share no disk: each has its own output
    folder and caches. The second writes nothing, and needs no `last/` to go on from.

    Red: `last/` read on every process; on_main by the first process of each machine.
    """
    flags, one, killed = one_process
    shutil.copytree(killed, tmp_path / "machine0")
    every = {"ACCELERATE_USE_CPU": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    every |= {"MASTER_PORT": str(free_port()), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    machines = []
    for rank in (0, 1):
        words = [ROOT / "train.py", *flags, "--per_device_train_batch_size=4"]
        words += [f"--output_dir={tmp_path / f'machine{rank}'}"]
        own = {"RANK": str(rank), "HF_HOME": str(tmp_path / f"hf{rank}")}
        machines.append(Forked(*words, **every, **own))
    said = [machine.communicate(timeout=120) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said[0][1][-3000:]
    assert "steps of 8 texts" in said[0][0]
    assert "2 processes (DDP) on cpu" in said[0][0]
    assert "per process and step 1 x at most 4 texts" in said[0][0]
    assert said[1][0] == ""
    assert not (tmp_path / "machine1").exists()
    assert_same_training(one, tmp_path / "machine0")


# What that launcher exports (accelerate 1.15.0), among others.
LAUNCHED = {"ACCELERATE_DYNAMO_MODE": "default", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (LAUNCHED, "several processes were asked for, and Accelerate made each a run of its own"),
        ({"WORLD_SIZE": "2"}, "2 processes were asked for, and Accelerate made each a run of its"),
        ({"ACCELERATE_USE_FSDP": "true"}, "configured for FSDP2, which it supports on GPUs"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "configured for DeepSpeed, which "),
    ],
)
def test_processes_and_shards_that_were_asked_for_are_there(env, line, tmp_path, monkeypatch):
    """`accelerate launch --cpu --num_processes 2` starts one process, torchrun without
    ACCELERATE_USE_CPU as many runs as processes, and a file for shards gives none without GPUs.

    Red: require_asked_processes, its look at MASTER_PORT, or SHARDED left out.
    """
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=line):
        train.main([f"--output_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_an_evaluation_is_one_too(one_process, monkeypatch):
    """Red: eval.py without require_asked_processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were asked for"):
        evaluation.main([f"--ckpt={one_process[1] / 'best'}", "--text=w1 w2"])


def saved_step(folder) -> int:
    try:
        return json.loads((folder / "last" / "progress.json").read_text())["progress"]["step"]
    except FileNotFoundError:
        return -1


def wait_for_save(folder, after: int) -> None:
    wait_until(lambda: saved_step(folder) > after, timeout=120)


def test_what_fails_on_the_main_process_fails_on_all(tmp_path):
    """No process is left waiting. Red: on_main without its broadcast, or for UserError alone."""
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from accelerate import Accelerator\n"
        "from runtime.flags import UserError\n"
        "from runtime.processes import on_main\n"
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
    with Group(2, script) as running:
        said, _ = running.communicate(timeout=60)
    assert sorted(said.splitlines()) == [
        "0 7",
        "0 UserError the disk",
        "0 ValueError the disk",
        "1 7",
        "1 RuntimeError the main process failed: ValueError('the disk')",
        "1 UserError the disk",
    ]
