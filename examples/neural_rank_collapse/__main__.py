"""Train the grid, measure every snapshot, draw the figures.

python -m examples.neural_rank_collapse --out docs/studies/neural_rank_collapse
python -m examples.neural_rank_collapse --full --mnist path/to/mnist --out long-run

Ten to thirty minutes on two cores. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from compressor.figures import versions
from examples.neural_rank_collapse.figures import draw
from examples.neural_rank_collapse.measures import measured
from examples.neural_rank_collapse.networks import Images, digits, mnist
from examples.neural_rank_collapse.results import FILE, VERSIONS, Row, read, write
from examples.neural_rank_collapse.tables import page
from examples.neural_rank_collapse.training import Cell, Effort, train

DECAYS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SHORT_DECAYS = (3e-4, 1e-3, 3e-3)
ADAMW_DECAYS = (1e-2, 1e-1, 1.0)
DEPTHS, FULL_DEPTHS = (2, 4, 6), (2, 4, 6, 8)
CONTRAST_DEPTH = 4


def cells(*, full: bool, seed: int) -> list[Cell]:
    """Return what is trained, the cheapest first."""
    found: list[Cell] = []
    for number in range(seed, seed + (3 if full else 1)):
        depths = FULL_DEPTHS if full else DEPTHS
        found += [Cell("mlp", decay, number, depth=d) for d in depths for decay in DECAYS]
        for depth in depths if full else (CONTRAST_DEPTH,):
            found += [
                Cell("mlp", decay, number, depth=depth, optimizer="adamw") for decay in ADAMW_DECAYS
            ]
            found += [
                Cell("mlp", decay, number, depth=depth, normalized=True) for decay in SHORT_DECAYS
            ]
        found += [Cell("cnn", decay, number) for decay in (DECAYS if full else SHORT_DECAYS)]
    return found


def run(cell: Cell, images: Images, effort: Effort) -> list[Row]:
    """Train one cell and measure its snapshots."""
    torch.set_num_threads(1)
    start = time.process_time()
    decay = None if cell.optimizer == "adamw" else cell.decay
    torch.set_flush_denormal(True)  # dying weights would slow a CPU down a hundred times
    try:
        return [
            Row(
                images.name,
                cell,
                effort,
                stage,
                time.process_time() - start,
                measured(network, images, decay),
            )
            for stage, network in train(cell, images, effort)
        ]
    finally:
        torch.set_flush_denormal(False)


def results(
    todo: list[Cell], images: Images, effort: Effort, *, workers: int
) -> Iterator[list[Row]]:
    """Yield the rows of each cell, in order."""
    one = partial(run, images=images, effort=effort)
    if workers == 1:
        yield from map(one, todo)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(one, todo)


def main(words: Sequence[str] | None = None) -> None:
    """Run the study.

    Args:
        words: The command line's; those of this process if None.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write to, or go on")
    parser.add_argument("--full", action="store_true", help="three seeds and deeper networks")
    parser.add_argument("--mnist", type=Path, help="directory of MNIST's IDX files: MNIST too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Effort.steps, help="of SGD and AdamW")
    parser.add_argument("--polish", type=int, default=Effort.polish, help="iterations of L-BFGS")
    parser.add_argument("--workers", type=int, default=2, help="networks trained at once")
    parser.add_argument("--only", type=int, help="so many networks of the grid, to try it out")
    parser.add_argument("--redraw", action="store_true", help="train nothing, draw what is there")
    options = parser.parse_args(words)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / FILE
    sets = [digits()]
    if options.mnist is None:
        print("MNIST: skipped, no --mnist DIR was given", file=sys.stderr)
    else:
        sets.append(mnist(options.mnist))
    effort = Effort(
        steps=options.steps, early=min(Effort.early, options.steps - 1), polish=options.polish
    )
    for images in [] if options.redraw else sets:
        done = {row.key for row in read(file)}
        grid = cells(full=options.full, seed=options.seed)[: options.only]
        todo = [cell for cell in grid if (images.name, cell, effort) not in done]
        for number, rows in enumerate(
            results(todo, images, effort, workers=options.workers), len(grid) - len(todo) + 1
        ):
            write(file, rows)
            last = rows[-1]
            cell, found = last.cell, last.network
            print(
                f"{number}/{len(grid)} {images.name}, {cell.title}, {cell.arm}, λ {cell.decay:g}: "
                f"accuracy {found.test_accuracy:.3f}, "
                f"cos {min(layer.cosine for layer in found.layers):.3f}, "
                f"{last.seconds:.0f} s of CPU time",
                file=sys.stderr,
                flush=True,
            )
    sidecar = options.out / VERSIONS
    if not (options.redraw and sidecar.is_file()):
        sidecar.write_text(json.dumps(versions(), indent=1) + "\n", encoding="utf-8")
    rows = read(file)
    draw(rows, options.out)
    known = json.loads(sidecar.read_text(encoding="utf-8"))
    (options.out / "tables.md").write_text(page(rows, known), encoding="utf-8")
    print(options.out / "tables.md")


if __name__ == "__main__":
    main()
