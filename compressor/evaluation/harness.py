"""Tasks of EleutherAI's lm-evaluation-harness, run on any language model that loads here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressor.errors import DataError, MissingExtraError, ModelError, UsageError, did_you_mean
from compressor.models.source import LoadedModel
from compressor.paths import state, worded
from compressor.schema import TaskFigures

PREFIX = "lm-eval:"
YAML = (".yaml", ".yml")


def parse_tasks(evaluations: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks of ``lm-eval:TASK`` as typed: names or paths of YAML files.

    Raises:
        UsageError: If one is of another form, or names a file that is not there.
        MissingExtraError: If the harness is not installed.
    """
    tasks = []
    for text in evaluations:
        task = text.removeprefix(PREFIX)
        if not text.startswith(PREFIX) or not task:
            raise UsageError(
                f"Cannot read --eval {text!r}. Expected lm-eval:TASK with the name of a task, or "
                "the path of its YAML file."
            )
        if task.endswith(YAML) and not Path(task).is_file():
            raise UsageError(f"--eval {text!r}: {task} {state(task)}. Expected a YAML file.")
        tasks.append(task)
    if tasks and find_spec("lm_eval") is None:
        raise MissingExtraError("--eval lm-eval:TASK", "lm-eval")
    return tuple(tasks)


def run_tasks(
    model: LoadedModel,
    tasks: Sequence[str],
    *,
    batch_size: int | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[TaskFigures, ...]:
    """Run tasks of the harness and return every metric that it reports of them.

    Args:
        model: A causal or an encoder-decoder model with its tokenizer.
        tasks: Names of tasks or groups, or paths of YAML files.
        batch_size: Sequences a batch; one by default.
        max_length: Longest sequence in tokens; the model's own by default.
        limit: Samples of each task, at most.
        seed: Seed of the harness's draws.

    Raises:
        ModelError: If the model does not generate text, or has no tokenizer.
        UsageError: If the harness knows no such task.
        DataError: If a task cannot be run, for instance because its data is not there.
    """
    if model.task not in ("causal", "seq2seq"):
        raise ModelError(
            f"The harness scores models that write text; {model.reference} is made for "
            f"{model.task.replace('masked', 'masked tokens')}."
        )
    if model.tokenizer is None:
        raise ModelError(f"{model.reference} has no tokenizer, which the harness needs.")
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    manager, names = _manager(tasks)
    wrapped = HFLM(
        pretrained=model.module,
        tokenizer=model.tokenizer,
        backend=model.task,
        batch_size=batch_size or 1,
        max_length=max_length,
    )
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=list(names),
            task_manager=manager,
            limit=limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            log_samples=False,
            bootstrap_iters=0,
        )
    except Exception as error:  # the harness and its tasks raise whatever they like
        raise DataError(
            f"The task {', '.join(names)} cannot be run: {type(error).__name__}: {worded(error)}"
        ) from error
    assert found is not None
    return tuple(
        TaskFigures(
            task=name,
            metrics=_metrics(results),
            samples=found.get("n-samples", {}).get(name, {}).get("effective"),
            version=str(found.get("versions", {}).get(name, "")) or None,
        )
        for name, results in found["results"].items()
    )


def _manager(tasks: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
    """Return the harness's index of tasks and the names to ask it for.

    Its own hundreds of tasks are read only where one of them is meant.
    """
    from lm_eval.tasks import TaskManager

    files = [Path(task) for task in tasks if task.endswith(YAML)]
    manager = TaskManager(
        include_path=sorted({str(file.parent) for file in files}) or None,
        include_defaults=len(files) < len(tasks),
    )
    names = [_named(Path(task)) if task.endswith(YAML) else task for task in tasks]
    for name in names:
        if name not in manager.all_tasks:
            raise UsageError(
                f"lm-eval knows no task {name!r}.{did_you_mean(name, manager.all_tasks)}"
            )
    return manager, tuple(names)


def _named(file: Path) -> str:
    """Return the name that a task's YAML file gives it."""
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key in ("task", "group") and value.strip():
            return value.split("#")[0].strip().strip("\"'")
    raise UsageError(f"{file} names no task: expected a line `task: NAME`.")


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of one task by name; what only the bootstrap would tell is left out."""
    found = {}
    for key, value in results.items():
        name, _, filtered = key.partition(",")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and filtered:
            found[name if filtered == "none" else f"{name} ({filtered})"] = float(value)
    return found
