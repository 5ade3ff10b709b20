"""Two checkpoints on the same test texts: their accuracies and a paired test.

    python bench/compare.py A/best B/best [--max_test_samples 4000] [--json FILE]

McNemar's exact test looks only at the texts on which exactly one of the two is right; the standard
error of an unpaired difference would be several times as large. The result is printed, and written
to FILE.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.common import write_json
from config import EvalConfig
from eval import choose_test, load_test, open_classifier
from runtime.processes import run_command


def right(folder: str, samples: int | None) -> tuple[torch.Tensor, dict]:
    """(texts,) booleans: which are classified correctly; and what the texts are."""
    AcceleratorState._reset_state()  # each checkpoint in the precision of its own training
    config = EvalConfig(ckpt=folder, max_test_samples=samples)
    classifier = open_classifier(config)
    about = choose_test(config, classifier.trained)
    test, _ = load_test(about, {}, classifier.names, drop_invalid=False)
    return classifier.logits_of(test).argmax(-1) == torch.as_tensor(test.labels), about


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--max_test_samples", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    a, about = right(options.a, options.max_test_samples)
    b, _ = right(options.b, options.max_test_samples)
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
    write_json(options.json, result)


if __name__ == "__main__":
    run_command(main)
