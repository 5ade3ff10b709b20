"""Further training of an encoder on masked words of your own texts, before it learns classes.

    python recipes/pretrain_mlm.py --unlabelled more.csv --output_dir pretrained FLAGS OF train.py
    python train.py --model pretrained/encoder --output_dir run FLAGS OF train.py

It reads the texts that train.py would train on, without their labels, and those of --unlabelled;
never those to validate on or to test on. The loop, the batch plan, last/ and what is promised of
them are those of train.py: stopped or killed, the same command goes on. BERT-base on IMDb: 94.6 %
became 95.6 % (Sun et al. 2019, arXiv:1905.05583).

In: labelled and unlabelled texts. Out: encoder/, for --model, with hashes of what it has seen;
last/, runs/. Independent of: labels, the test split but for what is left out.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import Config
from runtime.flags import (
    BETWEEN_0_AND_1,
    UserError,
    adjustable,
    flag,
    parse,
    parse_or_exit,
    require_defaults,
)


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Config):
    """Masked-word training. Flags are those of train.py and a few more."""

    # Its path may change, as that of --dataset.
    unlabelled: str | None = adjustable(None, "Hub name, folder or file of texts without labels")
    unlabelled_split: str = adjustable("train", "split of --unlabelled; of IMDb: unsupervised")
    mask_probability: float = flag(0.15, "share of the tokens that is hidden", BETWEEN_0_AND_1)


# Flags of train.py that say something of classes or validation, of which there are none.
NOT_HERE = ("keep_head", "class_weights", "label_smoothing_factor", "soft_labels", "last_layer")
NOT_HERE += ("validate_steps", "metric_for_best_model", "early_stopping_patience", "torch_compile")
NOT_HERE += ("eval_steps", "eval_samples", "per_device_eval_batch_size", "max_validation_samples")

if __name__ == "__main__":
    GIVEN = parse_or_exit(PretrainConfig)  # before the imports below, which take seconds

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch.nn import functional as F

from data import Splits, choose_texts, encode, what_model_has_seen
from model import load_tokenizer
from recipes.masked_words import hidden_counts, load_masked_words, masked_batches, read_pooler
from recipes.pseudo_labels import read_unlabelled
from runtime import checkpoint
from runtime.draw import sample
from runtime.engines import gather_weights
from runtime.environment import describe_environment
from runtime.folders import MANIFEST, remove_copies, write_folder
from runtime.processes import on_main, one_goes_first, run_command
from runtime.seen import write_seen
from runtime.tables import hash_texts
from runtime.tokenizer import count_special_tokens
from train import IF_OUT_OF_MEMORY, Run, assemble, fine_tune, learning_rate, update


def set_up_masked(config: PretrainConfig, accelerator, settings: dict) -> Run:
    """A run whose loss is the mean cross-entropy of the hidden tokens of a batch."""
    environment = on_main(lambda: describe_environment(accelerator))
    with one_goes_first():  # the others find what was downloaded
        tokenizer = load_tokenizer(config.model, config.revision, config.max_length)
        # The encoder may read longer texts in the training after this.
        most = load_tokenizer(config.model, config.revision, max_length=-1).model_max_length
        tokenizer.model_max_length = max(config.max_length, most)
        if tokenizer.mask_token is None:
            raise UserError(f"--model {config.model}: has no mask token; choose such as DistilBERT")
        splits = load_masked_splits(config, tokenizer, accelerator.print)
        torch.manual_seed(config.seed)  # for a new head
        model, notes = load_masked_words(config, tokenizer)
    splits.notes.extend(notes)
    run = assemble(config, accelerator, settings, environment, tokenizer, splits, model)
    run.text_weights = hidden_counts(run.plan.lengths, tokenizer, config.mask_probability)
    run.summed_loss = partial(F.cross_entropy, reduction="sum")
    return run


def load_masked_splits(config, tokenizer, say) -> Splits:
    """Token ids of all texts to learn from; none to validate on."""
    train, validation, _ = choose_texts(dataclasses.replace(config, max_train_samples=None))
    if len(train.text_columns) == 2:
        raise UserError(f"--text_column {config.text_column}: give one column, not two")
    learnt = sample(train, config.max_train_samples, config.validation_seed)
    chunks, others = list(learnt.chunks()), []
    if config.unlabelled:
        others = list(read_unlabelled(config, [train.hashes, validation.hashes], say))
    tables = (token_table(chunk, tokenizer, config) for chunk in [*chunks, *others])
    ids = pa.concat_tables(tables)
    special = sum(count_special_tokens(tokenizer))
    ids = Dataset(ids.filter(pc.greater(ids["length"], special)))  # the others have nothing to hide
    # All of `train`, so that a training that starts from this encoder keeps to the same sides.
    hashes = np.concatenate([train.hashes, *map(hash_texts, others)])
    start = what_model_has_seen(config)
    seen = start.and_then(hashes, validation.hashes, train.text_columns)
    return Splits(ids, ids.select([]), ["hidden words"], seen, [])


def token_table(texts: list[tuple[str, ...]], tokenizer, config) -> pa.Table:
    columns = encode(texts, tokenizer, config.max_length, config.truncation)
    kinds = {"input_ids": pa.list_(pa.int32()), "length": pa.int64()}
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in kinds.items()})
    return table.append_column("labels", pa.array(np.zeros(len(texts), dtype=np.int64)))


def learn_masked_words(run: Run) -> None:
    """As `train` of train.py, with scalars and saves alone after a step."""
    config, progress, monitor = run.config, run.progress, run.monitor
    updates = range(progress.step + 1, run.total_steps + 1)
    batches = masked_batches(run, updates, run.text_weights)
    run.model.train()
    for step in updates:
        monitor.add_step(*update(run, step, batches))
        progress.step = step
        if step % config.logging_steps == 0 or run.at_last_step:
            monitor.log_window(run, learning_rate(step, run.total_steps, config))
        save_due = step % config.save_steps == 0 and on_main(monitor.can_afford_save)
        if run.at_last_step or save_due:
            checkpoint.save_last(run)


def write_encoder(run: Run) -> None:
    weights = gather_weights(run.accelerator, run.model)
    model = run.accelerator.unwrap_model(run.model).model
    own = {name.removeprefix("model."): weight for name, weight in weights.items()}
    own = read_pooler(run.config) | own

    def fill(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=own)
        run.tokenizer.save_pretrained(folder)
        write_seen(folder, run.seen)

    folder = run.output / "encoder"
    on_main(lambda: write_folder(folder, fill, checkpoint.weight_bytes(run.settings)))
    on_main(lambda: [remove_copies(run.output / name) for name in ("encoder", "last")])
    run.monitor.say(f"written to {folder}; next: train.py with your flags and --model {folder}")


def pretrain(config: PretrainConfig) -> int:
    require_defaults(config, NOT_HERE, "is for classes, not for masked words")
    folder = Path(config.output_dir) / "encoder"
    if folder.exists() and not (folder / MANIFEST).exists():
        raise UserError(f"{folder}: is not of this recipe; give another --output_dir")
    return fine_tune(config, set_up_masked, learn_masked_words, write_encoder)


def main(argv=None) -> int:
    return pretrain(parse(PretrainConfig, argv))


if __name__ == "__main__":
    run_command(lambda: pretrain(GIVEN), IF_OUT_OF_MEMORY)
