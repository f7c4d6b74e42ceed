"""Where a script calls ``launch``: what each process would call again is refused before a process starts."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from minifast import MinifastError
from minifast.distributed import launch

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
