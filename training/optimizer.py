"""AdamW over bf16 weights that keeps an fp32 copy of each: bf16 alone loses updates below 1/256 of a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class MasterAdamW(torch.optim.AdamW):
    """torch's AdamW, stepping on fp32 master weights; they are part of the state and survive a resume."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Steps the masters and rounds them into the model's weights."""
        narrow: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight.dtype != torch.float32:
                    narrow.append((weight, weight.data, weight.grad))
                    master = self.state[weight].pop("master", None)
                    gradient = weight.grad.float()
                    weight.grad = None
                    weight.data = weight.data.float() if master is None else master
                    weight.grad = gradient
        loss = super().step(closure)
        for weight, rounded, gradient in narrow:
            self.state[weight]["master"] = weight.data
            rounded.copy_(weight.data)
            weight.grad = None
            weight.data = rounded
            weight.grad = gradient
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state; torch would round it to the weights' bf16."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for index, saved in state_dict["state"].items():
            for name in ("master", "exp_avg", "exp_avg_sq"):
                if name in saved:
                    self.state[weights[index]][name] = saved[name].to(weights[index].device, copy=True)
