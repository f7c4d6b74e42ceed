"""``predict`` takes one sample, alone or as a batch of one, for every kind of data."""

from __future__ import annotations

import io

import pytest
import torch
from conftest import toy_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from minifast import DataBunch, DataError, Learner, TensorDataBunch, load_learner, simple_ann

N = 12
Y = torch.arange(N) % 2


class Pooled(nn.Module):
    """A network of the means over all dimensions but the last, so that it takes samples of any shape."""

    def forward(self, x):
        return self.layer(x.flatten(1, -2).mean(1) if x.ndim > 2 else x)

    def __init__(self, n):
        super().__init__()
        self.layer = nn.Linear(n, 2)


class Sum(nn.Module):
    """The same for two inputs."""

    def __init__(self, n):
        super().__init__()
        self.a, self.b = Pooled(n), Pooled(n)

    def forward(self, a, b):
        return self.a(a) + self.b(b)


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def loader(items, **options):
    return DataBunch(DataLoader(items, 4, **options), device="cpu")


def padded(samples):
    """A ``collate_fn`` for sequences of different lengths."""
    xs, ys = zip(*samples, strict=True)
    return nn.utils.rnn.pad_sequence(xs, batch_first=True), torch.stack(ys)


def of_kind(kind, shape):
    """Return the data, the model and the inputs of all samples."""
    x, other = torch.randn(N, *shape), torch.randn(N, *shape)
    if kind == "loader":
        return loader(TensorDataset(x, Y)), Pooled(shape[-1]), x
    if kind == "arrays":
        return TensorDataBunch.from_arrays(x, Y, bs=4, device="cpu"), Pooled(shape[-1]), x
    if kind == "batches":
        return DataBunch([(x[:4], Y[:4]), (x[4:], Y[4:])], device="cpu"), Pooled(shape[-1]), x
    if kind == "stream":
        return (
            DataBunch.create(Stream(list(zip(x, Y, strict=True))), bs=4, epoch_length=3, device="cpu"),
            Pooled(shape[-1]),
            x,
        )
    if kind == "several in a loader":
        return loader(TensorDataset(x, other, Y)), Sum(shape[-1]), (x, other)
    if kind == "several in arrays":
        return TensorDataBunch.from_arrays((x, other), Y, bs=4, device="cpu"), Sum(shape[-1]), (x, other)
    if kind == "dicts":
        items = [{"a": a, "b": b, "labels": y} for a, b, y in zip(x, other, Y, strict=True)]
        return loader(items), Sum(shape[-1]), {"a": x, "b": other}
    items = [(values[: 1 + i % len(values)], y) for i, (values, y) in enumerate(zip(x, Y, strict=True))]
    return loader(items, collate_fn=padded), Pooled(shape[-1]), x  # "sequences": their length is not fixed


KINDS = ["loader", "arrays", "batches", "stream", "several in a loader", "several in arrays", "dicts", "sequences"]


def rows(inputs, index):
    if isinstance(inputs, dict):
        return {name: rows(values, index) for name, values in inputs.items()}
    return tuple(rows(values, index) for values in inputs) if isinstance(inputs, tuple) else inputs[index]


def as_arrays(item):
    if isinstance(item, dict):
        return {name: as_arrays(value) for name, value in item.items()}
    return tuple(map(as_arrays, item)) if isinstance(item, tuple) else item.numpy()


@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=3), st.integers(0, N - 1), st.integers(2, N))
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_or_a_batch_of_one_has_one_prediction(kind, shape, i, n):
    data, model, inputs = of_kind(kind, shape)
    learn = Learner(data, model, loss_func=nn.CrossEntropyLoss(), silent=True)
    batch = rows(inputs, slice(i, i + 1))
    expected = learn.pred_batch(batch=(batch, None))[0]
    for item in (rows(inputs, i), batch, as_arrays(rows(inputs, i)), as_arrays(batch)):
        chosen, number, probabilities = learn.predict(item)
        assert torch.allclose(probabilities, expected, atol=1e-6)
        assert chosen == int(number) == int(expected.argmax())
    with pytest.raises(DataError, match=f"must be one sample, got a batch of {n}; get_preds predicts many"):
        learn.predict(rows(inputs, slice(0, n)))


def test_an_exported_model_takes_a_batch_of_one():
    data, _, x = of_kind("loader", (5,))
    learn, file = Learner(data, simple_ann(5, 2), silent=True), io.BytesIO()
    learn.export(file)
    file.seek(0)
    loaded = load_learner(".", file, device="cpu")
    assert torch.allclose(loaded.predict(x[:1])[2], learn.predict(x[0])[2], atol=1e-6)
    with pytest.raises(DataError, match="got a batch of 3"):
        loaded.predict(x[:3])


def test_a_sample_may_be_a_number():
    data = loader(TensorDataset(torch.arange(N), Y))
    learn = Learner(data, nn.Embedding(N, 2), loss_func=nn.CrossEntropyLoss(), silent=True)
    expected = learn.model.weight[3].softmax(0)
    for item in (3, torch.tensor(3), torch.tensor([3])):
        assert torch.allclose(learn.predict(item)[2], expected)


def test_the_data_set_is_looked_at_once():
    class Counting(TensorDataset):
        read = 0

        def __getitem__(self, i):
            self.read += 1
            return super().__getitem__(i)

    dataset = Counting(torch.randn(N, 5), Y)
    learn = Learner(loader(dataset), nn.Linear(5, 2), silent=True)
    learn.predict(torch.zeros(5))
    before = dataset.read
    learn.predict(torch.zeros(1, 5))
    assert dataset.read == before


class Graph:
    """An object with a method ``to``: a sample, or a batch whose numbers of nodes are in ``sizes``."""

    def __init__(self, nodes, y=None, sizes=None):
        self.nodes, self.y, self.sizes = nodes, y, sizes

    def to(self, device):
        return Graph(self.nodes.to(device), self.y, self.sizes)

    @classmethod
    def join(cls, graphs):
        """Return a batch, as the ``collate_fn`` of graph libraries does."""
        ys = [graph.y for graph in graphs]
        sizes = [len(graph.nodes) for graph in graphs]
        return cls(torch.cat([graph.nodes for graph in graphs]), None if None in ys else torch.stack(ys), sizes)


class OfGraph(nn.Linear):
    def forward(self, graph):
        return super().forward(torch.stack([part.mean(0) for part in graph.nodes.split(graph.sizes)]))


@pytest.mark.parametrize("in_pair", [False, True])
def test_an_object_is_collated(in_pair):
    graphs = [Graph(torch.randn(1 + i % 3, 4), Y[i]) for i in range(N)]

    def collate(samples):
        if not in_pair:
            return Graph.join(samples)
        return Graph.join([graph for graph, _ in samples]), torch.stack([y for _, y in samples])

    items = [(graph, graph.y) for graph in graphs] if in_pair else graphs
    learn = Learner(loader(items, collate_fn=collate), OfGraph(4, 2), loss_func=nn.CrossEntropyLoss(), silent=True)
    learn.fit(1)
    expected = learn.pred_batch(batch=(Graph.join(graphs[:1]), None))[0]
    assert torch.allclose(learn.predict(graphs[0])[2], expected)
    with pytest.raises(DataError, match=r"a Graph, cannot be made a batch by the collate_fn .*learn.pred_batch"):
        Learner(toy_data(), nn.Linear(10, 2)).predict(graphs[0])
