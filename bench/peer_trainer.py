"""The same job done by HF Trainer: same reviews, model, first weights, batch size, rate and steps.

    python bench/peer_trainer.py FLAGS OF train.py --output_dir DIR

Writes DIR/best, which eval.py and bench/compare.py read, at the last step (Trainer chooses nothing
here), and in it validation.json: accuracy on the validation split, seconds of training. Only the
loop, the order of reviews and their padding are Trainer's own.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent.parent))
from config import Config, parse
from processes import run_command
from train import Run, evaluate, make_accelerator, prepare


class Recorded(Trainer):
    """Keeps the loss of each step, and takes our batches if it is handed them."""

    handed: list[list[int]] | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses = []

    def get_train_dataloader(self):
        if self.handed is None:
            return super().get_train_dataloader()
        return torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=self.handed, collate_fn=self.data_collator
        )

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append(loss.detach())
        return loss


def make_trainer(run: Run, same_batches: bool = False) -> Recorded:
    """Trainer with its own optimizer, decay groups and schedule, on a prepared run of ours."""
    config = run.config
    arguments = TrainingArguments(
        output_dir=str(Path(config.output_dir) / "trainer"),
        max_steps=run.total_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        seed=config.seed,
        logging_steps=config.logging_steps,
        bf16=run.accelerator.mixed_precision == "bf16",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Recorded(
        model=run.model,
        args=arguments,
        train_dataset=run.train.select_columns(["input_ids", "labels"]),
        data_collator=DataCollatorWithPadding(run.tokenizer),
    )
    if same_batches:
        trainer.handed = [run.plan[step].tolist() for step in range(run.total_steps)]
    return trainer


def main() -> None:
    config = parse(Config)
    run = prepare(config, make_accelerator(config))
    best = Path(config.output_dir) / "best"
    trainer = make_trainer(run)
    begun = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begun
    scores = evaluate(run, run.validation, "validation")
    trainer.save_model(str(best))
    run.tokenizer.save_pretrained(best)
    settings = {name: run.settings[name] for name in dataclasses.asdict(config)}
    (best / "training_config.json").write_text(json.dumps(settings, indent=1))
    validation = dataclasses.asdict(scores) | {"step": run.total_steps, "seconds": seconds}
    (best / "validation.json").write_text(json.dumps(validation, indent=1))
    print(f"{run.total_steps} steps in {seconds:.0f} s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run_command(main)
