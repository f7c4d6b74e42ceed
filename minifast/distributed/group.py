"""The group of processes that this one belongs to: found, started, left, and ended when one of them fails."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from minifast.errors import MinifastError
from minifast.utils import text
from minifast.utils.checks import told

PATIENCE = 2.0  # seconds that a process that fails waits to see whether all do


class OtherProcessError(MinifastError):
    """Another process of the group failed, and this one ends too."""


@dataclass
class Group:
    """The processes that train together.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        store: torch's key-value store of the group, or None for a group that the user's script started.
    """

    rank: int
    size: int
    store: Any = None
    failures: int = 0

    def fail(self, error: BaseException) -> None:
        """Tell the other processes that this one failed.

        Where all fail with the same kind of error, such as a loss that is NaN, the group stays. Otherwise it ends, so
        that no process waits for one that is gone.

        Raises:
            OtherProcessError: another process failed first.
        """
        if isinstance(error, OtherProcessError) or _state.group is not self:
            return
        self.failures += 1
        first, kinds = self._first_failure(told(error))
        if len(kinds) == self.size and len(set(kinds)) == 1:
            error._is_of_all = True  # type: ignore[attr-defined]  # rank 0 shows it
            return
        leave()
        if first != self.rank:
            raise OtherProcessError(self._sentence(first)) from None

    def _first_failure(self, sentence: str) -> tuple[int | None, list[str]]:
        """Return the rank that failed first, None if it is not known, and the kinds of all errors known so far."""
        if self.store is None:
            return self.rank, []
        key = f"failure {self.failures}"
        # A lost connection is the trace of another process's failure, which may not be in the store yet.
        is_trace = any(word in sentence for word in CONNECTION_ERRORS)
        kinds: list[str] = []
        with contextlib.suppress(Exception):  # the store may be gone with its process
            until = time.monotonic() + PATIENCE
            if not is_trace:
                self.store.compare_set(key, "", f"{self.rank} {sentence}")
                self.store.set(f"{key} of {self.rank}", sentence.partition(":")[0])
            everyone = [f"{key} of {rank}" for rank in range(self.size)]
            awaited = [key] if is_trace else everyone
            while not self.store.check(awaited) and time.monotonic() < until:
                time.sleep(0.02)
            if not self.store.check([key]):
                return None, []
            said = self.store.get(key).decode()
            if self.store.check(everyone):
                kinds = [self.store.get(name).decode() for name in everyone]
            self._said = said.partition(" ")[2]
            return int(said.partition(" ")[0]), kinds
        return None if is_trace else self.rank, kinds

    def _sentence(self, first: int | None) -> str:
        if first is None:
            return f"Another of the {self.size} processes ended without an error, so this one ends too."
        return f"Process {first} of {self.size} failed, so this one ends too: {self._said}"


CONNECTION_ERRORS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "gloo",
    "NCCL",
    "ncclRemote",
)


class _State:
    """What this process knows about others; it is asked for the first time when data or a learner are made."""

    group: Group | None = None
    alone = False  # whether it was found that there are no others


_state = _State()


def is_switched_off() -> bool:
    """Return whether the environment variable ``MINIFAST_DISTRIBUTED`` is 0."""
    return os.environ.get("MINIFAST_DISTRIBUTED", "1").lower() in ("0", "false", "no", "off")


def current_group() -> Group | None:
    """Return the processes that train together with this one, or None for a single process.

    A group of ``torch.distributed`` that exists is used. Without one, the environment variables ``RANK`` and
    ``WORLD_SIZE``, which torchrun sets, start one.
    """
    if _state.group is None and not _state.alone:
        _state.group = _find()
        # A script may still start a group of its own, unless a launcher has decided.
        _state.alone = _state.group is None and (is_switched_off() or "WORLD_SIZE" in os.environ)
    if _state.group is None and not _state.alone and _is_initialized():
        _state.group = _find()
    return _state.group


def _is_initialized() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _find() -> Group | None:
    if is_switched_off():
        return None
    if _is_initialized():
        import torch.distributed as dist

        found = Group(dist.get_rank(), dist.get_world_size()) if dist.get_world_size() > 1 else None
    else:
        found = _start() if _asked_for() else None
    if found is not None:
        _settle(found)
    return found


def _asked_for() -> bool:
    size = os.environ.get("WORLD_SIZE", "1")
    if "RANK" not in os.environ or size == "1":
        return False
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise MinifastError(
            f"RANK={os.environ['RANK']} and WORLD_SIZE={size} are set, which asks for {size} processes that train "
            f"together, but these are not set: {', '.join(missing)}. Start the script with torchrun, or set "
            f"MINIFAST_DISTRIBUTED=0 to train in this process alone."
        )
    return True


def _start() -> Group:
    """Join the processes that torchrun, or another launcher with its environment variables, started."""
    dist: Any = importlib.import_module("torch.distributed")

    if not dist.is_available():
        raise MinifastError("This build of torch has no torch.distributed; set MINIFAST_DISTRIBUTED=0 to train alone.")
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        if local_rank() < torch.cuda.device_count():
            torch.cuda.set_device(local_rank())
    store, rank, size = next(iter(dist.rendezvous("env://")))
    # torchrun's store outlives a restart: without a name of its own, a new process would call a dead one.
    store = dist.PrefixStore(f"minifast {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size)
    return Group(rank, size, dist.PrefixStore("failures", store))


def _settle(group: Group) -> None:
    """Let rank 0 alone print, and leave the group when the process ends."""
    if group.store is not None:
        atexit.register(leave)
        sys.excepthook = _excepthook
    if group.rank:
        text.mute()
        _mute_warnings()


def _mute_warnings() -> None:
    """Show no more warnings that minifast raises, because rank 0 shows them; those of other packages stay."""
    show = warnings.showwarning

    def show_others(*arguments: Any, **keywords: Any) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") in ("warnings", "_py_warnings"):
            frame = frame.f_back
        raised_in = "" if frame is None else str(frame.f_globals.get("__name__"))
        if raised_in.partition(".")[0] != "minifast":
            show(*arguments, **keywords)

    warnings.showwarning = show_others


def local_rank() -> int:
    """Return the number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_gpu() -> torch.device:
    """Return the GPU of this process.

    Raises:
        MinifastError: if its machine has fewer GPUs than processes.
    """
    if current_group() is None:
        return torch.device("cuda")
    n = torch.cuda.device_count()
    if local_rank() >= n:
        raise MinifastError(
            f"Process {local_rank()} of this machine has no GPU of its own: there are {n}. Start at most {n} "
            f"processes, or give the data device='cpu'."
        )
    return torch.device("cuda", local_rank())


@contextmanager
def guarded(group: Group) -> Iterator[None]:
    """Let the other processes know if the code inside fails."""
    try:
        yield
    except BaseException as error:
        group.fail(error)
        raise


def leave() -> None:
    """Leave the group; what follows is done in this process alone."""
    group, _state.group, _state.alone = _state.group, None, True
    if group is not None and group.store is not None and _is_initialized():
        import torch.distributed as dist

        gc.collect()  # models that torch wrapped refer to the group in cycles, and its threads must not outlive it
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def wait_for_the_first() -> None:
    """Let the process that failed first end before this one, so that the launcher reports its error as the cause.

    The launcher ends this process as soon as it sees the other's end.
    """
    time.sleep(2 * PATIENCE)


def report_failure(error: BaseException) -> BaseException | None:
    """Tell the other processes of an error that ends this one, if it belongs to a group, and return the one to show.

    That is the error of the process that failed first. Unless all fail with the same kind of error, this process leaves
    the group.

    Returns:
        The error that this process shows; None where all have the same error, which process 0 shows.
    """
    group, rank = _state.group, int(os.environ.get("RANK", 0))
    if group is not None and not hasattr(error, "_is_of_all"):
        try:
            group.fail(error)
        except OtherProcessError as other:
            return other
    return None if rank and hasattr(error, "_is_of_all") else error


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an error that ends the process once, with the rank where it happened first."""
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE")
    shown = report_failure(error)
    if isinstance(shown, OtherProcessError):
        text.write_text(f"minifast: {shown}", stream=sys.stderr)
        wait_for_the_first()
    elif shown is not None:
        sys.__excepthook__(kind, error, trace)
        text.write_text(f"minifast: the error above is of process {rank} of {size}", stream=sys.stderr)
