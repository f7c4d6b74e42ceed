"""Frozen first layers: compute what they give for each sample once in a fit, instead of in each epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from minifast.data.loaders import TensorLoader
from minifast.data.normalize import Normalize
from minifast.training.snapshot import preserve_look
from minifast.training.state import State
from minifast.utils.random import get_rng_states
from minifast.utils.tensors import is_plain

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

MAX_BYTES = 2**30  # of the features of all samples; more are not kept
TRIED = (slice(1), slice(-1, None))  # samples that are computed again alone, to compare: the first and the last
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


@contextmanager
def precomputed(learn: Learner, state: State) -> Iterator[None]:
    """Within the context, let the learner compute the features of frozen layers once for each sample.

    This changes nothing where it cannot pay or where it could change a result: see ``FrozenFeatures``.
    """
    if not (learn.precompute and state.n_epochs > 1 and frozen_layers(learn.model)[0]):
        yield
        return
    learn.features = FrozenFeatures(learn, state)
    try:
        yield
    finally:
        learn.features = None


def frozen_layers(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """Return the frozen first layers of a Sequential model, the layers after them, and the containers of both.

    The first layers end with frozen parameters, or with the layers without parameters that follow these, such as
    pooling. They do not include dropout after the last frozen parameter.
    """
    containers: list[nn.Module] = []
    layers = flat(model, containers)
    n_frozen = n = 0
    for i, layer in enumerate(layers, 1):
        parameters = list(layer.parameters())
        if any(parameter.requires_grad for parameter in parameters):
            break
        if parameters:
            n_frozen = n = i
        elif n == i - 1 and not isinstance(layer, nn.modules.dropout._DropoutNd):
            n = i
    return layers[: n if n_frozen else 0], layers[n if n_frozen else 0 :], containers


def flat(module: nn.Module, containers: list[nn.Module]) -> list[nn.Module]:
    """Return the layers that a module runs one after another; the Sequentials around them are put in ``containers``."""
    if type(module).forward is not nn.Sequential.forward:
        return [module]
    containers.append(module)
    return [layer for child in module.children() for layer in flat(child, containers)]


class FrozenFeatures:
    """Call a model, and take the outputs of its frozen first layers from a table where the sample is known.

    The table holds the features of all samples of a loader. A sample is recognized by its values, so a batch that a
    callback changed is computed as ever. There is a table only if

    - the loader holds its data in memory and gives the same samples in each epoch;
    - the frozen layers are a function of each sample alone, which a batch of two or more shows, and change nothing;
    - no hook watches them, and they are not compiled;
    - the features take no more than ``MAX_BYTES``.

    The features are computed in the order of the data set, so they do not depend on where a run was resumed. The table
    is given up when a parameter or buffer of the frozen layers changes.
    """

    def __init__(self, learn: Learner, state: State) -> None:
        self.learn = learn
        self.state = state
        self.tables: dict[bool, Table | None] = {}  # of training and of validation
        self._looked: tuple[int, list[tuple[int, int]]] | None = None  # epoch and versions at the last look
        self._seen = (b"", "")  # values and settings at the last look

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the model."""
        features, rest = self._find(args[0]) if len(args) == 1 and not kwargs else (None, [])
        return self.learn.model(*args, **kwargs) if features is None else through(rest, features)

    def _find(self, x: Any) -> tuple[Tensor | None, list[nn.Module]]:
        """Return the features of a batch, or None, and the layers that take them."""
        train = self.learn.model.training  # not the state's: lr_find looks at validation samples during training
        first, rest, containers = frozen_layers(self.learn.model)
        if train not in self.tables:
            self.tables[train] = self._make_table(x, train, first, containers)
        table = self.tables[train]
        if table is None or not isinstance(x, Tensor) or x.requires_grad:
            return None, rest
        if has_hooks(first, containers) or (kind_of(first), self._values(first)) != (table.kind, table.values):
            self.tables[train] = None
            return None, rest
        return table.read(x), rest

    def _values(self, first: list[nn.Module]) -> tuple[bytes, str]:
        """Return a hash of all values of the layers, and their settings; computed once an epoch, and after changes."""
        now = self.state.epoch, versions_of(first)
        if self._looked != now:
            self._looked, self._seen = now, (digest_of(first), repr(settings_of(first)))
        return self._seen

    def _make_table(self, x: Any, train: bool, first: list[nn.Module], containers: list[nn.Module]) -> Table | None:
        """Return the table of the training or validation set; None if its features cannot be kept."""
        data = self.learn.data
        loader = data.train_dl if train else data.valid_dl
        changed = train and self.state.train_batch is not None and self.state.train_batch[0] is not x
        if changed or not isinstance(x, Tensor) or not is_fixed(loader) or not first or has_hooks(first, containers):
            return None
        table, n = Table(kind_of(first), self._values(first)), len(loader.dataset)
        with preserve_look(self.learn), torch.no_grad():
            for i, (inputs, _) in enumerate(loader.in_order()):
                features = through(first, inputs) if i else features_of_each(first, inputs, n)
                if features is None:
                    return None
                table.add(inputs, features)
        if train and self.learn.recorder.call.get("method") != "lr_find":
            self.state.pbar.write(
                f"The outputs of the frozen layers are computed once for {n} samples; Learner(precompute=False) "
                f"computes them in each epoch."
            )
        return table


class Table:
    """The features of samples, by a hash of the sample's values.

    Args:
        kind: the ``kind_of`` of the layers that compute the features.
        values: their values and settings.
    """

    def __init__(self, kind: list[tuple[int, bool]], values: tuple[bytes, str]) -> None:
        self.kind = kind
        self.values = values
        self.rows: dict[bytes, Tensor] = {}

    def add(self, x: Tensor, features: Tensor) -> None:
        """Add the features of a batch."""
        self.rows.update(zip(keys_of(x), features, strict=True))

    def read(self, x: Tensor) -> Tensor | None:
        """Return the features of a batch; None if a sample is not in the table."""
        rows = [self.rows[key] for key in keys_of(x) if key in self.rows]
        return torch.stack(rows) if rows and len(rows) == len(x) else None


def is_fixed(loader: Any) -> bool:
    """Return whether a loader holds its data in memory and gives the same samples in each epoch."""
    return (
        type(loader) is TensorLoader
        and loader.batch_fn is None
        and all(isinstance(tfm, Normalize) for tfm in loader.tfms)
    )


def through(layers: list[nn.Module], x: Any) -> Any:
    """Return the output of layers, one after another."""
    for layer in layers:
        x = layer(x)
    return x


def features_of_each(layers: list[nn.Module], x: Tensor, n: int) -> Tensor | None:
    """Return the output of layers for a batch.

    None if they are no function of each sample alone or change something, ``n`` samples take too much memory, or there
    is one sample only.
    """
    if len(x) < 2:  # a sample alone shows nothing
        return None
    before = get_rng_states(), versions_of(layers), settings_of(layers)
    try:
        whole, *alone = [through(layers, part) for part in (x, *(x[tried] for tried in TRIED))]
    except Exception:  # a model may raise anything; in the batch itself it will raise again
        return None
    if not isinstance(whole, Tensor) or not whole.ndim or len(whole) != len(x) or whole.is_complex():
        return None
    after = get_rng_states(), versions_of(layers), settings_of(layers)
    fits = whole[:1].numel() * whole.element_size() * n <= MAX_BYTES
    is_function = is_equal(before, after) and all(
        part.shape == whole[:1].shape and torch.allclose(whole[tried], part, rtol=1e-2, atol=1e-5)
        for tried, part in zip(TRIED, alone, strict=True)
    )
    return whole if fits and is_function else None


def is_equal(a: Any, b: Any) -> bool:
    """Return whether nested values are equal; tensors are compared by their values."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(is_equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(value, b[key]) for key, value in a.items())
    return bool(a == b)


def modules_of(layers: list[nn.Module]) -> list[nn.Module]:
    """Return layers and all modules in them."""
    return [module for layer in layers for module in layer.modules()]


def tensors_of(layers: list[nn.Module]) -> list[Tensor]:
    """Return the parameters and buffers of layers."""
    return [t for layer in layers for t in (*layer.parameters(), *layer.buffers())]


def settings_of(layers: list[nn.Module]) -> list[Any]:
    """Return the plain attributes of all modules, such as a counter of calls."""
    return [
        [value for name, value in vars(module).items() if name not in ("_buffers", "training") and is_plain(value)]
        for module in modules_of(layers)
    ]


def kind_of(layers: list[nn.Module]) -> list[tuple[int, bool]]:
    """Return what must stay the same in each batch: the modules and their mode, and what is frozen."""
    modes = [(id(module), module.training) for module in modules_of(layers)]
    return [*modes, *((id(tensor), tensor.requires_grad) for tensor in tensors_of(layers))]


def versions_of(layers: list[nn.Module]) -> list[tuple[int, int]]:
    """Return the address of each parameter and buffer, and how often it was changed in place."""
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors_of(layers)]


def digest_of(layers: list[nn.Module]) -> bytes:
    """Return a hash of the values of all parameters and buffers."""
    digest = hashlib.sha256()
    for tensor in tensors_of(layers):
        digest.update(bytes_of(tensor))
    return digest.digest()


def keys_of(x: Tensor) -> list[bytes]:
    """Return a hash of each sample of a batch."""
    return [hashlib.sha256(bytes_of(sample)).digest() for sample in x.detach().cpu()]


def bytes_of(tensor: Tensor) -> Any:
    """Return the values of a tensor as bytes."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def has_hooks(layers: list[nn.Module], containers: list[nn.Module]) -> bool:
    """Return whether a hook watches layers, what is in them, or containers around them; or whether one is compiled."""
    modules = [*containers, *modules_of(layers)]
    hooked = any(getattr(module, name) for module in modules for name in HOOKS)
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in modules)
    return hooked or compiled or any(getattr(torch_module, name) for name in GLOBAL_HOOKS)
