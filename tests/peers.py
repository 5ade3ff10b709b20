"""The peers of train.py: HF Trainer, and the usual loop on `accelerator.accumulate`.

Tests and bench/ run them on the data, the tokenizer and the settings of a run of ours
(`train.set_up`), so that only what is compared differs.
"""

import dataclasses
import math

import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, get_scheduler

import train
from config import Config
from model import load_model, load_tokenizer
from runtime.engines import make_accelerator
from runtime.flags import parse


def fresh_model(config: Config):
    """The model of a run with this config before its first step, but without dropout."""
    tokenizer = load_tokenizer(config.model, max_length=config.max_length)
    torch.manual_seed(config.seed)
    config = dataclasses.replace(config, dropout=0.0)
    return load_model(config, ["negative", "positive"], tokenizer)[0]


def with_row_numbers(data: Dataset) -> Dataset:
    """Columns `input_ids`, `labels` and `row`."""
    data = data.select_columns(["input_ids", "labels"])
    return data.add_column("row", range(len(data)))


# ---------------------------------------------------------------- HF Trainer


class Recorded(Trainer):
    """Keeps the loss of each forward pass.

    Args:
        batches: lists of row numbers to train on, in this order; default: Trainer's own.
        seen: a list that gets the row numbers of each batch, from the data's column `row`.
    """

    def __init__(self, *args, batches=None, seen=None, **options):
        super().__init__(*args, **options)
        self.batches, self.seen, self.losses = batches, seen, []

    def get_train_dataloader(self):
        if self.batches is None:
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator
        )

    def compute_loss(self, model, inputs, *args, **options):
        if self.seen is not None:
            self.seen += inputs.pop("row").tolist()
        loss = super().compute_loss(model, inputs, *args, **options)
        self.losses.append(loss.detach())
        return loss


def make_trainer(run, model=None, batches=None, seen=None, **arguments) -> Recorded:
    """Trainer with its own optimizer, parameter groups and schedule, on the data of `run`.

    Args:
        model: default: that of the run.
        batches, seen: see `Recorded`.
        arguments: TrainingArguments that differ from those of the run's config.
    """
    config = run.config
    of_the_run = {
        "output_dir": str(run.output / "trainer"),
        "max_steps": run.total_steps,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "seed": config.seed,
        "logging_steps": config.logging_steps,
        "bf16": run.accelerator.mixed_precision == "bf16",
        "use_cpu": run.accelerator.device.type == "cpu",
        "remove_unused_columns": seen is None,
        "save_strategy": "no",
        "report_to": "none",
        "log_level": "error",  # or it tells of each new head
        "log_level_replica": "error",
        "disable_tqdm": True,
    }
    return Recorded(
        model=model or run.model,
        args=TrainingArguments(**of_the_run | arguments),
        train_dataset=with_row_numbers(run.train_set),
        data_collator=DataCollatorWithPadding(run.tokenizer),
        batches=batches,
        seen=seen,
    )


def compare(flags: list[str]) -> list[tuple[float, float]]:
    """(our loss, Trainer's) at every step of the same batches, with dropout off.

    Without accumulation: with it, Trainer's gradient is too large.
    """
    flags = [*flags, "--dropout=0", "--logging_steps=1"]
    train.main(flags)
    config = parse(Config, flags)
    events = EventAccumulator(f"{config.output_dir}/runs", size_guidance={"scalars": 0})
    ours = [event.value for event in events.Reload().Scalars("train/loss")]
    run = train.set_up(config, make_accelerator(config))
    batches = [run.plan[step].tolist() for step in range(1, run.total_steps + 1)]
    trainer = make_trainer(run, batches=batches)
    trainer.train()
    return list(zip(ours, [loss.item() for loss in trainer.losses], strict=True))


# ---------------------------------------------------------------- an epoch in their own batches


def trainer_epoch(run, seen: list[int]) -> None:
    """HF Trainer, in its default order. `seen` gets the row numbers of each batch."""
    own_length = {"num_train_epochs": 1, "max_steps": -1}
    make_trainer(run, fresh_model(run.config), seen=seen, **own_length).train()


def accumulate_epoch(run, seen: list[int]) -> None:
    """The loop of Accelerate's guide to gradient accumulation, with clipping.

    The schedule is that of its examples/nlp_example.py, whose steps are counted before `prepare`
    makes the scheduler advance once per process. `seen` gets the row numbers of each batch.
    """
    config = run.config
    GradientState._reset_state()  # or the accumulation of an earlier Accelerator would stay
    accelerator = Accelerator(gradient_accumulation_steps=config.gradient_accumulation_steps)
    model = fresh_model(config)
    loader = DataLoader(
        with_row_numbers(run.train_set),
        shuffle=True,
        batch_size=config.per_device_train_batch_size,
        collate_fn=DataCollatorWithPadding(run.tokenizer),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    total = len(loader) // config.gradient_accumulation_steps
    scheduler = get_scheduler("linear", optimizer, math.ceil(config.warmup_steps * total), total)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    model.train()
    for batch in loader:
        with accelerator.accumulate(model):
            seen += batch.pop("row").tolist()
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    GradientState._reset_state()
