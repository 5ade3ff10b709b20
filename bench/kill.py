"""SIGKILL a training run again and again: does the same command always end in the same bits?

    python bench/kill.py --kills 200 --seed 0 --folder SCRATCH --json FILE

Runs the demo to its end once. Then chains: a fresh folder, up to ten kills and restarts with the
same command, and at last a run to the end, whose weights, optimizer, progress, `best/`, scalars
(but wall-clock ones) and reviews of every step must be equal to the bit to the first run's.

Two thirds of the kills come at the n-th file operation (Python's audit events, or a few
milliseconds after one, to hit the writes between them) of a save or of anything; the others at a
moment of the wall clock. The child is train.py as it is: the hooks are set before it starts.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import logging
import mmap
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.machine import about_machine

JOB = {
    "config": ROOT / "demo" / "config.json",
    "max_train_samples": 1600,
    "max_validation_samples": 500,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "max_steps": 100,
    "dropout": 0.05,
    "logging_steps": 7,  # so that saves fall inside windows
    "eval_steps": 10,
    "save_steps": 10,
    "validate_steps": 20,
    "max_save_share": 1,
}
PLACES = ("start-up", "training", "saving last/", "saving best/", "evaluation", "verifying")
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}


# ---------------------------------------------------------------- in the process that is killed


def child(spec: dict, words: list[str]) -> None:
    """Run train.py; keep the name of the place in a file, and die where `spec` says."""
    with open(spec["place_file"], "r+b") as file:
        place = mmap.mmap(file.fileno(), 1)
    counts = collections.Counter()

    def audit(event, arguments):
        watched = "rename" if event == "ctypes.dlsym" else spec["watched"]
        if event not in OPERATIONS or watched not in str(arguments):
            return
        here = PLACES[place[0]]
        counts[here] += 1
        counts["any"] += 1
        if counts[spec.get("place")] == spec.get("n") and spec.get("place") in (here, "any"):
            if spec["delay"]:
                threading.Timer(spec["delay"], os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def entering(function, name_of):
        def wrapped(*arguments, **keywords):
            before, place[0] = place[0], PLACES.index(name_of(*arguments))
            try:
                return function(*arguments, **keywords)
            finally:
                place[0] = before

        return wrapped

    def reviews(data, plan, steps, *rest):
        place[0] = PLACES.index("training")
        for step, batch in zip(steps, loader(data, plan, steps, *rest), strict=True):
            digest = hashlib.sha256(batch["input_ids"].numpy().tobytes()).hexdigest()
            os.write(log, f"{step} {digest}\n".encode())
            yield batch

    import checkpoint
    import data
    import eval as evaluation

    log = os.open(spec["reviews_file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    loader, data.train_loader = data.train_loader, reviews
    checkpoint.write = entering(checkpoint.write, lambda folder, *_: f"saving {folder.name}/")
    checkpoint.newest = entering(checkpoint.newest, lambda *_: "verifying")
    evaluation.predict = entering(evaluation.predict, lambda *_: "evaluation")
    sys.addaudithook(audit)
    sys.argv = ["train.py", *words]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


# ---------------------------------------------------------------- outside


class Job:
    """One output folder, its restarts and its end."""

    def __init__(self, folder: Path, job: dict):
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.words = [f"--{name}={value}" for name, value in job.items()]
        self.words += [f"--output_dir={folder / 'run'}"]

    def start(self, **spec) -> subprocess.Popen:
        self.place_file = self.folder / "place"
        self.place_file.write_bytes(b"\0")
        spec |= {"place_file": str(self.place_file), "watched": str(self.folder / "run")}
        spec |= {"reviews_file": str(self.folder / "reviews")}
        command = [sys.executable, __file__, "--child", json.dumps(spec), *self.words]
        output = (self.folder / "output").open("ab")
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)

    def place(self) -> str:
        return PLACES[self.place_file.read_bytes()[0]]

    def run(self) -> None:
        if status := self.start().wait():
            raise SystemExit(f"status {status}:\n{(self.folder / 'output').read_text()[-3000:]}")

    def end(self) -> dict:
        """All that must be equal to the bit."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each restart
        run = self.folder / "run"
        files = [*(run / "last").glob("*.safetensors"), *(run / "best").iterdir()]
        apart = {"training_config.json", "manifest.json"}  # they name the output folder
        progress = json.loads((run / "last" / "progress.json").read_text())["progress"]
        events = EventAccumulator(str(run / "runs"), size_guidance={"scalars": 0}).Reload()
        reviews = collections.defaultdict(set)
        for line in (self.folder / "reviews").read_text().splitlines():
            step, digest = line.split()
            reviews[int(step)].add(digest)
        return {
            "files": {
                f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
                for path in files
                if path.name not in apart
            },
            "progress": progress,
            "scalars": {
                tag: [(event.step, event.value) for event in events.Scalars(tag)]
                for tag in events.Tags()["scalars"]
                if not tag.endswith("per_second")
            },
            "reviews": dict(sorted(reviews.items())),
            "left over": sorted(path.name for path in run.iterdir()),
        }


def draw(rng: random.Random, seconds: float) -> dict:
    """Where the next kill comes: two thirds at a file operation, the others at a moment, counted
    from the first step on or, a few, from the launch."""
    if rng.random() < 1 / 3:
        launch = rng.random() < 0.1
        return {"moment": rng.uniform(0, 0.3) * seconds, "from": "launch" if launch else "step"}
    place = rng.choices(("saving last/", "saving best/", "any"), (45, 25, 30))[0]
    most = {"saving last/": 50, "saving best/": 35, "any": 150}[place]
    delay = rng.choice((0, 0, rng.uniform(0, 0.02)))
    return {"place": place, "n": rng.randint(1, most), "delay": delay}


def chain(folder: Path, job: dict, specs: list[dict]) -> tuple[list, dict]:
    """(kind, place) of each kill, and the end. Fewer kills than `specs` if the run ends before."""
    import checkpoint

    runs, kills = Job(folder, job), []
    for spec in specs:
        process = runs.start(**spec)
        if "moment" in spec:
            before = ("start-up", "verifying") if spec["from"] == "step" else ()
            while runs.place() in before and process.poll() is None:
                time.sleep(0.01)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(spec["moment"])
            process.kill()
        if process.wait() == 0:
            return kills, runs.end()  # it came to its end before
        if process.returncode != -signal.SIGKILL:
            raise SystemExit((folder / "output").read_text()[-3000:])
        kills.append(("moment" if "moment" in spec else "file operation", runs.place()))
        if (best := folder / "run" / "best").exists():
            checkpoint.verify(best)  # whole at every instant
    runs.run()
    return kills, runs.end()


def run_chains(folder: Path, job: dict, kills: int, seed: int, workers: int) -> dict:
    begun = time.perf_counter()
    whole = Job(folder / "whole", job)
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
            running = [
                pool.submit(chain, folder / f"chain{number}", job, part)
                for number, part in zip(numbers, specs, strict=True)
            ]
            for number, future in zip(numbers, running, strict=True):
                chain_kills, end = future.result()
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
            kind: {place: sum(kill == (kind, place) for kill in done) for place in PLACES}
            for kind in ("file operation", "moment")
        },
        "seconds_of_an_uninterrupted_run": round(seconds, 1),
        "minutes": round((time.perf_counter() - begun) / 60, 1),
        "steps": expected["progress"]["step"],
        "seed": seed,
    }


def table(result: dict) -> str:
    """The kills by place, as the README shows them."""
    kinds = result["kills_by_kind_and_place"]
    lines = ["| Killed in | at a file operation | at a moment |", "|---|---|---|"]
    lines += [
        f"| {place} | {' | '.join(str(kinds[kind][place]) for kind in kinds)} |" for place in PLACES
    ]
    totals = [sum(places.values()) for places in kinds.values()]
    lines += [f"| all {result['kills']} | {' | '.join(map(str, totals))} |"]
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1] == "--child":
        return child(json.loads(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="scratch")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="chains side by side")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    result = run_chains(
        arguments.folder.resolve(), JOB, arguments.kills, arguments.seed, arguments.workers
    )
    result |= about_machine()
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    sys.exit(bool(result["chains_that_differ"]))


if __name__ == "__main__":
    main()
