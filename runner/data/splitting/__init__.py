"""Which image is in which split: given splits, groups, folds, duplicates."""
