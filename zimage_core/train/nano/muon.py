"""Muon (Jordan et al. 2024): momentum, made nearly orthogonal before the step, with updates as Adam's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..plan import Optimizers, Plan, adamw, split_hidden

# Odd polynomial whose iteration drives singular values towards 1: x -> a x + b x^3 + c x^5 (Jordan et al.
# 2024)
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """[m,n] -> [m,n] with singular values near 1 and the same singular vectors."""
    a, b, c = QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = (x / (x.norm() + 1e-7)).to(torch.bfloat16)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; convolutions count as [out, in*k*k].

    The RMS of updates is 0.2, so AdamW's rates fit.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                velocity = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                direction = p.grad.lerp(velocity, group["momentum"]).flatten(1)
                update = orthogonalise(direction) * (0.2 * max(direction.shape) ** 0.5)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"])


def with_muon(plan: Plan) -> Callable[[Mapping[str, nn.Parameter]], Optimizers]:
    """The optimisers of the nano model: where a plan says Muon, this one, for convolutions too."""

    def made(parameters: Mapping[str, nn.Parameter]) -> Optimizers:
        if plan.optimizer != "muon":
            return plan.optimizers(parameters)
        hidden, others = split_hidden(parameters, lambda p: p.ndim >= 2)
        found = adamw(others, plan)
        if hidden:
            found.append(Muon(hidden.values(), lr=plan.lr, weight_decay=plan.weight_decay))
        return found

    return made
