"""Save a run while it trains, and resume it bit for bit."""

from __future__ import annotations

import math
import re
import reprlib
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from minifast.checkpoint import version_0_1
from minifast.checkpoint.fingerprint import run_fingerprint
from minifast.checkpoint.model import model_file
from minifast.checkpoint.run_state import FORMAT, RunState, describe_ranks, of_rank, warn_of_unsaved_state, with_ranks
from minifast.data.resume import saves_own_state
from minifast.distributed.exchange import agree, from_first
from minifast.distributed.sharding import is_sharded, load_shards, remove_shards, save_shards, take_shards
from minifast.errors import CallbackError, MinifastError
from minifast.training.callback import Callback, LearnerCallback
from minifast.training.non_finite import all_finite
from minifast.training.parallel import group_of
from minifast.training.same_weights import check_same_weights
from minifast.training.state import State
from minifast.utils import files
from minifast.utils.checks import check_count, check_word
from minifast.utils.compat import with_later_settings
from minifast.utils.interrupts import DelayedInterrupt
from minifast.utils.locks import locked
from minifast.utils.public import warn_caller
from minifast.utils.random import get_rng_states, set_rng_states
from minifast.utils.tensors import is_plain
from minifast.utils.text import write_text

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


LOCK_SECONDS = 10


@dataclass(frozen=True)
class RunCheckpoint:
    """Where and how often a run is checkpointed: what ``fit(checkpoint=...)`` takes beside a plain name.

    Args:
        name: the run's name; the file is ``{name}.checkpoint`` in ``learn.path / learn.model_dir``.
        every: save during an epoch too: a number of batches, or seconds as a string such as ``"60s"``. By default a
            run is saved at the end of each epoch only.
        resume: False starts from the beginning and ignores the existing checkpoint.
        on_write_error: ``"continue"`` warns when a checkpoint cannot be written and keeps training, ``"stop"`` raises
            the error. The last complete file stays in both cases.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or not allowed.

    >>> RunCheckpoint("run1", every="60s")
    RunCheckpoint(name='run1', every='60s', resume=True, on_write_error='continue')
    """

    name: str
    every: int | str | None = None
    resume: bool = True
    on_write_error: str = "continue"
    how_to_resume: ClassVar[str] = "repeat the same call to resume there"  # of a run that stopped early

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"`checkpoint` must be a name, got {self.name!r}.")
        if not isinstance(self.resume, bool):
            raise TypeError(f"`resume` must be True or False, got {self.resume!r}.")
        check_word("on_write_error", self.on_write_error, ("continue", "stop"))
        save_interval(self.every)


class Checkpointer(LearnerCallback):
    """Save the state of a run at the end of each epoch and in between; resume the run that the file holds.

    Args:
        learn: the learner.
        file: the file of the run; the file before it stays beside it.
        call: the call that started the run; a file of another call raises an error.
        checkpoint: the run's name, and how often it is saved.
    """

    _order = 10_000  # after all other callbacks

    def __init__(self, learn: Learner, file: Path, call: dict[str, Any], checkpoint: RunCheckpoint) -> None:
        super().__init__(learn)
        self.file = file
        self.call = call
        self.checkpoint = checkpoint
        self._batches, self._seconds = save_interval(checkpoint.every)
        self._saved_at = time.monotonic()
        self._identity = run_fingerprint(learn)
        self._writer = files.CheckedFile(file)
        self._warned = False
        self._interrupt = DelayedInterrupt()
        self._file_lock: ExitStack | None = None
        self._is_new = False  # the folder
        self._run: Any = None  # RunState, from the beginning of the fit
        self._saved: dict[str, Any] | None = None
        self.how_to_resume = "nothing is saved yet"  # a sentence without its full stop
        self.finished = False  # whether the file holds a run that is finished
        if not is_plain(call):
            raise TypeError(
                f"A run with a checkpoint takes only plain numbers and texts as arguments; {call} holds something else."
            )
        self._group = group_of(learn)
        self._shards = ""  # the folder of the last save, of a model that is sharded
        if (found := from_first(self._read, self._group)) is not None:
            self._saved, newest = found
            self.finished = bool(self._saved["finished"])
            self._note_progress(self._saved["epoch"], self._saved["num_batch"])
            self._shards = str(self._saved.get("shards", ""))
            if self._shards:
                self._saved = load_shards(self._saved, file.with_name(self._shards), learn.model)
            damaged = "" if newest else f"{file} is damaged; using the file before it. "
            self._message = damaged + self._resume_message(checkpoint.name)
            self._saved = of_rank(self._saved, self._group)
        self._new = self._saved is None

    def _read(self) -> tuple[dict[str, Any], bool] | None:
        """Return what the file holds, and whether it is the newest; None for a new run."""
        if not self.checkpoint.resume or not (self.file.is_file() or files.previous(self.file).is_file()):
            return None
        saved, newest = files.read_checked(self.file)  # to the CPU, where the generators' states belong
        self._compare(saved)
        return saved, newest

    def _resume_message(self, name: str) -> str:
        if self.finished:
            return f"The run {name!r} is finished; the learner has its final state. resume=False starts it again."
        saved = self._saved or {}
        where = f"epoch {saved['epoch']}, batch {saved['num_batch']}"
        return f"Resuming the run {name!r} at {where}.{describe_ranks(saved, self._group)}"

    def _note_progress(self, epoch: int, num_batch: int) -> None:
        self.how_to_resume = f"{self.file} holds epoch {epoch}, batch {num_batch}: {self.checkpoint.how_to_resume}"

    def attach(self, state: State, callbacks: Sequence[Callback]) -> None:
        """Take the state to save and the other callbacks."""
        self._state = state
        self._others = [callback for callback in callbacks if callback is not self]
        if self._saved is not None:
            names, own = ([name for name, _ in self._saved["callbacks"]], [*map(_name, self._others)])
            if names != own:
                missing, more = Counter(names) - Counter(own), Counter(own) - Counter(names)
                differences = [f"{', '.join(missing)} is missing"] if missing else []
                differences += [f"{', '.join(more)} is new"] if more else []
                raise MinifastError(
                    f"{self.file} was saved with other callbacks: {' and '.join(differences) or 'the order differs'}; "
                    f"pass the callbacks that it was started with, in this order: {', '.join(names)}."
                )
            if not self.learn.silent:
                write_text(self._message)
        for callback in self._others:
            warn_of_unsaved_state(callback)

    def _compare(self, saved: dict[str, Any]) -> None:
        version = saved.get("format", 1)
        if version > FORMAT:
            raise MinifastError(f"{self.file} has format {version}, from a later version of minifast; update minifast.")
        expected = self._identity if version == FORMAT else version_0_1.run_fingerprint(self.learn)
        for part, mine in {"call": self.call, **expected}.items():
            theirs = version_0_1.upgrade_call(saved[part]) if part == "call" else saved[part]
            if part == "opt":
                theirs, mine = (with_later_settings(values, self.learn.opt.opt) for values in (theirs, mine))
            names = {*theirs, *mine}
            if part == "settings":  # what the run changed is restored; what is not set yet may come
                names = theirs.keys() & mine.keys() - saved["state"]["attributes"].keys()
            if version == 1 and part == "data":
                names = {name for name in names if not name.startswith(("loader of", "transforms of"))}
            different = [
                name
                for name in names
                if repr(theirs.get(name)) != repr(mine.get(name)) and theirs.get(name) != mine.get(name)
            ]
            if different:
                self._raise_difference(part, min(different), theirs, mine)

    def _raise_difference(self, part: str, name: str, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
        was, now = (reprlib.repr(values.get(name, "absent")) for values in (theirs, mine))
        seed = " If the data or their split are random, call set_seed(0) before you make them."
        advice = seed if name.startswith("checksum") else ""
        advice += " Freeze the same layers: freeze, freeze_to, unfreeze." if name == "frozen" else ""
        verb = "have" if part == "settings" else "has"
        raise MinifastError(
            f"{self.file} holds another run: its {part} {verb} {name} = {was}, and this run has {now}.{advice} "
            f"Choose another checkpoint name (to train longer, start a second fit with its own name), or pass "
            f"resume=False to start again."
        )

    def _lock(self) -> None:
        """Lock the file, so that no other process trains the same run."""
        self._is_new = not self.file.parent.is_dir()
        with ExitStack() as stack:
            try:
                # The workers of a process that was killed hold its lock for some seconds more.
                stack.enter_context(locked(self.file, LOCK_SECONDS))
            except TimeoutError:
                raise MinifastError(
                    f"Another process or fit trains the run {self.file} now; give each run its own checkpoint name."
                ) from None
            self._file_lock = stack.pop_all()

    def _unlock(self) -> None:
        if self._file_lock is not None:
            self._file_lock.close()
            files.remove_empty(self.file.parent, self._is_new)
            self._file_lock = None

    def on_train_begin(self) -> None:
        """Restore the state that the file holds; save a new run before its first batch."""
        from_first(self._lock, self._group)
        if self._group is None:  # several processes would stop at different batches
            self._interrupt.start()
        self._run = RunState(self.learn, self._others)
        for path, value in self._run.unsaved():
            what = f"{path} is a {type(value).__name__}"
            if path.endswith("persistent_workers"):
                what = f"{path} is True, and the workers have random generators of their own"
            warn_caller(
                f"{what}, which a checkpoint does not save: if they change, a resumed run will differ. Use numbers, "
                f"tensors, lists of them, or random generators in this process.",
            )
        if self._saved is None:
            self._note_position()
            self._save(self._state.epoch, 0, self._state.iteration)
            return
        saved, state = self._saved, self._state
        self._run.restore(saved)
        state.n_epochs, state.epoch, state.iteration = saved["n_epochs"], saved["epoch"], saved["iteration"]
        state.skip_validate, state.stop_training = saved["skip_validate"], saved["stop_training"]
        self._position, self._random_at_epoch = saved["position"], saved["random_at_epoch"]
        self._restore_callbacks(self._others, saved)
        self._run.restore_position(saved["position"])
        set_rng_states(saved["random"])
        state.pbar.epochs_done(state.epoch, state.n_epochs)
        if not saved["num_batch"]:
            self._saved = None

    def _restore_callbacks(self, callbacks: Sequence[Callback], saved: dict[str, Any]) -> None:
        for callback, (_, callback_state) in zip(self._others, saved["callbacks"], strict=True):
            if callback in callbacks:
                callback.load_state_dict(callback_state)

    def on_epoch_begin(self) -> None:
        """Store the data order at the start of the epoch, or resume in the middle of an epoch."""
        if self._saved is None:
            self._note_position()
            self._state.rest = self._run.remaining if saves_own_state(self.learn.data.train_dl) else None
            return
        saved, self._saved = self._saved, None
        # Undo what other callbacks did in this event; the table shows the recorder's rows already.
        self._restore_callbacks([callback for callback in self._others if callback is not self.learn.recorder], saved)
        self._run.restore_position(saved["position"])
        self._state.num_batch = saved["num_batch"]
        self._state.stop_training = saved["stop_training"]
        set_rng_states(saved["random_at_epoch"])
        on_start = partial(self._run.restore_batch, saved)
        own = saved.get("loader")
        self._state.rest = partial(self._run.remaining, done=saved["num_batch"], on_start=on_start, state=own)

    def _note_position(self) -> None:
        self._position, self._random_at_epoch = self._run.position(), get_rng_states()

    def on_batch_begin(self, train: bool) -> None:
        """Delay a Ctrl-C to the end of a training batch, whose state can be saved."""
        if train:
            self._interrupt.hold()
        else:
            self._interrupt.release()

    def on_batch_end(self, train: bool, num_batch: int, stop_epoch: bool) -> None:
        """Save if the interval has passed, or after Ctrl-C."""
        if not train or stop_epoch:
            return
        due = self._interrupt.pending or (self._batches is not None and (num_batch + 1) % self._batches == 0)
        if not due and (seconds := self._seconds) is not None:
            due = from_first(lambda: time.monotonic() - self._saved_at >= seconds, self._group)
        if due:
            self._save(self._state.epoch, num_batch + 1, self._state.iteration + 1)
        if self._interrupt.pending or getattr(self.learn.data.train_dl, "num_workers", 0) > 0:
            self._interrupt.release()  # Ctrl-C ends worker processes too, so the next batch would never come

    def on_epoch_end(self, epoch: int, iteration: int) -> None:
        """Save."""
        self._position = self._run.position()
        self._save(epoch + 1, 0, iteration)
        self._interrupt.release()

    def on_train_end(self, exception: Any, epoch: int, iteration: int) -> None:
        """Mark the run as finished if it ended without an error."""
        try:
            if not exception and not self.finished:
                self._save(epoch, 0, iteration, finished=True)
        finally:
            self._interrupt.stop()
            self._unlock()
            vars(self).pop("_run", None)  # it refers to the learner, which refers to this callback

    def _save(self, epoch: int, num_batch: int, iteration: int, finished: bool = False) -> None:
        learn, state = self.learn, self._state
        check_same_weights(learn, self._group, f"at the checkpoint of epoch {epoch}, batch {num_batch}")
        self._saved_at = time.monotonic()
        if state.on_nan != "ignore":
            # A diverged run must not replace a good checkpoint.
            recent = state.raw_losses[-(state.num_batch + 1) :]
            bad = not all(map(math.isfinite, recent)) or not all_finite(learn.model.state_dict().values())
            if any(agree([bad])) if is_sharded(learn.model) else bad:
                return
        states = [[_name(callback), callback.state_dict()] for callback in self._others]
        for name, state_dict in states:
            if not is_plain(state_dict):
                raise CallbackError(
                    f"{name}.state_dict must return only tensors and plain values, which a checkpoint can save."
                )
        values = {
            "format": FORMAT,
            "call": self.call,
            "every": self.checkpoint.every,
            **self._identity,
            "finished": finished,
            "n_epochs": state.n_epochs,
            "epoch": epoch,
            "num_batch": num_batch,
            "iteration": iteration,
            "skip_validate": state.skip_validate,
            "stop_training": state.stop_training or finished,
            "position": self._position,
            "random_at_epoch": self._random_at_epoch,
            "loader": self._run.state_in_epoch(num_batch),
            "callbacks": states,
            **self._run.collect(),
        }
        (values, shards), before = take_shards(values), self._shards
        if shards:
            values["shards"] = self._shards = save_shards(shards, self.file, self._group)
        values = with_ranks(values, self._group)
        if from_first(lambda: self._write(values), self._group):
            self._note_progress(epoch, num_batch)
            if shards:
                from_first(lambda: remove_shards(self.file, (self._shards, before)), self._group)

    def _write(self, values: dict[str, Any]) -> bool:
        """Write the file, and return whether that succeeded."""
        self._warn_of_other_process()
        try:
            self._writer.write(values, keep_previous=not self._new or self._writer.has_written)
        except OSError as error:
            if not self._writer.has_written and self._new:
                raise MinifastError(
                    f"{self.file} cannot be written ({error}), so the run cannot be saved; free some space, or give "
                    f"the learner another `path`."
                ) from error
            if self.checkpoint.on_write_error == "stop":
                raise
            if not self._warned:
                self._warned = True
                warn_caller(
                    f"{self.file} was not written ({error}); training continues, the last good file stays.",
                )
            return False
        return True

    def _warn_of_other_process(self) -> None:
        """Warn if the file is not the one that this run wrote last."""
        if self._writer.has_written and self.file.is_file() and not self._writer.is_last_written() and not self._warned:
            self._warned = True
            warn_caller(f"Another process writes {self.file} too; give each run its own name.")


def _name(callback: Callback) -> str:
    return type(callback).__name__


def save_interval(every: int | str | None) -> tuple[int | None, float | None]:
    """Return the number of batches, or the seconds, between two saves within an epoch."""
    if not isinstance(every, str):
        return (None if every is None else check_count("every", every)), None
    if not re.fullmatch(r"\d+(\.\d+)?s", every):
        raise ValueError(f"`every` must be a number of batches, or seconds such as '60s', got {every!r}.")
    return None, float(every[:-1])


def checkpoint_file(learn: Learner, name: str) -> Path:
    """Return the file of the run called ``name``."""
    file = model_file(learn, name)
    if not isinstance(name, str) or not isinstance(file, Path):
        raise TypeError(f"`checkpoint` must be a name, got {name!r}.")
    return file.with_suffix(".checkpoint")
