"""Hooks during a fit, and statistics of the activations of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast import plotting
from minifast.distributed.sharding import class_of
from minifast.errors import MinifastError
from minifast.hooks import Hooks, leaves, tensors_in
from minifast.training.callback import LearnerCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minifast.learner.learner import Learner


class HookCallback(LearnerCallback):
    """Call the method ``hook(module, input, output)`` for modules of the model during a fit.

    ``hooks.stored`` holds its last result for each module.

    Args:
        learn: the learner.
        modules: the modules; by default the innermost ones that have a weight.
        do_remove: remove the hooks at the end of the fit in any case; otherwise call ``remove`` yourself.

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
        """Return the value to store for a call of a module; subclasses override this."""
        raise NotImplementedError(f"{type(self).__name__} has no method hook(module, input, output); give it one.")

    def chosen(self) -> list[nn.Module]:
        """Return the modules to hook."""
        if self.modules:
            return list(self.modules)
        return [module for module in leaves(self.learn.model) if getattr(module, "weight", None) is not None]

    def on_train_begin(self) -> None:
        """Register the hooks."""
        if getattr(self.learn.model, "_compiled_call_impl", None) is not None:
            raise ValueError(
                "The model is compiled, and compiled models skip hooks; inspect it before learn.compile()."
            )
        self.remove()
        self.hooks = Hooks(self.chosen(), self.hook)

    def on_train_end(self) -> None:
        """Remove the hooks."""
        if self.do_remove:
            self.remove()

    def remove(self) -> None:
        """Remove the hooks; their stored values stay."""
        self.hooks.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the stored values belong to one batch."""
        return {}


class ActivationStats(HookCallback):
    """Record the mean and standard deviation of each layer's activations in each training batch.

    Nothing waits for the device until you read ``stats``. After a fit ``learn.activation_stats.plot()`` plots them: in
    a healthy network they become stable, and a layer with a standard deviation near 0 passes on little information.

    >>> from minifast import *
    >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
    >>> data = DataBunch(batches, device="cpu", classes=["no", "yes"])
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
        """Return mean and standard deviation of the output of a module, or of its first tensor."""
        values = tensors_in(output)[0].float()
        deviation, mean = torch.std_mean(values, correction=0)
        return torch.stack([mean, deviation])

    def on_train_begin(self) -> None:
        """Register the hooks and start a new record."""
        super().on_train_begin()
        names = {module: name for name, module in self.learn.model.named_modules()}
        self.names = [f"{names.get(module, '?')} {class_of(module).__name__}".strip() for module in self.chosen()]
        self._batches = []

    def on_batch_end(self, train: bool) -> None:
        """Record a training batch."""
        called = [hook for hook in self.hooks if hook.stored is not None]
        if train and called:
            missing = called[0].stored.new_full((2,), torch.nan)
            stored = [missing if values is None else values for values in self.hooks.stored]
            self._batches.append(torch.stack([values.to(missing.device) for values in stored]))
        for hook in called:
            hook.stored = None

    def state_dict(self) -> dict[str, Any]:
        """Return the record."""
        return {"batches": self.stats}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a record."""
        self._batches = list(state["batches"].permute(2, 1, 0))

    def plot(self, return_fig: bool | None = None, ax: Any = None) -> Figure | None:
        """Plot mean and standard deviation of each layer over the training batches, first layers dark, last ones light.

        Raises:
            MinifastError: no batch was trained.
        """
        if not self._batches:
            raise MinifastError("There is nothing to plot yet: no batch was trained with ActivationStats.")
        axes = plotting.axes_for(ax, 2)
        for panel, values, label in zip(axes, self.stats.tolist(), ("mean", "standard deviation"), strict=True):
            plotting.plot_layers(panel, values, label, self.names)
        return plotting.finish(axes, return_fig)
