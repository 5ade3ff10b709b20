"""The pretrained encoder with its new head, its tokenizer, and which parameters decay.

In: a model's name, label names. Out: a float32 classifier, a fast tokenizer, parameter groups.
Refuses to know: the data set, the loop, the files we write.
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from config import UserError
from data import locate

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


def load_tokenizer(name: str, revision: str | None = None, max_length: int = 512, flag="--model"):
    """The fast tokenizer of `name`, cutting at `max_length` tokens.

    Raises `UserError` for a model without a tokenizer, without a fast one, without a padding token,
    or that reads fewer tokens than `max_length`.
    """
    config = read(AutoConfig, name, revision, flag)
    tokenizer = read(AutoTokenizer, name, revision, flag)
    if not tokenizer.is_fast:
        raise UserError(f"{flag} {name}: has no fast tokenizer; choose a model with tokenizer.json")
    if tokenizer.pad_token is None:
        raise UserError(
            f"{flag} {name}: has no padding token; choose an encoder such as DistilBERT"
        )
    # RoBERTa's 514 positions hold 512 tokens (two are kept for padding); its tokenizer says 512.
    limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", 2**31))
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
    """
    config = read(AutoConfig, name, revision)
    overrides = dict.fromkeys(ATTENTION_DROPOUT, attention_dropout)
    if dropout is not None:
        overrides |= dict.fromkeys(OTHER_DROPOUT, dropout)
    return read(
        AutoModelForSequenceClassification,
        name,
        revision,
        dtype=torch.float32,
        id2label=dict(enumerate(label_names)),
        label2id={label: index for index, label in enumerate(label_names)},
        problem_type="single_label_classification",
        ignore_mismatched_sizes=True,  # the head of another task gives way to a new one
        **{key: value for key, value in overrides.items() if hasattr(config, key)},
    )


def read(auto_class, name: str, revision: str | None = None, flag="--model", **options):
    """`auto_class.from_pretrained`, its many failures as one `UserError`. Runs no remote code."""
    path = locate(name, flag)
    if path and not (path / "config.json").is_file():
        raise UserError(
            f"{flag} {name}: holds no config.json; give a folder that save_pretrained wrote"
        )
    try:
        return auto_class.from_pretrained(str(path or name), revision=revision or "main", **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{flag} {name}: cannot be loaded ({reason}); check the name") from None


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
