"""Several processes train, validate and predict as one: the same cases in one process and in several."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minifast.utils.locks import locked

sys.path.insert(0, str(Path(__file__).parent))
import cases
import resumed
from cases import CASES, DEFAULT, SLOW

HERE = Path(__file__).parent
TOLERANCE = {"/half precision": (1e-2, 1e-3), "/single precision": (1e-5, 1e-6)}  # else float64


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), **more}


def torchrun(size: int, script: str, *arguments: object, options: tuple[str, ...] = (), **more: str):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command += [*options, str(HERE / script), *map(str, arguments)]
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=500)


def results(folder: Path, size: int, prefix: str = "") -> list[dict]:
    return [torch.load(folder / f"{prefix}{size}_{rank}.pt", weights_only=False) for rank in range(size)]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` writes, once in a run of pytest, also where pytest-xdist has several processes."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder.with_name(f"{name} is done")
    with locked(folder):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of another process, where it failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def train_in_two(folder: Path) -> None:
    """Write the files of the default cases and of the resumed runs, in this process and in two that start once."""
    cases.main(str(folder), *DEFAULT)
    resumed.main(folder, *resumed.IN_ONE)
    done = torchrun(2, "resumed.py", folder, "cases", *resumed.IN_TWO)
    assert done.returncode == 0, done.stderr[-3000:]
    resumed.main(folder, *resumed.THEN_IN_ONE)


def train_in_three(folder: Path) -> None:
    cases.main(str(folder), *CASES)
    done = torchrun(3, "cases.py", folder, *CASES)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    folder = made_once(tmp_path_factory, "two", train_in_two)
    return results(folder, 1)[0], results(folder, 2)


@pytest.fixture(scope="module")
def one_and_three(tmp_path_factory):
    folder = made_once(tmp_path_factory, "three", train_in_three)
    return results(folder, 1)[0], results(folder, 3)


def flat(value, path=""):
    """The tensors and plain values in nested ones, by path."""
    if isinstance(value, dict):
        return {key: leaf for name, element in value.items() for key, leaf in flat(element, f"{path}/{name}").items()}
    if isinstance(value, (list, tuple)) and not all(isinstance(element, float) for element in value):
        return {key: leaf for i, element in enumerate(value) for key, leaf in flat(element, f"{path}/{i}").items()}
    return {path: torch.tensor(value, dtype=torch.float64) if isinstance(value, (list, tuple, float)) else value}


def check(name: str, one: dict, several: list[dict]) -> None:
    first = flat(several[0][name])
    for other in several[1:]:
        for path, value in flat(other[name]).items():
            if not (name == "alone" and path == "/random"):
                assert torch.equal(value, first[path]) if torch.is_tensor(value) else value == first[path], path
    expected = flat(one[name])
    assert expected.keys() == first.keys()
    for path, value in expected.items():
        if path.startswith("/of all ranks"):  # random numbers of the processes, which are equal on all
            continue
        if not torch.is_tensor(value):
            assert value == first[path], path
        elif value.is_floating_point():
            assert value.shape == first[path].shape, path
            rtol, atol = next((limits for name, limits in TOLERANCE.items() if path.startswith(name)), (1e-10, 1e-12))
            torch.testing.assert_close(first[path], value, rtol=rtol, atol=atol)
        else:
            assert torch.equal(value, first[path]), path


@pytest.mark.parametrize("name", DEFAULT)
def test_two_processes_equal_one(name, one_and_two):
    check(name, *one_and_two)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_three_processes_equal_one(name, one_and_three):
    check(name, *one_and_three)


def test_the_slow_cases_exist():
    assert set(SLOW) < set(CASES)
