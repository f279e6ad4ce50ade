"""Law 7: every parameter gets a finite, non-zero gradient, through the inner updates where there are any."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from tests.conformance.subjects import LEARNERS, MODELS, SUBJECTS, Subject, T, each

SMALL = ModelConfig(
    vocab_size=5,
    width=4,
    depth=1,
    attention=AttentionConfig(heads=2, window=3, persistent_tokens=1, segment=3),
    memory=MemoryConfig(heads=1, head_width=4, chunk_size=2, expansion=1.0, theta_bias=1.0, alpha_bias=-2.0),
    feed_forward=1.0,
)


@each()
@pytest.mark.parametrize("initial", [False, True], ids=["moved", "as initialised"])
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(subject: Subject, initial: bool) -> None:
    module = subject.construct(subject.config).double() if initial else subject.build()
    y, _ = module(subject.draw(3))
    (y - torch.randn_like(y)).square().mean().backward()
    for name, x in module.named_parameters():
        assert x.grad is not None, f"{name} has no gradient"
        assert x.grad.isfinite().all(), name
        assert x.grad.any(), f"the gradient of {name} is zero"


@each(LEARNERS)
def test_gradients_flow_through_what_was_written_many_chunks_before(subject: Subject) -> None:
    """A loss on the last token alone reaches what wrote the first chunk, which nothing else lets it see."""
    module = subject.construct(replace(subject.config, memory=replace(subject.config.memory, alpha_bias=-6.0))).double()
    x = subject.draw(2, 60)
    seen = []
    if subject.kind == "model":
        module.embedding.register_forward_hook(lambda _module, _inputs, y: seen.append(y))
    else:
        seen.append(x.requires_grad_())
    y, _ = module(x)
    (gradient,) = torch.autograd.grad(y[:, -1].square().sum(), seen)
    assert gradient[:, :4].isfinite().all()
    assert gradient[:, :4].abs().max() > 0


@each(LEARNERS)
def test_gradients_of_parameters_flow_through_a_state(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(2)
    _, state = module(x)
    y, _ = module(x[:, :1], state)
    # Keys of a rule, levels that read the next token, values of a feed-forward that learns.
    written = re.compile(r"(memory\.|^)key\.|^prime\.|feed_forward\.value")
    writers = [p for name, p in module.named_parameters() if written.search(name)]
    for gradient in torch.autograd.grad(y.square().sum(), writers):
        assert gradient.abs().max() > 0


@each([*[s for s in SUBJECTS if s.kind != "model"], *[s for s in MODELS if s.config.pattern == ["titans_mac"]]])
def test_gradcheck(subject: Subject) -> None:
    config = replace(SMALL, pattern=subject.config.pattern)
    config = replace(config, memory=replace(config.memory, rule=subject.config.memory.rule))
    small = replace(subject, config=config)
    module, x = small.build(), small.draw(2, 5)
    names, values = zip(*module.named_parameters(), strict=True)

    def run(*parameters: Tensor) -> Tensor:
        y, state = functional_call(module, dict(zip(names, parameters, strict=True)), (x,))
        return torch.cat([y.flatten(), *(s.flatten() for _, s in state.items() if s.is_floating_point())])

    assert torch.autograd.gradcheck(run, values, fast_mode=True, atol=1e-6)


@each([s for s in MODELS if s in LEARNERS])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_recomputing_in_backward_changes_no_gradient(subject: Subject, every: int) -> None:
    x = subject.draw(2, T)
    gradients = []
    for checkpoint_every in (None, every):
        module = subject.build(checkpoint_every=checkpoint_every)
        y, _ = module(x)
        gradients.append(torch.autograd.grad(y.square().mean(), list(module.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, atol=1e-12, rtol=1e-10)
