"""The classification head that a model brings: whose it is, and what becomes of it.

In: a model's configuration, the data's class names. Out: a new head, or the model's own with its
rows in the order of the data's names; lines for the user. Independent of: how a model is loaded.
"""

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from runtime.flags import UserError
from runtime.tables import are_numbered


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


def match_classes(config, names: list[str], given: str) -> list[int]:
    """For each of `names` the number of the head's row of that name.

    Raises `UserError` unless they are the names that the head has.
    """
    if not has_head(config):
        raise UserError(f"--keep_head: {given} is an encoder without a head; leave it out")
    require_one_label(config, f"--keep_head: {given}")
    own = read_class_names(config, given)
    if are_numbered(own) and names == [str(number) for number in range(len(own))]:
        return list(range(len(own)))
    if sorted(own) != sorted(names):
        raise UserError(
            f"--keep_head: {given} has the classes {', '.join(own)}, and the data "
            f"{', '.join(names)}; leave it out, for a new head, or rename those in the data"
        )
    return [own.index(name) for name in names]


@torch.no_grad()
def order_rows(model: nn.Module, order: list[int]) -> None:
    """Put the rows of the last layer in another order."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    last = [layer for layer in layers if layer.out_features == len(order)][-1]
    for parameter in last.parameters():
        parameter.copy_(parameter[order].clone())


def draw_head(model: nn.Module) -> None:
    """Everything outside the encoder anew, from torch's global generator."""
    fresh = AutoModelForSequenceClassification.from_config(model.config, dtype=torch.float32)
    for name, part in list(fresh.named_children()):
        if name != model.base_model_prefix:
            setattr(model, name, part.train(model.training))
