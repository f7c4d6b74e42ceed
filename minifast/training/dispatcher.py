"""The dispatcher: calls the events of callbacks and writes what they return into the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from minifast.errors import CallbackError
from minifast.training.callback import Callback, Fields, check_contract, fields_of, overrides
from minifast.training.state import EVENTS, FIRST_KNOWN, TRAIN_END, State
from minifast.utils.checks import add_note, did_you_mean
from minifast.utils.walk import package_of


class Call(NamedTuple):
    """A planned call of an event method: a function without arguments, and the name for error messages."""

    make: Callable[[], Any]
    name: str


def _raise_first(failures: list[BaseException], ended_by: BaseException | bool) -> None:
    """Raise the most important failure with the others as notes; after ``ended_by``, only a Ctrl-C is raised."""
    interrupts = [failure for failure in failures if not isinstance(failure, Exception)]
    raised = next(iter(interrupts or (() if ended_by else failures)), None)
    main = ended_by if raised is None else raised
    try:
        others = [failure for failure in failures if failure is not main]
        if others and isinstance(main, BaseException):
            add_note(main, f"While the run was ended, this failed too: {others!r}")
        if raised is not None:
            raise raised
    finally:
        del interrupts, raised, main, others, failures, ended_by


class Dispatcher:
    """Calls each event of the callbacks that override it, and writes what they return into the state.

    Metrics are called before callbacks, in validation only. Callbacks are called by ``_order``, then in the order
    given. Which methods exist and which fields they take is decided once, when the dispatcher is created.

    Args:
        state: the state of the loop.
        callbacks: the callbacks.
        metrics: the metrics, as callbacks.
        agree: calls an event method of a callback that is not minifast's, and returns what it returned in one of
            several processes, so that all continue alike.
    """

    def __init__(
        self,
        state: State,
        callbacks: Sequence[Callback],
        metrics: Sequence[Callback] = (),
        agree: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> None:
        self.state = state
        self._agree = agree
        self.callbacks = sorted(callbacks, key=lambda callback: callback._order)
        self.metrics = list(metrics)
        for callback in (*self.metrics, *self.callbacks):
            check_contract(callback)
        self._known: list[str] = []
        self._seen: set[str] = set()
        self._calls = {event: self._plan(event, self.callbacks) for event in EVENTS}
        lasting = [callback for callback in self.callbacks if not callback._once]
        once = [callback for callback in self.callbacks if callback._once]
        events = [event for event in EVENTS if any(overrides(callback, event) for callback in once)]
        self._once = {event: self._plan(event, lasting) for event in events}  # the calls from the second time on
        self._metric_calls = {event: self._plan(event, self.metrics) for event in EVENTS}

    def _plan(self, event: str, callbacks: Sequence[Callback]) -> list[Call]:
        plan = []
        for callback in callbacks:
            if method := overrides(callback, event):
                name = f"{type(callback).__name__}.{event}"
                call = self._call(method, fields_of(method, event, name))
                # What minifast's own decide follows from values that all processes share.
                owner: Any = callback.__class__
                if self._agree is not None and EVENTS[event].may_return and package_of(owner) != "minifast":
                    call = partial(self._agree, call)
                plan.append(Call(call, name))
        return plan

    def _call(self, method: Callable[..., Any], fields: Fields) -> Callable[[], Any]:
        # The fields are decided here, once; a batch only fetches their values.
        state, known = self.state, self._known
        needed, optional, everything = fields
        if everything or optional:

            def make() -> Any:
                names = known if everything else [name for name in optional if name in known]
                return method(**{name: getattr(state, name) for name in (*names, *needed)})

            return make
        if not needed:
            return method
        fetch = attrgetter(*needed)
        code = getattr(method, "__code__", None)
        if len(needed) > 1:
            if code is not None and code.co_varnames[1 : code.co_argcount] == tuple(needed):
                return lambda: method(*fetch(state))  # takes less time than by name
            return lambda: method(**dict(zip(needed, fetch(state), strict=True)))
        (only,) = needed
        return lambda: method(**{only: fetch(state)})

    def __call__(self, event: str, metrics: bool = False, callbacks: bool = True) -> None:
        """Call ``event`` of the metrics, if ``metrics`` is set, and then of the callbacks, if ``callbacks`` is set."""
        if event not in self._seen:
            self._seen.add(event)
            self._known += EVENTS[event].first_known
        if metrics:
            for make, name in self._metric_calls[event]:
                self._take(make(), event, name)
        if not callbacks:
            return
        for make, name in self._calls[event]:
            changes = make()
            if changes is not None:
                self._take(changes, event, name)
        if event in self._once:
            self._calls[event] = self._once.pop(event)

    def jump_to_epoch(self) -> None:
        """Call ``jump_to_epoch`` of all callbacks where training starts at a later epoch and is not resumed."""
        if self.state.epoch and not self.state.iteration:
            self.state.pbar.epochs_done(self.state.epoch, self.state.n_epochs)
            for callback in (*self.metrics, *self.callbacks):
                callback.jump_to_epoch(self.state.epoch)

    def end(self) -> None:
        """Close the progress bar and call ``on_train_end`` of every callback, also where one of them fails.

        The first failure is raised, or added as a note to the exception that ended the run; a Ctrl-C is always raised.
        Further failures become notes too.
        """
        state = self.state
        if not state.exception:
            state.stage = TRAIN_END
        failures: list[BaseException] = []
        self._known += EVENTS["on_train_end"].first_known
        closing = Call(lambda: state.pbar.close(interrupted=bool(state.exception)), "the bar")
        for make, name in (closing, *self._metric_calls["on_train_end"], *self._calls["on_train_end"]):
            try:
                self._take(make(), "on_train_end", name)
            except BaseException as failure:  # the other callbacks must still be called, even after a Ctrl-C
                failures.append(failure)
        # An exception holds its frames; a frame that holds the exception would keep the learner alive.
        ended_by, state.exception = state.exception, False
        try:
            _raise_first(failures, ended_by)
        finally:
            del failures, ended_by

    def _take(self, changes: Any, event: str, where: str) -> None:
        if changes is None:
            return
        if not isinstance(changes, dict):
            example = next(iter(EVENTS[event].may_return), None)
            hint = f", such as {{'{example}': ...}}" if example else ", and this one changes none"
            raise CallbackError(
                f"{where} returned {changes!r}; an event returns None or a dict of the fields that it changes{hint}."
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
