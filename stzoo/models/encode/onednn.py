"""Runs linear layers by oneDNN on CPUs for which MKL does not use AVX-512.

MKL, which torch uses for float32, runs its AVX2 code on AMD CPUs even if they have AVX-512. oneDNN, which
torch also contains, uses what the CPU offers: 480 instead of 215 GFLOP/s on two cores of an EPYC (family 26)
with the layers of all-MiniLM-L6-v2 and 512 to 8,192 tokens. The vectors differ by some 1e-7, as they do
between batches.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def fast_linear(device: Any) -> AbstractContextManager[Any]:
    """A context in which float32 linear layers of this thread run by oneDNN, if that is known to be faster.

    Args:
        device: Device of the model.

    Source: torch.compile translates a linear layer on the CPU to torch.ops.mkldnn._linear_pointwise.
    """
    return by_onednn()() if device.type == "cpu" and _mkl_lags() else nullcontext()


@cache
def by_onednn() -> type[AbstractContextManager[Any]]:
    """The class of contexts in which linear layers run by oneDNN, on any CPU."""

    class ByOneDNN(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.nn.functional.linear and not kwargs and len(args) == 3:
                x, weight, bias = args
                plain = type(weight) is torch.nn.Parameter  # not quantised
                if plain and x.dtype == weight.dtype == torch.float32:
                    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
            return function(*args, **(kwargs or {}))

    return ByOneDNN


@cache
def _mkl_lags() -> bool:
    try:
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not on Linux
        return False
    return (
        amd
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
