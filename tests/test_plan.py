"""The batch plan and the splits: properties that hold for any lengths, sizes and seeds."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data import BatchPlan, cut_middle, plan_epoch, train_loader
from runtime.draw import draw, share_out
from runtime.tables import hash_texts

NO_TOKENIZER = None  # nothing is collated here
lengths = st.lists(st.integers(1, 512), min_size=1, max_size=300).map(np.array)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)
windows = st.sampled_from([1, 3, 50])


@given(lengths, sizes, seeds, st.integers(0, 5), windows)
def test_every_row_comes_exactly_once_an_epoch(lengths, size, seed, epoch, window):
    """Red: `rows[1:]` for `rows` where plan_epoch cuts a window into batches."""
    batches = plan_epoch(lengths, size, seed, epoch, window)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))


@given(lengths, sizes, seeds, windows)
def test_batches_differ_by_at_most_one_in_size_and_never_exceed_it(lengths, size, seed, window):
    """Red: plan_epoch with slices of `batch_size`, which leave a smaller last batch."""
    counts = {len(batch) for batch in plan_epoch(lengths, size, seed, 0, window)}
    assert max(counts) - min(counts) <= 1
    assert max(counts) <= size


@given(lengths, sizes, seeds, st.integers(0, 3))
def test_the_plan_is_a_pure_function(lengths, size, seed, epoch):
    """Red: `np.random.permutation`, the global generator, in plan_epoch."""
    np.random.seed(1)
    first = plan_epoch(lengths, size, seed, epoch, 50)
    np.random.seed(2)
    second = plan_epoch(lengths.copy(), size, seed, epoch, 50)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in second]


@given(lengths, sizes, seeds, st.integers(1, 60))
def test_step_k_is_the_same_batch_whoever_asks_first(lengths, size, seed, step):
    """Resuming at k asks a new plan for batch k. Red: one generator for all epochs of a
    BatchPlan."""
    walked, jumped = (BatchPlan(lengths, size, seed) for _ in range(2))
    for earlier in range(1, step):
        walked[earlier]
    assert walked[step].tolist() == jumped[step].tolist()


@given(st.lists(st.integers(0, 99), max_size=40), st.integers(1, 40))
def test_what_is_cut_out_of_the_middle_leaves_both_ends(ids, max_length):
    """Red: `ids[head - max_length :]` for the end in cut_middle, which is all of them if max_length
    is 1."""
    kept = cut_middle(ids, max_length)
    assert len(kept) == min(len(ids), max_length)
    head = min(len(kept), max_length // 4 + 1)
    assert kept == ids[:head] + ids[len(ids) - (len(kept) - head) :]


@given(lengths, sizes, st.integers(1, 4), st.integers(1, 4))
def test_dealing_gives_every_row_to_one_part_whatever_the_mix(lengths, size, processes, steps):
    """Red: `[process:-1:processes]` in the dealing of train_loader loses parts."""
    plan = BatchPlan(lengths, size, seed=0, processes=processes, passes=steps)
    rows = Dataset.from_dict({"labels": [0] * len(lengths)})
    each = [SimpleNamespace(process_index=p, num_processes=processes) for p in range(processes)]
    dealt = [
        list(train_loader(rows, plan, range(1, 2), NO_TOKENIZER, process).batch_sampler)
        for process in each
    ]
    assert all(len(share) == steps for share in dealt)
    assert sorted(itertools.chain(*itertools.chain(*dealt))) == sorted(plan[1])


@given(lengths, sizes, st.integers(1, 4), st.integers(0, 500))
def test_by_tokens_a_step_takes_the_fewest_passes_that_keep_each_below(
    lengths, size, processes, more
):
    """Of the same batch, equally many on each process. Red: `passes` from --gradient_accumulation_
    steps on; tokens without padding; passes + 2."""
    most = max(lengths) + more
    plan = BatchPlan(lengths, size, 0, "group_by_length", processes, 3, most)
    parts = plan.deal(1)
    assert np.concatenate(parts).tolist() == plan[1].tolist()
    assert len(parts) == processes * plan.passes(1)

    def largest(passes: int) -> int:
        split = np.array_split(plan[1], passes * processes)
        return max(len(part) * max(plan.lengths[part]) for part in split if len(part))

    assert largest(plan.passes(1)) <= most
    assert all(largest(fewer) > most for fewer in range(1, plan.passes(1)))


def test_the_order_changes_from_epoch_to_epoch_and_from_seed_to_seed():
    """Red: `default_rng(seed)` without the epoch in plan_epoch."""
    plans = [
        np.concatenate(plan_epoch(np.arange(1, 101), 8, seed, epoch, 50)).tolist()
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert len({tuple(plan) for plan in plans}) == 3


def test_length_windows_leave_little_padding_and_random_does_not():
    """Lengths as IMDb's (log-normal, cut at 512). Red: no argsort in plan_epoch."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5.4, 0.6, 17500).astype(int) + 3, 512)
    padding = {}
    for strategy in ("group_by_length", "random"):
        plan = BatchPlan(lengths, 16, seed=0, strategy=strategy)
        counts = plan.count(range(1, plan.steps_per_epoch + 1))
        assert (counts["texts"], counts["tokens"]) == (17500, lengths.sum())
        padding[strategy] = 1 - counts["tokens"] / counts["padded_tokens"]
    assert padding["group_by_length"] < 0.03
    assert padding["random"] > 0.35


def test_batches_come_in_no_order_of_length():
    """HF Trainer yields each window longest first. Red: no permutation of the batches in
    plan_epoch."""
    lengths = np.random.default_rng(0).integers(5, 500, 1600)
    means = [lengths[batch].mean() for batch in plan_epoch(lengths, 16, 0, 0, 50)]
    ranks = np.argsort(np.argsort(means[:50]))
    assert abs(np.corrcoef(ranks, np.arange(50))[0, 1]) < 0.4


def as_keys(texts) -> np.ndarray:
    return hash_texts([(str(text),) for text in texts])


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=4, max_size=200),
    st.floats(0.05, 0.95),
    seeds,
)
@settings(max_examples=200)
def test_equal_texts_are_drawn_together_or_not_at_all(rows, share, seed):
    """Red: `keys = np.arange(len(keys))` in draw, which draws row by row."""
    labels, texts = map(np.array, zip(*rows, strict=True))
    quota = share_out(np.bincount(labels), round(len(rows) * share))
    drawn = draw(labels, quota, as_keys(texts), seed)
    assert not set(texts[drawn]) & set(np.delete(texts, drawn))
    assert (np.bincount(labels[drawn], minlength=len(quota)) <= quota).all()


@given(st.lists(st.integers(0, 3), min_size=4, max_size=200), st.floats(0, 1), seeds)
def test_a_part_has_the_asked_size_and_each_class_its_share_to_within_one(labels, share, seed):
    """Red: share_out without its `+= 1`, which hands out the remainders."""
    labels = np.array(labels)
    size = int(len(labels) * share)
    quota = share_out(np.bincount(labels), size)
    drawn = draw(labels, quota, np.arange(len(labels), dtype=np.uint64), seed)
    assert len(drawn) == size
    exact = np.bincount(labels) * size / len(labels)
    assert (abs(np.bincount(labels[drawn], minlength=len(exact)) - exact) < 1).all()


@given(st.permutations(range(60)), st.integers(0, 20), seeds)
def test_what_is_drawn_depends_on_the_texts_and_not_on_their_order(order, more, seed):
    """A file sorted anew has the same validation texts. Red: `np.random.default_rng(seed)` in draw
    for the order of the keys."""
    texts, labels = np.arange(60), np.arange(60) % 3
    keys, quota = as_keys(texts), np.array([6, 6, 6])
    drawn = set(texts[draw(labels, quota, keys, seed)])
    again = texts[order]
    assert set(again[draw(labels[order], quota, keys[order], seed)]) == drawn


def test_added_rows_move_hardly_any_text_to_the_other_side():
    """A tenth more, at a share of 0.3: below 1 % of the texts change sides (by chance 42 % would).
    Red: as above."""
    labels = np.arange(11_000) % 2
    keys = as_keys(range(11_000))
    sides = []
    for size in (10_000, 11_000):
        quota = share_out(np.bincount(labels[:size]), round(0.3 * size))
        part = np.zeros(11_000, dtype=bool)
        part[draw(labels[:size], quota, keys[:size], seed=0)] = True
        sides.append(part[:10_000])
    assert (sides[0] != sides[1]).mean() < 0.01


def test_another_seed_draws_other_rows():
    """Red: shuffle without the seed."""
    labels, keys = np.zeros(1000, dtype=int), as_keys(range(1000))
    first, second = (set(draw(labels, np.array([300]), keys, seed)) for seed in (0, 1))
    assert 50 < len(first & second) < 130  # 90 by chance


def test_the_published_sizes_of_imdb_are_met_though_97_texts_stand_twice():
    """25,000 = 17,500 + 7,500, each half positive. Red: duplicates counted once in the quota of
    draw (`left[label] -= 1` once for all copies)."""
    texts = [*range(24903), *range(97)]
    labels = np.array(texts) % 2
    drawn = draw(labels, share_out(np.bincount(labels), 7500), as_keys(texts), seed=0)
    assert len(drawn) == 7500
    assert labels[drawn].sum() == pytest.approx(3750, abs=1)
