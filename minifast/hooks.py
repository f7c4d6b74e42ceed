"""Hooks: what modules of a model give and receive while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from minifast.utils.tensors import map_tensors

HookFunc = Callable[[nn.Module, Any, Any], Any]


def leaves(model: nn.Module) -> list[nn.Module]:
    """Return the innermost modules of a model, each once, in the order in which they were made.

    >>> [type(one).__name__ for one in leaves(nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU()))]
    ['Linear', 'ReLU']
    """
    return [module for module in model.modules() if not list(module.children())]


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a value: itself, or those in a tuple or list."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    return [one for one in values if isinstance(one, Tensor)]


def _nothing(module: nn.Module, input: Any, output: Any) -> None:
    """What is called when a hook is gone."""


class Hook:
    """Calls ``hook_func(module, input, output)`` whenever module ``m`` runs, and keeps what it returns in ``stored``.

    A ``with`` block removes the hook at its end, also when it fails.

    Args:
        m: the module.
        hook_func: of the module, a tuple of its inputs, and its output.
        is_forward: False calls it in the backward pass, with tuples of the gradients of the inputs and of the outputs
            in the place of both. Other than with torch's own, modules may work in place.
        detach: give tensors without their gradients.

    >>> import torch
    >>> layer = nn.Linear(2, 3)
    >>> with Hook(layer, lambda module, input, output: output.shape) as hook:
    ...     _ = layer(torch.zeros(5, 2))
    >>> hook.stored, hook.removed
    (torch.Size([5, 3]), True)
    """

    def __init__(self, m: nn.Module, hook_func: HookFunc, is_forward: bool = True, detach: bool = True) -> None:
        self.hook_func = hook_func
        self.detach = detach
        self.stored: Any = None
        self.removed = False
        self._calls: list[dict[str, Any]] = []  # of a module that calls itself, the inner ones last
        if is_forward:
            self._handles = [m.register_forward_hook(self.hook_fn)]
        else:
            self._handles = [m.register_forward_pre_hook(self._before), m.register_forward_hook(self._after)]

    def hook_fn(self, module: nn.Module, input: Any, output: Any) -> None:
        """Keep what ``hook_func`` says."""
        if self.detach:
            input, output = map_tensors(Tensor.detach, input), map_tensors(Tensor.detach, output)
        self.stored = self.hook_func(module, input, output)

    # Gradients are asked of the tensors, the inputs' before the module may write into them: torch's own backward hook
    # of a module refuses modules that work in place.
    def _before(self, module: nn.Module, input: Any) -> None:
        wanted = [one for one in tensors_in(input) if one.requires_grad]
        call: dict[str, Any] = {"inputs": bool(wanted), "output": ()}
        self._calls.append(call)
        if wanted:
            register_multi_grad_hook(wanted, lambda gradients: self._arrived(module, tuple(gradients), call["output"]))

    def _after(self, module: nn.Module, _: Any, output: Any) -> None:
        call = self._calls.pop()

        def arrived(gradients: Sequence[Tensor | None]) -> None:
            call["output"] = tuple(gradients)
            if not call["inputs"]:
                self._arrived(module, (), call["output"])

        if wanted := [one for one in tensors_in(output) if one.requires_grad]:
            register_multi_grad_hook(wanted, arrived)

    def _arrived(self, module: nn.Module, of_inputs: Any, of_outputs: Any) -> None:
        if not self.removed:
            self.hook_fn(module, of_inputs, of_outputs)

    def remove(self) -> None:
        """Take the hook off the module; what it kept stays."""
        for handle in self._handles:
            handle.remove()
        self.removed = True
        self.hook_func = _nothing  # a callback's own method would keep the callback alive

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Hooks:
    """A hook on each of the modules ``ms``; ``stored`` is the list of what they keep. See ``Hook``."""

    def __init__(
        self, ms: Iterable[nn.Module], hook_func: HookFunc, is_forward: bool = True, detach: bool = True
    ) -> None:
        self.hooks = [Hook(m, hook_func, is_forward, detach) for m in ms]

    @property
    def stored(self) -> list[Any]:
        """What each hook keeps."""
        return [hook.stored for hook in self.hooks]

    def remove(self) -> None:
        """Take all hooks off."""
        for hook in self.hooks:
            hook.remove()

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __getitem__(self, i: int) -> Hook:
        return self.hooks[i]

    def __len__(self) -> int:
        return len(self.hooks)

    def __iter__(self) -> Iterator[Hook]:
        return iter(self.hooks)


def _output(module: nn.Module, input: Any, output: Any) -> Any:
    return output if isinstance(output, Tensor) else list(output)


def hook_output(module: nn.Module, detach: bool = True, grad: bool = False) -> Hook:
    """Keep the output of ``module`` in ``stored``, or with ``grad`` a list of the gradients of its outputs.

    >>> import torch
    >>> layer = nn.Linear(2, 3)
    >>> with hook_output(layer) as activations, hook_output(layer, grad=True) as gradients:
    ...     layer(torch.ones(1, 2)).sum().backward()
    >>> activations.stored.shape, gradients.stored
    (torch.Size([1, 3]), [tensor([[1., 1., 1.]])])
    """
    return Hook(module, _output, is_forward=not grad, detach=detach)


def hook_outputs(modules: Iterable[nn.Module], detach: bool = True, grad: bool = False) -> Hooks:
    """Keep the output of each of ``modules``, or with ``grad`` the gradients; see ``hook_output``."""
    return Hooks(modules, _output, is_forward=not grad, detach=detach)
