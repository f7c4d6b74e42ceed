"""Where a script calls ``launch``: what each process would call again is refused before a process starts."""

from __future__ import annotations

import sys
import threading
import traceback
from functools import partial
from multiprocessing.reduction import ForkingPickler
from types import ModuleType

import pytest
import torch

from minifast import MinifastError
from minifast.distributed import launch
from minifast.distributed.launch import _cause

REFUSED = {
    "launch(train)": 1,
    "x = 1\n\nprint(\n    launch(train)\n)": 4,
    "def main():\n    launch(train)\n\nmain()": 4,
    "for n in (1, 2):\n    launch(train, nproc=n)": 2,
    "if __name__ == '__main__':\n    x = 1\nlaunch(train)": 3,
}
ALLOWED = (
    "if __name__ == '__main__':\n    launch(train)",
    "def main():\n    launch(train)\n\nif __name__ == '__main__':\n    x = 1\n    main()",
    "import multiprocessing\nif multiprocessing.parent_process() is None:\n    launch(train)",
)


class StartedError(Exception):
    pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a script as the main module, up to the start of a process."""

    def start(*args, **options):
        raise StartedError

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", start)

    def run(text: str) -> None:
        script = tmp_path / "script.py"
        script.write_text(text)
        main = ModuleType("__main__")
        main.__file__ = str(script)
        vars(main).update(launch=launch, train=sample)
        monkeypatch.setitem(sys.modules, "__main__", main)
        exec(compile(text, str(script), "exec"), vars(main))

    return run


def sample():
    return 1


@pytest.mark.parametrize("text", REFUSED)
def test_a_call_that_each_process_would_repeat_is_refused_with_its_line(text, run):
    with pytest.raises(
        MinifastError, match=rf"called in line {REFUSED[text]} of .*script\.py, .* put the call under `if"
    ):
        run(text)


@pytest.mark.parametrize("text", ALLOWED)
def test_a_guarded_call_starts_processes(text, run):
    with pytest.raises(StartedError):
        run(text)


def test_a_call_outside_of_a_script_starts_processes(monkeypatch):
    def start(*args, **options):
        raise StartedError

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", start)
    with pytest.raises(StartedError):
        launch(sample)


@pytest.fixture
def pickling(monkeypatch):
    """Start processes up to the pickling of what they get."""

    def start(config, function):
        return lambda *values: [ForkingPickler.dumps(values)]

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", start)


def inner():
    def train():
        return 1

    return train


@pytest.mark.usefixtures("pickling")
@pytest.mark.parametrize("function", [lambda: 1, inner(), partial(lambda n: n, 1)])
def test_a_function_that_cannot_be_pickled_is_refused_with_the_way_out(function):
    with pytest.raises(MinifastError, match=r"The function .* cannot be sent .* Define it with `def` at the top of a"):
        launch(function)


@pytest.mark.usefixtures("pickling")
def test_an_argument_that_cannot_be_pickled_is_named():
    for options in ({"lock": threading.Lock()}, {"arguments": [lambda: 1]}):
        with pytest.raises(MinifastError, match=r"The argument .* cannot be sent to other processes .* Let the func"):
            launch(sample, **options)
    assert launch(sample, 65, n=3)


def test_a_function_that_was_called_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"got 1; pass the function itself, .* launch\(train, 65\), not train\(65\)"):
        launch(sample())


def reported(error: BaseException) -> dict:
    """What torch's launcher reports of an error."""
    return {
        "message": f"{type(error).__name__}: {error}",
        "extraInfo": {"py_callstack": "".join(traceback.format_exception(error))},
    }


def fails():
    raise KeyError("oops")


def fails_in_torch():
    torch.zeros(2).view(3)


def fails_in_a_module_of_torch():
    torch.nn.Linear(2, 3)(torch.zeros(3))


def fails_with_a_cause():
    try:
        fails()
    except KeyError as error:
        raise ValueError("no file") from error


@pytest.mark.parametrize("function", [fails, fails_in_torch, fails_in_a_module_of_torch, fails_with_a_cause])
def test_the_error_of_a_process_has_the_line_of_the_code_of_the_caller(function):
    with pytest.raises((KeyError, RuntimeError, ValueError)) as error:
        function()
    last = function.__code__.co_firstlineno + {"fails_with_a_cause": 4}.get(function.__name__, 1)
    assert _cause(reported(error.value)).endswith(f"(line {last} of {__file__}, in {function.__name__})")


def test_an_error_without_a_message_has_no_colon():
    message = {"message": "KeyboardInterrupt: ", "extraInfo": {"py_callstack": ""}}
    assert _cause(message) == "KeyboardInterrupt"
