"""Registering with transformers the moment it is imported, without importing it.

transformers has no plugin discovery, so a package must register by being imported. Importing
transformers and torch here would make ``import compressor`` take seconds; a finder on
``sys.meta_path`` waits for ``transformers.quantizers`` instead, and registers right after it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

AWAITED = "transformers.quantizers"
REGISTERING = "compressor.hf"


def register_with_transformers() -> None:
    """Register the low-rank quantizer with transformers, now or as soon as it is imported.

    Calling it again changes nothing.
    """
    if AWAITED in sys.modules:
        importlib.import_module(REGISTERING)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the awaited module through the other finders, once, and lends it another loader."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return a spec for the awaited module, and None for every other."""
        del path, target
        if fullname != AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Runs the module's own loader, then registers."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Let the module's own loader create it."""
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, and register when it is whole."""
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._own
        module.__loader__ = self._own
        self._own.exec_module(module)
        importlib.import_module(REGISTERING)
