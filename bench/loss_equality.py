"""Our loss at every step beside that of HF Trainer on the same batches, with dropout off.

    python bench/loss_equality.py FLAGS OF train.py --output_dir DIR

Trains in DIR and prints the largest difference. Not for --gradient_accumulation_steps above 1,
where Trainer's gradient is too large. The same on a tiny model is a test in tests/test_loop.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from peers import compare

from runtime.processes import run_command


def main() -> None:
    pairs = compare(sys.argv[1:])
    largest = max(abs(ours - theirs) for ours, theirs in pairs)
    print(f"{len(pairs)} steps, loss {pairs[0][0]:.6f} to {pairs[-1][0]:.6f}; ", end="")
    print(f"largest difference to HF Trainer {largest:.1e}")


if __name__ == "__main__":
    run_command(main)
