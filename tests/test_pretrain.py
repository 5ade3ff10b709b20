"""recipes/pretrain_mlm.py: masked words by the loop of train.py."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import make_rows, weights_of, write_csv
from events import dying_at
from families import make_family
from hypothesis import given
from hypothesis import strategies as st
from test_loop import assert_same_bits
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DistilBertForMaskedLM

import eval as evaluation
import train
from model import load_tokenizer
from recipes import pretrain_mlm
from recipes.masked_words import hidden_counts, hide, masked_batches
from recipes.pretrain_mlm import PretrainConfig
from runtime.flags import UserError
from runtime.seen import read_seen
from runtime.tables import hash_texts

SMALL = {
    "max_length": 32,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "max_steps": 12,
    "save_steps": 4,
    "logging_steps": 4,
    "num_threads": 1,
    "max_save_share": 1.0,
}


@pytest.fixture
def pretrain(tiny, corpus, tmp_path):
    """pretrain(flag=value, ...) runs the recipe on the small corpus; returns its folder."""
    rows = [(text, "") for text, _ in make_rows(40, seed=9)]
    more = write_csv(tmp_path / "more.csv", rows)

    def command(**flags):
        given = {"model": tiny, "dataset": corpus, "unlabelled": more}
        given |= SMALL | {"output_dir": tmp_path / "pretrained"} | flags
        pretrain_mlm.main([f"--{name}={value}" for name, value in given.items()])
        return given["output_dir"]

    return command


@given(st.integers(3, 200), st.floats(0.01, 0.9), st.integers(0, 2**32 - 1))
def test_the_tokens_that_are_hidden_are_a_share_of_those_between_the_special_ones(
    tiny, length, share, seed
):
    """Red: places from 0; drawn with replacement; `words` with the special tokens."""
    tokenizer = load_tokenizer(str(tiny), max_length=32)
    (count,) = hidden_counts(np.array([length]), tokenizer, share)
    assert count == min(length - 2, max(1, round(share * (length - 2))))
    ids = [2, *[7] * (length - 2), 3]
    hidden, places = hide(ids, count, tokenizer, (1, 1), np.random.default_rng(seed))
    assert len(set(places)) == count
    assert set(places) <= set(range(1, length - 1))
    assert all(hidden[place] == ids[place] for place in set(range(length)) - set(places))


def test_eight_of_ten_hidden_tokens_are_masked_one_is_another_and_one_stays(tiny):
    """Red: `kind < 0.9` for the first."""
    tokenizer = load_tokenizer(str(tiny), max_length=32)
    ids = [2, *[7] * 40_000, 3]
    hidden, places = hide(ids, 40_000, tokenizer, (1, 1), np.random.default_rng(0))
    found = np.array(hidden)[places]
    masked, kept = (found == tokenizer.mask_token_id).mean(), (found == 7).mean()
    # A tenth is drawn from all 45 tokens, the mask and 7 among them.
    assert masked == pytest.approx(0.8 + 0.1 / 45, abs=0.01)
    assert kept == pytest.approx(0.1 + 0.1 / 45, abs=0.01)


def set_up(tiny, folder):
    write_csv(folder / "train.csv", make_rows(60, seed=1))
    config = PretrainConfig(
        model=str(tiny), dataset=str(folder), dropout=0.0, max_length=32, num_threads=1
    )
    accelerator = train.make_accelerator(config)
    settings = train.checkpoint.settings_of(config, accelerator)
    return pretrain_mlm.set_up_masked(config, accelerator, settings)


def test_the_labels_are_the_tokens_that_are_hidden_and_each_epoch_hides_others(tiny, tmp_path):
    """Red: `at - 1` in join; `epoch` left out of the seed."""
    run = set_up(tiny, tmp_path)
    steps, hidden = run.plan.steps_per_epoch, {}
    batches = masked_batches(run, range(1, 2 * steps + 1), run.text_weights)
    for step, batch in enumerate(batches, 1):
        (rows,) = run.plan.deal(step)
        ids = [run.train_set[number]["input_ids"] for number in rows.tolist()]
        places = [row.nonzero().flatten().tolist() for row in batch["positions"]]
        tokens = [of[place] for of, own in zip(ids, places, strict=True) for place in own]
        assert batch["labels"].tolist() == tokens
        for number, own in zip(rows.tolist(), places, strict=True):
            hidden.setdefault(number, []).append(own)
    assert len(hidden) == len(run.train_set) == 42
    assert sum(first != second for first, second in hidden.values()) > 30


def test_the_loss_is_that_of_transformers_own_model(pretrain, tiny, tmp_path, monkeypatch):
    """Of the same batch, labels of -100 elsewhere; in one pass and in four. Red: `positions` rolled
    by one in MaskedWords; the head on all positions."""
    losses = []
    for passes in (1, 4):
        seen = []
        monkeypatch.setattr(
            "runtime.monitor.Monitor.add_step",
            lambda self, loss, norm, seen=seen: seen.append((loss.item(), norm.item())),
        )
        sizes = {"per_device_train_batch_size": 8 // passes, "gradient_accumulation_steps": passes}
        output = tmp_path / f"{passes}"
        pretrain(output_dir=output, max_steps=3, dropout=0.0, max_grad_norm=0, **sizes)
        losses.append(seen)
    assert np.allclose(*losses, rtol=1e-5)

    run = set_up(tiny, tmp_path / "data")
    batch = next(masked_batches(run, range(1, 2), run.text_weights))
    labels = torch.full(batch["input_ids"].shape, -100)
    labels[batch["positions"]] = batch["labels"]
    own: DistilBertForMaskedLM = run.model.model
    head = run.model.model.vocab_transform
    loss = (
        run.summed_loss(
            run.model(**{k: v for k, v in batch.items() if k != "labels"}).logits, batch["labels"]
        )
        / run.text_weights[run.plan[1]].sum()
    )
    head._forward_pre_hooks.clear()
    inputs = {name: batch[name] for name in batch if name not in ("labels", "positions")}
    assert loss.item() == pytest.approx(own(**inputs, labels=labels).loss.item(), rel=1e-5)


def test_a_pretraining_that_is_killed_ends_in_the_same_bits(pretrain, tmp_path):
    """Twice. Red: masks by one `np.random.default_rng(seed)` for all texts."""
    whole = pretrain(output_dir=tmp_path / "whole")
    for step in (6, 10):
        with dying_at(step):
            pretrain()
    resumed = pretrain()
    assert_same_bits(whole, resumed)
    encoders = (weights_of(folder, "encoder") for folder in (whole, resumed))
    a, b = encoders
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_training_starts_from_the_encoder_and_validates_on_texts_that_it_has_not_seen(
    pretrain, corpus, tiny, train_command, tmp_path
):
    """On those that it would have validated on. Also where they stand among the unlabelled ones.

    Red: the validation texts left out of `known`; hash_test_split empty; `Seen` without them.
    """
    plain = train_command(max_steps=1, output_dir=tmp_path / "plain") / "best"
    held_out = read_seen(plain).validation
    rows = make_rows(150, seed=1) + make_rows(61, seed=2) + make_rows(5, seed=7)
    more = write_csv(tmp_path / "all.csv", [*rows, *rows, ("", "")])
    encoder = pretrain(unlabelled=more) / "encoder"
    seen = read_seen(encoder)
    test = hash_texts([(text,) for text, _ in make_rows(61, seed=2)])
    assert not np.isin(seen.training, held_out).any()
    assert not np.isin(seen.training, test).any()
    assert len(seen.training) == len(set(seen.training.tolist())) == 105 + 5

    run = train_command(model=encoder, max_steps=2, output_dir=tmp_path / "run")
    assert set(read_seen(run / "best").validation) == set(held_out)
    start, given = (
        weights_of(encoder.parent, "encoder"),
        DistilBertForMaskedLM.from_pretrained(tiny),
    )
    name = "distilbert.transformer.layer.0.ffn.lin1.weight"
    assert not torch.equal(start[name], given.state_dict()[name])
    assert AutoTokenizer.from_pretrained(encoder).mask_token == "[MASK]"


@pytest.mark.parametrize("kind", ["albert", "bert", "big_bird", "electra", "modernbert", "roberta"])
def test_a_family_learns_and_is_loaded_with_all_weights(kind, pretrain, train_command, tmp_path):
    """Also after a kill; its pooler is what it was. Red: freeze_unused left out (BigBird);
    read_pooler empty (BERT); the head not found."""
    folder = make_family(kind, tmp_path / "model")
    flags = {"model": folder, "max_steps": 4, "save_steps": 2}
    with dying_at(4):
        pretrain(**flags)
    encoder = pretrain(**flags) / "encoder"
    loaded, about = AutoModelForSequenceClassification.from_pretrained(
        encoder, output_loading_info=True
    )
    prefix = loaded.base_model_prefix
    assert not [name for name in about["missing_keys"] if name.startswith(f"{prefix}.")]
    before = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    for name, weight in loaded.state_dict().items():
        if ".pooler." in name:
            assert torch.equal(weight, before[name]), name
    train_command(model=encoder, max_steps=1)


def test_a_pretraining_on_short_texts_leaves_the_encoder_its_positions(
    pretrain, train_command, tmp_path
):
    """Red: the tokenizer saved with the --max_length of the pretraining."""
    encoder = pretrain(max_length=8, max_steps=1) / "encoder"
    assert AutoTokenizer.from_pretrained(encoder).model_max_length == 32
    run = train_command(model=encoder, max_length=32, max_steps=1, output_dir=tmp_path / "run")
    assert AutoTokenizer.from_pretrained(run / "best").model_max_length == 32


def test_an_encoder_of_something_else_is_left_alone(pretrain, tmp_path):
    """Red: the check of the manifest left out."""
    (tmp_path / "pretrained" / "encoder").mkdir(parents=True)
    with pytest.raises(UserError, match="is not of this recipe"):
        pretrain()


def test_a_sample_to_learn_from_moves_no_text_to_the_other_side(pretrain, train_command, tmp_path):
    """Nor is it forgotten what --model had seen. Red: the sampled sides in Seen; `start` left
    out."""
    plain = read_seen(train_command(max_steps=1, output_dir=tmp_path / "plain") / "best")
    encoder = pretrain(max_train_samples=20) / "encoder"
    run = train_command(model=encoder, max_steps=1, output_dir=tmp_path / "run")
    assert set(read_seen(run / "best").validation) == set(plain.validation)
    other = write_csv(tmp_path / "other" / "train.csv", make_rows(40, seed=31)).parent
    again = read_seen(pretrain(model=encoder, dataset=other, output_dir=tmp_path / "b") / "encoder")
    assert set(plain.validation) <= set(again.validation)
    assert set(plain.training) <= set(again.training)


def test_a_bag_of_words_has_no_label_that_the_training_did_not_have(
    pretrain, train_command, tmp_path
):
    """Of an encoder that has seen more texts. Red: `[:None]` in own_training."""
    encoder = pretrain() / "encoder"
    run = train_command(model=encoder, max_train_samples=10, max_steps=2)
    evaluation.main([f"--ckpt={run / 'best'}", f"--report={tmp_path / 'r.json'}"])
    found = json.loads((tmp_path / "r.json").read_text())["baselines"]
    assert found["learnt_from"] == found["of"] == 10


def test_a_text_without_a_token_is_left_out(pretrain, tiny, tmp_path):
    """A zero-width space, which BERT's normalizer removes. Red: the filter left out, and the loss
    is not finite."""
    model = shutil.copytree(tiny, tmp_path / "model")
    about = json.loads((model / "tokenizer.json").read_text())
    own = dict.fromkeys(["clean_text", "handle_chinese_chars", "lowercase", "strip_accents"], True)
    about["normalizer"] = {"type": "BertNormalizer"} | own
    (model / "tokenizer.json").write_text(json.dumps(about))
    rows = [("\u200b", ""), *((text, "") for text, _ in make_rows(9, seed=9))]
    more = write_csv(tmp_path / "odd.csv", rows)
    flags = {"per_device_train_batch_size": 1, "max_steps": -1, "num_train_epochs": 1}
    pretrain(model=model, unlabelled=more, **flags)


def test_no_new_text_is_a_line(pretrain, corpus):
    """Before the training. Red: `left` not looked at."""
    with pytest.raises(UserError, match=r"--unlabelled .*: holds no text that is new; check"):
        pretrain(unlabelled=corpus)


def test_a_test_split_without_a_row_leaves_nothing_out(pretrain, tmp_path):
    """Red: np.concatenate of nothing."""
    write_csv(tmp_path / "data" / "train.csv", make_rows(40, seed=1))
    write_csv(tmp_path / "data" / "test.csv", [])
    pretrain(dataset=tmp_path / "data", max_steps=1)


def test_flags_of_classes_are_refused(pretrain):
    """Red: NOT_HERE empty."""
    with pytest.raises(UserError, match="--class_weights: is for classes, not for masked words"):
        pretrain(class_weights="balanced")
