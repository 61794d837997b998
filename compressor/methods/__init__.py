"""How ranks are chosen and layers truncated: metrics, allocation, budgets, methods."""
