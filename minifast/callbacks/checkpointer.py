"""A run that can be killed at any batch and taken up again, bit for bit."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifast import files
from minifast.callback import Callback, LearnerCallback, is_plain
from minifast.checkpoint import model_file, random_states, set_random_states
from minifast.data.loader import Rest, go_to, position_of
from minifast.errors import MinifastError, check_count
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
    """

    _order = 10_000  # so that all others have done what they do in the event

    def __init__(
        self, learn: Learner, file: Path, call: dict[str, Any], every: int | str | None = None, resume: bool = True
    ) -> None:
        super().__init__(learn)
        self.file = file
        self.call = call
        self._every = every
        self._batches, self._seconds = _pace(every)
        self._saved_at = time.monotonic()
        self._found: dict[str, Any] | None = None
        self.finished = False  # whether the file holds a run that came to its end
        if resume and (file.is_file() or files.previous(file).is_file()):
            self._found, newest = files.read_checked(file, learn.data.device)
            if not newest:
                print(f"{file} is cut off; going on from the one before it.")
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
        model = {name: list(value.shape) for name, value in learn.model.state_dict().items()}
        loader = learn.data.train_dl
        items = len(learn.data.train_ds) if hasattr(learn.data.train_ds, "__len__") else None
        seed = loader.__dict__.get("seed")
        data = {"batches": len(loader), "items": items, "classes": learn.data.classes, "seed": seed}
        return {"model": model, "data": {name: value for name, value in data.items() if is_plain(value)}}

    def on_train_begin(self) -> None:
        """Take the run up, if the file ends with an epoch."""
        if self._found is not None and not self._found["num_batch"]:
            self._restore()

    def on_epoch_begin(self) -> None:
        """Note where the epoch's order begins, or take the run up in the middle of an epoch."""
        if self._found is not None:
            found = self._found
            self._restore()
            go_to(self.learn.data.train_dl, found["position"])
            self._state.num_batch = found["num_batch"]
            set_random_states(found["random_at_epoch"])
            self._state.rest = lambda loader: Rest(
                loader, found["num_batch"], lambda: set_random_states(found["random"])
            )
        self._position = position_of(self.learn.data.train_dl)
        self._random_at_epoch = random_states()

    def on_batch_end(self, train: bool, num_batch: int, stop_epoch: bool) -> None:
        """Save when it is time."""
        if not train or stop_epoch or not (self._batches or self._seconds):
            return
        due = (num_batch + 1) % self._batches == 0 if self._batches else False
        if due or (self._seconds and time.monotonic() - self._saved_at >= self._seconds):
            self._save(self._state.epoch, num_batch + 1, self._state.iteration + 1)

    def on_epoch_end(self, epoch: int, iteration: int) -> None:
        """Save."""
        self._position = position_of(self.learn.data.train_dl)
        self._save(epoch + 1, 0, iteration)

    def on_train_end(self, exception: Any, epoch: int, iteration: int) -> None:
        """Mark the run as finished, if it came to its end now."""
        if not exception and not self.finished:
            self._save(epoch, 0, iteration, finished=True)

    def _save(self, epoch: int, num_batch: int, iteration: int, finished: bool = False) -> None:
        learn = self.learn
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
            "opt": learn.opt.state_dict(),
            "position": self._position,
            "random_at_epoch": self._random_at_epoch,
            "random": random_states(),
            "callbacks": [[type(callback).__name__, callback.state_dict()] for callback in self._others],
        }
        try:
            files.write_checked(values, self.file)
        except OSError as error:
            warnings.warn(
                f"{self.file} was not written ({error}); training goes on, the last good file stays.", stacklevel=2
            )
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        found, self._found = self._found, None
        if found is None:
            return
        names = [name for name, _ in found["callbacks"]]
        here = [type(callback).__name__ for callback in self._others]
        if names != here:
            raise MinifastError(f"{self.file} was kept with the callbacks {names}, and here are {here}; use the same.")
        state, learn = self._state, self.learn
        learn.model.load_state_dict(found["weights"])
        for name, parameter in learn.model.named_parameters():
            parameter.grad = found["gradients"].get(name)  # of batches whose step is still to come
        learn.opt.load_state_dict(found["opt"])
        state.epoch, state.iteration = found["epoch"], found["iteration"]
        for callback, (_, kept) in zip(self._others, found["callbacks"], strict=True):
            callback.load_state_dict(kept)
        go_to(learn.data.train_dl, found["position"])
        set_random_states(found["random"])
        state.pbar.epochs_done(state.epoch)


def _pace(every: int | str | None) -> tuple[int, float]:
    if not isinstance(every, str):
        return (0 if every is None else check_count("every", every)), 0.0
    if not re.fullmatch(r"\d+(\.\d+)?s", every):
        raise ValueError(f"every is {every!r}; it must be a number of batches, or seconds such as '60s'.")
    return 0, float(every[:-1])


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
            return ["slice", value.start, value.stop]
        value = value.tolist() if hasattr(value, "tolist") else value
        return list(value) if isinstance(value, tuple) else value

    return {"method": method, **{name: plain(value) for name, value in arguments.items()}}
