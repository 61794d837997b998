"""What compression costs and keeps: methods × budgets × workloads, measured on the same work."""
