"""Two checkpoints on the same test texts: their accuracies and a paired test.

    python bench/compare.py A/best B/best [--max_test_samples 4000] [--json FILE]

McNemar's exact test looks only at the texts on which exactly one of the two is right; the standard
error of an unpaired difference would be several times as large.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parent.parent))
import model as models
from config import EvalConfig
from data import Collator, tokenize
from eval import label_names, load_test, open_checkpoint, predict
from processes import run_command


def right(folder: str, samples: int | None) -> tuple[torch.Tensor, dict]:
    """(texts,) booleans: which are classified correctly; and what the texts are."""
    trained = open_checkpoint(Path(folder))
    accelerator = Accelerator()
    tokenizer = models.load_tokenizer(folder, max_length=trained["max_length"])
    model = models.load_classifier(folder)
    model = accelerator.prepare_model(model, evaluation_mode=True)
    names = label_names(model, folder)
    test, about, _ = load_test(EvalConfig(ckpt=folder, max_test_samples=samples), trained, names)
    ids = tokenize(test, tokenizer, trained["max_length"], trained["truncation"])
    logits = predict(model, ids, Collator(tokenizer), 64, accelerator)
    return logits.argmax(-1) == torch.as_tensor(test["labels"][:]), about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--max_test_samples", type=int)
    parser.add_argument("--json")
    options = parser.parse_args()
    (a, about), (b, _) = (
        right(folder, options.max_test_samples) for folder in (options.a, options.b)
    )
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    result = {
        "test": about,
        "texts": len(a),
        "accuracy": [a.float().mean().item(), b.float().mean().item()],
        "right_only": [only_a, only_b],
        "mcnemar_exact_p": p,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
