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
from minifast.training.groups import per_group
from minifast.training.parameter_groups import Layout, arrange, has_parameters, last_of, layout_of, momentum_key
from minifast.training.torch_optimizer import can_fuse, construct, copy_optimizer, initial_state, load_state
from minifast.utils.checks import bound_arguments, shown

AdamW = partial(torch.optim.AdamW, betas=(0.9, 0.99))


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
        layout: how its parameter groups belong to layer groups; by default each is one.

    Source: I. Loshchilov & F. Hutter, "Decoupled weight decay regularization" (2019).

    >>> from torch import nn
    >>> opt = OptimWrapper.create(AdamW, 1e-3, [nn.Linear(2, 2)], wd=1e-2)
    >>> opt.mom = 0.85
    >>> opt.lr, opt.mom, opt.wd
    (0.001, 0.85, 0.01)
    """

    def __init__(self, opt: torch.optim.Optimizer, layout: Layout | None = None) -> None:
        self.opt = opt
        n = len(opt.param_groups)
        self._is_arranged = False  # by ``create``, so that it can be arranged again
        self._keeps_wd = False  # each parameter group has its own, which nothing changes
        self._layout = layout or Layout([[i] for i in range(n)], [True] * n, [1.0] * n, [])
        self._last = last_of(self._layout)
        self._own_keys = [set(group) for group in opt.param_groups]  # a torch scheduler adds more
        self._has_modes = callable(getattr(opt, "train", None)) and callable(getattr(opt, "eval", None))
        # An optimizer with modes derives its evaluation weights from the momentum, which must not change.
        self._momentum_keys = [None if self._has_modes else momentum_key(group) for group in opt.param_groups]
        closure = inspect.signature(opt.step).parameters.get("closure")
        self.needs_closure = closure is not None and closure.default is closure.empty
        self._plain_zero = type(opt).zero_grad is torch.optim.Optimizer.zero_grad
        self._inner_step = fast_optimizer.unwrapped_step(opt)
        self._wd: list[float] = [float(g.get("weight_decay", 0.0)) for g in opt.param_groups]
        default = inspect.signature(type(opt)).parameters.get("weight_decay")
        is_given = any(wd != (default.default if default else 0.0) for wd in self._wd)
        self._given_wd = self.read("wd") if is_given else None  # to the torch optimizer, for each layer group
        self._decoupled = isinstance(opt, torch.optim.AdamW) or bool(opt.param_groups[0].get("decoupled_weight_decay"))

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
            ValueError: there are no parameters; ``opt_func`` sets another ``lr`` or ``weight_decay`` than the
                arguments; or it makes parameter groups of its own that leave out parameters or ignore ``lr``.
            TypeError: ``opt_func`` does not return a torch optimizer.
        """
        parameters, layout = arrange(layer_groups, bn_wd)
        if not parameters:
            raise ValueError("The model has no parameters to train; give the Learner a model with at least one layer.")
        last_lr = per_group(lr, len(layer_groups), "lr")[-1]
        opt = construct(opt_func, parameters, last_lr, can_fuse(layer_groups))
        if not isinstance(opt, torch.optim.Optimizer):
            raise TypeError(f"`opt_func` must return a torch optimizer, got {shown(opt)}.")
        is_arranged = has_parameters(opt, parameters)
        if not is_arranged:
            if not bn_wd:
                raise ValueError(
                    "`opt_func` makes its own parameter groups, so bn_wd=False has no effect; leave it out, and set "
                    "the weight decay of each group in `opt_func`."
                )
            make = partial(construct, opt_func, parameters, fusable=can_fuse(layer_groups))
            layout = layout_of(make, opt, layer_groups, last_lr)
        wrapper = cls(opt, layout)
        wrapper._is_arranged = is_arranged
        given = bound_arguments(opt_func)
        own_lr = given.get("lr", opt.param_groups[0].get("lr", last_lr) if is_arranged else last_lr)
        if own_lr != last_lr:
            raise ValueError(
                f"`opt_func` sets lr={own_lr:g}, but the fit sets the learning rate to {last_lr:g}; give the learning "
                f"rate to the fit only."
            )
        wrapper._keeps_wd = not is_arranged or wrapper.needs_closure
        if wrapper._keeps_wd or ("weight_decay" in given and "weight_decay" in opt.param_groups[0]):
            wrapper._given_wd = wrapper.read("wd")
        wrapper.lr = lr
        wrapper.set_wd(wd)
        return wrapper

    def set_wd(self, wd: float | Sequence[float]) -> None:
        """Set the weight decay for a fit; a ``weight_decay`` of ``opt_func`` takes precedence over a default.

        Raises:
            ValueError: the torch optimizer was made with another ``weight_decay`` than ``wd``, which is not a default.
        """
        if (given := self._given_wd) is None:
            self.wd = wd
            return
        wanted = None if isinstance(wd, DefaultDecay) else per_group(wd, len(self._layout.groups), "wd")
        if self._keeps_wd and wanted is not None and any([*wanted, *self._wd]):
            reason = "takes no weight decay" if self._is_arranged else "makes its own parameter groups; set it in each"
            raise ValueError(f"`wd` is {wd}, but `opt_func` {reason}. Leave out `wd`.")
        if wanted not in (None, given):
            raise ValueError(
                f"`wd` is {wd}, but the optimizer was made with weight_decay={given[-1]:g} (see `opt_func`); give only "
                f"one of them."
            )
        if not self._keeps_wd:
            self.wd = given

    def follow(self, layer_groups: Sequence[nn.Module], bn_wd: bool = True) -> OptimWrapper:
        """Return the optimizer of the parameters that the layer groups have now; itself if they did not change.

        Parameters that stay keep their state, such as momentum. New ones start without state, with the hyperparameters
        of their layer group.

        Raises:
            ValueError: parameters are missing in an optimizer that was not made by ``create``.
        """
        parameters, layout = arrange(layer_groups, bn_wd)
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
        if has_parameters(self.opt, parameters) and layout.groups == self._layout.groups:
            return self
        other = copy.copy(self)
        other.opt = copy_optimizer(self.opt, {}, current)
        decays = layout.decays
        sources = [self._source(i, decays[index]) for i, indices in enumerate(layout.groups) for index in indices]
        other.opt.param_groups[:] = [
            {**self.opt.param_groups[source], "params": part} for source, part in zip(sources, parameters, strict=True)
        ]
        present = {p for group in self.opt.param_groups for p in group["params"]}
        if added := [p for part in parameters for p in part if p not in present]:
            other.opt.state.update(initial_state(self.opt, added))
        if not can_fuse(layer_groups):
            for group in other.opt.param_groups:
                group.update({"fused": False} if group.get("fused") else {})
        other._layout, other._last = layout, last_of(layout)
        other._own_keys = [self._own_keys[source] for source in sources]
        other._momentum_keys = [self._momentum_keys[source] for source in sources]
        other._inner_step = fast_optimizer.unwrapped_step(other.opt)
        other._wd = [0.0] * len(parameters)
        before = [min(i, len(self._layout.groups) - 1) for i in range(len(layout.groups))]
        other.wd = [self.read("wd")[i] for i in before]
        other._given_wd = self._given_wd and [self._given_wd[i] for i in before]
        return other

    def _source(self, layer_group: int, decays: bool) -> int:
        """Return the parameter group from which one of a layer group takes its hyperparameters."""
        indices = self._layout.groups[layer_group] if layer_group < len(self._layout.groups) else []
        return next((i for i in indices if self._layout.decays[i] == decays), indices[0] if indices else self._last)

    @property
    def has_momentum(self) -> bool:
        """Whether the optimizer works with momentum; SGD and RMSprop with ``momentum=0`` do not."""
        keys = zip(self._momentum_keys, self.opt.param_groups, strict=True)
        return any(key == "betas" or (key == "momentum" and group["momentum"] > 0) for key, group in keys)

    @property
    def without_momentum(self) -> str:
        """The text for plots of an optimizer that works without momentum, else an empty text."""
        how = "keeps its own momentum" if self._has_modes else "works without momentum here"
        return "" if self.has_momentum else f"{type(self.opt).__name__} {how}"

    @property
    def lr(self) -> float:
        """The learning rate of the last layer group; set one value, or one per layer group."""
        return self._lr(self._last)

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
        firsts = [indices[0] if indices else self._last for indices in self._layout.groups]
        if name == "mom":
            return [self._mom(i) for i in firsts]
        if name == "wd":
            return [self._wd[i] for i in firsts]
        if name == "lr":
            return [self._lr(i) for i in firsts]
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

    def _lr(self, index: int) -> float:
        scale = self._layout.scales[index]
        rate = float(self.opt.param_groups[index]["lr"])
        return rate if scale in (0, 1) else rate / scale

    def _mom(self, index: int) -> float:
        group = self.opt.param_groups[index]
        return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))

    def write(self, name: str, value: float | Sequence[float]) -> None:
        """Set one value for all layer groups, or one for each.

        Raises:
            ValueError: the number of values is not the number of layer groups, the optimizer has no such value, or
                layer groups that share a parameter group would get different values.
        """
        if name == "wd" and self._keeps_wd:
            if per_group(value, len(self._layout.groups), name) != self.read(name):
                raise ValueError(f"The weight decay of {type(self.opt).__name__} is set in `opt_func` only.")
            return
        if name == "mom" and not any(self._momentum_keys):
            raise ValueError(
                f"{type(self.opt).__name__} has no momentum to set; use SGD, RMSprop or one of Adam's family."
            )
        param_groups = self.opt.param_groups
        if type(value) is float and math.isfinite(value):  # the fast path of schedules, for each batch
            for i in range(len(param_groups)):
                self._put(i, name, value)
            return
        numbers = per_group(value, len(self._layout.groups), name)
        for owners in self._layout.shared:
            if len({numbers[i] for i in owners}) > 1:
                raise ValueError(
                    f"`opt_func` puts parameters of layer groups {', '.join(map(str, owners))} into one parameter "
                    f"group, which has one {name}, but got {numbers}; give one value, or make a group for each."
                )
        for indices, number in zip(self._layout.groups, numbers, strict=True):
            for i in indices:
                self._put(i, name, number)

    set_stat = write  # its name in fastai v1

    def _put(self, index: int, name: str, value: float) -> None:
        group = self.opt.param_groups[index]
        if name == "lr":
            group["lr"] = value * self._layout.scales[index]
        elif name == "wd":
            self._wd[index] = value if self._layout.decays[index] else 0.0
            group["weight_decay"] = self._wd[index] if self._torch_decays else 0.0
        elif name != "mom":
            group[self._known(name)] = value
        elif self._momentum_keys[index] == "betas":
            group["betas"] = (value, *group["betas"][1:])
        elif self._momentum_keys[index] == "momentum":
            group["momentum"] = value

    @property
    def _torch_decays(self) -> bool:
        """Whether the torch optimizer applies the weight decay, in its own way."""
        return self._decoupled or self._given_wd is not None

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """Decay the weights, unless the torch optimizer does, and make a step.

        Args:
            closure: a function that computes the loss and the gradients again, for an optimizer that needs one.
        """
        if not self._torch_decays:
            self._decay()
        if self.needs_closure:
            self.opt.step(closure)  # type: ignore[arg-type]
        elif self._inner_step is None or fast_optimizer.is_observed(self.opt):
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

    def train(self, mode: bool = True) -> None:
        """Put the weights into training mode, or evaluation mode, where the optimizer has both: a schedule-free one."""
        if self._has_modes:
            opt: Any = self.opt
            opt.train() if mode else opt.eval()

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
        own = zip(state["param_groups"], self._own_keys, strict=True)
        groups = [{k: v for k, v in group.items() if k in keys} for group, keys in own]
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
        before = {name: self.read(name) for name in keep if name != "mom" or any(self._momentum_keys)}
        load_state(self.opt, state)
        self._wd = [float(wd) for wd in state["wd"]]
        for index, wd in enumerate(self._wd):
            self._put(index, "wd", wd)
        for name, values in before.items():
            self.write(name, values)

    def __repr__(self) -> str:
        return f"OptimWrapper over {self.opt!r}"
