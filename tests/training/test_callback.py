"""The contract of callbacks: what may be asked for, what may be returned, who goes first, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import tempfile
import weakref
from functools import partial, wraps
from pathlib import Path

import pytest
import torch
from conftest import toy_learner

from minifast import (
    Callback,
    CallbackError,
    Learner,
    LearnerCallback,
    NonFiniteLossError,
    OneCycleScheduler,
    Recorder,
    accuracy,
    add_metrics,
    error_rate,
)
from minifast.callbacks.ema import EMACallback
from minifast.training import EVENTS
from minifast.training.callback import snake_case
from minifast.training.state import FIRST_KNOWN, State

EVENT_NAMES = list(EVENTS)


def test_the_table_of_events_is_consistent() -> None:
    assert EVENT_NAMES == [
        "on_train_begin",
        "on_epoch_begin",
        "on_batch_begin",
        "on_loss_begin",
        "on_backward_begin",
        "on_backward_end",
        "on_step_end",
        "on_batch_end",
        "on_epoch_end",
        "on_train_end",
    ]
    fields = [field for event in EVENTS.values() for field in event.first_known]
    assert len(fields) == len(set(fields)), "a field is first known once"
    known: set[str] = set()
    for event in EVENTS.values():
        known |= set(event.first_known)
        assert set(event.may_return) <= known | {"stop_training", "skip_validate"}, "what may be changed is known"
        assert len(event.may_return) == len(set(event.may_return))
    state = State(1, None)
    assert all(hasattr(state, field) for field in fields)
    assert all(callable(getattr(Callback, name)) for name in EVENT_NAMES)
    assert {name for name in dir(Callback) if name.startswith("on_")} == set(EVENT_NAMES)


def test_each_event_gives_the_fields_that_the_table_says_are_known_there() -> None:
    known = {}
    hears = Callback()
    for name in EVENT_NAMES:
        setattr(hears, name, lambda name=name, **fields: known.update({name: known.get(name, set(fields))}))
    toy_learner(callbacks=[hears]).fit(1)
    expected: set[str] = set()
    for name, event in EVENTS.items():
        expected |= set(event.first_known)
        assert known[name] == expected, name


def test_all_that_is_known_includes_what_earlier_batches_and_epochs_left() -> None:
    seen = []

    class Hears(Callback):
        def on_batch_begin(self, train, **kwargs):
            seen.append((train, "last_loss" in kwargs, "last_metrics" in kwargs))

    toy_learner(n=40, bs=20, callbacks=[Hears()]).fit(2)
    first, later = (True, False, False), [(True, True, False), (False, True, False), (False, True, False)]
    assert seen == [first, *later, *[(train, True, True) for train in (True, True, False, False)]]


@pytest.mark.parametrize(
    ("event", "suggestion"),
    [
        ("on_bach_end", "Did you mean on_batch_end?"),
        ("on_batch_ends", "Did you mean on_batch_end?"),
        ("on_train_start", "Did you mean on_train_"),
        ("on_epoch_begins", "Did you mean on_epoch_begin?"),
    ],
)
def test_a_misspelt_event_is_an_error_when_the_class_is_defined(event, suggestion) -> None:
    with pytest.raises(CallbackError, match=rf"Mine\.{event}: there is no such event\.") as error:
        type("Mine", (Callback,), {event: lambda self: None})
    assert suggestion in str(error.value)


def test_an_event_like_no_other_is_an_error_without_a_suggestion() -> None:
    with pytest.raises(CallbackError) as error:
        type("Mine", (Callback,), {"on_zzz": lambda self: None})
    assert str(error.value) == "Mine.on_zzz: there is no such event."


@pytest.mark.parametrize("base", [Callback, LearnerCallback])
def test_a_misspelt_field_is_an_error_with_a_suggestion(base) -> None:
    with pytest.raises(CallbackError, match=r"there is no such field\. Did you mean last_loss\?"):

        class Mine(base):
            def on_batch_end(self, lastloss):
                pass


@pytest.mark.parametrize(
    ("event", "field", "first"),
    [
        ("on_train_begin", "stop_training", "on_epoch_begin"),
        ("on_epoch_begin", "last_input", "on_batch_begin"),
        ("on_batch_begin", "last_output", "on_loss_begin"),
        ("on_loss_begin", "last_loss", "on_backward_begin"),
        ("on_batch_end", "last_metrics", "on_epoch_end"),
        ("on_epoch_end", "exception", "on_train_end"),
    ],
)
def test_a_field_that_is_first_known_later_is_an_error_that_says_when(event, field, first) -> None:
    namespace: dict = {}
    exec(f"def {event}(self, {field}): pass", namespace)
    with pytest.raises(CallbackError, match=f"Mine.{event} asks for {field}, which is first known at {first}"):
        type("Mine", (Callback,), {event: namespace[event]})


def test_a_field_by_position_only_is_an_error() -> None:
    with pytest.raises(CallbackError, match="last_loss by position only"):

        class Mine(Callback):
            def on_batch_end(self, last_loss, /):
                pass

    class Fine(Callback):
        def on_batch_end(this, /, last_loss):  # noqa: N805
            pass


def test_the_check_covers_every_class_of_a_family() -> None:
    class Parent(Callback):
        def on_batch_end(self, iteration):
            pass

    class Child(Parent):
        pass

    with pytest.raises(CallbackError, match=r"Child2\.on_epoch_end asks for epcoh"):
        type("Child2", (Child,), {"on_epoch_end": lambda self, epcoh: None})

    class Mixin:
        def on_step_ends(self):
            pass

    with pytest.raises(CallbackError, match="on_step_end"):
        type("Mixed", (Mixin, Callback), {})


def test_parameters_with_a_default_are_the_callbacks_own_or_optional_fields() -> None:
    seen = []

    class Mine(Callback):
        def on_batch_end(self, iteration, scale=10, last_metrics="none yet", *, train=None):
            if train:
                seen.append((iteration, scale, last_metrics if isinstance(last_metrics, str) else "there"))

    toy_learner(n=20, bs=20, callbacks=[Mine()]).fit(2)
    assert seen == [(0, 10, "none yet"), (1, 10, "there")]


def test_events_may_be_static_class_or_wrapped_methods() -> None:
    seen = []

    def logged(method):
        @wraps(method)
        def wrapper(*args, **kwargs):
            seen.append(sorted(kwargs))
            return method(*args, **kwargs)

        return wrapper

    class Mine(Callback):
        @staticmethod
        def on_train_begin(n_epochs):
            seen.append(n_epochs)

        @classmethod
        def on_epoch_begin(cls, epoch):
            seen.append((cls.__name__, epoch))

        @logged
        def on_epoch_end(self, epoch, last_metrics):
            pass

    toy_learner(callbacks=[Mine()]).fit(1)
    assert seen == [1, ("Mine", 0), ["epoch", "last_metrics"]]


def test_a_callback_gets_just_what_it_asks_for() -> None:
    got = []

    class Mine(Callback):
        def on_batch_end(self, *args, iteration, last_loss):
            got.append((args, iteration, float(last_loss)))

    toy_learner(n=20, bs=20, callbacks=[Mine()]).fit(1)
    assert [(args, iteration) for args, iteration, _ in got] == [((), 0), ((), 1)]


@pytest.mark.parametrize(
    ("event", "method", "message"),
    [
        ("on_batch_end", lambda lastloss: None, "asks for lastloss.*Did you mean last_loss"),
        ("on_epoch_begin", lambda last_output: None, "first known at on_loss_begin"),
        ("on_batch_ended", lambda: None, "on_batch_ended: there is no such event. Did you mean on_batch_end"),
    ],
)
def test_methods_set_on_an_instance_are_checked_before_the_first_batch(event, method, message) -> None:
    callback = Callback()
    setattr(callback, event, method)
    learn = toy_learner(callbacks=[callback])
    weights = [p.detach().clone() for p in learn.model.parameters()]
    with pytest.raises(CallbackError, match=message):
        learn.fit(1)
    assert all(torch.equal(before, now) for before, now in zip(weights, learn.model.parameters(), strict=True))


def test_an_attribute_that_cannot_be_called_is_no_event() -> None:
    class Mine(Callback):
        on_device = "cpu"

        def __init__(self):
            self.on_gpu = False

    toy_learner(callbacks=[Mine()]).fit(1)


def test_a_method_set_on_an_instance_is_called() -> None:
    seen = []
    callback = Callback()
    callback.on_epoch_end = lambda epoch: seen.append(epoch)
    toy_learner(callbacks=[callback]).fit(2)
    assert seen == [0, 1]


@pytest.mark.parametrize("returned", [True, False, 0, "stop_epoch", ("stop_epoch", True), ["stop_epoch"]])
def test_anything_but_none_or_a_dict_is_refused(returned) -> None:
    class Mine(Callback):
        def on_batch_end(self):
            return returned

    with pytest.raises(CallbackError, match=r"Mine.on_batch_end returned .*; an event returns None or a dict"):
        toy_learner(callbacks=[Mine()]).fit(1)


@pytest.mark.parametrize("event", EVENT_NAMES)
def test_the_example_in_the_refusal_is_one_that_would_be_taken(event) -> None:
    callback = Callback()
    setattr(callback, event, lambda: True)
    with pytest.raises(CallbackError) as error:
        toy_learner(callbacks=[callback]).fit(1)
    named = [field for field in FIRST_KNOWN if f"'{field}'" in str(error.value)]
    assert set(named) <= set(EVENTS[event].may_return)


def test_none_and_an_empty_dict_change_nothing() -> None:
    callback = Callback()
    for event in EVENT_NAMES:
        setattr(callback, event, lambda: dict())  # noqa: C408
    plain, with_callback = toy_learner(), toy_learner(callbacks=[callback])
    plain.fit(1)
    with_callback.fit(1)
    assert plain.recorder.raw_losses == with_callback.recorder.raw_losses


@pytest.mark.parametrize(
    ("event", "key", "message"),
    [
        ("on_batch_end", "stop_epohc", "there is no such field. Did you mean stop_epoch?"),
        ("on_batch_end", "end_epoch", "there is no such field. Did you mean stop_epoch?"),
        ("on_batch_end", "xyz", "there is no such field."),
        ("on_batch_end", "skip_step", "it may be returned at on_batch_begin, on_loss_begin"),
        ("on_epoch_begin", "epoch", "it may be returned at on_train_begin"),
        ("on_train_begin", "stop_training", "it may be returned at on_epoch_begin"),
        ("on_epoch_end", "iteration", "no callback may change it"),
        ("on_train_end", "stop_training", "it may be returned at on_epoch_begin"),
    ],
)
def test_a_key_that_may_not_be_returned_there_is_refused(event, key, message) -> None:
    callback = Callback()
    setattr(callback, event, lambda: {key: 1})
    with pytest.raises(CallbackError, match=f"returned {key}: ") as error:
        toy_learner(callbacks=[callback]).fit(1)
    assert message in str(error.value)


@pytest.mark.parametrize(("event", "key"), [(event, key) for event in EVENTS for key in EVENTS[event].may_return])
def test_each_key_that_the_table_allows_is_taken(event, key) -> None:
    callback = Callback()
    setattr(callback, event, lambda **known: {key: known.get(key, False)})
    toy_learner(n=20, bs=20, callbacks=[callback]).fit(1)


def in_order(names: list[str], orders: list[int]) -> list[Callback]:
    class Named(Callback):
        heard: list = []  # noqa: RUF012

        def __init__(self, name, order):
            self.name = name
            self._order = order

        def on_train_begin(self):
            self.heard.append(self.name)

    return [Named(name, order) for name, order in zip(names, orders, strict=True)]


def test_lower_order_goes_first_and_equal_order_keeps_the_list() -> None:
    callbacks = in_order(list("abcdef"), [5, -3, 0, 5, -3, 0])
    toy_learner(callbacks=callbacks).fit(1)
    assert callbacks[0].heard == list("becfad")


def test_order_is_the_same_at_every_event() -> None:
    heard = []
    callbacks = []
    for name, order in (("late", 3), ("early", -3)):
        callback = Callback()
        callback._order = order
        for event in EVENT_NAMES:
            setattr(callback, event, lambda event=event, name=name: heard.append((event, name)))
        callbacks.append(callback)
    toy_learner(callbacks=callbacks).fit(1)
    assert [name for _, name in heard] == ["early", "late"] * (len(heard) // 2)
    assert {event for event, _ in heard} == set(EVENT_NAMES)


def test_the_list_is_the_learners_callbacks_then_callback_fns_then_those_of_the_fit() -> None:
    first, made, last = in_order(["callbacks", "callback_fns", "fit"], [0, 0, 0])
    learn = toy_learner(callbacks=[first], callback_fns=[lambda learn: made])
    learn.fit(1, callbacks=[last])
    assert first.heard == ["callbacks", "callback_fns", "fit"]


def test_the_recorder_is_the_first_of_the_callback_fns() -> None:
    class Writes(Callback):
        _order = Recorder._order

        def __init__(self, value):
            self.value = value

        def on_epoch_end(self, last_metrics):
            return {"last_metrics": [last_metrics[0], self.value]}

    learn = toy_learner(metrics=[accuracy], callbacks=[Writes(1.0)], callback_fns=[lambda learn: Writes(2.0)])
    learn.fit(1, callbacks=[Writes(3.0)])
    assert learn.recorder.metrics == [[1.0]]


def test_callback_fns_are_called_anew_for_each_fit_with_the_learner() -> None:
    made = []

    class Mine(LearnerCallback):
        def __init__(self, learn, power=1):
            super().__init__(learn)
            self.power = power
            made.append(self)

    learn = toy_learner(callback_fns=partial(Mine, power=3))
    learn.fit(1)
    learn.fit(1)
    assert len(made) == 2
    assert made[0] is not made[1]
    assert learn.mine is made[1]
    assert learn.mine.power == 3
    assert made[1].learn is learn


def test_one_callback_needs_no_list() -> None:
    class Counts(Callback):
        n = 0

        def on_train_begin(self):
            self.n += 1

    one, other = Counts(), Counts()
    learn = toy_learner(callbacks=one, metrics=accuracy)
    learn.fit(1, callbacks=other)
    assert (one.n, other.n) == (1, 1)
    learn.fit(1)
    assert (one.n, other.n) == (2, 1)


class Plain(Callback):
    pass


@pytest.mark.parametrize("where", ["Learner", "fit", "fit_one_cycle", "append"])
def test_a_class_where_an_instance_is_wanted_is_refused(where) -> None:
    def attempt():
        if where == "Learner":
            toy_learner(callbacks=[Plain])
        elif where == "append":
            learn = toy_learner()
            learn.callbacks.append(Plain)
            learn.fit(1)
        elif where == "fit":
            toy_learner().fit(1, callbacks=[Plain])
        else:
            toy_learner().fit_one_cycle(1, callbacks=Plain)

    with pytest.raises(TypeError, match="callbacks holds the class Plain; pass an instance"):
        attempt()


@pytest.mark.parametrize("thing", [3, "Plain", print, None])
def test_what_is_no_callback_is_refused(thing) -> None:
    with pytest.raises(TypeError, match="which is not a Callback"):
        toy_learner(callbacks=[thing])


def test_an_instance_where_a_class_is_wanted_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"callback_fns holds .*Plain.*callbacks"):
        toy_learner(callback_fns=[Plain()])


@pytest.mark.parametrize("thing", [3, "Plain"])
def test_a_callback_fn_that_cannot_be_called_is_refused_at_once(thing) -> None:
    with pytest.raises(TypeError, match="callback_fns holds"):
        toy_learner(callback_fns=[thing])


def test_a_callback_fn_that_makes_no_callback_is_refused() -> None:
    with pytest.raises(TypeError, match="None, which is not a Callback"):
        toy_learner(callback_fns=[lambda learn: None]).fit(1)


# --- metrics


def test_a_metric_is_a_function_a_partial_or_a_callback() -> None:
    def close_to(output, target, limit):
        return (output.argmax(1) - target).abs().le(limit).float().mean()

    class Counted(Callback):
        def on_epoch_begin(self, **kwargs):
            self.n = 0

        def on_batch_end(self, last_target, train, **kwargs):
            assert not train
            self.n += len(last_target)

        def on_epoch_end(self, last_metrics, **kwargs):
            return add_metrics(last_metrics, self.n)

    class TwoValues(Callback):
        name = "a pair"

        def on_epoch_end(self, last_metrics):
            return {"last_metrics": [*last_metrics, 7]}

    learn = toy_learner(metrics=[accuracy, partial(close_to, limit=1), Counted(), TwoValues()])
    learn.fit(1)
    recorder = learn.recorder
    assert recorder.names == ["epoch", "train_loss", "valid_loss", "accuracy", "close_to", "counted", "a pair", "time"]
    ((first, second, third, fourth),) = recorder.metrics
    assert 0 < first <= 1
    assert (second, third, fourth) == (1.0, 60, 7)


def test_a_metric_is_the_mean_over_all_items_whatever_the_batches() -> None:
    learn = toy_learner(n=50, bs=20, metrics=[accuracy, error_rate])
    learn.fit(1)
    outputs, targets = learn.get_preds()
    expected = float((outputs.argmax(1) == targets).float().mean())
    assert learn.recorder.metrics[0] == pytest.approx([expected, 1 - expected], abs=1e-6)


def test_a_metric_does_not_see_what_belongs_to_training() -> None:
    heard = set()
    metric = Callback()
    for event in EVENT_NAMES:
        setattr(metric, event, lambda event=event, **known: heard.add((event, known.get("train"))))
    toy_learner(metrics=[metric]).fit(2)
    assert {event for event, _ in heard} == {
        "on_train_begin", "on_epoch_begin", "on_batch_begin", "on_batch_end", "on_epoch_end", "on_train_end",
    }  # fmt: skip
    assert {train for event, train in heard if "batch" in event} == {False}


def test_metrics_go_before_callbacks_whatever_the_order() -> None:
    heard = []
    metric, callback = Callback(), Callback()
    metric.on_epoch_end = lambda: heard.append("metric")
    callback.on_epoch_end = lambda: heard.append("callback")
    callback._order = -1000
    toy_learner(metrics=[metric], callbacks=[callback]).fit(1)
    assert heard == ["metric", "callback"]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "accurracy",
            "`metrics` must hold functions .*, got 'accurracy', which is not callable.*Did you mean accuracy",
        ),
        (0.5, r"`metrics` must hold functions .*, got 0\.5, which is not callable"),
        (None, "`metrics` must hold functions .*, got None, which is not callable"),
        (Plain, r"`metrics` must hold instances, got the class Plain; give an instance of it: Plain\(\)"),
    ],
)
def test_what_is_no_metric_is_refused_when_the_learner_is_made(metric, message) -> None:
    with pytest.raises(TypeError, match=message):
        toy_learner(metrics=[metric])


def test_a_metric_appended_later_is_checked_before_the_first_batch() -> None:
    learn = toy_learner()
    learn.metrics.append("accuracy")
    with pytest.raises(TypeError, match="not callable"):
        learn.fit(1)
    assert learn.opt is None or not learn.opt.opt.state


# --- LearnerCallback


@pytest.mark.parametrize(
    ("name", "attribute"),
    [("OneCycleScheduler", "one_cycle_scheduler"), ("LRFinder", "lr_finder"), ("CSVLogger", "csv_logger"),
     ("Mine", "mine"), ("GPUStats2", "gpu_stats2")],
)  # fmt: skip
def test_the_attribute_of_the_learner_is_the_classes_name_in_snake_case(name, attribute) -> None:
    assert snake_case(name) == attribute
    learn = toy_learner()
    callback = type(name, (LearnerCallback,), {})(learn)
    assert getattr(learn, attribute) is callback


def test_what_a_learner_callback_lacks_is_the_learners() -> None:
    class Mine(LearnerCallback):
        data = "its own"

    learn = toy_learner()
    mine = Mine(learn)
    assert mine.model is learn.model
    assert mine.data == "its own"
    assert mine.learn is learn
    assert not hasattr(mine, "no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        mine.no_such_thing  # noqa: B018
    with pytest.raises(AttributeError, match="_private"):
        mine._private  # noqa: B018


def test_a_learner_callback_does_not_take_the_place_of_what_the_learner_has() -> None:
    class Model(LearnerCallback):
        pass

    learn = toy_learner(callback_fns=[Model])
    model = learn.model
    with pytest.raises(CallbackError, match=r"Model.*learn\.model"):
        learn.fit(1)
    assert learn.model is model


def test_a_learner_callback_that_forgot_its_base_says_so() -> None:
    class Forgot(LearnerCallback):
        def __init__(self, learn):
            self.mine = 1

    with pytest.raises((AttributeError, CallbackError), match="learn"):
        Forgot(toy_learner()).model  # noqa: B018


def test_a_learner_callback_may_set_learn_itself() -> None:
    class Own(LearnerCallback):
        def __init__(self, learn):
            self.learn = learn

    learn = toy_learner()
    assert Own(learn).model is learn.model


@pytest.mark.parametrize("remake", [copy.copy, copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_a_copied_learner_callback_waits_for_its_learner(remake) -> None:
    learn = toy_learner()
    twin = remake(Pickled(learn, 3))
    assert twin.power == 3
    with pytest.raises((AttributeError, CallbackError), match="learn"):
        twin.model  # noqa: B018
    twin.learn = learn
    assert twin.model is learn.model


class Pickled(LearnerCallback):
    def __init__(self, learn, power):
        super().__init__(learn)
        self.power = power


def test_a_learner_callback_whose_learner_is_gone_says_so() -> None:
    gc.freeze()  # the collection is of this test's objects only, and takes no time
    learn = toy_learner()
    callback = Pickled(learn, 1)
    del learn
    gc.collect()
    with pytest.raises(CallbackError, match="This Pickled has no learner: it is gone"):
        callback.learn  # noqa: B018


def fit_and_more(learn: Learner) -> None:
    learn.fit(1)
    learn.lr_find(num_it=5)
    learn.fit_one_cycle(1, callbacks=[Pickled(learn, 1)])
    learn.validate()
    learn.get_preds()


def fit_with_an_error(learn: Learner) -> None:
    class Raises(Callback):
        def on_batch_end(self):
            raise RuntimeError

    with contextlib.suppress(RuntimeError):
        learn.fit(1, callbacks=[Raises()])


def fit_with_an_error_at_the_end(learn: Learner) -> None:
    class Raises(Callback):
        def on_train_end(self):
            raise RuntimeError

    with contextlib.suppress(RuntimeError):
        learn.fit(1, callbacks=[Raises()])


def interrupted(learn: Learner) -> None:
    class Interrupts(Callback):
        def on_batch_end(self):
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        learn.fit(1, callbacks=[Interrupts()])


def kept(learn: Learner) -> None:
    with tempfile.TemporaryDirectory() as folder:
        learn.path = Path(folder)
        learn.fit(2, checkpoint="run", every=1)


def lost(learn: Learner) -> None:
    learn.loss_func = lambda output, target: output.sum() * float("nan")
    with contextlib.suppress(NonFiniteLossError):
        learn.fit(2)
    with pytest.warns(UserWarning, match="are restored"):
        learn.fit(2, on_nan="restore")


def nothing(learn: Learner) -> None:
    pass


ENDS = [nothing, fit_and_more, fit_with_an_error, fit_with_an_error_at_the_end, interrupted, kept, lost]


@pytest.mark.parametrize("use", ENDS)
def test_a_learner_goes_with_its_last_reference(use) -> None:
    learn = toy_learner(callback_fns=[partial(Pickled, power=2)])
    gc.disable()
    try:
        use(learn)
        gone = weakref.ref(learn)
        model = weakref.ref(learn.model)
        del learn
        assert gone() is None
        assert model() is None
    finally:
        gc.enable()


def test_a_scheduler_of_ones_own_lives_in_callback_fns() -> None:
    learn = toy_learner(callback_fns=partial(OneCycleScheduler, lr_max=0.01))
    learn.fit(1)
    assert max(learn.recorder.lrs) == 0.01


# --- learners of callbacks


class Helper(LearnerCallback):
    """Does nothing."""


class UsesHelpers(LearnerCallback):
    """Holds two callbacks of one class, which look up attributes of the learner."""

    def __init__(self, learn=None):
        super().__init__(learn)
        self.helpers = []

    def on_train_begin(self):
        self.helpers = self.helpers or [Helper(self.learn), Helper(self.learn)]

    def on_batch_end(self):
        assert all(helper.model is self.learn.model for helper in self.helpers)


class KnowsItsLearner(LearnerCallback):
    """A metric that reads its learner."""

    name = "parameters"

    def on_epoch_end(self, last_metrics):
        return {"last_metrics": [*last_metrics, sum(1 for _ in self.model.parameters())]}


def test_callbacks_inside_a_callback_work_in_a_fit_and_in_lr_find() -> None:
    learn = toy_learner(callbacks=[UsesHelpers()])
    learn.fit(1)
    learn.lr_find(num_it=5)
    learn.fit(1)


def test_a_learner_callback_as_a_metric_has_its_learner() -> None:
    learn = toy_learner(metrics=[KnowsItsLearner()])
    assert learn.validate()[1] == len(list(learn.model.parameters()))
    learn = toy_learner(metrics=[KnowsItsLearner()])
    learn.fit(1)
    assert learn.recorder.metrics == [[len(list(learn.model.parameters()))]]


def test_without_a_learner_attributes_are_missing() -> None:
    callback = Helper()
    assert not hasattr(callback, "shape")
    assert not hasattr(callback, "learn")
    assert getattr(callback, "model", 3) == 3
    with pytest.raises(CallbackError, match="This Helper has no learner: set its `learn`"):
        callback.learn  # noqa: B018


def test_callbacks_of_a_copied_learner_belong_to_the_copy() -> None:
    learn = toy_learner(callbacks=[Helper()]).to_fp16()
    learn.fit(1)
    for remake in (copy.deepcopy, lambda learn: pickle.loads(pickle.dumps(learn))):
        copied = remake(learn)
        copied.fit(1)
        assert all(callback.learn is copied for callback in copied.callbacks)
        assert copied.recorder.learn is copied
    assert all(callback.learn is learn for callback in learn.callbacks)


class Fails(Callback):
    """Raises an error at the end of the fit."""

    def __init__(self, error):
        self.error = error

    def on_train_end(self):
        raise self.error


class Ends(Callback):
    """Raises an error in the first batch."""

    def on_batch_end(self):
        raise ValueError("first")


def notes_of(error: BaseException) -> str | None:
    """Return the notes of an error; Python 3.10 has none."""
    return "".join(getattr(error, "__notes__", [])) if hasattr(error, "add_note") else None


def test_of_several_failures_at_the_end_none_is_lost() -> None:
    failing = [Fails(RuntimeError("second")), Fails(KeyError("third"))]
    with pytest.raises(RuntimeError, match="second") as alone:
        toy_learner(callbacks=failing).fit(1)
    assert "third" in (notes_of(alone.value) or "third")
    with pytest.raises(ValueError, match="first") as caught:
        toy_learner(callbacks=[Ends(), *failing]).fit(1)
    notes = notes_of(caught.value)
    assert notes is None or ("second" in notes and "third" in notes)


@pytest.mark.parametrize("first", [[], [Ends()]])
def test_a_ctrl_c_at_the_end_is_raised_after_any_error(first) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        toy_learner(callbacks=[*first, Fails(RuntimeError("second")), Fails(KeyboardInterrupt())]).fit(1)
    assert "second" in (notes_of(caught.value) or "second")


@pytest.mark.parametrize("value", [0.5, 3, True, "valid_loss", [1], {"a": 1}])
def test_a_value_in_the_place_of_the_learner(value) -> None:
    with pytest.raises(TypeError, match=r"`learn` must be a Learner or None, got .*; write decay="):
        EMACallback(value)
