"""A layer with any rule: that what the layer does with a memory holds for this memory too.

The laws one by one are tested on the rule alone and on the layer with other rules; here all at once on the pair: a text
with padding and documents, cut into calls of any length, equals its documents read one by one without either, and the
gradients of both are the same, finite, and reach every parameter.
"""

import torch

from tests.conformance.subjects import PAIRS, Subject, T, assert_close, assert_same_state, each

CUTS = [1, 6, 2, 4, 5, 1]


@each(PAIRS)
def test_documents_padded_and_cut_are_documents_read_one_by_one(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(2)
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[0, 5:8], mask[1, :3], mask[1, -2:] = False, False, False
    reset = torch.zeros(2, T, dtype=torch.bool)
    reset[0, 10] = True
    state, outputs = None, []
    for part, real, starts in zip(x.split(CUTS, 1), mask.split(CUTS, 1), reset.split(CUTS, 1), strict=True):
        y, state = module(part, state, mask=real, reset=starts)
        outputs.append(y)
    together = torch.cat(outputs, dim=1)

    def alone(row: int, start: int, stop: int) -> torch.Tensor:
        y, last = module(x[row : row + 1, start:stop][:, mask[row, start:stop]])
        if stop == T:
            assert_same_state(state.select([row]), last)
        return y[0]

    separate = torch.cat([alone(0, 0, 10), alone(0, 10, T), alone(1, 0, T)])
    joined = together[mask]
    assert_close(joined, separate)
    parameters = dict(module.named_parameters())
    gradients = [torch.autograd.grad(y.square().sum(), parameters.values()) for y in (joined, separate)]
    for name, one, other in zip(parameters, *gradients, strict=True):
        assert one.isfinite().all(), name
        assert one.any(), name
        assert_close(one, other, atol=1e-10 * max(1.0, float(other.abs().max())))


@each(PAIRS)
def test_a_token_changes_nothing_before_it(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(1)
    texts, other = x.repeat(T, 1, 1), subject.change(x)
    for t in range(T):
        texts[t, t] = other[0, t]
    with torch.no_grad():
        y, changed = module(x)[0], module(texts)[0]
    for t in range(T):
        assert_close(changed[t, :t], y[0, :t], atol=1e-12)
