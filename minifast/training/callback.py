"""What a callback is, and the check of its contract."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
import weakref
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

from minifast.errors import CallbackError
from minifast.training.state import EVENTS, FIRST_KNOWN
from minifast.utils.checks import did_you_mean

if TYPE_CHECKING:
    from minifast.learner.learner import Learner
from minifast.utils.state import is_setting
from minifast.utils.tensors import is_plain
from minifast.utils.walk import changing_attributes

ORDER = {event: position for position, event in enumerate(EVENTS)}


def snake_case(name: str) -> str:
    """Turn a class's name into an attribute's.

    >>> snake_case("OneCycleScheduler"), snake_case("LRFinder"), snake_case("MyCSVLogger")
    ('one_cycle_scheduler', 'lr_finder', 'my_csv_logger')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def check_callbacks(callbacks: list[Any]) -> list[Callback]:
    """Return ``callbacks`` if each is an instance of Callback.

    Raises:
        TypeError: one is a class, or something else.
    """
    for callback in callbacks:
        if isinstance(callback, type):
            raise TypeError(
                f"callbacks holds the class {callback.__name__}; give an instance of it, "
                f"or put the class into callback_fns, which makes one for each fit."
            )
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks holds {callback!r}, which is no Callback; derive its class from Callback.")
    return callbacks


def check_callback_fns(makers: list[Any]) -> list[Callable[[Any], Callback]]:
    """Return ``makers`` if each can be called with a learner.

    Raises:
        TypeError: one is a callback, or cannot be called.
    """
    for maker in makers:
        if isinstance(maker, Callback) or not callable(maker):
            raise TypeError(
                f"callback_fns holds {maker!r}; give a class or function that makes a callback from a learner, "
                f"and put callbacks themselves into callbacks."
            )
    return makers


class Wants(NamedTuple):
    """What one event method asks for: the fields it needs, those it takes if known, and whether it takes all."""

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    everything: bool


def wants(method: Callable[..., Any], event: str, where: str) -> Wants:
    """Read what ``method`` asks for from its signature, and refuse what ``event`` cannot give.

    Raises:
        CallbackError: a parameter without a default is no field, is first known at a later event, or is
            positional-only.
    """
    needed: list[str] = []
    optional: list[str] = []
    everything = False
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            everything = True
        elif parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise CallbackError(f"{where} takes {name} by position only; fields come by name: leave out the '/'.")
        elif parameter.default is not parameter.empty:
            if name in FIRST_KNOWN:
                optional.append(name)
        elif name not in FIRST_KNOWN:
            raise CallbackError(
                f"{where} asks for {name}, but there is no such field.{did_you_mean(name, FIRST_KNOWN)}"
            )
        elif ORDER[FIRST_KNOWN[name]] > ORDER[event]:
            raise CallbackError(
                f"{where} asks for {name}, which is first known at {FIRST_KNOWN[name]}; "
                f"override that event or a later one, or give the parameter a default."
            )
        else:
            needed.append(name)
    return Wants(tuple(needed), tuple(optional), everything)


def overrides(owner: type | Callback, event: str) -> Callable[..., Any] | None:
    """Return the method with which a class or an instance overrides ``event``, or None."""
    method: Callable[..., Any] = getattr(owner, event)
    return None if getattr(method, "__func__", method) is getattr(Callback, event) else method


def check_contract(owner: type | Callback) -> None:
    """Hold a callback to the contract: only events that exist, only fields that are known at them.

    Runs when a class is defined, and again when a fit starts, for methods that were set on an instance.
    """
    name = owner.__name__ if isinstance(owner, type) else type(owner).__name__
    for attribute in dir(owner):
        if attribute.startswith("on_") and attribute not in EVENTS and callable(getattr(owner, attribute)):
            raise CallbackError(f"{name}.{attribute}: there is no such event.{did_you_mean(attribute, EVENTS)}")
    for event in EVENTS:
        method = overrides(owner, event)
        if method is None:
            continue
        if isinstance(inspect.getattr_static(owner, event), FunctionType) and isinstance(owner, type):
            method = MethodType(method, owner)  # so that the first parameter, however it is called, is left out
        wants(method, event, f"{name}.{event}")


RENAMED = {"_watches": "fit_only", "_sets": "controls", "_settings": "must_match"}


class Callback:
    """The base of all callbacks: override the events you want, and name as parameters the fields you read.

    An event returns None or a dict of the fields it changes. Fields and events are checked when the class is defined;
    the table of both is ``minifast.training.EVENTS``. ``**kwargs`` receives all that is known. ``_order`` decides who
    goes first (lower first); a later callback sees what an earlier one changed. A callback that only watches or writes
    (it stops early, saves, logs) sets ``_watches = True`` and takes no part in ``lr_find``, ``validate``
    and ``get_preds``.

    >>> class StopEarly(Callback):
    ...     def on_batch_end(self, iteration, train):
    ...         if train and iteration == 9:
    ...             return {"stop_epoch": True, "stop_training": True}
    """

    _order: int = 0
    fit_only: bool = False
    controls: tuple[str, ...] = ()  # hyper-parameters of the optimizer that the learner puts back when the fit ends

    must_match: tuple[str, ...] = ()  # attributes that must be the same when a checkpointed run resumes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for old, new in RENAMED.items():
            if old in vars(cls):
                warnings.warn(
                    f"{cls.__name__}.{old} is now called {new}; the old name goes in version 0.3.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                setattr(cls, new, vars(cls)[old])
        check_contract(cls)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> Any:
        """Once, before the first epoch."""

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> Any:
        """At the start of each epoch, the model in training mode."""

    def on_batch_begin(self, *args: Any, **kwargs: Any) -> Any:
        """Before the forward pass of each batch, in training and validation."""

    def on_loss_begin(self, *args: Any, **kwargs: Any) -> Any:
        """After the forward pass, before the loss, in training and validation."""

    def on_backward_begin(self, *args: Any, **kwargs: Any) -> Any:
        """After the loss, before the backward pass; training only."""

    def on_backward_end(self, *args: Any, **kwargs: Any) -> Any:
        """After the backward pass, before the optimizer's step; training only."""

    def on_step_end(self, *args: Any, **kwargs: Any) -> Any:
        """After the optimizer's step, before the gradients go; training only."""

    def on_batch_end(self, *args: Any, **kwargs: Any) -> Any:
        """After each batch, in training and validation."""

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> Any:
        """After each epoch's validation."""

    def on_train_end(self, *args: Any, **kwargs: Any) -> Any:
        """Once, at the end, whatever happened; ``exception`` is what ended the run early, or False."""

    def jump_to_epoch(self, epoch: int) -> None:
        """When training starts at an epoch other than 0."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this callback: its attributes that are tensors or plain values."""
        return {name: value for name, value in vars(self).items() if is_plain(value)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        The arguments of ``__init__`` are not restored: those of an observer (``fit_only``) may change from the run to
        its resumed part, and the new ones are used; those of other callbacks must be the same, as ``must_match``.

        Raises:
            CallbackError: an argument differs that must be the same.
        """
        arguments = self._arguments()
        observes = self.fit_only and not self.controls
        for name in (*self.must_match, *(() if observes else arguments)):
            mine = getattr(self, name)
            # NaN does not equal itself, but its text does.
            if name in state and state[name] != mine and repr(state[name]) != repr(mine):
                raise CallbackError(
                    f"The run was started with {name}={state[name]!r} of {type(self).__name__}, and now it is "
                    f"{mine!r}; pass the same value, or choose another checkpoint name."
                )
        vars(self).update({name: value for name, value in state.items() if name not in arguments})

    def _arguments(self) -> list[str]:
        """Return the names of attributes that hold arguments of ``__init__`` as they were given."""
        classes = [cls for cls in type(self).__mro__ if "__init__" in vars(cls) and issubclass(cls, Callback)]
        names = {name for cls in classes for name in inspect.signature(vars(cls)["__init__"]).parameters}
        settings = {name: value for name, value in vars(self).items() if name in names}
        cls: Any = type(self)
        changing = changing_attributes(cls)
        return [name for name, value in settings.items() if name not in changing and is_setting(value)]


class LearnerCallback(Callback):
    """A callback that belongs to a learner: ``self.learn``, and ``learn.my_callback`` for a class ``MyCallback``.

    What the callback itself does not have is looked up in the learner. The reference is weak: a callback does not keep
    a learner and its model alive. One that is made without a learner belongs to the learner that trains with it.
    """

    def __init__(self, learn: Learner | None = None) -> None:
        self._adopted = learn is None
        if learn is not None:
            self._belong(learn)

    def adopt(self, learn: Learner) -> None:
        """Belong to ``learn``, unless the callback was made with a learner."""
        if self.__dict__.get("_adopted", False) or "_learn" not in self.__dict__:
            self._belong(learn)

    def _belong(self, learn: Learner) -> None:
        self.learn = learn
        name = snake_case(type(self).__name__)
        if not isinstance(getattr(learn, name, self), Callback):
            raise CallbackError(
                f"A callback {type(self).__name__} would replace learn.{name}; give its class another name."
            )
        setattr(learn, name, self)

    @property
    def learn(self) -> Learner:
        """The learner that this callback belongs to."""
        learn: Learner | None = self.__dict__.get("_learn", lambda: None)()
        if learn is None:
            reason = "it is gone; keep a reference to it" if "_learn" in self.__dict__ else "set its learn"
            raise CallbackError(f"This {type(self).__name__} has no learner: {reason}.")
        return learn

    @learn.setter
    def learn(self, learn: Learner) -> None:
        self._learn = weakref.ref(learn)

    def __getattr__(self, name: str) -> Any:
        learn = self.__dict__.get("_learn", lambda: None)()
        if name.startswith("_") or learn is None:
            learner = "" if name.startswith("_") else ", and no learner to look it up in; set its `learn`"
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{learner}.")
        return getattr(learn, name)

    def __getstate__(self) -> dict[str, Any]:
        # The learner is not pickled with it; it belongs to the next learner that trains with it.
        return {name: value for name, value in self.__dict__.items() if name != "_learn"} | {"_adopted": True}

    def __deepcopy__(self, memo: dict[int, Any]) -> LearnerCallback:
        """Return a copy; it belongs to the copy of its learner, if the learner is copied with it."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        state = copy.deepcopy(self.__getstate__(), memo)
        getattr(copied, "__setstate__", copied.__dict__.update)(state)
        learn = self.__dict__.get("_learn", lambda: None)()
        if learn is not None and id(learn) in memo:
            copied.learn = memo[id(learn)]
        return copied


def attach_callbacks(learn: Learner) -> None:
    """Let the callbacks of a copied or unpickled learner belong to it; a copy of a callback alone has no learner."""
    waiting: list[Any] = [value for value in vars(learn).values() if isinstance(value, (Callback, list))]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, LearnerCallback) and "_learn" not in vars(value):
            value.learn = learn
        parts = vars(value).values() if isinstance(value, Callback) else value
        waiting += [part for part in parts if isinstance(part, (Callback, list, tuple))]
