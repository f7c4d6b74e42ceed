"""Seeds, and the states of global and of other random generators."""

from __future__ import annotations

import random
from functools import cache, lru_cache
from typing import Any, cast

import numpy as np
import torch

from minifast.utils.checks import check_count


@cache
def generator_types() -> tuple[type, ...]:
    """Return the types of random generators; NumPy's are imported at the first call, to keep the import quick."""
    return torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator


def get_rng_states() -> dict[str, Any]:
    """Return the states of the global generators, as tensors and plain values."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())
    states["numpy"] = [kind, keys.tolist(), *rest]
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_seed(n: int) -> None:
    """Seed the global generators of Python, NumPy, torch and its devices.

    Call it before you create the data and the model. Training uses torch's global generator for the random numbers of
    the model (dropout, for instance) and for the order of a torch DataLoader without a generator of its own. The order
    of data in memory comes from their own seed. On the CPU of one machine, the same seed gives bitwise identical
    results in every process.

    Of several processes that train together, process 0 samples what a single one would. During a fit, the others have
    seeds of their own for dropout and augmentation, which depend on this seed and their rank alone.

    Args:
        n: the seed, a whole number from 0 to 2**64 - 1.

    >>> set_seed(1); first = torch.rand(2)
    >>> set_seed(1); torch.equal(first, torch.rand(2))
    True
    """
    n = check_count("n", n, least=0)
    if n >= 2**64:
        raise ValueError(f"`n` must be below 2**64, got {n}.")
    random.seed(n)
    np.random.seed(n % 2**32)
    torch.manual_seed(n)


def set_rng_states(states: dict[str, Any]) -> None:
    """Restore the global generators."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    np.random.set_state(tuple(states["numpy"]))
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def states_for_rank(states: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return states of the global generators for process ``rank`` of several, a function of ``states`` and the rank.

    Process 0 has ``states`` themselves, so that it samples what a single process would.
    """
    if not rank:
        return states
    generator = torch.Generator()
    generator.set_state(states["torch"])
    seed = int(torch.randint(2**31, (), generator=generator)) + rank
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.RandomState(seed).get_state())
    others = {"python": random.Random(seed).getstate(), "torch": torch.Generator().manual_seed(seed).get_state()}
    for device in ("cuda", "mps"):
        if device in states:
            one = torch.Generator(device).manual_seed(seed).get_state()
            others[device] = [one.clone() for _ in states["cuda"]] if device == "cuda" else one
    return {**states, **others, "numpy": [kind, keys.tolist(), *rest]}


def is_generator(value: Any) -> bool:
    """Return whether ``value`` is a random generator of torch, NumPy or Python whose state can be read."""
    return _is_generator_class(value.__class__)


@lru_cache(maxsize=4096)
def _is_generator_class(cls: type) -> bool:
    return issubclass(cls, generator_types()) and not issubclass(cls, random.SystemRandom)


def is_global_generator(generator: Any) -> bool:
    """Return whether a generator is one of the process, which ``set_seed`` seeds and ``set_rng_states`` restores.

    Other objects hold it where they hold one of its methods, as in ``self.noise = random.gauss``.

    >>> is_global_generator(random.gauss.__self__), is_global_generator(random.Random(3))
    (True, False)
    """
    owners: list[Any] = [random.seed, np.random.get_state]
    ours = [owner.__self__ for owner in owners]  # both are methods of the generator
    bits = vars(np.random)["get_bit_generator"]()
    return any(generator is one for one in (*ours, bits, torch.default_generator, *torch.cuda.default_generators))


def generator_kind(generator: Any) -> str:
    """Return the name of a generator's type, from which ``make_generator`` makes another.

    >>> generator_kind(np.random.default_rng(0)), generator_kind(random.Random(0))
    ('Generator PCG64', 'Random')
    """
    inner = f" {type(generator.bit_generator).__name__}" if isinstance(generator, np.random.Generator) else ""
    return f"{type(generator).__name__}{inner}"


def make_generator(kind: str) -> Any:
    """Return a new generator of a kind, or None where it is not one of torch, NumPy or Python itself."""
    name, _, inner = kind.partition(" ")
    if inner:
        bit_generator = getattr(np.random, inner, None)
        return None if bit_generator is None else np.random.Generator(bit_generator())
    if kind == "Generator":
        return torch.Generator()
    maker = {"Random": random.Random, "RandomState": np.random.RandomState}.get(name)
    return None if maker is None else maker()


def generator_state(generator: Any) -> Any:
    """Return the state of a generator, as a tensor or plain values.

    >>> generator = np.random.Generator(np.random.MT19937(0))
    >>> state = generator_state(generator)
    >>> first = generator.random()
    >>> set_generator_state(generator, state)
    >>> generator.random() == first
    True
    """
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return _as_lists(generator.get_state(legacy=False))
    bit_generator = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return _as_lists(bit_generator.state)


def set_generator_state(generator: Any, state: Any) -> None:
    """Restore a state that ``generator_state`` returned."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_as_arrays(state))
    else:
        bit_generator = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
        bit_generator.state = _as_arrays(state)


def _as_lists(state: Any) -> Any:
    """Return a state of NumPy's without arrays, which a checkpoint could not hold."""
    if isinstance(state, dict):
        return {name: _as_lists(value) for name, value in state.items()}
    return ["array", str(state.dtype), state.tolist()] if isinstance(state, np.ndarray) else state


def _as_arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _as_arrays(value) for name, value in state.items()}
    return np.array(state[2], dtype=state[1]) if isinstance(state, list) and state[:1] == ["array"] else state
