"""recipes/search.py: a search whose trials are ordinary runs. Needs requirements-search.txt."""

import json
import os
import sqlite3

import pytest
from conftest import ROOT, fresh_state, make_rows, write_csv
from events import before_update, dying_at

pytest.importorskip("optuna")

from optuna.trial import Trial

from recipes import search, study
from recipes.search import SearchConfig
from runtime import checkpoint
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

    def run(space=SPACE, **flags):
        given = {"model": tiny, "dataset": data} | SMALL | {"output_dir": tmp_path / "out"} | flags
        fresh_state()
        assert search.main([*(f"--{name}={value}" for name, value in given.items()), *space]) == 0
        return given["output_dir"]

    return run


def trials_of(folder) -> list[tuple]:
    import optuna

    found = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")
    return [
        (trial.number, trial.params, trial.state, trial.value, trial.intermediate_values)
        for trial in found.trials
    ]


def test_a_search_that_is_killed_ends_with_the_same_trials(command, tmp_path, capsys, monkeypatch):
    """In trainings, and between the values of a trial that follow from those before it. And it
    prints the same best command line. Red: one sampler for the whole search, or multivariate=True;
    trials that run left alone by next_trial."""
    whole = command(output_dir=tmp_path / "whole", trials=7)
    expected = capsys.readouterr().out.splitlines()[-1]
    for step in (1, 7, 11, 3, 9):
        with dying_at(step):
            command(trials=7)
    suggest, calls = Trial._suggest, []

    def die(trial, name, of):
        calls.append(name)
        if trial.number == 6 and name == "warmup_steps" and calls.count(name) < 9:
            raise KeyboardInterrupt
        return suggest(trial, name, of)

    monkeypatch.setattr(Trial, "_suggest", die)
    with pytest.raises(KeyboardInterrupt):
        command(trials=7)
    monkeypatch.setattr(Trial, "_suggest", suggest)
    assert trials_of(command(trials=7)) == trials_of(whole)
    assert capsys.readouterr().out.splitlines()[-1] == expected
    assert len({repr(trial[1]) for trial in trials_of(whole)}) == 7


@pytest.mark.filterwarnings("error:The reported value is ignored")
def test_a_validation_that_is_made_again_is_reported_once(command, monkeypatch):
    """By a trial that died between its validation and its save. Red: reported again, of which
    Optuna warns."""
    save = checkpoint.save_last

    def die(run):
        if run.progress.step == 8:
            raise KeyboardInterrupt
        save(run)

    monkeypatch.setattr(checkpoint, "save_last", die)
    with pytest.raises(KeyboardInterrupt):
        command(trials=1)
    monkeypatch.setattr(checkpoint, "save_last", save)
    assert sorted(trials_of(command(trials=1))[0][-1]) == [4, 8, 12]


def test_the_best_trial_is_that_of_the_best_validation(command, capsys):
    """Its flags are on the printed line, its model in its folder, and no last/ is left. Red: the
    direction; `remove_folder` left out; no line before a trial."""
    out = command()
    scores = {
        path.parent.parent.name: json.loads(path.read_text())["accuracy"]
        for path in out.glob("trial_*/best/validation.json")
    }
    *earlier, said, line = capsys.readouterr().out.splitlines()
    assert any(line.startswith("trial 0: --learning_rate ") for line in earlier)
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


def test_a_flag_is_searched_once():
    """Red: the dict made of the list without a look."""
    with pytest.raises(UserError, match=r"seed=\.\.\.: given twice"):
        study.read_ranges(["seed=1,2", "seed=3,4"], search.FIELDS)


def test_other_flags_or_texts_are_another_search(command, tmp_path):
    """Red: `about` without a look at the first search's; the texts left out."""
    command(trials=1)
    with pytest.raises(UserError, match=r"--max_steps 12, not 8, --weight_decay 0\.01, not 0\.5;"):
        command(trials=1, max_steps=8, weight_decay=0.5)
    with pytest.raises(UserError, match="with --per_device_train_batch_size 8, not 4; give"):
        command(trials=1, per_device_train_batch_size=4)
    write_csv(tmp_path / "data" / "train.csv", make_rows(99, seed=1))
    with pytest.raises(UserError, match="with other texts; give"):
        command(trials=2)


def test_other_soft_labels_are_other_texts(command, tmp_path):
    """Red: `soft` left out of digest_texts."""
    header = ("text", "label", "p_negative", "p_positive")
    for first, second in ("0.9", "0.1"), ("0.6", "0.4"):
        rows = [(*row, first, second) for row in make_rows(90, seed=1)]
        soft = write_csv(tmp_path / "soft.csv", rows, header)
        if first == "0.9":
            command(dataset=soft, soft_labels="p_", trials=1)
    with pytest.raises(UserError, match="with other texts; give"):
        command(dataset=soft, soft_labels="p_", trials=2)


@pytest.mark.parametrize("tables", [False, True])
def test_a_search_that_was_killed_in_its_first_second_begins_anew(command, tmp_path, tables):
    """Before the tables of its study, or after them. Red: has to have a study; `tables and` left
    out of require_ours."""
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "study.db"
    file.touch()
    if tables:
        study.optuna.storages.RDBStorage(f"sqlite:///{file}")
    assert len(trials_of(command(trials=1))) == 1


def test_what_is_no_search_is_left_alone(command, tmp_path):
    """To the byte. Red: the checks in open_study left out; Optuna asked for its studies first,
    which makes its tables."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "parallel.html").write_text("mine")
    with pytest.raises(UserError, match=r"holds parallel\.html already"):
        command(output_dir=tmp_path / "a")
    (tmp_path / "b").mkdir()
    file = tmp_path / "b" / "study.db"
    sqlite3.connect(file).execute("create table mine (x)").connection.close()
    for _ in range(2):
        before = file.read_bytes()
        with pytest.raises(UserError, match="is not of a search; give another"):
            command(output_dir=tmp_path / "b")
        assert file.read_bytes() == before
        file.write_bytes(b"no database")
    (tmp_path / "c").write_text("a file")
    with pytest.raises(UserError, match="File exists; give another folder"):
        command(output_dir=tmp_path / "c")


def test_a_trial_whose_values_cannot_be_trained_with_is_one_of_the_trials(
    command, monkeypatch, tmp_path
):
    """But in the first it is the command that is wrong. Red: is_of_values without the parameters;
    `failing` without a look at the texts."""

    def draw(first):
        def values(trial, *_):
            value = first + trial.number
            return {"max_length": trial.suggest_int("max_length", value, value)}

        return values

    monkeypatch.setattr(study, "draw_values", draw(33))
    with pytest.raises(UserError, match=r"--max_length 33: .* reads at most 32"):
        command(trials=3)
    monkeypatch.setattr(study, "draw_values", lambda trial, *_: {"max_length": 32})
    command(trials=1)
    monkeypatch.setattr(study, "draw_values", draw(32))
    command(trials=3)
    assert [trial[2].name for trial in trials_of(tmp_path / "out")] == ["COMPLETE", "FAIL", "FAIL"]


def test_what_is_not_of_its_values_leaves_a_trial_to_the_next_start(command, tmp_path, monkeypatch):
    """With its last/: a data set that is not there, a full disk. Red: `is_of_values` True."""
    command(trials=1)
    with dying_at(7):
        command(trials=2)
    with pytest.raises(UserError, match="no such file"):
        command(trials=2, dataset=tmp_path / "gone.csv")
    save = checkpoint.save_last

    def fail(run):
        raise UserError(f"{run.output}: No space left on device; make room")

    monkeypatch.setattr(checkpoint, "save_last", fail)
    with pytest.raises(UserError, match="No space left"):
        command(trials=2)
    assert (tmp_path / "out" / "trial_1" / "last").exists()
    monkeypatch.setattr(checkpoint, "save_last", save)
    assert [trial[2].name for trial in trials_of(command(trials=2))] == ["COMPLETE"] * 2


def test_models_that_have_seen_other_texts_are_searched(command, tmp_path, tiny, train_command):
    """Their trials learn from the same texts. Red: all hashes of `seen` in digest_texts."""
    other = write_csv(tmp_path / "other" / "train.csv", make_rows(40, seed=5)).parent
    seen = train_command(dataset=other, max_steps=1, output_dir=tmp_path / "seen") / "best"
    out = command(space=[f"--space=model={tiny},{seen}"])
    assert {trial[1]["model"] for trial in trials_of(out)} == {str(tiny), str(seen)}


def test_models_that_are_validated_on_other_texts_are_refused(
    command, tmp_path, tiny, train_command
):
    """Before a trial, in either order; with texts to validate on of their own they are not.
    Red: require_one_split not called; different sides compared by what was seen alone."""
    data = tmp_path / "data"
    seen = train_command(dataset=data, max_steps=1, validation_seed=3) / "best"
    for models in ((tiny, seen), (seen, tiny)):
        space = [f"--space=model={models[0]},{models[1]}"]
        with pytest.raises(UserError, match="would be validated on different ones; search"):
            command(space=space, output_dir=tmp_path / "searched")
    assert not (tmp_path / "searched").exists()
    own = write_csv(tmp_path / "own.csv", make_rows(20, seed=7))
    command(space=space, validation_dataset=own, trials=1)


def test_a_search_that_was_killed_in_a_write_goes_on(command, tmp_path):
    """SQLite undoes the write by the journal that is left. Red: mode=ro in require_ours."""
    file = command(trials=1) / "study.db"
    expected = trials_of(file.parent)
    if (child := os.fork()) == 0:
        database = sqlite3.connect(file)
        database.execute("PRAGMA cache_size=5")
        for number in range(2000):
            database.execute(
                "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (1, ?, '1')",
                (f"{number:0200}",),
            )
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "out" / "study.db-journal").exists()
    command(trials=1)
    assert trials_of(file.parent) == expected


def test_a_search_of_several_processes_is_refused(command, monkeypatch):
    """Each would ask for trials of its own. Red: the check of WORLD_SIZE left out."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process"):
        command()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate=1..2", "give FLAG=LOW..HIGH or FLAG=A,B,C, of model"),
        ("learning_rate", "FLAG=LOW..HIGH"),
        ("learning_rate=0.1..0.01", "the lower one first"),
        ("learning_rate=0..1", "give a number above 0"),
        ("truncation=head..tail", "give one of head, tail, head_tail"),
        ("truncation=head,middle", "give one of head, tail, head_tail"),
        ("output_dir=a,b", "give FLAG="),
        ("metric_for_best_model=accuracy,loss", "give FLAG="),
        ("warmup_steps=0..200", "give a share of at least 0 and below 1, or a whole number"),
    ],
)
def test_a_range_is_checked_before_anything_runs(text, message):
    """As train.py checks the flag, in between, too. Red: `convert` left out of read_range."""
    with pytest.raises(UserError, match=message):
        study.read_ranges([text], search.FIELDS)


def test_lists_have_paths_and_none():
    """Red: a path's `..` taken for a range; none left out."""
    ranges = study.read_ranges(["model=../a,../b", "class_weights=balanced,none"], search.FIELDS)
    assert ranges["model"].choices == ("../a", "../b")
    assert ranges["class_weights"].choices == ("balanced", None)


def test_the_search_names_no_test_split():
    """Red: `config.test_split` in either file."""
    for name in ("search", "study", "trial"):
        source = (ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8")
        assert source.count("test") == source.count("the\ntest split") + source.count("test split")


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    """Red: `import optuna` at the top of search.py."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-search\.txt"):
        search.search(SearchConfig(output_dir=os.devnull))
