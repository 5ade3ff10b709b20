"""recipes/push_to_hub.py against a server in this process that speaks as the Hub does."""

import ast
import base64
import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_rows, train_small, write_csv
from huggingface_hub import ModelCard, constants
from transformers import pipeline

import eval as evaluation
from recipes import push_to_hub
from runtime.flags import UserError
from runtime.folders import MANIFEST, write_folder

# Of huggingface_hub's own call.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "me/model"
SHA = "a" * 40


@dataclasses.dataclass
class Hub:
    """What the server has, and how it is to answer."""

    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    exists: bool = False
    private: bool = False
    commits: int = 0
    asked: list[str] = dataclasses.field(default_factory=list)
    fails: dict[str, int] = dataclasses.field(default_factory=dict)  # part of a route -> status
    meanwhile: Callable = lambda: None  # called when a large file comes
    stored: dict[str, bytes] = dataclasses.field(default_factory=dict)  # large files, by SHA-256


class Routes(BaseHTTPRequestHandler):
    """Those that create_repo, model_info and create_commit of huggingface_hub 2.4 use."""

    hub: Hub

    def answer(self, content: dict, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = iter(lambda: self.rfile.read(int(self.rfile.readline(), 16) + 2)[:-2], b"")
        return b"".join(chunks)

    def serve(self) -> None:
        body, hub, path = self.read(), self.hub, self.path
        hub.asked.append(f"{self.command} {path}")
        status = next((of for part, of in hub.fails.items() if part in path), None)
        if status:
            self.answer({"error": "no,\nreally not"}, status)
        elif path.startswith("/stored/"):
            hub.meanwhile()
            hub.stored[path.split("/")[-1]] = body
            self.answer({})
        elif path == "/api/agent-harnesses":  # asked for once a day, whatever is done
            self.answer({}, 404)
        else:
            assert self.headers["Authorization"] == "Bearer hf_mine"
            route = {
                f"/api/models/{NAME}": self.describe,
                "/api/repos/create": self.create,
                "/api/validate-yaml": self.validate,
                f"/api/models/{NAME}/preupload/main": self.say_how_to_upload,
                f"/{NAME}.git/info/lfs/objects/batch": self.say_where_to_upload,
                f"/api/models/{NAME}/commit/main": self.commit,
            }[path]
            route([json.loads(line) for line in body.splitlines()])

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def describe(self, asked: list[dict]) -> None:
        if not self.hub.exists:
            return self.answer({}, 404, X_Error_Code="RepoNotFound")
        there = [{"rfilename": name} for name in (".gitattributes", *self.hub.files)]
        self.answer({"id": NAME, "private": self.hub.private, "siblings": there, "sha": SHA})

    def create(self, asked: list[dict]) -> None:
        self.hub.exists, self.hub.private = True, asked[0].get("visibility") == "private"
        self.answer({"url": f"{self.address}/{NAME}"})

    def validate(self, asked: list[dict]) -> None:
        assert "model-index" in yaml.safe_load(asked[0]["content"].split("---")[1])
        self.answer({"errors": [], "warnings": []})

    def say_how_to_upload(self, asked: list[dict]) -> None:
        modes = {".safetensors": "lfs", ".npz": "lfs", ".npy": "lfs"}
        files = [
            {
                "path": file["path"],
                "uploadMode": modes.get(Path(file["path"]).suffix, "regular"),
                "shouldIgnore": False,
            }
            for file in asked[0]["files"]
        ]
        self.answer({"files": files})

    def say_where_to_upload(self, asked: list[dict]) -> None:
        objects = [
            each | {"actions": {"upload": {"href": f"{self.address}/stored/{each['oid']}"}}}
            for each in asked[0]["objects"]
        ]
        self.answer({"objects": objects, "transfer": "basic"})

    def commit(self, asked: list[dict]) -> None:
        self.hub.commits += 1
        for line in asked:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.hub.files[value["path"]]
            else:
                assert line["key"] == "header"
        self.answer({"commitUrl": f"{self.address}/{NAME}/commit/{SHA}", "commitOid": SHA})

    do_GET = do_POST = do_PUT = serve

    def log_message(self, *words) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    """A Hub of our own, and a token for it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Ours", (Routes,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which needs servers of its own
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def best(tiny, corpus, tmp_path_factory):
    """best/ with a report on the test split and one on a file of its own, and what is the user's.
    The data are in a folder that is nobody's business."""
    home = tmp_path_factory.mktemp("secret")
    (home / "corpus").symlink_to(corpus)
    run = {"model": tiny, "dataset": home / "corpus", "output_dir": home / "run"}
    best = train_small(**run, max_steps=20, learning_rate=3e-3)[0] / "best"
    june = write_csv(home / "june.csv", make_rows(20, seed=3))
    for flags in [], [f"--dataset={june}", f"--compare={best}"], ["--split=validation"]:
        evaluation.main([f"--ckpt={best}", "--num_threads=1", *flags])
    evaluation.main([f"--ckpt={best}", "--thresholds", "--store_threshold=0.5"])
    for name in ("notes.txt", "report_test.html", "report_mine.json"):
        (best / name).write_text("{}")
    return best


def push(best: Path, *flags: str) -> None:
    push_to_hub.main([f"--ckpt={best}", f"--name={NAME}", *flags])


WHOLE = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
WHOLE |= {"validation.json", "validation.npz", "threshold.json"}  # sent as they are
CHANGED = {"README.md", "training_config.json", "report_test.json", "report_june.json"}
CHANGED |= {"report_validation.json"}
HASHES = {"training_texts.npy", "validation_texts.npy"}


def test_what_arrives_is_the_folder_but_for_what_is_private(best, hub, tmp_path, capsys):
    """And it loads. Red: json_for_hub without the settings, or without the reports; HASHES sent; a
    file that train.py did not write sent; the card of best/ sent; the weights left out."""
    push(best, "--private")
    assert hub.private
    assert hub.commits == 1
    whole = WHOLE & {path.name for path in best.iterdir()}
    assert set(hub.files) == whole | CHANGED
    for name in whole:
        assert hub.files[name] == (best / name).read_bytes(), name
    said = capsys.readouterr().out
    for name, content in hub.files.items():
        assert b"secret" not in content, name
        assert re.search(rf"^ *{len(content):,} bytes  {name}$", said, re.M)
    stay = {path.name for path in best.iterdir()} - set(hub.files)
    assert stay == HASHES | {MANIFEST, "notes.txt", "report_test.html", "report_mine.json"}
    assert set(re.findall(r"^ *stays here  (.*?):", said, re.M)) == stay
    for name in CHANGED - {"README.md"}:
        ours = json.loads((best / name).read_text())
        theirs = json.loads(hub.files[name])
        changed = {key for key in ours if ours[key] != theirs[key]}
        of_report = {"of", *({"comparison"} & ours.keys())}
        assert changed == (of_report if "of" in ours else {"dataset", "model", "output_dir"})
    card = ModelCard(hub.files["README.md"].decode())
    assert "A threshold of 0.5 was chosen on the validation texts" in card.text
    names = [result.dataset_name for result in card.data.eval_results]
    assert [name for name, _ in itertools.groupby(names)] == ["corpus", "june.csv", "corpus"]
    assert {result.dataset_split for result in card.data.eval_results} == {None, "test"}
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    texts = [text for text, _ in make_rows(20, seed=9)]
    answers = [
        pipeline("text-classification", str(folder), truncation=True, device="cpu")(texts)
        for folder in (best, tmp_path)
    ]
    assert answers[0] == answers[1]
    # No "imdb" of the Hub is taken for a folder of that name.
    with pytest.raises(UserError, match=r"--dataset ./corpus: no such file or folder"):
        evaluation.main([f"--ckpt={tmp_path}", "--num_threads=1"])


def test_hashes_go_if_asked_for(best, hub):
    """Red: sort_files without `with_hashes`."""
    push(best)
    assert not HASHES & set(hub.files)
    push(best, "--overwrite", "--with_hashes")
    assert set(hub.files) >= HASHES
    assert hub.commits == 2


def test_a_repository_with_files_is_replaced_only_if_asked_and_then_wholly(best, hub):
    """Red: send without its look at `there`; no CommitOperationDelete."""
    hub.exists, hub.files = True, {"pytorch_model.bin": b"old", "config.json": b"{}"}
    with pytest.raises(UserError) as raised:
        push(best)
    assert raised.value.args == (
        "--name me/model: holds 2 files, such as config.json; give another name, or --overwrite to "
        "replace them all (its history keeps them)",
    )
    assert hub.files == {"pytorch_model.bin": b"old", "config.json": b"{}"}
    with pytest.raises(UserError, match="--private: me/model is public"):
        push(best, "--overwrite", "--private")
    assert hub.commits == 0
    push(best, "--overwrite")
    assert "pytorch_model.bin" not in hub.files
    assert hub.files["config.json"] == (best / "config.json").read_bytes()


def test_an_empty_repository_is_filled(best, hub):
    """As one that somebody made beforehand, or that a failed push left. Red: create_repo for it."""
    hub.exists = True
    push(best)
    assert hub.commits == 1
    assert "POST /api/repos/create" not in hub.asked


def test_a_model_that_a_training_replaces_meanwhile_is_not_sent(best, hub, tmp_path):
    """Its weights would be beside the card of others. Red: send without its look at `before`."""
    shutil.copytree(best, tmp_path / "best")

    def replace() -> None:
        hub.meanwhile = lambda: None  # several large files come
        write_folder(tmp_path / "best", lambda new: (new / "x").touch())

    hub.meanwhile = replace
    with pytest.raises(UserError, match="a training replaced it meanwhile"):
        push(tmp_path / "best")
    assert hub.commits == 0


def test_a_dry_run_needs_no_token_and_no_network(best, monkeypatch, capsys):
    """It shows the card with the test scores. Red: get_token's line before its condition."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    push(best, "--dry_run")
    said = capsys.readouterr().out
    report = json.loads((best / "report_test.json").read_text())
    assert f"value: {round(report['accuracy'], 6)}" in said
    assert "model.safetensors" in said


# ---------------------------------------------------------------- mistakes


def line_of(call) -> str:
    with pytest.raises(UserError) as raised:
        call()
    (line,) = raised.value.args
    assert line.splitlines() == [line]
    return line


@pytest.mark.parametrize(
    ("part", "status", "remedy"),
    [
        ("/api/models/me/model", 401, "give a token that is valid"),
        ("/repos/create", 401, "give a token that is valid"),
        ("/repos/create", 403, "give a token that may write there"),
        ("/preupload/", 403, "give a token that may write there"),
        ("/preupload/", 404, "check the network and the name"),
        ("/objects/batch", 422, "check the network and the name"),
        ("/validate-yaml", 400, "check the network and the name"),
        ("/commit/", 412, "check the network and the name"),
    ],
)
def test_what_the_hub_refuses_is_one_line(part, status, remedy, best, hub):
    """And nothing is in the repository then. Red: hub_explained without HTTPError; no REMEDIES."""
    hub.fails = {part: status}
    line = line_of(lambda: push(best))
    assert re.match(r"--name me/model: http://127.0.0.1:\d+ did not take it \(.*\); ", line)
    assert remedy in line
    assert hub.files == {}


def test_no_network_is_one_line(best, hub, monkeypatch):
    """Red: hub_explained without HTTPError, without OSError."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 did not take it" in line_of(lambda: push(best))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset the `HF_HUB_OFFLINE`" in line_of(lambda: push(best))


def test_a_name_that_the_hub_would_refuse_is_one_line(best, hub):
    """Before anything is asked. Red: hub_explained without ValueError."""
    assert line_of(lambda: push(best, "--name=a/b--c")).startswith("--name a/b--c: ")
    assert hub.files == {}


def test_a_card_that_cannot_be_read_is_one_line(best, hub):
    """Red: card_for_hub without its `except`."""
    card = (best / "README.md").read_text()
    try:
        for text in ("---\na: [\n---\n", "---\n- a\n---\n", "---\nmodel-index: [1]\n---\n"):
            (best / "README.md").write_text(text)
            assert "README.md: " in line_of(lambda: push(best))
    finally:
        (best / "README.md").write_text(card)


def test_a_shell_gets_one_line_and_status_2():
    """Red: `parse` for parse_or_exit."""
    command = [sys.executable, "recipes/push_to_hub.py", "--name=model"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: --name model: give USER/MODEL.*\n", done.stderr)


def test_nothing_imports_a_recipe():
    """Red: `import recipes` in eval.py."""
    for path in (*ROOT.glob("*.py"), *ROOT.glob("runtime/*.py"), *ROOT.glob("report/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            assert not any(name.split(".")[0] == "recipes" for name in names), path.name


def test_the_recipe_is_short():
    """Red: more of it."""
    assert len(Path(push_to_hub.__file__).read_text().splitlines()) <= 150
