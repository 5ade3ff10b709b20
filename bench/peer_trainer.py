"""The training of train.py, done by HF Trainer: for bench/accuracy.py and time_to_accuracy.py.

    python bench/peer_trainer.py FLAGS OF train.py --output_dir DIR

The texts, the initial weights, the batch size, the schedule and the number of steps are those of
train.py; the loop, the order of the texts and their padding are Trainer's. Writes DIR/best at the
last step (nothing is chosen by validation), for eval.py, and in it
validation.json: the accuracy on the validation split and the seconds of training.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from peers import make_trainer

from config import Config
from runtime.engines import make_accelerator
from runtime.flags import parse, require_defaults
from runtime.processes import run_command
from train import evaluate, set_up

# Flags that Trainer has in another way, or not; what it was not told would make its run another.
NOT_DONE = ("class_weights", "label_smoothing_factor", "soft_labels", "max_tokens_per_forward")
NOT_DONE += ("gradient_checkpointing", "early_stopping_patience", "torch_compile")


def main() -> None:
    config = parse(Config)
    require_defaults(config, NOT_DONE, "is not done here by Trainer")
    if (Path(config.output_dir) / "best" / "validation.json").exists():  # written last
        return
    run = set_up(config, make_accelerator(config))
    trainer, best = make_trainer(run), run.output / "best"
    begun = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begun
    scores, _ = evaluate(run, run.validation_set, "eval")
    trainer.save_model(str(best))
    run.tokenizer.save_pretrained(best)
    settings = {name: run.settings[name] for name in dataclasses.asdict(config)}
    settings["environment"] = run.environment
    (best / "training_config.json").write_text(json.dumps(settings, indent=1))
    validation = dataclasses.asdict(scores) | {"step": run.total_steps, "seconds": seconds}
    (best / "validation.json").write_text(json.dumps(validation, indent=1))
    print(f"{run.total_steps} steps in {seconds:.0f} s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run_command(main)
