"""How a saved directory is loaded again, in the words of its framework."""

from __future__ import annotations

from dataclasses import dataclass

AUTO_CLASSES = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
}
"""The class of transformers that loads a model, by what the model takes."""


@dataclass(frozen=True)
class Instructions:
    """How to load a directory.

    Args:
        code: Python to paste.
        remark: What to know beside it, as Markdown.
    """

    code: str
    remark: str


def instructions(framework: str, directory: str, *, auto_class: str) -> Instructions:
    """Return how to load ``directory``.

    Args:
        framework: Name of the model source that wrote it.
        directory: Its path, or its last part.
        auto_class: The transformers class that loads it (transformers models only).
    """
    return _BY_FRAMEWORK[framework](repr(directory), auto_class)


def _transformers(directory: str, auto_class: str) -> Instructions:
    return Instructions(
        "import compressor  # registers the low-rank layers with transformers\n"
        f"from transformers import {auto_class}\n"
        "\n"
        f"model = {auto_class}.from_pretrained({directory})",
        "Without `import compressor` the load fails with a size mismatch, by design. "
        "`pipeline(...)` and `Trainer` take the directory as they take any other.",
    )


def _timm(directory: str, auto_class: str) -> Instructions:
    del auto_class
    return Instructions(
        "import compressor\n"
        "from timm.data import create_transform, resolve_model_data_config\n"
        "\n"
        f"model = compressor.load({directory})\n"
        "transform = create_transform(**resolve_model_data_config(model))",
        '`timm.create_model("local-dir:…")` alone builds the dense architecture, and then '
        "refuses the factorized weights.",
    )


def _torch(directory: str, auto_class: str) -> Instructions:
    del auto_class
    return Instructions(
        "import compressor\n"
        "\n"
        "# The Python code of the network is not in this directory: build the dense module as "
        "before.\n"
        f"model = compressor.load({directory}, model=YourModule())",
        "On the command line, `--factory path/to/file.py:function` names a function that builds "
        "it.",
    )


_BY_FRAMEWORK = {"transformers": _transformers, "timm": _timm, "torch": _torch}
