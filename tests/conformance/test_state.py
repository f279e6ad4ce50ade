"""Law 6: the state's size is a formula of the config. Law 8: states are values, saved and loaded to the bit."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralmem.layers.titans_mac import TitansMAC
from neuralmem.memory._memory import Memory
from neuralmem.memory._rule import MemoryRule
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.ttt_e2e import EndToEnd
from neuralmem.modules.attention import Attention
from neuralmem.modules.stream import Stream
from neuralmem.state import State
from tests.conformance.subjects import (
    MODELS,
    Subject,
    T,
    assert_identical,
    each,
    variants,
)

INTEGER = 8  # bytes


def documented_bytes(module: Stream, wide: int, narrow: int) -> int:
    """Bytes per sample, as docs/numerics.md states them. wide: bytes of a fast weight; narrow: of an activation."""
    total = 0
    for part in module.modules():
        if isinstance(part, Memory):
            weights, momentum = part.initial()
            total += wide * sum(x.numel() for x in (*weights, *momentum))
            total += wide * (part.config.chunk_size - 1) * sum(map(math.prod, part.written_shapes)) + INTEGER
            convolved = sum(convolution.weight.shape[1] for convolution in part.convolutions)
            total += narrow * (part.config.convolution - 1) * convolved
            if isinstance(part, MemoryRule):
                assert part.written_shapes[:2] == [(part.heads, part.head_width)] * 2
                assert convolved in (0, 3 * part.heads * part.head_width)
        if isinstance(part, Attention):
            total += narrow * 2 * (part.config.window - 1) * part.key.out_features + INTEGER
        if isinstance(part, TitansMAC):
            total += wide * sum(x.numel() for x in part.memory.initial()[0])  # what the first read uses
            total += narrow * 4 * (part.size - 1) * part.attention.key.out_features + INTEGER
        if isinstance(part, CausalLM):
            total += INTEGER
        if isinstance(part, EndToEnd):
            total += _end_to_end_bytes(part, wide, narrow)
    return total


def _end_to_end_bytes(model: EndToEnd, wide: int, narrow: int) -> int:
    """Weights that learn, gradients of levels that wait, two counters, and an unfinished mini-batch: its tokens, what
    they are to the layers that learn, and those layers' windows at its start."""
    size, config, layers = model.config.width, model.config.end_to_end, model.config.depth - model.prefix
    hidden, levels = round(size * model.config.feed_forward), len(config.intervals)
    dealt = config.learns == "feed_forward"
    units = [len(range(i, hidden, levels)) if dealt else hidden for i in range(levels)]
    copies = [{None: 0, 1: 1}.get(interval, 2) for interval in config.intervals]  # a level that rests has no state
    matrices = 3 * size * layers * sum(a * b for a, b in zip(units, copies, strict=True))
    window = narrow * 2 * (model.config.attention.window - 1) * size + INTEGER
    return wide * matrices + 2 * INTEGER + config.mini_batch * (INTEGER + narrow * size) + layers * window


@each()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_state_size_is_the_documented_formula_whatever_was_read(subject: Subject, dtype: torch.dtype) -> None:
    module = subject.build(dtype)
    expected = 3 * documented_bytes(module, max(4, dtype.itemsize), dtype.itemsize)
    state = module.init_state(3)
    assert state.nbytes == expected
    with torch.no_grad():
        for length in (1, 2, 30, 100, 7):
            _, state = module(subject.draw(3, length, dtype), state)
            assert state.nbytes == expected


@each([s for s in variants() if s.name != "full attention"])
def test_state_size_is_the_documented_formula_at_unusual_settings(subject: Subject) -> None:
    module = subject.build()
    with torch.no_grad():
        _, state = module(subject.draw(2))
    assert state.nbytes == 2 * documented_bytes(module, 8, 8)


@each()
def test_state_stays_wide_when_the_model_is_narrow(subject: Subject) -> None:
    module = subject.build(torch.bfloat16)
    with torch.no_grad():
        fresh = module.init_state(2)
        y, state = module(subject.draw(2, dtype=torch.bfloat16), fresh)
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()
    for (name, a), (_, b) in zip(fresh.items(), state.items(), strict=True):
        assert a.dtype == b.dtype, name
        if "weights" in name or "momentum" in name or "pending" in name or "anchor" in name:
            assert a.dtype == torch.float32, name


@each()
def test_autocast_keeps_the_states_dtypes(subject: Subject) -> None:
    module, x = subject.build(torch.float32), subject.draw(2, dtype=torch.float32)
    with torch.no_grad():
        expected, _ = module(x)
        fresh = module.init_state(2)
        with torch.autocast("cpu", torch.bfloat16):
            y, state = module(x[:, :7], fresh)
            z, state = module(x[:, 7:], state)
    assert [x.dtype for _, x in state.items()] == [x.dtype for _, x in fresh.items()]
    joined = torch.cat([y, z], 1).float()
    assert (joined - expected).square().mean() < 0.05 * expected.square().mean()


def snapshot(module: Stream) -> list[Any]:
    """Everything a module keeps: attributes by identity, parameters and buffers by value."""
    kept: list[Any] = [{k: id(v) for k, v in part.__dict__.items()} for part in module.modules()]
    return [*kept, {k: v.clone() for k, v in module.state_dict().items()}]


@each()
@pytest.mark.parametrize("mode", ["on", "frozen", "off"])
def test_neither_the_state_passed_in_nor_the_module_changes(subject: Subject, mode: str) -> None:
    module, x = subject.build(), subject.draw(2)
    before = snapshot(module)
    with torch.no_grad():
        _, state = module(x, memory=mode)
        copy = state.clone()
        y, _ = module(x, state, reset=torch.arange(T)[None].repeat(2, 1) == 9, memory=mode)
        module(x, state, mask=torch.arange(T)[None].repeat(2, 1) > 3, memory=mode)
        again, _ = module(x, state, reset=torch.arange(T)[None].repeat(2, 1) == 9, memory=mode)
    assert_identical(state, copy)
    assert torch.equal(y, again)
    after = snapshot(module)
    assert before[:-1] == after[:-1]
    assert all(torch.equal(v, after[-1][k]) for k, v in before[-1].items())


@each()
def test_training_the_module_does_not_change_a_state_read_before(subject: Subject) -> None:
    module = subject.build()
    _, state = module(subject.draw(2, 2))
    state = state.detach()
    copy = state.clone()
    with torch.no_grad():
        for x in module.parameters():
            x.add_(1)
    assert_identical(state, copy)


@each()
def test_clones_share_no_memory_with_their_original(subject: Subject) -> None:
    module = subject.build()
    _, state = module(subject.draw(2, 7))
    copy = state.detach().clone()
    with torch.no_grad():
        for _, x in copy.items():
            x.zero_()
    assert any(x.any() for _, x in state.items())
    pointers = {x.untyped_storage().data_ptr() for _, x in state.items() if x.numel()}
    assert not any(x.untyped_storage().data_ptr() in pointers for _, x in copy.items() if x.numel())


@each(MODELS)
@pytest.mark.parametrize("length", [0, 1, 5, 12, T], ids=["unread", "one token", "mid-chunk", "on the grid", "all"])
def test_a_saved_state_goes_on_bit_for_bit(subject: Subject, length: int, tmp_path: Path) -> None:
    module, x = subject.build(torch.float32), subject.draw(2, T + 5)
    with torch.no_grad():
        state = module(x[:, :length])[1] if length else module.init_state(2)
        state.save(tmp_path / "read.safetensors")
        loaded = State.load(tmp_path / "read.safetensors", module)
        assert_identical(loaded, state)
        assert loaded.nbytes == state.nbytes
        y, after = module(x[:, length:], state)
        z, same = module(x[:, length:], loaded)
    assert torch.equal(y, z)
    assert_identical(after, same)


@each(MODELS)
def test_position_counts_the_tokens_of_the_document(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(3)
    mask = torch.arange(T) < torch.tensor([T, 5, 0])[:, None]
    reset = torch.zeros(3, T, dtype=torch.bool)
    reset[0, 12] = True
    with torch.no_grad():
        _, state = module(subject.draw(3, 4))
        assert state.position.tolist() == [4, 4, 4]
        _, state = module(x, state, mask=mask, reset=reset)
    assert state.position.tolist() == [T - 12, 9, 4]
