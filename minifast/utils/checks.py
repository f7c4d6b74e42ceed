"""Checks of arguments, with messages that name the value, what is allowed and what to do."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minifast.errors import DataError


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Name the closest of ``options`` as a question, or say nothing when none is close.

    >>> did_you_mean("on_bach_end", ["on_batch_end", "on_epoch_end"])
    ' Did you mean on_batch_end?'
    >>> did_you_mean("xyz", ["on_batch_end"])
    ''
    """
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Return ``value`` if it is a whole number of at least ``least``; a bool or a float is refused."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; it must be a whole number such as 2.")
    number: int = operator.index(value)
    if number < least:
        raise ValueError(f"{name} is {number}; it must be at least {least}.")
    return number


def check_number(
    name: str, value: Any, above: float | None = None, low: float | None = None, high: float | None = None
) -> float:
    """Return ``value`` as a float if it is finite, greater than ``above`` and within ``low`` and ``high``."""
    if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; it must be a number.")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; it must be a finite number.")
    if above is not None and number <= above:
        raise ValueError(f"{name} is {number:g}; it must be greater than {above:g}.")
    if low is not None and number < low:
        raise ValueError(f"{name} is {number:g}; it must be at least {low:g}.")
    if high is not None and number > high:
        raise ValueError(f"{name} is {number:g}; it must be at most {high:g}.")
    return number


def check_once(what: str, names: Sequence[Any], way_out: str) -> None:
    """Refuse names that stand there twice.

    >>> check_once("classes names", ["cat", "cat"], "name each class once")
    Traceback (most recent call last):
    minifast.errors.DataError: classes names 'cat' twice; name each class once.
    """
    seen: set[Any] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{what} {name!r} twice; {way_out}.")
        seen.add(name)


def few(names: Iterable[Any], most: int = 5) -> str:
    """Name the first of several things, and say how many more there are.

    >>> few("abc"), few("abcdefg")
    ('a, b, c', 'a, b, c, d, e and 2 more')
    """
    names = list(map(str, names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_folder(path: Path) -> Path:
    """Return ``path`` if there is such a folder."""
    if not path.is_dir():
        raise DataError(f"There is no folder {path}; check the path.")
    return path


def check_callable(name: str, value: Any) -> Any:
    """Return ``value`` if it can be called; a class of modules is refused, since an instance is meant."""
    if isinstance(value, type) and hasattr(value, "forward"):
        raise TypeError(f"{name} is the class {value.__name__}; give an instance of it: {value.__name__}().")
    if not callable(value):
        raise TypeError(f"{name} is {value!r}, which cannot be called; give a function, such as torch's.")
    return value


def import_optional(module: str, what: str, install: str) -> Any:
    """Return a module that ``what`` needs and the rest does not, or say how to install its package.

    >>> import_optional("json", "Reading", "json").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{what} needs a package that cannot be imported here ({error}); "
            f'python -m pip install "{install}" brings it.'
        ) from error


def arguments_of(function: Any) -> tuple[list[str], int] | None:
    """Return the names of the arguments that a function takes by place, and how many must be given; None if unknown.

    >>> arguments_of(lambda p, peak=1.0: p)
    (['p', 'peak'], 1)
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some of NumPy's and Python's own have none
        return None
    by_place = [p for p in parameters if p.kind < p.VAR_POSITIONAL]
    return [p.name for p in by_place], sum(p.default is p.empty for p in by_place)


def note(error: BaseException, text: str) -> None:
    """Add a line below an error's message in its traceback; Python 3.10 knows no notes and goes without."""
    if hasattr(error, "add_note"):
        error.add_note(text)


def check_word(name: str, value: Any, words: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``words``."""
    if value not in words:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, words))}.")
    return str(value)
