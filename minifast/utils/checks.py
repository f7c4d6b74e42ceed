"""Checks of arguments, with messages that say what is wrong, what is allowed and what to do."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import operator
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from minifast.errors import DataError


def closest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that was probably meant, or None where none is close.

    Of options that are about as close, the one that begins alike comes first. A word of four letters or more may also
    be the beginning of an option.

    >>> closest("vit_tinny", ["gcvit_tiny", "vit_tiny_patch16_224"]), closest("xyz", ["on_batch_end"])
    ('vit_tiny_patch16_224', None)
    """

    def likeness(option: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, option, word).ratio()
        beginning = option[: len(word)]
        part = 0.95 * difflib.SequenceMatcher(None, beginning, word).ratio() if len(word) >= 4 else 0.0
        best = max(whole if whole >= 0.6 else 0.0, part if part >= 0.75 and option[:1] == word[:1] else 0.0)
        alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(option, word, strict=False)))
        return best and best + 0.1 * alike / max(1, len(word)), whole

    best = max(options, key=likeness, default=None)
    return None if best is None or not likeness(best)[0] else best


def module_name(value: Any) -> str:
    """Return the name of the module that defines a class or a function; an empty string where it is not known.

    The type of a compiled function has a descriptor in place of the name.

    >>> module_name(Path), module_name(type("A", (), {"__module__": None}))
    ('pathlib', '')
    """
    name = getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return a question with the ``closest`` of ``options``, or an empty string where none is close.

    >>> did_you_mean("on_bach_end", ["on_batch_end", "on_epoch_end"])
    ' Did you mean on_batch_end?'
    >>> did_you_mean("xyz", ["on_batch_end"])
    ''
    """
    option = closest(word, options)
    return f" Did you mean {option}?" if option is not None else ""


class MissingAttributeError(AttributeError):
    """Neither an object nor the one that it passes attribute access on to has an attribute."""

    def __init__(self, owner: object, other: object, name: str) -> None:
        super().__init__(name)
        self.objects = owner, other

    def __str__(self) -> str:  # only now, because hasattr needs no text
        name, (owner, other) = self.args[0], self.objects
        known = [] if name.startswith("_") else [own for own in (*dir(owner), *dir(other)) if not own.startswith("_")]
        return f"{type(owner).__name__} has no attribute {name!r}.{did_you_mean(name, known)}"

    def __reduce__(self) -> tuple[type[AttributeError], tuple[str]]:
        return AttributeError, (str(self),)


def passed_on(owner: object, other: object, name: str) -> Any:
    """Return an attribute of ``other`` for the ``__getattr__`` of ``owner``; an error names the class of ``owner``.

    >>> from types import SimpleNamespace
    >>> passed_on(SimpleNamespace(epochs=1), SimpleNamespace(losses=[]), "epoch")
    Traceback (most recent call last):
    minifast.utils.checks.MissingAttributeError: SimpleNamespace has no attribute 'epoch'. Did you mean epochs?
    """
    if hasattr(type(owner), name):  # a property that raised an AttributeError: raise that one
        return object.__getattribute__(owner, name)
    try:
        return getattr(other, name)
    except AttributeError:
        if hasattr(type(other), name):
            raise
    raise MissingAttributeError(owner, other, name)


def in_backticks(name: str) -> str:
    """Return the name of an argument in backticks; a description of several words stays as it is.

    >>> in_backticks("lr"), in_backticks("each of moms")
    ('`lr`', 'each of moms')
    """
    return name if " " in name else f"`{name}`"


def shown(value: Any) -> str:
    """Return what an error shows of a value: its repr on one line, cut short; of a tensor or array its shape.

    >>> import torch
    >>> shown("a"), shown(torch.zeros(2, 3)), len(shown("a" * 1000))
    ("'a'", 'a Tensor of shape (2, 3)', 100)
    """
    shape = getattr(value, "shape", None)
    if shape is not None and type(shape).__name__ in ("Size", "tuple") and math.prod(shape) > 4:
        kind = type(value).__name__
        return f"{'an' if kind == 'ndarray' else 'a'} {kind} of shape {tuple(shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Return ``value`` as an int if it is an integer of at least ``least``.

    Raises:
        TypeError: the value is no integer; a bool and a float are none.
        ValueError: the value is below ``least``.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{in_backticks(name)} must be an integer, got {shown(value)} of type {type(value).__name__}.")
    number: int = operator.index(value)
    if number < least:
        raise ValueError(f"{in_backticks(name)} must be at least {least}, got {number}.")
    return number


def check_number(
    name: str, value: Any, above: float | None = None, low: float | None = None, high: float | None = None
) -> float:
    """Return ``value`` as a float if it is finite, greater than ``above`` and within ``low`` and ``high``.

    Raises:
        TypeError: the value is no number.
        ValueError: the value is NaN, infinite or out of range.
    """
    label = in_backticks(name)
    if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
        raise TypeError(f"{label} must be a number, got {shown(value)} of type {type(value).__name__}.")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{label} must be finite, got {number}.")
    if above is not None and number <= above:
        allowed = f"greater than {above:g}" if above else "positive"
        raise ValueError(f"{label} must be {allowed}, got {number:g}.")
    if low is not None and number < low:
        raise ValueError(f"{label} must be at least {low:g}, got {number:g}.")
    if high is not None and number > high:
        raise ValueError(f"{label} must be at most {high:g}, got {number:g}.")
    return number


def check_once(what: str, names: Sequence[Any], way_out: str) -> None:
    """Raise an error if a name occurs twice in ``names``.

    >>> check_once("classes names", ["cat", "cat"], "name each class once")
    Traceback (most recent call last):
    minifast.errors.DataError: classes names 'cat' twice; name each class once.
    """
    seen: set[Any] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{what} {name!r} twice; {way_out}.")
        seen.add(name)


def shortlist(names: Iterable[Any], most: int = 5) -> str:
    """Return the first ``most`` names as one text, with the number of the others.

    >>> shortlist("abc"), shortlist("abcdefg")
    ('a, b, c', 'a, b, c, d, e and 2 more')
    """
    names = list(map(str, names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(n: int, one: str, many: str = "") -> str:
    """Return a number with its noun.

    >>> counted(1, "batch", "batches"), counted(2, "step")
    ('1 batch', '2 steps')
    """
    return f"{n} {one if n == 1 else many or one + 's'}"


def check_folder(path: Path) -> Path:
    """Return ``path`` if it is an existing folder.

    Raises:
        DataError: the folder does not exist.
    """
    if not path.is_dir():
        raise DataError(f"There is no folder {path}; check the path.")
    return path


def check_callable(name: str, value: Any, advice: str = "pass a function, such as torch's") -> Any:
    """Return ``value`` if you can call it; else an error gives the advice.

    Raises:
        TypeError: the value is not callable, or is a class of modules where an instance is needed.
    """
    if isinstance(value, type) and hasattr(value, "forward"):
        raise TypeError(
            f"{in_backticks(name)} is the class {value.__name__}; pass an instance of it: {value.__name__}()."
        )
    if not callable(value):
        raise TypeError(f"{in_backticks(name)} must be callable, got {shown(value)}; {advice}.")
    return value


def import_optional(module: str, feature: str, install: str) -> Any:
    """Return a module that only ``feature`` needs.

    Args:
        module: the module's name.
        feature: what needs the module, as the error message names it.
        install: what pip installs to get the module.

    Raises:
        ImportError: the module cannot be imported; the message has the command that installs it.

    >>> import_optional("json", "Reading", "json").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{feature} needs a package that cannot be imported ({error}); "
            f'install it with: python -m pip install "{install}".'
        ) from error


def arguments_of(function: Any) -> tuple[list[str], int] | None:
    """Return the names of a function's positional arguments and how many are required; None if unknown.

    >>> arguments_of(lambda p, peak=1.0: p)
    (['p', 'peak'], 1)
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions of NumPy and Python have no signature
        return None
    positional = [p for p in parameters if p.kind < p.VAR_POSITIONAL]
    return [p.name for p in positional], sum(p.default is p.empty for p in positional)


def bound_arguments(function: Any) -> dict[str, Any]:
    """Return the keyword arguments that ``functools.partial`` bound to a function; none for any other value.

    >>> bound_arguments(partial(int, base=2)), bound_arguments(int)
    ({'base': 2}, {})
    """
    return function.keywords if isinstance(function, partial) else {}


def told(error: BaseException) -> str:
    """Return the class and the message of an error in one line, as Python shows it.

    >>> told(KeyError("oops")), told(KeyboardInterrupt())
    ("KeyError: 'oops'", 'KeyboardInterrupt')
    """
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def add_note(error: BaseException, text: str) -> None:
    """Add a line below an error's message in its traceback.

    Python 3.10 does not print it, IPython does from 8.14 on; of an earlier one the line becomes part of the message.
    """
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:
        error.__notes__ = [*getattr(error, "__notes__", []), text]
    ipython = sys.modules.get("IPython")
    is_early = ipython is not None and ipython.get_ipython() is not None and ipython.version_info < (8, 14)
    if is_early and error.args and str(error) == error.args[0]:
        error.args = (f"{error.args[0]}\n{text}", *error.args[1:])


def check_word(name: str, value: Any, words: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``words``.

    Raises:
        ValueError: it is none of them.
    """
    if value not in words:
        raise ValueError(f"{in_backticks(name)} must be one of {', '.join(map(repr, words))}, got {shown(value)}.")
    return str(value)
