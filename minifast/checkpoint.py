"""What a run is, kept and put back to the bit."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from minifast.data.loader import go_to, position_of

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

    That is parameters, buffers, gradients, training flags, the optimizer, the recorder's place in the learner's data
    (position and generators of the training loader), and the generators of Python, NumPy, torch and its devices. The
    optimizer inside is a copy with the same state. Everything is kept in memory.
    """
    model = learn.model
    opt = learn.opt
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [tensor.grad for tensor in tensors]
    generators = _random_states()
    position = position_of(learn.data.train_dl)
    try:
        for tensor in tensors:
            tensor.grad = None
        learn.opt = None if opt is None else learn.opt.copy()
        with evaluating(model, model.training):
            yield
    finally:
        learn.opt = opt
        with torch.no_grad():
            for tensor, value, gradient in zip(tensors, values, gradients, strict=True):
                tensor.copy_(value)
                tensor.grad = gradient
        go_to(learn.data.train_dl, position)
        _set_random_states(generators)


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
