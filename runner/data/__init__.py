"""Datasets, the manifest of images and splits, image transforms and loading."""
