"""What the measurements of bench/ are computed from; the timings themselves are not tested."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_RUN, make_rows, write_csv
from forked import Forked
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from bench import accuracy, peer_trainer, resume
from bench.accuracy import compare
from bench.packing import check_packing
from bench.speed import flops_of
from bench.speed_arm import order_of
from config import Config
from recipes.self_train import SelfTrainConfig
from runtime.flags import UserError, parse


def test_model_flops_are_those_that_torch_counts_for_texts_of_each_length(tiny):
    """Forward and backward, by torch's counter of every matrix product that runs. It would count
    padding, too, which single texts do not have.

    Red: 2 for 4 in `attention`; `every` for `encoder` in `per_token`.
    """
    model = AutoModelForSequenceClassification.from_pretrained(tiny, attn_implementation="eager")
    lengths = [1, 7, 30]
    with FlopCounterMode(display=False) as counted:
        for length in lengths:
            ids = torch.full((1, length), 6)
            model(input_ids=ids, labels=torch.tensor([0])).loss.backward()
    assert flops_of(model, lengths) == pytest.approx(counted.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_peer_trains_on_every_text_of_the_work_once(grouped):
    """After the warm-up, and before what is not timed; grouping reduces padding.

    Red: `torch.randint` for `randperm`; no `warm +`; `randperm` for the grouped too.
    """
    rng = np.random.default_rng(0)
    work = [{"input_ids": [0] * int(length)} for length in rng.integers(1, 512, 80)]
    order = order_of({"warm": work[:32], "work": work}, grouped, 16)
    assert order[:32] == list(range(32))
    assert sorted(order[32 : 32 + 80]) == list(range(32, 112))
    lengths = np.array([len(work[row - 32]["input_ids"]) for row in order[32 : 32 + 80]])
    batches = lengths.reshape(-1, 16)
    padding = 1 - batches.sum() / (batches.max(1) * 16).sum()
    assert padding < 0.25 if grouped else padding > 0.35


def test_packed_texts_have_the_logits_of_padded_ones(tiny, corpus, tmp_path):
    """bench/packing.py on CPU. Red: `places` from 1; `ends` off by one."""
    flags = SMALL_RUN | {"dataset": corpus, "model": tiny, "output_dir": tmp_path}
    config = parse(Config, [f"--{name}={value}" for name, value in flags.items()])
    assert check_packing(config) < 1e-5


def test_a_comparison_of_resumes_deletes_nothing(tmp_path, monkeypatch):
    """Red: rmtree of --output_dir, whose default is the folder that one stands in."""
    (tmp_path / "mine").write_text("mine")
    monkeypatch.setattr("sys.argv", ["resume.py", f"--output_dir={tmp_path}"])
    with pytest.raises(UserError, match="exists; give a folder that does not"):
        resume.main()
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_paired_comparison_counts_only_what_the_arms_differ_in():
    """Two seeds, four texts, by hand. Red: `std()` for `std(ddof=1)`."""
    a = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=bool)
    b = np.array([[1, 0, 0, 0], [1, 0, 0, 1]], dtype=bool)
    found = compare(a, b)
    assert found["difference"] == pytest.approx(1 / 8)
    assert found["right_only"] == [2, 1]
    by_text, by_seed = [0, 0.5, 0.5, -0.5], [0.25, 0.0]
    assert found["standard_error_over_texts"] == pytest.approx(np.std(by_text, ddof=1) / 2)
    assert found["standard_error_over_seeds"] == pytest.approx(np.std(by_seed, ddof=1) / 2**0.5)


@pytest.mark.parametrize("name", accuracy.ARMS)
def test_an_arm_differs_from_ours_in_flags_that_its_script_has(name):
    """Red: a misspelt flag in ARMS; {texts} for {unlabelled}."""
    arm = accuracy.ARMS[name]
    kind = SelfTrainConfig if "self_train" in arm.script else Config
    flags = [flag.format(encoder="e", unlabelled="u.csv") for flag in arm.flags]
    assert parse(kind, flags) != kind() or name in ("ours", "ours, long texts tested in windows")
    assert (ROOT / arm.script).exists()


def test_the_arms_of_a_table_are_tested_on_one_test_split(tiny, corpus, tmp_path, monkeypatch):
    """A whole measurement of a tiny model. The bag of words has the labelled texts alone.
    Red: the data set not named in open_test; baselines of the last arm; flags.json without
    --unlabelled_texts."""
    rows = [(text, "") for text, _ in make_rows(60, seed=9)]
    more = write_csv(tmp_path / "more.csv", rows)
    own = (accuracy.UNLABELLED, "--min_probability=0.5")
    arms = {
        "ours": accuracy.Arm(),
        "self-training": accuracy.Arm("recipes/self_train.py", own, best="round_1/best"),
    }
    monkeypatch.setattr(accuracy, "ARMS", arms)
    process = SimpleNamespace(Popen=lambda words, **_: Forked(*words[1:]), DEVNULL=None)
    monkeypatch.setattr(accuracy, "subprocess", process)
    given = {"seeds": 1, "test": 30, "unlabelled": more, "unlabelled_split": "train"}
    given |= {"folder": tmp_path / "scratch", "json": tmp_path / "found.json", "max_steps": 60}
    few = {"max_train_samples": 40, "max_length": 32, "learning_rate": 5e-3, "num_threads": 1}
    few |= {"validate_steps": 20, "per_device_train_batch_size": 8}
    given |= few | {"model": tiny, "dataset": corpus, "unlabelled_texts": 50}

    def run(**flags):
        words = [f"--{name}={value}" for name, value in (given | flags).items()]
        monkeypatch.setattr("sys.argv", ["accuracy.py", *words])
        accuracy.main()
        return json.loads((tmp_path / "found.json").read_text())

    found = run()
    assert found["test_texts"] == 30
    assert found["baselines"]["learnt_from"] == found["baselines"]["of"] == 40
    assert set(found["arms"]) == set(arms)
    with pytest.raises(UserError, match="holds runs with other flags"):
        run(unlabelled_texts=60)


def test_trainer_is_not_given_what_it_would_not_do(monkeypatch):
    """Red: require_defaults left out."""
    monkeypatch.setattr("sys.argv", ["peer_trainer.py", "--label_smoothing_factor=0.1"])
    with pytest.raises(UserError, match="--label_smoothing_factor: is not done here by Trainer"):
        peer_trainer.main()


def test_a_training_that_ends_early_has_its_time_counted_and_ends_the_measurement(tmp_path):
    """Red: the file of seconds written only after a success; no look at the status."""
    stopped = ["-c", "import time; time.sleep(0.3); raise SystemExit(3)"]
    for starts in (1, 2):
        with pytest.raises(UserError, match="ended with status 3"):
            accuracy.run_script(stopped, tmp_path / "run")
        assert accuracy.minutes(tmp_path / "run") >= starts * 0.3 / 60
