"""Jinja2 templates filled in; whatever comes from a file is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from compressor.report.figures import count, figure, nats, percent, size

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def fill(template: str, /, **values: object) -> str:
    """Return a template filled in.

    Args:
        template: Name of a file in `TEMPLATES`.
        values: What it refers to; text is escaped, `drawing` makes the exception.
    """
    return _environment().get_template(template).render(**values)


def drawing(svg: str | None) -> Markup | None:
    """Mark an SVG that this package drew as safe; it holds no text from files."""
    return None if svg is None else Markup(svg)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(percent=percent, count=count, size=size, nats=nats, figure=figure)
    return environment
