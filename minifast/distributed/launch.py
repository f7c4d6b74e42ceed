"""Start several processes from one, as torchrun does from a shell: a thin call of torch's elastic launcher."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

import torch

from minifast.distributed.group import OtherProcessError, _state, current_group, leave, wait_for_the_first
from minifast.errors import MinifastError
from minifast.utils.checks import check_callable, check_count, shown
from minifast.utils.public import PACKAGE, library_folders

T = TypeVar("T")


def launch(function: Callable[..., T], *arguments: Any, nproc: int = 2, **keywords: Any) -> T:
    """Call a function in several processes that train together, and return what it returned in the first.

    Use it in a notebook, where ``torchrun`` cannot start the script. The function makes data, model and learner by
    itself. What it returns is pickled: return numbers, tensors or the model, or save the model and load it again.

    In a notebook the processes are forks of this one and see its variables, so nothing may have used a GPU before. In
    a script they import the function, so the call must be under ``if __name__ == "__main__":``.

    Args:
        function: the function to call in each process.
        arguments: arguments for the function.
        nproc: the number of processes on this machine: one per GPU.
        keywords: keyword arguments for the function.

    Raises:
        MinifastError: the function failed in a process; the message names the process, the cause and its line. Or the
            function or an argument cannot be pickled, a GPU was used before in a notebook, or a script calls it where
            each process would call it again.
    """
    check_callable(
        "function", function, "pass the function itself, with its arguments after it: launch(train, 65), not train(65)"
    )
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
    if not forks and (line := _unguarded_line()) is not None:
        raise MinifastError(
            f"launch is called in line {line} of {sys.modules['__main__'].__file__}, a script that each process "
            f'imports and so would call it again; put the call under `if __name__ == "__main__":`.'
        )
    api: Any = importlib.import_module("torch.distributed.launcher.api")
    errors: Any = importlib.import_module("torch.distributed.elastic.multiprocessing.errors")
    signals: Any = importlib.import_module("torch.distributed.elastic.multiprocessing.api")
    try:
        # Torch writes errors there, and removes no folder of its own.
        with _own_handlers(), tempfile.TemporaryDirectory(prefix="minifast_", ignore_cleanup_errors=True) as folder:
            config = api.LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=nproc,
                run_id=f"minifast{os.getpid()}",
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                start_method="fork" if forks else "spawn",
                max_restarts=0,
                logs_specs=signals.DefaultLogsSpecs(log_dir=folder),
            )
            results = api.elastic_launch(config, _call)(function, arguments, keywords)
    except signals.SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise
    except errors.ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if isinstance(failure.message, dict):
            raise MinifastError(f"Process {rank} of {nproc} failed: {_cause(failure.message)}") from error
        how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"exited with {failure.exitcode}"
        why = "" if forks or failure.exitcode != 1 else (
            " If its traceback above begins in your script and not in the function: each process imports the script, "
            "so what only the first one does must be under `if __name__ == \"__main__\":`."
        )  # fmt: skip
        raise MinifastError(f"Process {rank} of {nproc} {how}, before the function returned.{why}") from error
    except (pickle.PicklingError, AttributeError, TypeError):  # those of the function are in its process
        _check_pickling(function, [*arguments, *keywords.values()])
        raise
    return results[0]  # type: ignore[no-any-return]


def _check_pickling(function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Raise a MinifastError if the function or an argument cannot be sent to another process."""
    for value in (function, *arguments):
        try:
            ForkingPickler.dumps(value)
        except Exception as error:
            what, cure = f"The argument {shown(value)}", "Let the function make it."
            if value is function:
                what = f"The function {getattr(function, '__qualname__', shown(function))}"
                cure = "Define it with `def` at the top of a module or script, not inside a function or as a lambda."
            raise MinifastError(f"{what} cannot be sent to other processes ({error}). {cure}") from error


def _cause(message: dict[str, Any]) -> str:
    """Return the error of a process as torch's launcher reports it, with the line of the user's code."""
    error = str(message["message"]).removesuffix(": ")
    steps = re.findall(r'^  File "(.+)", line (\d+), in (.+)$', message["extraInfo"]["py_callstack"], re.MULTILINE)
    libraries = (PACKAGE, "<frozen", *library_folders())
    own = [step for step in steps if not step[0].startswith(libraries)]
    if not own:
        return error
    file, line, function = own[-1]
    return f"{error} (line {line} of {file}, in {function})"


def _unguarded_line() -> int | None:
    """Return the line of the script that is being executed, if other processes would execute it too on importing it.

    That is one outside of every ``if``, such as ``if __name__ == "__main__":``.
    """
    main = sys.modules["__main__"]
    frame = sys._getframe()
    while frame.f_back is not None and not (frame.f_globals is vars(main) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    if frame.f_globals is not vars(main) or frame.f_code.co_name != "<module>" or not getattr(main, "__file__", None):
        return None  # as in a thread
    try:
        statements = ast.parse(Path(str(main.__file__)).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    line = frame.f_lineno
    running = next((one for one in statements if one.lineno <= line <= (one.end_lineno or one.lineno)), None)
    return None if running is None or isinstance(running, (ast.If, ast.Try)) else line


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Restore the handlers of signals, such as Ctrl-C, that torch's launcher replaces."""
    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield
        return
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    try:
        yield
    finally:
        for name, handler in handlers.items():
            if handler is not None:  # one that Python did not install
                signal.signal(getattr(signal, name), handler)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Call the function in a process that the launcher started."""
    _state.group, _state.alone = None, False  # of a fork, what the process before knew
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    try:
        try:
            result = function(*arguments, **keywords)
        except BaseException as error:
            if _state.group is not None:
                _state.group.fail(error)
            raise
    except OtherProcessError:
        wait_for_the_first()
        raise
    finally:
        leave()
    if os.environ.get("RANK") != "0":
        return None
    try:
        ForkingPickler.dumps(result)
    except Exception as error:
        raise MinifastError(
            f"The function returned a {type(result).__name__}, which cannot be sent to the process that called launch "
            f"({error}). Let it return numbers, tensors or the name of a file."
        ) from error
    return result
