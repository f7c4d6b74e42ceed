"""Checkpointed runs of several processes resume, in as many processes bit for bit, and in another number."""

from __future__ import annotations

import pytest
import torch
from resumed import KINDS
from test_processes import made_once, torchrun, train_in_two


def read(folder, name, size, rank=0):
    return torch.load(folder / f"{name}_{size}_{rank}.pt", weights_only=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_once(tmp_path_factory, "two", train_in_two)


def assert_equal(a, b, **tolerance):
    for name, value in a["weights"].items():
        torch.testing.assert_close(b["weights"][name], value, **tolerance)
    for name in ("lrs", "losses", "rows"):
        torch.testing.assert_close(torch.tensor(b[name]), torch.tensor(a[name]), **tolerance)


@pytest.mark.parametrize("kind", [*KINDS, "random"])
@pytest.mark.parametrize("rank", [0, 1])
def test_as_many_processes_resume_bit_for_bit(kind, rank, folder):
    whole, resumed = read(folder, f"{kind} whole by two", 2, rank), read(folder, f"{kind} of two", 2, rank)
    assert_equal(whole, resumed, rtol=0, atol=0)
    assert torch.equal(whole["random"], resumed["random"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "size"), [("of two, then one", 1), ("of one, then two", 2)])
def test_another_number_of_processes_resumes_up_to_rounding(kind, name, size, folder):
    whole = read(folder, f"{kind} whole by one", 1)
    for rank in range(size):
        assert_equal(whole, read(folder, f"{kind} {name}", size, rank), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_runs_with_killed_processes_end_as_undisturbed_ones(tmp_path, record_property):
    kills = 20
    assert torchrun(2, "resumed.py", tmp_path, "random:not killed:").returncode == 0
    options = ("--max-restarts", str(kills))
    done = torchrun(2, "resumed.py", tmp_path, "random:killed:kill", options=options, KILLS=str(kills))
    assert done.returncode == 0, done.stderr[-3000:]
    happened = len(list(tmp_path.glob("killed?*"))) - 2  # two files are the outcomes
    assert happened > kills / 2  # the others came too late
    record_property("cases", happened)
    for rank in (0, 1):
        assert_equal(read(tmp_path, "not killed", 2, rank), read(tmp_path, "killed", 2, rank), rtol=0, atol=0)
