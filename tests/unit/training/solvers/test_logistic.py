"""Logistic regression on several penalties, against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from runner.training.solvers.logistic import logistic_path
from runner.training.solvers.temperature import fit_temperature

PENALTIES = [0.1, 1.0, 10.0]


@pytest.mark.parametrize(("images", "features"), [(80, 10), (40, 100)])
def test_solutions_are_those_of_scikit_learn(images: int, features: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(images, features, generator=generator, dtype=torch.float64) + 1
    labels = torch.randint(0, 4, (images,), generator=generator)
    weights = torch.rand(images, generator=generator) + 0.5
    path = dict(logistic_path(values, labels, 4, weights, PENALTIES))
    assert [*path] == sorted(PENALTIES, reverse=True)
    for penalty, linear in path.items():
        expected = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=10_000)
        expected.fit(values.numpy(), labels.numpy(), sample_weight=weights.numpy())
        probabilities = linear(values).softmax(1).numpy()
        assert probabilities == pytest.approx(expected.predict_proba(values.numpy()), abs=1e-4)
        assert linear.weight.numpy() == pytest.approx(expected.coef_, abs=1e-3)


@pytest.mark.parametrize("factor", [0.02, 1.0, 30.0])
def test_the_temperature_undoes_a_factor(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(5000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.1)


def test_a_temperature_is_found_even_if_every_label_is_right_or_none() -> None:
    logits = torch.eye(4).repeat(3, 1)
    right = torch.arange(4).repeat(3)
    confidence = float((logits / fit_temperature(logits, right)).softmax(1).max())
    assert 1 - 1 / 14 < confidence < 0.99
    assert fit_temperature(logits, (right + 1) % 4) > 100
