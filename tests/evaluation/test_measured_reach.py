"""A mask that lets attention see farther than the model states is not passed over in silence."""

import warnings
from dataclasses import replace

import pytest

from neuralmem.evaluation.measured_reach import measured_reach
from neuralmem.models.causal_lm import CausalLM
from tests.hf.conftest import CONFIG


def test_a_reach_larger_than_stated_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalLM(replace(CONFIG, pattern=["titans_mag"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measured_reach(model) == model.reach == 8
    monkeypatch.setattr(CausalLM, "reach", 7)
    with pytest.warns(UserWarning, match=r"reach 8 tokens back, farther than the 7 that the model states") as found:
        assert measured_reach(model) == 8
    assert found[0].filename == __file__
