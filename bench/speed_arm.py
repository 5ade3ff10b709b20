"""One arm of bench/speed.py in a process of its own; the last line it prints is its result as JSON.

    python bench/speed_arm.py ARM WORK.json FLAGS OF train.py

It starts as a user of that loop would start it (imports, data set, token ids from the cache of an
earlier start, weights), and then trains on the handed reviews instead: `warm` batches, whose time
does not count, and one epoch of `work`, in the order and padding that the arm has for them. The
peers read columns `text` and `label` of split `train` alone.
"""

import dataclasses
import itertools
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.machine import peak_bytes


class Enough(Exception):
    """Raised after the last step that counts."""


class Clock:
    """Told of the end of each step; ends the training after `last`."""

    def __init__(self, warm: int, last: int, begun: float):
        self.warm, self.last, self.begun, self.times = warm, last, begun, []
        self.disable = True

    def set_postfix(self, *_, **__):
        pass  # it stands for train.py's progress bar

    def update(self, *_):
        self.times.append(None)
        if len(self.times) in (1, self.warm, self.last):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times[-1] = time.time()
        if len(self.times) == self.last:
            raise Enough

    def result(self) -> dict:
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()
        return {
            "seconds": self.times[self.last - 1] - self.times[self.warm - 1],
            "first_step_seconds": self.times[0] - self.begun,
            "peak_bytes": peak,
            "threads": torch.get_num_threads(),
            "matmul_flops_per_second": matmul_rate(),
        }


def matmul_rate(seconds: float = 2.0) -> float:
    """FLOP/s of a product of two large matrices, the median of many: what the machine gives in the
    minute and with the threads of this arm."""
    cuda = torch.cuda.is_available()
    size, dtype = (8192, torch.bfloat16) if cuda else (2048, torch.float32)
    a, b = (torch.randn(size, size, dtype=dtype, device="cuda" if cuda else "cpu") for _ in "ab")
    times = [time.perf_counter()]
    while times[-1] < times[0] + seconds:
        a @ b
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    return 2 * size**3 / statistics.median(b - a for a, b in itertools.pairwise(times[1:]))


class Counting:
    """A collator that keeps the shapes of its batches."""

    def __init__(self, collator):
        self.collator, self.shapes = collator, []

    def __call__(self, rows):
        batch = self.collator(rows)
        self.shapes.append(tuple(batch["input_ids"].shape))
        return batch


def order_of(work: dict, grouped: bool, batch: int) -> list[int]:
    """Row numbers: the warm ones, then one epoch of the rest by Trainer's own samplers, then more
    than is timed: with the last step of a run Trainer ends, and ours validates and saves.

    Its length grouping cuts a data set of a few batches into windows of a fourth of it; it is given
    the whole as one window, as it would have on a data set of 50 batches and more.
    """
    from transformers.trainer_pt_utils import get_length_grouped_indices

    warm, rows = len(work["warm"]), len(work["work"])
    if grouped:
        lengths = [len(row["input_ids"]) for row in work["work"]]
        order = get_length_grouped_indices(lengths, batch, mega_batch_mult=-(-rows // batch))
    else:
        order = torch.randperm(rows).tolist()
    return [*range(warm), *(warm + row for row in order), *range(warm)]


def start_as_in_the_tutorial(config, attention_dropout):
    """Data set, tokenizer, token ids, model, as transformers' text classification guide has it."""
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    data = load_dataset(config.dataset, split="train")
    max_length = config.max_length

    def tokenise(rows):
        return tokenizer(rows["text"], truncation=True, max_length=max_length)

    data.map(tokenise, batched=True)
    dropout = {} if attention_dropout is None else {"attention_dropout": attention_dropout}
    model = AutoModelForSequenceClassification.from_pretrained(
        config.model, num_labels=2, **dropout
    )
    return tokenizer, model


def trainer(config, work, clock, grouped, attention_dropout=None, evaluates=False):
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    class Tell(TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.update()

    batch = config.per_device_train_batch_size

    class Handed(Trainer):
        def _get_train_sampler(self, *_):
            return order_of(work, grouped, batch)

    tokenizer, model = start_as_in_the_tutorial(config, attention_dropout)
    collator = Counting(DataCollatorWithPadding(tokenizer))
    arguments = TrainingArguments(
        output_dir=config.output_dir,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        learning_rate=config.learning_rate,
        seed=config.seed,
        num_train_epochs=1,
        bf16=config.mixed_precision == "bf16",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Handed(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(work["warm"] + work["work"]),
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[Tell()],
    )
    try:
        trainer.train()
    except Enough:
        yield clock.result() | {"shapes": list(collator.shapes)}

    def predict(rows, size):
        trainer.args.per_device_eval_batch_size = size
        trainer.predict(rows)

    if evaluates:
        yield from evaluations(config, with_lengths(work["predict"]), predict)


def plain_loop(config, work, clock, attention_dropout=None):
    """The loop of Accelerate's examples/nlp_example.py, which does not clip, on these reviews."""
    from accelerate import Accelerator
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    accelerator = Accelerator(mixed_precision="bf16" if config.mixed_precision == "bf16" else None)
    tokenizer, model = start_as_in_the_tutorial(config, attention_dropout)

    def collate_fn(examples):
        multiple = None if accelerator.mixed_precision == "no" else 8
        return tokenizer.pad(
            examples, padding="longest", pad_to_multiple_of=multiple, return_tensors="pt"
        )

    rows = Dataset.from_list(work["warm"] + work["work"])
    collator = Counting(collate_fn)
    loader = DataLoader(
        rows,
        sampler=order_of(work, False, config.per_device_train_batch_size),
        collate_fn=collator,
        batch_size=config.per_device_train_batch_size,
        drop_last=True,
    )
    optimizer = torch.optim.AdamW(params=model.parameters(), lr=config.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, 100, 1000)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    try:
        model.train()
        for batch in loader:
            batch.to(accelerator.device)
            outputs = model(**batch)
            accelerator.backward(outputs.loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            clock.update()
    except Enough:
        yield clock.result() | {"shapes": collator.shapes}


def take_away_from(train, what: str) -> None:
    if what == "keep_freed_memory":
        train.engines.keep_freed_memory = lambda: None
    elif what == "fused AdamW":
        fused = torch.optim.AdamW
        torch.optim.AdamW = lambda *given, **options: fused(*given, **options | {"fused": False})
    elif what == "no mask":
        collate = train.Collator.__call__

        def with_mask(self, rows):
            batch = collate(self, rows)
            return {"attention_mask": torch.ones_like(batch["input_ids"]), **batch}

        train.Collator.__call__ = with_mask


def ours(
    config,
    work,
    clock,
    order="group_by_length",
    attention_dropout=0.0,
    take_away="",
    evaluates=False,
):
    import train
    from data import BatchPlan
    from eval import predict

    class Handed(BatchPlan):
        """The warm batches, the plan of the rest, and more steps than are timed: see order_of."""

        def epoch(self, epoch):
            warm = len(work["warm"])
            rest = BatchPlan(self.lengths[warm:], self.batch_size, self.seed, order).epoch(epoch)
            first = [torch.arange(i, i + batch).numpy() for i in range(0, warm, batch)]
            return [*first, *(rows + warm for rows in rest), *first]

    batch = config.per_device_train_batch_size
    take_away_from(train, take_away)
    config = dataclasses.replace(config, eval_steps=10**9, attention_dropout=attention_dropout)
    run = train.prepare(config, train.make_accelerator(config))
    counting = Counting(train.Collator(run.tokenizer))
    train.Collator = lambda tokenizer: counting
    run.train = with_lengths(work["warm"] + work["work"])
    run.plan = Handed(run.train["length"][:], batch, config.seed)
    run.plan.steps_per_epoch = run.total_steps = clock.last + 1
    run.bar, run.started = clock, time.perf_counter()
    train.start_anew(run)  # writes last/, as every start does
    try:
        with run.stop:
            train.train(run)
    except Enough:
        yield clock.result() | {"shapes": list(counting.shapes)}
    if evaluates:
        yield from evaluations(
            config,
            with_lengths(work["predict"]),
            lambda rows, size: predict(run.model, rows, counting.collator, size, run.accelerator),
        )


def with_lengths(rows: list[dict]):
    """The data set of them, with the column that ours sorts by."""
    from datasets import Dataset

    return Dataset.from_list([row | {"length": len(row["input_ids"])} for row in rows])


def evaluations(config, rows, predict):
    """Seconds at the batch size of training and at ours' own, after a batch of the longest."""
    longest_first = rows.sort("length", reverse=True)
    for name, size in (
        ("predict_seconds", config.per_device_train_batch_size),
        ("predict_default_seconds", config.per_device_eval_batch_size),
    ):
        predict(longest_first.select(range(min(size, len(rows)))), size)
        yield {name: timed(lambda size=size: predict(rows, size))}


def timed(work) -> float:
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


ARMS = {
    "HF Trainer": partial(trainer, grouped=False, evaluates=True),
    "HF Trainer, length grouping": partial(trainer, grouped=True),
    "plain Accelerate loop": plain_loop,
    "HF Trainer, attention dropout 0": partial(trainer, grouped=False, attention_dropout=0.0),
    "HF Trainer, length grouping, attention dropout 0": partial(
        trainer, grouped=True, attention_dropout=0.0
    ),
    "ours": partial(ours, evaluates=True),
    "ours, accelerate launch": ours,
}
ABLATIONS = {  # one thing of ours taken away at a time, and once two that act on one another
    "ours, random order": partial(ours, order="random"),
    "ours, attention dropout 0.1": partial(ours, attention_dropout=0.1),
    "ours, freed memory given back": partial(ours, take_away="keep_freed_memory"),
    "ours, attention dropout 0.1, freed memory given back": partial(
        ours, attention_dropout=0.1, take_away="keep_freed_memory"
    ),
    "ours, AdamW not fused": partial(ours, take_away="fused AdamW"),
    "ours, mask always": partial(ours, take_away="no mask"),
}


def main() -> None:
    from config import Config, parse

    arm, work, flags = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), sys.argv[3:]
    config = parse(Config, flags)
    batch = config.per_device_train_batch_size
    assert not len(work["warm"]) % batch
    assert not len(work["work"]) % batch
    warm, last = (len(work["warm"]) // batch, (len(work["warm"]) + len(work["work"])) // batch)
    torch.manual_seed(config.seed)
    result = {}
    for part in {**ARMS, **ABLATIONS}[arm](config, work, Clock(warm, last, float(work["begun"]))):
        result |= part
    tokens = sum(len(row["input_ids"]) for row in work["work"])
    computed = sum(rows * longest for rows, longest in result.pop("shapes")[warm:last])
    print(json.dumps({**result, "padding_fraction": 1 - tokens / computed}))


if __name__ == "__main__":
    main()
