"""TACO: each parameter follows more of the gradient of the tasks that it matters to.

1. A parameter's sensitivity to a task is |theta * g|, roughly the change of the task's loss without it.
2. Divided by the median over all parameters, it is comparable between tasks; a moving average smooths it.
3. The parameter's update is the sum of its gradients, weighted by a softmax of these averages over the tasks.

    s_ti = |theta_i * g_ti|
    I_ti = beta * I_ti + (1 - beta) * s_ti / median_i(s_ti)
    w_ti = softmax_t(I_ti / tau)
    g_i  = sum_t(w_ti * g_ti)

Source: Zhang et al., TACL 2023, https://arxiv.org/abs/2307.00342, and their code,
https://github.com/WenzhengZhang/TACO @b4ea13e, src/taco/trainer/mt_trainer.py, `taco_backward`.

Unlike it:
- the update keeps its size when the warm-up ends (`scale`). The authors divide it by T although the weights
  already sum to 1, so it falls to 1/T of the mean gradient used in the warm-up. AdamW, which averages over
  the larger gradients of the warm-up, then takes smaller steps for about 1 / (1 - beta2) = 1000 steps;
- the median is over the parameters that a step's gradient reaches. More than half of the parameters of a
  small BERT belong to words that do not occur in a batch; over all parameters the median would be 0, and each
  parameter would serve one task;
- apart from the sensitivities, nothing as large as all gradients is allocated: it is computed in chunks;
- with many parameters, the median is that of a sample;
- batches may be accumulated, and sensitivities carry over to the next episode of mined negatives;
- it works with torch 2 (the authors' code does not: `zero_grad` drops the gradients that it writes to).
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
    """Weights the tasks' gradients adaptively, with separate weights for each parameter.

    Args:
        context: The tasks, the number P of parameters, and the number of steps.
        beta: Decay of the moving average, 0..1.
        tau: Temperature of the softmax.
        warmup_ratio: Share of the steps, at the beginning, whose update is the mean of the gradients.
            Sensitivities are averaged in these steps too.
        scale: "sum" to keep the size of that mean afterwards, which is also that of the balancer `sum`;
            "released" to divide the update by the number of tasks, as the authors' code does.
        normalise: "before" to divide sensitivities by their median before averaging; "after" to divide the
            average by its own median.
        median_over: "used" to ignore entries that are 0; "all" to include them, as the authors' code does.
        median_sample: Number of entries, sampled once, that the median is computed of; 0 for all.
        discourage: True to follow less of the tasks that a parameter matters to; the paper's control.

    Attributes:
        sensitivity: float32 [K, P], the averages I; a buffer.
        step: int64 scalar, the number of updates with finite gradients so far; a buffer.

    Raises:
        RecipeError: If an option is out of range.
    """

    sensitivity: Tensor
    step: Tensor
    sample: Tensor | None

    def __init__(
        self,
        context: BalancerContext,
        beta: float = 0.999,
        tau: float = 2.0,
        warmup_ratio: float = 0.1,
        scale: Literal["released", "sum"] = "sum",
        normalise: Literal["before", "after"] = "before",
        median_over: Literal["used", "all"] = "used",
        median_sample: int = 2**20,
        discourage: bool = False,
    ):
        super().__init__(context)
        for name, value, valid, expected in (
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
            if not valid:
                raise RecipeError(f"balancer_options.{name} is {value}; expected {expected}.")
        self.beta, self.tau, self.before = beta, tau, normalise == "before"
        self.used_only = median_over == "used"
        self.divisor = len(context.tasks) if scale == "released" else 1
        self.warmup_steps = int(context.steps * warmup_ratio)
        self.sign = -1 if discourage else 1
        self.chunk = CHUNK.get(torch.device(context.device).type, 2**20)
        self.register_buffer(
            "sensitivity", torch.zeros(len(context.tasks), context.entries, device=context.device)
        )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        sample = None
        if 0 < median_sample < context.entries:
            generator = torch.Generator().manual_seed(context.seed)
            sample = torch.randint(context.entries, (median_sample,), generator=generator).sort().values
        self.register_buffer("sample", sample, persistent=False)

    def balance(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:  # noqa: ARG002
        """Computes the update, see `Balancer`; it overwrites the first row of the gradients."""
        is_warmup = bool(self.step < self.warmup_steps)
        self.step += 1
        update = gradients[0]
        parts = [slice(start, start + self.chunk) for start in range(0, len(update), self.chunk)]
        scale = self._medians(gradients, parameters) if self.before else 1.0
        slope: Any = self.sign / self.tau
        for part in parts:
            current = (gradients[:, part] * parameters[part]).abs_().div_(scale)
            # not lerp_, which rounds 1 - weight
            self.sensitivity[:, part].mul_(self.beta).add_(current, alpha=1 - self.beta)
            if self.before:  # at once, while the chunk is in the cache
                self._write_update(gradients, part, slope, is_warmup)
        if not self.before:
            slope = slope / self._medians(self.sensitivity)
            for part in parts:
                self._write_update(gradients, part, slope, is_warmup)
        return update

    def _write_update(self, gradients: Tensor, part: slice, slope: Any, is_warmup: bool) -> None:
        """Writes the update of some entries into the first row."""
        rows = gradients[:, part]
        if is_warmup:
            gradients[0, part] = rows.mean(0)
        else:
            weighted = (self.sensitivity[:, part] * slope).softmax(0).mul_(rows)
            gradients[0, part] = weighted.sum(0).div_(self.divisor)

    def _medians(self, values: Tensor, factors: Tensor | None = None) -> Tensor:
        """[K, 1], the median of each row of |values * factors|."""
        entries = slice(None) if self.sample is None else self.sample
        rows = [row[entries] for row in values]
        if factors is not None:
            rows = [(row * factors[entries]).abs_() for row in rows]
        return medians(rows, self.used_only)


def medians(rows: Iterable[Tensor], used_only: bool) -> Tensor:
    """[K, 1], the (lower) median of each row plus TINY; with `used_only`, of its entries above 0."""
    if used_only:
        rows = [used if len(used := row[row > 0]) else row for row in rows]
    return torch.stack([row.median() for row in rows])[:, None] + TINY
