"""A checkpoint compressed in parts is the one that is compressed as a whole, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compressor
from compressor.checkpoint.whole import written_whole
from compressor.cli import main
from compressor.errors import CheckpointError, ModelError, OutputExistsError, UsageError
from compressor.layers.lowrank import lowrank_layers
from compressor.models.weights import find_weight_files
from compressor.pipeline import compress_model
from compressor.pipeline.resume import resume_directory
from compressor.progress import SILENT
from compressor.settings import (
    CompressSettings,
    DataSettings,
    MethodSettings,
    ModelSettings,
    StreamSettings,
)
from compressor.streaming import output, run
from compressor.streaming.run import stream_model
from tests import language


def settings(model: Path, out: Path, *, method: str = "svd", **others) -> StreamSettings:
    return StreamSettings(
        model=ModelSettings(model=str(model)),
        method=MethodSettings(method=method, budget=("layers=60%",)),
        out=out,
        **others,
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", torch.bfloat16),
        ("gpt2", torch.float32),
        ("mixtral", torch.float32),
        ("bert", torch.float32),
        ("t5", torch.float32),
    ],
)
def test_it_writes_what_compressing_as_a_whole_writes(name, dtype, tmp_path) -> None:
    model = language.save(name, tmp_path / name, dtype)
    streamed = stream_model(settings(model, tmp_path / "streamed"), progress=SILENT)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(language.text())
    compress_model(
        CompressSettings(
            model=ModelSettings(model=str(model)),
            data=DataSettings(data=str(corpus), limit=2, calibration=4, max_length=32),
            method=MethodSettings(method="svd", budget=("layers=60%",)),
            out=tmp_path / "whole",
        ),
        progress=SILENT,
    )
    parts, whole = (compressor.load(tmp_path / place) for place in ("streamed", "whole"))
    assert lowrank_layers(parts).keys() == lowrank_layers(whole).keys()
    assert lowrank_layers(parts)
    expected = whole.state_dict()
    assert parts.state_dict().keys() == expected.keys()
    for key, tensor in parts.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6, msg=key)
    blocks = [
        json.loads((tmp_path / place / "config.json").read_text())["quantization_config"]
        for place in ("streamed", "whole")
    ]
    assert blocks[0] == blocks[1]
    assert streamed.compressed_parameters == sum(p.numel() for p in whole.parameters())
    assert len(find_weight_files(tmp_path / "streamed")) == streamed.units > 2
    assert streamed.largest_unit < streamed.parameters / 2


def test_energies_decide_where_the_method_asks_for_them(tmp_path) -> None:
    model = language.save("llama", tmp_path / "llama")
    stream_model(settings(model, tmp_path / "out", method="svd-energy"), progress=SILENT)
    dense = compressor.load(tmp_path / "out")
    ranks = json.loads((tmp_path / "out" / "plan.json").read_text())["layers"]
    kept = {name: layer["rank"] / min(layer["shape"]) for name, layer in ranks.items()}
    assert len(set(kept.values())) > 1
    assert all(lowrank_layers(dense)[n].rank == ranks[n]["rank"] for n in lowrank_layers(dense))


def test_a_killed_run_goes_on_to_the_same_checkpoint(tmp_path, monkeypatch) -> None:
    model = language.save("llama", tmp_path / "llama")
    stream_model(settings(model, tmp_path / "whole"), progress=SILENT)
    write, written = output.write_shard, []

    def dies_at_the_third(tensors, path) -> None:
        if len(written) == 2:
            with written_whole(path) as temporary:
                temporary.write_bytes(b"half")
                raise KeyboardInterrupt
        written.append(path)
        write(tensors, path)

    monkeypatch.setattr("compressor.streaming.writing.write_shard", dies_at_the_third)
    asked = settings(model, tmp_path / "out", resume=True)
    with pytest.raises(KeyboardInterrupt):
        stream_model(asked, progress=SILENT)
    assert not asked.out.exists()
    kept = {path: path.stat().st_mtime_ns for path in written}

    def unless_there(tensors, path) -> None:
        assert path not in kept
        write(tensors, path)

    monkeypatch.setattr("compressor.streaming.writing.write_shard", unless_there)
    stream_model(asked, progress=SILENT)
    assert not list(tmp_path.glob(".*"))
    first, second = (find_weight_files(tmp_path / place) for place in ("whole", "out"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_run_that_was_killed_after_its_last_step_is_finished(tmp_path) -> None:
    model = language.save("llama", tmp_path / "llama")
    asked = settings(model, tmp_path / "out", resume=True, command="compressor compress")
    made = stream_model(asked, progress=SILENT)
    left = resume_directory(asked.out)  # what a kill before the clean-up leaves
    (left / "scratch").mkdir(parents=True)
    assert stream_model(asked, progress=SILENT) == made
    assert not left.exists()
    with pytest.raises(OutputExistsError):
        stream_model(asked.model_copy(update={"command": "another"}), progress=SILENT)


@pytest.mark.slow
def test_what_was_kept_of_another_run_is_not_taken(tmp_path, monkeypatch) -> None:
    model = language.save("llama", tmp_path / "llama")
    monkeypatch.setattr("compressor.streaming.run.write_index", lambda *a, **b: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream_model(settings(model, tmp_path / "out", resume=True), progress=SILENT)
    monkeypatch.undo()
    asked = settings(model, tmp_path / "out", method="svd-energy", resume=True)
    stream_model(asked, progress=SILENT)
    stream_model(settings(model, tmp_path / "new", method="svd-energy"), progress=SILENT)
    files = [find_weight_files(tmp_path / place) for place in ("out", "new")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_other_code_that_comes_with_the_checkpoint_begins_anew(tmp_path) -> None:
    asked = settings(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "modeling.py").write_text("x = 1\n")
    before = run._key(asked, tmp_path, None)
    assert run._key(asked, tmp_path, None) == before
    (tmp_path / "modeling.py").write_text("x = 10\n")
    assert run._key(asked, tmp_path, None) != before


def test_without_resume_nothing_is_left_of_a_run_that_fails(tmp_path, monkeypatch) -> None:
    model = language.save("llama", tmp_path / "llama")

    def full(tensors, path) -> None:
        raise CheckpointError("no space")

    monkeypatch.setattr("compressor.streaming.writing.write_shard", full)
    with pytest.raises(CheckpointError, match="no space"):
        stream_model(settings(model, tmp_path / "out"), progress=SILENT)
    assert {path.name for path in tmp_path.iterdir()} == {"llama"}


def test_what_needs_data_or_other_files_is_refused(tmp_path) -> None:
    model = language.save("llama", tmp_path / "llama")
    with pytest.raises(UsageError, match=r"needs data: give --data"):
        stream_model(settings(model, tmp_path / "out", method="nc1"), progress=SILENT)
    asked = settings(model, tmp_path / "out").model_copy(
        update={"method": MethodSettings(method="svd", budget=("drop=1",))}
    )
    with pytest.raises(UsageError, match="never has the whole model"):
        stream_model(asked, progress=SILENT)
    asked = settings(model, tmp_path / "out").model_copy(
        update={"method": MethodSettings(method="svd", budget=("layers=60%",), conv_form="auto")}
    )
    with pytest.raises(UsageError, match="leave out --conv-form"):
        stream_model(asked, progress=SILENT)
    with pytest.raises(UsageError, match="belongs to timm"):
        stream_model(settings(Path("test_vit"), tmp_path / "out"), progress=SILENT)
    stream_model(settings(model, tmp_path / "out"), progress=SILENT)
    plan = tmp_path / "out" / "plan.json"
    again = StreamSettings(
        model=ModelSettings(model=str(model)), out=tmp_path / "out", plan=plan, overwrite=True
    )
    with pytest.raises(OutputExistsError, match="Inputs are never changed"):
        stream_model(again, progress=SILENT)
    with pytest.raises(UsageError, match="compressed already"):
        stream_model(settings(tmp_path / "out", tmp_path / "again"), progress=SILENT)
    (model / "model.safetensors").rename(model / "weights")
    torch.save({"x": torch.zeros(1)}, model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors file"):
        stream_model(settings(model, tmp_path / "again"), progress=SILENT)


@pytest.mark.slow
def test_the_command_line(tmp_path, capsys) -> None:
    model = str(language.save("llama", tmp_path / "llama"))
    words = ["compress", model, "--budget", "layers=60%", "--out", str(tmp_path / "out")]
    assert main([*words, "--quiet"]) == 2
    assert "give --data" in capsys.readouterr().err
    assert main([*words, "--stream", "--recover", "10", "--quiet"]) == 2
    assert "leave out --recover" in capsys.readouterr().err
    assert main([*words, "--stream", "--test-data", "x.txt", "--quiet"]) == 2
    assert "give it too" in capsys.readouterr().err
    assert main([*words, "--stream", "--max-length", "9", "--limit", "2", "--quiet"]) == 2
    assert "leave out --max-length and --limit" in capsys.readouterr().err
    assert main([*words, "--stream", "--runtime", "onnx", "--quiet"]) == 2
    assert "leave out --runtime" in capsys.readouterr().err
    assert main([*words, "--stream", "--method", "evbmf", "--quiet", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["layer_share"] <= 0.6
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(language.text())
    measured = ["--stream", "--data", str(corpus), "--max-length", "32", "--calibration", "4"]
    measured += ["--limit", "3", "--method", "svd-llm", "--quiet", "--overwrite"]
    assert main([*words, *measured]) == 0
    assert "Perplexity" in capsys.readouterr().out
    assert "windows of" in (tmp_path / "out" / "README.md").read_text()
    assert main([*words, "--stream", "--method", "svd", "--quiet", "--overwrite"]) == 0
    assert "nothing was run." in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-c", "import compressor, sys; compressor.load(sys.argv[1])",
         str(tmp_path / "out")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
