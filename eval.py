"""A trained classifier's report on the test split, or its predictions for new texts.

    python eval.py --ckpt best/                   # the test split of what it was trained on
    python eval.py --ckpt best/ --text "A wonderful film." --text "Dull."
    python eval.py --ckpt best/ --input reviews.csv --output predictions.csv

In: a checkpoint folder; texts. Out: `report_test.json` beside the weights; predictions.
Refuses to know: optimizer, schedule, TensorBoard. The only file that opens the test split.
"""

import dataclasses
import json
import os
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from datasets.fingerprint import Hasher
from torch.nn import functional as F

import checkpoint
import model as models
from config import Config, EvalConfig, UserError, parse
from data import (
    FORMATS,
    Collator,
    check_texts,
    eval_loader,
    read_labelled,
    read_table,
    sample,
    tokenize,
)
from processes import check_world, keep_freed_memory, run_command, set_threads


@dataclasses.dataclass(frozen=True)
class Scores:
    """`loss`: mean cross-entropy in nats. `accuracy`: correct / examples."""

    loss: float
    accuracy: float
    examples: int


# ---------------------------------------------------------------- used by train.py too


def to_device(batch: dict[str, torch.Tensor], device) -> dict[str, torch.Tensor]:
    """Through pinned memory to a GPU, so that the host goes on and need not wait for the copy."""
    if device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        # Elsewhere (MPS) a copy that nobody waits for may read what was freed (pytorch#139550).
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()  # inference_mode would leave FSDP2 and ZeRO 3 buffers that no gradient crosses
def predict(
    model, data, collator, batch_size: int, accelerator, before_batch=lambda: None
) -> torch.Tensor:
    """Logits (rows, classes), float32 on the CPU, in the order of `data`, whole on every process.

    `before_batch` is called equally often on every process.

    The last column of the table counts how often each row was predicted, over all processes:
    exactly once, or this raises. Samplers that pad every share to one size count rows twice.
    """
    loader, batches = eval_loader(
        data, batch_size, accelerator.process_index, accelerator.num_processes, collator
    )
    table = torch.zeros(len(data), model.config.num_labels + 1, device=accelerator.device)
    was_training = model.training
    model.eval()
    for rows, batch in zip(batches, loader, strict=True):
        before_batch()
        batch.pop("labels", None)
        inputs = to_device(batch, accelerator.device)
        # An idle process computed one made-up row, of which nothing is taken.
        table[rows, :-1] = model(**inputs).logits.float()[: len(rows)]
        table[rows, -1] += 1
    model.train(was_training)
    table = accelerator.reduce(table, "sum").cpu()
    if not (table[:, -1] == 1).all():
        raise RuntimeError(
            f"of {len(data)} rows {int((table[:, -1] != 1).sum())} were not counted once"
        )
    return table[:, :-1]


def score(logits: torch.Tensor, labels: torch.Tensor) -> Scores:
    """Sums divided once by the count: a mean of means is wrong for ragged batches (trl#7010)."""
    loss = F.cross_entropy(logits.double(), labels, reduction="sum").item()
    correct = (logits.argmax(-1) == labels).sum().item()
    return Scores(loss / len(labels), correct / len(labels), len(labels))


# ---------------------------------------------------------------- the command


def open_checkpoint(folder: Path) -> dict:
    """The settings that the checkpoint was trained with; {} if train.py did not write it."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"--ckpt {folder}: no checkpoint there (no {name}); "
                "give the best/ folder that train.py wrote"
            )
    if (folder / checkpoint.MANIFEST).exists():
        try:
            checkpoint.verify(folder)
        except checkpoint.Damaged as error:
            raise UserError(f"--ckpt {error}; restore it or train anew") from None
    settings = folder / "training_config.json"
    try:
        return dict(json.loads(settings.read_text())) if settings.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--ckpt {settings}: {error}; restore it or train anew") from None


def label_names(model, ckpt: str) -> list[str]:
    names = [model.config.id2label.get(index) for index in range(model.config.num_labels)]
    if None in names or len(set(names)) < len(names):
        raise UserError(
            f"--ckpt {ckpt}: config.json names its {len(names)} classes {model.config.id2label}; "
            "give each a name of its own under id2label"
        )
    return names


def load_test(config: EvalConfig, trained: dict, names: list[str]):
    """(labelled test split, what it is, how many of its texts before sampling were learnt from).

    Raises `UserError` if those are half of them or more.
    """
    fallback = trained or (dataclasses.asdict(Config(dataset="")) if config.dataset else {})
    if config.dataset not in (None, fallback.get("dataset")):  # another one, with its own
        fallback = fallback | {"dataset_config_name": None, "dataset_revision": None}
    asked = {key: getattr(config, key, None) for key in TEST_SETTINGS}
    about = {key: fallback.get(key) if value is None else value for key, value in asked.items()}
    if not about["dataset"]:
        raise UserError(
            f"--ckpt {config.ckpt}: does not say what it was trained on; give --dataset"
        )
    table = read_table(
        about["dataset"],
        about["test_split"],
        about["dataset_config_name"],
        about["dataset_revision"],
        choices="--dataset_config_name and --test_split, or give --dataset TEST_FILE",
    )
    test = read_labelled(table, about["text_column"], about["label_column"], names)
    learnt = count_learnt(test, trained)
    if learnt is not None and learnt >= len(test) / 2:
        raise UserError(
            f"--dataset {about['dataset']} --test_split {about['test_split']}: {learnt} of its "
            f"{len(test)} texts stand in the split that the model was trained on; give --dataset "
            "TEST_FILE, or another split"
        )
    test = sample(test, config.max_test_samples, seed=0)
    about["texts"] = Hasher.hash((test["text"][:], test["labels"][:]))
    return test, about, learnt


def count_learnt(test: datasets.Dataset, trained: dict) -> int | None:
    """How many of the test texts stand in the split that the model was trained on, or None if that
    is not there to compare. By content, for paths and names of splits hide what is equal; a few are
    usual (52 of IMDb's 25,000)."""
    if not trained.get("dataset"):
        return None
    names = ("dataset", "train_split", "dataset_config_name", "dataset_revision")
    try:
        table = read_table(*(trained.get(name) for name in names))
        learnt = set(table[trained["text_column"]][:])
        return sum(text in learnt for text in test["text"])
    except (UserError, KeyError):
        return None


TEST_SETTINGS = (
    "dataset",
    "dataset_config_name",
    "dataset_revision",
    "test_split",
    "text_column",
    "label_column",
    "max_test_samples",
)


def check(config: EvalConfig) -> None:
    """All mistakes that show before anything is read."""
    errors = []
    if bool(config.input) != bool(config.output):
        given, other = ("input", "output") if config.input else ("output", "input")
        errors += [f"--{given} {getattr(config, given)}: needs --{other} FILE; give both"]
    if config.text and config.input:
        errors += [f"--input {config.input}: given with --text; give one of the two"]
    if config.text or config.input:
        errors += [
            f"--{name} {getattr(config, name)}: is for the test split; leave it out with "
            f"--{'text' if config.text else 'input'}"
            for name in ("report", *TEST_SETTINGS)
            if getattr(config, name) is not None and (name != "text_column" or config.text)
        ]
    if errors:
        raise UserError(*errors)
    if config.output:
        check_output(config)


def check_output(config: EvalConfig) -> None:
    source, output = Path(config.input), Path(config.output)
    if output.suffix not in WRITERS:
        raise UserError(
            f"--output {output}: unknown kind of file; give one of {', '.join(WRITERS)}"
        )
    if not source.is_file():
        raise UserError(f"--input {source}: is no file; give a {', '.join(FORMATS)} file")
    if output.exists() and output.samefile(source):
        raise UserError(f"--output {output}: is the --input itself; give another name")
    if output.exists() and not config.overwrite:
        raise UserError(f"--output {output}: exists; give another name, or --overwrite")
    check_writable("--output", output)


def check_writable(flag: str, path: Path) -> None:
    """That a file can be written there, before there is one to be lost."""
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        why = "cannot be written in" if path.parent.is_dir() else "is not there"
        raise UserError(f"{flag} {path}: folder {path.parent} {why}; make it, or give another")


WRITERS = {".csv": "to_csv", ".jsonl": "to_json", ".parquet": "to_parquet"}


def main(argv=None) -> None:
    config = parse(EvalConfig, argv)
    check(config)
    folder = Path(config.ckpt)
    trained = open_checkpoint(folder)
    opened = (folder / "model.safetensors").stat()
    wanted = trained.get("mixed_precision", "no")
    on_gpu = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision=wanted if on_gpu else "no")
    check_world()
    set_threads(config.num_threads)
    keep_freed_memory()
    tokenizer = models.load_tokenizer(
        config.ckpt, max_length=trained.get("max_length"), flag="--ckpt"
    )
    model = models.load_classifier(config.ckpt, flag="--ckpt")
    names = label_names(model, config.ckpt)
    model = accelerator.prepare_model(model, evaluation_mode=True)

    def logits_of(data) -> torch.Tensor:
        ids = tokenize(
            data, tokenizer, tokenizer.model_max_length, trained.get("truncation", "head")
        )
        return predict(
            model, ids, Collator(tokenizer), config.per_device_eval_batch_size, accelerator
        )

    if config.text:
        logits = logits_of(datasets.Dataset.from_dict({"text": list(config.text)}))
        for text, row in zip(config.text, logits.softmax(-1), strict=True):
            accelerator.print(f"{names[row.argmax()]}  {row.max():.4f}  {text}")
    elif config.input:
        table = predict_file(config, trained.get("text_column", "text"), names, logits_of)
        if accelerator.is_main_process:
            output = Path(config.output)
            getattr(table, WRITERS[output.suffix])(str(output))
            print(f"{len(table):,} predictions written to {output}")
    else:
        from report import make_report, show  # here: train.py imports eval.py, and reports nothing

        test, about, learnt = load_test(config, trained, names)
        about |= {"weights": checkpoint.digest(folder / "model.safetensors")}
        if not os.path.samestat((folder / "model.safetensors").stat(), opened):
            raise UserError(
                f"--ckpt {folder}: a training replaced it meanwhile; start eval.py again"
            )
        path = Path(config.report or folder / "report_test.json")
        refuse_to_replace(path, about, config.overwrite)
        logits, labels = logits_of(test), torch.as_tensor(test["labels"][:])
        report = make_report(score(logits, labels), logits.argmax(-1), labels, names)
        if accelerator.is_main_process:
            show(report)
            about |= {"precision": accelerator.mixed_precision, "device": accelerator.device.type}
            about |= {"also_in_training": learnt}
            path.write_text(json.dumps({**report, "of": about}, indent=1) + "\n")
            print(f"written to {path}")


def predict_file(config: EvalConfig, text_column: str, names: list[str], logits_of):
    """The table of --input with two columns more, `predicted_label` and `probability`."""
    name = config.text_column or text_column
    table = read_table(config.input, "train", flag="--input")
    for added in ("predicted_label", "probability"):
        if added in table.column_names:
            raise UserError(f"--input {config.input}: has a column {added} already; rename it")
    if name not in table.column_names:
        raise UserError(
            f"--text_column {name}: no such column; give one of {', '.join(table.column_names)}"
        )
    check_texts(table, name)
    probability, label = (
        logits_of(datasets.Dataset.from_dict({"text": table[name][:]})).softmax(-1).max(-1)
    )
    table = table.add_column("predicted_label", [names[index] for index in label])
    return table.add_column("probability", probability.tolist())


def refuse_to_replace(path: Path, about: dict, overwrite: bool) -> None:
    """A report gives way only to one of the same weights on the same texts."""
    check_writable("--report", path)
    if path.exists() and not overwrite:
        try:
            same = about.items() <= json.loads(path.read_text())["of"].items()
        except (ValueError, KeyError, TypeError, AttributeError):
            same = False
        if not same:
            raise UserError(f"{path} holds another report; give --report FILE, or --overwrite")


if __name__ == "__main__":
    run_command(main)
