"""The base classes of callbacks, and the check of their contract."""

from __future__ import annotations

import copy
import inspect
import re
import weakref
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

from minifast.errors import CallbackError
from minifast.training.state import EVENTS, FIRST_KNOWN
from minifast.training.torch_optimizer import is_scheduler, scheduler_remedy
from minifast.utils.checks import did_you_mean, module_name, passed_on
from minifast.utils.public import public, warn_caller
from minifast.utils.saved_state import is_setting
from minifast.utils.tensors import is_plain
from minifast.utils.walk import changing_attributes

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

ORDER = {event: position for position, event in enumerate(EVENTS)}


def snake_case(name: str) -> str:
    """Return the name of a class in snake case.

    >>> snake_case("OneCycleScheduler"), snake_case("LRFinder"), snake_case("MyCSVLogger")
    ('one_cycle_scheduler', 'lr_finder', 'my_csv_logger')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def check_callbacks(callbacks: list[Any]) -> list[Callback]:
    """Return ``callbacks`` if all are instances of Callback.

    Raises:
        TypeError: one of them is not.
    """
    for callback in callbacks:
        check_no_scheduler("callbacks", callback)
        if isinstance(callback, type):
            raise TypeError(
                f"callbacks holds the class {callback.__name__}; pass an instance of it, "
                f"or put the class into callback_fns, which creates a callback for each fit."
            )
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks holds {callback!r}, which is not a Callback; derive its class from Callback.")
    return callbacks


def check_no_scheduler(where: str, value: Any) -> None:
    """Raise a TypeError if a value is a torch scheduler, with the callback that steps one."""
    if is_scheduler(value):
        raise TypeError(f"{where} holds a scheduler of torch, which is not a Callback; {scheduler_remedy(value)}")


def check_callback_fns(makers: list[Any]) -> list[Callable[[Any], Callback]]:
    """Return ``makers`` if all are callable.

    Raises:
        TypeError: one of them is not callable, or is a callback.
    """
    for maker in makers:
        check_no_scheduler("callback_fns", maker)
        if isinstance(maker, Callback) or not callable(maker):
            raise TypeError(
                f"callback_fns holds {maker!r}; pass a class or function that creates a callback from a learner, "
                f"and put a callback itself into callbacks."
            )
    return makers


class Fields(NamedTuple):
    """The fields that an event method takes: required ones, optional ones, and whether it takes all (``**kwargs``)."""

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    everything: bool


def fields_of(method: Callable[..., Any], event: str, where: str) -> Fields:
    """Return the fields that the signature of ``method`` names.

    Raises:
        CallbackError: a parameter without a default is no field, is not known yet at ``event``, or is positional-only.
    """
    function = getattr(method, "__func__", None)
    if isinstance(method, MethodType) and isinstance(function, FunctionType):
        return _fields_of_method(function, event, where)
    return _fields_of(inspect.signature(method), event, where)


@lru_cache(maxsize=1024)
def _fields_of_method(function: FunctionType, event: str, where: str) -> Fields:
    """Read the signature once per class: each run of each learner asks again."""
    return _fields_of(inspect.signature(MethodType(function, function)), event, where)


def _fields_of(signature: inspect.Signature, event: str, where: str) -> Fields:
    needed: list[str] = []
    optional: list[str] = []
    everything = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            everything = True
        elif parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise CallbackError(f"{where} takes {name} by position only; fields are passed by name: leave out the '/'.")
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
    return Fields(tuple(needed), tuple(optional), everything)


def overrides(owner: type | Callback, event: str) -> Callable[..., Any] | None:
    """Return the method of a class or instance that overrides ``event``, or None."""
    method: Callable[..., Any] = getattr(owner, event)
    return None if getattr(method, "__func__", method) is getattr(Callback, event) else method


def check_contract(owner: type | Callback) -> None:
    """Raise an error if a callback names an event or a field that does not exist, or a field before it is known.

    This runs when a class is defined, and again when a fit starts, for methods that were set on an instance.
    """
    name = owner.__name__ if isinstance(owner, type) else type(owner).__name__
    for attribute in dir(owner) if isinstance(owner, type) else vars(owner):
        if attribute.startswith("on_") and attribute not in EVENTS and callable(getattr(owner, attribute)):
            raise CallbackError(f"{name}.{attribute}: there is no such event.{did_you_mean(attribute, EVENTS)}")
    for event in EVENTS:
        method = overrides(owner, event)
        if method is None:
            continue
        if isinstance(inspect.getattr_static(owner, event), FunctionType) and isinstance(owner, type):
            method = MethodType(method, owner)  # so that the signature lacks the first parameter, whatever its name
        fields_of(method, event, f"{name}.{event}")


RENAMED = {"_watches": "fit_only", "_sets": "controls", "_settings": "must_match"}


class Callback:
    """Base class of all callbacks: override events, and name the fields that you read as parameters.

    An event returns None or a dict of the fields that it changes. Events and fields are checked when the class is
    defined; ``minifast.training.EVENTS`` lists both, and ``**kwargs`` receives all fields known so far.

    Attributes:
        _order: callbacks with a lower number are called first; later ones see the changes of earlier ones.
        fit_only: True for a callback that only observes, stops or saves. It is left out of ``lr_find``, ``validate``
            and ``get_preds``.
        controls: the hyper-parameters of the optimizer that the callback sets; the end of the fit restores them.
        must_match: the attributes that must be the same when a checkpointed run is resumed.

    >>> class StopEarly(Callback):
    ...     def on_batch_end(self, iteration, train):
    ...         if train and iteration == 9:
    ...             return {"stop_epoch": True, "stop_training": True}
    """

    _order: int = 0
    _once: bool = False  # whether each event is called the first time only
    fit_only: bool = False
    controls: tuple[str, ...] = ()
    must_match: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for old, new in RENAMED.items():
            if old in vars(cls):
                warn_caller(
                    f"{cls.__name__}.{old} is now called {new}; the old name will be removed in version 0.3.",
                    DeprecationWarning,
                )
                setattr(cls, new, vars(cls)[old])
        if module_name(cls).startswith("minifast.") and isinstance(vars(cls).get("__init__"), FunctionType):
            cls.__init__ = public(cls.__init__)  # type: ignore[method-assign]
        check_contract(cls)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> Any:
        """Run before the first epoch."""

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> Any:
        """Run at the start of each epoch, with the model in training mode."""

    def on_batch_begin(self, *args: Any, **kwargs: Any) -> Any:
        """Run before the forward pass of each batch, in training and validation."""

    def on_loss_begin(self, *args: Any, **kwargs: Any) -> Any:
        """Run after the forward pass and before the loss, in training and validation."""

    def on_backward_begin(self, *args: Any, **kwargs: Any) -> Any:
        """Run after the loss and before the backward pass, in training."""

    def on_backward_end(self, *args: Any, **kwargs: Any) -> Any:
        """Run after the backward pass and before the optimizer step, in training."""

    def on_step_end(self, *args: Any, **kwargs: Any) -> Any:
        """Run after the optimizer step and before the gradients are cleared, in training."""

    def on_batch_end(self, *args: Any, **kwargs: Any) -> Any:
        """Run after each batch, in training and validation."""

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> Any:
        """Run after the validation of each epoch."""

    def on_train_end(self, *args: Any, **kwargs: Any) -> Any:
        """Run at the end of the fit in any case; ``exception`` is what ended it early, or False."""

    def jump_to_epoch(self, epoch: int) -> None:
        """Run before the first epoch where training starts at another epoch than 0."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint saves: the attributes that are tensors or plain values."""
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


class NoLearnerError(CallbackError, AttributeError):
    """A callback has no learner; ``hasattr`` and ``getattr`` with a default take it for a missing attribute."""


class LearnerCallback(Callback):
    """A callback that belongs to a learner: ``self.learn``, and ``learn.my_callback`` for a class ``MyCallback``.

    Attributes that the callback lacks are looked up in the learner. The reference is weak, so a callback does not keep
    a learner and its model alive. A callback without a learner gets the first learner that uses it.
    """

    def __init__(self, learn: Learner | None = None) -> None:
        if isinstance(learn, (str, int, float, list, tuple, dict)):
            names = list(inspect.signature(type(self)).parameters)
            hint = f"; write {names[1]}={learn!r}" if len(names) > 1 else ""
            raise TypeError(f"`learn` must be a Learner or None, got {learn!r}{hint}.")
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
        learn = self._current_learner()
        if learn is None:
            raise self._no_learner()
        return learn

    @learn.setter
    def learn(self, learn: Learner) -> None:
        self._learn = weakref.ref(learn)

    def __getattr__(self, name: str) -> Any:
        learn = self._current_learner()
        if name == "learn":  # Python asks here after the property raised an AttributeError
            raise self._no_learner()
        if name.startswith("_") or learn is None:
            learner = "" if name.startswith("_") else ", and no learner to look it up in; set its `learn`"
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{learner}.")
        return passed_on(self, learn, name)

    def _current_learner(self) -> Learner | None:
        reference = self.__dict__.get("_learn")
        return None if reference is None else reference()

    def _no_learner(self) -> NoLearnerError:
        reason = "it is gone; keep a reference to it" if "_learn" in self.__dict__ else "set its `learn`"
        return NoLearnerError(f"This {type(self).__name__} has no learner: {reason}.")

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


def adopt_callbacks(learn: Learner, callbacks: Iterable[Callback]) -> None:
    """Give the callbacks and metrics that belong to no learner yet the learner that uses them."""
    for callback in callbacks:
        if isinstance(callback, LearnerCallback):
            callback.adopt(learn)
