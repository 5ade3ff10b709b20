"""Which parameters decay, and what is loaded."""

import re

import numpy as np
import pytest
import torch
from conftest import load_named, make_model, train_small, weights_of, write_csv
from events import before_update
from families import OWN, make_family, make_tokenizer, tiny_config
from test_loop import assert_same_bits
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertForSequenceClassification,
)

import eval as evaluation
import train
from model import freeze_unused, parameter_groups
from runtime.flags import UserError
from runtime.processes import run_command

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
    """Red: `changed_fields` not passed on by load_model."""
    own = load_named(tiny, ["a", "b"])
    assert own.config.attention_dropout == 0.0
    assert own.config.dropout == 0.1
    off = load_named(tiny, ["a", "b"], dropout=0.0)
    assert {m.p for m in off.modules() if isinstance(m, nn.Dropout)} == {0.0}


@pytest.mark.parametrize("kind", [*MODELS, "albert", "gpt2"])
def test_dropout_0_leaves_no_dropout_in_any_family(kind, tmp_path):
    """Its head's, too. Red: changed_fields with a list of names, without ALBERT's
    classifier_dropout_prob; without GPT-2's resid_pdrop."""
    model = load_named(make_family(kind, tmp_path), ["a", "b"], dropout=0.0)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} <= {0.0}
    left = {key: value for key, value in model.config.to_dict().items() if "dropout" in key}
    assert not any(left.values()), left


@pytest.mark.parametrize("kind", ["big_bird", "bigbird_pegasus"])
def test_attention_that_switches_itself_off_is_off_from_the_start(kind, tmp_path):
    """Also in what is saved. Red: no look at "block_sparse" in changed_fields."""
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


HEADS = ["distilbert", "roberta", "bart", "xlnet", "modernbert", "t5"]


@pytest.fixture(params=HEADS)
def classifier(request, tmp_path):
    """A folder with a classifier of c, a and b, in this order; its weights."""
    names = {0: "c", 1: "a", 2: "b"}
    model = AutoModelForSequenceClassification.from_config(
        tiny_config(request.param, {**OWN.get(request.param, {}), "id2label": names})
    )
    model.save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    return tmp_path, model.eval()


def test_a_classifier_gets_a_new_head_whatever_its_classes(classifier):
    """In whole, and nothing but it. Red: no draw_head in load_model (kept if as many classes);
    draw_head with every part."""
    folder, model = classifier
    for names in (["a", "b", "c"], ["x", "y"]):
        loaded = load_named(folder, names)
        before = dict(model.named_parameters())
        for name, parameter in loaded.named_parameters():
            inside = name.startswith(f"{model.base_model_prefix}.")
            same = torch.equal(parameter, before[name])
            assert same if inside else (not same or is_constant(parameter)), name


def is_constant(parameter) -> bool:
    """A bias of a new head is 0, a norm 1, in any."""
    return len(parameter.unique()) == 1


def test_a_kept_head_keeps_its_classes_in_their_order(classifier, tmp_path):
    """Also one of which this month's data has no text. Red: kept_classes left out of choose_texts
    (the classes are then those of the data, in their order)."""
    folder, model = classifier
    data = write_csv(tmp_path / "x.csv", [(f"w{n} w{n + 1}", "ab"[n % 2]) for n in range(20)])
    flags = {"model": folder, "dataset": data, "max_length": 16, "max_steps": 1, "warmup_steps": 1}
    train_small(output_dir=tmp_path / "run", keep_head=True, **flags)  # the first rate is 0
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "best").eval()
    assert kept.config.id2label == {0: "c", 1: "a", 2: "b"}
    text = torch.tensor([[0, 8, 9, 10, 2]])
    with torch.no_grad():
        torch.testing.assert_close(kept(input_ids=text).logits, model(input_ids=text).logits)


def test_a_line_says_what_becomes_of_a_head(tiny, train_command, tmp_path, capsys):
    """Red: describe_head without `keep_head`; without its look for a head; notes left out of
    set_up."""
    best = train_command(output_dir=tmp_path / "a", max_steps=1) / "best"
    assert "is a classifier" not in capsys.readouterr().out
    lines = {False: "it gets a new head; --keep_head keeps its own", True: "whose head is kept"}
    for keep, line in lines.items():
        name = tmp_path / f"b{keep}"
        train_command(model=best, keep_head=keep, output_dir=name, max_steps=1)
        assert f"--model {best} is a classifier" in (said := capsys.readouterr().out)
        assert line in said


# ---------------------------------------------------------------- memory


def test_layers_computed_again_give_the_same_bits_in_less_memory(train_command, tmp_path):
    """With dropout. Red: `preserve_rng_state=False` in recompute_layers; no call of it."""
    kept = train_command(output_dir=tmp_path / "kept", max_steps=10)
    again = train_command(output_dir=tmp_path / "again", max_steps=10, gradient_checkpointing=True)
    assert_same_bits(kept, again)
    config = (tmp_path / "kept" / "best" / "config.json").read_text()
    assert (tmp_path / "again" / "best" / "config.json").read_text() == config
    sizes = []
    for flags in ({}, {"gradient_checkpointing": True}):
        model = load_named(tmp_path / "kept" / "best", ["negative", "positive"], **flags).train()
        sizes.append(bytes_for_backward(model))
    assert sizes[1] < sizes[0] / 2


def bytes_for_backward(model) -> int:
    """What a forward pass keeps for the backward pass, but for the weights themselves."""
    kept = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=torch.full((8, 16), 7))
    assert output.logits.requires_grad
    return sum(kept.values())


def test_a_model_that_cannot_compute_layers_again_is_refused(tmp_path):
    """Red: recompute_layers without its check (a ValueError of transformers)."""
    make_family("funnel", tmp_path)
    with pytest.raises(UserError, match="a FunnelForSequenceClassification, has none"):
        load_named(tmp_path, ["a", "b"], gradient_checkpointing=True)


def too_much():
    torch.empty(2**60, dtype=torch.uint8)


def too_much_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a ...")


def too_much_for_numpy():
    np.empty(2**60, dtype=np.uint8)


def too_much_of_a_file():
    raise RuntimeError("unable to mmap 268000000 bytes from file <a>: Cannot allocate memory (12)")


@pytest.mark.parametrize(
    ("fail", "amount"),
    [
        (too_much, "1,152,921,504,607 MB"),
        (too_much_on_a_gpu, "20.00 MiB"),
        (too_much_for_numpy, "1.00 EiB"),
        (too_much_of_a_file, "268 MB"),
    ],
)
@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (
            train,
            "max_tokens_per_forward gradient_checkpointing per_device_train_batch_size "
            "gradient_accumulation_steps per_device_eval_batch_size max_length",
        ),
        (evaluation, "per_device_eval_batch_size"),
    ],
)
def test_too_little_memory_is_a_line_with_the_flags_that_help(fail, amount, module, flags, capsys):
    """Red: no is_out_of_memory in explain; one of its words, or MemoryError, left out."""
    with pytest.raises(SystemExit) as ended:
        run_command(fail, module.IF_OUT_OF_MEMORY)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: out of memory ({amount} more were asked for); give ")
    assert re.findall(r"--(\w+)", err.replace("another --output_dir", "")) == flags.split()


@pytest.mark.parametrize(
    "place", [AutoModelForSequenceClassification, DistilBertForSequenceClassification]
)
def test_too_little_memory_for_the_weights_is_no_fault_of_the_model(place, tiny, monkeypatch):
    """While they are loaded, and in the first pass. Red: no is_out_of_memory in load_pretrained;
    none in find_fault."""
    auto = place is AutoModelForSequenceClassification
    name = "from_pretrained" if auto else "forward"
    monkeypatch.setattr(place, name, lambda *_, **__: too_much_of_a_file())
    with pytest.raises(RuntimeError, match="unable to mmap"):
        load_named(tiny, ["a", "b"])


def test_a_run_out_of_memory_goes_on_with_those_flags(train_command, tmp_path, monkeypatch):
    """Red: `flag` for `adjustable` at gradient_checkpointing, or at max_tokens_per_forward."""
    flags = {"output_dir": tmp_path / "run", "max_steps": 12}
    whole = train_command(**flags | {"output_dir": tmp_path / "whole"})

    def fail(_, step):
        if step == 5:
            too_much()

    with before_update(fail), pytest.raises(RuntimeError, match="can't allocate"):
        train_command(**flags)
    run = train_command(**flags, gradient_checkpointing=True, per_device_eval_batch_size=2)
    assert_same_weights(whole, run)
    flags |= {"output_dir": tmp_path / "by_tokens", "dropout": 0.0}
    with before_update(fail), pytest.raises(RuntimeError, match="can't allocate"):
        train_command(**flags)
    whole = train_command(**flags | {"output_dir": tmp_path / "without_dropout"})
    run = train_command(**flags, max_tokens_per_forward=70)
    for name, weight in weights_of(run).items():
        torch.testing.assert_close(weight, weights_of(whole)[name], rtol=1e-3, atol=1e-5)


def assert_same_weights(a, b) -> None:
    ours, theirs = weights_of(a), weights_of(b)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_texts_may_be_longer_than_512_tokens(tmp_path):
    """As long as the model's positions. Red: `min(512, limit)` in load_tokenizer."""
    make_family("modernbert", tmp_path / "model", max_position_embeddings=1024)
    rows = [(" ".join(["w3", *["w9"] * (900 + n)]), "ab"[n % 2]) for n in range(16)]
    data = write_csv(tmp_path / "x.csv", rows)
    with pytest.raises(UserError, match="reads at most 1024; give 3 to 1024"):
        train_small(model=tmp_path / "model", dataset=data, output_dir=tmp_path, max_length=1025)
    train_small(
        model=tmp_path / "model", dataset=data, output_dir=tmp_path, max_length=800, max_steps=1
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "best")
    assert tokenizer.model_max_length == 800
    assert len(tokenizer(rows[0][0], truncation=True)["input_ids"]) == 800
