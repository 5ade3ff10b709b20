"""The last layer for the first token alone gives what the whole one gives."""

from types import SimpleNamespace

import pytest
import torch
from conftest import scalars, weights_of
from families import make_family
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from model import load_classifier, load_tokenizer
from runtime.last_layer import read_first_token_only

SHORTER = [
    "bert",
    "camembert",
    "data2vec-text",
    "distilbert",
    "electra",
    "ernie",
    "roberta",
    "roc_bert",
    "xlm-roberta",
]
AS_THEY_ARE = [
    "albert",
    "big_bird",
    "deberta-v2",
    "longformer",
    "mobilebert",
    "modernbert",
    "mpnet",
    "xlnet",
]


def shortened(model) -> int:
    return sum("forward" in vars(part) for part in model.modules())


def gradients(model, batch, labels) -> dict[str, torch.Tensor]:
    model.zero_grad()
    functional.cross_entropy(model(**batch).logits, labels).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", SHORTER)
def test_logits_and_gradients_are_those_of_the_whole_layer(kind, attention, tmp_path):
    """With texts of several lengths, and of one, without a mask. Red: keys detached (the logits
    stay); `first` with [:, 1:2] or a norm left out (which is noticed: the layer stays whole)."""
    folder = make_family(kind, tmp_path / "model")
    tokenizer = load_tokenizer(str(folder), max_length=32)
    pair = [load_classifier(str(folder), tokenizer, new_head=True, whole=w) for w in (True, False)]
    pair[1].load_state_dict(pair[0].state_dict())
    for model in pair:
        model.set_attn_implementation(attention)
        model.eval()
    assert [shortened(model) for model in pair] == [0, 1]
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (6, 20), generator=rng)
    lengths = torch.tensor([20, 3, 7, 20, 1, 12])
    mask = (torch.arange(20) < lengths[:, None]).long()
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    for batch in ({"input_ids": ids * mask, "attention_mask": mask}, {"input_ids": ids}):
        whole, short = (gradients(model, batch, labels) for model in pair)
        torch.testing.assert_close(pair[1](**batch).logits, pair[0](**batch).logits)
        assert whole.keys() == short.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(short[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", AS_THEY_ARE)
def test_other_families_run_as_they_are(kind, tmp_path):
    """Red: AlbertLayer and LongformerLayer in SHORTENED."""
    folder = make_family(kind, tmp_path / "model")
    tokenizer = load_tokenizer(str(folder), max_length=32)
    assert not shortened(load_classifier(str(folder), tokenizer, new_head=True))


def test_a_model_that_reads_more_than_the_first_token_runs_as_it_is(tmp_path):
    """As a class of another program may, on layers of a known kind. Red: `del last.forward`, or the
    comparison before it, left out."""
    model = load_small(make_family("distilbert", tmp_path / "model"))
    read_first_token_only(model, {"input_ids": torch.tensor([[5, 6, 7]])})
    assert shortened(model) == 1
    model = load_small(tmp_path / "model")
    encode = model.distilbert.forward

    def forward(input_ids):
        states = encode(input_ids=input_ids).last_hidden_state
        return SimpleNamespace(logits=model.classifier(states.mean(1)))

    model.forward = forward
    read_first_token_only(model, {"input_ids": torch.tensor([[5, 6, 7]])})
    assert shortened(model.distilbert) == 0


def load_small(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("flags", [{}, {"gradient_checkpointing": True}])
def test_a_training_has_the_losses_of_the_whole_layer(train_command, tmp_path, flags):
    """Without dropout, of which fewer masks are drawn. Red: `whole` left out of load_model (the
    same bits); values detached."""
    flags |= {"dropout": 0.0, "max_steps": 20, "logging_steps": 1}
    runs = [
        train_command(last_layer=kind, output_dir=tmp_path / kind, **flags)
        for kind in ("first_token", "all")
    ]
    losses = [[value for _, value in scalars(run)["train/loss"]] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    ours, whole = (weights_of(run, "best") for run in runs)
    assert ours.keys() == whole.keys()
    assert any(not torch.equal(ours[name], whole[name]) for name in ours)
