"""One trial of a search: a run of train.py, of which the study is told.

In: a trial of Optuna; the config of its run. Out: the run in its folder; in the study its
validations and its end. Independent of: how values are drawn.
"""

import contextlib
import dataclasses
import hashlib
import itertools
from pathlib import Path

from accelerate.state import AcceleratorState
from optuna.trial import FrozenTrial, Trial, TrialState

from config import Config
from data import choose_texts, what_model_has_seen
from recipes.study import require_same
from runtime.flags import UserError, is_out_of_memory
from runtime.folders import Busy, remove_folder
from runtime.monitor import Diverged
from runtime.soft import soft_of
from runtime.tables import column
from train import Run, conclude, fine_tune, set_up, train

# What may end a trial; see `OneTrial.failing`.
ENDS = (UserError, RuntimeError, OSError, MemoryError)


class Pruned(Exception):
    """A trial is behind the others."""


def run_trial(trial, config: Config) -> int:
    """The exit status of train.py. Unless it was stopped, the study has what came of the trial."""
    AcceleratorState._reset_state()  # each trial has an Accelerator of its own
    own = OneTrial(trial, config.metric_for_best_model)
    try:
        if status := fine_tune(config, own.set_up, own.train, own.conclude):
            return status
    except (Pruned, *ENDS) as error:
        if own.is_running:
            raise
        print(f"trial {trial.number}: {error}")
    remove_folder(Path(config.output_dir) / "last")  # twice the room of best/
    return 0


@dataclasses.dataclass
class OneTrial:
    """What `fine_tune` does in a trial. The study is told while the trial's folder is locked: no
    other terminal takes the trial up in between."""

    trial: Trial
    metric: str

    @property
    def record(self) -> FrozenTrial:
        """As the study has it now."""
        return self.trial.study.trials[self.trial.number]

    @property
    def is_running(self) -> bool:
        return not self.record.state.is_finished()

    def tell(self, value: float | None, state: str) -> None:
        self.trial.study.tell(self.trial.number, value, TrialState[state])

    def set_up(self, config, accelerator, settings) -> Run:
        if not self.is_running:
            raise Busy(f"trial {self.trial.number} ended in another terminal")
        drawn = {name: of for name, of in self.trial.params.items() if of is not None}
        words = (f"--{name} {value}" for name, value in drawn.items())
        print(f"trial {self.trial.number}: {' '.join(words)}", flush=True)
        with self.failing():
            run = set_up(config, accelerator, settings)
        self.require_same_texts(run)
        return run

    def require_same_texts(self, run: Run) -> None:
        made = f"the search in {Path(run.config.output_dir).parent}"
        require_same(self.trial.study, {"texts": digest_texts(run)}, made)

    def train(self, run: Run) -> None:
        write = run.monitor.write_scores

        def write_and_report(name: str, scores, step: int) -> None:
            write(name, scores, step)
            if name == "eval":
                self.report(getattr(scores, self.metric), step)

        run.monitor.write_scores = write_and_report
        with self.failing():
            train(run)

    def report(self, value: float, step: int) -> None:
        if step not in self.record.intermediate_values:  # a resumed run repeats a validation
            self.trial.report(value, step)
        if self.trial.should_prune():
            self.tell(None, "PRUNED")
            raise Pruned("ended: behind the median of the others")

    def conclude(self, run: Run) -> None:
        with self.failing():
            conclude(run)
        self.tell(run.progress.best_scores[self.metric], "COMPLETE")

    @contextlib.contextmanager
    def failing(self):
        """Tell the study of a trial that cannot be run with its values. For all else, such as a
        full disk or a data set that is not there, the same command goes on with the trial. In the
        first trial it is rather the command that is wrong."""
        try:
            yield
        except ENDS as error:
            if self.is_of_values(error) and "texts" in self.trial.study.user_attrs:
                self.tell(None, "FAIL")
            raise

    def is_of_values(self, error: Exception) -> bool:
        named = str(error).partition(" ")[0].removeprefix("--")
        return isinstance(error, Diverged) or is_out_of_memory(error) or named in self.trial.params


def require_one_split(config, space: dict) -> None:
    """Raises `UserError` if the models of a space would be validated on different texts, because
    what a model has seen stays on its side."""
    names = [name for name in ("model", "revision") if name in space]
    if not names:
        return
    choices = (space[name].choices for name in names)
    models = [dict(zip(names, values, strict=True)) for values in itertools.product(*choices)]
    asked = [dataclasses.replace(config, **model) for model in models]
    seen = (what_model_has_seen(one) for one in asked)
    different = {
        (of.training.tobytes(), of.validation.tobytes()): one
        for of, one in zip(seen, asked, strict=True)
    }
    if len(different) < 2:
        return
    sides = (choose_texts(one)[:2] for one in different.values())
    if len({tuple(side.hashes.tobytes() for side in both) for both in sides}) > 1:
        raise UserError(
            f"--space {names[0]}=...: some of these have seen texts of the data, so they would be "
            "validated on different ones; search them apart, or give --validation_dataset"
        )


def digest_texts(run: Run) -> str:
    """Of what is learnt from and validated on, however it is cut or tokenized."""
    sides = run.train_set, run.validation_set
    hashes = run.seen.training, run.seen.validation  # of what --model had seen, too: these last
    parts = [of[: len(side)] for of, side in zip(hashes, sides, strict=True)]
    parts += [column(side, "labels").to_numpy() for side in sides]
    if "soft" in run.train_set.column_names:
        parts.append(soft_of(run.train_set))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
