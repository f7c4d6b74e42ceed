"""A run that can be killed at any batch and taken up again, bit for bit."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifast import files
from minifast.callback import Callback, LearnerCallback, is_plain
from minifast.callbacks.recorder import Recorder
from minifast.checkpoint import model_file, random_states, set_random_states
from minifast.data.loader import Rest, go_to, position_of
from minifast.errors import CallbackError, MinifastError, check_count, check_word
from minifast.metrics import name_of
from minifast.state import State

if TYPE_CHECKING:
    from minifast.learner import Learner


class Checkpointer(LearnerCallback):
    """Saves what a run is at the end of each epoch, and in between; takes it up where the file left it.

    A run is the model, the optimizer, the position, the schedules' place, all generators, the order of the data, the
    record, and each callback's own state (``Callback.state_dict``).

    Args:
        learn: the learner.
        file: where the run is kept; the file before it stays beside it until the new one is whole.
        call: what the run was asked to do; a file of another call is refused.
        every: between the ends of epochs, save every so many batches, or for a text such as ``"60s"`` seconds.
        resume: go on where the file left off; False begins anew.
        on_write_error: ``"continue"`` the training with a warning where the file cannot be written, or ``"stop"`` it.
    """

    _order = 10_000  # so that all others have done what they do in the event

    def __init__(
        self,
        learn: Learner,
        file: Path,
        call: dict[str, Any],
        every: int | str | None = None,
        resume: bool = True,
        on_write_error: str = "continue",
    ) -> None:
        super().__init__(learn)
        self._on_write_error = check_word("on_write_error", on_write_error, ("continue", "stop"))
        self._left = "nothing is kept yet"
        self.file = file
        self.call = call
        self._every = every
        self._batches, self._seconds = _pace(every)
        self._saved_at = time.monotonic()
        self._found: dict[str, Any] | None = None
        self.finished = False  # whether the file holds a run that came to its end
        if not is_plain(call):
            raise TypeError(f"A run that is kept is begun with plain numbers and texts; {call} holds something else.")
        if resume and (file.is_file() or files.previous(file).is_file()):
            self._found, newest = files.read_checked(file)  # to the CPU, where the generators' states belong
            if not newest and not learn.silent:
                print(f"{file} is not whole; going on from the one before it.")
            self._compare(self._found)
            self.finished = bool(self._found["finished"])

    def attach(self, state: State, callbacks: Sequence[Callback]) -> None:
        """Learn of the state that is to be kept, and of the other callbacks."""
        self._state = state
        self._others = [callback for callback in callbacks if callback is not self]

    def _compare(self, found: dict[str, Any]) -> None:
        now = {"call": self.call, **self._identity()}
        for part, mine in now.items():
            theirs = found[part]
            if theirs != mine:
                differing = sorted(name for name in {*theirs, *mine} if theirs.get(name) != mine.get(name))
                was, is_ = theirs.get(differing[0], "absent"), mine.get(differing[0], "absent")
                raise MinifastError(
                    f"{self.file} holds another run: its {part} has {differing[0]} = {was}, and here it is {is_}; "
                    f"name another checkpoint, or give resume=False to begin anew."
                )

    def _identity(self) -> dict[str, Any]:
        learn = self.learn
        model = {name: list(getattr(value, "shape", ())) for name, value in learn.model.state_dict().items()}
        items = len(learn.data.train_ds) if hasattr(learn.data.train_ds, "__len__") else None
        data = {"batches": len(learn.data.train_dl), "items": items, "classes": learn.data.classes}
        opt = {
            "kind": type(learn.opt.opt).__name__,
            "parameters": [len(g["params"]) for g in learn.opt.opt.param_groups],
        }
        metrics = {"names": list(map(name_of, learn.metrics))}
        return {"model": model, "data": {k: v for k, v in data.items() if is_plain(v)}, "opt": opt, "metrics": metrics}

    def on_train_begin(self) -> None:
        """Take the run up where the file left it; a new run is kept before its first batch, lest that be the last."""
        if self._found is None:
            self._position, self._random_at_epoch = position_of(self.learn.data.train_dl), random_states()
            self._save(self._state.epoch, 0, self._state.iteration)
            return
        found, state, learn = self._found, self._state, self.learn
        names = [name for name, _ in found["callbacks"]]
        here = [type(callback).__name__ for callback in self._others]
        if names != here:
            raise MinifastError(f"{self.file} was kept with the callbacks {names}, and here are {here}; use the same.")
        learn.model.load_state_dict(found["weights"])
        for name, parameter in learn.model.named_parameters():
            gradient = found["gradients"].get(name)  # of batches whose step is still to come
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        learn.opt.load_state_dict(found["optimizer"])
        state.epoch, state.iteration = found["epoch"], found["iteration"]
        state.skip_validate, state.stop_training = found["skip_validate"], found["stop_training"]
        self._position, self._random_at_epoch = found["position"], found["random_at_epoch"]
        self._restore(self._others, found)
        go_to(learn.data.train_dl, found["position"])
        set_random_states(found["random"])
        state.pbar.epochs_done(state.epoch, state.n_epochs)
        if not found["num_batch"]:
            self._found = None

    def _restore(self, wanted: Sequence[Callback], found: dict[str, Any]) -> None:
        for callback, (_, kept) in zip(self._others, found["callbacks"], strict=True):
            if callback in wanted:
                callback.load_state_dict(kept)

    def on_epoch_begin(self) -> None:
        """Note where the epoch's order begins, or go on in the middle of an epoch."""
        if self._found is not None:
            found, self._found = self._found, None
            # What the others did in this event is undone; the recorder's rows are in the table already.
            self._restore([callback for callback in self._others if not isinstance(callback, Recorder)], found)
            self._state.num_batch = found["num_batch"]
            self._state.stop_training = found["stop_training"]
            set_random_states(found["random_at_epoch"])
            self._state.rest = lambda loader: Rest(
                loader, found["num_batch"], lambda: set_random_states(found["random"])
            )
        self._position = position_of(self.learn.data.train_dl)
        self._random_at_epoch = random_states()

    def on_batch_end(self, train: bool, num_batch: int, stop_epoch: bool) -> None:
        """Save when it is time."""
        if not train or stop_epoch or (self._batches is None and self._seconds is None):
            return
        due = self._batches is not None and (num_batch + 1) % self._batches == 0
        if due or (self._seconds is not None and time.monotonic() - self._saved_at >= self._seconds):
            self._save(self._state.epoch, num_batch + 1, self._state.iteration + 1)

    def on_epoch_end(self, epoch: int, iteration: int) -> None:
        """Save."""
        self._position = position_of(self.learn.data.train_dl)
        self._save(epoch + 1, 0, iteration)

    def on_train_end(self, exception: Any, epoch: int, iteration: int) -> None:
        """Mark the run as finished, if it came to its end now."""
        if not exception and not self.finished:
            self._save(epoch, 0, iteration, finished=True)

    def left(self) -> str:
        """Say in a sentence what is kept and how to go on."""
        return f"{self._left}."

    def _save(self, epoch: int, num_batch: int, iteration: int, finished: bool = False) -> None:
        learn, state = self.learn, self._state
        recent = state.raw_losses[-(state.num_batch + 1) :]
        if not all(map(math.isfinite, recent)):
            return  # a run that is lost must not take the place of one that was good
        kept = [[type(callback).__name__, callback.state_dict()] for callback in self._others]
        for name, state_dict in kept:
            if not is_plain(state_dict):
                raise CallbackError(
                    f"{name}.state_dict returned more than tensors and plain values, which cannot be kept."
                )
        values = {
            "call": self.call,
            "every": self._every,
            **self._identity(),
            "finished": finished,
            "epoch": epoch,
            "num_batch": num_batch,
            "iteration": iteration,
            "weights": learn.model.state_dict(),
            "gradients": {name: p.grad for name, p in learn.model.named_parameters() if p.grad is not None},
            "optimizer": learn.opt.state_dict(),
            "skip_validate": state.skip_validate,
            "stop_training": state.stop_training or finished,
            "position": self._position,
            "random_at_epoch": self._random_at_epoch,
            "random": random_states(),
            "callbacks": kept,
        }
        try:
            files.write_checked(values, self.file)
            self._left = f"{self.file} is of epoch {epoch}, batch {num_batch}: the same call goes on from there"
        except OSError as error:
            if self._on_write_error == "stop":
                raise
            warnings.warn(
                f"{self.file} was not written ({error}); training goes on, the last good file stays.", stacklevel=2
            )
        self._saved_at = time.monotonic()


def _pace(every: int | str | None) -> tuple[int | None, float | None]:
    if not isinstance(every, str):
        return (None if every is None else check_count("every", every)), None
    if not re.fullmatch(r"\d+(\.\d+)?s", every):
        raise ValueError(f"every is {every!r}; it must be a number of batches, or seconds such as '60s'.")
    return None, float(every[:-1])


def checkpoint_file(learn: Learner, name: str) -> Path:
    """Return where the run called ``name`` is kept."""
    file = model_file(learn, name)
    if not isinstance(name, str) or not isinstance(file, Path):
        raise TypeError(f"checkpoint is {name!r}; it must be a name.")
    return file.with_suffix(".checkpoint")


def is_slice(value: Any) -> bool:
    """Whether a kept value stands for a slice."""
    return isinstance(value, list) and value[:1] == ["slice"]


def plain_call(method: str, **arguments: Any) -> dict[str, Any]:
    """Return a call in plain values, to keep and to compare: slices and arrays as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, slice):
            return ["slice", plain(value.start), plain(value.stop)]
        value = value.tolist() if hasattr(value, "tolist") else value
        return [plain(one) for one in value] if isinstance(value, (tuple, list)) else value

    return {"method": method, **{name: plain(value) for name, value in arguments.items()}}
