"""A model on the meta device, of which one part at a time is given its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from compressor.layers.candidates import Candidate, Candidates
from compressor.layers.surgery import structural_copy, unfuse, unfused_modules
from compressor.models.transformers_lazy import LazyWeights


@dataclass(frozen=True)
class Unit:
    """What is in memory at one time: a block of the model, or a module outside of all blocks.

    Args:
        name: The module's name.
        tensors: Names in memory of its tensors.
        layers: Candidates inside it, by name.
    """

    name: str
    tensors: tuple[str, ...]
    layers: dict[str, Candidate]


class Units:
    """The parts of a model in the order of its modules, each filled when it is asked for.

    Args:
        dense: The dense model on the meta device.
        apart: The same with fused modules taken apart, which the candidates are named in.
        candidates: The layers to factorize.
        weights: Where the tensors are read.

    Attributes:
        shapes: The model taken apart, on the meta device.
        unfused: Names of the modules that were taken apart.
        sizes: Values of every tensor by its name.
        stored: Names of the tensors that are on disk; a buffer may be missing.
    """

    def __init__(
        self, dense: nn.Module, apart: nn.Module, candidates: Candidates, weights: LazyWeights
    ) -> None:
        self._dense, self._weights = dense, weights
        self.shapes = apart
        self.unfused = tuple(unfused_modules(apart))
        tensors: dict[str, list[str]] = {}
        for name in weights.names:
            tensors.setdefault(unit_of(dense, name), []).append(name)
        layers: dict[str, dict[str, Candidate]] = {name: {} for name in tensors}
        for name, layer in candidates.layers.items():
            layers[unit_of(apart, f"{name}.weight")][name] = layer
        self.stored = weights.names
        self._units = {
            name: Unit(name, tuple(names), layers[name]) for name, names in tensors.items()
        }
        self.sizes = {name: tensor.numel() for name, tensor in dense.state_dict().items()}
        self._filled: tuple[str, nn.Module] | None = None
        self._home = {layer: unit.name for unit in self for layer in unit.layers}

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._units.values())

    def __len__(self) -> int:
        return len(self._units)

    def filled(self, unit: Unit) -> nn.Module:
        """Return this unit with its weights in float32, inside modules of no other content.

        Names are those of the whole model, which is never copied: it may have hundreds of units.
        The unit that was filled before is let go.
        """
        if self._filled is not None and self._filled[0] == unit.name:
            return self._filled[1]
        self.release()
        shell = _alone(self._dense, unit.name)
        for name, tensor in self._weights.read(unit.tensors).items():
            owner, _, child = name.rpartition(".")
            _assign(shell.get_submodule(owner), child, tensor)
        unfuse(shell, [name for name in self.unfused if _inside(name, unit.name)])
        self._filled = (unit.name, shell)
        return shell

    def release(self) -> None:
        """Let go of the unit that is filled."""
        if self._filled is None:
            return
        for module in self._filled[1].modules():  # in case that modules refer to each other
            module._parameters.clear()
            module._buffers.clear()
        self._filled = None

    def read(self, name: str) -> dict[str, Tensor]:
        """Return one unit's tensors in float32, by their names in the model taken apart."""
        return present(self.filled(self._units[name]))

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each unit."""
        return tuple(self._units)

    def __getitem__(self, name: str) -> Unit:
        return self._units[name]

    def holding(self, layer: str) -> nn.Module:
        """Return the unit that holds a candidate, filled."""
        return self.filled(self._units[self._home[layer]])


def present(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by name, but for those on the meta device."""
    state = model.state_dict()
    return {name: tensor.detach() for name, tensor in state.items() if not tensor.is_meta}


def unit_of(model: nn.Module, tensor: str) -> str:
    """Return the name of the unit that a tensor belongs to.

    It is the outermost member of a list of modules that the tensor lies in, or else the tensor's
    own module.
    """
    module, path = model, ""
    for part in tensor.split(".")[:-1]:
        listed = isinstance(module, (nn.ModuleList, nn.Sequential))
        child = module._modules.get(part)
        if child is None:  # a layer of a module that was taken apart
            break
        module, path = child, f"{path}.{part}" if path else part
        if listed:
            return path
    return path


def _alone(model: nn.Module, name: str) -> nn.Module:
    """Return a copy of one module of a model, under its name in modules of no other content."""
    found = structural_copy(model.get_submodule(name))
    for part in reversed(name.split(".") if name else ()):
        parent = nn.Module()
        parent.add_module(part, found)
        found = parent
    return found


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[name] = tensor


def _inside(name: str, unit: str) -> bool:
    return name == unit or name.startswith(f"{unit}.")
