"""A manifest read into jobs: defaults filled in, matrices spelled out, everything checked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from compressor.batch.document import Document, Place, Problem, read_document, refuse
from compressor.batch.keys import job_keys, manifest_model
from compressor.batch.references import resolve, split_factory
from compressor.errors import UsageError, did_you_mean
from compressor.paths import worded
from compressor.settings import CompressSettings, check_target

RESERVED = frozenset({"logs", "index.html", "results.csv", "results.jsonl"})
"""Names that a batch's directory needs for itself."""

_STRUCTURE = ("matrix", "name")


@dataclass(frozen=True)
class Job:
    """One compression.

    Args:
        name: Unique in its manifest; the name of the directory that its result goes to.
        settings: What is asked for; ``out`` is the name alone.
        line: Where it stands in the manifest.
    """

    name: str
    settings: CompressSettings
    line: int


@dataclass(frozen=True)
class _Written:
    """The values of one job and where each was written; an override stands nowhere."""

    values: Mapping[str, Any]
    places: Mapping[str, Place]
    at: Place
    name: str | None
    axes: tuple[str, ...]


def read_manifest(path: Path, *, overrides: Mapping[str, Any] | None = None) -> tuple[Job, ...]:
    """Read and check a manifest.

    Args:
        path: YAML with ``jobs`` and, if wanted, ``defaults``.
        overrides: Values by key that take precedence over the manifest's.

    Raises:
        UsageError: If anything in it can never work; every problem is listed with its line.
    """
    document = read_document(path)
    problems: list[Problem] = []
    jobs = []
    for written in _spelled_out(document, _parse(document), overrides or {}, problems):
        job = _job(written, document, problems)
        if job is not None:
            jobs.append(job)
    problems += _doubles(jobs)
    if problems:
        raise refuse(path, problems)
    return tuple(jobs)


def _parse(document: Document) -> Any:
    """Validate the document's form.

    Raises:
        UsageError: With every problem that pydantic found, in words of the manifest.
    """
    if not isinstance(document.value, dict):
        raise refuse(
            document.path,
            [Problem(1, "expected a mapping with the keys defaults and jobs, found none")],
        )
    model = manifest_model()
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        errors = [
            found
            for found in error.errors()
            # A list with a wrong member counts as empty as well.
            if found["type"] != "too_short" or not found["input"]
        ]
        raise refuse(
            document.path, [_problem(document, model, found) for found in errors]
        ) from error


def _problem(document: Document, model: type[BaseModel], error: Any) -> Problem:
    """Turn one of pydantic's errors into a problem at its line."""
    place = tuple(error["loc"])
    where, key = _words(place[:-1]), str(place[-1]) if place else ""
    prefix = f"{where}: " if where else ""
    line = document.line(place)
    kind, context, value = error["type"], error.get("ctx", {}), error.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(model, place)
        return Problem(line, f"{prefix}unknown key {key!r}.{did_you_mean(key, known, 40)}")
    if kind == "missing":
        return Problem(line, f"{prefix}the key {key!r} is missing")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return Problem(
            line, f"{_words(place)}: found {value!r}.{did_you_mean(str(value), choices)}"
        )
    if kind == "string_pattern_mismatch":
        return Problem(
            line,
            f"{_words(place)}: {value!r} cannot name a directory. Use letters, digits, and . _ = "
            "% + - after the first",
        )
    return Problem(line, f"{_words(place)}: {error['msg']}, found {value!r}")


def _known_keys(model: type[BaseModel], place: Place) -> list[str]:
    """Return the keys that are allowed where an unknown one stands."""
    if len(place) == 1:
        return list(model.model_fields)
    keys = list(job_keys())
    if place[-2] == "matrix":
        return keys
    return [*keys, "matrix"] if place[0] == "defaults" else [*keys, *_STRUCTURE]


def _words(place: Place) -> str:
    """Return a place as a person writes it: ``jobs[1].matrix.budget[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _spelled_out(
    document: Document, manifest: Any, overrides: Mapping[str, Any], problems: list[Problem]
) -> Iterator[_Written]:
    """Yield every job of every matrix, with defaults and overrides filled in."""
    shared = _given(manifest.defaults, ("defaults",))
    for number, entry in enumerate(manifest.jobs):
        at: Place = ("jobs", number)
        own = _given(entry, at)
        has_own = "matrix" in entry.model_fields_set
        source, origin = (entry, at) if has_own else (manifest.defaults, ("defaults",))
        axes = _axes(source.matrix, (*origin, "matrix"), document)
        for key in sorted(axes.keys() & own.keys()):
            if has_own:
                place = (*at, "matrix", key)
                problems.append(
                    Problem(
                        document.line(place),
                        f"{_words(place)}: {_words(at)} has a {key} of its own as well; leave out "
                        "one of them",
                    )
                )
            del axes[key]
        for combination in itertools.product(*axes.values()):
            chosen = dict(zip(axes, combination, strict=True))
            found = {**shared, **own, **chosen}
            yield _Written(
                values={key: value for key, (value, _) in found.items()} | dict(overrides),
                places={key: place for key, (_, place) in found.items()},
                at=at,
                name=entry.name,
                axes=tuple(axes),
            )


def _given(entry: BaseModel, at: Place) -> dict[str, tuple[Any, Place]]:
    """Return the values that were written in an entry, by key."""
    keys = [key for key in entry.model_fields_set if key not in _STRUCTURE]
    return {key: (getattr(entry, key), (*at, key)) for key in keys}


def _axes(
    matrix: BaseModel | None, at: Place, document: Document
) -> dict[str, list[tuple[Any, Place]]]:
    """Return the values of each axis of a matrix, in the order in which they were written."""
    if matrix is None:
        return {}
    written = document.value
    for part in at:
        written = written[part]
    return {
        key: [(value, (*at, key, number)) for number, value in enumerate(values)]
        for key in written
        if (values := getattr(matrix, key)) is not None
    }


def _job(written: _Written, document: Document, problems: list[Problem]) -> Job | None:
    """Return one job, or None if something is wrong with it."""
    keys = job_keys()
    line = document.line(written.at)
    before = len(problems)
    values: dict[str, Any] = {}
    for name, value in written.values.items():
        if value is None:
            continue  # null: the option's own default
        try:
            values[name] = value
            if keys[name].is_path or keys[name].is_reference:
                values[name] = resolve(value, keys[name], document.path.parent)
            _check(name, value)
        except (UsageError, OSError, RuntimeError) as error:  # a name too long, an unknown ~user
            place = written.places.get(name, written.at)
            problem = Problem(document.line(place), f"{_words(place)}: {worded(error)}")
            if problem not in problems:
                problems.append(problem)
    for name in ("model", "data"):
        if name not in values:
            problems.append(
                Problem(
                    line, f"{_words(written.at)} has no {name}. Give one, or put it in defaults"
                )
            )
    if len(problems) > before:
        return None
    name = written.name or _slug(Path(split_factory(str(values["model"]))[0]).stem)
    told = written.axes if written.name else ("method", "budget", *written.axes)
    name = "-".join([name, *(_slug(values[key]) for key in dict.fromkeys(told) if key in values
                             and not (key == "model" and not written.name))])  # fmt: skip
    try:
        settings = _settings(values, Path(name))
        check_target(settings.method, settings.plan)
    except ValidationError as error:
        problems.append(Problem(line, f"{_words(written.at)}: {error.errors()[0]['msg']}"))
        return None
    except UsageError as error:
        problems.append(Problem(line, f"{_words(written.at)}: {error}".replace("--", "")))
        return None
    if name in RESERVED:
        problems.append(Problem(line, f"{_words(written.at)}: the name {name!r} is taken"))
    return Job(name=name, settings=settings, line=line)


def _check(name: str, value: Any) -> None:
    """Refuse a method or budget that does not exist, before anything runs."""
    from compressor.methods.budget import parse_budget
    from compressor.methods.method import METHODS

    if name == "method":
        METHODS.get(value)
    if name == "budget":
        for budget in value:
            parse_budget(budget)


def _settings(values: Mapping[str, Any], out: Path) -> CompressSettings:
    """Sort the values of a job into the settings that hold them."""
    parts: dict[str, Any] = {}
    for name, value in values.items():
        part = job_keys()[name].part
        if part is None:
            parts[name] = value
        else:
            parts.setdefault(part, {})[name] = value
    return CompressSettings(**parts, out=out)


def _slug(value: object) -> str:
    """Return a value as part of a directory's name."""
    texts = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    parts = [re.sub(r"[^A-Za-z0-9.]+", "-", str(text).rpartition("/")[2]) for text in texts]
    return "-".join(part.strip("-.") for part in parts)


def _doubles(jobs: Sequence[Job]) -> Iterator[Problem]:
    """Yield a problem for each job that is called, or is, what an earlier one is."""
    names: dict[str, Job] = {}
    contents: dict[str, Job] = {}
    for job in jobs:
        earlier = names.setdefault(job.name.casefold(), job)
        content = job.settings.model_copy(update={"out": Path()}).model_dump_json()
        same = contents.setdefault(content, job)
        if same is not job:
            yield Problem(
                job.line, f"{job.name!r} is the same job as {same.name!r} on line {same.line}"
            )
        elif earlier is not job:
            yield Problem(
                job.line,
                f"a second job is called {job.name!r}; the first stands on line {earlier.line}. "
                "Give them names",
            )
