"""Powers of two from their exponents, exact; `torch.ldexp` takes the power from a rounded `pow` in float32."""

import torch


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Returns `2^exponent`, float32, of int32 exponents from −126 to 127."""
    return ((exponent + 127) << 23).view(torch.float32)


def wide_power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Returns `2^exponent`, float64, of int32 exponents."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)
