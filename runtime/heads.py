"""The classification head that a model brings: whose it is, and what becomes of it.

In: a model's configuration. Out: a new head, or the classes of the model's own; lines for the user.
Independent of: how the weights are loaded.
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from runtime.flags import UserError
from runtime.hub import load_pretrained


def has_head(config) -> bool:
    """Whether the file of that configuration holds a classifier, and not an encoder alone."""
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def read_class_names(config, given: str) -> list[str]:
    """In the order of the logits. Raises `UserError` unless each class has a name of its own."""
    names = [str(config.id2label.get(index, "")).strip() for index in range(config.num_labels)]
    if "" in names or len(set(names)) < len(names):
        raise UserError(
            f"{given}: config.json names its {len(names)} classes {config.id2label}; "
            "give each a name of its own under id2label"
        )
    return names


def require_one_label(config, given: str) -> None:
    """Raises `UserError` for a head that does not choose one class of several."""
    kind = config.problem_type
    if kind == "multi_label_classification":
        kind = "gives several labels to a text"
    elif kind == "regression" or config.num_labels == 1:
        kind = "gives a number, not a class"
    else:
        return
    raise UserError(f"{given}: its head {kind}, which is not supported; choose a classifier")


def describe_head(config, name: str, keep_head: bool) -> list[str]:
    if not has_head(config):
        return []
    if keep_head:
        return [f"--model {name} is a classifier, whose head is kept"]
    return [f"--model {name} is a classifier: it gets a new head; --keep_head keeps its own"]


def kept_classes(config) -> list[str] | None:
    """With --keep_head the classes of the head, in its order: those of the data must be among them,
    and this month's data may lack some. Else None: the data's own."""
    if not config.keep_head:
        return None
    given = f"--keep_head: --model {config.model}"
    model_config = load_pretrained(AutoConfig, config.model, config.revision)
    if not has_head(model_config):
        raise UserError(f"{given} has no classification head; leave it out")
    require_one_label(model_config, given)
    return read_class_names(model_config, given)


def draw_head(model: nn.Module) -> None:
    """Everything outside the encoder anew, from torch's global generator."""
    fresh = AutoModelForSequenceClassification.from_config(model.config, dtype=torch.float32)
    for name, part in list(fresh.named_children()):
        if name != model.base_model_prefix:
            setattr(model, name, part.train(model.training))
