"""What a process tells of its share of a batch: a loss that is no mean, too few samples for BatchNorm."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from conftest import toy_learner
from test_processes import environment
from torch import nn

from minifast import DataBunch, DataError, Learner
from minifast.distributed.group import Group
from minifast.training.batch_checks import ONE_VALUE, check_normalization
from minifast.training.parallel import Parallel, wrap
from minifast.training.state import State

SCRIPT = """
import warnings
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from minifast import *

set_seed(0)
x, weight = torch.randn(64, 8), torch.tensor([1.0, 10.0, 0.1])
samples = TensorDataset(x, x[:, :3].argmax(1))


def contrastive(output, target):
    return functional.cross_entropy(output @ output.T, torch.arange(len(output)))


def weighted(output, target):
    return functional.cross_entropy(output, target, weight=weight)


def mean(output, target):
    return functional.cross_entropy(output, target)


def fit(loss, model, n=64):
    data = DataBunch(DataLoader(TensorDataset(*samples[:n]), 16), DataLoader(samples, 32), device="cpu")
    learn = Learner(data, model, loss_func=loss, silent=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        learn.fit(2, 1e-2)


for loss in (contrastive, weighted, mean, nn.CrossEntropyLoss(weight)):
    fit(loss, nn.Linear(8, 3))
fit(mean, nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)), 35)
"""


@pytest.mark.slow
def test_two_processes_warn_of_a_loss_that_is_no_mean_and_name_a_share_of_one_sample(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    told = [line for line in done.stderr.splitlines() if "is not the mean over the samples" in line]
    assert ["contrastive" in line for line in told] == [True, False]
    assert "weighted" in told[1]
    assert all("the gradients of the 2 processes do not add up" in line for line in told)
    assert all("distributed=False" in line for line in told)
    assert done.returncode != 0
    share = "DataError: The share of process 1 has 1 sample of the batch's 3, but BatchNorm needs two or more"
    assert f"minifast.errors.{share}" in done.stderr
    assert "minifast: the error above is of process 1 of 2" in done.stderr


@pytest.mark.parametrize(("counts", "rank"), [([2, 1], 1), ([1, 1], 0), ([1, 0], 1), ([2, 1, 1], 2)])
def test_a_share_of_one_sample_is_named_with_the_way_out(counts, rank):
    has = f"{counts[rank]} sample{'' if counts[rank] == 1 else 's'} of the batch's {sum(counts)}"
    way_out = rf"drop_last=True, or choose .* needs {2 * len(counts)} or more"
    with pytest.raises(DataError, match=f"The share of process {rank} has {has}, but BatchNorm .*{way_out}"):
        check_normalization(ValueError(f"{ONE_VALUE}, got"), counts, rank)
    check_normalization(ValueError("another"), counts, rank)
    check_normalization(ValueError(ONE_VALUE), [2 for _ in counts], rank)


def test_a_batch_of_one_sample_is_named_in_one_process():
    batches = [(torch.randn(n, 4), torch.arange(n) % 2) for n in (4, 1)]
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    learn = Learner(DataBunch(batches, device="cpu"), model, loss_func=nn.CrossEntropyLoss(), silent=True)
    with pytest.raises(DataError, match=r"The batch has 1 sample, but BatchNorm .* drop_last=True"):
        learn.fit(1)


@pytest.fixture
def one_process_group():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_the_reducer_of_a_wrapped_model_is_freed_without_a_collection():
    learn = toy_learner()
    parallel = Parallel(learn, State(1, None), Group(0, 1), {}, trains=True)
    kept = parallel._wrapped = wrap(learn.model)  # as by a frame of torch that an error holds
    x = torch.randn(4, 10)
    parallel._wrapped(x).sum().backward()
    reducer = weakref.ref(parallel._wrapped.reducer)
    collections = [generation["collections"] for generation in gc.get_stats()]
    gc.disable()
    try:
        parallel.unwrap()
        assert reducer() is None
    finally:
        gc.enable()
    assert [generation["collections"] for generation in gc.get_stats()] == collections
    assert not vars(kept)
    learn.model.zero_grad()
    learn.model(x).sum().backward()  # which no reducer sees
    parallel.unwrap()
