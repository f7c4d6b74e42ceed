"""The optimizer seen as ``lr``, ``mom`` and ``wd`` over layer groups, whatever torch optimizer does the work."""

from __future__ import annotations

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minifast.training import fast_optimizer
from minifast.training.groups import per_group

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


BIASED = (nn.Linear, nn.modules.conv._ConvNd)


AdamW = partial(torch.optim.AdamW, betas=(0.9, 0.99))


class OptimizerStateError(ValueError):
    """The state of another optimizer."""


def split_no_decay(group: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Part a layer group in the parameters to decay, and those of normalisations with the biases of linear and conv."""
    exempt: set[int] = set()
    for module in group.modules():
        if isinstance(module, NORMS):
            exempt.update(id(parameter) for parameter in module.parameters(recurse=False))
        elif isinstance(module, BIASED) and module.bias is not None:
            exempt.add(id(module.bias))
    parameters = list(group.parameters())
    return [p for p in parameters if id(p) not in exempt], [p for p in parameters if id(p) in exempt]


class OptimWrapper:
    """A torch optimizer with ``lr``, ``mom`` and ``wd`` to read (the last layer group's) and to set.

    Setting takes one value for all layer groups or a sequence with one each. Momentum is ``betas[0]`` for Adam's
    family and ``momentum`` for SGD's. ``opt`` is the torch optimizer.

    Weight decay is decoupled from the gradient for every optimizer (Loshchilov & Hutter 2019): torch's AdamW does so
    itself; for the others the weights are multiplied by ``1 - lr * wd`` before the step.

    Args:
        opt: the torch optimizer.
        groups: for each layer group the positions of its parameter groups in ``opt``; by default one each.
        decays: for each parameter group whether weight decay applies to it; by default it does.

    >>> from torch import nn
    >>> opt = OptimWrapper.create(AdamW, 1e-3, [nn.Linear(2, 2)], wd=1e-2)
    >>> opt.mom = 0.85
    >>> opt.lr, opt.mom, opt.wd
    (0.001, 0.85, 0.01)
    """

    def __init__(
        self,
        opt: torch.optim.Optimizer,
        groups: Sequence[Sequence[int]] | None = None,
        decays: Sequence[bool] | None = None,
    ) -> None:
        self.opt = opt
        self._groups = groups or [[i] for i in range(len(opt.param_groups))]
        self._decays = decays or [True] * len(opt.param_groups)
        first = opt.param_groups[0]
        self._decoupled = isinstance(opt, torch.optim.AdamW) or bool(first.get("decoupled_weight_decay"))
        self._momentum_key = "betas" if "betas" in first else "momentum" if "momentum" in first else None
        self._last = next(indices[0] for indices in reversed(self._groups) if indices)
        self._plain_zero = type(opt).zero_grad is torch.optim.Optimizer.zero_grad
        self._inner_step = fast_optimizer.unwrapped_step(opt)
        self._wd: list[float] = [float(g.get("weight_decay", 0.0)) for g in opt.param_groups]

    @classmethod
    def create(
        cls,
        opt_func: Callable[..., torch.optim.Optimizer],
        lr: float | Sequence[float],
        layer_groups: Sequence[nn.Module],
        wd: float | Sequence[float] = 0.0,
        bn_wd: bool = True,
    ) -> OptimWrapper:
        """Make the optimizer for layer groups; ``bn_wd=False`` exempts normalisations and biases from weight decay.

        The fused form is taken where torch has one for the parameters' device.
        """
        parameters: list[dict[str, Any]] = []
        groups: list[list[int]] = []
        decays: list[bool] = []
        for layer_group in layer_groups:
            parts = [list(layer_group.parameters())] if bn_wd else list(split_no_decay(layer_group))
            groups.append([])
            for part, decayed in zip(parts, (True, False), strict=False):
                if part:
                    groups[-1].append(len(parameters))
                    parameters.append({"params": part})
                    decays.append(decayed)
        if not parameters:
            raise ValueError("The model has no parameters to train; give the Learner a model with at least one layer.")
        # Complex weights and sparse gradients have no fused form, which torch says only when it steps.
        modules = [module for layer_group in layer_groups for module in layer_group.modules()]
        floats = all(p.is_floating_point() for group in parameters for p in group["params"])
        can_fuse = floats and not any(getattr(module, "sparse", False) for module in modules)
        rate = per_group(lr, len(layer_groups), "lr")[-1]
        opt = _construct(opt_func, parameters, rate, can_fuse)
        if not isinstance(opt, torch.optim.Optimizer):
            raise TypeError(f"opt_func returned {opt!r}; it must return a torch optimizer.")
        closure = inspect.signature(opt.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"{type(opt).__name__} needs a closure at each step, which the loop has not; take another."
            )
        wrapper = cls(opt, groups, decays)
        wrapper.lr = lr
        wrapper.wd = wd
        return wrapper

    @property
    def has_momentum(self) -> bool:
        """Whether the optimizer works with momentum: SGD and RMSprop made with ``momentum=0`` do not."""
        return self._momentum_key == "betas" or (self._momentum_key == "momentum" and self.mom > 0)

    @property
    def without_momentum(self) -> str:
        """What plots say where there is no momentum to draw, else an empty text."""
        return "" if self.has_momentum else f"{type(self.opt).__name__} works without momentum here"

    @property
    def lr(self) -> float:
        """The learning rate of the last layer group; set one value, or one per layer group."""
        return float(self.opt.param_groups[self._last]["lr"])

    @lr.setter
    def lr(self, value: float | Sequence[float]) -> None:
        self.write("lr", value)

    @property
    def mom(self) -> float:
        """The momentum of the last layer group, 0.0 where the optimizer has none."""
        return self._mom(self._last)

    @mom.setter
    def mom(self, value: float | Sequence[float]) -> None:
        self.write("mom", value)

    @property
    def wd(self) -> float:
        """The weight decay of the last layer group."""
        return self.read("wd")[-1]

    @wd.setter
    def wd(self, value: float | Sequence[float]) -> None:
        self.write("wd", value)

    def read(self, name: str) -> list[float]:
        """Return ``lr``, ``mom``, ``wd`` or another number that the torch optimizer has, of each layer group."""
        firsts = [indices[0] if indices else self._last for indices in self._groups]  # an empty group keeps its place
        if name == "mom":
            return [self._mom(i) for i in firsts]
        if name == "wd":
            return [self._wd[i] for i in firsts]
        return [float(self.opt.param_groups[i][self._known(name)]) for i in firsts]

    @property
    def names(self) -> list[str]:
        """What ``read`` reads and ``write`` sets."""
        group = self.opt.param_groups[0]
        others = [key for key, value in group.items() if type(value) in (int, float)]
        return ["lr", "mom", "wd", *(key for key in others if key not in ("lr", "momentum", "weight_decay"))]

    def _known(self, name: str) -> str:
        if name not in self.names:
            raise ValueError(f"{type(self.opt).__name__} has no {name} to schedule; it has {', '.join(self.names)}.")
        return name

    def _mom(self, index: int) -> float:
        group = self.opt.param_groups[index]
        return float(group["betas"][0] if self._momentum_key == "betas" else group.get("momentum", 0.0))

    def write(self, name: str, value: float | Sequence[float]) -> None:
        """Set what ``read`` reads: one value for all, or one per layer group.

        Raises:
            ValueError: as many values as layer groups are wanted, or the optimizer has no such thing.
        """
        if name == "mom" and self._momentum_key is None:
            raise ValueError(
                f"{type(self.opt).__name__} has no momentum to set; take SGD, RMSprop or one of Adam's family."
            )
        param_groups = self.opt.param_groups
        if type(value) is float and math.isfinite(value):  # what a schedule sets at every batch
            for i in range(len(param_groups)):
                self._put(i, name, value)
            return
        for indices, one in zip(self._groups, per_group(value, len(self._groups), name), strict=True):
            for i in indices:
                self._put(i, name, one)

    def set_stat(self, name: str, value: float | Sequence[float]) -> None:
        """Do what ``write`` does, under fastai v1's name."""
        self.write(name, value)

    def _put(self, index: int, name: str, value: float) -> None:
        group = self.opt.param_groups[index]
        if name == "lr":
            group["lr"] = value
        elif name == "wd":
            self._wd[index] = value if self._decays[index] else 0.0
            group["weight_decay"] = self._wd[index] if self._decoupled else 0.0
        elif name != "mom":
            group[self._known(name)] = value
        elif self._momentum_key == "betas":
            group["betas"] = (value, *group["betas"][1:])
        else:
            group["momentum"] = value

    def step(self) -> None:
        """Decay the weights where the torch optimizer would not, then let it step."""
        if not self._decoupled:
            self._decay()
        if self._inner_step is None or fast_optimizer.is_observed(self.opt):
            self.opt.step()
        else:
            with torch.no_grad():
                self._inner_step()

    @torch.no_grad()
    def _decay(self) -> None:
        for group, wd in zip(self.opt.param_groups, self._wd, strict=True):
            weights: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if wd and weights:
                torch._foreach_mul_(weights, 1 - group["lr"] * wd)

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        if not self._plain_zero:
            self.opt.zero_grad()
            return
        # What torch's own method does, without the profiler's bookkeeping, which takes longer than the work.
        for group in self.opt.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def copy(self) -> OptimWrapper:
        """Return an optimizer of the same kind over the same parameters, with a copy of the state."""
        twin = copy.copy(self)
        twin.opt = _twin(self.opt, {})
        twin._inner_step = fast_optimizer.unwrapped_step(twin.opt)
        twin._wd = list(self._wd)
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Return the torch optimizer's state and the weight decays: tensors and plain values only."""
        return {
            "kind": type(self.opt).__name__,
            "opt": fast_optimizer.unwrapped_method(self.opt, "state_dict")(),
            "wd": list(self._wd),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned.

        Raises:
            OptimizerStateError: it is another optimizer's; nothing has changed then.
        """
        if not isinstance(state, dict) or set(state) != {"kind", "opt", "wd"}:
            raise OptimizerStateError("it was not saved by minifast.")
        kind = type(self.opt).__name__
        if state["kind"] != kind:
            raise OptimizerStateError(f"it is of {state['kind']}, and this one is {kind}.")
        theirs, ours = ([len(g["params"]) for g in groups["param_groups"]] for groups in (state["opt"], vars(self.opt)))
        if theirs != ours:
            raise OptimizerStateError(f"its layer groups have {theirs} parameters, and this one's {ours}.")
        fast_optimizer.unwrapped_method(self.opt, "load_state_dict")(state["opt"])
        self._wd = [float(wd) for wd in state["wd"]]

    def __repr__(self) -> str:
        return f"OptimWrapper over {self.opt!r}"


def _twin(opt: torch.optim.Optimizer, known: dict[int, Any]) -> torch.optim.Optimizer:
    """Copy an optimizer, and those that it works with inside; groups and states that they share stay shared."""
    unwrapped_method = object.__new__(type(opt))
    if id(opt.param_groups) not in known:
        known[id(opt.param_groups)] = [dict(group) for group in opt.param_groups]
    if id(opt.state) not in known:
        known[id(opt.state)] = defaultdict(dict, {p: copy.deepcopy(values) for p, values in opt.state.items()})
    # All that a class may keep beside groups and state comes along, but for a step that a scheduler bound to the
    # original.
    for name, value in vars(opt).items():
        if isinstance(value, torch.optim.Optimizer):
            value = _twin(value, known)
        if name != "step":
            unwrapped_method.__dict__[name] = known.get(id(value), value)
    return unwrapped_method


def _construct(
    opt_func: Callable[..., torch.optim.Optimizer], parameters: list[dict[str, Any]], lr: float, can_fuse: bool
) -> torch.optim.Optimizer:
    # Fused is the same arithmetic in one pass over all weights; torch refuses it on devices that have none.
    takes = inspect.signature(opt_func).parameters
    chosen = opt_func.keywords if isinstance(opt_func, partial) else {}
    if can_fuse and "fused" in takes and not {"fused", "foreach", "capturable", "differentiable"} & set(chosen):
        try:
            return fast_optimizer.construct_optimizer(opt_func, parameters, lr=lr, fused=True)
        except RuntimeError:
            pass
    return fast_optimizer.construct_optimizer(opt_func, parameters, lr=lr)
