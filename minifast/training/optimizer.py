"""The optimizer with ``lr``, ``mom`` and ``wd`` per layer group, around any torch optimizer."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minifast.training import fast_optimizer
from minifast.training.groups import per_group, split_no_decay
from minifast.training.torch_optimizer import IMPLEMENTATION, can_fuse, construct, copy_optimizer, initial_state
from minifast.utils.checks import bound_arguments

AdamW = partial(torch.optim.AdamW, betas=(0.9, 0.99))


class OptimizerStateError(ValueError):
    """The state belongs to another optimizer."""


class DefaultDecay(float):
    """A weight decay that the caller did not give, so that a value in ``opt_func`` takes precedence."""


class OptimWrapper:
    """Read and set ``lr``, ``mom`` and ``wd`` of a torch optimizer, for all layer groups or for each.

    Reading gives the value of the last layer group. Setting takes one value, or a sequence with one per layer group.
    The momentum is ``betas[0]`` of Adam's family and ``momentum`` of SGD and RMSprop. ``opt`` is the torch optimizer.

    Weight decay is decoupled from the gradient for every optimizer: torch's AdamW does this itself; for the others the
    weights are multiplied by ``1 - lr * wd`` before the step. A ``weight_decay`` that the torch optimizer was made with
    is applied by torch, as it is: for SGD and Adam it is then added to the gradient.

    Args:
        opt: the torch optimizer.
        groups: for each layer group the positions of its parameter groups in ``opt``; by default one each.
        decays: for each parameter group whether weight decay applies to it; by default it does.

    Source: I. Loshchilov & F. Hutter, "Decoupled weight decay regularization" (2019).

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
        self._is_arranged = groups is not None  # by ``create``, so that it can be arranged again
        self._groups = groups or [[i] for i in range(len(opt.param_groups))]
        self._decays = decays or [True] * len(opt.param_groups)
        first = opt.param_groups[0]
        self._own_keys = set(first)  # a torch scheduler adds more
        self._momentum_key = "betas" if "betas" in first else "momentum" if "momentum" in first else None
        self._last = next(indices[0] for indices in reversed(self._groups) if indices)
        self._plain_zero = type(opt).zero_grad is torch.optim.Optimizer.zero_grad
        self._inner_step = fast_optimizer.unwrapped_step(opt)
        self._wd: list[float] = [float(g.get("weight_decay", 0.0)) for g in opt.param_groups]
        default = inspect.signature(type(opt)).parameters.get("weight_decay")
        is_given = any(wd != (default.default if default else 0.0) for wd in self._wd)
        self._given_wd = self.read("wd") if is_given else None  # to the torch optimizer, for each layer group
        self._decoupled = isinstance(opt, torch.optim.AdamW) or bool(first.get("decoupled_weight_decay"))

    @classmethod
    def create(
        cls,
        opt_func: Callable[..., torch.optim.Optimizer],
        lr: float | Sequence[float],
        layer_groups: Sequence[nn.Module],
        wd: float | Sequence[float] = DefaultDecay(0.0),
        bn_wd: bool = True,
    ) -> OptimWrapper:
        """Return the optimizer of layer groups, in torch's fused form where the device has one.

        Args:
            opt_func: a torch optimizer class, a partial of one, or a function of (parameters, lr=). It is used as it
                is, with the ``weight_decay``, ``betas`` and ``momentum`` that it sets.
            lr: the learning rate, or one per layer group.
            layer_groups: the modules whose parameters are trained.
            wd: the weight decay, or one per layer group; by default that of ``opt_func``, or 0.
            bn_wd: whether weight decay applies to normalization layers and biases.

        Raises:
            ValueError: there are no parameters, ``opt_func`` sets another ``lr`` or ``weight_decay`` than the
                arguments, or the optimizer needs a closure.
            TypeError: ``opt_func`` does not return a torch optimizer.
        """
        parameters, groups, decays = _arrange(layer_groups, bn_wd)
        if not parameters:
            raise ValueError("The model has no parameters to train; give the Learner a model with at least one layer.")
        last_lr = per_group(lr, len(layer_groups), "lr")[-1]
        opt = construct(opt_func, parameters, last_lr, can_fuse(layer_groups))
        if not isinstance(opt, torch.optim.Optimizer):
            raise TypeError(f"`opt_func` must return a torch optimizer, got {opt!r}.")
        closure = inspect.signature(opt.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"{type(opt).__name__} needs a closure at each step, which minifast does not support; use another "
                f"optimizer."
            )
        wrapper = cls(opt, groups, decays)
        given = bound_arguments(opt_func)
        own_lr = given.get("lr", opt.param_groups[0].get("lr", last_lr))
        if own_lr != last_lr:
            raise ValueError(
                f"`opt_func` sets lr={own_lr:g}, but the fit sets the learning rate to {last_lr:g}; give the learning "
                f"rate to the fit only."
            )
        if "weight_decay" in given and "weight_decay" in opt.param_groups[0]:
            wrapper._given_wd = wrapper.read("wd")
        wrapper.lr = lr
        wrapper.set_wd(wd)
        return wrapper

    def set_wd(self, wd: float | Sequence[float]) -> None:
        """Set the weight decay for a fit; a ``weight_decay`` of ``opt_func`` takes precedence over a default.

        Raises:
            ValueError: the torch optimizer was made with another ``weight_decay`` than ``wd``, which is not a default.
        """
        given = self._given_wd
        if given is None:
            self.wd = wd
            return
        if not isinstance(wd, DefaultDecay) and per_group(wd, len(self._groups), "wd") != given:
            raise ValueError(
                f"`wd` is {wd}, but the optimizer was made with weight_decay={given[-1]:g} (see `opt_func`); give only "
                f"one of them."
            )
        self.wd = given

    def follow(self, layer_groups: Sequence[nn.Module], bn_wd: bool = True) -> OptimWrapper:
        """Return the optimizer of the parameters that the layer groups have now; itself if they did not change.

        Parameters that stay keep their state, such as momentum. New ones start without state, with the hyperparameters
        of their layer group.

        Raises:
            ValueError: parameters are missing in an optimizer that was not made by ``create``.
        """
        parameters, groups, decays = _arrange(layer_groups, bn_wd)
        current = {p for part in parameters for p in part}
        if not self._is_arranged:
            present = {p for group in self.opt.param_groups for p in group["params"]}
            missing = sum(p.requires_grad and p not in present for p in current)
            if missing:
                raise ValueError(
                    f"The optimizer does not have {missing} of the parameters to train; freeze them, or make another "
                    f"optimizer: learn.opt = None makes one from `opt_func`."
                )
            return self
        present_params = [group["params"] for group in self.opt.param_groups]
        if _ids(present_params) == _ids(parameters) and groups == self._groups:
            return self
        other = copy.copy(self)
        other.opt = copy_optimizer(self.opt, {}, current)
        sources = [self._source(i, decays[index]) for i, indices in enumerate(groups) for index in indices]
        other.opt.param_groups[:] = [
            {**self.opt.param_groups[source], "params": part} for source, part in zip(sources, parameters, strict=True)
        ]
        present = {p for part in present_params for p in part}
        if added := [p for part in parameters for p in part if p not in present]:
            other.opt.state.update(initial_state(self.opt, added))
        if not can_fuse(layer_groups):
            for group in other.opt.param_groups:
                group.update({"fused": False} if group.get("fused") else {})
        other._groups, other._decays = groups, decays
        other._last = next(indices[0] for indices in reversed(groups) if indices)
        other._inner_step = fast_optimizer.unwrapped_step(other.opt)
        other._wd = [0.0] * len(parameters)
        before = [min(i, len(self._groups) - 1) for i in range(len(groups))]
        other.wd = [self.read("wd")[i] for i in before]
        other._given_wd = self._given_wd and [self._given_wd[i] for i in before]
        return other

    def _source(self, layer_group: int, decays: bool) -> int:
        """Return the parameter group from which one of a layer group takes its hyperparameters."""
        indices = self._groups[layer_group] if layer_group < len(self._groups) else []
        return next((i for i in indices if self._decays[i] == decays), indices[0] if indices else self._last)

    @property
    def has_momentum(self) -> bool:
        """Whether the optimizer works with momentum; SGD and RMSprop with ``momentum=0`` do not."""
        return self._momentum_key == "betas" or (self._momentum_key == "momentum" and self.mom > 0)

    @property
    def without_momentum(self) -> str:
        """The text for plots of an optimizer that works without momentum, else an empty text."""
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
        """The momentum of the last layer group; 0.0 if the optimizer has none."""
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
        """Return ``lr``, ``mom``, ``wd`` or another number of the torch optimizer for each layer group."""
        # An empty layer group has a value too.
        firsts = [indices[0] if indices else self._last for indices in self._groups]
        if name == "mom":
            return [self._mom(i) for i in firsts]
        if name == "wd":
            return [self._wd[i] for i in firsts]
        return [float(self.opt.param_groups[i][self._known(name)]) for i in firsts]

    @property
    def names(self) -> list[str]:
        """The names that ``read`` and ``write`` take."""
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
        """Set one value for all layer groups, or one for each.

        Raises:
            ValueError: the number of values is not the number of layer groups, or the optimizer has no such value.
        """
        if name == "mom" and self._momentum_key is None:
            raise ValueError(
                f"{type(self.opt).__name__} has no momentum to set; use SGD, RMSprop or one of Adam's family."
            )
        param_groups = self.opt.param_groups
        if type(value) is float and math.isfinite(value):  # the fast path of schedules, for each batch
            for i in range(len(param_groups)):
                self._put(i, name, value)
            return
        for indices, number in zip(self._groups, per_group(value, len(self._groups), name), strict=True):
            for i in indices:
                self._put(i, name, number)

    def set_stat(self, name: str, value: float | Sequence[float]) -> None:
        """Call ``write``; this is its name in fastai v1."""
        self.write(name, value)

    def _put(self, index: int, name: str, value: float) -> None:
        group = self.opt.param_groups[index]
        if name == "lr":
            group["lr"] = value
        elif name == "wd":
            self._wd[index] = value if self._decays[index] else 0.0
            group["weight_decay"] = self._wd[index] if self._torch_decays else 0.0
        elif name != "mom":
            group[self._known(name)] = value
        elif self._momentum_key == "betas":
            group["betas"] = (value, *group["betas"][1:])
        else:
            group["momentum"] = value

    @property
    def _torch_decays(self) -> bool:
        """Whether the torch optimizer applies the weight decay, in its own way."""
        return self._decoupled or self._given_wd is not None

    def step(self) -> None:
        """Decay the weights, unless the torch optimizer does, and make a step."""
        if not self._torch_decays:
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
        """Set all gradients to None."""
        if not self._plain_zero:
            self.opt.zero_grad()
            return
        # torch's own method spends more time on records for its profiler than on this.
        for group in self.opt.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def copy(self) -> OptimWrapper:
        """Return an optimizer of the same type over the same parameters, with a copy of the state."""
        other = copy.copy(self)
        other.opt = copy_optimizer(self.opt, {})
        other._inner_step = fast_optimizer.unwrapped_step(other.opt)
        other._wd = list(self._wd)
        return other

    def state_dict(self) -> dict[str, Any]:
        """Return the torch optimizer's state and the weight decays, as tensors and plain values.

        What a torch scheduler added to the parameter groups, such as ``initial_lr``, is not part of it.
        """
        state = fast_optimizer.unwrapped_method(self.opt, "state_dict")()
        groups = [{k: v for k, v in group.items() if k in self._own_keys} for group in state["param_groups"]]
        return {"kind": type(self.opt).__name__, "opt": {**state, "param_groups": groups}, "wd": list(self._wd)}

    def load_state_dict(self, state: dict[str, Any], keep: Sequence[str] = ()) -> None:
        """Restore what ``state_dict`` returned.

        Args:
            state: the state.
            keep: which of ``lr``, ``mom`` and ``wd`` stay as they are now. A state that was saved during a schedule
                holds its values.

        Raises:
            OptimizerStateError: the state belongs to another optimizer; nothing has changed then.
        """
        if not isinstance(state, dict) or set(state) != {"kind", "opt", "wd"}:
            raise OptimizerStateError("it was not saved by minifast.")
        kind = type(self.opt).__name__
        if state["kind"] != kind:
            raise OptimizerStateError(f"it belongs to {state['kind']}, but this optimizer is {kind}.")
        saved, groups = state["opt"]["param_groups"], self.opt.param_groups
        sizes, expected = ([len(group["params"]) for group in some] for some in (saved, groups))
        if sizes != expected:
            raise OptimizerStateError(f"its layer groups have {sizes} parameters, but those of this one {expected}.")
        before = {name: self.read(name) for name in keep if name != "mom" or self._momentum_key}
        # Settings that only the file has are those of a torch scheduler or of another version of torch.
        merged = [
            {**now, **{k: v for k, v in then.items() if k in {*now} - {*IMPLEMENTATION}}, "params": then["params"]}
            for now, then in zip(groups, saved, strict=True)
        ]
        fast_optimizer.unwrapped_method(self.opt, "load_state_dict")({**state["opt"], "param_groups": merged})
        self._wd = [float(wd) for wd in state["wd"]]
        for index, wd in enumerate(self._wd):
            self._put(index, "wd", wd)
        for name, values in before.items():
            self.write(name, values)

    def __repr__(self) -> str:
        return f"OptimWrapper over {self.opt!r}"


def _ids(parameters: Sequence[Sequence[nn.Parameter]]) -> list[list[int]]:
    return [[id(p) for p in part] for part in parameters]


def _arrange(
    layer_groups: Sequence[nn.Module], bn_wd: bool
) -> tuple[list[list[nn.Parameter]], list[list[int]], list[bool]]:
    """Return the parameter groups, their positions for each layer group, and whether weight decay applies to them."""
    parameters: list[list[nn.Parameter]] = []
    groups: list[list[int]] = []
    decays: list[bool] = []
    for layer_group in layer_groups:
        parts = [list(layer_group.parameters())] if bn_wd else list(split_no_decay(layer_group))
        groups.append([])
        for part, decayed in zip(parts, (True, False), strict=False):
            if part:
                groups[-1].append(len(parameters))
                parameters.append(part)
                decays.append(decayed)
    return parameters, groups, decays
