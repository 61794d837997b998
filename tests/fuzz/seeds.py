"""Make the corpus: one small, valid file of each kind, from models built here.

python -m tests.fuzz.seeds
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save

MANIFEST = """\
defaults: {data: data, seed: 3}
jobs:
  - name: bert
    model: models/bert
    matrix: {method: [svd, nc1], budget: ['layers=60%', [layers=0.4, params=80%]]}
  - {name: plain, model: 'net.py:build', checkpoint: w.pt, budget: layers=50%}
"""

CORPUS = Path(__file__).parent / "corpus"


def seeds() -> dict[str, list[bytes]]:
    """Return valid inputs by target."""
    import tempfile

    import pyarrow
    import pyarrow.parquet

    from compressor.layers.lowrank import LowRankLinear
    from compressor.saving import save as save_model

    model = torch.nn.Sequential(LowRankLinear(8, 8, 2), torch.nn.Linear(8, 3))
    with tempfile.TemporaryDirectory() as place:
        save_model(model, Path(place) / "out", example=torch.ones(2, 8))
        saved = {path.name: path.read_bytes() for path in (Path(place) / "out").iterdir()}
    state = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2, dtype=torch.float16)}
    archives = []
    for modern in (True, False):
        buffer = io.BytesIO()
        torch.save({"state_dict": state}, buffer, _use_new_zipfile_serialization=modern)
        archives.append(buffer.getvalue())
    images = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.effect_noise((9, 7), 60).convert("RGB").save(buffer, form)
        images.append(buffer.getvalue())
    table = pyarrow.table({"text": ["a b", "c", "d e", "f"], "label": [0, 1, 0, 1]})
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    transformers = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "quantization_config": json.loads(saved["config.json"])["lowrank"],
    }
    index = {
        "metadata": {"total_size": 8},
        "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"},
    }
    return {
        "config": [saved["config.json"], json.dumps(transformers).encode()],
        "integrity": [saved["integrity.json"]],
        "plan": [_plan()],
        "report": [_report()],
        "shard_index": [json.dumps(index).encode()],
        "safetensors": [saved["model.safetensors"], save(state, {"format": "pt"})],
        "state_dict": archives,
        "image": images,
        "manifest": [MANIFEST.encode()],
        "csv": [b'text,label\n"a, b",0\nc,1\nd,0\n', "text,label\r\nä,x\r\nb,y\r\n".encode()],
        "jsonl": [b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'],
        "parquet": [parquet.getvalue()],
    }


def _plan() -> bytes:
    from compressor.methods.plan import Plan, PlannedLayer
    from compressor.methods.recipe import Recipe

    layer = PlannedLayer(kind="linear", shape=(8, 8), rank=2, break_even_rank=3, nc1_quotient=0.5)
    plan = Plan(method="nc1", budget=("layers=50%",), recipe=Recipe(), layers={"0": layer})
    return plan.model_dump_json().encode()


def _report() -> bytes:
    from tests.report.results import report

    return report().model_dump_json().encode()


def main() -> None:
    """Write the corpus; what fuzzing has added to it stays."""
    for name, inputs in seeds().items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (folder / f"seed-{number}").write_bytes(data)


if __name__ == "__main__":
    main()
