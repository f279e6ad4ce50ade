"""What a step does with its surprise: Muon's direction, or the surprise itself."""

from neuralmem.ops.newton_schulz import newton_schulz
from neuralmem.typing import Tensor


def direction(surprise: Tensor, muon: bool) -> Tensor:
    """[..., D_out, D_in] -> the same."""
    return newton_schulz(surprise) if muon else surprise
