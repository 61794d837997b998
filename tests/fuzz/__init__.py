"""Fuzzing whatever this package reads: targets, a corpus, and two ways of running them."""
