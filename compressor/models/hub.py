"""Hub ids: telling them from other references, and fetching their files into the local cache."""

from __future__ import annotations

import re
from pathlib import Path

from compressor.errors import ModelError
from compressor.paths import worded

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")


def is_hub_id(reference: str) -> bool:
    """Return whether ``reference`` has the form ``owner/name`` or ``owner/name@revision``."""
    return HUB_ID.fullmatch(reference) is not None and not reference.endswith(".py")


def snapshot(reference: str, *, weights: bool) -> Path:
    """Return a local directory with the files of a hub repository, downloading what is missing.

    Args:
        reference: ``owner/name`` or ``owner/name@revision``.
        weights: Whether weights are wanted, not only configuration and tokenizer. Pickled weights
            are fetched only where there are no safetensors.

    Raises:
        ModelError: If there is no such repository, or no network and no copy in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = reference.partition("@")
    patterns = [*TEXT_FILES, "*.safetensors"] if weights else list(TEXT_FILES)
    try:
        directory = Path(
            snapshot_download(name, revision=revision or None, allow_patterns=patterns)
        )
        if weights and not any(directory.glob("*.safetensors")):
            directory = Path(
                snapshot_download(
                    name, revision=revision or None, allow_patterns=[*patterns, "*.bin"]
                )
            )
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"No model {reference!r}: there is no such directory here, no copy in the hub's "
            "cache, and the hub cannot be reached. Check the path, or fetch it where there is a "
            f"network: hf download {name}"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelError(
            f"No model {reference!r} on the hub, and no such directory here: {worded(error)}"
        ) from error
    return directory
