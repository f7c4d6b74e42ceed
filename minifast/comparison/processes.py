"""Train the runs of a comparison in several processes, through joblib."""

from __future__ import annotations

import contextlib
import inspect
import pickle
import re
import secrets
import threading
import traceback
import warnings
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from minifast.checkpoint.fingerprint import checksum
from minifast.comparison.first_states import FirstStates
from minifast.comparison.result import Run
from minifast.comparison.runs import Plan
from minifast.distributed.exchange import portable
from minifast.distributed.group import current_group
from minifast.errors import MinifastError
from minifast.learner.learner import Learner
from minifast.utils.checks import import_optional

FEATURE, INSTALL = "compare with n_jobs", "minifast[parallel]"


class Job(NamedTuple):
    """What a worker gets for one run: ``plan`` is pickled, and the same array in all jobs of a comparison."""

    plan: np.ndarray[Any, Any]
    settings: dict[str, Any]
    first_seed: int
    expected: str  # the digest of the learner that the calling process makes with the first seed
    token: str
    seed: int
    name: str
    folder: str


class Failure(NamedTuple):
    """An error of a run, with the worker's traceback as text."""

    error: Exception
    traceback: str


class WorkerTraceback(Exception):  # noqa: N818  (it is no error of its own)
    """The traceback of a worker's error, shown as its cause."""

    def __str__(self) -> str:
        return f"in the worker process:\n{self.args[0]}"


def count_jobs(n_jobs: int) -> int:
    """Return the number of processes that joblib starts for ``n_jobs``; -1 means one per core of its backend.

    Raises:
        ImportError: joblib or cloudpickle is missing.
        ValueError: joblib's backend runs threads, which would share one random generator.
        MinifastError: this is one of several processes that train together.
    """
    if n_jobs == 1:
        return 1
    if current_group() is not None:
        raise MinifastError("Processes that train together cannot start more for `n_jobs`; pass n_jobs=1.")
    joblib = import_optional("joblib", FEATURE, INSTALL)
    import_optional("cloudpickle", FEATURE, INSTALL)
    backend, _ = joblib.parallel.get_active_backend()
    n = int(joblib.effective_n_jobs(n_jobs))
    if n > 1 and getattr(backend, "supports_sharedmem", False):
        raise ValueError(
            f"`n_jobs` needs a joblib backend of processes, such as 'loky', because the threads of "
            f"{type(backend).__name__} share the random generators; or pass n_jobs=1."
        )
    return n


def run_in_processes(plan: Plan, jobs: Sequence[tuple[int, str]], n_jobs: int) -> Generator[Run, None, None]:
    """Return an iterator over the runs in the order of ``jobs``, pairs of a seed and a configuration.

    Each run gets a copy of what ``make_learner`` uses. Each worker first makes the learner of the first seed, and
    compares it with that of this process. Closing the iterator ends the workers.

    Raises:
        TypeError: something cannot be pickled.
    """
    cloudpickle = import_optional("cloudpickle", FEATURE, INSTALL)
    pickled = np.frombuffer(pickle_plan(plan, cloudpickle), np.uint8)  # joblib shares a large array through a file
    first_seed = jobs[0][0]
    first_states = FirstStates()
    try:
        learn = plan.learner(first_seed, first_states)
        plan.check(learn)
        common = (pickled, torch_settings(n_jobs), first_seed, digest(learn), secrets.token_hex())
        del learn
    finally:
        first_states.restore()
    names = list(plan.configurations)
    return _results([Job(*common, seed, name, folder_of(names.index(name), name, seed)) for seed, name in jobs], n_jobs)


def _results(jobs: Sequence[Job], n_jobs: int) -> Generator[Run, None, None]:
    joblib = import_optional("joblib", FEATURE, INSTALL)
    backend, _ = joblib.parallel.get_active_backend()
    return_as = "generator" if getattr(backend, "supports_return_generator", False) else "list"
    # One job at a time for each worker: jobs that are pickled together would share their loaders.
    parallel = joblib.Parallel(n_jobs=n_jobs, batch_size=1, pre_dispatch=n_jobs, return_as=return_as)
    try:
        with contextlib.ExitStack() as stack:
            results = parallel(joblib.delayed(work)(job) for job in jobs)
            if return_as == "generator":
                stack.callback(_close, results)
            for result in results:
                if isinstance(result, Failure):
                    raise result.error from WorkerTraceback(result.traceback)
                yield result
    except BrokenExecutor as error:
        raise MinifastError(
            "A worker process was killed, perhaps for lack of memory, in this run or in one of those beside it.",
            "Use fewer `n_jobs`.",
            "Use fewer --jobs.",
        ) from error


def _close(results: Generator[Any, None, None]) -> None:
    """End the workers if runs are left, without joblib's warning that their work is lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results.close()


# --- in the worker

_first_states = FirstStates()
_checked: set[str] = set()  # tokens of the comparisons whose first learner this process has made
_turn = threading.Lock()  # some backends run several jobs in the threads of one process


def work(job: Job) -> Run | Failure:
    """Train one run in a worker process."""
    with _turn:
        try:
            if job.token not in _checked:
                check_first_learner(job)
                _checked.add(job.token)
            plan = load_plan(job)
            learn = plan.learner(job.seed, _first_states)
            learn.path = learn.path / job.folder
            return plan.run(learn, job.name, job.seed)
        except Exception as error:
            return Failure(portable(error), traceback.format_exc())


def load_plan(job: Job) -> Plan:
    """Return a copy of the plan, with the settings of torch that it needs."""
    plan: Plan = pickle.loads(job.plan.data)
    apply_torch_settings(job.settings)  # after the modules that the plan imports, which may have set some
    return plan


def check_first_learner(job: Job) -> None:
    """Raise an error if the first seed gives another learner here than in the process that called ``compare``."""
    if digest(load_plan(job).learner(job.first_seed, _first_states)) != job.expected:
        raise MinifastError(
            f"`make_learner` gives another model or other data in a worker process, with the same seed "
            f"{job.first_seed}: it depends on something that each process makes anew. Load or make the data inside "
            f"`make_learner`, or pass n_jobs=1."
        )


def digest(learn: Learner) -> str:
    """Return a checksum of a new learner's weights, samples and data order."""
    weights = [value for value in learn.model.state_dict().values() if not nn.parameter.is_lazy(value)]
    loaders = [learn.data.train_dl, learn.data.valid_dl]
    samples = [getattr(loader, "dataset", getattr(loader, "dl", None)) for loader in loaders]
    order = [[getattr(loader, name, None) for name in ("seed", "epoch")] for loader in loaders]
    return checksum([[f"{len(part)}", part] for part in (weights, order)] + [[checksum(part)] for part in samples])


def torch_settings(n_jobs: int) -> dict[str, Any]:
    """Return the settings of this process that affect results, with a worker's share of the threads."""
    return {
        "threads": max(1, torch.get_num_threads() // n_jobs),
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
    }


def apply_torch_settings(settings: Mapping[str, Any]) -> None:
    """Set what ``torch_settings`` returned."""
    torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(settings["dtype"])
    torch.set_float32_matmul_precision(settings["precision"])
    torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn_only"])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = settings["cudnn"]


def folder_of(index: int, name: str, seed: int) -> str:
    """Return the folder in ``learn.path`` for the files of a run: two runs must not write the same file.

    >>> folder_of(1, "one cycle, 0.1", 3)
    'compare/1_one_cycle_0.1_seed_3'
    """
    return str(Path("compare") / f"{index}_{re.sub(r'[^a-zA-Z0-9.-]+', '_', name)}_seed_{seed}")


# --- what cannot be pickled


def pickle_plan(plan: Plan, cloudpickle: Any) -> bytes:
    """Return the pickled plan.

    Raises:
        TypeError: something cannot be pickled; the message names it and says what to do.
    """
    try:
        return bytes(cloudpickle.dumps(plan))
    except Exception as error:
        parts = {"make_learner": plan.make_learner}
        parts |= {f"the configuration {name}": value for name, value in plan.configurations.items()}
        for name, part in parts.items():
            where = unpicklable(part, cloudpickle)
            if where is not None:
                path, value = where
                inside = f", which uses {'.'.join(path)} of type {type(value).__name__}," if path else ""
                label = f"`{name}`" if " " not in name else name[0].upper() + name[1:]
                raise TypeError(
                    f"{label}{inside} cannot be sent to another process ({error}). Make such an object inside the "
                    f"function, or pass n_jobs=1."
                ) from error
        raise


def unpicklable(value: Any, cloudpickle: Any) -> tuple[list[str], Any] | None:
    """Return the innermost object that cannot be pickled, with the names that lead to it; None if all can.

    >>> import cloudpickle, threading
    >>> data = {"n": 1, "lock": threading.Lock()}
    >>> unpicklable(lambda: data["n"], cloudpickle)[0]
    ['data', 'lock']
    """
    if _can_be_pickled(value, cloudpickle):
        return None
    path: list[str] = []
    seen = {id(value)}
    while True:
        parts = parts_of(value).items()
        found = [name for name, part in parts if id(part) not in seen and not _can_be_pickled(part, cloudpickle)]
        if not found:
            return path, value
        path.append(found[0])
        value = parts_of(value)[found[0]]
        seen.add(id(value))


def _can_be_pickled(value: Any, cloudpickle: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


def parts_of(value: Any) -> dict[str, Any]:
    """Return what an object holds, by name: the variables of a function, the elements of a container, attributes."""
    if isinstance(value, partial):
        return {"func": value.func, **parts_of(value.args), **value.keywords}
    if isinstance(value, MethodType):
        return {type(value.__self__).__name__: value.__self__}
    if isinstance(value, FunctionType):
        variables = inspect.getclosurevars(value)
        return {**variables.globals, **variables.nonlocals}
    if isinstance(value, Mapping):
        return {str(name): element for name, element in value.items()}
    if isinstance(value, (list, tuple, set)):
        return {str(i): element for i, element in enumerate(value)}
    return dict(getattr(value, "__dict__", {}))
