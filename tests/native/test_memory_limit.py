"""A chunk whose scratch memory a machine has not got is refused by name; the process goes on."""

import subprocess
import sys

import pytest

from neuralmem.backends import library_error

PROGRAM = """
import resource, torch
from neuralmem.ops import neural_memory
torch.set_num_threads(1)
T, D = 20_000, 4
x, gate = torch.randn(1, T, 1, D), torch.full((1, T, 1), 1e-3)
weights = (torch.randn(1, 1, 8, D), torch.randn(1, 1, D, 8))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, -1))
try:
    neural_memory(x, x, x, gate, None, gate, weights, None, chunk_size=T, backend="native")
except Exception as error:
    print(error)
y, *_ = neural_memory(x, x, x, gate, None, gate, weights, None, chunk_size=16, backend="native")
print(bool(y.isfinite().all()))
"""


@pytest.mark.skipif(bool(library_error()), reason=f"no native library: {library_error()}")
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_a_chunk_too_large_for_the_machine_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refusal, finite = done.stdout.strip().splitlines()
    assert "chunk_size is 20000, for which" in refusal
    assert finite == "True"
