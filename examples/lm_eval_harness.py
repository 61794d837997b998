"""A compressed language model in the lm-evaluation-harness, through the harness's own Python API.

    pip install 'compressor[lm-eval]'
    python examples/lm_eval_harness.py DIR [--tasks lambada_openai,hellaswag] [--include FOLDER]

``import compressor`` is all that the harness's Hugging Face backend needs to load a compressed
directory. ``--include`` names a folder of task files of your own, which then are the only ones.
"""

from __future__ import annotations

import argparse

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import compressor  # noqa: F401  # registers the low-rank layers with transformers


def main() -> None:
    """Evaluate a directory, dense or compressed, on the named tasks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="directory or hub id of a causal language model")
    parser.add_argument("--tasks", default="lambada_openai")
    parser.add_argument("--include", help="folder of task files of your own")
    parser.add_argument("--limit", type=int, help="documents of each task")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()

    found = simple_evaluate(
        model=HFLM(pretrained=given.model, device=given.device, batch_size=given.batch_size),
        tasks=given.tasks.split(","),
        limit=given.limit,
        task_manager=TaskManager(
            include_path=given.include, include_defaults=given.include is None
        ),
    )
    for task, metrics in found["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                print(f"{task}  {name.partition(',')[0]}  {value:.4f}")


if __name__ == "__main__":
    main()
