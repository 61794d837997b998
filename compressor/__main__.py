"""``python -m compressor``: the same as the ``compressor`` command."""

import sys

from compressor.cli import main

if __name__ == "__main__":
    sys.exit(main())
