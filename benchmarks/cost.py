"""What a compression costs, as ratios within one run, and how that grows with the network.

    python -m benchmarks.cost                       # all axes; --quick in half a minute
    python -m benchmarks.cost --axes width classes
    python -m benchmarks.cost --model MODEL --data DATA --max-length 64 --calibration 1024

Measured are the stages measure, plan and factorize, without loading and without the evaluation on
test data. Beside them, in the same process: one forward and one backward pass over the calibration
data, as a training step makes them, before the stages and after (their mean counts); a plain
torch.linalg.svd of every weight that can be factorized, as it is stored; and a float64
eigendecomposition of the smaller side of each. Memory is the peak of the resident set beyond what
model and data held before. Every network is measured in a process of its own; its row replaces an
earlier one of the same name in cost.json, and the page is written from all rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cost_page import Row, page
from benchmarks.resources import metered, resident
from benchmarks.synthetic import Size, batches, network
from compressor.errors import CompressorError
from compressor.fingerprint import code_version
from compressor.forward import Batches, Forward, call, logits_of, to_device
from compressor.layers.candidates import Candidates
from compressor.layers.kinds import LAYER_KINDS
from compressor.pipeline.steps import load_run
from compressor.progress import SILENT
from compressor.settings import DataSettings, ModelSettings
from compressor.stages import factorize, measure, plan
from compressor.stopwatch import Stopwatch
from compressor.tokens import IGNORED

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"
BASE = Size()
AXES: dict[str, tuple[int, ...]] = {
    "width": (128, 256, 512),
    "depth": (2, 4, 8),
    "tokens": (16, 32, 64),
    "classes": (1, 10, 100, 1000, 10_000),
}
WARM = Size(width=32, depth=1, tokens=4, classes=3, samples=16, batch=8)
QUICK = replace(WARM, samples=32, batch=16)
QUICK_AXES = {"width": (32, 64), "classes": (1, 10)}
BUDGET = "layers=50%"

Asked: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A network and what its compression is made from.

    Args:
        module: The dense model.
        calibration: Batches to measure on.
        selection: Batches to choose by.
        forward: How the model is called; None finds out.
        classes: Number of classes; None takes the width of the logits.
        heads: Modules that make the logits, beside those that are found.
    """

    module: nn.Module
    calibration: Batches
    selection: Batches
    forward: Forward | None = None
    classes: int | None = None
    heads: tuple[str, ...] = ()


def drawn(size: Size) -> Work:
    """Return a synthetic network and its data."""
    return Work(
        network(size), batches(size, size.samples, 1), batches(size, -(-size.samples // 2), 2)
    )


def loaded(model: str, data: DataSettings) -> Work:
    """Return a checkpoint and its data."""
    found = load_run(ModelSettings(model=model, device="cpu"), data, 0, Stopwatch(), SILENT)
    return Work(
        found.model.module,
        found.data.calibration,
        found.data.selection,
        found.forward,
        len(found.data.class_names) or None,
        tuple(found.model.heads),
    )


def measured(name: str, work: Work, *, budget: str, size: Size | None = None) -> Row:
    """Compress a network and return what that cost, beside what it is compared with."""
    if size != WARM:  # so that nothing is imported, and no library started, while time is taken
        measured("warm", drawn(WARM), budget=budget, size=WARM)
    module = work.module.eval()
    forward_and_backward(module, work.calibration, most=1)
    before = forward_and_backward(module, work.calibration)
    base = resident()
    seconds, peaks = {}, {}

    def stage(title: str, run: Callable[[], object]) -> object:
        with metered() as cost:
            result = run()
        seconds[title] = cost.seconds
        if cost.peak is not None and base is not None:
            peaks[title] = max(cost.peak - base, 0)
        return result

    found = stage(
        "measure",
        lambda: measure(
            module,
            work.calibration,
            selection=work.selection,
            classes=work.classes,
            forward=work.forward,
            heads=work.heads,
        ),
    )
    made = stage("plan", lambda: plan(found, budget))  # type: ignore[arg-type]
    stage("factorize", lambda: factorize(module, made))  # type: ignore[arg-type]
    after = forward_and_backward(module, work.calibration)
    svd, eigh = decompositions(found.model, found.candidates)  # type: ignore[attr-defined]
    return Row(
        name=name,
        size=None if size is None else asdict(size),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        model_bytes=sum(parameter.nbytes for parameter in module.parameters()),
        seconds=seconds,
        peaks=peaks,
        forward_backward=(before + after) / 2,
        svd=svd,
        eigh=eigh,
        threads=torch.get_num_threads(),
        code=code_version(),
    )


def forward_and_backward(module: nn.Module, given: Batches, *, most: int | None = None) -> float:
    """Return the seconds of one forward and backward pass, gradients of all parameters made.

    Args:
        module: The model; its gradients are dropped.
        given: Batches with labels [B] or [B, T].
        most: Largest number of batches; None takes all.
    """
    device = next(module.parameters()).device
    start = time.perf_counter()
    for index, (inputs, labels) in enumerate(given):
        if index == most:
            break
        assert labels is not None
        logits = logits_of(call(module, to_device(inputs, device)))
        targets = labels.to(device).flatten()
        _loss(logits.flatten(0, -2), targets).backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy; labels may count fewer classes than there are logits."""
    return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED)


def decompositions(module: nn.Module, candidates: Candidates) -> tuple[float, float]:
    """Return the seconds of a plain SVD of each weight, and of its smaller side's float64 eigh."""
    modules = dict(module.named_modules())
    svd = eigh = 0.0
    for name, layer in candidates.layers.items():
        weight = LAYER_KINDS.get(layer.kind).matrix(modules[name]).detach()
        start = time.perf_counter()
        torch.linalg.svd(weight, full_matrices=False)
        svd += time.perf_counter() - start
        thin = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
        start = time.perf_counter()
        torch.linalg.eigh(thin @ thin.T)
        eigh += time.perf_counter() - start
    return svd, eigh


def sizes(base: Size, axes: dict[str, tuple[int, ...]]) -> dict[str, Size]:
    """Return each point of each axis through the base, by name."""
    return {
        f"{axis} {value}": replace(base, **{axis: value})
        for axis, values in axes.items()
        for value in values
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line says, and write cost.json and cost.md."""
    given = _parser().parse_args(arguments)
    if given.here is not None:
        print(json.dumps(asdict(measured_here(json.loads(given.here), given.budget))))
        return 0
    path = given.out / "cost.json"
    rows = _read(path)
    for asked in _asked(given):
        row = measured_apart(asked, given.budget)
        rows[row.name] = row
        print(row.line(), file=sys.stderr, flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    written = {"budget": given.budget, "rows": [asdict(row) for row in rows.values()]}
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    (given.out / "cost.md").write_text(page(list(rows.values()), given.budget), encoding="utf-8")
    return 0


def measured_here(asked: Asked, budget: str) -> Row:
    """Measure one network, or say why it is refused.

    Args:
        asked: Its ``title``, and the fields of its ``size``; or its ``model`` and ``data``.
        budget: What to compress it to.
    """
    title, size = asked["title"], None
    if asked["size"] is None:
        work = loaded(asked["model"], DataSettings(**asked["data"]))
    else:
        size = Size(**asked["size"])
        work = drawn(size)
    try:
        return measured(title, work, budget=budget, size=size)
    except CompressorError as error:
        refusal = f"{type(error).__name__}: {error}"
        return Row(name=title, size=asked["size"], error=refusal, code=code_version())


def measured_apart(asked: Asked, budget: str) -> Row:
    """Measure one network in a process of its own, whose memory holds nothing of others."""
    again = [sys.executable, "-m", "benchmarks.cost", "--here", json.dumps(asked)]
    ran = subprocess.run(
        [*again, "--budget", budget], stdout=subprocess.PIPE, text=True, check=True
    )
    return Row(**json.loads(ran.stdout))


def _asked(given: argparse.Namespace) -> list[Asked]:
    """Return the networks that a command line names."""
    if given.model is None:
        base, axes = (QUICK, QUICK_AXES) if given.quick else (BASE, AXES)
        chosen = {axis: axes[axis] for axis in given.axes or axes if axis in axes}
        return [{"title": name, "size": asdict(size)} for name, size in sizes(base, chosen).items()]
    data = {
        "data": given.data,
        "max_length": given.max_length,
        "calibration": given.calibration,
        "limit": 1,
    }
    known = {key: value for key, value in data.items() if value is not None}
    title = Path(given.model).name
    return [{"title": title, "size": None, "model": given.model, "data": known}]


def _read(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["name"]: Row(**row) for row in rows}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--axes", nargs="+", choices=AXES, help="default: all")
    parser.add_argument("--quick", action="store_true", help="two axes of tiny networks")
    parser.add_argument("--model", help="a checkpoint in place of synthetic networks")
    parser.add_argument("--data", help="its data")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--calibration", type=int)
    parser.add_argument("--budget", default=BUDGET)
    parser.add_argument("--out", type=Path, default=OUT, help="directory to write")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
