"""Commands that take whole settings objects, seen by typer as functions of flat options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, ValidationError

from compressor.cli.options import GROUPS, PANELS
from compressor.errors import UsageError
from compressor.jsonfile import said


@dataclass(frozen=True)
class Only:
    """Marks a command's settings of which it offers but some fields; the rest keep defaults.

    Args:
        fields: Names of those fields.
    """

    fields: tuple[str, ...]


@dataclass(frozen=True)
class Without:
    """Marks a command's settings that may lack a field, though others require it.

    Args:
        field: Name of that field; left out, it is the empty string.
    """

    field: str


def add_command(app: typer.Typer, function: Callable[..., None]) -> None:
    """Add ``function`` to ``app`` under its own name, its settings spread over options.

    The docstring's first paragraphs become the help; what follows the line ``Examples:`` is
    printed below the options as it stands, so that it can be pasted.
    """
    text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\nExamples:\n")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    app.command(function.__name__, help=text.strip(), epilog=examples_text(lines))(
        flatten(function)
    )


def examples_text(lines: Iterable[str]) -> str:
    """Return the end of a help page: examples one a line, brackets safe from rich's markup."""
    return "\n".join(["Examples:", *lines]).replace("[", r"\[")


def flatten(function: Callable[..., None]) -> Callable[..., None]:
    """Return ``function`` with each settings parameter replaced by that settings' options."""
    hints = get_type_hints(function, include_extras=True)
    flat: list[inspect.Parameter] = []
    grouped: dict[str, tuple[type[BaseModel], tuple[str, ...]]] = {}
    for parameter in inspect.signature(function).parameters.values():
        annotation = hints[parameter.name]
        settings, fields = _settings_of(annotation)
        if settings is None:
            flat.append(parameter.replace(annotation=annotation, kind=parameter.KEYWORD_ONLY))
            continue
        grouped[parameter.name] = settings, fields
        options = GROUPS[settings].options
        defaults = _defaults(settings) | _lacking(annotation)
        flat += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=option
            )
            for name, option in options.items()
            if name in fields
        ]

    def command(**values: Any) -> None:
        joined = {
            name: _join(settings, {field: values.pop(field) for field in fields})
            for name, (settings, fields) in grouped.items()
        }
        function(**joined, **values)

    flat.sort(key=_panel)
    command.__name__ = function.__name__
    command.__module__ = function.__module__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    command.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return command


def _panel(parameter: inspect.Parameter) -> int:
    """Return where in the help an option stands; options of one panel keep their order."""
    info = get_args(parameter.annotation)[1]
    return PANELS.index(info.rich_help_panel or PANELS[0])


def _settings_of(annotation: Any) -> tuple[type[BaseModel] | None, tuple[str, ...]]:
    """Return the settings class of a parameter and the fields offered, or (None, ())."""
    only: tuple[str, ...] | None = None
    if get_origin(annotation) is Annotated:
        settings, *marks = get_args(annotation)
        only = next((mark.fields for mark in marks if isinstance(mark, Only)), None)
    else:
        settings = annotation
    if settings not in GROUPS:
        return None, ()
    return settings, tuple(GROUPS[settings].options) if only is None else only


def _lacking(annotation: Any) -> dict[str, Any]:
    """Return the empty default of each field that a command's settings may lack."""
    marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return {mark.field: "" for mark in marks if isinstance(mark, Without)}


def _defaults(settings: type[BaseModel]) -> dict[str, Any]:
    """Return the default of each field, ``inspect.Parameter.empty`` where it has none."""
    defaults: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        if field.is_required():
            defaults[name] = inspect.Parameter.empty
        else:
            defaults[name] = None if field.default == () else field.default
    return defaults


def _join(settings: type[BaseModel], values: Mapping[str, Any]) -> Any:
    """Build settings from options.

    Raises:
        UsageError: If a value does not pass the settings' own validation.
    """
    parse = GROUPS[settings].parse
    parsed = {name: parse.get(name, lambda value: value)(value) for name, value in values.items()}
    try:
        return settings(**parsed)
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + str(problem["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {said(problem['msg'])}, found {problem['input']!r}") from error
