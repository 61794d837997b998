"""Keeping secrets out of logs and results (pure)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "***"

_TELLING = re.compile(r"token|secret|passw|credential|(?:api|access|private)_?key", re.IGNORECASE)
_SHORTEST = 6
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_IN_QUERY = re.compile(r"((?:token|secret|password|api_?key|signature)=)[^&\s\"']+", re.IGNORECASE)


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a text with what must not be read replaced by ``***``.

    That is the value of every environment variable whose name tells of a secret, and passwords and
    tokens in addresses.
    """
    for name, value in environment.items():
        if len(value) >= _SHORTEST and _TELLING.search(name):
            text = text.replace(value, HIDDEN)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_ADDRESS.sub(HIDDEN, text))
