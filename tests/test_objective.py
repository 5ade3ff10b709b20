"""What is trained for and chosen by: class weights, label smoothing, the metric, patience."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import make_rows, scalars, write_csv
from events import dying_at
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from test_loop import assert_same_bits, flags_of
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import train
from config import Config
from model import Scores, score, weigh_classes
from runtime.board import write_validation
from runtime.flags import parse

# ---------------------------------------------------------------- the loss

WEIGHTED = {"class_weights": "balanced", "label_smoothing_factor": 0.2, "dropout": 0.0}


@pytest.fixture
def uneven(tmp_path):
    """A file of three classes, of 24, 12 and 6 texts."""
    rows = make_rows(42, seed=3, classes=("a", "b", "a", "c", "a", "b", "a"))
    return write_csv(tmp_path / "uneven.csv", [(text, label) for text, label in rows])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_class_weights_are_scikit_learns(labels):
    """Red: `counts.max()` for the mean in weigh_classes."""
    labels = np.array(labels)
    present = np.unique(labels)
    weights = weigh_classes(labels, 5, balanced=True)
    expected = compute_class_weight("balanced", classes=present, y=labels)
    # scikit-learn divides by the number of classes that occur.
    np.testing.assert_allclose(weights[present], expected * len(present) / 5)
    assert not weights[np.setdiff1d(range(5), present)].any()
    assert (weigh_classes(labels, 5, balanced=False) == 1).all()


def test_the_gradient_is_that_of_torchs_loss_however_a_batch_is_dealt(
    uneven, train_command, tmp_path, monkeypatch
):
    """With class weights and label smoothing, in ragged batches, accumulated or not: as
    torch.nn.CrossEntropyLoss has it for the whole batch.

    Red: `len(run.plan[step])` for the sum of the weights in update; no label_smoothing in
    summed_loss; no weight there.
    """
    gradients = record_gradients(monkeypatch)
    few = {"dataset": uneven, "learning_rate": 1e-30, "max_steps": 4, **WEIGHTED}
    for parts in (1, 4):
        sizes = {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts}
        train_command(output_dir=tmp_path / f"{parts}", **sizes, **few)
    config = parse(Config, flags_of(tmp_path / "1"))
    run = train.set_up(config, train.make_accelerator(config))
    for step in range(1, 5):
        expected = torch_gradient(run, step)
        for ours in (gradients[step - 1], gradients[step + 3]):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def record_gradients(monkeypatch) -> list[torch.Tensor]:
    """Gets the whole gradient of each step of the trainings that follow."""
    clip, gradients = Accelerator.clip_grad_norm_, []

    def recorded(self, parameters, norm):
        parameters = list(parameters)
        gradients.append(flat_gradient(parameters))
        return clip(self, parameters, norm)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", recorded)
    return gradients


def flat_gradient(parameters) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def torch_gradient(run, step) -> torch.Tensor:
    rows = [run.train_set[int(row)] for row in run.plan[step]]
    labels = torch.tensor([row["labels"] for row in rows])
    counts = np.bincount(run.train_set["labels"][:])
    weights = torch.tensor(sum(counts) / (len(counts) * counts), dtype=torch.float32)
    loss = nn.CrossEntropyLoss(weights, label_smoothing=0.2)
    model = run.model.eval()
    logits = [model(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows]
    model.zero_grad()
    loss(torch.cat(logits), labels).backward()
    return flat_gradient(model.parameters())


# ---------------------------------------------------------------- the choice


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=50))
def test_macro_f1_is_scikit_learns(pairs):
    """Also of classes that are never predicted, or do not occur. Red: the mean over all classes in
    score; recall for F1."""
    true, predicted = map(torch.tensor, zip(*pairs, strict=True))
    logits = torch.nn.functional.one_hot(predicted, 5).float()
    assert score(logits, true).macro_f1 == pytest.approx(f1_score(true, predicted, average="macro"))


#           step      3          6          9          12         15
SCRIPT = {
    "accuracy": {3: 0.5, 6: 0.7, 9: 0.7, 12: 0.6, 15: 0.6},
    "macro_f1": {3: 0.1, 6: 0.2, 9: 0.4, 12: 0.4, 15: 0.3},
    "loss": {3: 0.6, 6: 0.5, 9: 0.5, 12: 0.2, 15: 0.3},
}


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations have the scores of `SCRIPT`; after it, its last."""

    def evaluate(run, data, name):
        at = min(run.progress.step, 15) // 3 * 3 or 3
        scores = Scores(**{metric: row[at] for metric, row in SCRIPT.items()}, examples=len(data))
        return scores, torch.zeros(len(data), 2)

    monkeypatch.setattr(train, "evaluate", evaluate)


@pytest.mark.parametrize(("metric", "step"), [("accuracy", 6), ("macro_f1", 9), ("loss", 12)])
def test_the_best_step_is_the_first_with_the_best_metric(metric, step, scripted, train_command):
    """Through a stop in the middle, too. Red: `scores.accuracy` for the metric in keep_best; no
    sign for the loss; best_scores left out of Progress."""
    flags = {"validate_steps": 3, "max_steps": 18, "metric_for_best_model": metric}
    with dying_at(14):
        train_command(**flags)
    said = json.loads((train_command(**flags) / "best" / "validation.json").read_text())
    assert said["step"] == step
    assert {name: said[name] for name in SCRIPT} == {n: row[step] for n, row in SCRIPT.items()}


@pytest.mark.parametrize(("patience", "end"), [(1, 9), (3, 15), (9, 28)])
def test_a_run_ends_when_patience_does(patience, end, scripted, train_command, tmp_path, capsys):
    """After so many validations that were no better; the same run again is finished; one that was
    stopped on the way ends in the same bits. Red: `>` for `>=` in out_of_patience; `finished`
    without it (the second command goes on); `step` for `step // every` there;
    OBJECTIVE left out of describe_start."""
    flags = {"validate_steps": 3, "early_stopping_patience": patience}
    whole = train_command(output_dir=tmp_path / "whole", **flags)
    state = json.loads((whole / "last" / "progress.json").read_text())["progress"]
    assert (state["step"], state["best_step"]) == (end, 6)
    said = capsys.readouterr().out
    assert f"; float32; --early_stopping_patience {patience}\n" in said
    assert (f"ended at step {end}, out of patience; best/ is step 6 of 28" in said) == (end < 28)
    assert scalars(whole)["train/loss"][-1][0] == end
    train_command(output_dir=tmp_path / "whole", **flags)
    assert "holds a finished run" in capsys.readouterr().out
    with dying_at(8):
        train_command(output_dir=tmp_path / "stopped", **flags)
    assert_same_bits(whole, train_command(output_dir=tmp_path / "stopped", **flags))


def test_what_chose_the_step_is_kept_text_by_text(train_command):
    """best/validation.npz. Red: logits of another validation, such as the last."""
    best = train_command(validate_steps=7, num_train_epochs=2) / "best"
    with np.load(best / "validation.npz") as kept:
        labels, logits = (torch.as_tensor(kept[name]) for name in ("labels", "logits"))
        assert kept["length"].max() <= 32
        assert len(kept["cut"]) == len(labels)
    said = json.loads((best / "validation.json").read_text())
    found = score(logits, labels)
    assert (found.accuracy, found.loss) == (said["accuracy"], said["loss"])


@pytest.mark.parametrize("names", [["$10-$20", "$a_$"], ["x" * 300, "雨 😀"]])
def test_any_name_of_a_class_can_be_drawn(names, tmp_path, recwarn):
    """As it is, not as a formula; none leaves the matrix without room. Red: `plain` left out of
    draw_confusion; names not cut there; the warnings of letters that the font lacks."""
    with SummaryWriter(str(tmp_path)) as writer:
        labels = torch.tensor([0, 1, 1])
        write_validation(writer, torch.eye(2)[labels], labels, names, step=1)
    assert [str(each.message) for each in recwarn] == []
