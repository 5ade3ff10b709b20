"""One arm of bench/speed.py, in a process of its own; its last line is its result as JSON.

    python bench/speed_arm.py ARM WORK.json FLAGS OF train.py

It starts as a user of that loop would start it (imports, data set, token ids from the cache of an
earlier start, weights), and then trains on the rows of WORK.json instead: "warm", which is not
timed, and one epoch of "work", in its own order and with its own padding. The peers read columns
`text` and `label` of split `train`.
"""

import dataclasses
import itertools
import json
import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))


class Enough(Exception):
    """Raised after the last step that is timed."""


class Clock:
    """Told of the end of each step; raises `Enough` after the step `last`."""

    disable = True  # it stands for the progress bar of train.py

    def __init__(self, warm: int, last: int, begun: float):
        self.warm, self.last, self.begun, self.times = warm, last, begun, []

    def set_postfix(self, *_, **__):
        pass

    def update(self):
        self.times.append(None)
        if len(self.times) in (1, self.warm, self.last):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times[-1] = time.time()
        if len(self.times) == self.last:
            raise Enough

    def result(self) -> dict:
        return {
            "seconds": self.times[self.last - 1] - self.times[self.warm - 1],
            "first_step_seconds": self.times[0] - self.begun,
            "peak_bytes": peak_bytes(),
            "threads": torch.get_num_threads(),
            "matmul_flops_per_second": matmul_rate(),
        }


def peak_bytes() -> int:
    """Peak memory so far: of the GPU, or else of this process. (Not getrusage's ru_maxrss, which
    begins at what the parent had when it forked.)"""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def matmul_rate(seconds: float = 2.0) -> float:
    """FLOP/s of a product of two large matrices with the threads of this process, the median of
    many."""
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


def with_lengths(rows: list[dict]):
    """A data set of these rows, with the column `length` that train.py sorts by."""
    from datasets import Dataset

    return Dataset.from_list([row | {"length": len(row["input_ids"])} for row in rows])


def time_predictions(config, rows: list[dict], predict):
    """Seconds at the batch size of training and at --per_device_eval_batch_size."""
    data = with_lengths(rows)
    longest_first = data.sort("length", reverse=True)
    for name, size in (
        ("predict_seconds", config.per_device_train_batch_size),
        ("predict_default_seconds", config.per_device_eval_batch_size),
    ):
        predict(longest_first.select(range(min(size, len(data)))), size)
        begun = time.perf_counter()
        predict(data, size)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        yield {name: time.perf_counter() - begun}


# ---------------------------------------------------------------- the peers


def order_of(work: dict, grouped: bool, batch: int) -> list[int]:
    """Row numbers: the warm ones, one epoch of the work by Trainer's own samplers, and then more
    than is timed, because Trainer's last step also ends the run, and ours validates and saves.

    Trainer's length grouping cuts a data set of a few batches into windows of a fourth of it. Here
    it gets the whole as one window, as it would have on a data set of 50 batches or more.
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
    """Data set, tokenizer, token ids, model, as in transformers' text classification guide."""
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    data = load_dataset(config.dataset, split="train")
    max_length = config.max_length

    def tokenize(rows):
        return tokenizer(rows["text"], truncation=True, max_length=max_length)

    data.map(tokenize, batched=True)
    dropout = {} if attention_dropout is None else {"attention_dropout": attention_dropout}
    model = AutoModelForSequenceClassification.from_pretrained(
        config.model, num_labels=2, **dropout
    )
    return tokenizer, model


def trainer(config, work, clock, grouped, attention_dropout=None, predicts=False):
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    class Tell(TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.update()

    batch = config.per_device_train_batch_size

    class Ordered(Trainer):
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
    trainer = Ordered(
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

    if predicts:
        yield from time_predictions(config, work["predict"], predict)


def plain_loop(config, work, clock, attention_dropout=None):
    """The loop of Accelerate's examples/nlp_example.py, which does not clip."""
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

    collator = Counting(collate_fn)
    loader = DataLoader(
        Dataset.from_list(work["warm"] + work["work"]),
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


# ---------------------------------------------------------------- ours


def ours(config, work, clock, ablate=lambda: None, predicts=False, **changes):
    """train.py.

    Args:
        ablate: switches a feature off.
        changes: of the config.
    """
    import data
    import train
    from model import predict
    from runtime.checkpoint import save_last
    from runtime.engines import make_accelerator

    ablate()
    config = dataclasses.replace(config, eval_steps=10**9, **changes)
    batch, warm = config.per_device_train_batch_size, len(work["warm"])

    run = train.set_up(config, make_accelerator(config))
    collator = Counting(data.Collator(run.tokenizer))
    data.Collator = lambda tokenizer: collator
    run.train_set = with_lengths(work["warm"] + work["work"])
    # The warm batches, the plan of the work, and more than is timed: see order_of.
    lengths, strategy = run.train_set["length"][:], config.train_sampling_strategy
    first = [torch.arange(at, at + batch).numpy() for at in range(0, warm, batch)]
    own = data.BatchPlan(lengths[warm:], batch, config.seed, strategy)
    run.plan = data.BatchPlan(lengths, batch, config.seed)
    run.plan.batches_of = lambda epoch: [
        *first,
        *(rows + warm for rows in own.batches_of(epoch)),
        *first,
    ]
    run.plan.steps_per_epoch = run.total_steps = clock.last + 1
    run.monitor.bar, run.monitor.started = clock, time.perf_counter()
    save_last(run)  # as every new run does
    try:
        with run.stop:
            train.train(run)
    except Enough:
        yield clock.result() | {"shapes": list(collator.shapes)}

    def predict_all(rows, size):
        batches = data.eval_batches(rows, size, run.tokenizer, run.accelerator)
        predict(run.model, batches, len(rows), run.accelerator)

    if predicts:
        yield from time_predictions(config, work["predict"], predict_all)


def give_memory_back() -> None:
    from runtime import engines

    engines.keep_freed_memory = lambda: None


def unfuse_adamw() -> None:
    fused = torch.optim.AdamW
    torch.optim.AdamW = lambda *given, **options: fused(*given, **options | {"fused": False})


def draw_as_torch() -> None:
    import model

    model.draw_faster = lambda model: None


def always_mask() -> None:
    from data import Collator

    collate = Collator.__call__

    def with_mask(self, rows):
        batch = collate(self, rows)
        return {"attention_mask": torch.ones_like(batch["input_ids"]), **batch}

    Collator.__call__ = with_mask


BATCH_SIZES = {  # of arms that do not train at the batch size of the others
    f"HF Trainer, length grouping, attention dropout 0, batch {size}": size for size in (4, 8, 32)
}
ARMS = {
    "HF Trainer": partial(trainer, grouped=False, predicts=True),
    "HF Trainer, length grouping": partial(trainer, grouped=True),
    "plain Accelerate loop": plain_loop,
    "HF Trainer, attention dropout 0": partial(trainer, grouped=False, attention_dropout=0.0),
    "HF Trainer, length grouping, attention dropout 0": partial(
        trainer, grouped=True, attention_dropout=0.0
    ),
    **dict.fromkeys(BATCH_SIZES, partial(trainer, grouped=True, attention_dropout=0.0)),
    "ours": partial(ours, predicts=True),
    "ours, accelerate launch": ours,
}
ABLATIONS = {  # one feature off at a time, and once two that act on one another
    "ours, random order": partial(ours, train_sampling_strategy="random"),
    "ours, attention dropout 0.1": partial(ours, attention_dropout=0.1),
    "ours, whole last layer": partial(ours, last_layer="all", predicts=True),
    "ours, freed memory given back": partial(ours, ablate=give_memory_back),
    "ours, attention dropout 0.1, freed memory given back": partial(
        ours, attention_dropout=0.1, ablate=give_memory_back
    ),
    "ours, AdamW not fused": partial(ours, ablate=unfuse_adamw),
    "ours, dropout as torch draws it": partial(ours, ablate=draw_as_torch),
    "ours, mask always": partial(ours, ablate=always_mask),
}


def main() -> None:
    from config import Config
    from runtime.flags import parse

    arm, work, flags = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), sys.argv[3:]
    config = parse(Config, flags)
    batch = BATCH_SIZES.get(arm, config.per_device_train_batch_size)
    config = dataclasses.replace(config, per_device_train_batch_size=batch)
    assert len(work["warm"]) % batch == len(work["work"]) % batch == 0
    warm, last = len(work["warm"]) // batch, (len(work["warm"]) + len(work["work"])) // batch
    torch.manual_seed(config.seed)
    result = {}
    for part in (ARMS | ABLATIONS)[arm](config, work, Clock(warm, last, float(work["begun"]))):
        result |= part
    tokens = sum(len(row["input_ids"]) for row in work["work"])
    computed = sum(rows * longest for rows, longest in result.pop("shapes")[warm:last])
    print(json.dumps({**result, "padding_fraction": 1 - tokens / computed}))


if __name__ == "__main__":
    main()
