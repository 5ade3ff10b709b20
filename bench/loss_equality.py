"""Our loss of every step beside HF Trainer's, handed the same batches, dropout off.

    python bench/loss_equality.py FLAGS OF train.py --output_dir DIR

Prints the largest difference. Accumulation is 1: above it Trainer's gradient is too large.
"""

import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parent.parent))
import train
from bench.peer_trainer import make_trainer
from config import Config, parse
from processes import run_command


def compare(flags: list[str]) -> list[tuple[float, float]]:
    """(ours, theirs) for every step."""
    flags = [*flags, "--dropout=0", "--logging_steps=1"]
    train.main(flags)
    config = parse(Config, flags)
    events = EventAccumulator(f"{config.output_dir}/runs", size_guidance={"scalars": 0})
    ours = [event.value for event in events.Reload().Scalars("train/loss")]
    run = train.prepare(config, train.make_accelerator(config))
    trainer = make_trainer(run, same_batches=True)
    trainer.train()
    return list(zip(ours, [loss.item() for loss in trainer.losses], strict=True))


def main() -> None:
    pairs = compare(sys.argv[1:])
    largest = max(abs(ours - theirs) for ours, theirs in pairs)
    print(f"{len(pairs)} steps, loss {pairs[0][0]:.6f} to {pairs[-1][0]:.6f}; ", end="")
    print(f"largest difference to HF Trainer {largest:.1e}")


if __name__ == "__main__":
    run_command(main)
