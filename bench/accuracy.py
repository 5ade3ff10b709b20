"""Test accuracy of train.py, of what can be added to it, and of HF Trainer, over several seeds.

    python bench/accuracy.py --seeds 42 43 44 --folder SCRATCH --json FILE FLAGS OF train.py

What an arm has of its own is in ARMS; all of them learn from the same labelled texts, start from
the same weights, but for those that train these further, and take part in one test. Ours keeps the
best step by validation, Trainer its last, as its defaults do. Texts without labels are a sample of
--unlabelled. The test split is opened after a training, and decides nothing. What is finished stays
in SCRATCH; the same command goes on, and goes on with a training that was stopped, but that of
Trainer, which starts anew.

The difference of an arm to "ours" comes with two standard errors. Over the texts: for each, the
share of seeds in which the arm is right, minus that of ours; mean and standard error over texts.
Over the seeds: the difference of each seed; mean and standard error. Only the second accounts for
another seed giving another model; with few seeds it is large. Minutes are of all starts of a
training, with the further training that it starts from, whatever else the machine did meanwhile.
"""

import argparse
import dataclasses
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState
from datasets import Dataset

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.common import this_command, write_json
from config import Config, EvalConfig
from eval import load_split, open_classifier
from recipes.pretrain_mlm import NOT_HERE
from report.asked import SPLIT_SETTINGS
from report.look import measure_baselines
from runtime.environment import describe_machine
from runtime.flags import UserError, changed_flags, parse
from runtime.hub import full_path
from runtime.processes import run_command
from runtime.splits import read_table


@dataclasses.dataclass(frozen=True)
class Arm:
    """How a model is trained and tested. In `flags`, {encoder} and {unlabelled} are paths."""

    script: str = "train.py"
    flags: tuple[str, ...] = ()
    best: str = "best"  # in the folder of the training
    long: str = "cut"  # of eval.py
    trained_as: str | None = None  # the arm whose model it is


FURTHER, UNLABELLED = "--model={encoder}", "--unlabelled={unlabelled}"
SELF_TRAINED = Arm("recipes/self_train.py", (UNLABELLED,), best="round_1/best")
# Teachers after further training are less sure: of 2,000 IMDb reviews, one gave none of a class the
# 0.9 that is the default.
ALL = dataclasses.replace(SELF_TRAINED, flags=(UNLABELLED, FURTHER, "--min_probability=0.8"))
OURS = "ours"
FURTHER_AND_SELF = "ours, further training, then self-training"
ARMS = {
    OURS: Arm(),
    "HF Trainer": Arm(
        "bench/peer_trainer.py", ("--train_sampling_strategy=random", "--attention_dropout=0.1")
    ),
    "ours, batches at random": Arm(flags=("--train_sampling_strategy=random",)),
    "ours, attention dropout 0.1": Arm(flags=("--attention_dropout=0.1",)),
    "ours, the end of long texts": Arm(flags=("--truncation=tail",)),
    "ours, start and end of long texts": Arm(flags=("--truncation=head_tail",)),
    "ours, long texts tested in windows": Arm(long="window", trained_as=OURS),
    "ours, label smoothing 0.1": Arm(flags=("--label_smoothing_factor=0.1",)),
    "ours, warm-up 0.3": Arm(flags=("--warmup_steps=0.3",)),
    "ours, further training first": Arm(flags=(FURTHER,)),
    "ours, self-training": SELF_TRAINED,
    "ours, self-training, tested in windows": dataclasses.replace(
        SELF_TRAINED, long="window", trained_as="ours, self-training"
    ),
    FURTHER_AND_SELF: ALL,
    "ours, all: further training, self-training, tested in windows": dataclasses.replace(
        ALL, long="window", trained_as=FURTHER_AND_SELF
    ),
}


def train_arm(name: str, seed: int, folder: Path, flags: list[str], **paths: Path) -> None:
    arm = ARMS[name]
    own = [flag.format(**paths) for flag in arm.flags]
    quiet = ["--eval_steps=999999", f"--seed={seed}", f"--output_dir={folder}"]
    run_script([arm.script, *flags, *own, *quiet], folder)


def run_script(words: list[str], folder: Path) -> None:
    """Its seconds are added to a file, of a start that is stopped, too."""
    begun = time.perf_counter()
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL) as child:
        # Stopped, this waits for the training to be saved; its status then ends this, too. Ctrl-C
        # the child gets from the terminal.
        handlers = {signal.SIGTERM: lambda *_: child.terminate(), signal.SIGINT: lambda *_: None}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    with seconds_file(folder).open("a", encoding="utf-8") as file:
        print(time.perf_counter() - begun, file=file)
    if child.returncode:
        raise UserError(f"{' '.join(words)}: ended with status {child.returncode}; see above")


def seconds_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.seconds")


def minutes(folder: Path) -> float:
    return sum(map(float, seconds_file(folder).read_text(encoding="utf-8").split())) / 60


# ---------------------------------------------------------------- what arms share


def write_unlabelled(options) -> Path:
    file, column = options.folder / "unlabelled.parquet", options.config.text_column
    if not file.exists():
        table = read_table(options.unlabelled, options.unlabelled_split, flag="--unlabelled")
        texts = [
            text for _, _, chunk in table.chunks([column]) for text in chunk[column].to_pylist()
        ]
        if len(texts) < options.unlabelled_texts:
            raise UserError(
                f"--unlabelled_texts {options.unlabelled_texts}: there are {len(texts)}"
            )
        texts = random.Random(0).sample(texts, options.unlabelled_texts)
        part = file.with_suffix(".part")
        Dataset.from_dict({column: texts}).to_parquet(str(part))
        part.replace(file)
    return file


def train_encoder(options, unlabelled: Path) -> Path:
    """On masked words of the labelled and unlabelled texts, for all seeds once."""
    folder = further_folder(options)
    if not (folder / "encoder").exists():
        own = [f"--unlabelled={unlabelled}", "--num_train_epochs=1", f"--output_dir={folder}"]
        others = flags_of(options.config, but_for={*NOT_HERE, "num_train_epochs", "max_steps"})
        run_script(["recipes/pretrain_mlm.py", *others, *own], folder)
    return folder / "encoder"


def further_folder(options) -> Path:
    return options.folder / "further_training"


def flags_of(config: Config, but_for=()) -> list[str]:
    """Those that differ from their defaults, as a command line has them."""
    changed = changed_flags(config).items()
    return [f"--{name}={value}" for name, value in changed if name not in but_for]


# ---------------------------------------------------------------- results


def measure(name: str, seed: int, options) -> np.ndarray:
    """Train and test the arm, unless that is done. (texts,) booleans: which of the test texts are
    classified correctly."""
    arm, folder = ARMS[name], folder_of(options, name, seed)
    result = options.folder / f"{name}_{seed}_of_{options.test}.npy".replace(", ", " ")
    if not result.exists():
        paths = {}
        if UNLABELLED in arm.flags or FURTHER in arm.flags:
            paths["unlabelled"] = write_unlabelled(options)
        if FURTHER in arm.flags:
            paths["encoder"] = train_encoder(options, paths["unlabelled"])
        train_arm(arm.trained_as or name, seed, folder, flags_of(options.config), **paths)
        classifier, split = open_test(folder / arm.best, options, arm.long)
        right = classifier.predict_split(split).right
        np.save(result, right)
        print(f"{name}, seed {seed}: {right.mean():.4f}", flush=True)
    return np.load(result)


def folder_of(options, name: str, seed: int) -> Path:
    name = ARMS[name].trained_as or name
    return options.folder / f"{name.replace(', ', ' ').replace(' ', '_')}_{seed}"


def open_test(ckpt: Path, options, long: str):
    """(The classifier, the test texts.) Self-training has learnt from files of its own, so the data
    set that has the test split is named."""
    AcceleratorState._reset_state()  # each checkpoint in the precision of its own training
    given = vars(options.config)
    source = {name: given[name] for name in SPLIT_SETTINGS if name in given}
    config = EvalConfig(ckpt=str(ckpt), max_test_samples=options.test, long=long, **source)
    classifier = open_classifier(config)
    return classifier, load_split(config, classifier).texts


def compare(a: np.ndarray, b: np.ndarray) -> dict:
    """Mean of a - b, and its standard errors; a and b are (seeds, texts) booleans."""
    difference = a.astype(float) - b
    by_text, by_seed = difference.mean(0), difference.mean(1)
    seeds = len(by_seed)
    return {
        "difference": difference.mean(),
        "standard_error_over_texts": by_text.std(ddof=1) / len(by_text) ** 0.5,
        "standard_error_over_seeds": by_seed.std(ddof=1) / seeds**0.5 if seeds > 1 else None,
        "right_only": [int((difference > 0).sum()), int((difference < 0).sum())],
    }


def describe_arm(name: str, options, right: np.ndarray, ours: np.ndarray) -> dict:
    arm, folders = ARMS[name], [folder_of(options, name, seed) for seed in options.seeds]
    before = minutes(further_folder(options)) if FURTHER in arm.flags else 0
    trained = [
        json.loads((folder / arm.best / "training_config.json").read_text())["environment"]
        for folder in folders
    ]
    return {
        "script": arm.script,
        "flags": arm.flags,
        "long": arm.long,
        "accuracy": right.mean(1).tolist(),
        "beside_ours": compare(right, ours) if name != OURS else None,
        "minutes": [before + minutes(folder) for folder in folders],
        "commits": sorted({of["commit"] for of in trained}),
        "threads": sorted({of["threads"] for of in trained}),
    }


def summarize(options, right: dict[str, np.ndarray]) -> dict:
    """`right`: (seeds, texts) of each arm."""
    # Of the labelled texts: self-training has others, too.
    first = folder_of(options, OURS, options.seeds[0]) / ARMS[OURS].best
    baselines, _ = measure_baselines(*open_test(first, options, "cut"))
    return {
        **describe_machine(),
        "command": this_command(options.json),
        "seeds": options.seeds,
        "test_texts": right[OURS].shape[1],
        "unlabelled_texts": options.unlabelled_texts,
        "baselines": baselines,
        "arms": {name: describe_arm(name, options, of, right[OURS]) for name, of in right.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="beside ours")
    parser.add_argument("--test", type=int, default=2000, help="test texts")
    parser.add_argument("--unlabelled", default="stanfordnlp/imdb")
    parser.add_argument("--unlabelled_split", default="unsupervised")
    parser.add_argument("--unlabelled_texts", type=int, default=3000)
    parser.add_argument("--folder", type=Path, required=True, help="scratch")
    parser.add_argument("--json", type=Path)
    options, flags = parser.parse_known_args()
    config = parse(Config, flags)
    options.config = dataclasses.replace(config, dataset=full_path(config.dataset))
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    about = [options.unlabelled, options.unlabelled_split, options.unlabelled_texts]
    about = [*map(str, about), *flags_of(options.config)]
    given = options.folder / "flags.json"
    if given.exists() and json.loads(given.read_text()) != about:
        raise UserError(f"--folder {options.folder}: holds runs with other flags; give another")
    given.write_text(json.dumps(about))
    right = {name: [] for name in [OURS, *options.arms]}
    for seed, name in itertools.product(options.seeds, right):
        right[name].append(measure(name, seed, options))
    result = summarize(options, {name: np.stack(of) for name, of in right.items()})
    print(json.dumps(result, indent=1))
    write_json(options.json, result)


if __name__ == "__main__":
    run_command(main)
