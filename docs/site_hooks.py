"""What MkDocs asks this project: pages made from its code, and a place for every page.

The command line's reference is made from the commands themselves, that of the registries from what
is registered, and the contributing guide is CONTRIBUTING.md of the repository.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
GUIDES, BENCHMARKS = "How-to guides", "Benchmarks"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add pages that the navigation does not name to the section they belong to."""
    docs = Path(config.docs_dir)
    named = set(_leaves(config.nav))
    for file in sorted(docs.rglob("*.md")):
        place = file.relative_to(docs).as_posix()
        if place in named:
            continue
        section = BENCHMARKS if place.startswith("benchmarks/") else GUIDES
        _section(config.nav, section).append({_title(file): place})
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made from code."""
    for place, content in (
        ("reference/cli.md", command_line()),
        ("reference/registries.md", registries()),
        ("contributing.md", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")),
    ):
        files.append(File.generated(config, place, content=content))
    return files


def command_line() -> str:
    """Return the reference of every command: help, arguments, options by group, examples."""
    from typer.main import get_command

    from compressor.cli.app import app

    program: Any = get_command(app)
    lines = ["# Command line", "", str(program.help), ""]
    for name, command in program.commands.items():
        lines += [f"## compressor {name}", "", str(command.help), ""]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        words = " ".join(_words(parameter) for parameter in arguments)
        lines += ["```text", f"compressor {name} {words} [OPTIONS]".replace("  ", " "), "```", ""]
        if arguments:
            lines += ["| argument | meaning |", "|---|---|"]
            lines += [f"| `{_words(p)}` | {_cell(p.help)} |" for p in arguments]
            lines += [""]
        groups: dict[str, list[Any]] = {}
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                groups.setdefault(parameter.rich_help_panel or "Run", []).append(parameter)
        for group, options in groups.items():
            lines += [f"**{group}**", "", "| option | meaning | default |", "|---|---|---|"]
            lines += [f"| `{_option(p)}` | {_cell(p.help)} | {_default(p)} |" for p in options]
            lines += [""]
        _, *examples = (command.epilog or "").replace("\\[", "[").splitlines()
        lines += ["```sh", *examples, "```", ""] if examples else []
    return "\n".join(lines)


def registries() -> str:
    """Return what is registered: methods, metrics, allocators, kinds, sources, with their words."""
    from compressor.checkpoint.export.exporter import EXPORTERS
    from compressor.data import DATA_SOURCES
    from compressor.layers.kinds import LAYER_KINDS
    from compressor.methods.allocation import ALLOCATORS
    from compressor.methods.budget import BUDGETS
    from compressor.methods.layer_weights import LAYER_WEIGHTS
    from compressor.methods.method import METHODS
    from compressor.methods.metrics import METRICS
    from compressor.models import MODEL_SOURCES

    lines = [
        "# Methods, metrics, kinds",
        "",
        "Each is one file that registers itself; packages can add members by entry point, in the "
        "group `compressor.NAME` given with each. [Contributing](../contributing.md) shows how.",
        "",
        "## Methods",
        "",
        "`compressor.methods`",
        "",
        "| name | source, and what it does |",
        "|---|---|",
    ]
    lines += [
        f"| `{name}` | {_cell(method.source)} |"
        for name, method in sorted(METHODS.items(), key=lambda pair: pair[0])
    ]
    tables: tuple[tuple[str, str, Any], ...] = (
        ("Metrics of truncation", "metrics", METRICS),
        ("Layer weights", "layer_weights", LAYER_WEIGHTS),
        ("Allocators", "allocators", ALLOCATORS),
        ("Budgets", "budgets", BUDGETS),
        ("Layer kinds", "layer_kinds", LAYER_KINDS),
        ("Model sources", "model_sources", MODEL_SOURCES),
        ("Data sources", "data_sources", DATA_SOURCES),
        ("Exporters", "exporters", EXPORTERS),
    )
    for title, _, registry in tables:
        group = registry._group
        lines += ["", f"## {title}", "", f"`{group}`", "", "| name | what it is |", "|---|---|"]
        lines += [
            f"| `{name}` | {_first_line(member)} |"
            for name, member in sorted(registry.items(), key=lambda pair: pair[0])
        ]
    return "\n".join(lines) + "\n"


def _leaves(nav: Any) -> Iterable[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for part in nav.values():
            yield from _leaves(part)
    elif isinstance(nav, list):
        for part in nav:
            yield from _leaves(part)


def _section(nav: list[Any], title: str) -> list[Any]:
    for entry in nav:
        if title in entry:
            found: list[Any] = entry[title]
            return found
    raise KeyError(title)


def _title(file: Path) -> str:
    match = re.search(r"^# (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else file.stem


def _words(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(parameter: Any) -> str:
    names = ", ".join(parameter.opts)
    if parameter.secondary_opts:
        return f"{names} / {', '.join(parameter.secondary_opts)}"
    if parameter.is_flag:
        return names
    return f"{names} {parameter.metavar or parameter.name.split('_')[-1].upper()}"


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or value is False or callable(value) or value == ():
        return ""
    return "on" if value is True else f"`{value}`"


def _first_line(member: Any) -> str:
    """Return the first sentence of what a member says of itself."""
    told = inspect.getdoc(member if inspect.isroutine(member) else type(member)) or ""
    inner = getattr(member, "truncate", None)
    if inner is not None:
        told = inspect.getdoc(inner) or ""
    return _cell(" ".join(told.split("\n\n")[0].split()))


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")
