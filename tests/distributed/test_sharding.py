"""A model that is sharded over two processes trains, saves and resumes like a whole one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_processes import HERE, environment, made_once, torchrun
from torch import nn

from minifast import DataBunch, Learner, MinifastError, simple_ann
from minifast.distributed.sharding import layers_of

pytestmark = pytest.mark.slow
KINDS = ("AdamW", "SGD", "accumulated")


def train(folder: Path) -> None:
    def run(size: int, *cases: str) -> None:
        if size == 1:
            command = [sys.executable, str(HERE / "sharded.py"), str(folder), *cases]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
        else:
            done = torchrun(size, "sharded.py", folder, *cases)
        assert done.returncode == 0, done.stderr[-3000:]

    run(1, *(f"fit:{kind}" for kind in KINDS), "whole:run", "stop:to shards")
    run(
        2,
        *(f"shard:{kind}" for kind in KINDS),
        *("whole-sharded:run of two", "stop-sharded:run 2", "resume-sharded:run 2"),
        *("stop-sharded:to whole", "resume:to whole", "stop-sharded:to one"),
        *("resume-sharded:to shards", "refusals:"),
    )
    run(1, "resume:to one")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_once(tmp_path_factory, "sharded", train)


def read(folder, name, size, rank=0):
    return torch.load(folder / f"{name}_{size}_{rank}.pt", weights_only=False)


def assert_equal(a, b, **tolerance):
    for name, value in a["weights"].items():
        torch.testing.assert_close(b["weights"][name], value, **tolerance)
    for name in ("lrs", "losses", "validated", "predictions"):
        torch.testing.assert_close(torch.as_tensor(b[name]), torch.as_tensor(a[name]), **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_one_process(kind, folder):
    one = read(folder, f"fit-{kind}", 1)
    for rank in (0, 1):
        shards = read(folder, f"shard-{kind}", 2, rank)
        assert shards["sharded"]
        assert_equal(one, shards, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.tensor(shards["found"]), torch.tensor(one["found"]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_holds_its_part_of_weights_and_optimizer_state(kind, folder):
    whole = read(folder, f"fit-{kind}", 1)["held"]
    parts = [read(folder, f"shard-{kind}", 2, rank)["held"] for rank in (0, 1)]
    assert sum(parts) == whole
    assert max(parts) < 0.6 * whole


@pytest.mark.parametrize("rank", [0, 1])
def test_as_many_processes_resume_bit_for_bit(rank, folder):
    whole, resumed = (read(folder, name, 2, rank) for name in ("whole-sharded-run of two", "resume-sharded-run 2"))
    assert_equal(whole, resumed, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "size"), [("resume-to one", 1), ("resume-to whole", 2), ("resume-sharded-to shards", 2)]
)
def test_another_number_of_processes_or_a_whole_model_resumes_up_to_rounding(name, size, folder):
    one = read(folder, "whole-run", 1)
    for rank in range(size):
        assert_equal(one, read(folder, name, size, rank), rtol=1e-9, atol=1e-12)


def test_the_shards_of_the_last_two_saves_stay(folder):
    names = {file.name for file in (folder / "models").glob("run 2.*")}
    shards = {name for name in names if name.endswith(".shards")}
    assert names - shards == {"run 2.checkpoint", "run 2.previous.checkpoint"}
    assert len(shards) == 2


def test_what_a_sharded_model_cannot_do_is_said(folder):
    told = read(folder, "refusals-", 2)
    assert "sharded already" in told["again"]
    assert "save its weights with learn.save" in told["export"]


def test_one_process_has_nothing_to_shard():
    data = DataBunch([(torch.randn(8, 4), torch.randint(2, (8,)))] * 2, device="cpu", classes=["no", "yes"])
    with pytest.raises(MinifastError, match="needs several processes"):
        Learner(data, simple_ann(4, 2)).shard()


def test_layers_that_share_a_parameter_belong_to_the_whole_model():
    first, second, third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.ModuleDict({"a": nn.Sequential(first, nn.ReLU()), "b": nn.ModuleList([second, third])})
    assert layers_of(model) == [third]
