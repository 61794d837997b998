"""Many budgets from one measurement: the frontier of quality over cost."""
