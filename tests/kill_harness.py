"""Kill train.py at a chosen point, run the same command again, and read what it ends in.

For tests/test_faults.py and bench/kill.py. `Job` is one output folder and the command for it;
`chain` kills and restarts a job and lets it run to its end. What `Job.end` returns must be equal to
the bit to that of a run that was never killed.

The killed process is this file with --child, which sets hooks and then runs train.py as it is. A
kill comes at the n-th file operation (a Python audit event) in a place of the run, on request a few
milliseconds later, to hit the writes between two operations; or after some seconds.
"""

import collections
import contextlib
import hashlib
import json
import logging
import mmap
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
JOB = {
    "config": ROOT / "configs" / "demo.json",
    "max_train_samples": 1600,
    "max_validation_samples": 500,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "max_steps": 100,
    "dropout": 0.05,
    "logging_steps": 7,  # so that saves fall between scalars
    "eval_steps": 10,
    "save_steps": 10,
    "validate_steps": 20,
    "max_save_share": 1,
}
PLACES = ("start-up", "training", "saving last/", "saving best/", "evaluation", "verifying")


# ---------------------------------------------------------------- the process that is killed


def child(spec: dict, flags: list[str]) -> None:
    """Run train.py, and die where `spec` says."""
    sys.path.insert(0, str(ROOT))
    place = Place(spec["place_file"])
    patch(place, spec["batches_file"])
    sys.addaudithook(make_killer(place, spec))
    sys.argv = ["train.py", *flags]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


class Place:
    """Where the run is: an index of `PLACES`, in a file that survives the kill."""

    def __init__(self, path: str):
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 1)

    @property
    def name(self) -> str:
        return PLACES[self.memory[0]]

    @name.setter
    def name(self, name: str) -> None:
        self.memory[0] = PLACES.index(name)

    def inside(self, function, name_of):
        """`function`, with the place set to `name_of(its arguments)` while it runs."""

        def wrapped(*arguments, **options):
            before, self.name = self.name, name_of(*arguments)
            try:
                return function(*arguments, **options)
            finally:
                self.name = before

        return wrapped


def patch(place: Place, batches_file: str) -> None:
    """Make the core's functions tell their place, and write a checksum of each batch.

    They are replaced where they are defined, before the modules that import them by name.
    """
    assert not {"train", "runtime.checkpoint"} & set(sys.modules)
    import data
    import model
    from runtime import folders

    log = os.open(batches_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    loader = data.train_loader

    def logged(rows, plan, steps, *rest):
        place.name = "training"
        for step, batch in zip(steps, loader(rows, plan, steps, *rest), strict=True):
            digest = hashlib.sha256(batch["input_ids"].numpy().tobytes()).hexdigest()
            os.write(log, f"{step} {digest}\n".encode())
            yield batch

    data.train_loader = logged
    model.predict = place.inside(model.predict, lambda *_: "evaluation")
    folders.newest_whole = place.inside(folders.newest_whole, lambda *_: "verifying")
    saving = place.inside(folders.write_folder, lambda folder, *_: f"saving {folder.name}/")
    folders.write_folder = saving


OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}


def make_killer(place: Place, spec: dict):
    """An audit hook: SIGKILL at file operation number spec["n"] in spec["place"] ("any": anywhere),
    or spec["delay"] seconds after it. Counted are operations inside the output folder, and looking
    up the system call that exchanges two folders."""
    counts = collections.Counter()
    wanted, number, delay = spec.get("place"), spec.get("n"), spec.get("delay")

    def audit(event, arguments):
        watched = "rename" if event == "ctypes.dlsym" else spec["watched"]
        if event not in OPERATIONS or watched not in str(arguments):
            return
        here = place.name
        counts[here] += 1
        counts["any"] += 1
        if wanted not in (here, "any") or counts[wanted] != number:
            return
        if delay:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    return audit


# ---------------------------------------------------------------- the process that kills


def new_interpreter(words: list[str], log: Path) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=file, stderr=file)


class Job:
    """One output folder, made anew, and the command that trains in it.

    `spawn(words, log)` starts `python *words` in a process; default: a new interpreter.
    """

    def __init__(self, folder: Path, job: dict, spawn=new_interpreter):
        self.spawn = spawn
        self.folder, self.output = folder, folder / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.place_file, self.log = folder / "place", folder / "output"
        self.flags = [f"--{name}={value}" for name, value in job.items()]
        self.flags += [f"--output_dir={self.output}"]

    def start(self, **spec):
        self.place_file.write_bytes(b"\0")
        spec |= {"place_file": str(self.place_file), "watched": str(self.output)}
        spec |= {"batches_file": str(self.folder / "batches")}
        return self.spawn([__file__, "--child", json.dumps(spec), *self.flags], self.log)

    def place(self) -> str:
        """Where the run is, or was when it was killed."""
        return PLACES[self.place_file.read_bytes()[0]]

    def run(self) -> None:
        """Run the command to its end."""
        if status := self.start().wait():
            raise SystemExit(f"status {status}:\n{self.log.read_text()[-3000:]}")

    def kill(self, spec: dict) -> int:
        """Run the command until it is killed as `spec` says, or ends; its status."""
        process = self.start(**spec)
        if "moment" in spec:
            before = ("start-up", "verifying") if spec["from"] == "step" else ()
            while self.place() in before and process.poll() is None:
                time.sleep(0.01)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(spec["moment"])
            process.kill()
        return process.wait()

    def end(self) -> dict:
        """What must be equal to the bit: weights, optimizer, progress, best/, scalars, batches."""
        files = [*(self.output / "last").glob("*.safetensors"), *(self.output / "best").iterdir()]
        names_the_folder = {"training_config.json", "manifest.json"}
        progress = json.loads((self.output / "last" / "progress.json").read_text())["progress"]
        batches = collections.defaultdict(set)
        for line in (self.folder / "batches").read_text().splitlines():
            step, digest = line.split()
            batches[int(step)].add(digest)
        return {
            "files": {
                f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
                for path in files
                if path.name not in names_the_folder
            },
            "progress": progress,
            "scalars": self.scalars(),
            "batches": dict(sorted(batches.items())),
            "left over": sorted(path.name for path in self.output.iterdir()),
        }

    def scalars(self) -> dict[str, list]:
        """All but those that depend on the clock."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of each restart
        events = EventAccumulator(str(self.output / "runs"), size_guidance={"scalars": 0}).Reload()
        return {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
            if not tag.endswith("per_second")
        }


def chain(
    folder: Path, job: dict, specs: list[dict], spawn=new_interpreter
) -> tuple[list[tuple[str, str]], dict]:
    """(kind and place of each kill, `Job.end`): kill a run as each of `specs` says, then finish it.

    A spec is {"place", "n", "delay"}, see `make_killer`; or {"moment", "from"}: seconds from the
    "launch" or from the first "step". There are fewer kills if the run ends before. After each,
    best/ must be whole.
    """
    from runtime.folders import verify_folder

    runs, kills = Job(folder, job, spawn), []
    for spec in specs:
        status = runs.kill(spec)
        if status == 0:
            return kills, runs.end()
        if status != -signal.SIGKILL:
            raise SystemExit(runs.log.read_text()[-3000:])
        kills.append(("moment" if "moment" in spec else "file operation", runs.place()))
        if (best := runs.output / "best").exists():
            verify_folder(best)
    runs.run()
    return kills, runs.end()


if __name__ == "__main__":
    _, _, spec, *flags = sys.argv
    child(json.loads(spec), flags)
