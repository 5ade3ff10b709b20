"""An Optuna study of train.py's flags, kept in SQLite: what is tried next, and what came of it.

In: ranges of flags; the folder of a search. Out: values for a trial; a report and two pages.
Independent of: how a trial is run.
"""

import contextlib
import shlex
import sqlite3
import warnings
from pathlib import Path
from typing import get_args

import optuna
from optuna import visualization
from optuna.trial import Trial, TrialState

from runtime.flags import UserError, convert, require_unchanged
from runtime.monitor import name_here, python_here

# Flags that may differ between trials whose validations are compared: those of what is learnt, and
# how; not those of the texts, of the metric, or of the machine.
SEARCHED = ("model", "revision", "max_length", "truncation", "attention_dropout", "dropout")
SEARCHED += ("num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate")
SEARCHED += ("gradient_accumulation_steps", "train_sampling_strategy", "lr_scheduler_type")
SEARCHED += ("warmup_steps", "class_weights", "label_smoothing_factor", "weight_decay")
SEARCHED += ("max_grad_norm", "seed")
NAME = "search"  # of the study
TRAIN = Path(__file__).resolve().parent.parent / "train.py"
STATES = {
    "finished": TrialState.COMPLETE,
    "ended early": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}
PAGES = {
    "parallel.html": visualization.plot_parallel_coordinate,
    "importances.html": visualization.plot_param_importances,
}
FEW = "; fewer than ten trials say little"
optuna.logging.set_verbosity(optuna.logging.WARNING)


def read_ranges(texts, fields: dict) -> dict:
    """Optuna's distribution of each flag. Raises `UserError` for a flag that is there twice."""
    ranges = [read_range(text, fields) for text in texts]
    names = [name for name, _ in ranges]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--space {twice[0]}=...: given twice; give it once")
    return dict(ranges)


def read_range(text: str, fields: dict):
    """(The flag, its distribution.) Raises `UserError` unless train.py takes the values, which is
    tried at the ends and in between."""
    name, _, values = text.partition("=")
    if name not in SEARCHED or not values:
        raise UserError(
            f"--space {text}: give FLAG=LOW..HIGH or FLAG=A,B,C, of {', '.join(SEARCHED)}"
        )
    of = fields[name]
    is_range = ".." in values and not {str, bool} & {of.type, *get_args(of.type)}
    words = values.split("..", 1) if is_range else values.split(",")
    try:
        if not is_range:  # none: what is not given, such as no --class_weights
            none = [None if word == "none" and of.default is None else word for word in words]
            ends = [convert(of, word) for word in none]
            return name, optuna.distributions.CategoricalDistribution(ends)
        ends = [convert(of, word) for word in words]
        if not ends[0] < ends[1]:
            raise ValueError("two numbers, the lower one first, or a list")
        if all(isinstance(end, int) for end in ends):
            return name, optuna.distributions.IntDistribution(*ends, log=ends[0] > 0)
        for share in (0.3719, 0.618):  # --warmup_steps takes 0.1 and 10, but not 3.719
            convert(of, ends[0] + share * (ends[1] - ends[0]))
    except ValueError as error:
        raise UserError(f"--space {text}: give {error}") from None
    return name, optuna.distributions.FloatDistribution(*ends, log=ends[0] > 0)


def open_study(config, about: dict):
    """A new study, or the one in --output_dir. Raises `UserError` if that had other flags, or if
    what is there is not of a search."""
    output = Path(config.output_dir).resolve()
    file = output / "study.db"
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not file.exists() and (there := [name for name in PAGES if (output / name).exists()]):
            raise UserError(f"--output_dir {output}: holds {there[0]} already; give another folder")
        file.touch()
    except OSError as error:
        raise UserError(f"--output_dir {output}: {error.strerror}; give another folder") from None
    storage = f"sqlite:///{file}"
    require_ours(file, storage)
    study = optuna.create_study(
        storage=storage,
        study_name=NAME,
        direction="minimize" if config.metric_for_best_model == "loss" else "maximize",
        pruner=optuna.pruners.MedianPruner() if config.prune else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    require_same(study, about, f"the search in {output}")
    return study


def require_ours(file: Path, storage: str) -> None:
    """Raises `UserError` for a database of anything else, which stays as it is. A search that was
    killed in its first seconds leaves an empty file, or tables without a study; one that was killed
    in a write leaves a journal, which SQLite needs mode=rw to undo."""
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True)) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            raise
        tables = ["unknown"]
    ours = "studies" in tables and optuna.get_all_study_names(storage) in ([], [NAME])
    if tables and not ours:
        raise UserError(f"{file}: is not of a search; give another --output_dir")


def require_same(study, about: dict, made: str) -> None:
    """Raises `UserError` if the study knows one of these otherwise; adds those that it lacks."""
    known = study.user_attrs
    require_unchanged(about | known, about, about.keys() - {"space", "texts"}, made)
    for name in about.keys() - known.keys():
        study.set_user_attr(name, about[name])


def next_trial(study, trials: int, busy: set[int]):
    """One that a killed process has left, else a new one, else None. `busy`: numbers to leave."""
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if left.number not in busy:
            return Trial(study, left._trial_id)
    return study.ask() if len(study.trials) < trials else None


def draw_values(trial, space: dict, seed: int) -> dict:
    """A value for each flag, the same after a kill in here: each has a seed of its own, and is
    drawn by itself."""
    values = {}
    for index, (name, of) in enumerate(space.items()):
        own = (seed + 1000 * trial.number + index) % 2**32
        trial.study.sampler = optuna.samplers.TPESampler(
            seed=own, n_startup_trials=5, multivariate=False
        )
        values[name] = trial._suggest(name, of)
    return values


def report(study, config, flags: dict) -> None:
    """Lines on the trials and the best of them, and two pages. `flags`: those that were given."""
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not done:
        raise UserError("no trial came to its end; give other ranges, and another --output_dir")
    states = [trial.state for trial in trials]
    counts = {word: states.count(state) for word, state in STATES.items() if state in states}
    print("trials: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    output, best = Path(config.output_dir), study.best_trial
    written = dict(list(PAGES.items())[: len(done)])  # importances need two
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few trials; the line below says so
        for name, plot in written.items():
            plot(study).write_html(output / name)
    pages = " and ".join(str(output / name) for name in written)
    print(f"written: {pages}{FEW * (len(done) < 10)}")
    given = (flags | best.params).items()
    words = [f"--{name}={value}" for name, value in given if value is not None]
    print(
        f"best: trial {best.number}, validation {config.metric_for_best_model} {best.value:.4f}, "
        f"in {output / f'trial_{best.number}' / 'best'}; chosen from {len(done)} by the same "
        "texts, so expect less on others",
        f"{python_here()} {name_here(TRAIN)} {shlex.join(words)} --output_dir=best_trial",
        sep="\n",
    )
