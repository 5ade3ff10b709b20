"""What saving costs: the share of a run's wall time that goes into `last/` and `best/`.

    python bench/saving.py --json FILE FLAGS OF train.py

Counts from the first step to the end of the last, evaluations left out, so that the share is the
largest it can be. The share by default is one write of last/ against 200 steps and itself.
"""

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import checkpoint
import train
from bench.machine import about_machine
from config import Config, parse
from processes import run_command


def main() -> None:
    at = sys.argv.index("--json")
    path, flags = Path(sys.argv[at + 1]), sys.argv[1:at] + sys.argv[at + 2 :]
    spent = {"last": [], "best": [], "evaluation": [], "training": []}

    def timed(function, name_of):
        def wrapped(*arguments, **keywords):
            begun = time.perf_counter()
            result = function(*arguments, **keywords)
            spent[name_of(*arguments)].append(time.perf_counter() - begun)
            return result

        return wrapped

    checkpoint.write = timed(checkpoint.write, lambda folder, *_: folder.name)
    train.evaluate = timed(train.evaluate, lambda *_: "evaluation")
    loop = train.train
    train.train = timed(loop, lambda *_: "training")
    config = parse(Config, flags)
    train.main(flags)

    stepping = sum(spent["training"]) - sum(spent["evaluation"])
    first, *saves = spent["last"]  # the first is before the first step
    steps = json.loads((Path(config.output_dir) / "last/progress.json").read_text())["progress"]
    seconds_a_step = (stepping - sum(saves) - sum(spent["best"])) / steps["step"]
    write = statistics.median(saves)
    result = {
        "seconds_a_write_of_last": [round(seconds, 3) for seconds in [first, *saves]],
        "seconds_a_write_of_best": [round(seconds, 3) for seconds in spent["best"]],
        "seconds_a_step": round(seconds_a_step, 4),
        "steps": steps["step"],
        "save_steps": config.save_steps,
        "share_by_default": write / (write + Config().save_steps * seconds_a_step),
        "share_of_this_run": (sum(saves) + sum(spent["best"])) / stepping,
        "flags": flags,
        **about_machine(),
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run_command(main)
