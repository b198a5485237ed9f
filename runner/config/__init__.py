"""Experiments: their settings, and reading them from a command line or a YAML file."""
