"""The host's optimiser and the groups that growth adds to it.

A grown seed's parameters join the host's optimiser as a group of their own with a learning rate that warms up, to the
host's or to a fraction of it where the seed is wide (``blueprints.cost``); the host's moments stay untouched. Esper
sets every group's learning rate at each step, so torch schedulers are not used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.errors import CheckpointDamaged
from esper.tolaria.schedule import ScheduleSettings, lr_at

#: Key in a parameter group that names the seed it belongs to.
_SEED = "esper_seed"
_STARTED = "esper_started_at"
_BASE = "esper_base_lr"


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], learning_rate: float) -> Optimizer:
    """Return a fresh optimiser: ``adam``, or ``sgd`` with momentum 0.9."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)
    return torch.optim.Adam(parameters, lr=learning_rate)


class GrowingOptimizer:
    """An optimiser whose groups follow the seeds."""

    def __init__(self, optimizer: Optimizer, settings: ScheduleSettings, total_steps: int) -> None:
        """Take over the learning rates of an optimiser; each group's present rate is its peak."""
        self.optimizer = optimizer
        self._settings = settings
        self._total = total_steps
        for group in optimizer.param_groups:
            group.setdefault(_BASE, float(group["lr"]))

    @property
    def base_lr(self) -> float:
        """Return the peak learning rate of the first group."""
        return float(self.optimizer.param_groups[0][_BASE])

    def add(self, seed_id: str, parameters: list[nn.Parameter], step: int, *, rate_factor: float = 1.0) -> None:
        """Let a seed's parameters learn from the next step on.

        Args:
            seed_id: The seed.
            parameters: Its parameters; without any nothing is added.
            step: Steps done so far.
            rate_factor: Its peak rate as a multiple of the host's; part of the group's peak, and so of a checkpoint.
        """
        if not parameters:
            return
        first = {k: v for k, v in self.optimizer.param_groups[0].items() if k != "params"}
        self.optimizer.add_param_group(
            {**first, "params": parameters, _SEED: seed_id, _STARTED: step, _BASE: self.base_lr * rate_factor}
        )

    def remove(self, seed_id: str) -> None:
        """Forget a seed's group and its moments; unknown seeds are no error."""
        for group in self.optimizer.param_groups:
            if group.get(_SEED) == seed_id:
                for parameter in group["params"]:
                    self.optimizer.state.pop(parameter, None)
        # By name: list.remove would compare groups, and with them their tensors.
        self.optimizer.param_groups[:] = [g for g in self.optimizer.param_groups if g.get(_SEED) != seed_id]

    def seeds(self) -> list[str]:
        """Return the seeds that have a group, in order of joining."""
        return [group[_SEED] for group in self.optimizer.param_groups if _SEED in group]

    def set_rates(self, step: int) -> float:
        """Set every group's learning rate for a step (from 1) and return the first group's."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(
                step, group[_BASE], self._settings, total_steps=self._total, group_started_at=group.get(_STARTED)
            )
        return float(self.optimizer.param_groups[0]["lr"])

    def capture(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return groups and moments as plain data and tensors."""
        groups: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for g, group in enumerate(self.optimizer.param_groups):
            plain = {k: v for k, v in group.items() if k != "params"}
            states: list[dict[str, Any]] = []
            for p, parameter in enumerate(group["params"]):
                state = self.optimizer.state.get(parameter, {})
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        tensors[f"optimizer.{g}.{p}.{key}"] = value
                states.append({k: v for k, v in state.items() if not isinstance(v, Tensor)})
            groups.append({"settings": plain, "states": states})
        return {"kind": type(self.optimizer).__name__, "groups": groups}, tensors

    def restore(self, meta: dict[str, Any], tensors: dict[str, Tensor], seeds: dict[str, list[nn.Parameter]]) -> None:
        """Put groups and moments back exactly.

        Args:
            meta: Plain data of ``capture``.
            tensors: Tensors of ``capture``.
            seeds: Parameters of every seed the groups name.

        Raises:
            CheckpointDamaged: The checkpoint was made with another optimiser or other parameters.
        """
        if meta["kind"] != type(self.optimizer).__name__:
            raise CheckpointDamaged(
                f"the checkpoint holds {meta['kind']} state, the optimiser is {type(self.optimizer).__name__}",
                hint="use the optimiser the run was recorded with",
            )
        for seed_id in self.seeds():
            self.remove(seed_id)
        own = self.optimizer.param_groups
        self.optimizer.state.clear()
        for g, stored in enumerate(meta["groups"]):
            settings = {k: tuple(v) if isinstance(v, list) else v for k, v in stored["settings"].items()}
            seed_id = stored["settings"].get(_SEED)
            if seed_id is not None:
                self.optimizer.add_param_group({**settings, "params": seeds[seed_id]})
            elif g >= len(own) or len(own[g]["params"]) != len(stored["states"]):
                raise CheckpointDamaged(f"parameter group {g} of the checkpoint does not fit the optimiser")
            group = self.optimizer.param_groups[g]
            group.update(settings)
            for p, parameter in enumerate(group["params"]):
                state = dict(stored["states"][p])
                prefix = f"optimizer.{g}.{p}."
                for name, tensor in tensors.items():
                    if name.startswith(prefix):
                        key = name[len(prefix) :]
                        # Adam keeps its step count on the processor; everything else lives with the parameter.
                        state[key] = tensor.clone() if key == "step" else tensor.to(parameter.device, copy=True)
                if state:
                    self.optimizer.state[parameter] = state
