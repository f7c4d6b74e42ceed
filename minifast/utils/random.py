"""Seeds and the states of the global random generators."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from minifast.utils.checks import check_count

if TYPE_CHECKING:
    pass


def get_rng_states() -> dict[str, Any]:
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


def set_rng_states(states: dict[str, Any]) -> None:
    """Put all global generators back."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    np.random.set_state(tuple(states["numpy"]))
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
