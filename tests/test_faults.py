"""Whatever ends a run, nothing is lost: the same command goes on and ends in the same bits.

`bench/kill.py` does the same with hundreds of kills of real processes; here each class of fault has
its test. Those that a signal or an error brings about run in this process.
"""

import contextlib
import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import accelerate.commands.launch
import kill_harness
import pytest
import torch
from conftest import ROOT, scalars, train_small, weights_of
from events import before_update, dying_at
from forked import Forked, wait_until
from test_folders import holder
from test_loop import assert_same_bits
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

import data
import train
from runtime import checkpoint, folders, processes
from runtime.flags import UserError
from runtime.folders import write_manifest
from runtime.processes import SIGNALS, Stop, Stopped, run_command


@pytest.fixture(scope="module")
def whole(tiny, corpus, tmp_path_factory) -> Path:
    """The run that nothing disturbs."""
    return command(tiny, corpus, tmp_path_factory.mktemp("whole"))[0]


def command(tiny, corpus, output, **flags) -> tuple[Path, int]:
    given = {"model": tiny, "dataset": corpus, "output_dir": output}
    return train_small(**given | {"per_device_eval_batch_size": 8, "dropout": 0.1} | flags)


@pytest.fixture
def run(tiny, corpus, tmp_path):
    """run(flag=value, ...) starts the command once more in one folder: (the folder, the status)."""

    def start(**flags):
        return command(tiny, corpus, tmp_path / "run", **flags)

    return start


@pytest.fixture(autouse=True)
def ctrl_c_as_on_a_terminal():
    """A job that a script put into the background has SIGINT ignored, and so have its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at_step(step, event):
    """`event()` in the middle of that step, between its last micro-batch and its update."""
    return before_update(lambda _, update: event() if update == step else None)


@contextlib.contextmanager
def in_evaluation(monkeypatch, number, event):
    """`event()` before the second batch of the number-th evaluation."""
    predict, seen = train.predict, []

    def eventful(*arguments):
        check, batches = arguments[-1], []
        seen.append(None)

        def before_batch():
            batches.append(None)
            if len(seen) == number and len(batches) == 2:
                event()
            check()

        return predict(*arguments[:-1], before_batch)

    with monkeypatch.context() as patch:
        patch.setattr(train, "predict", eventful)
        yield


def stands(folder) -> dict:
    return json.loads((folder / "last" / "progress.json").read_text())["progress"]


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=["SIGTERM", "Ctrl-C", "SIGHUP"],
)
@pytest.mark.parametrize("step", [1, 8, 14, 27])
def test_a_signal_saves_at_the_next_batch_and_the_same_command_goes_on(
    run, whole, monkeypatch, number, status, step
):
    """Red: `check` without its raise; `save_last` left out of train_until_stopped; sums
    not saved; SIGHUP left out of SIGNALS."""
    with at_step(step, lambda: signal.raise_signal(number)):
        folder, ended = run()
    assert ended == status
    # Step 14 ends with an evaluation, whose first batch is the next one.
    assert (stands(folder)["step"], stands(folder)["follow_up_due"]) == (step, step == 14)
    assert run()[1] == 0
    assert_same_bits(whole, folder)


@pytest.mark.parametrize(("number", "step"), [(1, 5), (2, 10), (3, 14), (4, 15), (7, 28)])
def test_a_signal_inside_an_evaluation_is_seen_at_its_next_batch(
    run, whole, monkeypatch, capsys, number, step
):
    """Of the sample, of the whole split, the last one: done again, and no scalar stands twice.

    Red: no `before_batch` in predict; `follow_up_due` left False; speeds of a window without timed
    steps; nan for None in log_window.
    """
    with in_evaluation(monkeypatch, number, lambda: signal.raise_signal(signal.SIGTERM)):
        folder, status = run()
    assert status == 143
    assert (stands(folder)["step"], stands(folder)["follow_up_due"]) == (step, True)
    capsys.readouterr()
    assert run()[1] == 0
    assert "nan" not in capsys.readouterr().out
    assert_same_bits(whole, folder)
    for points in scalars(folder).values():
        assert len({at for at, _ in points}) == len(points)
    assert all(speed > 0 for _, speed in scalars(folder)["train/examples_per_second"])


def test_a_signal_between_micro_batches_leaves_the_step_for_later(run, tmp_path, monkeypatch):
    """The half-summed gradient and loss are nowhere. Red: `run.monitor.sums[0] +=` for each
    micro-batch in update."""
    flags = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}
    expected, _ = run(output_dir=tmp_path / "whole", **flags)
    calls = []

    def collate(self, rows):
        calls.append(None)
        if len(calls) == 4 * 6 + 2:  # the second micro-batch of step 7, without evaluations
            signal.raise_signal(signal.SIGTERM)
        return collate_rows(self, rows)

    collate_rows = data.Collator.__call__
    with monkeypatch.context() as patch:
        patch.setattr(data.Collator, "__call__", collate)
        folder, status = run(eval_steps=99, **flags)
    assert status == 143
    assert stands(folder)["step"] == 6
    run(eval_steps=99, **flags)
    assert all(
        torch.equal(tensor, weights_of(expected)[name])
        for name, tensor in weights_of(folder).items()
    )
    assert stands(expected) == stands(folder)
    assert scalars(expected)["train/loss"] == scalars(folder)["train/loss"]


def test_a_repeated_follow_up_replaces_its_scalars(run, tmp_path, monkeypatch):
    """Stopped in the validation of step 14, after the evaluation of the sample. Red: purge_step of
    step + 1."""
    expected, _ = run(output_dir=tmp_path / "whole", eval_steps=7)
    with in_evaluation(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGTERM)):
        folder, status = run(eval_steps=7)
    assert status == 143
    assert stands(folder)["follow_up_due"]
    run(eval_steps=7)
    assert_same_bits(expected, folder)


def test_the_death_of_the_launcher_counts_as_sigterm(monkeypatch):
    """Where one started us: a shell that goes leaves us running. Red: no look at getppid."""
    for name in ("ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "PARENT", os.getppid())
    for launched in (False, True):
        if launched:
            monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
        stop = Stop(1)
        stop.check()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getppid", lambda: processes.PARENT + 1)
            expected = pytest.raises(Stopped) if launched else contextlib.nullcontext()
            with expected as raised:
                stop.check()
    assert raised.value.signal == signal.SIGTERM


def test_a_second_ctrl_c_ends_the_process_at_once(tmp_path):
    """And what torchrun doubles, the same one within half a second, does not.

    Red: `ask` without its second branch; no half a second.
    """
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from runtime.processes import Stop\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with Stop(1):\n"
        "    signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)\n"
        "    print('alive', flush=True); time.sleep(0.6)\n"
        "    signal.raise_signal(signal.SIGINT); print('alive', flush=True)"
    )
    with Forked(script) as process:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT
    assert said == "alive\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["Ctrl-C", "SIGHUP"])
def test_a_signal_that_was_ignored_stays_so(number):
    """As Ctrl-C in a script's background job, and SIGHUP under nohup. Red: no look at SIG_IGN."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Stop(1) as stop:
            signal.raise_signal(number)
            stop.check()
    finally:
        signal.signal(number, before)


def test_the_handlers_of_before_are_back_afterwards(run):
    """Red: no __exit__."""
    before = [signal.getsignal(number) for number in SIGNALS]
    run(max_steps=1)
    assert before == [signal.getsignal(number) for number in SIGNALS]


def test_a_failing_process_of_several_has_its_say_before_the_launchers_sigterm():
    """One process alone has the handlers of before. Red: no SIG_IGN in __exit__; no look at `kind`,
    or at the group."""
    before = signal.getsignal(signal.SIGTERM)
    for group, fails, expected in (
        ("of several", True, signal.SIG_IGN),
        ("of several", False, before),
        (None, True, before),
    ):
        stop = Stop(1)
        stop.group = group
        try:
            with contextlib.suppress(RuntimeError), stop:
                if fails:
                    raise RuntimeError
            assert signal.getsignal(signal.SIGTERM) == expected
        finally:
            signal.signal(signal.SIGTERM, before)


def test_a_launcher_that_is_killed_takes_the_training_with_it_saved(tiny, corpus, tmp_path):
    """`accelerate launch` as it is, by SIGKILL. Red: no look at getppid."""
    words = [ROOT / "train.py"]
    words += [f"--model={tiny}", f"--dataset={corpus}", f"--output_dir={tmp_path}"]
    words += ["--max_length=32", "--max_steps=1000000", "--num_threads=1", "--eval_steps=1000000"]
    words += ["--validate_steps=1000000", "--logging_steps=1000000", "--save_steps=1000000"]
    with Forked(accelerate.commands.launch.__file__, *words) as launcher:
        wait_until(lambda: "starting" in launcher.out.read_text())
        time.sleep(1)
        child = int((tmp_path / ".lock").read_text().split()[1])
        launcher.kill()
        try:
            wait_until(lambda: "stopped at step" in launcher.out.read_text())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    folders.verify_folder(tmp_path / "last")
    assert 0 < stands(tmp_path)["step"] < 1000000


# ---------------------------------------------------------------- kills


def test_kills_at_file_operations_and_moments_change_no_bit(tmp_path):
    """On real processes: one chain of bench/kill.py, which does it two hundred times.

    Red: last/ written without its sums; `shutil.rmtree(folder)` before `exchange` in write_folder.
    """
    job = kill_harness.JOB | {"max_steps": 40, "validate_steps": 10, "max_validation_samples": 100}
    kills = [
        {"place": "saving best/", "n": 14, "delay": 0},
        {"place": "saving last/", "n": 24, "delay": 0},
        {"moment": 0.3, "from": "step"},
    ]

    def spawn(words, log):
        return Forked(*words, log=log)

    whole = kill_harness.Job(tmp_path / "whole", job, spawn)
    whole.run()
    killed, end = kill_harness.chain(tmp_path / "chain", job, kills, spawn)
    assert killed[:2] == [(kind := "file operation", "saving best/"), (kind, "saving last/")]
    assert end == whole.end()


def test_best_of_a_step_that_a_kill_undid_gives_way_to_that_of_the_record(run, monkeypatch):
    """Red: restore_best without `of_step`."""
    accuracies = {7: 0.6, 14: 0.9, 21: 0.4, 28: 0.4}
    evaluate = train.evaluate

    def scripted(current, rows, name):
        scores, logits = evaluate(current, rows, name)
        if name == "eval":
            scores = dataclasses.replace(scores, accuracy=accuracies[current.progress.step])
        return scores, logits

    monkeypatch.setattr(train, "evaluate", scripted)
    save = checkpoint.save_last

    def dying(current):
        if current.progress.step == 14:
            raise KeyboardInterrupt
        save(current)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_last", dying)
        with pytest.raises(KeyboardInterrupt):
            run(validate_steps=7)
    accuracies[14] = 0.5  # as on hardware that does not repeat its bits
    folder, status = run(validate_steps=7)
    assert status == 0
    assert json.loads((folder / "best" / "validation.json").read_text())["step"] == 7
    assert stands(folder)["best_step"] == 7


# ---------------------------------------------------------------- errors inside


def test_an_exception_in_a_step_leaves_the_last_state(run, whole, monkeypatch):
    """Red: `except Exception` for `except Stopped` in train_until_stopped."""

    def fail():
        raise RuntimeError("CUDA out of memory")

    with at_step(13, fail), pytest.raises(RuntimeError, match="out of memory"):
        run()
    folder, status = run()
    assert status == 0
    assert_same_bits(whole, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_before(
    run, tmp_path, monkeypatch, value
):
    """Named by the span of steps. Red: read_sums without its raise; `isnan` for `isfinite`."""
    entropy = functional.cross_entropy

    def broken(*arguments, **keywords):
        return entropy(*arguments, **keywords) + (value if poisoned else 0)  # gradient as it was

    poisoned = []
    monkeypatch.setattr(functional, "cross_entropy", broken)
    line = "NaN or infinite between steps 16 and 20 of 28;.* lower --learning_rate"
    poison = at_step(17, lambda: poisoned.append(None))
    with poison, pytest.raises(UserError, match=line):
        run()
    assert_kept(tmp_path / "run", step=14)


def assert_kept(folder, step):
    folders.verify_folder(folder / "best")
    folders.verify_folder(folder / "last")
    assert stands(folder)["step"] == step
    assert all(tensor.isfinite().all() for tensor in weights_of(folder).values())


def test_a_gradient_that_is_not_finite_stops_although_the_loss_is(run, tmp_path, monkeypatch):
    """Red: the third of the sums left out of read_sums."""
    clip = train.Accelerator.clip_grad_norm_

    def broken(self, parameters, norm):
        calls.append(None)
        return clip(self, parameters, norm) * (float("inf") if len(calls) == 17 else 1)

    calls = []
    monkeypatch.setattr(train.Accelerator, "clip_grad_norm_", broken)
    with pytest.raises(UserError, match="between steps 16 and 20 of 28"):
        run()
    assert_kept(tmp_path / "run", step=14)


def test_no_save_comes_between_a_weight_that_is_nan_and_its_discovery(run, tmp_path, monkeypatch):
    """A save every step, scalars far off. Red: save_last without its look at the weights."""

    def break_rate(optimizer, update):
        if update == 18:
            optimizer.param_groups[0]["lr"] = float("nan")

    with before_update(break_rate), pytest.raises(UserError, match="steps 1 and 18 of 28"):
        run(save_steps=1, logging_steps=99)
    assert_kept(tmp_path / "run", step=17)


def test_a_weight_that_is_nan_is_never_best(run, tmp_path, monkeypatch):
    """In a row that no validation text uses, so that its loss is finite. Red: follow_up without its
    read_sums."""

    def poison(optimizer, update):
        if update == 14:
            embeddings = optimizer.param_groups[0]["params"][0]
            assert embeddings.shape == (45, 32)
            embeddings.data[4] = float("nan")  # [MASK], which no text holds

    with before_update(poison), pytest.raises(UserError, match="steps 11 and 14 of 28"):
        run()
    assert "eval/loss" not in scalars(tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()
    assert stands(tmp_path / "run")["step"] == 10


# ---------------------------------------------------------------- the disk


def test_a_disk_too_small_is_said_before_the_training(run, tmp_path, monkeypatch):
    """Red: require_room_for_saves left out of start_or_resume."""
    free = shutil.disk_usage(tmp_path)._replace(free=6 * 10**6)  # one save of `last/` would fit
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match=r"a save needs \d+ MB and 6 MB are free; make room"):
        run()
    assert not (tmp_path / "run").exists()


def test_a_finished_run_needs_no_room(run, tmp_path, monkeypatch, capsys):
    """Red: require_room_for_saves without the look at `run.finished`."""
    run(max_steps=1)
    free = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: free)
    assert run(max_steps=1)[1] == 0
    assert "holds a finished run" in capsys.readouterr().out


def test_a_write_that_fails_keeps_the_save_before_and_the_run_goes_on_later(
    run, whole, tmp_path, monkeypatch
):
    """The kernel refuses to let a file grow, as it does on a full disk.

    Red: only OSError caught in write_folder; `fill(folder)` in place.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))

    try:
        line = r"last cannot be written: .*too large.*; what was"
        with at_step(17, fill_disk), pytest.raises(UserError, match=line):
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stands(tmp_path / "run")["step"] == 14
    run()
    assert_same_bits(whole, tmp_path / "run")


def test_a_disk_that_fills_up_in_best_is_one_line_too(run, tmp_path, monkeypatch):
    """tokenizers raises a bare Exception then. Red: `isinstance(error, OSError)` alone
    in write_folder."""

    def full(*_, **__):
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(UserError, match=r"best cannot be written: No space left"):
        run()
    assert not {"best", ".best.spare"} & {path.name for path in (tmp_path / "run").iterdir()}
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", None)
    with pytest.raises(TypeError):  # a fault of ours stays one
        run()


def test_a_full_disk_anywhere_else_is_one_line_and_status_2(capsys):
    """Such as TensorBoard's. Red: no OSError in run_command; status 1."""

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/events")

    with pytest.raises(SystemExit) as ended:
        run_command(full)
    assert ended.value.code == 2
    line = "error: runs/events: No space left on device; remove the cause, and run the same"
    assert capsys.readouterr().err.startswith(line)
    with pytest.raises(FileNotFoundError):  # a fault of ours stays one, with its traceback
        run_command(lambda: Path("/no/such/file").read_text())


# ---------------------------------------------------------------- what lies in the folder


@pytest.fixture(scope="module")
def stopped_run(tiny, corpus, tmp_path_factory) -> Path:
    """A run that died at step 23: `last/` of step 20, the save of step 14 beside it."""
    folder = tmp_path_factory.mktemp("stopped")
    with dying_at(23):
        command(tiny, corpus, folder)
    return folder


LAST_DAMAGE = {
    "truncated": lambda last: os.truncate(last / "model.safetensors", 1000),
    "emptied": lambda last: os.truncate(last / "optimizer.safetensors", 0),
    "a flipped bit": lambda last: flip(last / "optimizer.safetensors"),
    "a missing file": lambda last: (last / "progress.json").unlink(),
    "no manifest": lambda last: (last / "manifest.json").unlink(),
    "gone": shutil.rmtree,
}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", LAST_DAMAGE)
def test_a_damaged_last_is_named_and_the_save_before_it_resumed(
    stopped_run, run, whole, tmp_path, capsys, kind
):
    """And nothing but steps is lost. Red: newest_whole with `folder` alone; no
    spare kept by write_folder."""
    folder = tmp_path / "run"
    shutil.copytree(stopped_run, folder)
    assert stands(folder)["step"] == 20
    LAST_DAMAGE[kind](folder / "last")
    assert run()[1] == 0
    said = capsys.readouterr()
    assert "resuming at step 14" in said.out
    if kind != "gone":
        assert f"warning: {folder / 'last'}: " in said.err
    assert_same_bits(whole, folder)


def test_a_damaged_best_is_named_and_no_other_model_put_in_its_place(
    stopped_run, run, tmp_path, capsys
):
    """The copy beside it counts if it is of the same step. Red: find_last without
    restore_best."""
    folder = tmp_path / "run"
    shutil.copytree(stopped_run, folder)
    best = folder / "best"
    shutil.rmtree(folders.spare_of(best), ignore_errors=True)
    shutil.copytree(best, folders.spare_of(best))
    flip(best / "model.safetensors")
    assert run()[1] == 0
    assert f"warning: {best}: model.safetensors is not what" in capsys.readouterr().err
    shutil.rmtree(folder)
    shutil.copytree(stopped_run, folder)
    flip(best / "model.safetensors")
    with pytest.raises(UserError, match=r"best: model.safetensors is not .* with --overwrite"):
        run()


def test_a_death_while_an_older_run_is_deleted_is_no_obstacle(
    stopped_run, run, tmp_path, monkeypatch
):
    """--overwrite, killed before, between and after. Red: no rename in
    remove_folder."""
    rmtree = shutil.rmtree
    for deaths in range(4):
        folder = tmp_path / "run"
        rmtree(folder, ignore_errors=True)
        shutil.copytree(stopped_run, folder)
        calls = []

        def dying(path, *rest, calls=calls, deaths=deaths, **keywords):
            calls.append(path)
            for file in path.glob("manifest.json"):
                file.unlink()
            if len(calls) == deaths:
                raise KeyboardInterrupt
            rmtree(path, *rest, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(folders.shutil, "rmtree", dying)
            with contextlib.suppress(KeyboardInterrupt):
                run(overwrite=True, max_steps=1)
        assert run(overwrite=True, max_steps=1)[1] == 0


def test_both_copies_damaged_is_an_error_that_says_so(stopped_run, run, tmp_path):
    """Red: None for an error in newest_whole."""
    folder = tmp_path / "run"
    shutil.copytree(stopped_run, folder)
    for last in (folder / "last", folders.spare_of(folder / "last")):
        flip(last / "model.safetensors")
    with pytest.raises(UserError, match="no whole copy is left; restore it, or start anew with"):
        run()


def test_what_a_killed_save_left_is_in_nobodys_way(stopped_run, run, whole, tmp_path):
    """A stale temporary folder. Red: no rmtree in write_folder."""
    folder = tmp_path / "run"
    shutil.copytree(stopped_run, folder)
    for name in ("last", "best"):
        shutil.rmtree(folders.spare_of(folder / name), ignore_errors=True)
        folders.spare_of(folder / name).mkdir()
        (folders.spare_of(folder / name) / "model.safetensors").write_bytes(b"torn")
    run()
    assert_same_bits(whole, folder)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["best", "last", "runs"]


def test_a_second_launch_is_refused_and_the_first_goes_on(stopped_run, run, tmp_path):
    """Red: no lock_folder in fine_tune."""
    folder = tmp_path / "run"
    shutil.copytree(stopped_run, folder)
    with holder(folder) as first:
        with pytest.raises(UserError, match=f"process {first.pid} on .* trains there"):
            run()
        assert first.poll() is None
        first.kill()
    assert run()[1] == 0


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("seed", 43),
        ("num_train_epochs", 3.0),
        ("max_length", 16),
        ("per_device_train_batch_size", 4),
        ("validation_seed", 1),
        ("dropout", 0.2),
        ("validate_steps", 7),
        ("train_sampling_strategy", "random"),
    ],
)
def test_a_changed_setting_that_changes_the_result_is_refused_with_both_values(
    stopped_run, run, tmp_path, monkeypatch, flag, value
):
    """Before the data are read. Red: changes_result=False; refuse_changes in load_last alone."""
    shutil.copytree(stopped_run, tmp_path / "run")
    monkeypatch.setattr(data, "read_training", lambda *_: pytest.fail("read the data"))
    line = rf"was written with {flag} \S+, not {value}: give the old value"
    if flag == "per_device_train_batch_size":  # which may change, if their product does not
        line = rf"with batches of 8, not 4: give --{flag} 8 --gradient_accumulation_steps 1, "
    with pytest.raises(UserError, match=line):
        run(**{flag: value})


def test_changed_texts_are_refused_whatever_their_path_and_equal_ones_accepted(
    stopped_run, run, corpus, tmp_path
):
    """The data set may have moved to another folder. Red: "data" left out of the settings; `flag`
    for `adjustable` in Config.dataset."""
    shutil.copytree(stopped_run, tmp_path / "run")
    moved = shutil.copytree(corpus, tmp_path / "moved")
    texts = (moved / "train.csv").read_text()
    (moved / "train.csv").write_text(texts[: texts.rstrip().rindex("\n")])
    with pytest.raises(
        UserError,
        match=rf"other texts or labels \({corpus}, \w{{16}}\) than there are now \({moved}, ",
    ):
        run(dataset=moved)
    (moved / "train.csv").write_text(texts)
    assert run(dataset=moved)[1] == 0


def test_classes_of_other_names_are_refused(stopped_run, run, corpus, tmp_path):
    """`best/` holds the old names. Red: "classes" left out of the settings."""
    shutil.copytree(stopped_run, tmp_path / "run")
    renamed = shutil.copytree(corpus, tmp_path / "renamed")
    texts = (renamed / "train.csv").read_text()
    (renamed / "train.csv").write_text(texts.replace(",negative", ",bad"))
    with pytest.raises(
        UserError, match=r"classes .'negative', 'positive'., not .'bad', 'positive'."
    ):
        run(dataset=renamed)


def test_a_changed_setting_that_changes_no_result_is_accepted(stopped_run, run, whole, tmp_path):
    """Cadence, and the same batch in other parts. Red: changes_result=True for one of them."""
    folder = tmp_path / "run"
    shutil.copytree(stopped_run, folder)
    cadence = {"logging_steps": 3, "eval_steps": 4, "save_steps": 2, "max_save_share": 0.5}
    assert run(per_device_eval_batch_size=5, **cadence)[1] == 0
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(folder)[name])
    shutil.rmtree(folder)
    shutil.copytree(stopped_run, folder)
    assert run(gradient_accumulation_steps=2, per_device_train_batch_size=4)[1] == 0


def test_a_run_of_an_older_version_that_lacks_a_flag_is_resumed(stopped_run, run, tmp_path):
    """With the default, which is what it did; another value is refused as any. Red: `flags |` left
    out of refuse_changes."""
    folder = tmp_path / "run"
    shutil.copytree(stopped_run, folder)
    state = json.loads((folder / "last" / "progress.json").read_text())
    del state["settings"]["label_smoothing_factor"]
    (folder / "last" / "progress.json").write_text(json.dumps(state))
    (folder / "last" / "manifest.json").unlink()
    write_manifest(folder / "last")
    with pytest.raises(UserError, match=r"was written with label_smoothing_factor 0\.0, not 0\.1"):
        run(label_smoothing_factor=0.1)
    assert run()[1] == 0


def test_a_save_waits_while_saving_would_take_more_than_its_share(run, monkeypatch):
    """Red: can_afford_save returning True; the share taken of the steps alone."""
    clock, writes = [0.0], []
    write = checkpoint.write_folder

    def slow(folder, *rest):
        writes.append(folder.name)
        clock[0] += 3.0
        write(folder, *rest)

    def tick(*_):
        clock[0] += 1.0

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(checkpoint, "write_folder", slow)
    with before_update(tick):
        run(save_steps=1, logging_steps=99, eval_steps=99, validate_steps=99, max_save_share=0.25)
    # Written at 0, then each 9 seconds of steps after the end of the previous one (3 / 12), then
    # after the validation at the end.
    assert writes.count("last") == 1 + 28 // 9 + 1


def test_full_determinism_changes_no_bit_on_cpu(run, whole, monkeypatch):
    """Red: another seed in the call."""
    for name in (
        "CUDA_LAUNCH_BLOCKING",
        "CUBLAS_WORKSPACE_CONFIG",
        "FLASH_ATTENTION_DETERMINISTIC",
    ):
        monkeypatch.setenv(name, "")  # put back after the test
    try:
        folder, _ = run(full_determinism=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(whole, folder)


def test_speeds_after_a_resume_count_what_was_done_after_it(
    stopped_run, run, tmp_path, monkeypatch
):
    """Logged at 10 and 27, resumed at 14: 13 steps, a second each. Red: `timed = window`."""
    folder = tmp_path / "run"
    shutil.copytree(stopped_run, folder)
    shutil.rmtree(folder / "last")
    clock = [0.0]

    def tick(*_):
        clock[0] += 1.0

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with before_update(tick):
        run(logging_steps=27)
    speeds = dict(scalars(folder)["train/examples_per_second"])
    assert 7 <= speeds[27] <= 8  # texts per batch
