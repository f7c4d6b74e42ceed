"""Start several processes from one, as torchrun does from a shell: a thin call of torch's elastic launcher."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from minifast.distributed.group import _state, current_group, leave
from minifast.errors import MinifastError
from minifast.utils.checks import check_callable, check_count

T = TypeVar("T")


def launch(function: Callable[..., T], *arguments: Any, nproc: int = 2, **keywords: Any) -> T:
    """Call a function in several processes that train together, and return what it returned in the first.

    Use it in a notebook, where ``torchrun`` cannot start the script. The function makes data, model and learner by
    itself. What it returns is pickled: return numbers, tensors or a file name, or save the model and load it again.

    In a notebook the processes are forks of this one and see its variables, so nothing may have used a GPU before. In
    a script they import the function, so the call must be under ``if __name__ == "__main__":``.

    Args:
        function: the function to call in each process.
        arguments: arguments for the function.
        nproc: the number of processes on this machine: one per GPU.
        keywords: keyword arguments for the function.

    Raises:
        MinifastError: the function failed in a process; the message names the process and the cause. Or a GPU was used
            before in a notebook.
    """
    check_callable("function", function)
    check_count("nproc", nproc)
    if current_group() is not None:
        raise MinifastError(
            f"launch was called in process {os.environ.get('RANK')} of several; call it in a single process, or only "
            f"the function under torchrun."
        )
    forks = function.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
    if forks and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise MinifastError(
            "A GPU was used in this notebook before, so it cannot be used in other processes that this one starts. "
            "Restart the kernel, and use the GPU only in the function."
        )
    api: Any = importlib.import_module("torch.distributed.launcher.api")
    config = api.LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=f"minifast{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork" if forks else "spawn",
        max_restarts=0,
    )
    errors: Any = importlib.import_module("torch.distributed.elastic.multiprocessing.errors")
    try:
        results = api.elastic_launch(config, _call)(function, arguments, keywords)
    except errors.ChildFailedError as error:
        rank, failure = error.get_first_failure()
        said = failure.message.get("message") if isinstance(failure.message, dict) else failure.message
        raise MinifastError(f"Process {rank} of {nproc} failed: {said}") from error
    return results[0]  # type: ignore[no-any-return]


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Call the function in a process that the launcher started."""
    _state.group, _state.alone = None, False  # of a fork, what the process before knew
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    try:
        result = function(*arguments, **keywords)
    except BaseException as error:
        if _state.group is not None:
            _state.group.fail(error)
        raise
    finally:
        leave()
    return result if os.environ.get("RANK") == "0" else None
