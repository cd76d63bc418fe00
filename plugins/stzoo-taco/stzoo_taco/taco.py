"""TACO: each parameter takes more of the gradient of the tasks that it matters to.

1. A parameter's sensitivity to a task is |theta * g|: about how much the task's loss would change without it.
2. Divided by the median over all parameters, it is comparable between tasks; a moving average steadies it.
3. The parameter's update is the sum of its gradients, weighted by a softmax over tasks of these averages.

    s_ti = |theta_i * g_ti|
    I_ti = beta * I_ti + (1 - beta) * s_ti / median_i(s_ti)
    w_ti = softmax_t(I_ti / tau)
    g_i  = sum_t(w_ti * g_ti)

Source: Zhang et al., TACL 2023, https://arxiv.org/abs/2307.00342, and their code,
https://github.com/WenzhengZhang/TACO @b4ea13e, src/taco/trainer/mt_trainer.py, `taco_backward`.

Unlike it:
- the update keeps its size when the warm-up ends (`scale`). The authors divide it by T, although the weights
  already sum to 1: it falls to 1/T of the mean gradient that the warm-up takes. AdamW, which remembers the
  larger gradients of the warm-up, then takes smaller steps for about 1 / (1 - beta2) = 1000 steps;
- the median is over the parameters that a step's gradient reaches. Of a small BERT more than half are words
  that no text of a batch has; over all parameters the median is then 0, and one task takes each parameter;
- nothing of the size of all gradients is made beside the sensitivities: all is computed chunk by chunk;
- of many parameters, the median is that of a sample;
- batches may be accumulated, and sensitivities go on in the next episode of mined negatives;
- with torch 2 it trains (there, `zero_grad` drops the gradients that the update was to be written to).
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from stzoo import RecipeError
from stzoo.finetuning.balancers import Balancer, BalancerContext

TINY = 1e-12  # added to medians, as in the authors' code
CHUNK = {"cpu": 2**15}  # entries at a time, few enough to stay in a core's cache; elsewhere 2**20


class TACO(Balancer):
    """Task-adaptive weights of gradients, for each parameter its own.

    Args:
        about: the tasks, P and the number of steps.
        beta: 0..1, of the moving average.
        tau: temperature of the softmax.
        warmup_ratio: share of the steps, the first ones, whose update is the mean of the gradients;
            sensitivities are averaged all the same.
        scale: "sum" keeps the size of that mean afterwards, which is also that of the balancer `sum`;
            "released" divides the update by the number of tasks, as the authors' code does.
        normalise: divide by the median `before` the average, or the average by its own `after`.
        median_over: "used" leaves out the entries that are 0; "all" counts them, as the authors' code does.
        median_sample: the median is that of so many entries, drawn once; of all where there are no more, or
            if it is 0.
        discourage: True to give each parameter less of the tasks that it matters to; the paper's control.

    Attributes:
        sensitivity: float32 [K, P], I; a buffer.
        step: int64 scalar, updates so far of finite gradients; a buffer.
    """

    sensitivity: Tensor
    step: Tensor
    sample: Tensor | None

    def __init__(
        self,
        about: BalancerContext,
        beta: float = 0.999,
        tau: float = 2.0,
        warmup_ratio: float = 0.1,
        scale: Literal["released", "sum"] = "sum",
        normalise: Literal["before", "after"] = "before",
        median_over: Literal["used", "all"] = "used",
        median_sample: int = 2**20,
        discourage: bool = False,
    ):
        super().__init__(about)
        for name, value, holds, expected in (
            ("beta", beta, 0 <= beta < 1, "0 to below 1"),
            ("tau", tau, tau > 0, "above 0"),
            ("warmup_ratio", warmup_ratio, 0 <= warmup_ratio <= 1, "0 to 1"),
            ("scale", scale, scale in ("released", "sum"), "released or sum"),
            ("normalise", normalise, normalise in ("before", "after"), "before or after"),
            ("median_over", median_over, median_over in ("used", "all"), "used or all"),
            (
                "median_sample",
                median_sample,
                median_sample == 0 or median_sample >= 10**6,
                "0 or at least 1e6",
            ),
        ):
            if not holds:
                raise RecipeError(f"balancer_options.{name} is {value}; expected {expected}.")
        self.beta, self.tau, self.before = beta, tau, normalise == "before"
        self.used_only = median_over == "used"
        self.divisor = len(about.tasks) if scale == "released" else 1
        self.warmup_steps = int(about.steps * warmup_ratio)
        self.sign = -1 if discourage else 1
        self.chunk = CHUNK.get(torch.device(about.device).type, 2**20)
        self.register_buffer("sensitivity", torch.zeros(len(about.tasks), about.entries, device=about.device))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        sample = None
        if 0 < median_sample < about.entries:
            draw = torch.Generator().manual_seed(about.seed)
            sample = torch.randint(about.entries, (median_sample,), generator=draw).sort().values
        self.register_buffer("sample", sample, persistent=False)

    def balance(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:  # noqa: ARG002
        """See `Balancer`; overwrites the first row with the update."""
        warm = bool(self.step < self.warmup_steps)
        self.step += 1
        update = gradients[0]
        parts = [slice(start, start + self.chunk) for start in range(0, len(update), self.chunk)]
        scale = self._medians(gradients, parameters) if self.before else 1.0
        slope: Any = self.sign / self.tau
        for part in parts:
            found = (gradients[:, part] * parameters[part]).abs_().div_(scale)
            self.sensitivity[:, part].lerp_(found, 1 - self.beta)
            if self.before:  # at once, while the chunk is in the cache
                self._weigh(gradients, part, slope, warm)
        if not self.before:
            slope = slope / self._medians(self.sensitivity)
            for part in parts:
                self._weigh(gradients, part, slope, warm)
        return update

    def _weigh(self, gradients: Tensor, part: slice, slope: Any, warm: bool) -> None:
        """Writes the update of some entries into the first row."""
        own = gradients[:, part]
        if warm:
            gradients[0, part] = own.mean(0)
        else:
            weighted = (self.sensitivity[:, part] * slope).softmax(0).mul_(own)
            gradients[0, part] = weighted.sum(0).div_(self.divisor)

    def _medians(self, values: Tensor, factors: Tensor | None = None) -> Tensor:
        """[K, 1], the medians of the rows, times the factors and without signs."""
        chosen = [
            values[task] if self.sample is None else values[task, self.sample] for task in range(len(values))
        ]
        if factors is not None:
            factors = factors if self.sample is None else factors[self.sample]
            chosen = [(row * factors).abs_() for row in chosen]
        return medians(chosen, self.used_only)


def medians(rows: Iterable[Tensor], used_only: bool) -> Tensor:
    """[K, 1], the (lower) median of each row, TINY added; with `used_only` of what is above 0 in it."""
    if used_only:
        rows = [used if len(used := row[row > 0]) else row for row in rows]
    return torch.stack([row.median() for row in rows])[:, None] + TINY
