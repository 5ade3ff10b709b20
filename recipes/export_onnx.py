"""A classifier as ONNX, for machines without torch: float32 and int8, both checked against PyTorch.

    python recipes/export_onnx.py --ckpt best/ --output onnx/ [--input texts.csv]

In: a checkpoint folder; texts to check on: those of --input, else those that it was validated on.
Out: a folder with model.onnx, model_int8.onnx, the tokenizer, the names of the classes, and a
README.md with a working example. Independent of: training, the test split.
"""

import dataclasses
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import EvalConfig
from runtime.flags import AT_LEAST_1, UserError, flag, parse, parse_or_exit


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """An export to ONNX."""

    ckpt: str = flag("best", "best/, or the folder or Hub name of another classifier")
    output: str = flag("onnx", "folder for the ONNX files")
    input: str | None = flag(None, "file of texts to check on; default: the validation texts")
    text_column: str | None = flag(None, "of --input; default: that of the training")
    label_column: str | None = flag(None, "of --input, if it has one; default: of the training")
    max_samples: int = flag(500, "check on at most N texts", AT_LEAST_1)
    per_device_eval_batch_size: int = flag(16, "texts per forward pass", AT_LEAST_1)
    num_threads: int | None = flag(None, "CPU threads; default: all cores", AT_LEAST_1)
    overwrite: bool = flag(False, "replace an earlier export in --output")


if __name__ == "__main__":
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}  # what ONNX is beside
    GIVEN = parse_or_exit(ExportConfig, config_file=False)  # before the imports below take seconds


import json

from eval import Classifier, open_classifier
from recipes.agreement import Sample, choose_sample, compare, describe_forms
from recipes.onnx_beside import require_same_tokens, write_card, write_names, write_tokenizer
from recipes.onnx_models import FILES, exporters_explained, open_forms, write_models
from report.thresholds import stored_threshold
from runtime.folders import MANIFEST, remove_copies, write_folder
from runtime.processes import run_command

LIMIT = 1e-3  # that a probability by model.onnx may differ from PyTorch's


def export(config: ExportConfig) -> None:
    output = Path(config.output)
    require_own(output, config.overwrite)
    given = {name: getattr(config, name) for name in ("ckpt", "num_threads")}
    batch_size = config.per_device_eval_batch_size
    classifier = open_classifier(EvalConfig(**given, per_device_eval_batch_size=batch_size))
    sample = choose_sample(config, classifier)
    lines, threshold = [], stored_threshold(classifier.folder, classifier.checksum)

    def fill(folder: Path) -> None:
        write_tokenizer(classifier, folder)
        require_same_tokens(classifier, folder, sample.all)
        write_names(classifier, folder)
        with exporters_explained(f"--ckpt {config.ckpt}"):
            write_models(classifier, folder)
        lines.extend(check(config, classifier, sample, folder))
        write_card(classifier, threshold, lines, folder)

    write_folder(output, fill, 2 * sum(w.nbytes for w in classifier.model.parameters()))
    remove_copies(output)
    print(*lines, f"written to {output}", sep="\n")


def require_own(output: Path, overwrite: bool) -> None:
    """Raises `UserError` unless the folder can be made, in the place of nothing or of an export."""
    parent = output.resolve().parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--output {output}: cannot be written in {parent}; give another folder")
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() and not (overwrite and is_export(output)):
        raise UserError(
            f"--output {output}: exists; give another folder (or --overwrite, for an export)"
        )


def is_export(folder: Path) -> bool:
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return set(FILES.values()) <= set(listed)


def check(config: ExportConfig, classifier: Classifier, sample: Sample, folder: Path) -> list[str]:
    """Lines on how the files answer. Raises `UserError` unless model.onnx does as PyTorch."""
    with exporters_explained(f"--ckpt {config.ckpt}"):
        found = compare(open_forms(classifier, folder), classifier, sample)
    difference = found["ONNX float32"].difference
    if not difference <= LIMIT:  # so that NaN is refused
        raise UserError(
            f"--ckpt {config.ckpt}: a probability by model.onnx differs from PyTorch's by "
            f"{difference:.2g}; use eval.py, or choose another model"
        )
    sizes = {"PyTorch": sum(file.stat().st_size for file in classifier.weights)}
    sizes |= {
        name: sum(path.stat().st_size for path in folder.glob(f"{file}*"))  # .data of large ones
        for name, file in FILES.items()
    }
    return [
        f"{sample.source}, and {len(sample.made_up)} made-up ones",
        *describe_forms(found, sizes),
    ]


def main(argv=None) -> None:
    export(parse(ExportConfig, argv, config_file=False))


if __name__ == "__main__":
    run_command(lambda: export(GIVEN), "give a lower --per_device_eval_batch_size")
