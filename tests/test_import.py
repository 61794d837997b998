import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "scipy", "sklearn", "transformers", "timm", "datasets", "pandas", "PIL"}


def loaded_after(statement):
    """Return the heavy packages that a fresh interpreter holds after ``statement``."""
    code = f"import sys; {statement}; print(*({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import compressor",
        "import compressor; dir(compressor)",
        "import compressor.cli",
        "import compressor.settings, compressor.schema",
    ],
)
def test_importing_loads_nothing_heavy(statement):
    assert loaded_after(statement) == set()


def test_a_public_verb_loads_torch_when_it_is_asked_for():
    assert "torch" in loaded_after("import compressor; compressor.measure")


def test_the_public_names_are_those_promised():
    import compressor

    verbs = {"measure", "plan", "factorize", "evaluate", "save", "load", "compress"}
    assert verbs <= set(compressor.__all__)
    for name in compressor.__all__:
        assert getattr(compressor, name) is not None
