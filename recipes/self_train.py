"""Self-training: a model labels texts that have no labels, and the next learns from them, too.

    python recipes/self_train.py --unlabelled more.csv --output_dir selftrained FLAGS OF train.py

Round 0 trains on the labelled texts alone; or --teacher names models that did. In each further
round the last model, or the mean of several teachers, gives every unlabelled text a probability of
each class. Those that are sure are learnt from as soft labels, beside the labelled texts, by a new
model that starts where the first did (Xie et al. 2020, arXiv:1911.04252). Each round is an ordinary
run of train.py and validates on the same texts, so `eval.py --compare` can tell which is better.
The same command goes on after a stop, and ends in the same bits.

In: labelled and unlabelled texts. Out: round_0/, round_1/, ... with best/ in each, and in data/
what the round has learnt from. Independent of: the labels of the test split.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import Config
from runtime.flags import (
    ABOVE_0_UP_TO_1,
    AT_LEAST_1,
    UserError,
    adjustable,
    flag,
    parse,
    parse_or_exit,
    require_defaults,
)


@dataclasses.dataclass(frozen=True)
class SelfTrainConfig(Config):
    """Self-training. Flags are those of train.py and a few more."""

    # Its path may change, as that of --dataset.
    unlabelled: str | None = adjustable(None, "Hub name, folder or file of texts without labels")
    unlabelled_split: str = adjustable("train", "split of --unlabelled; of IMDb: unsupervised")
    teacher: tuple[str, ...] = flag((), "a best/ to start from; several are averaged")
    rounds: int = flag(1, "models to train after the first", AT_LEAST_1)
    min_probability: float = flag(0.9, "below it a text is not learnt from", ABOVE_0_UP_TO_1)
    max_unlabelled_samples: int | None = flag(None, "learn from at most N of them", AT_LEAST_1)


if __name__ == "__main__":
    GIVEN = parse_or_exit(SelfTrainConfig)  # before the imports below, which take seconds

from accelerate.state import AcceleratorState

from recipes.pseudo_labels import PREFIX
from recipes.round_data import describe, make_data, read_texts, require_begun_alike
from runtime.processes import run_command
from train import IF_OUT_OF_MEMORY, fine_tune

OF_TRAINING = {field.name for field in dataclasses.fields(Config)}


def self_train(config: SelfTrainConfig) -> int:
    """The exit status: 0, or that of the round that was stopped."""
    if not config.unlabelled:
        raise UserError("--unlabelled: is missing; give texts without labels")
    require_defaults(config, ("soft_labels",), "is what a round makes")
    if config.overwrite:
        raise UserError("--overwrite: is not for self-training; give another --output_dir")
    given, teachers = read_texts(config), config.teacher
    about = describe(config, given)
    require_begun_alike(Path(config.output_dir), about)
    first = Config(**{name: getattr(config, name) for name in OF_TRAINING})
    for number in range(bool(teachers), config.rounds + 1):
        folder = Path(config.output_dir) / f"round_{number}"
        own = {"output_dir": str(folder)}
        if number:
            make_data(folder / "data", config, teachers, given, about)
            own |= flags_for(folder / "data")
        AcceleratorState._reset_state()  # each model has an Accelerator of its own
        if status := fine_tune(dataclasses.replace(first, **own)):
            return status
        teachers = (str(folder / "best"),)
    return 0


def flags_for(data: Path) -> dict:
    """What train.py is told of the texts of a round, in place of the flags for the labelled."""
    none = ("dataset_config_name", "dataset_revision", "validation_split", "validation_size")
    none += ("max_train_samples", "max_validation_samples")
    return dict.fromkeys(none) | {
        "dataset": str(data / "train.parquet"),
        "validation_dataset": str(data / "validation.parquet"),
        "train_split": "train",
        "soft_labels": PREFIX,
    }


def main(argv=None) -> int:
    return self_train(parse(SelfTrainConfig, argv))


if __name__ == "__main__":
    run_command(lambda: self_train(GIVEN), IF_OUT_OF_MEMORY)
