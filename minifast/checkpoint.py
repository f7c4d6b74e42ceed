"""What a run is, kept and put back to the bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from minifast import files
from minifast.callback import Callback
from minifast.data.loader import go_to, position_of
from minifast.errors import DataError, MinifastError, check_count
from minifast.optimizer import OptimizerStateError

if TYPE_CHECKING:
    from minifast.learner import Learner


@contextmanager
def evaluating(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Put a model in evaluation mode, or in training mode, and each of its modules back as it was."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was in flags:
            module.training = was


@contextmanager
def preserved(learn: Learner) -> Iterator[None]:
    """Put back on leaving, however that happens, what training changes in a learner and around it.

    That is parameters, buffers, gradients, what is frozen, training flags, the optimizer, callbacks and metrics, the
    learner's own attributes, the place in its data (position and generators of the training loader), and the
    generators of Python, NumPy, torch and its devices. The optimizer inside is a copy with the same state. Everything
    is kept in memory.
    """
    model = learn.model
    attributes = dict(vars(learn))
    tensors = [*model.parameters(), *model.buffers()]
    before = [(tensor.detach().clone(), tensor.grad, tensor.requires_grad) for tensor in tensors]
    callbacks = [*learn.callbacks, *(metric for metric in learn.metrics if isinstance(metric, Callback))]
    shared = [learn, model, learn.opt, learn.data, *vars(learn).values(), *callbacks, *tensors]
    states = [attributes_of(callback, shared) for callback in callbacks]
    generators = random_states()
    position = position_of(learn.data.train_dl)
    try:
        for tensor in tensors:
            tensor.grad = None
        learn.opt = None if learn.opt is None else learn.opt.copy()
        with evaluating(model, model.training):
            yield
    finally:
        vars(learn).clear()
        vars(learn).update(attributes)
        for tensor, (value, gradient, wanted) in zip(tensors, before, strict=True):
            with torch.no_grad():
                tensor.copy_(value)
            tensor.requires_grad_(wanted)
            tensor.grad = gradient
        for callback, state in zip(callbacks, states, strict=True):
            put_back(callback, state)
        go_to(learn.data.train_dl, position)
        set_random_states(generators)


def attributes_of(callback: Callback, shared: Sequence[Any]) -> dict[str, tuple[Any, Any]]:
    """Return a callback's attributes, each with a copy; what is ``shared`` or cannot be copied stays what it is."""
    kept: dict[str, tuple[Any, Any]] = {}
    for name, value in vars(callback).items():
        try:
            copied = copy.deepcopy(value, {id(one): one for one in shared})
        except Exception:  # whatever a lock, an open file or a generator says to being copied
            copied = value
        kept[name] = value, copied
    return kept


def put_back(callback: Callback, kept: dict[str, tuple[Any, Any]]) -> None:
    """Give a callback the attributes that ``attributes_of`` found; lists and dicts stay the same objects."""
    vars(callback).clear()
    for name, (value, copied) in kept.items():
        if copied is not value and type(value) is list:
            value[:] = copied
        elif copied is not value and type(value) is dict:
            value.clear()
            value.update(copied)
        else:
            value = copied
        vars(callback)[name] = value


def random_states() -> dict[str, Any]:
    """Return the states of all global generators, as tensors and plain values."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())
    states["numpy"] = [kind, keys.tolist(), *rest]
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_seed(n: int) -> None:
    """Seed the generators of Python, NumPy, torch and its devices: what follows is the same in every process.

    Call it before the data and the model are made. Training draws from torch's generator what the model draws
    (dropout, for instance), and nothing else; the order of the data comes from their own seed.

    >>> set_seed(1); first = torch.rand(2)
    >>> set_seed(1); torch.equal(first, torch.rand(2))
    True
    """
    n = check_count("n", n, least=0)
    random.seed(n)
    np.random.seed(n % 2**32)
    torch.manual_seed(n)


def set_random_states(states: dict[str, Any]) -> None:
    """Put all global generators back."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    np.random.set_state(tuple(states["numpy"]))
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def model_file(learn: Learner, file: str | Path | IO[bytes], anywhere: bool = False) -> Path | IO[bytes]:
    """Return where ``file`` is: an open file as it is, a name in the learner's model folder, or ``anywhere`` a path."""
    if not isinstance(file, (str, Path)):
        return file
    folder = learn.path / learn.model_dir
    if not str(file):
        raise ValueError("The name of the file is empty; give one.")
    target = folder / f"{str(file).removesuffix('.pth')}.pth"
    if not anywhere and not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{file} leads out of {folder}; give a name, and set model_dir for another folder.")
    return target


def model_state(learn: Learner, with_opt: bool) -> dict[str, Any]:
    """Return what ``Learner.save`` keeps: the model's state, with the optimizer's where there is one."""
    state = learn.model.state_dict()
    return {"model": state, "opt": learn.opt.state_dict()} if with_opt and learn.opt is not None else state


def load_model(
    learn: Learner,
    file: Path | IO[bytes],
    device: torch.device | str,
    strict: bool,
    with_opt: bool | None,
    trust: bool = False,
) -> None:
    """Load what ``Learner.save`` kept into the learner: all of it, or nothing and an error."""
    state = files.read(file, device, trust=trust)
    both = isinstance(state, dict) and set(state) == {"model", "opt"}
    if with_opt and not both:
        raise MinifastError(f"{file} holds no optimizer; load it with with_opt=False.")
    model = learn.model
    before = copy.deepcopy(model.state_dict())
    opt = learn.opt
    try:
        model.load_state_dict(state["model"] if both else state, strict=strict)
        if both and with_opt is not False:
            if opt is None:
                learn.create_opt(3e-3, learn.wd)
            learn.opt.load_state_dict(state["opt"])
    except (RuntimeError, TypeError, AttributeError, KeyError, OptimizerStateError) as error:
        learn.opt = opt
        model.load_state_dict(before)
        if isinstance(error, OptimizerStateError):
            raise DataError(f"{file} holds another optimizer's state: {error} Load it with with_opt=False.") from error
        reason = " ".join(str(error).split())
        raise DataError(f"{file} belongs to another model than this learner's: {reason}") from error
