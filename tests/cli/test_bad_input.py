"""Every bad input ends with one line that says what to do, and leaves nothing on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from compressor.cli import main
from tests.trained import FACTORY, ROOT, texts, write_table

QUICK = ("--calibration", "60", "--limit", "60", "--device", "cpu", "--method", "svd")


class Place(NamedTuple):
    """A directory of one's own, with a copy of each trained model and its data.

    Args:
        root: Everything that a command may write lies under it.
        bert: A transformers directory.
        texts: CSV files that fit it.
        vit: A checkpoint of timm's test_vit.
        photos: Class folders that fit it.
        cnn: A checkpoint of examples/plain_cnn.py.
    """

    root: Path
    bert: Path
    texts: Path
    vit: Path
    photos: Path
    cnn: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def on_texts(self) -> list[object]:
        return [self.bert, "--data", self.texts]

    @property
    def on_photos(self) -> list[object]:
        return [*self.vit_words, "--data", self.photos]

    @property
    def vit_words(self) -> list[object]:
        return ["test_vit", "--checkpoint", self.vit, "--input-size", "32"]


@pytest.fixture
def place(trained_bert, trained_vit, trained_cnn, tmp_path, monkeypatch) -> Place:
    import datasets

    root = tmp_path / "place"
    root.mkdir()
    (root / "tmp").mkdir()
    (root / "work").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("COMPRESSOR_DEBUG", raising=False)
    monkeypatch.chdir(root / "work")
    copies = {
        "bert": trained_bert.model[0],
        "texts": trained_bert.data[1],
        "vit": trained_vit.model[2],
        "photos": trained_vit.data[1],
        "cnn": trained_cnn.model[2],
    }
    paths = {name: root / Path(source).name for name, source in copies.items()}
    for name, source in copies.items():
        copy = shutil.copytree if Path(source).is_dir() else shutil.copy
        copy(source, paths[name])
    return Place(root, **paths)


def listing(root: Path) -> dict[str, int]:
    """Return every file and directory with its size, hidden ones too."""
    return {
        str(path.relative_to(root)): path.stat().st_size if path.is_file() else -1
        for path in root.rglob("*")
        if "__pycache__" not in path.parts
    }


def compress_words(place: Place, words: list[object]) -> list[object]:
    """Return a call of compress, its budget and output where ``words`` names none."""
    budget = [] if {"--budget", "--plan"} & set(words) else ["--budget", "layers=50%"]
    out = [] if "--out" in words else ["--out", place.out]
    return ["compress", *QUICK, *words, *budget, *out]


@pytest.fixture
def refused(place, capsys) -> Callable[..., str]:
    """Return a function that makes a call, sees it refused as it should be, and gives the message.

    Refused: exit code ``code``, one line that starts with ``error:`` and holds every word of
    ``saying``, no traceback, nothing on stdout, and every file as it was.
    """

    def check(words: list[object], *saying: str, code: int = 1, command: str = "compress") -> str:
        words = compress_words(place, words) if command == "compress" else [command, *words]
        before = listing(place.root)
        capsys.readouterr()
        found = main([str(word) for word in words])
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert found == code, err
        assert len(errors) == 1, err
        assert "Traceback" not in err
        assert "unexpected" not in err
        assert out == ""
        for words_of_it in saying:
            assert words_of_it in errors[0], errors[0]
        assert listing(place.root) == before
        return errors[0]

    return check


# The model.


@pytest.mark.parametrize(
    ("model", "saying"),
    [
        ("no/such/model", ("no/such/model", "hub")),
        ("./nothing-here", ("nothing-here", "Expected")),
        ("test_vti", ("test_vti", "Did you mean 'test_vit", "Expected")),
    ],
)
def test_no_such_model(model, saying, place, refused):
    refused([model, "--data", place.texts], *saying, code=2)
    refused([model], *saying, code=2, command="inspect")


def test_a_directory_without_config(place, refused):
    (place.bert / "config.json").unlink()
    refused(place.on_texts, "config.json", str(place.bert), "--checkpoint")


def test_a_config_that_is_no_json(place, refused):
    (place.bert / "config.json").write_text("{")
    refused(place.on_texts, "config.json", "JSON")


def test_a_base_model_without_head(place, refused):
    state = load_file(place.bert / "model.safetensors")
    state = {key: value for key, value in state.items() if not key.startswith("classifier")}
    save_file(state, place.bert / "model.safetensors", {"format": "pt"})
    refused(place.on_texts, "classifier", "fine-tuned")


def test_weights_given_as_the_model(place, refused):
    refused([place.vit, "--data", place.photos], "MODEL --checkpoint")


def test_a_wrong_number_of_classes(place, refused):
    refused([*place.on_photos, "--num-classes", 7], "head.weight", "3 classes", "--num-classes 3")
    refused([*place.on_texts, "--num-classes", 7], "3 classes", "Leave --num-classes out")
    state = torch.load(place.cnn, weights_only=True)
    state |= {"head.weight": torch.zeros(4, 64), "head.bias": torch.zeros(4)}
    torch.save(state, place.cnn)
    refused(
        [FACTORY, "--checkpoint", place.cnn, "--data", "sklearn:digits"],
        "head.weight",
        "4 classes",
        "10",
    )
    config = json.loads((place.bert / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b"}
    config["label2id"] = {"a": 0, "b": 1}
    (place.bert / "config.json").write_text(json.dumps(config))
    refused(place.on_texts, "classifier", "3 classes", "built for 2")


@pytest.mark.parametrize("keep", [0, 7, 500, 50_000])
def test_truncated_safetensors(keep, place, refused):
    for words, path in (
        (place.on_texts, place.bert / "model.safetensors"),
        (place.on_photos, place.vit),
    ):
        path.write_bytes(path.read_bytes()[:keep])
        refused(words, str(path), "truncated", "again")


def test_a_truncated_pt_file(place, refused):
    place.cnn.write_bytes(place.cnn.read_bytes()[:5000])
    words = [FACTORY, "--checkpoint", place.cnn, "--data", "sklearn:digits"]
    refused(words, str(place.cnn), "truncated")


def test_a_saved_directory_that_was_truncated(place, refused):
    words = compress_words(place, place.on_texts)
    assert main([str(word) for word in words]) == 0
    weights = place.out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    refused([place.out, "--data", place.texts], "truncated", command="evaluate")
    weights.unlink()
    refused([place.out, "--data", place.texts], "no weights", command="evaluate")


def test_a_pickled_module(place, refused):
    torch.save(nn.Linear(2, 2), place.cnn)
    words = [FACTORY, "--checkpoint", place.cnn, "--data", "sklearn:digits"]
    refused(words, "pickled", "state_dict()", "--checkpoint")
    torch.save(nn.Linear(2, 2), place.bert / "pytorch_model.bin")
    (place.bert / "model.safetensors").unlink()
    refused(place.on_texts, "pickled", "safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, place, refused):
    for words, path in (
        (place.on_texts, place.bert / "model.safetensors"),
        (place.on_photos, place.vit),
    ):
        state = load_file(path)
        key = next(key for key in state if state[key].ndim == 2)
        state[key][1, 1] = value
        save_file(state, path, {"format": "pt"})
        refused(words, key, "1 NaN or infinite", "use an earlier one")


@pytest.mark.parametrize(
    ("reference", "code", "saying"),
    [
        ("missing.py:build", 2, ("missing.py",)),
        (FACTORY.replace(":build", ":biuld"), 2, ("Did you mean 'build'",)),
        ("number.py:build", 1, ("int", "torch.nn.Module")),
        ("raises.py:build", 1, ("ValueError: no", "raises.py")),
        ("syntax.py:build", 1, ("SyntaxError", "syntax.py")),
    ],
)
def test_a_factory_that_does_not_work(reference, code, saying, place, refused):
    Path("number.py").write_text("def build():\n    return 3\n")
    Path("raises.py").write_text("def build():\n    raise ValueError('no')\n")
    Path("syntax.py").write_text("def build(:\n")
    words = [reference, "--checkpoint", place.cnn, "--data", "sklearn:digits"]
    refused(words, *saying, code=code)


def test_a_factory_without_its_checkpoint_is_said_to_be_untrained(capsys):
    assert main(["evaluate", FACTORY, "--data", "sklearn:digits", "--limit", "60"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "No --checkpoint was given" in told
    assert "random" in told


def test_a_saved_plain_module_without_its_factory(place, refused):
    words = [FACTORY, "--checkpoint", place.cnn, "--data", "sklearn:digits"]
    assert main([str(word) for word in compress_words(place, words)]) == 0
    refused([place.out, "--data", "sklearn:digits"], "--factory", command="evaluate")


def test_an_input_size_that_the_model_cannot_take(place, refused):
    words = ["test_vit", "--checkpoint", place.vit, "--data", place.photos, "--input-size"]
    refused([*words, 48], "pos_embed", "--input-size")
    refused([*words, "1,32,32"], "patch_embed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there(place, refused):
    refused([*place.on_photos, "--device", "cuda"], "cuda", "--device cpu", code=2)


# The data.


def test_no_such_data(place, refused):
    refused([place.bert, "--data", place.root / "txts"], "txts", "Did you mean", "texts", code=2)


def test_labels_that_are_missing(place, refused):
    rows = [
        (text, label if index != 5 else "") for index, (text, label) in enumerate(texts(60, seed=1))
    ]
    path = write_table(place.root / "holes.csv", rows)
    words = [place.bert, "--data", path]
    refused(words, "1 of 60 rows have no label", "row 5", "Remove")
    bare = write_table(place.root / "bare.csv", [(text,) for text, _ in rows], ("text",))
    words = [place.bert, "--data", bare]
    refused(words, "no labels", "--label-column", command="evaluate")


def test_labels_that_are_not_the_models(place, refused):
    rows = [(text, {"sport": "music"}.get(label, label)) for text, label in texts(60, seed=1)]
    path = write_table(place.root / "music.csv", rows)
    refused([place.bert, "--data", path], "music", "money, sport, weather", "rename")
    shutil.rmtree(place.photos / "red")
    refused(place.on_photos, "blue, green", "3 classes", "rename")


@pytest.mark.parametrize("option", ["--label-column", "--text-column"])
def test_a_column_that_is_not_there(option, place, refused):
    refused([*place.on_texts, option, "lable"], "lable", "label", "text")


def test_empty_data(place, refused):
    empty = place.root / "empty"
    empty.mkdir()
    refused([place.bert, "--data", empty], str(empty), "empty", "Expected")
    (empty / "none.csv").write_text("")
    refused([place.bert, "--data", empty / "none.csv"], "none.csv", "empty")
    (empty / "none.csv").write_text("text,label\n")
    refused([place.bert, "--data", empty / "none.csv"], "none.csv", "no rows")
    for photo in place.photos.rglob("*.png"):
        photo.unlink()
    refused(place.on_photos, "no images", "folders")


def test_too_little_data(place, refused):
    path = write_table(place.root / "few.csv", texts(3, seed=1))
    refused([place.bert, "--data", path], "Too few samples", "at least 5")


def test_one_class(place, refused):
    rows = [(text, label) for text, label in texts(90, seed=1) if label == "sport"]
    path = write_table(place.root / "one.csv", rows)
    refused([place.bert, "--data", path], "one class", "sport", "label column")
    shutil.rmtree(place.photos / "red")
    shutil.rmtree(place.photos / "blue")
    refused(place.on_photos, "one class", "green")


def test_data_of_another_modality(place, refused):
    refused([place.bert, "--data", place.photos], "images", "takes texts")
    refused([*place.vit_words, "--data", place.texts], "texts", "takes images")


def test_a_table_that_is_none(place, refused):
    path = place.root / "noise.csv"
    path.write_bytes(np.random.default_rng(0).bytes(2000))
    refused([place.bert, "--data", path], "noise.csv", "UTF-8")


def test_a_text_longer_than_the_model_can_take(place, refused):
    refused([*place.on_texts, "--max-length", 1000], "--max-length 1000", "40")


def damage(photos: Path) -> list[Path]:
    """Make three images unreadable, each in its own way."""
    broken = [photos / "red" / "002.png", photos / "blue" / "000.png", photos / "green" / "001.png"]
    broken[0].write_bytes(b"no image")
    broken[1].write_bytes(broken[1].read_bytes()[:200])
    broken[2].write_bytes(b"")
    return broken


def test_corrupt_images_are_named_and_skipped(place, capsys):
    broken = damage(place.photos)
    assert main([str(word) for word in compress_words(place, [*place.on_photos, "--json"])]) == 0
    out, err = capsys.readouterr()
    told = err.replace("\n", "")
    report = json.loads(out)
    notes = " ".join(report["notes"])
    assert "Skipped" in notes
    for path in broken:
        assert path.name in told
        assert str(path) in notes
    counted = sum(report["data"][name]["samples"] for name in ("calibration", "selection", "test"))
    assert counted == 150 - len(broken)


def test_corrupt_images_are_refused_when_strict(place, refused):
    broken = damage(place.photos)
    line = refused([*place.on_photos, "--strict"], "cannot be read", "without --strict")
    assert any(str(path) in line for path in broken)


def test_nothing_but_corrupt_images(place, refused):
    for path in place.photos.rglob("*.png"):
        path.write_bytes(b"no image")
    refused(place.on_photos, "None of the")


def test_images_of_every_mode_are_read(place, capsys):
    for index, mode in enumerate(("L", "RGBA", "P", "CMYK", "1")):
        path = place.photos / "red" / f"{3 * index + 2:03}.png"
        image = Image.open(path).convert(mode)
        image.save(path.with_suffix(".tif" if mode == "CMYK" else ".png"))
    words = [*place.on_photos, "--strict", "--json"]
    assert main(["evaluate", *map(str, words)]) == 0
    assert "Skipped" not in capsys.readouterr().err


# Budget, method and plan.


@pytest.mark.parametrize(
    ("budget", "saying"),
    [
        ("layers=0", ("layers=0", "more than 0")),
        ("layers=0%", ("layers=0%", "more than 0")),
        ("layers=150%", ("150%", "at most 100 %")),
        ("params=50", ("params=50", "write 50%")),
        ("layers=abc", ("abc", "layers=50%")),
        ("layers=-5%", ("-5%", "layers=50%")),
        ("abc", ("abc", "layers=50%")),
        ("150%", ("150%", "layers=50%")),
        ("layrs=50%", ("layrs", "Did you mean 'layers'")),
    ],
)
def test_a_budget_that_can_never_work(budget, saying, refused, place):
    refused([*place.on_texts, "--budget", budget], *saying, code=2)
    refused([*place.on_texts, "--budget", budget], *saying, code=2, command="plan")


def test_a_budget_below_the_smallest_model(place, refused):
    line = refused(
        [*place.on_texts, "--budget", "params=5%"], "smallest reachable share", "embeddings", code=3
    )
    reachable = line.split("share is ")[1].split(" %")[0]
    words = [*place.on_texts, "--budget", f"params={reachable}%", "--quiet"]
    assert main([str(word) for word in compress_words(place, words)]) == 0


def test_unknown_names(place, refused):
    refused([*place.on_texts, "--method", "whitend"], "Did you mean 'whitened'", code=2)
    refused([*place.on_texts, "--buget", "layers=50%"], "Did you mean --budget", code=2)
    refused(["--data", "x"], "Did you mean 'evaluate'", code=2, command="evaluat")
    refused([*place.on_texts, "--exclude", "bert.encodr.*"], "bert.encodr.*", code=2)
    refused([*place.on_texts, "--include", "nothing*"], "nothing*", code=2)


def test_nothing_is_left_to_factorize(place, refused):
    refused([*place.on_texts, "--exclude", "*"], "No layer", "--include")


def edited(place: Place, change: Callable[[dict], None]) -> list[object]:
    """Return the words that replay a changed plan."""
    path = place.root / "plan.json"
    words = ["plan", *place.on_texts, *QUICK, "--budget", "layers=50%", "--out", path, "--quiet"]
    assert main([str(word) for word in words]) == 0
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    return [*place.on_texts, "--plan", path]


QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("change", "code", "saying"),
    [
        (lambda plan: plan["layers"][QUERY].update(rank=0), 2, (QUERY, "rank")),
        (lambda plan: plan["layers"][QUERY].update(rank="many"), 2, (QUERY, "rank")),
        (lambda plan: plan["layers"][QUERY].update(rank=33), 2, (QUERY, "33", "32")),
        (lambda plan: plan["layers"][QUERY].update(shape=[8, 8]), 2, (QUERY, "shape")),
        (lambda plan: plan["layers"][QUERY].update(rnk=3), 2, (QUERY, "rnk")),
        (
            lambda plan: plan["layers"].update({QUERY + "s": plan["layers"][QUERY]}),
            2,
            (QUERY + "s", "Did you mean"),
        ),
        (lambda plan: plan.update(version=99), 2, ("version",)),
        (lambda plan: plan.update(method="whitend"), 2, ("whitend", "Did you mean 'whitened'")),
    ],
)
def test_a_plan_that_does_not_fit(change, code, saying, place, refused):
    refused(edited(place, change), *saying, code=code)


def test_a_plan_that_cannot_be_read(place, refused):
    refused([*place.on_texts, "--plan", place.root / "no.json"], "no.json", code=2)
    refused([*place.on_texts, "--plan", place.bert / "config.json"], "config.json", code=2)
    refused([*place.on_texts, "--plan", place.bert / "model.safetensors"], "Cannot read", code=2)


# The output.


def test_an_output_that_exists(place, refused):
    place.out.mkdir()
    (place.out / "mine.txt").write_text("mine")
    refused(place.on_texts, str(place.out), "--overwrite", code=2)
    refused([*place.on_texts, "--overwrite"], "not written by compressor", code=2)
    refused([*place.on_texts, "--out", place.vit], "no directory", code=2)


def test_an_output_below_a_file(place, refused, monkeypatch):
    monkeypatch.setattr("compressor.pipeline.steps.load_model", None)  # it is seen before any work
    refused(
        [*place.on_texts, "--out", place.vit / "deeper" / "out"], str(place.vit), "--out", code=2
    )


def test_a_plan_that_exists_or_cannot_be_written(place, refused):
    words = [*place.on_texts, *QUICK, "--budget", "layers=50%", "--out"]
    (place.root / "plan.json").write_text("mine")
    refused([*words, place.root / "plan.json"], "--overwrite", code=2, command="plan")
    refused([*words, place.vit / "plan.json"], str(place.vit), "a file", code=2, command="plan")
    words += [place.root / "tmp", "--overwrite"]
    refused(words, str(place.root / "tmp"), command="plan", code=2)


def test_no_space_is_seen_before_writing(place, refused, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(place.on_texts, "No space", "1,000 are free", "--out")


@pytest.mark.slow
def test_a_disk_that_fills_up_while_writing(place):
    """Files of this process stop growing at 20,000 bytes, as on a full disk."""
    code = (
        "import json, resource, sys\n"
        "from compressor.cli import main\n"
        "import torch, transformers, datasets\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.exit(main(json.loads(sys.argv[1])))\n"
    )
    words = [str(word) for word in compress_words(place, place.on_texts)]
    before = listing(place.root)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(words)],
        env={
            **os.environ,
            "TMPDIR": str(place.root / "tmp"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(place.root.parent / "full"),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "error: Cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert "space" in done.stderr
    assert listing(place.root) == before


def test_a_failure_keeps_the_output_that_it_was_to_replace(place, refused, monkeypatch):
    words = compress_words(place, [*place.on_texts, "--quiet"])
    assert main([str(word) for word in words]) == 0
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused([*place.on_texts, "--overwrite"], "No space")
    assert main(["evaluate", str(place.out), "--data", str(place.texts), "--quiet"]) == 0


def test_an_interrupt_leaves_nothing(place, refused, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.checkpoint.save.flush", interrupted)
    refused(place.on_texts, "interrupted", code=130)
