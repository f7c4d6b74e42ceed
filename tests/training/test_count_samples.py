"""How many samples a batch has, whatever its targets and inputs are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from minifast.errors import DataError
from minifast.utils.tensors import as_pair, count_samples

N = 5
rows = torch.zeros(N, 3)


@pytest.mark.parametrize(
    ("targets", "inputs"),
    [
        (torch.zeros(N), rows),
        (np.zeros((N, 2)), rows),
        ({"age": torch.zeros(N), "size": torch.zeros(N, 2)}, rows),
        ({"one": torch.zeros(N)}, None),
        (torch.zeros(N, 2, 2), None),
        ((torch.zeros(N), torch.zeros(N, 7)), rows),
        ([torch.zeros(N), {"deep": (torch.zeros(N),)}], rows),
        (None, rows),
        (None, {"ids": rows, "mask": rows}),
        (None, (rows, torch.zeros(N, 8))),
        (torch.tensor(3.0), rows),  # one target for the whole batch
        ({"boxes": torch.zeros(17, 4), "classes": torch.zeros(N)}, rows),  # 17 boxes in 5 images
        (list("abcde"), None),
        ([1, 2, 3, 4, 5], rows),
        ([torch.zeros(1, 4), torch.zeros(3, 4), torch.zeros(0, 4), torch.zeros(2, 4), torch.zeros(9, 4)], rows),
        ([{"boxes": torch.zeros(3, 4)}] * N, [torch.zeros(3, 8, 8)] * N),  # a dict per image, images of any size
        (tuple({"boxes": torch.zeros(3, 4)} for _ in range(N)), rows),
        ([{"a": torch.zeros(N)}, {"b": torch.zeros(N)}], rows),  # two dicts of batches
        (None, pack_sequence([torch.zeros(9 - i, 2) for i in range(N)])),
    ],
)
def test_samples_are_counted_by_targets_or_inputs(targets, inputs) -> None:
    assert count_samples(targets, inputs) == N


def test_an_empty_batch_has_no_samples() -> None:
    assert count_samples(torch.zeros(0), torch.zeros(0, 3)) == 0


structures = st.recursive(
    st.sampled_from([(), (3,), (2, 2)]).map(lambda shape: lambda n: torch.zeros(n, *shape)),
    lambda children: (
        st.lists(children, min_size=1, max_size=3).map(lambda fs: lambda n: tuple(f(n) for f in fs))
        | st.dictionaries(st.text("abc", min_size=1), children, min_size=1, max_size=3).map(
            lambda fs: lambda n: {name: f(n) for name, f in fs.items()}
        )
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=50)
@given(structures, st.integers(1, 9))
def test_nested_targets_count_as_their_tensors_do(make, n) -> None:
    assert count_samples(make(n), torch.zeros(n, 2)) == n
    assert count_samples(None, make(n)) == n


@pytest.mark.parametrize("batch", [(1, 2), [1, 2]])
def test_a_pair_is_a_tuple_or_list_of_two(batch) -> None:
    assert as_pair(batch) == (1, 2)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((1,), "A training batch is a tuple of 1; it must have inputs and targets: a pair"),
        ([1], "a list of 1"),
        ({"x": 1, "y": 2}, "a dict with the keys 'x', 'y'"),
        (torch.zeros(2, 3), r"one tensor of shape \(2, 3\)"),
        (None, "a NoneType"),
    ],
)
def test_a_batch_that_is_no_pair_raises(batch, message) -> None:
    with pytest.raises(DataError, match=message):
        as_pair(batch)
