"""Weights of several processes: equal ones take one exchange, rounding is accepted, and more raises an error."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import toy_learner

from minifast import MinifastError
from minifast.distributed.group import Group
from minifast.training import same_weights

N = 3


@pytest.fixture
def processes(monkeypatch):
    """Let threads exchange values as processes do; return a function that checks their learners, with its errors."""
    here, barrier, values, exchanged = threading.local(), threading.Barrier(N, timeout=30), [None] * N, []

    def gather(value):
        values[here.rank] = value
        if barrier.wait() == 0:
            exchanged.append(copy.deepcopy(values))
        barrier.wait()
        return copy.deepcopy(exchanged[-1])

    def check(rank, learn):
        here.rank = rank
        try:
            same_weights.check_same_weights(learn, Group(rank, N), "now")
        except MinifastError as error:
            return str(error)
        return ""

    def check_all(learners):
        with ThreadPoolExecutor(N) as threads:
            return list(threads.map(check, range(N), learners)), exchanged

    monkeypatch.setattr(same_weights, "gather", gather)
    return check_all


@pytest.mark.parametrize(
    ("factor", "n_exchanges", "fails"), [(1, 1, False), (1 + 2e-7, 2, False), (1.01, 2, True), (-1, 2, True)]
)
@pytest.mark.parametrize("rank", [0, 2])
def test_another_exchange_tells_rounding_from_a_difference(factor, n_exchanges, fails, rank, processes):
    learners = [toy_learner() for _ in range(N)]
    for learn in learners:
        learn.model.load_state_dict(learners[0].model.state_dict())
    name, parameter = list(learners[rank].model.named_parameters())[-1]
    with torch.no_grad():
        parameter.mul_(factor)
    errors, exchanged = processes(learners)
    assert len(exchanged) == n_exchanges
    assert all([theirs.keys() == {name} for theirs in values] == [True] * N for values in exchanged[1:])
    other = rank or 1
    expected = f"The parameter {name} differs in process 0 and process {other} now"
    assert [error[: len(expected)] for error in errors] == [expected if fails else ""] * N
