"""The same job done by HF Trainer: same reviews, model, first weights, batch size, rate and steps.

    python bench/peer_trainer.py FLAGS OF train.py --output_dir DIR

Writes DIR/best, which eval.py and bench/compare.py read, at the last step (Trainer chooses nothing
here). Only the loop, the order of reviews and their padding are Trainer's own.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent.parent))
from config import Config, parse, run_command
from train import prepare


def main() -> None:
    config = parse(Config)
    run = prepare(config)
    output = Path(config.output_dir)
    arguments = TrainingArguments(
        output_dir=str(output / "trainer"),
        max_steps=run.total_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        seed=config.seed,
        logging_steps=config.logging_steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=run.model,
        args=arguments,
        train_dataset=run.train.select_columns(["input_ids", "labels"]),
        data_collator=DataCollatorWithPadding(run.tokenizer),
    )
    begun = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begun
    trainer.save_model(str(output / "best"))
    run.tokenizer.save_pretrained(output / "best")
    settings = {name: run.settings[name] for name in dataclasses.asdict(config)}
    (output / "best" / "training_config.json").write_text(json.dumps(settings, indent=1))
    print(f"{run.total_steps} steps in {seconds:.0f} s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run_command(main)
