"""recipes/search.py: a search whose trials are ordinary runs. Needs requirements-search.txt."""

import json
import os

import pytest
from conftest import ROOT, fresh_state, make_rows, write_csv
from events import before_update, dying_at

pytest.importorskip("optuna")

from recipes import search, study
from recipes.search import SearchConfig
from runtime.flags import UserError
from runtime.folders import lock_folder

SMALL = {
    "max_length": 32,
    "per_device_train_batch_size": 8,
    "max_steps": 12,
    "validate_steps": 4,
    "save_steps": 4,
    "eval_steps": 100,
    "num_threads": 1,
    "max_save_share": 1.0,
    "trials": 4,
}
SPACE = ["--space=learning_rate=1e-4..1e-2", "--space=warmup_steps=0.0..0.3", "--space=seed=1,2"]


@pytest.fixture
def command(tiny, tmp_path):
    """command(flag=value, ...) runs the recipe; returns its folder. There is no test split."""
    data = write_csv(tmp_path / "data" / "train.csv", make_rows(90, seed=1)).parent

    def run(**flags):
        given = {"model": tiny, "dataset": data} | SMALL | {"output_dir": tmp_path / "out"} | flags
        fresh_state()
        assert search.main([*(f"--{name}={value}" for name, value in given.items()), *SPACE]) == 0
        return given["output_dir"]

    return run


def trials_of(folder) -> list[tuple]:
    import optuna

    found = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")
    return [
        (trial.number, trial.params, trial.state, trial.value, trial.intermediate_values)
        for trial in found.trials
    ]


def test_a_search_that_is_killed_five_times_ends_with_the_same_trials(command, tmp_path, capsys):
    """And prints the same best command line. Red: one sampler for the whole search; trials that
    run left alone by next_trial."""
    whole = command(output_dir=tmp_path / "whole")
    expected = capsys.readouterr().out.splitlines()[-1]
    for step in (1, 7, 11, 3, 9):
        with dying_at(step):
            command()
    assert trials_of(command()) == trials_of(whole)
    assert capsys.readouterr().out.splitlines()[-1] == expected
    assert len(trials_of(whole)) == 4
    assert len({repr(trial[1]) for trial in trials_of(whole)}) == 4


def test_the_best_trial_is_that_of_the_best_validation(command, capsys):
    """Its flags are on the printed line, its model in its folder, and no last/ is left. Red: the
    direction; `remove_folder` left out."""
    out = command()
    scores = {
        path.parent.parent.name: json.loads(path.read_text())["accuracy"]
        for path in out.glob("trial_*/best/validation.json")
    }
    *_, said, line = capsys.readouterr().out.splitlines()
    finished = [trial for trial in trials_of(out) if trial[2].name == "COMPLETE"]
    number, params, _, value, _ = max(finished, key=lambda trial: (trial[3], -trial[0]))
    assert f"best: trial {number}, validation accuracy {value:.4f}" in said
    assert value == scores[f"trial_{number}"]
    assert all(f"--{name}={value}" in line for name, value in params.items())
    assert not list(out.glob("trial_*/last"))
    for page in ("parallel.html", "importances.html"):
        assert "<html" in (out / page).read_text(encoding="utf-8")


def test_a_trial_that_is_behind_ends_at_that_validation(command, monkeypatch):
    """Red: should_prune not asked; `Pruned` caught by train.py as its own."""
    import optuna

    monkeypatch.setattr(
        optuna.pruners.MedianPruner, "prune", lambda self, study, trial: trial.number == 1
    )
    trials = trials_of(command(trials=3))
    assert [trial[2].name for trial in trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert [list(trial[4]) for trial in trials] == [[4, 8, 12], [4], [4, 8, 12]]


def test_a_trial_that_diverges_is_one_of_the_trials(command, capsys):
    """Red: `Diverged` not caught."""
    trial = iter(range(100))

    def spoil(optimizer, update):
        if update == 2 and next(trial) == 0:
            optimizer.param_groups[0]["params"][0].data[0] = float("nan")

    with before_update(spoil):
        out = command(trials=2)
    assert [each[2].name for each in trials_of(out)] == ["FAIL", "COMPLETE"]
    assert "trial 0: a loss, gradient or weight was NaN" in capsys.readouterr().out


def test_a_trial_of_another_terminal_is_left_to_it(command, tmp_path):
    """Red: `Busy` not caught; `busy` not filled."""
    with dying_at(3):
        command(trials=2)
    with lock_folder(tmp_path / "out" / "trial_0"):
        command(trials=2)
    assert [trial[2].name for trial in trials_of(tmp_path / "out")] == ["RUNNING", "COMPLETE"]
    command(trials=2)
    assert {trial[2].name for trial in trials_of(tmp_path / "out")} == {"COMPLETE"}


def test_other_flags_are_another_search(command):
    """Red: `about` of the first search replaced without a look."""
    command(trials=1)
    with pytest.raises(UserError, match="holds a search with other max_steps, weight_decay; give"):
        command(trials=1, max_steps=8, weight_decay=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate=1..2", "of a flag of train.py"),
        ("learning_rate", "FLAG=LOW..HIGH"),
        ("learning_rate=0.1..0.01", "the lower one first"),
        ("learning_rate=0..1", "--learning_rate takes a number above 0"),
        ("truncation=head..tail", "give two numbers"),
        ("truncation=head,middle", "--truncation takes one of head, tail, head_tail"),
        ("output_dir=a,b", "of a flag of train.py"),
    ],
)
def test_a_range_is_checked_before_anything_runs(text, message):
    """As train.py checks the flag. Red: `convert` left out of read_range."""
    with pytest.raises(UserError, match=message):
        study.read_range(text)


def test_the_search_names_no_test_split():
    """Red: `config.test_split` in either file."""
    for name in ("search", "study"):
        source = (ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8")
        assert source.count("test") == source.count("the\ntest split") + source.count("test split")


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    """Red: `import optuna` at the top of search.py."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-search\.txt"):
        search.search(SearchConfig(output_dir=os.devnull))
