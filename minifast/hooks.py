"""Hooks: store the outputs or gradients of modules while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from minifast.utils.public import suggest_names
from minifast.utils.tensors import map_tensors

HookFunc = Callable[[nn.Module, Any, Any], Any]


def leaves(model: nn.Module) -> list[nn.Module]:
    """Return the innermost modules of a model, each once, in the order in which they were created.

    >>> [type(module).__name__ for module in leaves(nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU()))]
    ['Linear', 'ReLU']
    """
    return [module for module in model.modules() if not list(module.children())]


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a value: the value itself, or the tensors in a tuple or list."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    return [item for item in values if isinstance(item, Tensor)]


def _nothing(module: nn.Module, input: Any, output: Any) -> None:
    """Do nothing: the function of a removed hook."""


class Hook:
    """Call ``hook_func(module, input, output)`` whenever module ``m`` runs, and store its result in ``stored``.

    A ``with`` block removes the hook at its end, also after an error.

    Args:
        m: the module.
        hook_func: a function of the module, the tuple of its inputs, and its output.
        is_forward: False calls it in the backward pass, with the gradients of the inputs and of the outputs as two
            tuples. Unlike torch's backward hooks, this works for modules that change tensors in place.
        detach: pass detached tensors.

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
        self._calls: list[dict[str, Any]] = []  # a module that calls itself has several; the inner ones are last
        if is_forward:
            self._handles = [m.register_forward_hook(self.hook_fn)]
        else:
            self._handles = [m.register_forward_pre_hook(self._before), m.register_forward_hook(self._after)]

    def hook_fn(self, module: nn.Module, input: Any, output: Any) -> None:
        """Store the result of ``hook_func``."""
        if self.detach:
            input, output = map_tensors(Tensor.detach, input), map_tensors(Tensor.detach, output)
        self.stored = self.hook_func(module, input, output)

    # The hooks are on the tensors, on inputs before the module can write into them: torch's backward hooks of modules
    # fail for modules that change tensors in place.
    def _before(self, module: nn.Module, input: Any) -> None:
        tensors = [tensor for tensor in tensors_in(input) if tensor.requires_grad]
        call: dict[str, Any] = {"inputs": bool(tensors), "output": ()}
        self._calls.append(call)
        if tensors:
            register_multi_grad_hook(tensors, lambda gradients: self._arrived(module, tuple(gradients), call["output"]))

    def _after(self, module: nn.Module, _: Any, output: Any) -> None:
        call = self._calls.pop()

        def arrived(gradients: Sequence[Tensor | None]) -> None:
            call["output"] = tuple(gradients)
            if not call["inputs"]:
                self._arrived(module, (), call["output"])

        if tensors := [tensor for tensor in tensors_in(output) if tensor.requires_grad]:
            register_multi_grad_hook(tensors, arrived)

    def _arrived(self, module: nn.Module, of_inputs: Any, of_outputs: Any) -> None:
        if not self.removed:
            self.hook_fn(module, of_inputs, of_outputs)

    def remove(self) -> None:
        """Remove the hook from the module; ``stored`` stays."""
        for handle in self._handles:
            handle.remove()
        self.removed = True
        self.hook_func = _nothing  # a method of a callback would keep the callback alive

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Hooks:
    """Hooks on the modules ``ms``; ``stored`` is the list of their stored values. See ``Hook``."""

    def __init__(
        self, ms: Iterable[nn.Module], hook_func: HookFunc, is_forward: bool = True, detach: bool = True
    ) -> None:
        self.hooks = [Hook(m, hook_func, is_forward, detach) for m in ms]

    @property
    def stored(self) -> list[Any]:
        """The stored value of each hook."""
        return [hook.stored for hook in self.hooks]

    def remove(self) -> None:
        """Remove all hooks."""
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
    """Store the output of ``module`` in ``stored``, or with ``grad`` the list of gradients of its outputs.

    >>> import torch
    >>> layer = nn.Linear(2, 3)
    >>> with hook_output(layer) as activations, hook_output(layer, grad=True) as gradients:
    ...     layer(torch.ones(1, 2)).sum().backward()
    >>> activations.stored.shape, gradients.stored
    (torch.Size([1, 3]), [tensor([[1., 1., 1.]])])
    """
    return Hook(module, _output, is_forward=not grad, detach=detach)


def hook_outputs(modules: Iterable[nn.Module], detach: bool = True, grad: bool = False) -> Hooks:
    """Store the output of each of ``modules``, or with ``grad`` its gradients; see ``hook_output``."""
    return Hooks(modules, _output, is_forward=not grad, detach=detach)


suggest_names(__name__)
