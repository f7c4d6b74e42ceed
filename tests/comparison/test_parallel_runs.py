"""compare with n_jobs: the same numbers, errors that name the run, threads, files and the end of the workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import toy_items
from torch import nn
from torch.utils.data import DataLoader

from minifast import (
    DataBunch,
    Learner,
    MinifastError,
    TensorDataBunch,
    accuracy,
    compare,
    one_cycle,
    simple_ann,
)
from minifast.comparison.processes import unpicklable
from minifast.schedules import linear

joblib = pytest.importorskip("joblib", reason='joblib is not installed: pip install "minifast[parallel]"')
CONFIGURATIONS = {"a": 1e-2, "b": one_cycle(5e-2), "c": {"lr": linear(1e-2, 0.0), "mom": 0.8}}
OF_THIS_PROCESS = torch.full((60, 10), float(os.getpid()))


def model_with_dropout() -> nn.Module:
    return nn.Sequential(simple_ann(10, 16, 8), nn.Dropout(0.3), nn.Linear(16, 2))


def shared_tensors():
    x, y = toy_items().tensors
    data = TensorDataBunch.from_arrays(x, y, bs=16, seed=3, device="cpu")
    return lambda: Learner(data, model_with_dropout(), metrics=[accuracy])


def seeded_tensors():
    x, y = toy_items().tensors
    return lambda seed: Learner(
        TensorDataBunch.from_arrays(x, y, bs=16, seed=seed, device="cpu"), model_with_dropout(), metrics=[accuracy]
    )


def shared_torch_loaders():
    generator = torch.Generator().manual_seed(1)
    train_dl = DataLoader(toy_items(), 20, shuffle=True, generator=generator)
    valid_dl = DataLoader(toy_items(), 20, shuffle=True, generator=generator)
    data = DataBunch(train_dl, valid_dl, device="cpu")
    return lambda: Learner(data, model_with_dropout(), metrics=[accuracy])


def results_of(comparison):
    return {
        name: [(run.seed, run.lrs, run.losses, run.reached) for run in runs] for name, runs in comparison.runs.items()
    }


@pytest.mark.parametrize("make", [shared_tensors, seeded_tensors, shared_torch_loaders], ids=lambda make: make.__name__)
@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(make) -> None:
    configurations = {**CONFIGURATIONS, "function": lambda learn, epochs: learn.fit_one_cycle(epochs, 1e-2)}
    before = torch.get_rng_state()
    alone, parallel = (
        compare(make(), configurations, epochs=2, seeds=[4, 1, 7], by="accuracy", silent=True, n_jobs=n) for n in (1, 2)
    )
    assert results_of(alone) == results_of(parallel)
    assert torch.equal(before, torch.get_rng_state())


def test_each_process_has_its_share_of_the_threads_and_the_settings_of_torch() -> None:
    def threads(output, target):
        return torch.tensor(float(torch.get_num_threads()))

    def digits(output, target):
        return torch.tensor(float(torch.finfo(torch.get_default_dtype()).bits))

    learner = shared_tensors()

    def make() -> Learner:
        learn = learner()
        learn.metrics = [threads, digits]
        learn.model.to(torch.float32)
        return learn

    torch.set_num_threads(4)
    torch.set_default_dtype(torch.float64)
    try:
        result = compare(make, {"a": 1e-2}, epochs=1, seeds=2, silent=True, n_jobs=2)
    finally:
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
    assert [(run.reached["threads"], run.reached["digits"]) for run in result.runs["a"]] == [(2, 64)] * 2


def test_files_of_runs_at_the_same_time_do_not_meet(tmp_path) -> None:
    learner = shared_tensors()

    def make() -> Learner:
        learn = learner()
        learn.path = tmp_path
        return learn

    def saves(learn, epochs):
        learn.fit(epochs, 1e-2)
        learn.save("model")

    compare(make, {"one cycle": saves, "b": saves}, epochs=1, seeds=2, silent=True, n_jobs=2)
    folders = {path.parent.parent.name for path in tmp_path.glob("compare/*/models/model.pth")}
    assert folders == {"0_one_cycle_seed_0", "0_one_cycle_seed_1", "1_b_seed_0", "1_b_seed_1"}


# An error ends the workers, and the next comparison starts others: these tests come after those that share them.


class NeedsTwoArguments(Exception):  # noqa: N818
    """An error that cannot be pickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def test_an_error_names_its_run_and_keeps_its_text_if_it_cannot_be_pickled() -> None:
    def breaks(learn, epochs):
        if torch.initial_seed() == 5:
            raise NeedsTwoArguments("first", "second")
        learn.fit(epochs, 1e-2)

    with pytest.raises(MinifastError, match="NeedsTwoArguments: first second") as caught:
        compare(shared_tensors(), {"a": 1e-2, "b": breaks}, epochs=1, seeds=[5, 6], silent=True, n_jobs=2)
    if hasattr(caught.value, "__notes__"):  # from Python 3.11 on
        assert caught.value.__notes__[-1] == "The comparison stopped in the configuration b with seed 5."
    text = str(caught.value.__cause__)
    assert "in breaks\n" in text
    assert text.endswith("NeedsTwoArguments: first second\n")


@pytest.mark.slow
def test_an_error_keeps_its_type_and_the_earlier_seeds() -> None:
    def breaks(learn, epochs):
        if torch.initial_seed() == 5:
            raise RuntimeError("broken")
        learn.fit(epochs, 1e-2)

    with pytest.warns(UserWarning, match="stopped in the configuration b with seed 5: RuntimeError: broken"):
        result = compare(shared_tensors(), {"a": 1e-2, "b": breaks}, epochs=1, seeds=[6, 5, 8], silent=True, n_jobs=2)
    assert {name: [run.seed for run in runs] for name, runs in result.runs.items()} == {"a": [6], "b": [6]}
    assert type(result.ended_by) is RuntimeError
    assert str(result.ended_by.__cause__).endswith("in breaks\nRuntimeError: broken\n")


@pytest.mark.slow
def test_a_killed_worker_is_an_error_in_one_sentence() -> None:
    def dies(learn, epochs):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(MinifastError, match=r"A worker process was killed, .* Use fewer `n_jobs`\."):
        compare(shared_tensors(), {"a": dies, "b": dies}, epochs=1, seeds=1, silent=True, n_jobs=2)


def test_what_cannot_be_pickled_is_named_with_the_way_out() -> None:
    data = toy_items()
    data.lock = threading.Lock()
    learner = shared_tensors()
    with pytest.raises(
        TypeError, match=r"`make_learner`, which uses data\.lock of type lock, cannot be sent .* inside"
    ):
        compare(lambda: (data, learner())[1], CONFIGURATIONS, n_jobs=2)
    with pytest.raises(TypeError, match=r"The configuration b, which uses data\.lock of type lock, cannot be sent"):
        compare(learner, {"a": 1e-2, "b": lambda learn, epochs: data}, n_jobs=2)
    assert unpicklable(learner, pytest.importorskip("cloudpickle")) is None


@pytest.mark.slow
def test_data_that_each_process_makes_anew_are_noticed() -> None:
    data = TensorDataBunch.from_arrays(OF_THIS_PROCESS, [0, 1] * 30, seed=0, device="cpu")
    assert Learner(data, simple_ann(10, 2, 8))
    with pytest.raises(MinifastError, match=r"gives another model or other data in a worker process, with .* seed 3"):
        compare(learner_of_this_module, {"a": 1e-2}, epochs=1, seeds=[3, 4], silent=True, n_jobs=2)


def learner_of_this_module() -> Learner:
    data = TensorDataBunch.from_arrays(OF_THIS_PROCESS, [0, 1] * 30, seed=0, device="cpu")
    return Learner(data, simple_ann(10, 2, 8))


@pytest.mark.parametrize("n_jobs", [0, -2, True, 2.0, "2"])
def test_invalid_numbers_of_processes(n_jobs) -> None:
    with pytest.raises(ValueError, match="`n_jobs` must be a number of processes, or -1 for one per core, got"):
        compare(shared_tensors(), CONFIGURATIONS, n_jobs=n_jobs)


def test_without_joblib_the_error_has_the_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(
        ImportError, match=r'compare with n_jobs needs .*: python -m pip install "minifast\[parallel\]"'
    ):
        compare(shared_tensors(), CONFIGURATIONS, n_jobs=2)


def test_threads_are_no_processes() -> None:
    with (
        joblib.parallel_config(backend="threading"),
        pytest.raises(ValueError, match=r"`n_jobs` needs a joblib backend of processes, .* ThreadingBackend share"),
    ):
        compare(shared_tensors(), CONFIGURATIONS, n_jobs=2)


SCRIPT = """
import os, time, torch
from minifast import *
from minifast.comparison import compare
from minifast.training.progress import LineProgress
torch.set_num_threads(1)
LineProgress.epochs_done = lambda *_: open("the first seed is done", "w").close()
x = torch.randn(60, 10)
data = TensorDataBunch.from_arrays(x, x[:, 0] > 0, seed=3, device="cpu")

def train(learn, epochs):
    if torch.initial_seed():
        open(f"pid {os.getpid()}", "w").close()
        time.sleep(600)
    learn.fit(epochs, 1e-2)

result = compare(lambda: Learner(data, simple_ann(10, 2, 8)), {"a": train, "b": train}, 1, seeds=4, n_jobs=2)
print("ended by", repr(result.ended_by), [len(runs) for runs in result.runs.values()])
"""


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [True, False], ids=["terminal", "main"])
def test_ctrl_c_ends_all_processes(to_all, tmp_path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            begin = time.monotonic()
            # Before that, an interrupt would stop the imports, or fewer runs than expected.
            while len(list(tmp_path.iterdir())) < 3:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < begin + 300, "the processes did not start"
                time.sleep(0.1)
            pids = list(tmp_path.glob("pid *"))
            assert len(pids) == 2
            begin = time.monotonic()
            (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
            assert time.monotonic() - begin < 20
            assert "Stopped after 2 of 8 runs." in out
            assert "ended by KeyboardInterrupt() [1, 1]" in out
            assert err == ""
            assert not [pid for pid in pids if Path("/proc", pid.name.removeprefix("pid ")).exists()]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_cluster_of_dask_gives_the_numbers_of_one_process() -> None:
    distributed = pytest.importorskip("dask.distributed", reason="dask's distributed is not installed")
    alone = compare(shared_tensors(), CONFIGURATIONS, epochs=1, seeds=2, silent=True)
    with (
        distributed.Client(n_workers=2, threads_per_worker=2, dashboard_address=None),
        joblib.parallel_config(backend="dask"),
    ):
        cluster = compare(shared_tensors(), CONFIGURATIONS, epochs=1, seeds=2, silent=True, n_jobs=-1)
    assert results_of(alone) == results_of(cluster)
