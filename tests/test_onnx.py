"""recipes/export_onnx.py: ONNX files and a README whose example answers as eval.py does, or no
folder at all.

Two models are exported: DistilBERT for texts, BERT, which has token types, for pairs. Where another
truncation or tokenizer is tried, the weights are the same, and so is the ONNX file.
"""

import json
import logging
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import test_source
import torch
from conftest import ROOT, WORDS, make_model, make_rows, train_small, write_csv
from families import make_family
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from tokenizers import Tokenizer

import eval as evaluation
from config import Config, EvalConfig
from data import choose_texts
from recipes import export_onnx, onnx_models
from recipes.agreement import choose_sample, paired_difference
from recipes.export_onnx import ExportConfig
from runtime.flags import UserError

# Words that show a label stand anywhere, so that it matters which of them are read.
RNG = random.Random(0)
TEXTS = [" ".join(RNG.choices(["w0", "w1", *WORDS[30:]], k=RNG.randint(3, 40))) for _ in range(40)]
PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))
FILES = ("model.onnx", "model_int8.onnx")
ROWS = make_rows(120, seed=1)
# Weights as large as these answer otherwise for every text, without a training.
LARGE = {"initializer_range": 0.5}


def export(best: Path, output: Path, **flags) -> Path:
    flags = {"ckpt": best, "output": output, "num_threads": 1} | flags
    export_onnx.main([f"--{name}={value}" for name, value in flags.items()])
    return output


def open_best(best: Path) -> evaluation.Classifier:
    return evaluation.open_classifier(EvalConfig(ckpt=str(best), num_threads=1))


def train_and_export(folder: Path, **flags) -> Path:
    """`folder`, with best/ and onnx/."""
    train_small(output_dir=folder, max_length=16, max_steps=1, learning_rate=1e-9, **flags)
    export(folder / "best", folder / "onnx")
    return folder


@pytest.fixture(scope="module")
def single(corpus, tmp_path_factory) -> Path:
    """DistilBERT, which has no token types."""
    folder = tmp_path_factory.mktemp("single")
    make_model(folder / "model", n_layers=1, **LARGE)
    return train_and_export(folder, model=folder / "model", dataset=corpus)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """BERT, which has; its weights lie in files of their own, as those of a large model."""
    folder = tmp_path_factory.mktemp("pairs")
    make_family("bert", folder / "model", num_hidden_layers=1, **LARGE)
    rows = [(more, text, label) for more, (text, label) in zip(TEXTS * 3, ROWS, strict=True)]
    data = write_csv(folder / "pairs.csv", rows, ("more", "text", "label"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_models, "LARGE", 0)
        return train_and_export(
            folder, model=folder / "model", dataset=data, text_column="text,more"
        )


@pytest.fixture
def quick(single, monkeypatch):
    """The export of `single` takes the place of the exporter, which takes seconds."""

    def copy(*_, f, **__):
        shutil.copy(single / "onnx" / "model.onnx", f)

    monkeypatch.setattr(torch.onnx, "export", copy)


def altered(best: Path, to: Path, **settings) -> Path:
    """A copy of best/ with other settings of its training."""
    shutil.copytree(best, to)
    (to / "manifest.json").unlink()
    path = to / "training_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return to


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_both_files_answer_as_eval_in_any_batch(kind, request):
    """For other numbers and lengths of texts than in the export, padding included, by token ids of
    tokenizer.json. Red: no `dynamic_shapes`; a mask of ones in Logits; no enable_truncation in
    write_tokenizer (the export refuses itself)."""
    folder = request.getfixturevalue(kind)
    texts = PAIRS if kind == "pairs" else [(text,) for text in TEXTS]
    classifier = open_best(folder / "best")
    expected = classifier.logits(classifier.encode(texts))
    tokenizer = Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json"))
    for file, tolerance in zip(FILES, (1e-5, 0.3), strict=True):
        session = onnxruntime.InferenceSession(folder / "onnx" / file)
        names = [field.name for field in session.get_inputs()]
        assert (folder / "onnx" / f"{file}.data").exists() == (kind == "pairs")
        assert names[2:] == ["token_type_ids"] * (kind == "pairs")
        logits = []
        for at in (*range(3), slice(3, 5), slice(5, 40)):
            batch = texts[at] if isinstance(at, slice) else [texts[at]]
            rows = tokenizer.encode_batch([text if kind == "pairs" else text[0] for text in batch])
            values = ([row.ids, row.attention_mask, row.type_ids] for row in rows)
            given = dict(zip(names, np.array(list(values)).swapaxes(0, 1), strict=False))
            logits.append(torch.from_numpy(session.run(["logits"], given)[0]))
        assert len({row.shape for row in logits}) > 1
        found = torch.cat(logits).softmax(-1)
        assert (found - expected.softmax(-1)).abs().max() < tolerance
    assert expected.argmax(-1).unique().numel() == 2


WITHOUT_TORCH = """
import contextlib, io, json, os, re, sys
sys.modules["torch"] = sys.modules["transformers"] = None
said = {}
for folder, texts in json.loads(sys.stdin.read()).items():
    os.chdir(folder)
    (code,) = re.findall("```python\\n(.*?)```", open("README.md").read(), re.S)
    for text in texts:
        sys.argv[1:] = text
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code.replace("model_int8.onnx", "model.onnx"), {})
        said.setdefault(folder, []).append(out.getvalue())
    exec(code, {})
    sys.argv[1:] = []
    try:
        exec(code, {})
    except SystemExit as end:
        assert str(end).startswith("usage: python example.py "), end
print(json.dumps(said))
"""


def test_the_example_of_the_readme_answers_as_eval_without_torch(single, pairs, quick, tmp_path):
    """For every --truncation, for pairs, and for a tokenizer that takes special tokens in a text
    for words. Red: "right" for the side in enable_truncation; the line for head_tail, or for
    special tokens, left out of the card; pairs joined to one text; no look at len(sys.argv)."""
    bests = {"head": single / "best", "pairs": pairs / "best"}
    exports = {"head": single / "onnx", "pairs": pairs / "onnx"}
    for truncation in ("tail", "head_tail"):
        bests[truncation] = altered(single / "best", tmp_path / truncation, truncation=truncation)
    bests["words"] = altered(single / "best", tmp_path / "words")
    tokenizer = bests["words"] / "tokenizer_config.json"
    fields = json.loads(tokenizer.read_text()) | {"split_special_tokens": True}
    tokenizer.write_text(json.dumps(fields))
    for name in ("tail", "head_tail", "words"):
        exports[name] = export(bests[name], tmp_path / f"{name}_onnx")
    texts = [(text,) for text in ["w0 [SEP] w1 w1 w1", *TEXTS[:10]]]
    asked = {name: PAIRS[:10] if name == "pairs" else texts for name in exports}
    program = [sys.executable, "-c", WITHOUT_TORCH]
    given = json.dumps({str(exports[name]): asked[name] for name in exports})
    done = subprocess.run(program, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    answers = {}
    for name, folder in exports.items():
        classifier = open_best(bests[name])
        shares = classifier.logits(classifier.encode(asked[name])).softmax(-1).max(-1)
        labels, found = zip(*map(str.split, said[str(folder)]), strict=True)
        assert list(labels) == [classifier.names[number] for number in shares.indices]
        assert list(map(float, found)) == pytest.approx(shares.values.tolist(), abs=1e-5)
        answers[name] = tuple(found)
    assert len(set(answers.values())) == len(answers)  # so that each of them is tried


# ---------------------------------------------------------------- what is written


def test_what_answers_otherwise_is_refused_and_nothing_is_left(single, tmp_path, monkeypatch):
    """In float32; also if it is NaN. Red: no check of `difference`; `difference > LIMIT`, which NaN
    passes; the folder filled in place."""
    proto = onnx.load(single / "onnx" / "model.onnx")
    norm = next(w for w in proto.graph.initializer if "orm.weight" in w.name)  # not quantized
    for factor in (1.1, np.nan):
        changed = onnx.numpy_helper.to_array(norm) * np.float32(factor)
        norm.CopyFrom(onnx.numpy_helper.from_array(changed, norm.name))
        monkeypatch.setattr(torch.onnx, "export", lambda *_, f, **__: onnx.save(proto, f))
        with pytest.raises(UserError) as raised:
            export(single / "best", tmp_path / "onnx")
        (line,) = raised.value.args
        start = f"--ckpt {single / 'best'}: a probability by model.onnx differs from PyTorch's by "
        assert re.fullmatch(re.escape(start) + r"\S+; use eval.py, or choose another model", line)
        assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_exported_is_refused_in_one_line(
    single, tmp_path, monkeypatch, capfd
):
    """As Longformer's, of which the exporter also prints its graph. Red: exporters_explained
    without its redirect_stderr or `logging.disable`; with `error` for its cause."""

    def fail(*_, **__):
        print("a graph", file=sys.stderr)
        logging.error("a graph")
        raise torch.onnx.OnnxExporterError("Failed, see step 1/3") from ValueError("no\nguard")

    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(
        UserError, match=r": cannot be exported to ONNX \(no guard\); choose another"
    ):
        export(single / "best", tmp_path / "onnx")
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_only_an_export_is_replaced_and_what_a_user_put_there_stays(single, quick, tmp_path):
    """And the new one names the threshold that was stored meanwhile. Red: require_own without
    is_export; hide_folder left out of write_card; remove_copies left out of export; `threshold`
    None in it."""
    output = tmp_path / "onnx"
    export(single / "best", output)
    with pytest.raises(UserError, match="exists; give another folder"):
        export(single / "best", output)
    (output / "note.txt").write_text("mine")
    assert "threshold" not in (output / "README.md").read_text()
    evaluation.main([f"--ckpt={single / 'best'}", "--thresholds", "--store_threshold=0.5"])
    export(single / "best", output, overwrite=True)
    (single / "best" / "threshold.json").unlink()
    card = (output / "README.md").read_text()
    assert "A threshold of 0.5 was chosen" in card
    assert "`./best` as ONNX" in card
    assert str(single) not in card
    assert (output / "note.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.onnx").write_text("mine")
    for path in (tmp_path / "mine", tmp_path / "mine" / "model.onnx", single / "best"):
        with pytest.raises(UserError, match="exists; give another folder"):
            export(single / "best", path, overwrite=True)
    assert (tmp_path / "mine" / "model.onnx").read_text() == "mine"


# ---------------------------------------------------------------- what it is checked on


def choose(best: Path, **flags):
    return choose_sample(ExportConfig(ckpt=str(best), **flags), open_best(best))


def test_it_is_checked_on_the_validation_texts_or_says_why_not(single, corpus, tmp_path):
    """Red: the training split's hashes in read_validated."""
    trained = json.loads((single / "best" / "training_config.json").read_text())
    flags = {name: trained[name] for name in Config.__dataclass_fields__ if name in trained}
    _, validation, _ = choose_texts(Config(**flags))
    found = choose(single / "best")
    assert found.real == [text for chunk in validation.chunks() for text in chunk]
    assert np.array_equal(found.labels, validation.labels)
    for changed, why in (({"dataset": "/gone"}, "no such file"), ({"train_split": "test"}, "none")):
        best = altered(single / "best", tmp_path / why, **changed)
        lost = choose(best)
        assert (lost.real, lost.labels) == ([], None)
        assert why in lost.source
        assert len(lost.made_up) > 5


def test_a_file_of_texts_is_read_with_or_without_labels(single, tmp_path):
    """Red: label_rows for every file; empty texts kept."""
    rows = make_rows(30, seed=5)
    labelled = choose(single / "best", input=str(write_csv(tmp_path / "a.csv", rows)))
    assert labelled.real == [(text,) for text, _ in rows]
    assert [("negative", "positive")[n] for n in labelled.labels] == [label for _, label in rows]
    rows = [(text, "") for text, _ in rows] + [(" ", "")]
    path = write_csv(tmp_path / "b.csv", rows, ("text", "id"))
    plain = choose(single / "best", input=str(path))
    assert plain.labels is None
    assert sorted(plain.real) == sorted(labelled.real)
    assert len(set(choose(single / "best", input=str(path), max_samples=20).real)) == 20


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.3), st.floats(0, 0.3))
@settings(max_examples=15, deadline=None)
def test_the_paired_interval_is_that_of_a_bootstrap(seed, only_a, only_b):
    """Red: the spread of two unpaired shares; a sign turned."""
    rng = np.random.default_rng(seed)
    neither = (1 - only_a - only_b) / 2
    kinds = rng.choice(4, 1500, p=[only_a, only_b, neither, neither])
    a, b = np.isin(kinds, (0, 2)), np.isin(kinds, (1, 2))
    by, low, high = paired_difference(a, b)
    assert low < by < high
    assert by == pytest.approx(a.mean() - b.mean())
    assert paired_difference(b, a) == pytest.approx((-by, -high, -low))
    drawn = bootstrap(
        (a.astype(float) - b,), np.mean, n_resamples=2000, method="percentile", rng=rng
    )
    assert (low, high) == pytest.approx(tuple(drawn.confidence_interval), abs=0.004)


# ---------------------------------------------------------------- the source


def test_recipes_are_as_readable_as_the_house_which_imports_none():
    """Red: `import recipes.agreement` in eval.py; a read_text without an encoding."""
    for path in (ROOT / "recipes").glob("*.py"):
        test_source.test_a_file_can_be_read(f"recipes.{path.stem}")
        test_source.test_every_text_file_is_opened_as_utf8(f"recipes.{path.stem}")
    for name in test_source.HOUSE:
        assert not re.search(r"^\s*(from|import) recipes", test_source.source_of(name), re.M)
