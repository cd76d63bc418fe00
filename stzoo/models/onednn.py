"""Runs products of float32 matrices by oneDNN on CPUs for which MKL does not use AVX-512.

MKL, which torch uses for float32, runs its AVX2 code on AMD CPUs even if they have AVX-512. oneDNN, which
torch also contains, uses what the CPU offers: 480 instead of 215 GFLOP/s on two cores of an EPYC (family 26)
with the layers of all-MiniLM-L6-v2 and 512 to 8,192 tokens. Results differ by some 1e-7, as they do between
batches.

Source: torch.compile translates a linear layer on the CPU to torch.ops.mkldnn._linear_pointwise.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


def fast_linear(device: Any) -> AbstractContextManager[Any]:
    """A context in which float32 linear layers of this thread run by oneDNN, if that is known to be faster.

    Args:
        device: Device of the model.
    """
    return ByOneDNN() if device.type == "cpu" and mkl_lags() else nullcontext()


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes left @ right.T + bias, by oneDNN if that is known to be faster; without a gradient.

    Args:
        left: [N, K].
        right: [M, K], of the same dtype and device.
        bias: [M], or None.

    Returns:
        [N, M].
    """
    if left.dtype == torch.float32 and left.device.type == "cpu" and mkl_lags():
        return _by_onednn(left, right, bias)
    return torch.mm(left, right.T) if bias is None else torch.addmm(bias, left, right.T)


class ByOneDNN(TorchFunctionMode):
    """A context in which float32 linear layers of this thread run by oneDNN, on any CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.linear and not kwargs and len(args) == 3:
            x, weight, bias = args
            plain = type(weight) is torch.nn.Parameter  # not quantised
            if plain and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
                if not torch.is_grad_enabled() or not (x.requires_grad or weight.requires_grad):
                    return _by_onednn(x, weight, bias)
                # a view made here, unlike one made in _Linear, may be changed in place
                flat = _Linear.apply(x.reshape(-1, weight.shape[1]), weight, bias)
                return flat.view(*x.shape[:-1], len(weight))
        return function(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        at_x = _by_onednn(outer, weight.T) if ctx.needs_input_grad[0] else None
        at_weight = _by_onednn(outer.T, x.T) if ctx.needs_input_grad[1] else None
        return at_x, at_weight, outer.sum(0) if ctx.needs_input_grad[2] else None


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not x.numel():  # refused by oneDNN
        return torch.nn.functional.linear(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


@cache
def mkl_lags() -> bool:
    """True if this is an AMD CPU with AVX-512, and torch has both libraries."""
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
