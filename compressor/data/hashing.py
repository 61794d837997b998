"""Naming samples and splits by a hash of what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def content_digest(content: str | bytes) -> bytes:
    """Return the SHA-256 of a text (UTF-8) or of a file's bytes."""
    # Lone surrogates, which JSON can hold, have no UTF-8 form of their own.
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return hashlib.sha256(data).digest()


def split_hash(digests: Iterable[bytes], labels: Iterable[str | int | None]) -> str:
    """Return the SHA-256 (hex) over each sample's digest and label, in order.

    Args:
        digests: `content_digest` of each sample.
        labels: Raw label of each sample, or None where there is none.
    """
    total = hashlib.sha256()
    for digest, label in zip(digests, labels, strict=True):
        written = b"" if label is None else str(label).encode("utf-8", "surrogatepass")
        total.update(digest + len(written).to_bytes(8, "little") + written)
    return total.hexdigest()
