"""Where there is one process, nothing is different; and the arithmetic of shares."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import toy_data, toy_learner
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minifast import DataError, Learner, MinifastError
from minifast.comparison.processes import count_jobs
from minifast.data.shards import _rows_of
from minifast.diagnostics.summary import summary
from minifast.distributed import group, launch
from minifast.distributed.exchange import from_first, gather_rows, share_of, shares
from minifast.distributed.group import Group, OtherProcessError, _State, _state, current_group
from minifast.training.failed_layer import describe_failed_layer
from minifast.utils.random import get_rng_states, set_rng_states, states_for_rank


@given(st.integers(0, 300), st.integers(1, 9))
def test_shares_are_even_and_give_each_sample_to_one_process(n, size):
    counts = shares(n, size)
    assert sum(counts) == n
    assert max(counts) - min(counts) <= 1
    rows = list(range(n))
    given_to = [rows[share_of(n, rank, size)] for rank in range(size)]
    assert [row for part, count in zip(given_to, counts, strict=True) if count for row in part] == rows
    assert all(part == rows[:1] for part, count in zip(given_to, counts, strict=True) if not count)


def test_rows_are_taken_of_tensors_and_of_lists_with_a_value_for_each_sample():
    batch = ({"a": torch.arange(4), "scale": torch.ones(())}, ["w", "x", "y", "z"])
    x, y = _rows_of(batch, slice(1, 3), 4)
    assert x["a"].tolist() == [1, 2]
    assert x["scale"] == 1
    assert y == ["x", "y"]


def test_objects_that_no_process_can_split_or_gather_are_refused():
    batch = {"graph": SimpleNamespace(nodes=torch.arange(4)), "name": "a"}
    with pytest.raises(DataError, match=r"hold a SimpleNamespace, .* pass `batch_fn`"):
        _rows_of(batch, slice(1, 3), 4)
    with pytest.raises(MinifastError, match="hold a Normal, which several processes cannot gather; use tensors"):
        gather_rows((torch.distributions.Normal(0.0, 1.0), torch.arange(4)), 4, True, Group(0, 2))


def test_random_generators_of_another_process_follow_from_the_state_and_the_rank():
    torch.manual_seed(0)
    states = get_rng_states()
    sampled = []
    for rank in (0, 1, 2, 1):
        set_rng_states(states_for_rank(states, rank))
        sampled.append(torch.rand(1).item())
    assert sampled[1] == sampled[3]
    assert len(set(sampled)) == 3
    set_rng_states(states)
    assert torch.rand(1).item() == sampled[0]


def test_a_single_process_has_no_group():
    learn = toy_learner()
    assert current_group() is None
    assert from_first(lambda: 3, current_group()) == 3
    assert learn.parallel is None
    learn.fit(1)
    assert learn.parallel is None


def test_an_incomplete_environment_raises_an_error_and_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(_state, "alone", _State.alone)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(MinifastError, match="these are not set: MASTER_ADDR, MASTER_PORT"):
        current_group()
    monkeypatch.setenv("MINIFAST_DISTRIBUTED", "0")
    assert current_group() is None


def test_processes_that_train_together_start_no_others(monkeypatch):
    monkeypatch.setattr(_state, "group", Group(0, 2))
    assert count_jobs(1) == 1
    with pytest.raises(MinifastError, match="pass n_jobs=1"):
        count_jobs(2)
    with pytest.raises(MinifastError, match="call it in a single process"):
        launch(print)


def test_an_error_without_a_message_is_told_without_a_colon(monkeypatch):
    from torch.distributed import HashStore

    store = HashStore()
    monkeypatch.setattr(group, "PATIENCE", 0.01)
    monkeypatch.setattr(group, "leave", lambda: None)
    for rank, error in ((1, KeyboardInterrupt()), (0, ValueError("later"))):
        monkeypatch.setattr(_state, "group", Group(rank, 2, store))
        if rank:
            _state.group.fail(error)
        else:
            with pytest.raises(OtherProcessError, match=r"Process 1 of 2 failed, .* ends too: KeyboardInterrupt$"):
                _state.group.fail(error)


def test_a_sharded_layer_has_the_name_that_it_had_before():
    class FSDPLinear(nn.Linear):
        """A layer as fully_shard makes it, of a class of its own."""

    FSDPLinear.__module__ = "torch.distributed.fsdp"
    model = nn.Sequential(FSDPLinear(10, 2))
    assert summary(model, torch.zeros(4, 10)).splitlines()[1].startswith("Linear ")
    with pytest.raises(RuntimeError) as error:
        model(torch.zeros(4, 3))
    assert describe_failed_layer(model, error.value).startswith("Layer 0, Linear(in_features=10")
    assert f"Learner({FSDPLinear.__mro__[1].__name__} on" in repr(Learner(toy_data(), FSDPLinear(10, 2)))


def test_the_learner_keeps_what_it_was_told():
    learn = toy_learner(distributed=False, sync_bn=True)
    assert isinstance(learn, Learner)
    assert (learn.distributed, learn.sync_bn) == (False, True)
