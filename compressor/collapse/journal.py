"""Which steps of a long pass are done, in a file, so that a killed run goes on after the last."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Names of the steps that are done, and what is to be known to go on after them.

    Args:
        path: The file; None keeps nothing.

    Attributes:
        state: What was noted with the last step that is done; empty at the beginning.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._done: list[str] = []
        self.state: dict[str, Any] = {}
        if path is not None and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            self._done, self.state = found["done"], found["state"]

    def __contains__(self, step: str) -> bool:
        return step in self._done

    def __len__(self) -> int:
        return len(self._done)

    def note(self, step: str, state: Mapping[str, object]) -> None:
        """Note that a step is done; a kill on the way leaves the file as it was before."""
        self._done.append(step)
        if self._path is None:
            return
        temporary = self._path.with_suffix(".part")
        text = json.dumps({"done": self._done, "state": state})
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
