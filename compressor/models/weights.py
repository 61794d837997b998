"""Reading weight files: their headers, their tensors, and what is wrong with them."""

from __future__ import annotations

import hashlib
import math
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compressor.errors import ModelError, NoSuchModelError
from compressor.jsonfile import read_object
from compressor.paths import reason, require_readable, state

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
WHOLE = "model.safetensors"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("pytorch_model.bin", "pytorch_model.pth", "model.pth")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("_orig_mod.", "module.")
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
PLAIN_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class TensorHeader(NamedTuple):
    """Shape and type of a tensor in a file; ``dtype`` is None where torch has no such type."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


def find_weight_files(directory: Path) -> tuple[Path, ...]:
    """Return the weight files of a model directory: one file, or all shards of an index.

    The order is that of from_pretrained: what is looked at here is what will be loaded.

    Raises:
        ModelError: If there are none, an index names files elsewhere, or a shard is missing.
    """
    if (directory / WHOLE).is_file():
        return (directory / WHOLE,)
    for name in INDEXES:
        if (directory / name).is_file():
            return _shards(directory / name)
    for name in SINGLE_FILES:
        if (directory / name).is_file():
            return (directory / name,)
    found = [path for suffix in SUFFIXES for path in sorted(directory.glob(f"*{suffix}"))]
    if len(found) == 1:
        return (found[0],)
    listing = ", ".join(path.name for path in found) or "none"
    raise ModelError(
        f"{directory} has no weights: expected {WHOLE} or a sharded {INDEXES[0]}, found {listing}."
    )


def is_plain_name(name: object) -> bool:
    """Return whether ``name`` names a file directly in a directory, here and on Windows."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and len(name) <= 255
        and not any(character in name for character in "/\\:\0")
    )


def require_weights(path: Path) -> None:
    """Refuse a path that is no file, or one that this user may not read.

    Raises:
        NoSuchModelError: If there is no file.
        ModelError: If it cannot be read.
    """
    if not path.is_file():
        raise NoSuchModelError(
            f"No weight file at {path}: it {state(path)}. Expected a file that ends in "
            f"{', '.join(SUFFIXES)} or .gguf; check the path."
        )
    require_readable(path, ModelError)


def read_header(paths: Iterable[Path]) -> dict[str, TensorHeader]:
    """Return shape and type of every tensor in the given files, reading no weights where possible.

    Raises:
        ModelError: If a file is missing, damaged, or a pickled module.
    """
    header: dict[str, TensorHeader] = {}
    for path in paths:
        require_weights(path)
        if path.suffix == ".safetensors":
            header |= _safetensors_header(path)
        else:
            state = read_state_dict(path, device="meta")
            header |= {
                key: TensorHeader(tuple(tensor.shape), tensor.dtype)
                for key, tensor in state.items()
            }
    return header


def read_state_dict(path: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of one weight file by name.

    A training checkpoint is unwrapped: averaged weights come first, then ``state_dict``, then
    ``model``. Prefixes that DataParallel and torch.compile leave are removed.

    Args:
        path: A .safetensors, .pt, .pth or .bin file.
        device: Where the tensors go; ``meta`` keeps only their shapes.

    Raises:
        ModelError: If the file is missing, damaged, a pickled module, or holds no tensors.
    """
    require_weights(path)
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"{path}: cannot read weights from a {path.suffix or 'nameless'} file; expected one of "
            f"{', '.join(SUFFIXES)}."
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path, device)
    return _clean(_unwrap(_torch_load(path, device), path))


def read_state_dicts(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Return the tensors of all shards by name.

    Raises:
        ModelError: As `read_state_dict`.
    """
    state: dict[str, Tensor] = {}
    for path in paths:
        state |= read_state_dict(path)
    return state


def write_state_dict(state: Mapping[str, Tensor], directory: Path, *, max_shard_size: str) -> None:
    """Write model.safetensors, or shards with their index, under the names of the state dict."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(dict(state), directory, max_shard_size=max_shard_size)


def hash_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the files' contents, one after another, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def size_of(paths: Iterable[Path]) -> int:
    """Return the files' total size in bytes."""
    return sum(path.stat().st_size for path in paths)


def floating_dtypes(header: Mapping[str, TensorHeader]) -> dict[str, torch.dtype]:
    """Return the type of every tensor that is a plain float."""
    return {
        key: entry.dtype
        for key, entry in header.items()
        if entry.dtype is not None and entry.dtype in PLAIN_FLOATS
    }


def refuse_quantized(header: Mapping[str, TensorHeader], where: Path | str) -> None:
    """Refuse weights that are stored as integers or eight-bit floats.

    Raises:
        ModelError: Naming the first such weight.
    """
    for key, (shape, dtype) in header.items():
        packed = key.rpartition(".")[2] in ("qweight", "weight_packed", "SCB")
        odd = key.endswith("weight") and dtype not in PLAIN_FLOATS and len(shape) > 1
        if packed or odd:
            stored = str(dtype).removeprefix("torch.") if dtype else "an unknown type"
            raise ModelError(quantized_advice(f"{where}: {key} is stored as {stored}"))


def quantized_advice(found: str) -> str:
    """Return the message that refuses an already quantized checkpoint."""
    return (
        f"{found}, so this checkpoint is already quantized. Low-rank factors come from "
        "floating-point weights: compress the original checkpoint first, and quantize the result."
    )


def refuse_non_finite(module: nn.Module, where: str) -> None:
    """Refuse weights with NaN or infinite values.

    Raises:
        ModelError: Naming the first such tensor.
    """
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{where}: {key} holds {bad} NaN or infinite of {tensor.numel()} values. The "
                "checkpoint is damaged or its training diverged; use an earlier one."
            )


def _shards(index: Path) -> tuple[Path, ...]:
    """Return the shards that an index names; all of them lie beside it.

    Raises:
        ModelError: If it is no index, names files elsewhere, or a shard is missing.
    """
    weight_map = read_object(index, ModelError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} is no index of weight shards: it has no weight_map.")
    for key, name in weight_map.items():
        if not is_plain_name(name):
            raise ModelError(
                f"{index}: {key} is said to lie in {name!r}; expected the name of a file in the "
                "same directory."
            )
        if Path(name).suffix not in SUFFIXES:
            raise ModelError(
                f"{index}: {key} is said to lie in {name!r}; expected a file that ends in "
                f"{', '.join(SUFFIXES)}."
            )
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise ModelError(f"{index} names shards that are missing: {', '.join(missing[:5])}.")
    return tuple(index.parent / shard for shard in shards)


def _safetensors_header(path: Path) -> dict[str, TensorHeader]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {
                key: TensorHeader(tuple(view.get_shape()), SAFETENSORS_DTYPES.get(view.get_dtype()))
                for key, view in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if device == "meta":
        return {
            key: torch.empty(shape, dtype=dtype, device="meta")
            for key, (shape, dtype) in _safetensors_header(path).items()
        }
    try:
        return _clean(load_file(path, device=device))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _torch_load(path: Path, device: str) -> Any:
    _refuse_compressed(path)
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise _damaged(path, "it is no file that torch.save wrote") from error
        raise ModelError(
            f"{path} is a pickled module, or holds objects other than tensors; loading it would "
            "run code from the file. Where you trust it, save its weights alone: "
            "safetensors.torch.save_file(torch.load(path, weights_only=False).state_dict(), "
            "'model.safetensors'), and pass that with --checkpoint."
        ) from error
    except Exception as error:  # what unpickling noise can raise is not listed anywhere
        if "TorchScript" in str(error):
            raise ModelError(
                f"{path} is a TorchScript archive, which holds code. Save its weights alone: "
                "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')."
            ) from error
        raise _damaged(path, f"{type(error).__name__}: {str(error).splitlines()[:1]}") from error


def _refuse_compressed(path: Path) -> None:
    """Refuse an archive whose entries would unpack to more than the file: torch.save stores them.

    Raises:
        ModelError: If an entry is compressed, or they claim more bytes than there are.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ModelError(
            f"{path} is a compressed archive; torch.save writes none, and archives are not "
            "unpacked. Unpack it yourself, and name the file of weights in it."
        )


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping):
        raise ModelError(
            f"{path} holds {type(loaded).__name__}; expected a state dict (names to tensors)."
        )
    state = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not state or len(state) != len(loaded):
        others = sorted(str(key) for key in loaded if key not in state)
        raise ModelError(
            f"{path} is no state dict: {', '.join(others[:5]) or 'it is empty'} "
            f"{'hold' if others else 'and holds'} no tensors. Save model.state_dict() alone."
        )
    for key, tensor in state.items():
        _refuse_odd(key, tensor, path)
    return state


def _refuse_odd(key: object, tensor: Tensor, path: Path) -> None:
    """Refuse tensors without values, sparse ones, and views that repeat a few values endlessly.

    Raises:
        ModelError: Naming the tensor.
    """
    if tensor.layout != torch.strided:
        raise ModelError(f"{path}: {key} is a sparse tensor; expected a dense one.")
    if tensor.is_meta:
        return  # its shape alone was asked for, or it is refused when it is loaded
    if math.prod(tensor.shape) * tensor.element_size() > max(
        tensor.untyped_storage().nbytes(), 1 << 20
    ):
        raise ModelError(
            f"{path}: {key} claims {math.prod(tensor.shape):,} values, but the file holds fewer. "
            "It is damaged or hostile."
        )


def _clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cleaned: Mapping[str, Tensor] = state
    for prefix in (*PREFIXES, PREFIXES[0]):
        if all(key.startswith(prefix) for key in cleaned):
            cleaned = {key.removeprefix(prefix): value for key, value in cleaned.items()}
    return dict(cleaned)


def _damaged(path: Path, error: Exception | str) -> ModelError:
    why = error if isinstance(error, str) else reason(error)
    return ModelError(
        f"{path} is damaged or truncated ({path.stat().st_size:,} bytes): {why}. "
        "Copy or download it again."
    )
