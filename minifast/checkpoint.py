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
from minifast.callback import Callback, is_plain
from minifast.data.position import go_to, position_of
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
def model_preserved(*models: Any) -> Iterator[None]:
    """Put back what training changes in modules, and the generators; what is no module is passed over.

    That is parameters, buffers, gradients, what is frozen, training flags, and attributes that are tensors or plain
    values.
    """
    wholes = [model for model in models if isinstance(model, nn.Module)]
    modules = list({id(module): module for whole in wholes for module in whole.modules()}.values())
    held = [dict(vars(module)) for module in modules]
    plain = [
        {name: copy.deepcopy(value) for name, value in attributes.items() if name[:1] != "_" and is_plain(value)}
        for attributes in held
    ]
    kinds = ("_parameters", "_buffers", "_modules")
    parts = [{kind: dict(attributes[kind]) for kind in kinds} for attributes in held]
    named = [part[kind] for part in parts for kind in ("_parameters", "_buffers")]
    tensors = list({id(one): one for content in named for one in content.values() if one is not None}.values())
    before = [(tensor.detach().clone(), tensor.grad, tensor.requires_grad) for tensor in tensors]
    generators = random_states()
    try:
        for tensor in tensors:
            tensor.grad = None
        yield
    finally:
        for module, attributes, part, values in zip(modules, held, parts, plain, strict=True):
            vars(module).clear()
            vars(module).update(attributes | values)
            for name, content in part.items():
                attributes[name].clear()
                attributes[name].update(content)
        for tensor, (value, gradient, wanted) in zip(tensors, before, strict=True):
            with torch.no_grad():
                tensor.copy_(value)
            tensor.requires_grad_(wanted)
            tensor.grad = gradient
        set_random_states(generators)


@contextmanager
def preserved(learn: Learner) -> Iterator[None]:
    """Put back on leaving, however that happens, what training changes in a learner and around it.

    That is parameters, buffers, gradients, what is frozen, training flags, the optimizer, callbacks and metrics, the
    learner's own attributes, the place in its data (position and generators of the training loader), and the
    generators of Python, NumPy, torch and its devices. The optimizer inside is a copy with the same state, and so is
    what callbacks hold; the originals come back. Everything is kept in memory.
    """
    attributes = dict(vars(learn))
    lists = [(value, list(value)) for name, value in attributes.items() if type(value) is list]
    callbacks = [*learn.callbacks, *(metric for metric in learn.metrics if isinstance(metric, Callback))]
    originals = [dict(vars(callback)) for callback in callbacks]
    position = position_of(learn.data.train_dl)
    try:
        with model_preserved(learn.model, learn.loss_func):
            learn.opt = None if learn.opt is None else learn.opt.copy()
            lend_copies(callbacks, _shared(learn, callbacks))
            yield
    finally:
        vars(learn).clear()
        vars(learn).update(attributes)
        for value, items in lists:
            value[:] = items
        for callback, original in zip(callbacks, originals, strict=True):
            vars(callback).clear()
            vars(callback).update(original)
        go_to(learn.data.train_dl, position)


def _shared(learn: Learner, callbacks: Sequence[Callback]) -> list[Any]:
    """Return what a callback may hold but does not own: it is not copied with it."""
    model, data = learn.model, learn.data
    parts = [*model.modules(), *model.parameters(), *model.buffers()]
    loaders = [one for one in vars(data).values() if hasattr(one, "__dict__")]
    loaders += [vars(one)["dl"] for one in loaders if hasattr(vars(one).get("dl"), "__dict__")]
    parts += [value for one in loaders for value in vars(one).values()]  # datasets, samplers, generators
    return [learn, data, *parts, *loaders, *vars(learn).values(), *vars(data).values(), *callbacks]


def lend_copies(callbacks: Sequence[Callback], shared: Sequence[Any]) -> None:
    """Give callbacks copies of their attributes; what is ``shared``, or cannot be copied, stays what it is.

    What several attributes hold is one thing in the copies too.
    """
    memo: dict[int, Any] = {id(one): one for one in shared}
    for callback in callbacks:
        for name, value in list(vars(callback).items()):
            known = set(memo)
            try:
                vars(callback)[name] = copy.deepcopy(value, memo)
            except Exception:  # whatever a lock, an open file or a generator says to being copied
                for key in memo.keys() - known:  # halves of copies
                    del memo[key]


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
    """Seed the generators of Python, NumPy, torch and its devices with a whole number of 0 or more, below 2**64.

    Call it before the data and the model are made. Training draws from torch's generator what the model draws
    (dropout, for instance), and the order of a torch DataLoader that has no generator of its own; the order of data in
    memory comes from their own seed. On one machine and a CPU the same seed gives the same bits in every process.

    >>> set_seed(1); first = torch.rand(2)
    >>> set_seed(1); torch.equal(first, torch.rand(2))
    True
    """
    n = check_count("n", n, least=0)
    if n >= 2**64:
        raise ValueError(f"n is {n}; a seed must be below 2**64.")
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
        if not hasattr(file, "read") and not hasattr(file, "write"):
            raise TypeError(f"file is {file!r}; it must be a name, a path or an open file.")
        return file
    folder = learn.path / learn.model_dir
    if not str(file) or "\0" in str(file) or Path(file).name in ("", ".", ".."):
        raise ValueError(f"{str(file)!r} is no name for a file; give one, such as 'model'.")
    target = folder / f"{str(file).removesuffix('.pth')}.pth"
    if not anywhere and not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{file} leads out of {folder}; give a name, and set model_dir for another folder.")
    return target


def model_state(learn: Learner, with_opt: bool) -> dict[str, Any]:
    """Return what ``Learner.save`` keeps: the model's state, with the optimizer's where there is one."""
    state = learn.model.state_dict()
    return {"model": state, "opt": learn.opt.state_dict()} if with_opt and learn.opt is not None else state


def is_with_opt(state: Any) -> bool:
    """Whether a file holds a model's state together with an optimizer's, as ``model_state`` returns them."""
    return isinstance(state, dict) and set(state) == {"model", "opt"}


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
    if isinstance(state, nn.Module):  # a whole model, which only trust reads
        state = state.state_dict()
    both = is_with_opt(state)
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
