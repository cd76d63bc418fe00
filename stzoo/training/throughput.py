"""How fast a training is: tokens per second, the share of waiting for data, and the use of the hardware.

Nothing here makes a step wait for the device. The arithmetic of a step is counted once for each doubling of
the length of texts, from the shapes of the operands of its products; other steps are assumed to need as much
per token.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

from stzoo.models.onednn import product

CALIBRATION_S = 0.2


class Throughput:
    """Measures a training between two lines of its log.

    Args:
        device: Device of the model.
        precision: Precision of the training.
    """

    def __init__(self, device: torch.device, precision: str):
        self.device, self.precision = device, precision
        self.per_token: dict[Any, float] = {}  # operations, by kind of step
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured so far."""
        self.tokens: Any = 0  # a tensor, so that no step waits for the device
        self.operations, self.waited = 0.0, 0.0
        self.since = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time of the block."""
        begun = time.monotonic()
        yield
        self.since += time.monotonic() - begun

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as waiting for data."""
        begun = time.monotonic()
        yield
        self.waited += time.monotonic() - begun

    def count_tokens(self, inputs: Mapping[str, Any]) -> None:
        """Counts the tokens of a batch without padding; of several texts per row ([B, K, T]), their mean."""
        for name, ids in _ids(inputs).items():
            mask = inputs.get(name.removesuffix("input_ids") + "attention_mask")
            count = ids.numel() if mask is None else mask.sum()
            self.tokens = self.tokens + count / (ids.shape[1] if ids.dim() == 3 else 1)

    @contextmanager
    def step(self, inputs: Mapping[str, Any], frozen: bool) -> Iterator[None]:
        """Counts the operations of the step in the block.

        Args:
            inputs: The batch.
            frozen: True if the encoder is not trained in this step.
        """
        shapes = [ids.shape for ids in _ids(inputs).values()]
        tokens = sum(map(np.prod, shapes))  # padding takes part in the products
        kind = (frozen, max(shape[-1] for shape in shapes).bit_length())
        counter: AbstractContextManager[Any] = nullcontext() if kind in self.per_token else _Counter()
        with counter:
            yield
        if isinstance(counter, _Counter):
            self.per_token[kind] = counter.operations / tokens
        self.operations += self.per_token[kind] * tokens

    def read(self) -> dict[str, float]:
        """The values since the last call, for the log.

        Returns:
            tokens_per_s: Without padding.
            data_wait: Share of the time that was spent waiting for batches, 0..1.
            utilisation: Operations / those that large products of matrices would do in the same time, 0..1;
                left out if no operations were counted.
        """
        seconds = max(time.monotonic() - self.since, 1e-9)
        values = {
            "tokens_per_s": round(float(self.tokens) / seconds, 1),
            "data_wait": round(self.waited / seconds, 4),
        }
        if self.operations:
            most = matrix_speed(self.device, self.precision) * seconds
            values["utilisation"] = round(self.operations / most, 4)
        self.restart()
        return values


def _ids(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ids for name, ids in inputs.items() if name.endswith("input_ids")}


@cache
def matrix_speed(device: torch.device, precision: str) -> float:
    """Operations per second of large products of matrices, measured in about 0.2 s."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    cuda = device.type == "cuda"
    side, at_once = (4096, 8) if cuda else (2048, 1)
    generator = torch.Generator(device).manual_seed(0)  # on a GPU, zeros or ones would be faster
    matrix = torch.rand(side, side, dtype=dtype, device=device, generator=generator)
    best, start = float("inf"), time.perf_counter()
    for repeat in range(10):
        begun = time.perf_counter()
        for _ in range(at_once):
            product(matrix, matrix)
        if cuda:
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        best = min(best, now - begun)
        if repeat and now - start > CALIBRATION_S:
            break
    return 2 * side**3 * at_once / best


class _Counter(TorchDispatchMode):
    """Counts the operations of products in a block, in forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function.overloadpacket):
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        return result


# those that torch does not count
_aten = torch.ops.aten
for _direction in ("", "_backward"):
    _on_cpu = getattr(_aten, f"_scaled_dot_product_flash_attention_for_cpu{_direction}", None)
    if _on_cpu is not None:
        _formula = flop_registry[getattr(_aten, f"_scaled_dot_product_flash_attention{_direction}")]
        flop_registry.setdefault(_on_cpu, _formula)
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _linear_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        """Operations of a linear layer by oneDNN, from the shapes of its arguments."""
        return int(2 * np.prod(x) * weight[0])
