"""What tests of the native kernels run in processes of their own: `python -m tests.ops.native_process check|ddp ...`.

`check` compares the kernels of the instruction set in NEURALMEM_CPU_ISA with `chunked` and prints its name;
`ddp RANK FOLDER` is one of two processes that share a training step.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from neuralmem.config import MemoryConfig
from neuralmem.memory.titans import Titans
from neuralmem.ops import decode_memory
from tests.ops.memory_cases import assert_all_close, make, outputs_and_gradients, relative_error
from tests.ops.memory_streams import Shape, check_against_rounded_chunked, exact, results, stream


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """This file in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ops.native_process", *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check() -> str:
    """Compare in every dtype; the name of the instruction set that ran."""
    for options in ({"mask": True, "reset": True}, {"momentum": False, "layers": 3}, {"norm": False, "layers": 1}):
        call = make(23, hidden=19, **options)
        ours, theirs = (outputs_and_gradients(call.run(backend=name), call) for name in ("native", "chunked"))
        assert_all_close(ours[0], theirs[0])
        assert_all_close(ours[1], theirs[1])
    arguments = stream(Shape(tokens=150, width=20, hidden=(36,), chunk_size=32), torch.float32)
    ours, right = results(arguments, "native"), exact(arguments)
    for part in (1, 2):
        assert relative_error(ours[part], right[part]) < 1e-5
    for dtype in (torch.bfloat16, torch.float16):
        check_against_rounded_chunked(stream(Shape(tokens=512, mask=True), dtype))
    call = make(6, chunk_size=7, mask=True).map(torch.Tensor.detach)
    options = {"norm": call.options["norm"], "write_mask": call.options["write_mask"]}
    y = decode_memory(call.tensors["q"][:, -1:], *list(call.tensors.values())[1:], **options, backend="native")
    assert_all_close([y], [call.run(backend="reference")[0][:, -1:]])
    return json.loads(torch.ops.neuralmem.native_info())["cpu"]


class Reader(nn.Module):
    """A memory without its state, as DDP likes a module; every parameter gets a gradient."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.memory = Titans(8, MemoryConfig(heads=2, chunk_size=4, backend=backend)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(x)[0]


def text(rank: int) -> Tensor:
    """What a process reads."""
    return torch.randn(2, 11, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))


def step(module: nn.Module, rank: int) -> dict[str, Tensor]:
    """Gradients of one loss."""
    module(text(rank)).square().sum().backward()
    return {name.removeprefix("module."): p.grad for name, p in module.named_parameters() if p.grad is not None}


def ddp(rank: int, folder: Path) -> None:
    """One of two processes: the gradients that it has after they were shared, into a file."""
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    module = nn.parallel.DistributedDataParallel(Reader("native"))
    torch.save(step(module, rank), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "check":
        print(check())
    else:
        ddp(int(sys.argv[2]), Path(sys.argv[3]))
