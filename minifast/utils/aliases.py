"""Other names for arguments: fastai v1's names, and old names of our own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from minifast.utils.public import warn_caller

P = ParamSpec("P")
R = TypeVar("R")


def accept_aliases(**aliases: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that lets a function take keyword arguments under aliases, given as ``alias="name"``.

    Raises:
        TypeError: the function is called with an argument under both names.

    >>> @accept_aliases(cyc_len="epochs")
    ... def fit(epochs):
    ...     return epochs
    >>> fit(cyc_len=2)
    2
    """
    return _translate(aliases, warn=False)


def rename_arguments(**aliases: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Do the same for the old names of renamed arguments, ``old="new"``, with a DeprecationWarning."""
    return _translate(aliases, warn=True)


def _translate(aliases: dict[str, str], warn: bool) -> Callable[[Callable[P, R]], Callable[P, R]]:
    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            for alias in aliases.keys() & kwargs.keys():
                name = aliases[alias]
                if name in kwargs:
                    raise TypeError(f"{function.__name__} got `{alias}` and `{name}`, two names of one argument.")
                if warn:
                    warn_caller(
                        f"{function.__name__}: `{alias}` is now called `{name}`; the old name will be removed in "
                        f"version 0.3.",
                        DeprecationWarning,
                    )
                kwargs[name] = kwargs.pop(alias)
            return function(*args, **kwargs)

        return wrapper

    return decorate


def under_name(name: str, function: Callable[P, R]) -> Callable[P, R]:
    """Return a function under another name, which errors about its arguments have too.

    >>> def fit(epochs):
    ...     return epochs
    >>> under_name("train", fit)(n=1)
    Traceback (most recent call last):
    TypeError: train() got an unexpected keyword argument 'n'
    """

    @wraps(function)
    def renamed(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            text = str(error)
            if text.startswith(function.__name__):
                error.args = (name + text.removeprefix(function.__name__),)
            raise

    renamed.__name__ = renamed.__qualname__ = name
    renamed.__doc__ = f"Do what ``{function.__name__}`` does, under another name."
    return renamed


def deprecated_attribute(old: str, new: str) -> Any:
    """Return a property that reads and sets the attribute ``new`` under its ``old`` name, with a warning."""

    def warn(instance: Any) -> None:
        warn_caller(
            f"{type(instance).__name__}.{old} is now called {new}; the old name will be removed in version 0.3.",
            DeprecationWarning,
        )

    def read(instance: Any) -> Any:
        warn(instance)
        return getattr(instance, new)

    def write(instance: Any, value: Any) -> None:
        warn(instance)
        setattr(instance, new, value)

    return property(read, write, doc=f"The old name of ``{new}``.")
