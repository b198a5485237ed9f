"""What is registered with a model, as events of a journal hold it."""

from __future__ import annotations

import pytest

from runner.tracking.model_registry import ModelInfo, registered_name

INFO = ModelInfo("crown", {"val/top1": 0.5, "val/loss": 1.0}, "val/top1", "manifest", 3, 1_700_000_000_000)


def test_names_that_mlflow_does_not_accept_are_changed() -> None:
    assert registered_name("a:b/c") == "a-b-c"


def test_an_event_holds_all_of_it() -> None:
    assert ModelInfo.from_dict(INFO.to_dict()) == INFO
    assert INFO.to_dict()["value"] == INFO.value == 0.5


@pytest.mark.parametrize("name", ["name", "metrics", "score", "manifest", "step", "time"])
def test_an_event_without_a_field_is_refused(name: str) -> None:
    content = INFO.to_dict()
    del content[name]
    with pytest.raises(KeyError, match=name):
        ModelInfo.from_dict(content)
