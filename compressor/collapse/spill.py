"""Keeping on disk what memory is too small for: hidden states, statistics, decompositions."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressor.collapse.capture import Statistics
from compressor.collapse.state import state_of, statistics_of
from compressor.collapse.watch import LayerStatistics
from compressor.layers.candidates import Candidates


class SpillDirectory:
    """A directory of tensors that is gone when nothing refers to it any more.

    It lies where `tempfile` puts things: the environment variable ``TMPDIR`` decides.

    Args:
        device: Where tensors are read to.

    Attributes:
        path: The directory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.path = Path(tempfile.mkdtemp(prefix="compressor-"))
        # TemporaryDirectory would warn that nobody closed it.
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        self._files: dict[str, Path] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors under a name, in place of what it held before."""
        path = self._files.get(name, self.path / f"{len(self._files)}.safetensors")
        save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, path)
        self._files[name] = path

    def read(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a name."""
        return load_file(self._files[name], device=str(self.device))


class HiddenStates:
    """One tensor for each batch, in one file; a batch's tensor keeps its shape and type.

    Args:
        path: The file, which is made anew.
        device: Where tensors are read to.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._device = device
        self._path = path
        self._places: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._end = 0
        path.write_bytes(b"")

    def put(self, index: int, tensor: Tensor) -> None:
        """Write the tensor of a batch, over the one before if there is one."""
        known = self._places.get(index)
        start = self._end if known is None else known[0]
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        with self._path.open("r+b") as file:
            file.seek(start)
            file.write(raw.data)
        self._places[index] = (start, tensor.shape, tensor.dtype)
        self._end = max(self._end, start + raw.nbytes)

    def get(self, index: int) -> Tensor:
        """Return the tensor of a batch."""
        start, shape, dtype = self._places[index]
        size = shape.numel() * dtype.itemsize
        with self._path.open("rb") as file:
            file.seek(start)
            raw = bytearray(file.read(size))
        return torch.frombuffer(raw, dtype=dtype).view(shape).to(self._device)

    def drop(self) -> None:
        """Remove the file."""
        self._path.unlink()


class SpilledLayers(Mapping[str, LayerStatistics]):
    """Statistics by layer name, read from disk each time another part of the model is asked for.

    Args:
        spill: Where they lie.
        candidates: All layers, in forward order.
    """

    def __init__(self, spill: SpillDirectory, candidates: Candidates) -> None:
        self.spill = spill
        self._candidates = candidates
        tied = {n: layer.head(n) for layer in candidates.layers.values() for n in layer.tied}
        self._watched = replace(candidates, layers={**candidates.layers, **tied})
        self._parts: dict[str, str] = {}
        self._read: tuple[str, Mapping[str, LayerStatistics]] = ("", {})

    def add(self, found: Mapping[str, LayerStatistics]) -> None:
        """Write the statistics of one part of the model, whole groups of layers."""
        part = f"part {len(set(self._parts.values()))}"
        if found:
            self.spill.write(part, state_of(Statistics(found, torch.empty(0), torch.empty(0), {})))
            self._parts |= dict.fromkeys(found, part)

    def __getitem__(self, name: str) -> LayerStatistics:
        found = self._find(name)
        tied = found.layer.tied
        return replace(found, head=self._find(tied[0])) if tied else found

    def _find(self, name: str) -> LayerStatistics:
        part = self._parts[name]
        if self._read[0] != part:
            inside = {other for other, its in self._parts.items() if its == part}
            state = self.spill.read(part)
            found = statistics_of(state, self._watched.only(inside), self.spill.device)
            self._read = (part, found.layers)
        return self._read[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._candidates.layers)

    def __len__(self) -> int:
        return len(self._candidates.layers)
