"""The loop against independent implementations, and what may not change its result."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, scalars, weights_of
from events import dying_at
from peers import compare
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, get_scheduler

import eval as evaluation
import train
from config import Config
from model import Scores
from runtime import monitor
from runtime.environment import find_commit
from runtime.flags import UserError, parse


def flags_of(folder) -> list[str]:
    settings = json.loads((folder / "last" / "progress.json").read_text())["settings"]
    known = {name: settings[name] for name in Config.__dataclass_fields__}
    return [f"--{name}={value}" for name, value in known.items() if value is not None]


def assert_same_bits(a, b):
    """Weights, optimizer, progress and all scalars but wall-clock ones."""
    assert all(torch.equal(tensor, weights_of(b)[key]) for key, tensor in weights_of(a).items())
    moments = [load_file(folder / "last" / "optimizer.safetensors") for folder in (a, b)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(value, moments[1][key]) for key, value in moments[0].items())
    progress = [
        json.loads((folder / "last" / "progress.json").read_text())["progress"] for folder in (a, b)
    ]
    assert progress[0] == progress[1]
    curves = [
        {tag: points for tag, points in scalars(folder).items() if "per_second" not in tag}
        for folder in (a, b)
    ]
    assert curves[0] == curves[1]


# ---------------------------------------------------------------- the mathematics


def test_losses_equal_hf_trainers_step_by_step(tiny, corpus, tmp_path):
    """Same batches, dropout off; Trainer with its own optimizer, decay and schedule.

    Red: `reduction="mean"` in update, with no division; `done = step` in learning_rate; biases that
    decay; no clipping.
    """
    flags = {
        "model": tiny,
        "dataset": corpus,
        "output_dir": tmp_path,
        "max_length": 32,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.1,
        "weight_decay": 0.1,
        "max_steps": 28,
        "num_threads": 1,
    }
    pairs = compare([f"--{name}={value}" for name, value in flags.items()])
    assert len(pairs) == 28
    assert max(abs(ours - theirs) for ours, theirs in pairs) < 2e-6


def test_a_step_is_the_textbook_step(train_command):
    """The golden step: cross-entropy, clipping and AdamW (Loshchilov & Hutter 2019) written out.

    Red: AdamW with another eps; `max_grad_norm` ignored; decay of all parameters.
    """
    output = train_command(
        max_steps=2, warmup_steps=1, dropout=0.0, max_grad_norm=0.05, weight_decay=0.3
    )
    config = parse(Config, flags_of(output))
    run = train.set_up(config, train.make_accelerator(config))
    parameters = dict(run.model.named_parameters())
    # The first update of a warm-up has rate 0, but its gradient enters the moments.
    first, second = (torch_gradient(run, step, norm=0.05) for step in (1, 2))
    for name, before in parameters.items():
        m = 0.9 * 0.1 * first[name] + 0.1 * second[name]
        v = 0.999 * 0.001 * first[name] ** 2 + 0.001 * second[name] ** 2
        step = (m / (1 - 0.9**2)) / ((v / (1 - 0.999**2)).sqrt() + 1e-8)
        decay = 0.3 if before.ndim > 1 else 0.0
        after = before - 1e-3 * (step + decay * before)
        torch.testing.assert_close(weights_of(output)[name], after.detach(), rtol=2e-5, atol=2e-6)


def torch_gradient(run, step, norm):
    rows = [run.train_set[int(row)] for row in run.plan[step]]
    losses = []
    for row in rows:  # one text at a time: neither padding nor batching nor a mask
        logits = run.model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits
        losses.append(-logits.log_softmax(-1)[0, row["labels"]])
    run.model.zero_grad()
    (sum(losses) / len(losses)).backward()
    gradients = {name: p.grad.clone() for name, p in run.model.named_parameters()}
    total = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
    return {name: g * min(1, norm / total) for name, g in gradients.items()}


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.06, 0.5, 7])
def test_the_learning_rate_is_that_of_get_scheduler(kind, warmup):
    """At every step. Red: `done = step` in learning_rate."""
    total = 40
    name = "constant_with_warmup" if kind == "constant" else kind
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-5)
    steps = math.ceil(total * warmup) if warmup < 1 else warmup
    scheduler = get_scheduler(name, optimizer, steps, total)
    config = Config(lr_scheduler_type=kind, warmup_steps=warmup)
    for step in range(1, total + 1):
        expected = optimizer.param_groups[0]["lr"]
        assert train.learning_rate(step, total, config) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_accumulation_and_ragged_batches_give_the_same_gradient(
    train_command, tmp_path, monkeypatch
):
    """In one process: batch 8 = 4 x 2 = 1 x 8 = as many passes as keep each below 70 tokens, with
    105 texts in batches of 7 and 8. The whole gradient of every step, as one vector, on the same
    weights (the rate is next to 0).

    Red: the mean loss of each micro-batch, or the batch size instead of `weight`, in update;
    set_passes left out (the gradient is then a multiple).
    """
    clip, gradients = Accelerator.clip_grad_norm_, {}

    def recorded(self, parameters, norm):
        parameters = list(parameters)
        gradients[way].append(torch.cat([p.grad.flatten() for p in parameters]))
        return clip(self, parameters, norm)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", recorded)
    for way, flags in {
        "whole": {"per_device_train_batch_size": 8},
        "2": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        "8": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        "by tokens": {"per_device_train_batch_size": 8, "max_tokens_per_forward": 70},
    }.items():
        gradients[way] = []
        train_command(dropout=0.0, learning_rate=1e-30, output_dir=tmp_path / way, **flags)
    assert len(gradients["whole"]) == 28
    # Where the gradients of the examples nearly cancel, the norm is small and the rounding is not.
    scale = torch.stack(gradients["whole"]).norm(dim=1).mean()
    for way in ("2", "8", "by tokens"):
        for ours, whole in zip(gradients[way], gradients["whole"], strict=True):
            assert (ours - whole).norm() <= 1e-6 * scale


# ---------------------------------------------------------------- what changes nothing


@pytest.mark.parametrize("step", [1, 7, 10, 11, 15, 28])
def test_a_run_stopped_anywhere_and_started_again_ends_in_the_same_bits(
    step, train_command, tmp_path
):
    """With dropout. Red: seeding once, before the loop; sums left out of save_last."""
    whole = train_command(output_dir=tmp_path / "whole")
    with dying_at(step):
        train_command(output_dir=tmp_path / "stopped")
    if step == 15:  # stopped twice: a resume of a resume
        with dying_at(21):
            train_command(output_dir=tmp_path / "stopped")
    assert_same_bits(whole, train_command(output_dir=tmp_path / "stopped"))


def test_every_step_draws_its_own_dropout_masks(train_command):
    """One batch over and over, the rate next to 0: only the masks can change the loss.

    Red: torch.manual_seed(config.seed) in update.
    """
    output = train_command(
        max_train_samples=8, max_steps=6, learning_rate=1e-30, logging_steps=1, dropout=0.3
    )
    losses = [value for _, value in scalars(output)["train/loss"]]
    pairs = [(a, b) for i, a in enumerate(losses) for b in losses[:i]]
    assert min(abs(a - b) for a, b in pairs) > 1e-5


def test_seeds_of_dropout_do_not_collide():
    """Over seeds, steps and processes. Red: `seed + step + process` in dropout_seed."""
    seeds = {train.dropout_seed(s, t, p) for s in (0, 1, 42) for t in range(200) for p in range(8)}
    assert len(seeds) == 3 * 200 * 8


def test_evaluation_changes_nothing(train_command, tmp_path):
    """With dropout. Red: seeding once, and make_loader without its generator."""
    often = train_command(output_dir=tmp_path / "often", eval_steps=2, validate_steps=3)
    never = train_command(output_dir=tmp_path / "never", eval_steps=999, validate_steps=999)
    assert all(
        torch.equal(tensor, weights_of(never)[key]) for key, tensor in weights_of(often).items()
    )
    assert scalars(often)["train/loss"] == scalars(never)["train/loss"]


def test_two_runs_of_one_command_are_equal_to_the_bit_and_another_seed_is_not(
    train_command, tmp_path
):
    """Red: the head drawn before torch.manual_seed(config.seed) in set_up."""
    one, two = (train_command(output_dir=tmp_path / name) for name in ("one", "two"))
    assert_same_bits(one, two)
    other = train_command(output_dir=tmp_path / "other", seed=43)
    key = "classifier.weight"
    assert not torch.equal(weights_of(one)[key], weights_of(other)[key])


# ---------------------------------------------------------------- what is kept


def test_best_is_the_earliest_highest_accuracy_and_no_nan_or_resume_replaces_it(
    train_command, monkeypatch, tmp_path
):
    """Red: in keep_best `>=` for `>`, or no isfinite; Progress without best_scores."""
    script = {3: 0.5, 6: 0.8, 9: 0.8, 12: float("nan"), 15: 0.7, 18: 0.9, 21: 0.75, 24: 0.9}

    def scripted(run, data, name):
        accuracy = script.get(run.progress.step, 0.1)
        loss = float("nan") if run.progress.step == 18 else 0.3
        return Scores(loss, accuracy, accuracy, len(data)), torch.zeros(len(data), 2)

    monkeypatch.setattr(train, "evaluate", scripted)
    command = {"validate_steps": 3, "output_dir": tmp_path / "run"}
    best = tmp_path / "run" / "best" / "validation.json"
    for stop, expected in ((8, 6), (17, 6), (20, 6), (23, 6)):
        with dying_at(stop):
            train_command(**command)
        assert json.loads(best.read_text())["step"] == expected
    train_command(**command)
    assert json.loads(best.read_text())["step"] == 24


def test_best_loads_everywhere_with_the_data_sets_own_label_names(train_command):
    """`pipeline` and `from_pretrained`, float32. Red: `id2label` left out of load_model."""
    from transformers import pipeline

    best = train_command(max_steps=4) / "best"
    classify = pipeline("text-classification", str(best))
    assert {row["label"] for row in classify("w1 w2", top_k=None)} == {"negative", "positive"}
    model = AutoModelForSequenceClassification.from_pretrained(best)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    reference = weights_of(best.parent, "best")
    assert all(torch.equal(tensor, reference[key]) for key, tensor in model.state_dict().items())


def test_what_ran_where_is_recorded_with_the_result(train_command):
    """In best/, last/ and the report. Red: `environment` left out of one of the three."""
    output = train_command(max_steps=2)
    evaluation.main([f"--ckpt={output / 'best'}", "--num_threads=1"])
    files = ("best/training_config.json", "last/progress.json", "best/report_test.json")
    settings, state, report = (json.loads((output / name).read_text()) for name in files)
    trained = settings["environment"]
    assert trained == state["environment"] == report["training_environment"]
    assert trained["versions"]["torch"] == torch.__version__
    wanted = {"device": "cpu", "threads": 1, "processes": 1}
    for environment in (trained, report["environment"]):
        assert wanted.items() <= environment.items()
        assert environment["commit"] == find_commit()


def test_a_run_is_repeated_from_the_settings_in_its_best(train_command, tmp_path):
    """And deletes nothing. Red: `environment` left in read_flags; `overwrite` saved."""
    output = train_command(max_steps=3, overwrite=True)
    settings = f"--config={output / 'best' / 'training_config.json'}"
    train.main([settings, f"--output_dir={tmp_path / 'again'}"])
    again = weights_of(tmp_path / "again")
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights_of(output).items())
    assert not parse(Config, [settings]).overwrite


def test_a_commit_is_named_and_whether_files_differ_from_it(tmp_path):
    """Red: `--dirty` left out of find_commit; no look at whether the file is tracked."""
    file = tmp_path / "a"
    file.write_text("1")
    assert find_commit(file) == "unknown"
    user = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "a"], [*user, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{40}", commit := find_commit(file))
    file.write_text("2")
    assert find_commit(file) == f"{commit} modified"
    (tmp_path / "copied").write_text("of another project")
    assert find_commit(tmp_path / "copied") == "unknown"


def test_the_next_command_that_a_run_names_is_one_that_runs(
    train_command, corpus, tmp_path, monkeypatch, capsys
):
    """From a folder that is not the project's. eval.py refuses the split of the training, and a
    file has no other but that for validation. Red: no shlex; "eval.py" for its path; `is_file()`
    False in describe_end."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for dataset, expected in ((corpus, "61 texts\n"), (corpus / "train.csv", "45 texts\n")):
        train_command(max_steps=1, dataset=dataset, output_dir=f"it's {dataset.name}")
        words = shlex.split(capsys.readouterr().out.strip().rpartition("next: ")[2])
        assert os.access(shutil.which(words[0]), os.X_OK)
        assert Path(words[1]).samefile(ROOT / "eval.py")
        evaluation.main(words[2:])
        assert expected in capsys.readouterr().out


def test_what_is_typed_next_is_named_from_the_current_folder(tmp_path, monkeypatch):
    """Red: `path` itself in name_here; another interpreter than the running one called python."""
    monkeypatch.chdir(ROOT)
    assert monitor.name_here(monitor.EVAL) == "eval.py"
    for folder, name in (("venv", "python"), ("other", "venv/bin/python3")):
        (tmp_path / folder / "bin").mkdir(parents=True)
        for python in ("python", "python3"):
            (tmp_path / folder / "bin" / python).touch(0o755)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python3"))
        monkeypatch.setenv("PATH", str(tmp_path / folder / "bin"))
        assert monitor.python_here() == name


def test_a_finished_run_is_left_alone_and_overwrite_starts_anew(train_command, capsys, tmp_path):
    """Red: `if True` for the check of progress.step in fine_tune; rmtree of the whole output folder
    in delete_run."""
    output = train_command(max_steps=4)
    note = output / "my notes.txt"
    note.write_text("mine")
    stamp = (output / "last" / "manifest.json").stat().st_mtime_ns
    train_command(max_steps=4)
    assert "holds a finished run" in capsys.readouterr().out
    assert (output / "last" / "manifest.json").stat().st_mtime_ns == stamp
    train_command(max_steps=4, overwrite=True)
    assert (output / "last" / "manifest.json").stat().st_mtime_ns != stamp
    assert note.read_text() == "mine"


def test_overwrite_deletes_nothing_that_no_run_wrote(train_command, tmp_path):
    """Red: rmtree of runs/ in delete_run; no EVENTS in what it deletes; no look for the manifest in
    refuse_to_delete. And what its own runs wrote is gone: no filename_suffix in Monitor.watch."""
    runs = tmp_path / "run" / "runs"
    (runs / "other").mkdir(parents=True)
    for others in (runs, runs / "other"):
        (others / "events.out.tfevents.1.another.program's").touch()
    for _ in range(2):
        output = train_command(max_steps=2, overwrite=True)
        assert (runs / "other" / "events.out.tfevents.1.another.program's").exists()
        assert (runs / "events.out.tfevents.1.another.program's").exists()
        assert len(list(runs.glob("events.*"))) == 2
    (output / "best" / "manifest.json").unlink()
    with pytest.raises(UserError, match="may not be ours"):
        train_command(max_steps=2, overwrite=True)
    assert (output / "best" / "config.json").exists()


def test_a_run_in_which_nothing_finite_was_learnt_says_so(train_command):
    """Red: conclude without its check of best_step."""
    with pytest.raises(UserError, match="lower --learning_rate"):
        train_command(learning_rate=1e30, max_steps=3)


def test_every_scalar_of_the_contract_is_written_at_its_steps(train_command):
    """Red: log_window at `step % 7` in follow_up."""
    curves = {tag: [step for step, _ in points] for tag, points in scalars(train_command()).items()}
    every_5, last = [5, 10, 15, 20, 25], [28]
    assert {tag: steps for tag, steps in curves.items() if tag.startswith("train/")} == {
        f"train/{name}": every_5 + last
        for name in (
            "loss",
            "grad_norm",
            "learning_rate",
            "padding_fraction",
            "examples_per_second",
            "tokens_per_second",
            "epoch",
        )
    }
    for name in ("loss", "accuracy"):
        assert curves[f"eval_sample/{name}"] == every_5
        assert curves[f"eval/{name}"] == [14, 28]


def test_logged_loss_is_the_mean_over_the_window(train_command, tmp_path):
    """Red: sums not zeroed in log_window; division by logging_steps in a shorter last window."""
    each = scalars(train_command(output_dir=tmp_path / "each", logging_steps=1))["train/loss"]
    window = scalars(train_command(output_dir=tmp_path / "window", logging_steps=10))["train/loss"]
    values = [value for _, value in each]
    expected = [sum(values[:10]) / 10, sum(values[10:20]) / 10, sum(values[20:]) / 8]
    assert [value for _, value in window] == pytest.approx(expected, rel=1e-5)
