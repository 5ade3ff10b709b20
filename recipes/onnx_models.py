"""A classifier as two ONNX files, float32 and int8, and onnxruntime at work on them.

In: a checkpoint as eval.py opens it. Out: files in a folder; functions from a batch to logits.
Independent of: tokenizers, what is checked and how.

By torch.onnx.export: optimum-onnx 0.1.0, the newest, needs a transformers below 4.58.
"""

import contextlib
import dataclasses
import io
import logging
import warnings
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic

from eval import Classifier
from recipes import agreement
from runtime.flags import UserError, is_out_of_memory
from runtime.hub import in_few_words
from runtime.probe import ANOTHER

FILES = {"ONNX float32": "model.onnx", "ONNX int8": "model_int8.onnx"}
LARGE = 1.9e9  # bytes of weights, beyond which they get a file of their own: protobuf ends at 2 GB


class Logits(torch.nn.Module):
    """A classifier as the exporter takes it: one output, and the mask as a float, since the whole
    numbers of XLNet's `1.0 - mask` fail there."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        mask = attention_mask.float()
        return self.model(input_ids=input_ids, attention_mask=mask, **types).logits


def with_mask(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch, its ids first, with the mask of ones that the collator leaves out."""
    ids = batch["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | batch


def write_models(classifier: Classifier, folder: Path) -> None:
    model = classifier.model
    example = dataclasses.replace(classifier, batch_size=64)  # the exporter takes a 1 for constant
    ids = example.encode(agreement.make_up_texts(classifier))
    batch = with_mask(next(iter(example.batches(ids)))[1])
    large = sum(weight.nbytes for weight in model.parameters()) > LARGE
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")  # T5 fails with the fused kernel
    torch.onnx.export(
        Logits(model).eval(),
        kwargs=batch,
        f=str(folder / FILES["ONNX float32"]),
        output_names=["logits"],
        dynamic_shapes={name: {0: "texts", 1: "length"} for name in batch},
        external_data=large,
        verbose=False,
        dynamo=True,
    )
    model.set_attn_implementation(own)
    quantize_dynamic(
        folder / FILES["ONNX float32"],
        folder / FILES["ONNX int8"],
        per_channel=True,
        # A CPU without VNNI adds products of 8 bits up in 16 and overflows without a word: 7 bits.
        reduce_range=True,
        use_external_data_format=large,
    )


@contextlib.contextmanager
def exporters_explained(given: str):
    """What the exporter or onnxruntime raises for a model, as one line; without their logs."""
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
            yield
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, OSError):
            raise
        why = in_few_words(error.__cause__ or error)
        raise UserError(f"{given}: cannot be exported to ONNX ({why}); {ANOTHER}") from None
    finally:
        logging.disable(logging.NOTSET)


def open_forms(classifier: Classifier, folder: Path) -> dict[str, agreement.Form]:
    """By name: PyTorch and the two files, with equally many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()

    def in_onnx(session, batch):
        given = {name: tensor.numpy() for name, tensor in with_mask(batch).items()}
        return session.run(["logits"], given)[0]

    @torch.no_grad()
    def in_torch(batch):
        return classifier.model.eval()(**batch).logits.numpy()

    sessions = {
        name: onnxruntime.InferenceSession(folder / file, options, ["CPUExecutionProvider"])
        for name, file in FILES.items()
    }
    return {"PyTorch": in_torch} | {name: partial(in_onnx, s) for name, s in sessions.items()}
