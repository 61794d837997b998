"""A name → member table that answers a mistyped name with the nearest one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from compressor.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Members of one sort (layer kinds, methods, sources …) under their names.

    Built-in members live in modules that register themselves when imported; the registry imports
    those modules at its first look-up, so that importing the package stays cheap. Third-party
    packages add members through the entry-point group ``compressor.<group>``.

    Args:
        noun: What a member is called in messages, for instance ``"method"``.
        group: Entry-point group suffix, for instance ``"methods"``.
        modules: Modules whose import registers the built-in members.
    """

    def __init__(self, noun: str, *, group: str, modules: tuple[str, ...] = ()) -> None:
        self.noun = noun
        self._group = f"compressor.{group}"
        self._modules = modules
        self._members: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under ``name``.

        Raises:
            ValueError: If the name is taken by another member.
        """

        def file(member: T) -> T:
            if self._members.setdefault(name, member) is not member:
                raise ValueError(f"{self.noun} {name!r} is registered twice")
            return member

        return file

    def get(self, name: str) -> T:
        """Return the member called ``name``.

        Raises:
            UnknownNameError: If there is none; the message names the nearest.
        """
        self._load()
        try:
            return self._members[name]
        except KeyError:
            raise UnknownNameError(self.noun, name, self._members) from None

    def names(self) -> tuple[str, ...]:
        """Return all names in order of registration."""
        self._load()
        return tuple(self._members)

    def items(self) -> Iterator[tuple[str, T]]:
        """Iterate over (name, member) in order of registration."""
        self._load()
        return iter(tuple(self._members.items()))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in self._modules:
            importlib.import_module(module)
        for point in entry_points(group=self._group):
            self.register(point.name)(point.load())
