"""The keys of a job: every option of `compress`, taken from its settings, and their JSON Schema."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model
from pydantic.fields import FieldInfo

from compressor.settings import CompressSettings, PathOrName

OWNED = frozenset({"out", "overwrite", "resume", "cache", "command", "job"})
"""Settings that a batch chooses itself: they are no keys."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._=%+-]*$"
"""Names of jobs: they become names of directories."""


@dataclass(frozen=True)
class Key:
    """One option of `compress` as a key of a job.

    Args:
        name: Its name.
        part: Field of `CompressSettings` whose settings hold it; None for one of its own.
        field: Its type and constraints.
        description: From the docstring of the settings.
    """

    name: str
    part: str | None
    field: FieldInfo
    description: str

    @property
    def is_path(self) -> bool:
        """Whether it always names a file or directory."""
        return Path in _parts_of(self.field.annotation)

    @property
    def is_reference(self) -> bool:
        """Whether it names a file or directory, or something else."""
        marks = [*self.field.metadata, *_parts_of(self.field.annotation)]
        return any(isinstance(mark, PathOrName) for mark in marks)


@cache
def job_keys() -> Mapping[str, Key]:
    """Return the keys by name, in the order of the settings."""
    keys: dict[str, Key] = {}

    def add(settings: type[BaseModel], part: str | None, name: str, field: FieldInfo) -> None:
        if name in keys:
            raise TypeError(f"two settings of compress are called {name}")
        keys[name] = Key(name, part, field, _argument_texts(settings).get(name, ""))

    for name, field in CompressSettings.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            for inner, inner_field in part.model_fields.items():
                add(part, name, inner, inner_field)
        elif name not in OWNED:
            add(CompressSettings, None, name, field)
    return keys


@cache
def manifest_model() -> type[BaseModel]:
    """Return the pydantic model of a manifest: ``defaults`` and ``jobs``."""
    matrix = _model(
        "Matrix",
        "Lists of values: every combination is a job.",
        {key.name: _list_of(key) for key in job_keys().values()},
    )
    single = {key.name: _optional(key) for key in job_keys().values()}
    axes = {"matrix": (matrix | None, Field(default=None, description=matrix.__doc__))}
    defaults = _model("Defaults", "What every job has that does not say otherwise.", single | axes)
    name = Field(
        default=None,
        pattern=NAME_PATTERN,
        description="Directory of its results; made from model, method and budget otherwise.",
    )
    job: Any = _model(
        "Job",
        "One compression, or one for each combination of its matrix.",
        {"name": (str | None, name), **single, **axes},
    )
    jobs = _many(job)
    return _model(
        "Manifest",
        "Jobs of `compressor batch`.",
        {
            "defaults": (defaults, Field(default=defaults(), description=defaults.__doc__)),
            "jobs": (jobs, Field(description="What is to be done.")),
        },
    )


def manifest_schema() -> dict[str, Any]:
    """Return the JSON Schema of a manifest, for editors."""
    schema = manifest_model().model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _model(name: str, text: str, fields: Mapping[str, Any]) -> type[BaseModel]:
    made: type[BaseModel] = create_model(
        name, __doc__=text, __config__=ConfigDict(extra="forbid", frozen=True), **fields
    )
    return made


def _annotation(key: Key) -> Any:
    """Return the type of a key's value; a list of texts may be one text."""
    plain = key.field.annotation
    if get_origin(plain) is tuple and get_args(plain) == (str, ...):
        texts = {"type": "array", "items": {"type": "string"}}
        return Annotated[
            plain,
            BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
            WithJsonSchema({"anyOf": [{"type": "string"}, texts]}),
        ]
    return Annotated[plain, *key.field.metadata] if key.field.metadata else plain


def _optional(key: Key) -> Any:
    """Return a key that may be left out, or be null: then the option's own default holds."""
    return _annotation(key) | None, Field(default=None, description=key.description)


def _list_of(key: Key) -> Any:
    return _many(_annotation(key)) | None, Field(default=None, description=key.description)


def _many(member: Any) -> Any:
    """Return the type of a list with at least one member."""
    return Annotated[tuple.__class_getitem__((member, ...)), Field(min_length=1)]


def _parts_of(annotation: Any) -> set[Any]:
    """Return a type and everything that it is made of."""
    found = {annotation}
    for part in get_args(annotation):
        found |= _parts_of(part) if get_args(part) else {part}
    return found


def _argument_texts(settings: type[BaseModel]) -> dict[str, str]:
    """Return what the docstring of a settings class says of each field."""
    _, _, arguments = inspect.cleandoc(settings.__doc__ or "").partition("Args:\n")
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", arguments, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}
