"""A search over flags of train.py, by Optuna. Each trial is an ordinary run in its own folder.

    pip install -r requirements-search.txt
    python recipes/search.py --trials 12 --output_dir searched --validate_steps 200
        --space learning_rate=1e-5..3e-4 --space seed=1,2,3 FLAGS OF train.py

The values of a range above 0 are spread by their logarithm. Trials are compared by the validation
metric (--metric_for_best_model); one that is behind the median of the others at a validation ends
there. The same command goes on after a stop or a kill, first with the trial that was running, and
ends with the same trials; in further terminals it works beside. More --trials go on with a search
that has ended.

In: labelled texts, flags, ranges. Out: study.db, trial_0/, trial_1/, ... with best/ in each,
parallel.html, importances.html, the best command line. Independent of: the test split.
"""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import Config
from runtime.flags import AT_LEAST_1, UserError, flag, parse, parse_or_exit


@dataclasses.dataclass(frozen=True)
class SearchConfig(Config):
    """A search over flags. Flags are those of train.py and a few more."""

    space: tuple[str, ...] = flag((), "FLAG=LOW..HIGH, or FLAG=A,B,C; may be repeated")
    trials: int = flag(12, "trials in all", AT_LEAST_1)
    prune: bool = flag(True, "end trials that are behind the median at a validation")


if __name__ == "__main__":
    GIVEN = parse_or_exit(SearchConfig)  # before the imports below, which take seconds

from accelerate.state import AcceleratorState

from runtime.folders import Busy, remove_folder
from runtime.monitor import Diverged
from runtime.processes import run_command
from train import IF_OUT_OF_MEMORY, fine_tune, train

SPACE = ("learning_rate=1e-5..3e-4", "warmup_steps=0.0..0.2", "weight_decay=0.0..0.1")
MISSING = "optuna and plotly are needed; pip install -r requirements-search.txt"


class Pruned(Exception):
    """A trial is behind the others."""


def search(config: SearchConfig) -> int:
    """The exit status: 0, or that of the trial that was stopped."""
    if not all(map(importlib.util.find_spec, ("optuna", "plotly"))):
        raise UserError(MISSING)
    from recipes.study import draw_values, next_trial, open_study, read_range, report

    space = dict(map(read_range, config.space or SPACE))
    study, busy = open_study(config, space), set()
    while (trial := next_trial(study, config.trials, busy)) is not None:
        try:
            values = draw_values(trial, space, config.seed)
            if status := run_trial(trial, config, values):
                return status
        except Busy:  # in another terminal
            busy.add(trial.number)
    report(study, config)
    return 0


def run_trial(trial, config: SearchConfig, values: dict) -> int:
    """The exit status of train.py. Unless it was stopped, the study has what came of it."""
    from optuna.trial import TrialState

    folder = Path(config.output_dir) / f"trial_{trial.number}"
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    flags |= values | {"output_dir": str(folder)}
    AcceleratorState._reset_state()  # each trial has an Accelerator of its own
    value, state = None, None
    try:
        if status := fine_tune(Config(**flags), train=lambda run: train_and_tell(run, trial)):
            return status
        best = json.loads((folder / "best" / "validation.json").read_text(encoding="utf-8"))
        value = best[config.metric_for_best_model]
    except Pruned:
        state = TrialState.PRUNED
    except Diverged as error:
        print(f"trial {trial.number}: {error.args[0]}")
        state = TrialState.FAIL
    trial.study.tell(trial.number, value, state)
    remove_folder(folder / "last")  # twice the room of best/, and nothing is left to resume
    return 0


def train_and_tell(run, trial) -> None:
    """`train`, and each validation into the study. Raises `Pruned` if that is the trial's end."""
    write, metric = run.monitor.write_scores, run.config.metric_for_best_model

    def tell(name: str, scores, step: int) -> None:
        write(name, scores, step)
        if name == "eval":
            trial.report(getattr(scores, metric), step)
            if trial.should_prune():
                raise Pruned

    run.monitor.write_scores = tell
    train(run)


def main(argv=None) -> int:
    return search(parse(SearchConfig, argv))


if __name__ == "__main__":
    run_command(lambda: search(GIVEN), IF_OUT_OF_MEMORY)
