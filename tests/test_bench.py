"""What the measurements of bench/ are computed from; the timings themselves are not tested."""

import numpy as np
import pytest
import torch
from conftest import SMALL_RUN
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from bench import resume
from bench.accuracy import compare
from bench.packing import check_packing
from bench.speed import flops_of
from bench.speed_arm import order_of
from config import Config
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
    assert found["standard_error_over_reviews"] == pytest.approx(np.std(by_text, ddof=1) / 2)
    assert found["standard_error_over_seeds"] == pytest.approx(np.std(by_seed, ddof=1) / 2**0.5)
