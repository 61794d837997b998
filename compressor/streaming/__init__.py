"""Compressing a checkpoint that is larger than memory, one block at a time."""
