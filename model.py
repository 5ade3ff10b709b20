"""The pretrained encoder with its new head, its tokenizer, and which parameters decay.

In: a model's name, label names. Out: a float32 classifier, a fast tokenizer, parameter groups.
Refuses to know: the data set, the loop, the files we write.
"""

import pickle
import textwrap

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from config import UserError
from data import locate, offline_hint

logging.disable_progress_bar()  # a bar a tensor group while weights load
logging.set_verbosity_error()  # and a table to say that the head is new, which here it should be

# What the dropouts are called, by DistilBERT, by the BERT family, by ModernBERT, and in heads.
ATTENTION_DROPOUT = ("attention_dropout", "attention_probs_dropout_prob")
OTHER_DROPOUT = (
    "dropout",
    "hidden_dropout_prob",
    "embedding_dropout",
    "mlp_dropout",
    "pooler_dropout",
    "seq_classif_dropout",
    "classifier_dropout",
)


def load_tokenizer(
    name: str, revision: str | None = None, max_length: int | None = None, flag="--model"
):
    """The fast tokenizer of `name`, cutting at `max_length` tokens; default: 512, or its limit.

    Raises `UserError` for a model without a tokenizer, without a fast one, without a padding token,
    with that of another model, or that reads fewer tokens than `max_length`.
    """
    config = read(AutoConfig, name, revision, flag)
    tokenizer = read(AutoTokenizer, name, revision, flag)
    if not tokenizer.is_fast:
        raise UserError(f"{flag} {name}: has no fast tokenizer; choose a model with tokenizer.json")
    if tokenizer.pad_token is None:
        raise UserError(
            f"{flag} {name}: has no padding token; choose an encoder such as DistilBERT"
        )
    # Of a folder without tokenizer files, transformers makes one that knows no word; and a token
    # above the model's vocabulary would end the run wherever it first came.
    vocabulary = tokenizer.get_vocab()
    size = getattr(config, "vocab_size", None) or len(vocabulary)
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        raise UserError(
            f"{flag} {name}: holds no tokenizer; save it with tokenizer.save_pretrained there"
        )
    if max(vocabulary.values()) >= size:
        raise UserError(
            f"{flag} {name}: its tokenizer has token {max(vocabulary.values())} and the model only "
            f"{size} of them; save the tokenizer that belongs to it there"
        )
    # RoBERTa's 514 positions hold 512 tokens (two are kept for padding); its tokenizer says 512.
    limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", 2**31))
    max_length = min(512, limit) if max_length is None else max_length
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise UserError(
            f"--max_length {max_length}: {name} adds {special} tokens to each text; "
            f"give at least {special + 1}"
        )
    if max_length > limit:
        raise UserError(
            f"--max_length {max_length}: {name} reads at most {limit} tokens; "
            f"give --max_length {limit}"
        )
    tokenizer.model_max_length = max_length  # saved with it: a pipeline cuts where the training cut
    # For a single text the token types are all 0, which models assume when none are given; and a
    # tokenizer may emit them for a model that has none.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def load_model(
    name: str,
    label_names: list[str],
    revision: str | None = None,
    attention_dropout: float = 0.0,
    dropout: float | None = None,
):
    """`name` with a classification head of `len(label_names)` outputs, from torch's generator.

    Weights are float32 whatever the file holds: a bfloat16 one near 1 cannot take a step of 1e-5.
    Raises `UserError` for a file without the encoder that its config.json describes.
    """
    config = read(AutoConfig, name, revision)
    overrides = dict.fromkeys(ATTENTION_DROPOUT, attention_dropout)
    # BigBird's sparse attention turns itself off for good at the first short batch: an evaluation
    # would change the training after it, and a resume could not repeat that.
    overrides["attention_type"] = "original_full"
    if dropout is not None:
        overrides |= dict.fromkeys(OTHER_DROPOUT, dropout)
    model = load_classifier(
        name,
        revision,
        new_head=True,
        id2label=dict(enumerate(label_names)),
        label2id={label: index for index, label in enumerate(label_names)},
        problem_type="single_label_classification",
        **{key: value for key, value in overrides.items() if hasattr(config, key)},
    )
    freeze_unused(model)
    return model


def freeze_unused(model: nn.Module) -> None:
    """Stop the gradient of weights that no logit depends on, such as BigBird's pooler.

    They would stay as they are; but several processes would wait for their gradients (DDP raises).
    """
    last = model.get_input_embeddings().num_embeddings - 1
    end = min(model.config.eos_token_id or 0, last)  # BART reads its logits at that token
    model(input_ids=torch.tensor([[end]])).logits.sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def load_classifier(
    name: str, revision: str | None = None, flag="--model", new_head=False, **options
):
    """`name` as a classifier in float32. Raises `UserError` unless its file holds all weights.

    `new_head`: what is not of the encoder may be missing, or of another task, and starts anew.
    """
    model, report = read(
        AutoModelForSequenceClassification,
        name,
        revision,
        flag,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # they are reported too, and in one line below
        output_loading_info=True,
        **options,
    )
    absent = report["missing_keys"] | {key for key, *_ in report["mismatched_keys"]}
    if new_head:  # and many an encoder that was trained on masked words alone has no pooler
        encoder = f"{model.base_model_prefix}."
        absent = {key for key in absent if key.startswith(encoder) and ".pooler." not in key}
    if absent:
        remedy = "check its config.json" if new_head else "give the best/ that train.py wrote"
        raise UserError(
            f"{flag} {name}: {len(absent)} of its weights are missing or of another size, such as "
            f"{min(absent)}; {remedy}"
        )
    return model


def read(auto_class, name: str, revision: str | None = None, flag="--model", **options):
    """`auto_class.from_pretrained`, its many failures as one `UserError`. Runs no remote code."""
    path = locate(name, flag, revision)
    if path and not (path / "config.json").is_file():
        raise UserError(
            f"{flag} {name}: holds no config.json; give a folder that save_pretrained wrote"
        )
    try:
        return auto_class.from_pretrained(
            str(path or name), revision=revision or "main", trust_remote_code=False, **options
        )
    except LOADING_ERRORS as error:
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        remedy = f"check the name{offline_hint()}"
        remedy = "give a folder that save_pretrained wrote whole" if path else remedy
        raise UserError(f"{flag} {name}: cannot be loaded ({reason}); {remedy}") from None


LOADING_ERRORS = (
    OSError,  # a file is missing, or the network
    ValueError,  # not JSON, an unknown kind of model
    *(KeyError, TypeError, StrictDataclassError),  # fields of a config that are not what they name
    *(SafetensorError, RuntimeError, pickle.UnpicklingError),  # truncated weights
    ImportError,  # a library that only this tokenizer needs
)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for the optimizer: with `weight_decay` the weights of linear, convolution and
    embedding layers; with 0 all else, that is biases and normalisation weights.

    By the layer's type, not its name: the usual `["bias", "LayerNorm.weight"]` misses DistilBERT's
    `sa_layer_norm` and `output_layer_norm` and every norm of ModernBERT.
    """
    matrices = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, Conv1D)
    decayed = {id(layer.weight) for layer in model.modules() if isinstance(layer, matrices)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
