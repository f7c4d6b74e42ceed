"""Batches as people have them: pairs, longer tuples, dicts, mappings and objects, and functions that split others."""

from __future__ import annotations

import copy
from collections import UserDict, namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from minifast import DataBunch, DataError, DatasetType, Learner, TensorDataBunch, accuracy

SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=4)
Three = namedtuple("Three", "a b y")


class Graph:
    """An object with a method ``to``, as a batch of graphs."""

    def __init__(self, a, b, y, device="cpu"):
        self.a, self.b, self.y, self.device = a, b, y, device

    def to(self, device):
        return Graph(self.a.to(device), self.b.to(device), self.y.to(device), torch.device(device))


class Two(nn.Module):
    """A model of two inputs, by position or name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, a, b):
        return self.layer(torch.cat([a, b], 1))


class OfGraph(Two):
    def forward(self, graph):
        assert graph.device == torch.device("cpu")
        return super().forward(graph.a, graph.b)


def samples(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(n, 2, generator=generator), torch.randn(n, 3, generator=generator)
    return a, b, torch.randint(3, (n,), generator=generator)


KINDS = {
    "tuple of three": (lambda a, b, y: (a, b, y), Two, {}),
    "list of three": (lambda a, b, y: [a, b, y], Two, {}),
    "named tuple": (Three, Two, {}),
    "nested": (lambda a, b, y: ((a, b), y), Two, {}),
    "labels": (lambda a, b, y: {"a": a, "b": b, "labels": y}, Two, {}),
    "label": (lambda a, b, y: {"label": y, "b": b, "a": a}, Two, {}),
    "target": (lambda a, b, y: {"b": b, "a": a, "kind": y}, Two, {"target": "kind"}),
    "mapping": (lambda a, b, y: UserDict(a=a, b=b, labels=y), Two, {}),
    "dict in a pair": (lambda a, b, y: ({"a": a, "b": b}, y), Two, {}),
    "object": (Graph, OfGraph, {}),
    "object in a pair": (lambda a, b, y: (Graph(a, b, y), y), OfGraph, {}),
    "batch_fn": (lambda a, b, y: [y, a, b], Two, {"batch_fn": lambda batch: ((batch[1], batch[2]), batch[0])}),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=4)
@given(sizes=SIZES)
def test_each_kind_of_batch_trains_and_validates_as_a_pair_does(kind, sizes):
    make, model, options = KINDS[kind]
    batches = [samples(n, seed) for seed, n in enumerate(sizes)]
    torch.manual_seed(0)
    network = model()
    twin = copy.deepcopy(network)
    data = DataBunch([make(*batch) for batch in batches], [make(*batch) for batch in batches], device="cpu", **options)
    learn = Learner(data, network, loss_func=nn.CrossEntropyLoss(), metrics=[accuracy], silent=True, wd=0)
    learn.opt_func = torch.optim.SGD
    learn.fit(1, 0.1)
    opt = torch.optim.SGD(twin.parameters(), lr=0.1)
    for a, b, y in batches:
        functional.cross_entropy(Two.forward(twin, a, b), y).backward()
        opt.step()
        opt.zero_grad()
    assert torch.equal(network.layer.weight, twin.layer.weight)
    a, b, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        output = Two.forward(twin, a, b)
    loss, score = learn.validate()
    assert loss == pytest.approx(float(functional.cross_entropy(output, y)), rel=1e-5)
    assert score == pytest.approx(float((output.argmax(1) == y).float().mean()))
    predictions, targets = learn.get_preds()
    assert torch.allclose(predictions, output.softmax(1), atol=1e-6)
    assert torch.equal(targets, y)


@pytest.mark.parametrize("kind", KINDS)
def test_lr_find_and_check_work_with_each_kind(kind):
    make, model, options = KINDS[kind]
    batches = [make(*samples(8, seed)) for seed in range(3)]
    data = DataBunch(batches, batches, device="cpu", **options)
    learn = Learner(data, model(), loss_func=nn.CrossEntropyLoss(), silent=True)
    before = learn.model.layer.weight.clone()
    assert learn.lr_find(num_it=5).lrs
    assert "fails" not in str(learn.check())
    assert torch.equal(before, learn.model.layer.weight)


def test_a_dict_that_forward_does_not_name_is_its_only_argument():
    class OfDict(Two):
        def forward(self, parts):
            return super().forward(parts["a"], parts["b"])

    a, b, y = samples(4)
    data = DataBunch([({"a": a, "b": b}, y)], device="cpu", loss_func=nn.CrossEntropyLoss())
    Learner(data, OfDict(), silent=True).fit(1)


def test_a_resumed_run_with_dicts_ends_as_the_whole_one(tmp_path):
    dataset = [{"a": a, "b": b, "labels": y} for a, b, y in zip(*samples(40), strict=True)]

    def learner(path):
        torch.manual_seed(1)
        data = DataBunch.create(dataset, dataset[:10], bs=8, seed=3, device="cpu")
        return Learner(data, Two(), loss_func=nn.CrossEntropyLoss(), silent=True, path=path)

    class StopError(Exception):
        pass

    whole, begun, resumed = (learner(tmp_path / name) for name in ("a", "b", "b"))
    whole.fit_one_cycle(2, 1e-2, checkpoint="run", every=1)
    step, steps = begun.model.forward, []

    def forward(a, b):
        steps.append(0)
        if len(steps) == 5:
            raise StopError
        return step(a, b)

    begun.model.forward = forward
    with pytest.raises(StopError):
        begun.fit_one_cycle(2, 1e-2, checkpoint="run", every=1)
    resumed.fit_one_cycle(2, 1e-2, checkpoint="run", every=1)
    assert torch.equal(whole.model.layer.weight, resumed.model.layer.weight)


@pytest.mark.parametrize("with_labels", [True, False])
def test_a_test_set_of_dicts_may_lack_targets(with_labels):
    a, b, y = samples(6)
    inputs = {"a": a, "b": b}
    labelled = {**inputs, "labels": y}
    data = DataBunch([labelled], None, [labelled if with_labels else inputs], device="cpu")
    learn = Learner(data, Two(), loss_func=nn.CrossEntropyLoss(), silent=True)
    predictions, targets = learn.get_preds(DatasetType.Test)
    assert predictions.shape == (6, 3)
    assert torch.equal(targets, y if with_labels else torch.zeros(6, dtype=torch.int64))


def test_predict_takes_a_sample_of_the_data_set():
    a, b, y = samples(6)
    data = DataBunch([{"a": a, "b": b, "labels": y}], device="cpu", classes=list("xyz"))
    learn = Learner(data, Two(), silent=True)
    expected = learn.model(a[:1], b[:1]).softmax(1)[0]
    for sample in ({"a": a[0], "b": b[0], "labels": y[0]}, UserDict(b=b[0].tolist(), a=a[0].numpy())):
        assert torch.allclose(learn.predict(sample)[2], expected, atol=1e-6)


def test_a_learner_with_batch_fn_leaves_the_data_as_they_were():
    data = TensorDataBunch.from_arrays(torch.randn(40, 4), torch.randint(2, (40,)), bs=8, device="cpu")
    learn = Learner(data, nn.Linear(4, 4), loss_func=nn.MSELoss(), batch_fn=lambda batch: (batch[0], batch[0]))
    learn.silent = True
    learn.fit(1)
    x, y = learn.data.one_batch()
    assert torch.equal(x, y)
    assert data.one_batch()[1].ndim == 1


def test_batch_fn_leaves_no_default_loss():
    data = TensorDataBunch.create([(torch.zeros(4), 1)] * 8, bs=4, device="cpu")
    with pytest.raises(DataError, match="No loss can be chosen"):
        Learner(data, nn.Linear(4, 4), batch_fn=lambda batch: (batch[0], batch[0]))


@pytest.mark.parametrize("result", [torch.zeros(2, 3), (1, 2, 3), None])
def test_batch_fn_must_return_a_pair(result):
    data = DataBunch([samples(4)], device="cpu", batch_fn=lambda batch: result)
    with pytest.raises(DataError, match=r"^`batch_fn` must return a pair \(inputs, targets\), got"):
        data.one_batch()


def test_a_name_that_forward_does_not_take_raises():
    a, b, y = samples(4)
    data = DataBunch([{"a": a, "b": b, "id": y, "labels": y}], device="cpu")
    learn = Learner(data, Two(), loss_func=nn.CrossEntropyLoss(), silent=True)
    with pytest.raises(DataError, match="The batch has 'id', but the model's forward takes only 'a', 'b'; remove it"):
        learn.fit(1)


@pytest.mark.parametrize("length", [2, 4])
def test_a_tuple_of_another_length_than_the_model_takes_raises(length):
    a, b, y = samples(4)
    batch = (a, y) if length == 2 else (a, b, y, y)
    data = DataBunch([batch], device="cpu", loss_func=nn.CrossEntropyLoss())
    with pytest.raises(DataError, match=rf"are {length - 1} values?, but Two.forward\(a, b\) does not take these"):
        Learner(data, Two(), silent=True).fit(1)


def test_collated_dicts_with_workers_become_keyword_arguments():
    dataset = [{"a": a, "b": b, "label": int(y)} for a, b, y in zip(*samples(8), strict=True)]
    loader = DataLoader(dataset, 4, num_workers=1)
    learn = Learner(DataBunch(loader, device="cpu"), Two(), loss_func=nn.CrossEntropyLoss(), silent=True)
    learn.fit(1)
    assert len(learn.recorder.losses) == 2


def test_batch_fn_of_class_numbers_forgets_the_labels_of_the_arrays():
    tokens = torch.randint(5, (40, 7))
    data = TensorDataBunch.from_arrays(tokens, torch.zeros(40), bs=8, device="cpu")
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))

    class Next(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            return self.layers(x).transpose(1, 2)

    def next_token(batch):
        return batch[0][:, :-1], batch[0][:, 1:]

    with pytest.raises(DataError, match="No loss can be chosen"):
        Learner(data, Next(), batch_fn=next_token)
    learn = Learner(data, Next(), loss_func=nn.CrossEntropyLoss(), metrics=[accuracy], batch_fn=next_token, silent=True)
    learn.fit(1)
    assert data.labels is not None
