"""`compressor batch` with `tests.batch.stand_in` in place of jobs: REPORT, then its words."""

import sys
from pathlib import Path

from compressor.batch import process
from compressor.cli import main

process.WORKER = (sys.executable, str(Path(__file__).parent / "stand_in.py"), sys.argv[1])
sys.exit(main(["batch", *sys.argv[2:]]))
