"""The story of a fit: everything that happens in it, in order, and what flags, errors and Ctrl-C change in it."""

from __future__ import annotations

import pytest
import torch
from conftest import toy_items
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from minifast import Callback, DataBunch, Learner
from minifast.training import EVENTS
from minifast.training.progress import NullProgress

# Who speaks: the loop's own acts in capitals, the metric's events after "metric", the callback's events alone.
# epoch, iteration and num_batch stand behind each event, and the train flag where there is a batch.
STORY = """
metric on_train_begin  epoch 0  iteration 0  num_batch 0
on_train_begin         epoch 0  iteration 0  num_batch 0
metric on_epoch_begin  epoch 0  iteration 0  num_batch 0
on_epoch_begin         epoch 0  iteration 0  num_batch 0
on_batch_begin         epoch 0  iteration 0  num_batch 0  train
FORWARD in training mode
on_loss_begin          epoch 0  iteration 0  num_batch 0  train
LOSS
on_backward_begin      epoch 0  iteration 0  num_batch 0  train
BACKWARD
on_backward_end        epoch 0  iteration 0  num_batch 0  train
STEP
on_step_end            epoch 0  iteration 0  num_batch 0  train
ZERO_GRAD
on_batch_end           epoch 0  iteration 0  num_batch 0  train
on_batch_begin         epoch 0  iteration 1  num_batch 1  train
FORWARD in training mode
on_loss_begin          epoch 0  iteration 1  num_batch 1  train
LOSS
on_backward_begin      epoch 0  iteration 1  num_batch 1  train
BACKWARD
on_backward_end        epoch 0  iteration 1  num_batch 1  train
STEP
on_step_end            epoch 0  iteration 1  num_batch 1  train
ZERO_GRAD
on_batch_end           epoch 0  iteration 1  num_batch 1  train
metric on_batch_begin  epoch 0  iteration 2  num_batch 2  valid
on_batch_begin         epoch 0  iteration 2  num_batch 2  valid
FORWARD in evaluation mode
on_loss_begin          epoch 0  iteration 2  num_batch 2  valid
LOSS
metric on_batch_end    epoch 0  iteration 2  num_batch 2  valid
on_batch_end           epoch 0  iteration 2  num_batch 2  valid
metric on_epoch_end    epoch 0  iteration 2  num_batch 2  valid
on_epoch_end           epoch 0  iteration 2  num_batch 2  valid
metric on_train_end    epoch 1  iteration 2  num_batch 2  valid
on_train_end           epoch 1  iteration 2  num_batch 2  valid
"""


class Told:
    """A learner whose every act and event is written down in ``story``, and in ``acts`` in one word each."""

    def __init__(self, batches: int = 2, valid_batches: int = 1, callbacks=(), metrics=()) -> None:
        story = self.story = []

        class Teller(Callback):
            _order = 50  # after the callbacks under test, so that a story tells what they changed

            def __init__(self, name: str = "") -> None:
                self.prefix = f"{name} " if name else ""
                for event in EVENTS:
                    setattr(self, event, lambda event=event, **known: self.tell(event, known))

            def tell(self, event, known) -> None:
                place = "  ".join(f"{name} {known[name]}" for name in ("epoch", "iteration", "num_batch"))
                part = {True: "  train", False: "  valid", None: ""}[known.get("train")]
                story.append(f"{self.prefix + event:21}  {place}{part}")

        class SpyingSGD(torch.optim.SGD):
            def __init__(self, params, lr) -> None:
                super().__init__(params, lr)

            def step(self) -> None:
                story.append("STEP")
                super().step()

            def zero_grad(self, *args) -> None:
                story.append("ZERO_GRAD")
                super().zero_grad(*args)

        def loss_func(output, target):
            story.append("LOSS")
            return functional.cross_entropy(output, target)

        torch.manual_seed(0)
        model = nn.Linear(10, 2)
        model.register_forward_pre_hook(
            lambda module, _: story.append(f"FORWARD in {'training' if module.training else 'evaluation'} mode")
        )
        model.bias.register_hook(lambda _: story.append("BACKWARD"))
        data = DataBunch(
            DataLoader(toy_items(batches * 10), 10), DataLoader(toy_items(valid_batches * 10), 10), device="cpu"
        )
        self.learn = Learner(
            data,
            model,
            opt_func=SpyingSGD,
            loss_func=loss_func,
            metrics=[Teller("metric"), *metrics],
            callbacks=[Teller(), *callbacks],
            silent=True,
        )

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.story]

    @property
    def acts(self) -> list[str]:
        """What the loop did: FORWARD VALID LOSS BACKWARD STEP ZERO_GRAD."""
        valid = {"FORWARD in training mode": "FORWARD", "FORWARD in evaluation mode": "VALID"}
        return [valid.get(line, line) for line in self.story if line.isupper() or line in valid]

    @property
    def events(self) -> list[str]:
        return [line.split()[0] for line in self.story if line.startswith("on_")]


def returning(event: str, changes: dict, order: int = 0, **at) -> Callback:
    """A callback that returns ``changes`` at ``event``, whenever the fields are as ``at`` says."""

    class Returning(Callback):
        _order = order

    def method(**known):
        return changes if all(known.get(name) == value for name, value in at.items()) else None

    callback = Returning()
    setattr(callback, event, method)
    return callback


def test_one_epoch_of_two_training_batches_and_one_validation_batch() -> None:
    told = Told()
    told.learn.fit(1)
    assert told.lines == STORY.strip().splitlines()


def test_a_second_epoch_tells_the_same_with_its_own_numbers() -> None:
    told = Told()
    told.learn.fit(2)
    first = STORY.strip().splitlines()
    end = 2  # on_train_end of the metric and of the callback
    second = [
        line.replace("iteration 1", "iteration 3")
        .replace("iteration 2", "iteration 4")
        .replace("iteration 0", "iteration 2")
        .replace("epoch 0", "epoch 1")
        for line in first[2:-end]
    ]
    # between two epochs the last batch that was seen is one of validation
    for i in (0, 1):
        second[i] += "  valid"
    last = [line.replace("epoch 1", "epoch 2").replace("iteration 2", "iteration 4") for line in first[-end:]]
    assert told.lines == first[:-end] + second + last


BATCH = ["FORWARD", "LOSS", "BACKWARD", "STEP", "ZERO_GRAD"]
VALID = ["VALID", "LOSS"]


@pytest.mark.parametrize(
    ("event", "changes", "acts"),
    [
        *((event, {"skip_bwd": True}, ["FORWARD", "LOSS", "STEP", "ZERO_GRAD"])
          for event in ("on_batch_begin", "on_loss_begin", "on_backward_begin")),
        *((event, {"skip_step": True}, ["FORWARD", "LOSS", "BACKWARD", "ZERO_GRAD"])
          for event in ("on_batch_begin", "on_loss_begin", "on_backward_begin", "on_backward_end")),
        *((event, {"skip_zero": True}, ["FORWARD", "LOSS", "BACKWARD", "STEP"])
          for event in ("on_batch_begin", "on_loss_begin", "on_backward_begin", "on_backward_end", "on_step_end")),
        ("on_batch_begin", {"skip_bwd": True, "skip_step": True, "skip_zero": True}, ["FORWARD", "LOSS"]),
    ],
)  # fmt: skip
def test_skip_flags_leave_out_an_act_of_that_batch_only(event, changes, acts) -> None:
    told = Told(batches=3, callbacks=[returning(event, changes, iteration=1, train=True)])
    told.learn.fit(1)
    assert told.acts == BATCH + acts + BATCH + VALID
    assert told.events.count("on_step_end") == told.events.count("on_backward_end") == 3  # the events stay


def test_gradients_add_up_while_zeroing_is_skipped() -> None:
    told = Told(batches=2, callbacks=[returning("on_backward_end", {"skip_step": True, "skip_zero": True})])
    before = told.learn.model.weight.detach().clone()
    told.learn.fit(1)
    assert torch.equal(told.learn.model.weight, before)
    halves = torch.zeros_like(before)
    for x, y in told.learn.data.train_dl:
        loss = functional.cross_entropy(functional.linear(x, before.requires_grad_(), told.learn.model.bias), y)
        halves += torch.autograd.grad(loss, before)[0]
    assert torch.allclose(told.learn.model.weight.grad, halves)


TRAINING_EVENTS = ("on_batch_begin", "on_loss_begin", "on_backward_begin", "on_backward_end", "on_step_end",
                   "on_batch_end")  # fmt: skip


@pytest.mark.parametrize("event", TRAINING_EVENTS)
def test_stop_epoch_leaves_the_rest_of_the_epoch_out_and_goes_on_with_validation(event) -> None:
    told = Told(batches=3, callbacks=[returning(event, {"stop_epoch": True}, iteration=0, train=True)])
    told.learn.fit(2)
    assert told.acts == BATCH + VALID + BATCH * 3 + VALID
    assert told.learn.recorder.nb_batches == [1, 3]


@pytest.mark.parametrize("event", ["on_batch_begin", "on_loss_begin", "on_batch_end"])
def test_stop_epoch_in_validation_leaves_the_rest_of_the_validation_out(event) -> None:
    told = Told(valid_batches=3, callbacks=[returning(event, {"stop_epoch": True}, train=False, epoch=0)])
    told.learn.fit(2)
    assert told.acts == BATCH * 2 + VALID + BATCH * 2 + VALID * 3


@pytest.mark.parametrize("event", ["on_epoch_begin", *TRAINING_EVENTS, "on_epoch_end"])
def test_stop_training_lets_the_epoch_end_and_validates(event) -> None:
    told = Told(callbacks=[returning(event, {"stop_training": True}, epoch=1)])
    told.learn.fit(4)
    assert told.acts == (BATCH * 2 + VALID) * 2
    assert told.events[-2:] == ["on_epoch_end", "on_train_end"]


def test_stop_epoch_and_stop_training_together_end_the_run_after_validation() -> None:
    stop = returning("on_batch_end", {"stop_epoch": True, "stop_training": True}, iteration=0, train=True)
    told = Told(callbacks=[stop])
    told.learn.fit(3)
    assert told.acts == BATCH + VALID


@pytest.mark.parametrize("event", ["on_train_begin", "on_epoch_begin", *TRAINING_EVENTS])
def test_skip_validate_lasts_for_the_rest_of_the_fit_and_no_longer(event) -> None:
    callback = returning(event, {"skip_validate": True}, epoch=0)
    told = Told(callbacks=[callback])
    told.learn.fit(2)
    assert told.acts == BATCH * 4
    assert told.learn.recorder.val_losses == [None, None]
    assert "metric on_epoch_end" not in "\n".join(told.lines)
    told.story.clear()
    told.learn.callbacks.remove(callback)
    told.learn.fit(1)
    assert told.acts == BATCH * 2 + VALID


def test_skip_validate_at_the_end_of_an_epoch_holds_from_the_next_one() -> None:
    told = Told(callbacks=[returning("on_epoch_end", {"skip_validate": True}, epoch=0)])
    told.learn.fit(2)
    assert told.acts == BATCH * 2 + VALID + BATCH * 2


def test_an_epoch_returned_by_on_train_begin_is_where_the_run_begins() -> None:
    told = Told(callbacks=[returning("on_train_begin", {"epoch": 2})])
    told.learn.fit(3)
    assert told.acts == BATCH * 2 + VALID
    assert [row[0] for row in told.learn.recorder.rows] == [2]
    assert told.lines[-1].startswith("on_train_end           epoch 3  iteration 2")


def test_every_callback_hears_of_a_jump_to_an_epoch_once_and_only_of_one() -> None:
    heard = []

    class Hears(Callback):
        def jump_to_epoch(self, epoch):
            heard.append(epoch)

    told = Told(callbacks=[Hears(), returning("on_train_begin", {"epoch": 2}), Hears()])
    told.learn.fit(3)
    assert heard == [2, 2]
    heard.clear()
    told = Told(callbacks=[Hears()])
    told.learn.fit(1)
    assert heard == []


def test_an_epoch_at_or_beyond_the_end_trains_nothing_and_still_ends() -> None:
    told = Told(callbacks=[returning("on_train_begin", {"epoch": 3})])
    told.learn.fit(3)
    assert told.acts == []
    assert told.events == ["on_train_begin", "on_train_end"]


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("on_batch_begin", ["last_input", "last_target"]),
        ("on_loss_begin", ["last_output"]),
        ("on_backward_begin", ["last_loss"]),
        ("on_epoch_end", ["last_metrics"]),
    ],
)
def test_a_later_callback_and_the_loop_see_what_an_earlier_one_changed(event, fields) -> None:
    seen, used = {}, {}

    class Changes(Callback):
        _order = -20

    class Sees(Callback):
        _order = 20

    def change(**known):
        if event == "on_epoch_end":
            return {"last_metrics": [*known["last_metrics"], 7.0]}
        used.update({name: known[name] * 0 for name in fields})
        return dict(used)

    changes, sees = Changes(), Sees()
    setattr(changes, event, change)
    setattr(sees, event, lambda **known: seen.update({name: known[name] for name in fields}))
    told = Told(batches=1, callbacks=[sees, changes])
    given = []

    def loss_func(output, target):
        given.append((output, target))
        return functional.cross_entropy(output, target)

    told.learn.loss_func = loss_func
    told.learn.fit(1)
    for name in fields:
        assert seen[name] is used[name] if used else seen[name][-1] == 7.0
    output, target = given[-1]
    if event == "on_batch_begin":
        assert target is used["last_target"]
    if event == "on_loss_begin":
        assert output is used["last_output"]
    if event == "on_epoch_end":
        assert told.learn.recorder.metrics[0][-1] == 7.0


def test_the_last_loss_that_a_callback_returns_is_the_one_that_goes_backward() -> None:
    class Zero(Callback):
        def on_backward_begin(self, last_loss):
            return {"last_loss": last_loss * 0}

    told = Told(callbacks=[Zero()])
    before = told.learn.model.weight.detach().clone()
    told.learn.fit(1, wd=0.0)
    assert torch.equal(told.learn.model.weight, before)
    assert all(loss > 0 for loss in told.learn.recorder.raw_losses)  # the record has the losses as they came


def test_the_loss_keeps_its_graph_until_the_step_and_not_after() -> None:
    graphs = {}

    class Looks(Callback):
        def on_backward_begin(self, last_loss):
            graphs["backward_begin"] = last_loss.requires_grad

        def on_step_end(self, last_loss):
            graphs["step_end"] = last_loss.requires_grad

        def on_batch_end(self, last_loss, train):
            graphs["batch_end of " + ("training" if train else "validation")] = last_loss.requires_grad

    Told(callbacks=[Looks()]).learn.fit(1)
    assert graphs == {
        "backward_begin": True,
        "step_end": True,
        "batch_end of training": False,
        "batch_end of validation": False,
    }


class OopsError(Exception):
    pass


def raising(event: str, error: BaseException, order: int = 0) -> Callback:
    class Raising(Callback):
        _order = order

    def method(**known):
        raise error

    callback = Raising()
    setattr(callback, event, method)
    return callback


@pytest.mark.parametrize("error", [OopsError("here"), KeyboardInterrupt()])
@pytest.mark.parametrize("event", EVENTS)
def test_on_train_end_happens_whatever_is_raised_and_wherever(event, error) -> None:
    ends = []

    class First(Callback):
        _order = -100

        def on_train_end(self, exception):
            ends.append(exception)

    class Last(First):
        _order = 100

    told = Told(callbacks=[First(), raising(event, error), Last()])
    with pytest.raises(type(error)):
        told.learn.fit(2)
    assert ends == ([False, False] if event == "on_train_end" else [error, error])
    assert told.events[-1] == "on_train_end"
    assert told.lines.count(next(line for line in told.lines if line.startswith("metric on_train_end"))) == 1
    told.learn.callbacks = told.learn.callbacks[:1]
    told.learn.fit(1)  # and the learner can go on


def test_a_run_that_ends_well_ends_without_an_exception() -> None:
    ends = []

    class Ends(Callback):
        def on_train_end(self, exception):
            ends.append(exception)

    Told(callbacks=[Ends()]).learn.fit(1)
    assert ends == [False]


@pytest.mark.parametrize("error", [OopsError("first"), KeyboardInterrupt()])
def test_an_error_while_ending_does_not_hide_what_ended_the_run(error) -> None:
    told = Told(callbacks=[raising("on_batch_end", error), raising("on_train_end", ValueError("second"))])
    with pytest.raises(type(error)):
        told.learn.fit(1)


def test_of_several_errors_while_ending_the_first_is_raised_and_all_are_ended() -> None:
    told = Told(callbacks=[raising("on_train_end", OopsError("one")), raising("on_train_end", ValueError("two"))])
    with pytest.raises(OopsError, match="one"):
        told.learn.fit(1)
    assert told.events[-1] == "on_train_end"


def test_on_train_end_happens_also_when_the_bar_cannot_be_closed(monkeypatch) -> None:
    def lost_terminal(self, interrupted=False):
        raise OSError("the terminal is gone")

    monkeypatch.setattr(NullProgress, "close", lost_terminal)
    told = Told()
    with pytest.raises(OSError, match="terminal"):
        told.learn.fit(1)
    assert told.events[-1] == "on_train_end"


def test_an_error_in_the_model_the_loss_or_the_data_ends_the_run_too() -> None:
    def fails(*args):
        raise OopsError

    told = Told()
    told.learn.loss_func = fails
    with pytest.raises(OopsError):
        told.learn.fit(1)
    assert told.events == ["on_train_begin", "on_epoch_begin", "on_batch_begin", "on_loss_begin", "on_train_end"]


def test_validate_tells_callbacks_of_batches_only_and_metrics_its_own_short_story() -> None:
    told = Told(valid_batches=2)
    told.learn.validate()
    assert [line.split("  ")[0] for line in told.lines] == [
        "metric on_train_begin",
        "metric on_epoch_begin",
        *(
            "metric on_batch_begin",
            "on_batch_begin",
            "FORWARD in evaluation mode",
            "on_loss_begin",
            "LOSS",
            "metric on_batch_end",
            "on_batch_end",
        )
        * 2,
        "metric on_epoch_end",
    ]


def test_get_preds_tells_batches_only() -> None:
    told = Told(valid_batches=2)
    heard = []

    class Hears(Callback):
        def on_batch_begin(self, train):
            heard.append("batch_begin")

        def on_loss_begin(self, last_output):
            heard.append("loss_begin")

        def on_batch_end(self, last_output, train):
            heard.append("batch_end")

        def on_train_begin(self):
            heard.append("train_begin")

        def on_epoch_end(self):
            heard.append("epoch_end")

    told.learn.callbacks = [Hears()]
    told.learn.get_preds()
    assert heard == ["batch_begin", "loss_begin", "batch_end"] * 2


def test_no_validation_data_means_no_validation() -> None:
    told = Told()
    told.learn.data.valid_dl = None
    told.learn.fit(1)
    assert told.acts == BATCH * 2
    assert told.learn.recorder.val_losses == [None]
