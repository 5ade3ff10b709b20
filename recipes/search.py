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
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import Config
from runtime.flags import AT_LEAST_1, UserError, changed_flags, flag, parse, parse_or_exit

SPACE = ("learning_rate=1e-5..3e-4", "warmup_steps=0.0..0.2", "weight_decay=0.0..0.1")


@dataclasses.dataclass(frozen=True)
class SearchConfig(Config):
    """A search over flags. Flags are those of train.py and a few more."""

    space: tuple[str, ...] = flag(
        (), f"FLAG=LOW..HIGH, or FLAG=A,B,C; may be repeated; default: {', '.join(SPACE)}"
    )
    trials: int = flag(12, "trials in all", AT_LEAST_1)
    prune: bool = flag(True, "end trials that are behind the median at a validation")


if __name__ == "__main__":
    GIVEN = parse_or_exit(SearchConfig)  # before the imports below, which take seconds

from runtime.folders import Busy
from runtime.processes import run_command
from train import IF_OUT_OF_MEMORY

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


def search(config: SearchConfig) -> int:
    """The exit status: 0, or that of the trial that was stopped."""
    if not all(map(importlib.util.find_spec, ("optuna", "plotly"))):
        raise UserError("optuna and plotly are missing; pip install -r requirements-search.txt")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a search runs in one process; start it again in each further terminal")
    if config.overwrite:
        raise UserError("--overwrite: is not for a search; give another --output_dir")
    from recipes.study import draw_values, next_trial, open_study, read_ranges, report
    from recipes.trial import require_one_split, run_trial

    space = read_ranges(config.space or SPACE, FIELDS)
    require_one_split(config, space)
    flags = {name: getattr(config, name) for name in FIELDS if name != "output_dir"}
    fixed = {n: flags[n] for n in flags if FIELDS[n].metadata["changes_result"] or n in BATCH}
    shown = {"space": [f"{name}: {of}" for name, of in space.items()], "prune": config.prune}
    study, busy = open_study(config, fixed | shown), set()
    while (trial := next_trial(study, config.trials, busy)) is not None:
        folder = Path(config.output_dir) / f"trial_{trial.number}"
        values = flags | draw_values(trial, space, config.seed)
        try:
            if status := run_trial(trial, Config(**values | {"output_dir": str(folder)})):
                return status
        except Busy:  # in another terminal
            busy.add(trial.number)
    report(study, config, {n: v for n, v in changed_flags(config).items() if n in flags})
    return 0


def main(argv=None) -> int:
    return search(parse(SearchConfig, argv))


if __name__ == "__main__":
    run_command(lambda: search(GIVEN), IF_OUT_OF_MEMORY)
