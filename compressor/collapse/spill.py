"""Keeping on disk what memory is too small for: hidden states, statistics, decompositions."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressor.collapse.capture import Statistics
from compressor.collapse.state import state_of, statistics_of
from compressor.collapse.watch import LayerStatistics
from compressor.layers.candidates import Candidates


class SpillDirectory:
    """A directory of tensors that is gone when nothing refers to it any more, unless it is named.

    It lies where `tempfile` puts things: the environment variable ``TMPDIR`` decides.

    Args:
        device: Where tensors are read to.
        path: A directory to keep them in for good; it is made where it is missing.

    Attributes:
        path: The directory.
    """

    def __init__(self, device: torch.device, path: Path | None = None) -> None:
        self.device = device
        if path is None:
            self.path = Path(tempfile.mkdtemp(prefix="compressor-"))
            # TemporaryDirectory would warn that nobody closed it.
            weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        else:
            self.path = path
            path.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, Path] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def files(self) -> dict[str, str]:
        """File name by the name of what it holds."""
        return {name: path.name for name, path in self._files.items()}

    def know(self, files: Mapping[str, str]) -> None:
        """Take up files that an earlier run has left."""
        self._files |= {name: self.path / file for name, file in files.items()}

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors under a name, in place of what it held before.

        Raises:
            OSError: If there is no room. What the name held is still there then.
        """
        path = self._files.get(name, self.path / f"{len(self._files)}.safetensors")
        beside = path.with_suffix(".part")  # tensors that were read may still be those of the file
        try:
            save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, beside)
            beside.replace(path)
        except SafetensorError as error:  # it wraps what the system said
            raise OSError(f"{beside}: {error}") from error
        finally:
            beside.unlink(missing_ok=True)
        self._files[name] = path

    def read(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a name."""
        return load_file(self._files[name], device=str(self.device))


IN_MEMORY = 1 << 27
"""Bytes of layers' statistics that are kept in memory; larger ones are spilled."""

Place = tuple[int, list[int], str]
"""Where a tensor lies in a file: its first byte, its shape, and the name of its type."""


class HiddenStates:
    """One tensor for each batch, in one file; a batch's tensor keeps its shape and type.

    Args:
        path: The file.
        device: Where tensors are read to.
        places: What the file holds of an earlier run; None begins it anew.
    """

    def __init__(
        self, path: Path, device: torch.device, places: Mapping[str, Place] | None = None
    ) -> None:
        self._device = device
        self._path = path
        self.places: dict[str, Place] = dict(places or {})
        if places is None:
            path.write_bytes(b"")

    def put(self, index: int, tensor: Tensor) -> None:
        """Write the tensor of a batch that has none yet."""
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        with self._path.open("ab") as file:
            start = file.tell()
            file.write(raw.data)
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.places[str(index)] = (start, list(tensor.shape), dtype)

    def get(self, index: int) -> Tensor:
        """Return the tensor of a batch."""
        start, shape, name = self.places[str(index)]
        dtype: torch.dtype = getattr(torch, name)
        size = math.prod(shape) * dtype.itemsize
        with self._path.open("rb") as file:
            file.seek(start)
            raw = bytearray(file.read(size))
        return torch.frombuffer(raw, dtype=dtype).view(shape).to(self._device)

    def drop(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


class SpilledLayers(Mapping[str, LayerStatistics]):
    """Statistics by layer name, read from disk each time another part of the model is asked for.

    Args:
        spill: Where they lie.
        candidates: All layers, in forward order.

    Attributes:
        parts: Name of the file that each layer lies in.
    """

    def __init__(self, spill: SpillDirectory, candidates: Candidates) -> None:
        self.spill = spill
        self._candidates = candidates
        tied = {n: layer.head(n) for layer in candidates.layers.values() for n in layer.tied}
        self._watched = replace(candidates, layers={**candidates.layers, **tied})
        self.parts: dict[str, str] = {}
        self._read: tuple[str, Mapping[str, LayerStatistics]] = ("", {})

    def add(self, found: Mapping[str, LayerStatistics]) -> None:
        """Write the statistics of one part of the model, whole groups of layers."""
        part = f"part {len(set(self.parts.values()))}"
        if found:
            self.spill.write(part, state_of(Statistics(found, torch.empty(0), torch.empty(0), {})))
            self.parts |= dict.fromkeys(found, part)

    def __getitem__(self, name: str) -> LayerStatistics:
        found = self._find(name)
        tied = found.layer.tied
        if not tied or tied[0] not in self.parts:  # a pass over samples does not watch the head
            return found
        return replace(found, head=self._find(tied[0]))

    def _find(self, name: str) -> LayerStatistics:
        part = self.parts[name]
        if self._read[0] != part:
            inside = {other for other, its in self.parts.items() if its == part}
            state = self.spill.read(part)
            found = statistics_of(state, self._watched.only(inside), self.spill.device)
            self._read = (part, found.layers)
        return self._read[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._candidates.layers)

    def __len__(self) -> int:
        return len(self._candidates.layers)


def spilled(statistics: Statistics, candidates: Candidates, home: torch.device) -> Statistics:
    """Return the same statistics with those of the layers on disk, where they are large.

    A plan looks at one layer after the other, and what it holds beside them is large enough.

    Args:
        statistics: As a pass has gathered them.
        candidates: The layers, in forward order.
        home: Device that they are read to.

    Raises:
        OSError: If there is no room on disk.
    """
    if isinstance(statistics.layers, SpilledLayers) or not _exceed(statistics.layers, IN_MEMORY):
        return statistics
    groups: dict[str, dict[str, LayerStatistics]] = {}
    for name, found in statistics.layers.items():
        groups.setdefault(found.layer.group, {})[name] = found
    layers = SpilledLayers(SpillDirectory(home), candidates)
    for group in groups.values():
        heads = {n: found.head for found in group.values() for n in found.layer.tied if found.head}
        layers.add({**group, **heads})
    return replace(statistics, layers=layers)


def _exceed(layers: Mapping[str, LayerStatistics], most: int) -> bool:
    """Return whether statistics take more bytes; of one layer at a time they are copied for it."""
    total = 0
    for name, found in layers.items():
        state = state_of(Statistics({name: found}, torch.empty(0), torch.empty(0), {}))
        total += sum(tensor.nbytes for tensor in state.values())
        if total > most:
            return True
    return False
