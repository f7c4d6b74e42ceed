"""What the layers of a model give while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast import plotting
from minifast.errors import MinifastError
from minifast.hooks import Hooks, leaves, tensors_in
from minifast.training.callback import LearnerCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minifast.learner.learner import Learner


class HookCallback(LearnerCallback):
    """Has its method ``hook(module, input, output)`` called by modules of the model for the length of a fit.

    ``hooks.stored`` holds what it returned last, a value a module.

    Args:
        learn: the learner.
        modules: the modules; by default the innermost ones that have a weight.
        do_remove: take the hooks off when the fit ends, however it ends; else ``remove`` does.

    >>> class Shapes(HookCallback):
    ...     def hook(self, module, input, output):
    ...         return tuple(output.shape)
    """

    fit_only = True

    def __init__(
        self, learn: Learner | None = None, modules: Sequence[nn.Module] | None = None, do_remove: bool = True
    ) -> None:
        super().__init__(learn)
        self.modules = modules
        self.do_remove = do_remove
        self.hooks = Hooks([], self.hook)

    def hook(self, module: nn.Module, input: Any, output: Any) -> Any:
        """Return what is to be kept of a module's call; a subclass says what."""
        raise NotImplementedError(f"{type(self).__name__} has no method hook(module, input, output); give it one.")

    def chosen(self) -> list[nn.Module]:
        """Return the modules that have hooks."""
        if self.modules:
            return list(self.modules)
        return [module for module in leaves(self.learn.model) if getattr(module, "weight", None) is not None]

    def on_train_begin(self) -> None:
        """Put the hooks on."""
        if getattr(self.learn.model, "_compiled_call_impl", None) is not None:
            raise ValueError("The model is compiled, which passes over hooks; look at it before learn.compile().")
        self.remove()
        self.hooks = Hooks(self.chosen(), self.hook)

    def on_train_end(self) -> None:
        """Take the hooks off."""
        if self.do_remove:
            self.remove()

    def remove(self) -> None:
        """Take the hooks off; what they kept stays."""
        self.hooks.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: what hooks keep is of one batch."""
        return {}


class ActivationStats(HookCallback):
    """Keeps mean and standard deviation of what each layer gives in each training batch, over all its numbers.

    Nothing waits for the device until ``stats`` is read. After a fit ``learn.activation_stats.plot()`` shows them: in a
    healthy network they settle, and a layer whose deviation is near 0 passes little on.

    >>> from minifast import *
    >>> items = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
    >>> data = DataBunch(items, device="cpu", classes=["no", "yes"])
    >>> learn = Learner(data, simple_ann(4, 2), callback_fns=ActivationStats, silent=True)
    >>> _ = learn.fit(1)
    >>> learn.activation_stats.stats.shape  # mean and deviation, of 2 layers, in 10 batches
    torch.Size([2, 2, 10])
    """

    def __init__(
        self, learn: Learner | None = None, modules: Sequence[nn.Module] | None = None, do_remove: bool = True
    ) -> None:
        super().__init__(learn, modules, do_remove)
        self.names: list[str] = []
        self._batches: list[Tensor] = []

    @property
    def stats(self) -> Tensor:
        """Mean and standard deviation, ``[2, layers, batches]``, on the CPU."""
        if not self._batches:
            return torch.empty(2, len(self.names), 0)
        return torch.stack(self._batches).permute(2, 1, 0).cpu()

    def hook(self, module: nn.Module, input: Any, output: Any) -> Tensor:
        """Return mean and standard deviation of what a module gave, of several tensors the first."""
        values = tensors_in(output)[0].float()
        deviation, mean = torch.std_mean(values, correction=0)
        return torch.stack([mean, deviation])

    def on_train_begin(self) -> None:
        """Put the hooks on, and begin a new record."""
        super().on_train_begin()
        names = {module: name for name, module in self.learn.model.named_modules()}
        self.names = [f"{names.get(module, '?')} {type(module).__name__}".strip() for module in self.chosen()]
        self._batches = []

    def on_batch_end(self, train: bool) -> None:
        """Keep a training batch."""
        ran = [one for one in self.hooks if one.stored is not None]
        if train and ran:
            missing = ran[0].stored.new_full((2,), torch.nan)
            stored = [missing if one is None else one for one in self.hooks.stored]
            self._batches.append(torch.stack([one.to(missing.device) for one in stored]))
        for one in ran:
            one.stored = None

    def state_dict(self) -> dict[str, Any]:
        """Return the record."""
        return {"batches": self.stats}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a record over."""
        self._batches = list(state["batches"].permute(2, 1, 0))

    def plot(self, return_fig: bool | None = None, ax: Any = None) -> Figure | None:
        """Draw mean and deviation of each layer over the training batches, the first layers dark, the last ones light.

        Raises:
            MinifastError: no batch was trained.
        """
        if not self._batches:
            raise MinifastError("There is nothing to plot yet: no batch was trained with ActivationStats.")
        axes = plotting.axes_for(ax, 2)
        for one, values, label in zip(axes, self.stats.tolist(), ("mean", "standard deviation"), strict=True):
            plotting.plot_layers(one, values, label, self.names)
        return plotting.finish(axes, return_fig)
