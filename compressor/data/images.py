"""Class folders of images, with or without train, validation and test above them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from compressor.data.columns import refuse_columns
from compressor.data.labelled import DATA_SOURCES, RawSplit
from compressor.data.rows import split_named
from compressor.errors import DataError
from compressor.settings import DataSettings

_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
)


class ImageFolderSource:
    """Reads ``root/<class>/…/image`` and ``root/<split>/<class>/…/image``."""

    name = "images"

    def recognises(self, reference: str) -> bool:
        """Return whether ``reference`` is a directory that holds folders or images."""
        if not reference:
            return False  # a Path would take it for the working directory
        path = Path(reference)
        return path.is_dir() and (bool(_folders(path)) or any(map(_is_image, path.iterdir())))

    def read(self, reference: str, options: DataSettings) -> Mapping[str, RawSplit]:
        """Return the splits; images that lie in no class folder come without labels.

        Raises:
            DataError: If there are no images.
            UsageError: If a column is named.
        """
        refuse_columns(
            reference, text_column=options.text_column, label_column=options.label_column
        )
        root = Path(reference)
        named = {folder: split_named(folder.name) for folder in _folders(root)}
        splits: dict[str, RawSplit] = {}
        if "train" in named.values() or {"validation", "test"} <= set(named.values()):
            for folder, split in named.items():
                if split is not None and split in splits:
                    raise DataError(f"{reference}: two folders are both {split}; keep one.")
                if split is not None:
                    splits[split] = _class_folders(folder)
        else:
            splits["all"] = _class_folders(root)
        if not any(len(split.samples) for split in splits.values()):
            raise DataError(
                f"{reference}: no images found. Expected folders named after the classes with "
                f"images in them ({', '.join(sorted(_SUFFIXES))}), with or without folders train, "
                f"validation and test above them."
            )
        return splits


def _class_folders(root: Path) -> RawSplit:
    folders = sorted(_folders(root), key=lambda folder: _natural(folder.name))
    if not folders:
        return RawSplit(tuple(sorted(filter(_is_image, root.iterdir()))), None)
    files: list[Path] = []
    labels: list[str] = []
    for folder in folders:
        if not folder.name.isprintable():
            raise DataError(
                f"{folder.name!r} in {root} is no name of a class that a report could show: it is "
                "not UTF-8, or holds control characters. Rename the folder."
            )
        found = sorted(filter(_is_image, _everything_in(folder)))
        files += found
        labels += [folder.name] * len(found)
    return RawSplit(tuple(files), tuple(labels), tuple(folder.name for folder in folders))


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _everything_in(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder; unlike rglob this raises where one must not be looked into.

    Raises:
        OSError: If the system refuses to list a folder.
    """

    def refuse(error: OSError) -> None:
        raise error

    for directory, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(directory, name) for name in names)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Order 2 before 10, as timm does."""
    return tuple(
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part.lower())
        for part in re.split(r"(\d+)", name)
        if part
    )


DATA_SOURCES.register("images")(ImageFolderSource())
