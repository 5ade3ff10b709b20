"""What lies beside the ONNX files of a classifier: tokenizer, classes, a README with an example.

In: a checkpoint as eval.py opens it. Out: files for the tokenizers library alone, which give the
token ids of eval.py. Independent of: the models.
"""

import json
import string
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer

from data import cut_middle, encode
from eval import Classifier
from runtime.card import hide_folder
from runtime.environment import describe_machine
from runtime.flags import UserError
from runtime.folders import CARD
from runtime.probe import ANOTHER
from runtime.tables import list_names, split_columns
from runtime.tokenizer import set_truncation_side

TOKENIZER = "tokenizer.json"

# ---------------------------------------------------------------- the tokenizer


def write_tokenizer(classifier: Classifier, folder: Path) -> None:
    """tokenizer.json cuts and pads by itself, but for head_tail, which no tokenizer can."""
    own = classifier.tokenizer
    set_truncation_side(own, classifier.truncation)
    own.save_pretrained(folder)
    plain = Tokenizer.from_str(own.backend_tokenizer.to_str())
    if classifier.truncation != "head_tail":
        plain.enable_truncation(own.model_max_length, direction=own.truncation_side)
        plain.enable_padding(
            direction=own.padding_side,
            pad_id=own.pad_token_id,
            pad_type_id=own.pad_token_type_id,
            pad_token=own.pad_token,
        )
    plain.save(str(folder / TOKENIZER))


def require_same_tokens(classifier: Classifier, folder: Path, texts: list[tuple[str, ...]]) -> None:
    """Raises `UserError` unless tokenizer.json, without transformers, gives those of eval.py."""
    own = classifier.tokenizer
    plain = Tokenizer.from_file(str(folder / TOKENIZER))
    plain.encode_special_tokens = own.split_special_tokens
    plain.no_padding()
    expected = encode(texts, own, own.model_max_length, classifier.truncation)
    rows = plain.encode_batch([text if len(text) == 2 else text[0] for text in texts])
    for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
        ids = cut_middle(row.ids, own.model_max_length)  # too many for head_tail alone
        types = expected.get("token_type_ids", {number: row.type_ids})[number]
        if row.ids and (ids, row.type_ids) != (expected["input_ids"][number], types):
            raise UserError(
                f"--ckpt {classifier.folder}: its tokenizer gives other tokens without "
                f"transformers, such as for {text[0][:60]!r}; {ANOTHER}"
            )


# ---------------------------------------------------------------- what a person reads


def write_names(classifier: Classifier, folder: Path) -> None:
    """config.json, also with names such as LABEL_0, which transformers leaves out."""
    fields = json.loads(classifier.model.config.to_json_string(use_diff=False))
    fields["id2label"] = dict(enumerate(classifier.names))
    fields["label2id"] = {name: number for number, name in enumerate(classifier.names)}
    (folder / "config.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")


THRESHOLD = """
A threshold of {:g} was chosen for PyTorch's weights: eval.py leaves a text of a lower probability
without a label. `model.onnx` has the same probabilities; for `model_int8.onnx` choose it anew.
"""


def write_card(
    classifier: Classifier, threshold: float | None, lines: list[str], folder: Path
) -> None:
    """README.md. `threshold`: that of --store_threshold; `lines`: what was measured."""
    own, names = classifier.tokenizer, classifier.names
    most, side = own.model_max_length, own.padding_side
    pad = f"on the {side} with token {own.pad_token_id} and a mask of 0"
    if classifier.truncation == "head_tail":
        (first,) = set(range(most + 1)) - set(cut_middle(list(range(most + 1)), most))
        cut = f"v[:{first}] + v[len(v) - {most - first}:] if len(v) > {most} else v"
        cut = f"given = {{k: {cut} for k, v in given.items()}}\n"
        reads = (
            f"Of a text of more than {most} tokens the first {first} and the last {most - first} "
            "are kept. tokenizer.json cannot do that, so the example does: without that line, "
            "the answers to long texts are wrong."
        )
        batches = f"For several texts, cut each so, then pad {pad}."
    else:
        kept = {"head": "start", "tail": "end"}[classifier.truncation]
        cut, reads = "", f"tokenizer.json cuts a text at {most} tokens and keeps its {kept}."
        batches = f"For several texts, `tokenizer.encode_batch` pads {pad}."
    pair = len(split_columns(classifier.text_column)) == 2
    special = "tokenizer.encode_special_tokens = True  # as words, where they stand in a text\n"
    template = string.Template((Path(__file__).parent / "onnx_card.md").read_text(encoding="utf-8"))
    card = template.substitute(
        ckpt=hide_folder(classifier.name),
        classes=list_names(names),
        count=len(names),
        arguments='"FIRST TEXT" "SECOND TEXT"' if pair else '"TEXT"',
        parts=3 if pair else 2,
        special=special * own.split_special_tokens,
        cut=cut,
        reads=reads,
        batches=batches,
        threshold="" if threshold is None else THRESHOLD.format(threshold),
        table="\n".join(lines),
        hardware=describe_machine()["hardware"],
        threads=torch.get_num_threads(),
        batch_size=classifier.batch_size,
        **{name: version(name) for name in ("torch", "onnx", "onnxruntime")},
    )
    (folder / CARD).write_text(card, encoding="utf-8")
