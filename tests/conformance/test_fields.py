"""What a rule says of the fields of `memory`: that it uses these, and that the others mean nothing to it."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from neuralmem.config import ContinuumConfig, MemoryConfig, ModelConfig, TNTConfig
from neuralmem.errors import UserError
from neuralmem.memory._memory import EVERY_RULE
from neuralmem.models.causal_lm import CausalLM
from tests.conformance.subjects import SUBJECTS, Subject, each

RULES = [s for s in SUBJECTS if s.kind == "rule"]
OTHER: dict[str, Any] = {
    "heads": 4,
    "head_width": 6,
    "depth": 3,
    "expansion": 3.0,
    "chunk_size": 8,
    "omega_window": 2,
    "momentum": False,
    "muon": False,
    "polynomial": 3,
    "norm": False,
    "residual": False,
    "activation": "gelu",
    "convolution": 2,
    "induction": False,
    "output_gate": False,
    "theta_max": 0.3,
    "theta_bias": 1.0,
    "eta_bias": 1.0,
    "alpha_bias": -1.0,
    "continuum": ContinuumConfig(periods=[4, 8], theta_max=1.0),
    "tnt": TNTConfig(local_chunks=[2, 4]),
}
SAME_FUNCTION = {"rule", "checkpoint_every", "backend"}


def behaviour(subject: Subject, config: MemoryConfig) -> dict[str, torch.Tensor]:
    """Parameters, and what is answered to 40 tokens."""
    torch.manual_seed(0)
    rule = subject.construct(replace(subject.config, width=8, memory=config)).double()
    with torch.no_grad():
        y, _ = rule(torch.randn(1, 40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    return {**rule.state_dict(), "y": y}


def test_every_field_has_another_value() -> None:
    assert {f.name for f in fields(MemoryConfig)} == set(OTHER) | SAME_FUNCTION


@pytest.mark.filterwarnings("ignore:memory.theta_max")
@each(RULES)
def test_a_field_changes_something_where_it_is_used_and_nothing_where_not(subject: Subject) -> None:
    default, cls = MemoryConfig(rule=subject.name), type(subject.build())
    usual = behaviour(subject, default)
    for name, value in OTHER.items():
        try:
            other = behaviour(subject, replace(default, **{name: value}))
        except UserError:  # a value that is refused is one that is looked at
            other = {}
        same = other.keys() == usual.keys() and all(
            x.shape == usual[key].shape and torch.equal(x, usual[key]) for key, x in other.items()
        )
        assert same != (name in EVERY_RULE | cls.uses), name
        assert cls.unused(replace(default, **{name: value})) == ([name] if same else [])


def test_a_field_that_means_nothing_to_the_rule_is_worth_a_warning() -> None:
    memory = MemoryConfig(rule="delta", depth=3, momentum=False, heads=4)
    config = ModelConfig(vocab_size=5, width=8, depth=1, pattern=["titans_lmm"], memory=memory)
    with pytest.warns(UserWarning, match=r"^rule delta does not use memory.depth, memory.momentum$"):
        CausalLM(config)
