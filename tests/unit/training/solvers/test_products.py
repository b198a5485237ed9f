"""Products of features that several solutions share."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import Tensor

from runner.training.solvers import products as module
from runner.training.solvers.products import KeptProducts, products

FEATURES = torch.rand(1300, 30, generator=torch.Generator().manual_seed(0))
LEVELS = (10, 20)


def expected(features: Tensor) -> Tensor:
    return features.double() @ features.double().T


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the features that were multiplied."""
    shapes: list[tuple[int, ...]] = []

    def counting(rows: Tensor, kept: Tensor | None = None) -> Tensor:
        shapes.append((len(rows) - (0 if kept is None else len(kept)), rows.shape[1]))
        return products(rows, kept)

    monkeypatch.setattr(module, "products", counting)
    return shapes


def test_products_are_exact_and_extended() -> None:
    whole = products(FEATURES)
    assert torch.allclose(whole, expected(FEATURES), atol=1e-12)
    assert torch.allclose(products(FEATURES, whole[:600, :600]), whole, atol=1e-12)


def test_another_split_needs_the_products_of_its_new_images_only(multiplied: list[tuple[int, ...]]) -> None:
    kept, order = KeptProducts(), torch.randperm(1300, generator=torch.Generator().manual_seed(1))
    for images in (torch.arange(1000), order[:900], order[400:], torch.arange(1000)):
        found = kept.of(FEATURES[images], LEVELS)
        assert torch.allclose(found, expected(FEATURES[images]), atol=1e-12)
    assert sum(images for images, _ in multiplied) == 1300


def test_pyramids_share_their_levels(multiplied: list[tuple[int, ...]]) -> None:
    kept = KeptProducts(by_level=True)
    for features, levels in (
        (FEATURES, LEVELS),
        (FEATURES[:, :10], LEVELS[:1]),
        (FEATURES[:, 10:], LEVELS[1:]),
    ):
        assert torch.allclose(kept.of(features, levels), expected(features), atol=1e-12)
    assert multiplied == [(1300, 10), (1300, 20)]


def test_other_features_are_not_mixed_up() -> None:
    kept = KeptProducts()
    for features in (FEATURES, FEATURES.sqrt(), torch.cat([FEATURES[:100]] * 2)):
        assert torch.allclose(kept.of(features, LEVELS), expected(features), atol=1e-12)


def test_what_does_not_fit_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, multiplied: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e6))
    kept = KeptProducts()
    for _ in range(2):
        assert torch.allclose(kept.of(FEATURES, LEVELS), expected(FEATURES), atol=1e-12)
    assert multiplied == [(1300, 30)] * 2
