"""Leaving this package: a compressed model as a file or directory that others run."""
