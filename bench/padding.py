"""How much of a training epoch is padding under either order: from token counts alone.

python bench/padding.py FLAGS OF train.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from config import Config, parse
from data import BatchPlan
from processes import run_command
from train import make_accelerator, prepare


def main() -> None:
    config = parse(Config)
    lengths = prepare(config, make_accelerator(config)).plan.lengths
    print(f"{len(lengths):,} texts, {lengths.mean():.0f} tokens on average")
    for strategy in ("group_by_length", "random"):
        plan = BatchPlan(lengths, config.per_device_train_batch_size, config.seed, strategy)
        padded = sum(plan.padded_tokens(step, 1) for step in range(plan.steps_per_epoch))
        print(f"{strategy}: {1 - lengths.sum() / padded:.1%} of the tokens are padding")


if __name__ == "__main__":
    run_command(main)
