"""SIGKILL a training run again and again: does the same command always end in the same bits?

    python bench/kill.py --kills 200 --seed 0 --folder SCRATCH --json FILE

Runs a job of the demo to its end once. Then it runs chains until there are at least --kills kills
(a chain that was begun is finished): in a fresh folder up to ten kills and restarts with the same
command, and at last a run to the end. Its weights, optimizer, progress, `best/`, scalars (except
wall-clock ones) and batches must be equal to the bit to those of the first run. Two thirds of the
kills come at a file operation (of a save, or any), or a few milliseconds after it; the others at a
random moment. tests/kill_harness.py runs a chain.

Prints the table of docs/robustness.md and writes it as JSON; the status is 1 if a chain differed,
and its folder is left in SCRATCH.
"""

import argparse
import os
import random
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from kill_harness import JOB, PLACES, Job, chain

from bench.common import write_json
from runtime.environment import describe_machine


def draw(rng: random.Random, seconds: float) -> dict:
    """A kill (see `chain`): two thirds at a file operation, the others at a moment, counted from
    the first step or, a few, from the launch. `seconds`: of a whole run."""
    if rng.random() < 1 / 3:
        launch = rng.random() < 0.1
        return {"moment": rng.uniform(0, 0.3) * seconds, "from": "launch" if launch else "step"}
    place = rng.choices(("saving last/", "saving best/", "any"), (45, 25, 30))[0]
    most = {"saving last/": 50, "saving best/": 35, "any": 150}[place]
    delay = rng.choice((0, 0, rng.uniform(0, 0.02)))
    return {"place": place, "n": rng.randint(1, most), "delay": delay}


def run_chains(folder: Path, kills: int, seed: int, workers: int) -> dict:
    begun = time.perf_counter()
    whole = Job(folder / "whole", JOB)
    whole.run()
    seconds = time.perf_counter() - begun
    expected = whole.end()
    done, different, chains = [], [], 0
    with ThreadPoolExecutor(workers) as pool:
        while len(done) < kills:
            numbers = range(chains, chains + workers)
            chains += workers
            draws = [random.Random(f"{seed} {number}") for number in numbers]
            specs = [[draw(rng, seconds) for _ in range(rng.randint(1, 10))] for rng in draws]
            folders = [folder / f"chain{number}" for number in numbers]
            results = pool.map(chain, folders, [JOB] * workers, specs)
            for number, (chain_kills, end) in zip(numbers, results, strict=True):
                done += chain_kills
                parts = [part for part in expected if end[part] != expected[part]]
                different += [(number, part) for part in parts]
                print(f"chain {number}: {len(chain_kills)} kills, differs: {parts}", flush=True)
                if not parts:
                    shutil.rmtree(folder / f"chain{number}")
    return {
        "kills": len(done),
        "chains": chains,
        "chains_that_differ": different,
        "kills_by_kind_and_place": {
            kind: {place: done.count((kind, place)) for place in PLACES}
            for kind in ("file operation", "moment")
        },
        "seconds_of_an_uninterrupted_run": round(seconds, 1),
        "minutes": round((time.perf_counter() - begun) / 60, 1),
        "steps": expected["progress"]["step"],
        "seed": seed,
    }


def table(result: dict) -> str:
    """The kills by place, as docs/robustness.md shows them."""
    kinds = result["kills_by_kind_and_place"]
    lines = ["| Killed in | at a file operation | at a moment |", "|---|---|---|"]
    lines += [
        f"| {place} | {' | '.join(str(kinds[kind][place]) for kind in kinds)} |" for place in PLACES
    ]
    totals = [sum(places.values()) for places in kinds.values()]
    lines += [f"| all {result['kills']} | {' | '.join(map(str, totals))} |"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="scratch")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="chains side by side")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    result = run_chains(options.folder.resolve(), options.kills, options.seed, options.workers)
    write_json(options.json, result | describe_machine())
    print(table(result))
    sys.exit(bool(result["chains_that_differ"]))


if __name__ == "__main__":
    main()
