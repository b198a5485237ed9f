"""Heads that are trained together: many on the same features, each with its own settings of optimization."""
