"""Benchmarks. `runner bench NAME` runs the module of that name; support/ holds what they share."""
