"""Which parameters decay, and what is loaded."""

import pytest
import torch
from conftest import make_model
from families import make_family
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from model import freeze_unused, load_model, load_tokenizer, parameter_groups

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "pad_token_id": 0,
}
MODELS = {
    "distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 50},
    "bert": SMALL,
    "roberta": SMALL,
    "big_bird": SMALL,
    "modernbert": SMALL,
    "deberta": SMALL,
    "deberta-v2": {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "electra": {**SMALL, "embedding_size": 16},
}


def load_named(folder, names: list[str], **options):
    """The model in `folder`, with the tokenizer there, and classes of those names."""
    tokenizer = load_tokenizer(str(folder), max_length=16)
    return load_model(str(folder), names, tokenizer, **options)


@pytest.mark.parametrize("kind", MODELS)
def test_matrices_decay_and_biases_and_norms_do_not(kind):
    """Against the shape: what decays has two dimensions, what does not has one.

    Red: parameter_groups by the names `["bias", "LayerNorm.weight"]` (fails for distilbert and
    modernbert); nn.Embedding left out of its types.
    """
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(kind, **MODELS[kind])
    )
    decayed, rest = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    grouped = [id(parameter) for group in (decayed, rest) for parameter in group["params"]]
    assert sorted(grouped) == sorted({id(parameter) for parameter in model.parameters()})
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in rest["params"])
    norms = [m.weight for m in model.modules() if "Norm" in type(m).__name__]
    assert len(norms) >= 4
    assert {id(weight) for weight in norms} <= {id(parameter) for parameter in rest["params"]}


def test_weights_are_float32_whatever_the_file_holds(tmp_path):
    """Red: `dtype` left out of load_classifier."""
    folder = make_model(tmp_path / "half", dtype="bfloat16")
    half = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(folder)
    model = load_named(folder, ["a", "b", "c"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.classifier.out_features == 3


def test_weights_that_no_logit_depends_on_are_not_trained():
    """BigBird's pooler; DDP would wait for its gradient. Red: no requires_grad_ in
    freeze_unused."""
    for kind, frozen in (("big_bird", ["bert.pooler.weight", "bert.pooler.bias"]), ("bert", [])):
        model = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(kind, **MODELS[kind])
        )
        freeze_unused(model, [0])
        found = [
            name for name, parameter in model.named_parameters() if not parameter.requires_grad
        ]
        assert found == frozen
        assert all(parameter.grad is None for parameter in model.parameters())


def test_dropouts_are_set_where_the_model_has_them(tiny):
    """Red: `overrides` not passed on by load_model."""
    own = load_named(tiny, ["a", "b"])
    assert own.config.attention_dropout == 0.0
    assert own.config.dropout == 0.1
    off = load_named(tiny, ["a", "b"], dropout=0.0)
    assert {m.p for m in off.modules() if isinstance(m, nn.Dropout)} == {0.0}


@pytest.mark.parametrize("kind", [*MODELS, "albert"])
def test_dropout_0_leaves_no_dropout_in_any_family(kind, tmp_path):
    """Its head's, too. Red: load_model with a list of names, without ALBERT's
    classifier_dropout_prob."""
    model = load_named(make_family(kind, tmp_path), ["a", "b"], dropout=0.0)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} <= {0.0}
    left = {key: value for key, value in model.config.to_dict().items() if "dropout" in key}
    assert not any(left.values()), left


@pytest.mark.parametrize("kind", ["big_bird", "bigbird_pegasus"])
def test_attention_that_switches_itself_off_is_off_from_the_start(kind, tmp_path):
    """Also in what is saved. Red: no look at "block_sparse" in load_model."""
    make_family(kind, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).attention_type == "block_sparse"
    assert load_named(tmp_path, ["a", "b"]).config.attention_type == "original_full"


def test_the_head_is_drawn_from_torchs_generator(tiny):
    """Two seeds, two heads; one seed, one head. Red: a fixed seed inside load_model."""
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load_named(tiny, ["a", "b"]).classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
