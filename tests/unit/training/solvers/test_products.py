"""Products of features, and those that several solutions share."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import Tensor

from runner.config.train_schema import TrainConfig
from runner.training.solvers import products as module
from runner.training.solvers.products import KeptProducts, products, pyramid_products
from runner.training.solvers.solve import Rows, Solution, Solver

FEATURES = torch.rand(1300, 30, generator=torch.Generator().manual_seed(0))
LEVELS = (10, 20)


def expected(features: Tensor) -> Tensor:
    return features.double() @ features.double().T


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the features that were multiplied."""
    shapes: list[tuple[int, ...]] = []

    def counting(rows: Tensor) -> Tensor:
        shapes.append(tuple(rows.shape))
        return products(rows)

    monkeypatch.setattr(module, "products", counting)
    return shapes


def test_products_are_exact() -> None:
    assert torch.allclose(products(FEATURES), expected(FEATURES), atol=1e-12)


def test_pyramids_share_their_levels(multiplied: list[tuple[int, ...]]) -> None:
    kept = KeptProducts()
    for features, levels in (
        (FEATURES, LEVELS),
        (FEATURES, LEVELS),  # what is kept is not modified
        (FEATURES[:, :10], LEVELS[:1]),
        (FEATURES[:, 10:], LEVELS[1:]),
    ):
        assert torch.allclose(pyramid_products(features, levels, kept), expected(features), atol=1e-12)
    assert multiplied == [(1300, 10), (1300, 20)]


def test_other_features_are_not_mixed_up() -> None:
    kept = KeptProducts()
    alike = torch.zeros(6, 4), torch.zeros(4, 6)
    for features in (FEATURES, FEATURES.sqrt(), torch.cat([FEATURES[:100]] * 2), *alike):
        found = pyramid_products(features, [features.shape[1]], kept)
        assert torch.allclose(found, expected(features), atol=1e-12)


def test_what_does_not_fit_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, multiplied: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e6))
    kept = KeptProducts()
    for _ in range(2):
        assert torch.allclose(kept.of(FEATURES), expected(FEATURES), atol=1e-12)
    assert multiplied == [(1300, 30)] * 2
    assert kept.nbytes == 0


@pytest.mark.parametrize("settings", [{"refit": True}, {"penalty_by": "leave_one_out"}])
def test_a_solution_is_the_same_in_every_bit_whatever_was_solved_before(settings: dict[str, object]) -> None:
    """As in a repetition or study, after an interruption or not, and in a run of its own."""
    features = torch.rand(700, 900, generator=torch.Generator().manual_seed(1))
    images, levels = Rows(features, torch.arange(700) % 3), (400, 500)
    splits = [torch.randperm(700, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def solve(order: Tensor, kept: KeptProducts | None) -> Solution:
        train, val = (Rows(images.features[part], images.labels[part]) for part in order.split([500, 200]))
        config = TrainConfig(solver="ridge", penalty=1.0, **settings)  # type: ignore[arg-type]
        return Solver(config, 3, levels, kept).solve(train, val)

    uninterrupted, resumed = KeptProducts(), KeptProducts()
    together = [solve(order, uninterrupted) for order in splits]
    interrupted = [together[0], *(solve(order, resumed) for order in splits[1:])]
    for order, *others in zip(splits, together, interrupted, strict=True):
        alone = solve(order, None)
        for other in others:
            assert torch.equal(alone.linear.weight, other.linear.weight)
            assert torch.equal(alone.linear.bias, other.linear.bias)
            if alone.refitted is not None:
                assert other.refitted is not None
                assert torch.equal(alone.refitted.weight, other.refitted.weight)
