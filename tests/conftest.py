"""A tiny random DistilBERT and a small corpus, and the two commands called in this process.

Nothing here needs a network or a GPU. Every test says in its docstring by which change of the code
it was seen to fail ("Red: ...").
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Ignored under nohup and in a script's background job, which train.py respects; tests send them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Each of pytest-xdist's workers, gw0 and gw1, keeps to a core: threads of both on all cores
    # would wait for each other, which takes a third longer.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
home = tempfile.TemporaryDirectory(prefix="hf_home_")
os.environ["HF_HOME"] = home.name
os.environ["CUDA_VISIBLE_DEVICES"] = ""

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import csv
import random

import event_files
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from hypothesis import settings
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

event_files.keep_in_order()
LONGEST = ("test_processes", "test_readme", "test_faults", "test_self_train", "test_precision")


def pytest_collection_modifyitems(items) -> None:
    """The files that take longest come first: one of them last would leave a core without work."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


settings.register_profile("busy", deadline=None)  # two tests run at a time
settings.load_profile("busy")
WORDS = [f"w{index}" for index in range(40)]


def make_model(folder: Path, **config) -> Path:
    """A DistilBERT of two layers, 32 wide, with its word-level tokenizer, saved in `folder`."""
    vocabulary = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        **{f"{name}_token": token for name, token in special.items()},
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "dim": 32,
        "hidden_dim": 64,
        "n_layers": 2,
        "n_heads": 2,
        "vocab_size": len(vocabulary),
    }
    config = DistilBertConfig(**{**sizes, "max_position_embeddings": 32, **config})
    DistilBertModel(config).save_pretrained(folder)
    return folder


def load_named(folder: Path, names: list[str], **flags):
    """The model in `folder`, with the tokenizer there, for classes of those names."""
    from config import Config
    from model import load_model, load_tokenizer

    torch.set_num_threads(1)  # as in the other tests: more wait for each other on a busy machine
    config = Config(model=str(folder), max_length=16, **flags)
    return load_model(config, names, load_tokenizer(config.model, max_length=16))[0]


def make_rows(count: int, seed: int, classes=("negative", "positive")) -> list[tuple[str, str]]:
    """(text, label) rows of 3 to 40 words, some above 32 tokens; one word shows the label."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        words = rng.choices(WORDS[10:], k=rng.randint(3, 40))
        words[rng.randrange(3)] = WORDS[index % len(classes)]
        rows.append((" ".join(words), classes[index % len(classes)]))
    return rows


def write_csv(path: Path, rows, header=("text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder with train.csv (150 rows) and test.csv (61 rows)."""
    folder = tmp_path_factory.mktemp("corpus")
    write_csv(folder / "train.csv", make_rows(150, seed=1))
    write_csv(folder / "test.csv", make_rows(61, seed=2))
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its state, such as the precision, in singletons: each test has its own."""
    yield
    fresh_state()


def fresh_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


SMALL_RUN = {
    "max_length": 32,
    "learning_rate": 1e-3,
    "num_threads": 1,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 2,
    "logging_steps": 5,
    "eval_steps": 5,
    "save_steps": 10,
    "max_save_share": 1,
}


def train_small(**flags) -> tuple[Path, int]:
    """train.py with those flags over SMALL_RUN: (its folder, its status)."""
    import train

    flags = SMALL_RUN | flags
    status = train.main([f"--{name}={value}" for name, value in flags.items()])
    return Path(flags["output_dir"]), status


@pytest.fixture
def train_command(tiny, corpus, tmp_path):
    """train_command(flag=value, ...) runs train.py on the small corpus; returns its folder."""

    def command(**flags) -> Path:
        given = {"model": tiny, "dataset": corpus, "output_dir": tmp_path / "run"} | flags
        return train_small(**given)[0]

    return command


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's own reading of a run: tag -> [(step, value)]."""
    events = EventAccumulator(str(folder / "runs"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def weights_of(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "model.safetensors")


# ---------------------------------------------------------------- the demo

SET_UP = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && "


PARTS = ("configs", "demo", "report", "runtime")


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The README's first command but for its set-up, done: (the folder of its run, what train.py
    printed)."""
    readme = (ROOT / "README.md").read_text()
    command = re.search(rf"^{re.escape(SET_UP)}(.*train.py.*)$", readme, re.M)[1]
    train, evaluate = command.replace(".venv/bin", os.path.dirname(sys.executable)).split(" && ")
    folder = tmp_path_factory.mktemp("demo")
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in PARTS)):
        (folder / path.name).symlink_to(path)
    said = []
    for step in (f"{train} --output_dir=run", evaluate.replace("demo/run", "run")):
        done = subprocess.run(step.split(), cwd=folder, capture_output=True, text=True, timeout=600)
        said.append(done.stdout)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / "run", said[0]
