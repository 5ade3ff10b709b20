"""The last layer of an encoder, computed for the first token alone.

A classifier on the first token reads one position of what the encoder gives. In the last layer the
keys and values are those of all tokens, but of queries, output projection, feed-forward part and
norms only the first token's are read: about ten of twelve parts of that layer's products, forward
and backward, which is a seventh of the work of a model of six layers.

In: a classifier. Out: the same one, with the same weights under the same names. Independent of:
training, data.
"""

from functools import partial

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TOLERANCE = 1e-5  # of the largest logit, that another order of sums may make


@torch.no_grad()
def read_first_token_only(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Shorten the last layer of `model`, if it is of a kind in `SHORTENED` and its logits of
    `batch` stay what they were: a head may read more than the first token."""
    layers = [layer for layer in model.modules() if type(layer).__name__ in SHORTENED]
    if not layers:
        return
    last, was_training = layers[-1], model.training
    model.eval()
    whole = model(**batch).logits
    # An attribute of the layer, which comes before the method of its class.
    last.forward = partial(SHORTENED[type(last).__name__], last)
    if not (model(**batch).logits - whole).abs().max() <= TOLERANCE * whole.abs().max():
        del last.forward
    model.train(was_training)


def forward_bert(layer, hidden: torch.Tensor, attention_mask=None, *_, **__) -> torch.Tensor:
    """(texts, 1, width) of (texts, tokens, width)."""
    own, first = layer.attention.self, hidden[:, :1]
    context = attend(own, own.query(first), own.key(hidden), own.value(hidden), attention_mask)
    return layer.feed_forward_chunk(layer.attention.output(context, first))


def forward_distilbert(layer, hidden: torch.Tensor, attention_mask=None, *_, **__) -> torch.Tensor:
    own, first = layer.attention, hidden[:, :1]
    context = attend(own, own.q_lin(first), own.k_lin(hidden), own.v_lin(hidden), attention_mask)
    attended = layer.sa_layer_norm(own.out_lin(context) + first)
    return layer.output_layer_norm(layer.ffn(attended) + attended)


SHORTENED = dict.fromkeys(["BertLayer", "RobertaLayer", "XLMRobertaLayer"], forward_bert)
SHORTENED |= dict.fromkeys(["CamembertLayer", "Data2VecTextLayer", "ElectraLayer"], forward_bert)
SHORTENED |= dict.fromkeys(["ErnieLayer", "RoCBertLayer"], forward_bert)
SHORTENED["TransformerBlock"] = forward_distilbert


def attend(own, query, key, value, mask: torch.Tensor | None) -> torch.Tensor:
    """(texts, 1, width), by the attention that the model is set to; all of it but "eager" is an
    interface of transformers, and "eager" gives what "sdpa" does."""
    heads = [
        part.unflatten(-1, (-1, own.attention_head_size)).transpose(1, 2)
        for part in (query, key, value)
    ]
    if mask is not None and mask.dim() == 4:  # (texts, 1, queries, keys)
        mask = mask[:, :, :1]
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(
        own.config._attn_implementation, sdpa_attention_forward
    )
    dropout = own.dropout.p if own.training else 0.0
    return attention(own, *heads, mask, dropout=dropout, scaling=own.scaling)[0].flatten(2)
