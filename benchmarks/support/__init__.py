"""What the benchmarks share: timing, prepared experiments, small runs, and faults to run them through."""
