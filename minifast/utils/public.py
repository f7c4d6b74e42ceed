"""What every public function and module does for its user: suggest the right name, and keep tracebacks short."""

from __future__ import annotations

import difflib
import dis
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any, ParamSpec, TypeVar

from minifast.utils.checks import closest, did_you_mean, shortlist

P = ParamSpec("P")
R = TypeVar("R")
Class = TypeVar("Class", bound=type)

PACKAGE = str(Path(__file__).parents[1]) + os.sep
WRAPPERS = (__file__, str(Path(__file__).with_name("aliases.py")))  # files whose frames say nothing

MISSPELLED = 0.85  # likeness of a word to the name of which it is a misspelling
# Names of other libraries for what we call by the first of these names that a function takes.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("n_epoch", "n_epochs", "num_epochs", "max_epochs", "nb_epochs", "epoch"), ("epochs",)),
    **dict.fromkeys(("lr", "learning_rate", "lr_max", "base_lr", "max_lr"), ("max_lr", "lr_max", "lr", "start_lr")),
    **dict.fromkeys(("cbs", "callback", "cb"), ("callbacks", "callback_fns")),
    **dict.fromkeys(("metric", "mets"), ("metrics",)),
    **dict.fromkeys(("loss", "loss_fn", "criterion", "crit", "loss_function"), ("loss_func",)),
    **dict.fromkeys(("opt", "optimizer", "optim", "opt_fn"), ("opt_func",)),
    **dict.fromkeys(("dls", "dataloaders", "databunch"), ("data",)),
    **dict.fromkeys(("batch_size", "train_batch_size"), ("bs",)),
    **dict.fromkeys(("val_batch_size", "valid_batch_size", "valid_bs"), ("val_bs",)),
    **dict.fromkeys(("weight_decay", "decay"), ("wd",)),
    **dict.fromkeys(("momentum", "mom", "momentums"), ("moms", "mom")),
    **dict.fromkeys(("train_loader", "train_dataloader", "trn_dl"), ("train_dl",)),
    **dict.fromkeys(("val_dl", "val_loader", "valid_loader", "validation_data", "val_dataloader"), ("valid_dl",)),
    **dict.fromkeys(("val_ds", "validation_set"), ("valid_ds",)),
    **dict.fromkeys(("num_iter", "n_iter", "num_steps", "num_training"), ("num_it",)),
    **dict.fromkeys(("valid_percent", "val_pct", "valid_size", "test_size", "validation_split"), ("valid_pct",)),
    **dict.fromkeys(("img_size", "image_size", "item_size", "sz"), ("size",)),
    **dict.fromkeys(("batch_tfms", "item_tfms", "tfms", "transforms"), ("ds_tfms", "dl_tfms")),
    **dict.fromkeys(("arch", "backbone", "network"), ("base_arch", "arch")),
    **dict.fromkeys(("dropout", "drop"), ("ps",)),
    **dict.fromkeys(("splitter",), ("split_on",)),
    **dict.fromkeys(("fname", "file_name", "filename"), ("file", "fname", "filename")),
    **dict.fromkeys(("with_optim", "save_optimizer"), ("with_opt",)),
    **dict.fromkeys(("dynamic_axes", "dynamic_shapes"), ("dynamic_axes",)),
}
# Where to give what a function does not take.
ELSEWHERE = {
    "max_lr": "The learning rate is an argument of fit, fit_one_cycle and lr_find.",
    "epochs": "The number of epochs is an argument of fit and fit_one_cycle.",
    "metrics": "Metrics are an argument of Learner.",
    "loss_func": "The loss function is an argument of Learner and DataBunch.",
    "opt_func": "The optimizer is an argument of Learner: opt_func.",
    "callbacks": "Callbacks are an argument of Learner, fit and fit_one_cycle.",
    "bs": "The batch size belongs to the loaders that you pass, or to DataBunch.create(bs=...).",
    "device": "The device is an argument of DataBunch, its constructors such as from_folder, and load_learner.",
    "moms": "The momentum is an argument of fit_one_cycle (moms), or of the optimizer in opt_func.",
    "valid_dl": "Validation data are an argument of DataBunch.",
    "dynamic_axes": "The size of the batch is dynamic already; all other sizes are those of the data.",
}


def show_all() -> bool:
    """Return whether tracebacks show all frames: the environment has ``MINIFAST_DEBUG=1``."""
    return os.environ.get("MINIFAST_DEBUG", "") not in ("", "0")


def name_here(name: str, allowed: Collection[str]) -> str | None:
    """Return which of the ``allowed`` names has the meaning that ``name`` has in other libraries; None if none has.

    >>> name_here("batch_size", ["epochs", "bs"])
    'bs'
    """
    return next((own for own in OTHER_NAMES.get(name, ()) if own in allowed), None)


def name_meant(name: str, allowed: Collection[str], others: Mapping[str, str] | None = None) -> str | None:
    """Return which of the ``allowed`` names was probably meant, also by a misspelled name of other libraries.

    Args:
        name: the name that was given.
        allowed: the names that there are.
        others: more names elsewhere, and what they mean here; they come first.

    >>> name_meant("batch_size", ["epochs", "bs"]), name_meant("bach_size", ["epochs", "bs"]), name_meant("x", ["bs"])
    ('bs', 'bs', None)
    """
    others = {} if others is None else others
    meanings = {known: others.get(known) or name_here(known, allowed) for known in (*others, *OTHER_NAMES)}
    meanings = {known: own for known, own in meanings.items() if own in allowed}
    if name in meanings:
        return meanings[name]
    long = [known for known in meanings if len(known) > 3]  # shorter ones are close to too much
    # Names elsewhere are so many that one is a little like any word, so only a misspelled one counts.
    misspelled = (difflib.get_close_matches(name, names, 1, MISSPELLED) for names in (allowed, long))
    close = next((match for matches in misspelled for match in matches), None)
    if close is None:
        return closest(name, allowed)
    return close if close in allowed else meanings[close]


def keyword_error(function: str, unknown: str, allowed: Iterable[str]) -> TypeError:
    """Return the error for a keyword argument that ``function`` does not take, with what was probably meant.

    >>> keyword_error("Learner.fit", "cbs", ["epochs", "lr", "callbacks"])
    TypeError('Learner.fit has no argument `cbs`. Did you mean `callbacks`?')
    """
    allowed = list(allowed)
    others = OTHER_NAMES.get(unknown, ())
    meant = name_here(unknown, allowed)
    elsewhere = next((ELSEWHERE[name] for name in (*others, unknown) if name in ELSEWHERE), "")
    if meant is not None:
        hint = f"Did you mean `{meant}`?"
    elif elsewhere:
        hint = elsewhere
    elif (close := name_meant(unknown, allowed)) is not None:
        hint = f"Did you mean `{close}`?"
    else:
        hint = f"It takes {shortlist(allowed, most=30)}." if allowed else "It takes no arguments."
    return TypeError(f"{function} has no argument `{unknown}`. {hint}")


def check_keywords(function: str, given: Iterable[str], *takers: Callable[..., Any], but: Collection[str] = ()) -> None:
    """Raise an error if none of ``takers`` takes a keyword argument that ``function`` passes on, or it is in ``but``.

    >>> check_keywords("make", {"ndmin": 1}, lambda ndmin: None)
    """
    allowed = [name for taker in takers for name in named_parameters(taker) if name not in but]
    for name in given:
        if name not in allowed:
            raise keyword_error(function, name, dict.fromkeys(allowed))


def named_parameters(function: Callable[..., Any]) -> list[str]:
    """Return the names under which a function takes arguments.

    >>> named_parameters(lambda self, x, *rest, y=0, **others: None)
    ['x', 'y']
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in (*named, *typed_options(function)) if name not in ("self", "cls")]


def typed_options(function: Any) -> list[str]:
    """Return the keywords of a TypedDict ``Options`` that a function takes as ``**options: Unpack[Options]``."""
    for parameter in inspect.signature(function).parameters.values():
        name = str(parameter.annotation).removeprefix("Unpack[").removesuffix("]")
        if parameter.kind is parameter.VAR_KEYWORD and name in getattr(function, "__globals__", {}):
            return list(getattr(function.__globals__[name], "__annotations__", ()))
    return []


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that suggests the right argument for an unknown one, and hides our frames from tracebacks.

    An unknown keyword argument is a TypeError with the argument that was probably meant. Any error that comes out of
    the function has its frames inside minifast marked with ``__tracebackhide__``, except one: the last if it raised the
    error, else the first; and those of torch, except the last. IPython and pytest leave marked frames out;
    ``MINIFAST_DEBUG=1`` shows them. The traceback of Ctrl-C ends at the user's last line, wherever it came.

    >>> @public
    ... def fit(epochs):
    ...     return epochs
    >>> fit(n_epoch=1)
    Traceback (most recent call last):
    TypeError: fit has no argument `n_epoch`. Did you mean `epochs`?
    """

    has_options = bool(typed_options(function))

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        if has_options and (wrong := _clearer(function, args, kwargs)) is not None:
            raise wrong
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            __tracebackhide__ = not show_all()
            never_began = all(step.tb_frame.f_code.co_filename in WRAPPERS for step in _steps(error.__traceback__))
            is_unknown = never_began and isinstance(error, TypeError) and "unexpected keyword" in str(error)
            clearer = _clearer(function, args, kwargs) if is_unknown else None
            if clearer is not None:
                raise clearer from None
            hide_frames(error)
            raise

    return wrapper


def _clearer(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> TypeError | None:
    """Return the error for the first keyword that the function does not take; None if it takes all."""
    allowed = named_parameters(function)
    unknown = next((name for name in kwargs if name not in allowed), None)
    if unknown is None:
        return None
    name = function.__qualname__.rpartition("<locals>.")[2]
    if "." in name and args:
        owner = args[0] if isinstance(args[0], type) else type(args[0])
        name = f"{owner.__name__}.{function.__name__}".removesuffix(".__init__")
    return keyword_error(name, unknown, allowed)


def public_class(*, but: Collection[str] = ()) -> Callable[[Class], Class]:
    """Return a decorator that makes ``__init__`` and the public methods of a class ``public``, except ``but``."""

    def decorate(cls: Class) -> Class:
        for name, value in list(vars(cls).items()):
            if name in but or (name.startswith("_") and name != "__init__"):
                continue
            if isinstance(value, FunctionType):
                setattr(cls, name, public(value))
            elif isinstance(value, (classmethod, staticmethod)):
                setattr(cls, name, type(value)(public(value.__func__)))
        return cls

    return decorate


def hide_frames(error: BaseException) -> None:
    """Mark the frames inside minifast, except one, and those of torch, so that IPython and pytest do not show them."""
    seen: set[int] = set()
    following: list[BaseException | None] = [error]
    hide = not show_all()
    while following:
        current = following.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        _mark(current.__traceback__, hide, isinstance(current, KeyboardInterrupt))
        following += [current.__cause__, current.__context__]


def _mark(trace: TracebackType | None, hide: bool, is_interrupt: bool) -> None:
    if trace is None or trace.tb_next is None:
        return
    steps = list(_steps(trace.tb_next))  # the wrapper itself still runs, and is hidden already
    frames = [step.tb_frame for step in steps]
    ours = [frame for frame in frames if frame.f_code.co_filename.startswith(PACKAGE)]
    telling = [frame for frame in ours if frame.f_code.co_filename not in WRAPPERS]
    shown = telling[-1 if telling[-1] is frames[-1] else 0] if telling else None
    libraries = library_folders() if is_interrupt else _torch_folder()
    theirs = [frame for frame in frames if frame.f_code.co_filename.startswith(libraries) and frame not in ours]
    if is_interrupt and hide:  # front ends show the last frame, even if it is marked
        last = max((i for i, frame in enumerate(frames) if frame is shown or frame not in (*ours, *theirs)), default=-1)
        if last >= 0:
            steps[last].tb_next = None
    for frame in (*ours, *(frame for frame in theirs if frame is not frames[-1])):
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # other frames have no variables of their own
            frame.f_locals["__tracebackhide__"] = hide and frame is not shown


def library_folders() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed packages."""
    import sysconfig  # here, because it imports a module that is not in the list of the standard library's

    return tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def _torch_folder() -> tuple[str, ...]:
    torch = getattr(sys.modules.get("torch"), "__file__", None)
    return (str(Path(torch).parent) + os.sep,) if torch else ()


def _steps(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def suggest_names(module_name: str) -> None:
    """Let an unknown name of a module raise an error with the name that was probably meant.

    Call it at the end of the module. Type checkers do not see it, so they still report unknown names.
    """
    module: Any = sys.modules[module_name]

    def missing(name: str) -> Any:
        own = vars(module).get("__all__") or [
            known for known, value in vars(module).items() if getattr(value, "__module__", "") == module_name
        ]
        raise unknown_name(module_name, name, own)

    module.__getattr__ = missing


def unknown_name(
    module_name: str, name: str, names: Iterable[str], what: str = "attribute"
) -> AttributeError | ImportError:
    """Return the error for a name that a module does not have; to be raised in its ``__getattr__``.

    Python replaces the text of an AttributeError in ``from module import name``, so that is answered by an ImportError.
    """
    if name.startswith("_"):  # Python and its tools look for such names
        return AttributeError(f"module {module_name!r} has no attribute {name!r}", name=name, obj=None)
    message = f"{module_name} has no {what} {name!r}.{did_you_mean(name, names)}"
    frame = sys._getframe(2)  # of the code that asks for the name
    if frame.f_lasti >= 0 and dis.opname[frame.f_code.co_code[frame.f_lasti]] == "IMPORT_FROM":
        return ImportError(message, name=module_name)
    return AttributeError(message, name=name, obj=None)  # without the object, Python adds no second suggestion


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the line of the user's code: the first one outside of minifast."""
    warnings.warn(message, category, stacklevel=frames_to_caller())


def frames_to_caller() -> int:
    """Return the ``stacklevel`` with which a warning names the first line outside of minifast.

    Lines of torch, such as those of ``torch.no_grad``, are not outside.
    """
    inside = (PACKAGE, *_torch_folder())
    frame = inspect.currentframe()
    level = 0
    while frame is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


suggest_names("minifast.errors")  # it stands before this module in the layout
