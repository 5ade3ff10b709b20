"""Whatever surrounds a run (the locale, closed pipes, variables, where it is started), it works."""

import os
import subprocess
import sys
from pathlib import Path

import accelerate.commands.launch
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, SMALL_RUN, make_rows, write_csv
from forked import Forked

import eval as evaluation
from config import EvalConfig

# What a shell may set. The last one is Latin-1 for standard output alone.
LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"},
    {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
]
SAYING = """
import sys
sys.path.insert(0, sys.argv[1])
from runtime.streams import open_streams
open_streams()
print("said", *sys.argv[2:], end="")  # which is written at the interpreter's exit
print("warned", *sys.argv[2:], file=sys.stderr)
open(sys.argv[2], "w").write("größer €")
"""


def say(tmp_path, words="", redirection="", **environment) -> tuple[int, str]:
    """(status, output) of a shell command that runs SAYING in a new interpreter."""
    script = tmp_path / "saying.py"
    script.write_text(SAYING, encoding="utf-8")
    settings = " ".join(f"{name}={value}" for name, value in environment.items())
    command = f'env {settings} "{sys.executable}" {script} {ROOT} {words} {redirection}'
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True)
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: locale["LC_ALL"])
def test_words_are_utf8_in_every_locale(tmp_path, locale):
    """In what is printed, in names of files, and in files that a library opens; a word that is not
    UTF-8 keeps its bytes.

    Red: no execv in open_streams; no make_stream; "strict" for "surrogateescape".
    """
    status, said = say(tmp_path, "größer€ $'\\xe9'", **locale)
    assert (status, said) == (0, "said größer€ \udce9warned größer€ \udce9\n")
    assert (tmp_path / "größer€").read_text(encoding="utf-8") == "größer €"


@pytest.mark.parametrize(
    "redirection",
    ["| (exec <&-; sleep 0.5)", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "2> /dev/full"],
)
def test_no_closed_or_full_stream_changes_the_exit_status(tmp_path, redirection):
    """Also at the interpreter's exit, and no file is opened in place of a closed stream.

    Red: Stream without `write`, or without `flush`; no `discard` of what is closed.
    """
    status, said = say(tmp_path, "file", redirection)
    assert status == 0
    assert "rror" not in said
    assert (tmp_path / "file").read_text(encoding="utf-8") == "größer €"


def small_run(tiny, dataset, output) -> list[str]:
    flags = SMALL_RUN | {"model": tiny, "dataset": dataset, "output_dir": output, "max_steps": 12}
    return [str(ROOT / "train.py"), *(f"--{name}={value}" for name, value in flags.items())]


def test_a_full_output_ends_neither_a_training_nor_an_evaluation(tiny, corpus, tmp_path):
    """Both streams are /dev/full. Red: no open_streams in parse_or_exit."""
    with Forked(*small_run(tiny, corpus, tmp_path / "run"), log=Path("/dev/full")) as process:
        assert process.wait(timeout=60) == 0
    best = tmp_path / "run" / "best"
    with Forked(ROOT / "eval.py", f"--ckpt={best}", log=Path("/dev/full")) as process:
        assert process.wait(timeout=60) == 0
    assert (best / "report_test.json").exists()


def test_a_report_is_on_the_disk_before_it_is_printed(tiny, corpus, tmp_path, monkeypatch):
    """Red: `show` before the write in report_on_split."""
    import train
    from report import terminal

    train.main(small_run(tiny, corpus, tmp_path / "run")[1:])
    report = tmp_path / "report.json"
    monkeypatch.setattr(terminal, "show", lambda _: seen.append(report.exists()))
    seen = []
    evaluation.main([f"--ckpt={tmp_path / 'run' / 'best'}", f"--report={report}"])
    assert seen == [True]


def test_new_interpreters_in_a_strange_environment(tiny, tmp_path):
    """`accelerate launch train.py`, and then the command that it names, pasted into a shell: in a
    locale that is not UTF-8, and without the script's folder on the path (python -P).

    Red: no `safe_path` in train.py, or in eval.py; no execv in open_streams; no shlex.
    """
    environment = LOCALES[0] | {"PYTHONSAFEPATH": "1"}
    source = tmp_path / "größer" / "texts.csv"
    write_csv(source, make_rows(60, seed=1, classes=("größer", "kleiner")))
    words = small_run(tiny, source, tmp_path / "größer" / "it's €")
    with Forked(accelerate.commands.launch.__file__, *words, **environment) as launcher:
        said, warned = launcher.communicate(timeout=120)
        assert launcher.returncode == 0, warned
    assert f"on {source}" in said
    command = said.strip().rpartition("next: ")[2]
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=os.environ | environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    reported = done.stdout.decode("utf-8")
    assert reported.startswith("18 validation texts of texts.csv")
    assert "größer" in reported


def test_no_variable_compiles_a_model_unasked(tiny, corpus, tmp_path, monkeypatch):
    """`accelerate config` may have set it. Red: no `dynamo_backend` in make_accelerator, or in
    open_classifier."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    import train

    train.main(small_run(tiny, corpus, tmp_path / "run")[1:])
    AcceleratorState._reset_state(reset_partial_state=True)
    evaluation.open_classifier(EvalConfig(ckpt=str(tmp_path / "run" / "best")))
