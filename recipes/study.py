"""An Optuna study of train.py's flags, kept in SQLite: what is tried next, and what came of it.

In: ranges of flags; the folder of a search. Out: values for a trial; a report and two pages.
Independent of: how a trial is run.
"""

import dataclasses
import shlex
from pathlib import Path

import optuna
from optuna import visualization
from optuna.trial import Trial, TrialState

from config import Config
from runtime.flags import UserError, convert

OF_TRAINING = {field.name: field for field in dataclasses.fields(Config)}
STATES = {
    "finished": TrialState.COMPLETE,
    "ended early": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
    "running": TrialState.RUNNING,
}
optuna.logging.set_verbosity(optuna.logging.WARNING)


def read_range(text: str):
    """(The flag, Optuna's distribution.) Raises `UserError` unless train.py takes the values."""
    name, _, values = text.partition("=")
    field = OF_TRAINING.get(name)
    if field is None or name == "output_dir" or not values:
        raise UserError(f"--space {text}: give FLAG=LOW..HIGH or FLAG=A,B,C, of a flag of train.py")
    low, dots, high = values.partition("..")
    try:
        ends = [convert(field, value) for value in ((low, high) if dots else values.split(","))]
    except ValueError as error:
        raise UserError(f"--space {text}: --{name} takes {error}") from None
    if not dots:
        return name, optuna.distributions.CategoricalDistribution(ends)
    if isinstance(ends[0], (bool, str)) or not ends[0] < ends[1]:
        raise UserError(f"--space {text}: give two numbers, the lower one first, or a list")
    whole = all(isinstance(end, int) for end in ends)
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    return name, kind(*ends, log=ends[0] > 0)


def open_study(config, space: dict):
    """A new study, or the one in --output_dir. Raises `UserError` if that had other flags."""
    output = Path(config.output_dir).resolve()
    output.mkdir(parents=True, exist_ok=True)
    about = {
        name: getattr(config, name)
        for name, field in OF_TRAINING.items()
        if field.metadata["changes_result"]
    }
    about |= {"space": {name: repr(of) for name, of in space.items()}, "prune": config.prune}
    study = optuna.create_study(
        storage=f"sqlite:///{output / 'study.db'}",
        study_name="search",
        direction="minimize" if config.metric_for_best_model == "loss" else "maximize",
        pruner=optuna.pruners.MedianPruner() if config.prune else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    before = study.user_attrs.get("about", about)
    if differs := [name for name in about if before.get(name) != about[name]]:
        raise UserError(
            f"--output_dir {config.output_dir}: holds a search with other {', '.join(differs)}; "
            "give those, or another folder"
        )
    study.set_user_attr("about", about)
    return study


def next_trial(study, trials: int, busy: set[int]):
    """One that a killed process has left, else a new one, else None. `busy`: numbers to leave."""
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if left.number not in busy:
            return Trial(study, left._trial_id)
    return study.ask() if len(study.trials) < trials else None


def draw_values(trial, space: dict, seed: int) -> dict:
    """A value for each flag, the same after a kill in here: each has a seed of its own."""
    values = {}
    for index, (name, of) in enumerate(space.items()):
        own = (seed + 1000 * trial.number + index) % 2**32
        trial.study.sampler = optuna.samplers.TPESampler(seed=own, n_startup_trials=5)
        values[name] = trial._suggest(name, of)
    return values


def report(study, config) -> None:
    """Lines on the trials and the best of them, and two pages."""
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not done:
        raise UserError("no trial came to its end; give other ranges, and another --output_dir")
    states = [trial.state for trial in trials]
    counts = {word: states.count(state) for word, state in STATES.items() if state in states}
    print("trials: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    output, best = Path(config.output_dir), study.best_trial
    pages = {"parallel.html": visualization.plot_parallel_coordinate}
    if len(done) > 1:
        pages["importances.html"] = visualization.plot_param_importances
    for name, plot in pages.items():
        plot(study).write_html(output / name)
    given = {name: getattr(config, name) for name in OF_TRAINING}
    flags = {name: value for name, value in given.items() if value != getattr(Config(), name)}
    words = [f"--{k}={v}" for k, v in (flags | best.params).items() if k != "output_dir"]
    print(
        f"best: trial {best.number}, validation {config.metric_for_best_model} {best.value:.4f}, "
        f"in {output / f'trial_{best.number}' / 'best'}; chosen from {len(done)} by the same "
        "texts, so expect less on others",
        f"train.py {shlex.join(words)}",
        sep="\n",
    )
