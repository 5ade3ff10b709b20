"""SIGKILL the recipes that train, at random moments: does the same command end in the same bits?

    python bench/kill_recipes.py --kills 5 --seed 0 --folder SCRATCH --json FILE

Runs each recipe once on the demo's model and texts. Then it starts it again and again in another
folder and kills it after a random part of that time, until it has died --kills times and comes to
its end. Weights and the texts of a round have to be equal to the bit; of a search, the trials:
their flags, validations and states. The status is 1 if something differs.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.common import this_command, write_json
from runtime.environment import describe_machine, find_commit

SHARED = ["--config=configs/demo.json", "--max_train_samples=400", "--logging_steps=10"]
SHARED += ["--save_steps=5", "--max_save_share=1"]
FEWER = "--max_validation_samples=300"
RECIPES = {
    "pretrain_mlm": ["--num_train_epochs=2"],
    "self_train": [
        FEWER,
        "--max_steps=60",
        "--min_probability=0.55",
        "--max_unlabelled_samples=200",
    ],
    "search": [FEWER, "--max_steps=40", "--validate_steps=10", "--trials=4"],
}
READ_TEXTS = ("pretrain_mlm", "self_train")
TEXTS = 600  # without labels


def command(recipe: str, folder: Path, unlabelled: Path) -> list[str]:
    words = [sys.executable, f"recipes/{recipe}.py", *SHARED, *RECIPES[recipe]]
    words += [f"--unlabelled={unlabelled}"] if recipe in READ_TEXTS else []
    return [*words, f"--output_dir={folder}"]


def end_of(recipe: str, folder: Path) -> dict:
    """What must be equal to the bit."""
    found = [*folder.rglob("*.safetensors"), *folder.rglob("*.parquet")]
    names = {path: path.relative_to(folder) for path in sorted(found)}
    end = {
        str(name): hashlib.sha256(path.read_bytes()).hexdigest()
        for path, name in names.items()
        if not any(part.startswith(".") for part in name.parts)
    }
    if recipe == "search":
        import optuna

        study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")
        for one in study.trials:
            end[f"trial {one.number}"] = [one.state.name, one.params, one.intermediate_values]
    return end


def run_to_end(words: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def kill_after(words: list[str], seconds: float) -> bool:
    """Whether it was still running, and was killed."""
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL) as child:
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            return True
    return False


def measure(recipe: str, options, unlabelled: Path) -> dict:
    rng = random.Random(f"{options.seed} {recipe}")
    folder = options.folder / recipe
    seconds = run_to_end(command(recipe, folder / "whole", unlabelled))
    expected, moments, chains, different = end_of(recipe, folder / "whole"), [], 0, []
    while len(moments) < options.kills:
        words = command(recipe, folder / f"chain{chains}", unlabelled)
        moment = rng.uniform(0, 0.6 * seconds)
        while len(moments) < options.kills and kill_after(words, moment):
            moments.append(round(moment, 1))
            moment = rng.uniform(0, 0.6 * seconds)
        run_to_end(words)
        end = end_of(recipe, folder / f"chain{chains}")
        chains += 1
        different += [name for name in expected | end if expected.get(name) != end.get(name)]
    print(f"{recipe}: killed after {moments} s; different: {different}", flush=True)
    return {
        "seconds_of_an_uninterrupted_run": round(seconds, 1),
        "killed_after_seconds": moments,
        "chains": chains,
        "compared": sorted(expected),
        "different": different,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--folder", type=Path, required=True, help="scratch")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True)
    unlabelled = options.folder / "unlabelled.csv"
    texts = (ROOT / "demo" / "unlabelled.txt").read_text(encoding="utf-8").splitlines()[:TEXTS]
    unlabelled.write_text("".join(f'"{text}"\n' for text in ["text", *texts]), encoding="utf-8")
    found = {name: measure(name, options, unlabelled) for name in options.recipes}
    about = {"command": this_command(options.json), "commit": find_commit()}
    write_json(options.json, about | describe_machine() | {"recipes": found})
    sys.exit(any(of["different"] for of in found.values()))


if __name__ == "__main__":
    main()
