"""Lower floors never import upper ones, and each heavy library has its own room."""

import ast
from pathlib import Path

import pytest

import compressor

ROOT = Path(compressor.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FLOORS = (
    (
        "errors",
        "heap",
        "registry",
        "progress",
        "settings",
        "schema",
        "stopwatch",
        "room",
        "waiting",
        "autoregister",
        "jsonfile",
        "paths",
    ),
    (
        "fingerprint",
        "distributed",
        "cache",
        "sweep.schema",
        "batch.schema",
        "streaming.schema",
    ),
    (
        "forward",
        "calibration",
        "tokens",
        "evaluation.loop",
        "evaluation.tokens",
        "evaluation.flops",
        "evaluation.metrics",
    ),
    ("evaluation.paired", "evaluation.runtimes.runtime"),
    ("evaluation.latency", "evaluation.memory"),
    ("checkpoint.storage",),
    ("collapse.spans", "collapse.symmetric"),
    ("collapse.moments", "collapse.metrics", "collapse.spectra", "collapse.clusters"),
    ("layers",),
    ("collapse", "evaluation.speed_table"),
    ("methods",),
    ("models", "data", "checkpoint", "evaluation", "hf", "quantization"),
    ("gathering", "stages", "speed", "measuring", "saving", "figures"),
    ("report",),
    ("pipeline", "api"),
    ("sweep", "batch", "streaming"),
    ("demo", "cli", "__main__"),
    ("",),
)
"""Modules of each floor from the ground up, by prefix; the longest prefix that fits decides."""

ROOMS = {
    "transformers": (
        "models.transformers",
        "models.transformers_names",
        "models.transformers_lazy",
        "models.transformers_buffers",
        "models.architectures",
        "models.gguf",
        "models.image_processor",
        "models.quiet",
        "layers.conv1d",
        "data",
        "hf",
    ),
    "timm": ("models.timm", "models.timm_build", "models.imagenet"),
    "datasets": ("data",),
    "lm_eval": ("evaluation.harness",),
    "typer": ("cli",),
    "rich": ("cli", "report"),
    "matplotlib": ("report",),
    "jinja2": ("report",),
}
"""Modules that may import a library, by prefix."""


def module_of(file):
    """Return a file's module name within the package: ``cli.app``, ``""`` for the package."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file) for file in FILES}


def within(module, prefix):
    return prefix in ("", module) or module.startswith(f"{prefix}.")


def floor_of(module):
    fitting = [
        (len(prefix), floor)
        for floor, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if within(module, prefix)
    ]
    return max(fitting)[1]


def imports_of(file):
    """Return every dotted name that a file imports, at any depth of its code."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def own_imports(file):
    """Return the modules of this package that a file imports."""
    found = set()
    for name in imports_of(file):
        package, _, inner = name.partition(".")
        if package == "compressor":
            found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_no_module_imports_a_higher_floor(file):
    module = module_of(file)
    higher = [used for used in own_imports(file) if floor_of(used) > floor_of(module)]
    assert not higher, f"{module} imports {higher}"


@pytest.mark.parametrize("library", ROOMS)
def test_a_library_is_imported_in_its_own_rooms_only(library):
    users = {
        module_of(file)
        for file in FILES
        if any(name.split(".")[0] == library for name in imports_of(file))
    }
    strangers = [user for user in users if not any(within(user, room) for room in ROOMS[library])]
    assert not strangers


def test_every_module_but_the_package_itself_has_a_floor():
    roof = len(FLOORS) - 1
    assert [module for module in MODULES if floor_of(module) == roof] == [""]


def test_the_rule_itself_sees_a_breach(tmp_path):
    file = tmp_path / "layer.py"
    file.write_text("def f():\n    from compressor.cli.app import main\n    return main\n")
    assert own_imports(file) == {"cli.app"}
    assert floor_of("cli.app") > floor_of("layers.linear") > floor_of("collapse.moments")
    assert floor_of("collapse.capture") > floor_of("layers.linear")


def test_no_file_is_a_drawer_for_everything():
    assert not {"utils", "helpers", "common", "misc"} & {file.stem for file in FILES}


def test_nothing_unpickles_code():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert not called.startswith("pickle."), f"{file}: {ast.unparse(node)}"
            if called == "torch.load":
                assert given.get("weights_only") == "True", f"{file}: {ast.unparse(node)}"
