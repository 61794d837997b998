"""``sklearn:digits``: the handwritten digits of scikit-learn, for the demo and the examples.

1,797 grey images of 8×8 pixels in ten classes. The split is fixed, whatever the seed of a run: the
bundled model was trained on these training images, so the test images must stay the ones it never
saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from compressor.data.columns import refuse_columns
from compressor.data.labelled import DATA_SOURCES, RawSplit
from compressor.errors import DataError
from compressor.settings import DataSettings

if TYPE_CHECKING:
    import numpy as np

REFERENCE = "sklearn:digits"
TEST_SAMPLES = 600
SPLIT_SEED = 0
NAMES = tuple(str(digit) for digit in range(10))


class DigitsSource:
    """Reads scikit-learn's digits: 1,197 training and 600 test images, stratified by class."""

    name = "digits"

    def recognises(self, reference: str) -> bool:
        """Return whether ``reference`` names a data set of scikit-learn."""
        return reference.startswith("sklearn:")

    def read(self, reference: str, options: DataSettings) -> Mapping[str, RawSplit]:
        """Return the fixed training and test splits; no option changes them.

        Raises:
            DataError: If another data set of scikit-learn is named.
            UsageError: If a column is.
        """
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        refuse_columns(
            reference, text_column=options.text_column, label_column=options.label_column
        )
        if reference != REFERENCE:
            raise DataError(f"{reference} is not read; of scikit-learn's data only {REFERENCE} is.")
        images, labels = load_digits(return_X_y=True)  # [1797, 64] in 0…16, [1797]
        train, test = train_test_split(
            range(len(labels)), test_size=TEST_SAMPLES, random_state=SPLIT_SEED, stratify=labels
        )
        return {
            name: RawSplit(
                samples=tuple(_portable_graymap(images[index]) for index in indices),
                labels=tuple(int(labels[index]) for index in indices),
                names=NAMES,
            )
            for name, indices in (("train", train), ("test", test))
        }


def _portable_graymap(pixels: np.ndarray) -> bytes:
    """Encode 64 pixels in 0…16 as an 8×8 PGM: uncompressed, so its hash is the same everywhere."""
    grey = (pixels * (255 / 16)).round().astype("uint8")
    return b"P5 8 8 255\n" + grey.tobytes()


DATA_SOURCES.register(DigitsSource.name)(DigitsSource())
