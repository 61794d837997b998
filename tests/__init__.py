"""Tests; what they need of the environment is set here, before torch is first imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Small models run faster on one thread, and two test runs at once do not wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
