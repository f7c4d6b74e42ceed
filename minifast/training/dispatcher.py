"""The dispatcher: brings events to callbacks, and what they return into the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from minifast.errors import CallbackError
from minifast.training.callback import Callback, Wants, check_contract, overrides, wants
from minifast.training.state import EVENTS, FIRST_KNOWN, State
from minifast.utils.checks import add_note, did_you_mean


class Call(NamedTuple):
    """One entry of the plan: what makes the call, with the fields that the method asks for, and its name for errors."""

    make: Callable[[], Any]
    name: str


class Dispatcher:
    """Brings each event to the callbacks that override it, and what they return into the state.

    Metrics go before callbacks, and only see validation. Callbacks go by ``_order``, then in the order given. The plan
    (who overrides what, and asks for which fields) is made once, here.
    """

    def __init__(self, state: State, callbacks: Sequence[Callback], metrics: Sequence[Callback] = ()) -> None:
        self.state = state
        self.callbacks = sorted(callbacks, key=lambda callback: callback._order)
        self.metrics = list(metrics)
        for callback in (*self.metrics, *self.callbacks):
            check_contract(callback)
        self._known: list[str] = []
        self._seen: set[str] = set()
        self._calls = {event: self._plan(event, self.callbacks) for event in EVENTS}
        self._metric_calls = {event: self._plan(event, self.metrics) for event in EVENTS}

    def _plan(self, event: str, callbacks: Sequence[Callback]) -> list[Call]:
        plan = []
        for callback in callbacks:
            if method := overrides(callback, event):
                name = f"{type(callback).__name__}.{event}"
                plan.append(Call(self._call(method, wants(method, event, name)), name))
        return plan

    def _call(self, method: Callable[..., Any], asked: Wants) -> Callable[[], Any]:
        # What is asked for is known here, once; what is left for each batch is to fetch it.
        state, known = self.state, self._known
        needed, optional, everything = asked
        if everything or optional:

            def make() -> Any:
                names = known if everything else [name for name in optional if name in known]
                return method(**{name: getattr(state, name) for name in (*names, *needed)})

            return make
        if len(needed) > 1:
            fetch = attrgetter(*needed)
            return lambda: method(**dict(zip(needed, fetch(state), strict=True)))
        if needed:
            (only,) = needed
            return lambda: method(**{only: getattr(state, only)})
        return method

    def __call__(self, event: str, metrics: bool = False, callbacks: bool = True) -> None:
        """Let ``event`` happen for the ``callbacks``, and before them, where that is said, for the ``metrics``."""
        if event not in self._seen:
            self._seen.add(event)
            self._known += EVENTS[event].first_known
        if metrics:
            for make, name in self._metric_calls[event]:
                self._take(make(), event, name)
        for make, name in self._calls[event] if callbacks else ():
            changes = make()
            if changes is not None:
                self._take(changes, event, name)

    def jump_to_epoch(self) -> None:
        """Tell every callback where training starts, if that is not at epoch 0 and not a run that goes on."""
        if self.state.epoch and not self.state.iteration:
            self.state.pbar.epochs_done(self.state.epoch, self.state.n_epochs)
            for callback in (*self.metrics, *self.callbacks):
                callback.jump_to_epoch(self.state.epoch)

    def end(self) -> None:
        """Close the bar and let ``on_train_end`` happen for every callback, also when one of them fails.

        The first failure is raised, or noted on the exception that ended the run.
        """
        state = self.state
        failures: list[BaseException] = []
        self._known += EVENTS["on_train_end"].first_known
        closing = Call(lambda: state.pbar.close(interrupted=bool(state.exception)), "the bar")
        for make, name in (closing, *self._metric_calls["on_train_end"], *self._calls["on_train_end"]):
            try:
                self._take(make(), "on_train_end", name)
            except BaseException as failure:  # a Ctrl-C here must not keep the others from closing
                failures.append(failure)
        # An exception knows the frames it came through; a frame that knows the exception would keep the learner alive.
        ended_by, state.exception = state.exception, False
        try:
            if failures and not ended_by:
                raise failures[0]
            if failures and isinstance(ended_by, BaseException):
                add_note(ended_by, f"While the run was ended, this failed too: {failures!r}")
        finally:
            del failures, ended_by

    def _take(self, changes: Any, event: str, where: str) -> None:
        if changes is None:
            return
        if not isinstance(changes, dict):
            example = next(iter(EVENTS[event].may_return), None)
            hint = f", such as {{'{example}': ...}}" if example else ", and this one changes none"
            raise CallbackError(
                f"{where} returned {changes!r}; an event returns None or a dict of the fields it changes{hint}."
            )
        allowed = EVENTS[event].may_return
        for name, value in changes.items():
            if name not in allowed:
                events = [other for other, spec in EVENTS.items() if name in spec.may_return]
                reason = f"it may be returned at {', '.join(events)}." if events else "no callback may change it."
                if name not in FIRST_KNOWN:
                    reason = f"there is no such field.{did_you_mean(name, allowed)}"
                raise CallbackError(f"{where} returned {name}: {reason}")
            setattr(self.state, name, value)
