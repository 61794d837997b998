"""Scoring a model on data, and counting what it costs to run."""
