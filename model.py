"""The pretrained encoder: its tokenizer, head, weight decay groups and predictions.

In: a model's name, label names; batches. Out: a float32 classifier, a fast tokenizer, parameter
groups; logits and scores. Independent of: the data set, the loop, the files we write.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from runtime.dropout import draw_faster
from runtime.flags import UserError
from runtime.heads import describe_head, draw_head, has_head
from runtime.hub import load_pretrained, require_weights
from runtime.last_layer import read_first_token_only
from runtime.probe import made_up_texts, pad, position_limit, require_sound
from runtime.tokenizer import check_tokenizer, keep_end_token_out

# ---------------------------------------------------------------- tokenizer

UNLIMITED = 2**31


def load_tokenizer(name: str, revision: str | None = None, max_length: int = 512, flag="--model"):
    """The fast tokenizer of `name`, truncating at `max_length` (-1: the model's limit, or 512 if
    it has none).

    Raises `UserError` without a fast tokenizer, a padding token or a vocabulary that fits the
    model, and for a `max_length` beyond the model's limit.
    """
    model_config = load_pretrained(AutoConfig, name, revision, flag)
    positions = position_limit(model_config, f"{flag} {name}")
    tokenizer = load_pretrained(AutoTokenizer, name, revision, flag)
    check_tokenizer(tokenizer, model_config, f"{flag} {name}")
    limit = min(tokenizer.model_max_length, positions or UNLIMITED)
    if max_length == -1:
        max_length = 512 if limit == UNLIMITED else limit
    special = tokenizer.num_special_tokens_to_add()
    if not special < max_length <= limit:
        most = "" if limit == UNLIMITED else f" and reads at most {limit}"
        give = f"more than {special}" if limit == UNLIMITED else f"{special + 1} to {limit}"
        raise UserError(
            f"--max_length {max_length}: {name} adds {special} tokens to each text{most}; "
            f"give {give}"
        )
    tokenizer.model_max_length = max_length  # saved in best/: a pipeline truncates there, too
    if getattr(model_config, "is_encoder_decoder", False):
        keep_end_token_out(tokenizer)
    # Some tokenizers emit token types for a model that has none.
    types = ["token_type_ids"] if getattr(model_config, "type_vocab_size", 0) > 1 else []
    tokenizer.model_input_names = ["input_ids", *types, "attention_mask"]
    return tokenizer


# ---------------------------------------------------------------- model


def load_model(config, label_names: list[str], tokenizer):
    """(`config.model` as a classifier of those labels in float32, lines for the user.)

    Its head is a new one, drawn from torch's global generator; with `config.keep_head` its own,
    whose classes the labels then are (`kept_classes`). Weights are float32 whatever the file holds:
    a bfloat16 weight near 1 cannot take a step of 1e-5. Raises `UserError` for a file without the
    encoder that its config.json describes.
    """
    name = config.model
    model_config = load_pretrained(AutoConfig, name, config.revision)
    model = load_classifier(
        name,
        tokenizer,
        config.revision,
        new_head=not config.keep_head,
        whole=config.last_layer == "all",
        id2label=dict(enumerate(label_names)),
        label2id={label: index for index, label in enumerate(label_names)},
        problem_type="single_label_classification",
        **changed_fields(model_config, config),
    )
    if has_head(model_config) and not config.keep_head:
        draw_head(model)
    make_trainable(model, config, tokenizer)
    return model, describe_head(model_config, name, config.keep_head)


def make_trainable(model: nn.Module, config, tokenizer) -> None:
    """What a model of any head needs before it is trained."""
    freeze_unused(model, made_up_texts(tokenizer)[1])
    if not config.torch_compile:  # which draws masks in its own way
        draw_faster(model)
    if config.gradient_checkpointing:
        recompute_layers(model, config.model)


def recompute_layers(model: nn.Module, name: str) -> None:
    """Keep each layer's input alone for the backward pass, which computes the layer again, with the
    same dropout."""
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"--gradient_checkpointing: --model {name}, a {type(model).__name__}, has none; "
            "leave it out"
        )
    model.activation_checkpointing_enable({"use_reentrant": False})


def changed_fields(model_config, config) -> dict:
    """The fields of a model's configuration that a run's config changes."""
    changed = {}  # a dropout of None keeps the model's own values
    for key, default in model_config.to_dict().items():
        # "attn_pdrop" and "resid_pdrop" are GPT-2's names and those of its kin.
        of_attention = key.startswith(("attention", "attn"))
        value = config.attention_dropout if of_attention else config.dropout
        if (
            ("dropout" in key or key.endswith("pdrop"))
            and value is not None
            and not isinstance(default, bool)
        ):
            changed[key] = value
    if getattr(model_config, "attention_type", None) == "block_sparse":
        # BigBird's sparse attention switches itself off for good at the first short batch: an
        # evaluation would change the training after it, and a resume could not repeat that.
        changed["attention_type"] = "original_full"
    return changed


def load_classifier(
    name: str,
    tokenizer,
    revision: str | None = None,
    flag="--model",
    new_head=False,
    whole=False,
    **options,
):
    """`name` as a classifier in float32. Raises `UserError` unless its file holds all weights
    and it reads texts of that tokenizer.

    Args:
        new_head: weights outside the encoder may be missing or of another task; they start anew.
        whole: compute all of the last layer, also what the classifier does not read.
    """
    model, report = load_pretrained(
        AutoModelForSequenceClassification,
        name,
        revision,
        flag,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # require_weights raises for them
        output_loading_info=True,
        **options,
    )
    require_weights(model, report, f"{flag} {name}", new_head)
    require_sound(model, tokenizer, f"{flag} {name}")
    if not whole:
        read_first_token_only(model, pad(made_up_texts(tokenizer), tokenizer))
    return model


def freeze_unused(model: nn.Module, text: list[int]) -> None:
    """Exclude from training the weights that no logit of `text` (token ids) depends on, such as
    BigBird's pooler.

    They would never change; but DDP would wait for their gradients, and raise.
    """
    model(input_ids=torch.tensor([text])).logits.sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for the optimizer: with `weight_decay` the weights of linear, convolution and
    embedding layers; with 0 everything else, that is biases and normalisation weights.

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


# ---------------------------------------------------------------- the loss


def weigh_classes(labels: np.ndarray, classes: int, balanced: bool) -> np.ndarray:
    """(classes,) the weight of each in the loss: 1, or such that all classes that have texts weigh
    alike (scikit-learn's "balanced"); 0 for a class without a text."""
    if not balanced:
        return np.ones(classes)
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts, len(labels) / (classes * np.maximum(counts, 1)), 0.0)


def summed_loss(weights: np.ndarray, label_smoothing: float, device):
    """A function of logits and labels: cross-entropy, summed over the texts. Divided by the sum of
    the texts' class weights it is the mean of torch.nn.CrossEntropyLoss."""
    equal = (weights == 1).all()
    return partial(
        F.cross_entropy,
        weight=None if equal else torch.tensor(weights, dtype=torch.float32, device=device),
        label_smoothing=label_smoothing,
        reduction="sum",
    )


# ---------------------------------------------------------------- predictions


def to_device(batch: dict[str, torch.Tensor], device) -> dict[str, torch.Tensor]:
    """The batch on `device`; to a GPU through pinned memory, so that the host need not wait."""
    if device.type != "cuda":  # on MPS an asynchronous copy may read freed memory (pytorch#139550)
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {name: t.pin_memory().to(device, non_blocking=True) for name, t in batch.items()}


@torch.no_grad()  # not inference_mode: FSDP2 and ZeRO 3 use buffers of this pass in training
def predict(model, batches, rows: int, accelerator, before_batch=lambda: None) -> torch.Tensor:
    """Logits (rows, classes), float32 on the CPU, in the order of the data, on every process.

    Args:
        batches: this process's pairs of (row numbers, batch), from `data.eval_batches`.
        rows: number of rows of the whole data set.
        before_batch: called before each batch, equally often on every process.

    Raises RuntimeError unless each row was predicted exactly once, counted over all processes.
    (Samplers that give every process equally many rows repeat some.)
    """
    # Zeros, summed over processes below. The last column counts how often a row was predicted.
    table = torch.zeros(rows, model.config.num_labels + 1, device=accelerator.device)
    was_training = model.training
    model.eval()
    for numbers, batch in batches:
        before_batch()
        batch.pop("labels", None)
        logits = model(**to_device(batch, accelerator.device)).logits.float()
        table[numbers, :-1] = logits[: len(numbers)]  # [:0] for an empty batch
        table[numbers, -1] += 1
    model.train(was_training)
    table = accelerator.reduce(table, "sum").cpu()
    if wrong := int((table[:, -1] != 1).sum()):
        raise RuntimeError(f"{wrong} of {rows} rows were not predicted exactly once")
    return table[:, :-1]


@dataclass(frozen=True)
class Scores:
    """`loss`: mean cross-entropy in nats, without class weights or label smoothing. `accuracy`:
    correct / examples. `macro_f1`: mean F1 of the classes that occur or are predicted."""

    loss: float
    accuracy: float
    macro_f1: float
    examples: int


def score(logits: torch.Tensor, labels: torch.Tensor) -> Scores:
    """Sums divided once by the count: a mean of means is wrong for ragged batches (trl#7010)."""
    loss = F.cross_entropy(logits.double(), labels, reduction="sum").item()
    predicted, classes = logits.argmax(-1), logits.shape[-1]
    right = torch.bincount(labels[predicted == labels], minlength=classes)
    counted = torch.bincount(torch.cat([labels, predicted]), minlength=classes)
    f1 = (2 * right.double() / counted)[counted > 0].mean().item()
    return Scores(loss / len(labels), right.sum().item() / len(labels), f1, len(labels))
