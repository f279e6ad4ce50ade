"""When the native kernels are taken, what is said when they are not, and that looking at them changes nothing."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem import probe
from neuralmem.errors import UserError
from neuralmem.ops import Lp
from neuralmem.ops.neural_memory.call import prepare
from tests.ops.memory_cases import (
    Call,
    assert_all_close,
    make,
    needs_native,
    outputs_and_gradients,
)

pytestmark = needs_native
native = importlib.import_module("neuralmem.ops.neural_memory.native")


def test_looking_at_the_surprise_changes_nothing() -> None:
    call, network, seen = make(), torch.nn.Linear(1, 1), []
    blind = outputs_and_gradients(call.run(backend="native"), call)
    for backend in ("native", "chunked"):
        with probe.recording(network) as record, probe.inside(network):
            watched = outputs_and_gradients(call.run(backend=backend), call)
        seen.append(record.means())
        if backend == "native":
            assert_all_close([*watched[0], *watched[1]], [*blind[0], *blind[1]], 0.0)
    assert seen[0] == seen[1]


def test_the_surprise_has_its_gradient_where_that_is_wanted() -> None:
    call, network = make(), torch.nn.Linear(1, 1)
    for backend in ("native", "auto"):
        with probe.recording(network, attached=True) as record, probe.inside(network):
            call.run(backend=backend)
        (gradient,) = torch.autograd.grad(record.total("surprise"), call.tensors["k"])
        assert gradient.any()


def prepared(call: Call) -> Any:
    """What a backend receives."""
    options = {"activation": "silu", "residual": True, "norm": None, "write_mask": None, **call.options}
    return prepare(**call.tensors, **options)


class TestChoice:
    """What "auto" and "native" mean for a call."""

    def used(self, monkeypatch: pytest.MonkeyPatch, call: Call, **options: Any) -> str:
        backends = importlib.import_module("neuralmem.ops.neural_memory").BACKENDS
        names: list[str] = []
        with monkeypatch.context() as patch:
            for name, backend in list(backends.items()):
                patch.setitem(backends, name, lambda call, name=name, run=backend: names.append(name) or run(call))
            call.run(**options)
        return names[0]

    def test_auto_is_native_where_that_can_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        call = make(3)
        assert self.used(monkeypatch, call) == "native"
        assert self.used(monkeypatch, make(3, layers=9)) == "chunked"
        assert self.used(monkeypatch, make(3, bias=Lp(3.0))) == "chunked"
        assert self.used(monkeypatch, call.map(lambda x: x.detach().to("meta"))) == "chunked"
        with probe.recording(torch.nn.Linear(1, 1), attached=True):
            assert self.used(monkeypatch, call) == "chunked"
        with probe.recording(torch.nn.Linear(1, 1), attached=True, only="write"):
            assert self.used(monkeypatch, call) == "native"

    def test_what_the_kernels_cannot_do_is_refused_when_they_are_asked_for(self) -> None:
        with pytest.raises(UserError, match=r"cannot run here: weights has 9 tensors, and the kernels take at most 8"):
            make(3, layers=9).run(backend="native")
        with pytest.raises(UserError, match=r"cannot run here: .* a dimension of size 0"):
            make(3, hidden=0).run(backend="native")
        with pytest.raises(UserError, match=r"cannot run here: .* and q is on meta"):
            make(3).map(lambda x: x.detach().to("meta")).run(backend="native")

    def test_other_derivatives_than_backward_go_the_way_of_chunked(self) -> None:
        call = make(7)

        def loss(k: Tensor, backend: str = "auto") -> Tensor:
            return Call({**call.tensors, "k": k}, call.options).run(backend=backend)[0].sum()

        k = call.tensors["k"]
        (expected,) = torch.autograd.grad(loss(k), k)
        assert_all_close([torch.func.grad(loss)(k.detach())], [expected])
        _, slope = torch.func.jvp(loss, (k.detach(),), (k.detach(),))
        assert_all_close([slope], [(expected * k).sum()])
        with pytest.raises(UserError, match=r"not torch.func or forward-mode derivatives"):
            torch.func.vmap(lambda k: loss(k, "native"))(k.detach()[None])

    def test_sizes_without_a_cuda_kernel_fall_back_with_one_line(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """On a GPU; here with the answers of one, since the choice itself needs none."""
        monkeypatch.setattr(native, "refuses", lambda call: "")
        monkeypatch.setattr(native, "_missing_on_cuda", lambda call: "heads of 33")
        call: Any = SimpleNamespace(q=SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0)))
        monkeypatch.setattr(native, "_announced", set())
        with caplog.at_level("INFO", "neuralmem"):
            for recorded, backend in ((True, "auto"), (True, "native"), (False, "native"), (False, "auto")):
                monkeypatch.setattr(native, "_recorded_for", lambda device, recorded=recorded: recorded)
                assert native.choose(call, backend) == "chunked"
        assert caplog.messages == ["neural_memory: chunked instead of native: heads of 33"] * 2
        assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]  # auto; asked for by name

    def test_the_environment_is_asking_by_name(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(native, "refuses", lambda call: "")
        monkeypatch.setattr(native, "_missing_on_cuda", lambda call: "heads of 33")
        monkeypatch.setattr(native, "_recorded_for", lambda device: False)
        monkeypatch.setattr(native, "_announced", set())
        monkeypatch.setenv("NEURALMEM_BACKEND", "native")
        call: Any = SimpleNamespace(q=SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0)))
        assert [native.choose(call, "auto") for _ in range(2)] == ["chunked"] * 2
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_the_library_is_asked_once_per_kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch 2.13 leaks with every string that an op returns."""
        asked: list[tuple[Any, ...]] = []
        ops = SimpleNamespace(neuralmem=SimpleNamespace(cuda_refuses=lambda *kind: asked.append(kind) or "no"))
        monkeypatch.setattr(native, "_capability", lambda device: 90)
        monkeypatch.setattr(native, "torch", SimpleNamespace(**{**vars(torch), "ops": ops}))
        native._ask_the_library.cache_clear()
        try:
            kind = 2, (64, 256, 64), 64, 0, True, True
            assert [native._cuda_refuses(0, *kind) for _ in range(3)] == ["no"] * 3
            assert asked == [(*kind, 90)]
        finally:
            native._ask_the_library.cache_clear()

    def test_a_call_shorter_than_a_chunk_is_judged_by_its_length(self, monkeypatch: pytest.MonkeyPatch) -> None:
        at_most_128 = lambda device, dtype, widths, tokens, *rest: "a chunk is too long" if tokens > 128 else ""
        monkeypatch.setattr(native, "_cuda_refuses", at_most_128)
        for tokens, chunk_size, runs in ((300, 128, True), (300, 129, False), (100, 256, True), (129, 256, False)):
            call = make(tokens, chunk_size=chunk_size).map(lambda x: x.detach().bfloat16())
            assert (not native._missing_on_cuda(prepared(call))) == runs

    @pytest.mark.parametrize("chunk_size", [64, 256])
    def test_the_compiler_does_not_learn_every_length(self, monkeypatch: pytest.MonkeyPatch, chunk_size: int) -> None:
        @native._constant
        def at_most_128(device: Any, dtype: int, widths: Any, tokens: int, *rest: Any) -> str:
            return "a chunk is too long" if tokens > 128 else ""

        monkeypatch.setattr(native, "_cuda_refuses", at_most_128)
        look = lambda call: call.tensors["q"] + len(native._missing_on_cuda(prepared(call)))
        compiled = torch.compile(look, fullgraph=True, backend="aot_eager", dynamic=True)
        torch._dynamo.utils.counters.clear()
        with torch.no_grad():
            for tokens in (70, 85, 100, 127):
                call = make(tokens, chunk_size=chunk_size).map(Tensor.detach)
                assert torch.equal(compiled(call), call.tensors["q"])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        torch._dynamo.reset()

    def test_auto_on_a_gpu_waits_for_a_recorded_conformance_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "refuses", lambda call: "")
        monkeypatch.setattr(native, "_missing_on_cuda", lambda call: "")
        call: Any = SimpleNamespace(q=SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0)))
        for recorded in (True, False):
            monkeypatch.setattr(native, "_recorded_for", lambda device, recorded=recorded: recorded)
            assert native.choose(call, "auto") == ("native" if recorded else "chunked")
            assert native.choose(call, "native") == "native"
