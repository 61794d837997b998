"""Claims on jobs: of many processes on one directory, one at a time works on each."""

from __future__ import annotations

from pathlib import Path

from filelock import SoftFileLease, Timeout

SECONDS = 60.0
"""Default time after which the claim of a process that no longer renews it is void."""


class Claims:
    """The claims of one process: files in a directory that all share.

    A claim is renewed by a thread while the process lives. It is void as soon as the process is
    known to have died, which shows on the same machine at once, or when it has not been renewed
    for a time, as seen by the clock of whoever asks: the machines' clocks need not agree.

    Args:
        directory: Where they lie; it is made where it is missing.
        seconds: Time after which one that is not renewed is void; the same for all processes.
    """

    def __init__(self, directory: Path, seconds: float = SECONDS) -> None:
        self._directory, self._seconds = directory, seconds
        self._leases: dict[str, SoftFileLease] = {}
        self._held: set[str] = set()

    def take(self, key: str) -> bool:
        """Claim a job; False if another process holds it. Ask again to see it become void."""
        self._directory.mkdir(parents=True, exist_ok=True)
        # One object for every time of asking: it remembers since when a claim has not changed.
        lease = self._leases.setdefault(
            key,
            SoftFileLease(
                self._directory / f"{key}.claim", lease_duration=self._seconds, thread_local=False
            ),
        )
        try:
            lease.acquire(timeout=0)
        except Timeout:
            return False
        self._held.add(key)
        return True

    def lost(self, key: str) -> bool:
        """Return whether a claim that was taken is another process's by now."""
        return key in self._held and self._leases[key].compromise is not None

    def release(self, key: str) -> None:
        """Let go of a claim; nothing happens if it is not held."""
        if key in self._held:
            self._held.discard(key)
            self._leases[key].release()

    def release_all(self) -> None:
        """Let go of every claim."""
        for key in tuple(self._held):
            self.release(key)
