"""What processes compare: values, of which a message names the one that differs, and checksums of weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minifast import MinifastError
from minifast.distributed.agreement import (
    ABSENT,
    ROW,
    checksums,
    compare,
    find_differences,
    first_difference,
    sums_and_norms,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(plain, plain)
def test_differences_are_found_exactly_where_values_differ(ours, theirs):
    assert not list(find_differences("fit", ours, ours))
    found = list(find_differences("fit", ours, theirs))
    assert bool(found) == (repr(ours) != repr(theirs) and ours != theirs)
    assert all("fit" in name for name, _, _ in found)


@given(st.lists(plain, min_size=1, max_size=4), st.integers(0, 3), st.sampled_from(["lr", "wd"]))
def test_the_element_that_differs_is_named_with_both_values(values, i, name):
    i %= len(values)
    changed = [*values[:i], "other", *values[i + 1 :]]
    (found,) = find_differences("fit", {name: [*values], "epochs": 1}, {name: changed, "epochs": 1})
    assert found == (f"{name}[{i}] of fit", values[i], "other") or repr(values[i]) == repr(found[1])


def test_a_message_names_each_difference_once_and_the_process():
    call = {"fit": {"epochs": 1, "lr": 0.01, "wd": None}, "classes (data)": ["a", "b"]}
    other = {"fit": {"epochs": 1, "lr": 0.02, "wd": None}, "classes (data)": ["a"]}
    expected = (
        r"^The processes differ in lr of fit: it is 0\.01 in process 0 and 0\.02 in process 2; in classes \(data\): it "
        r"is \['a', 'b'\] in process 0 and \['a'\] in process 2\. Seed it\.$"
    )
    with pytest.raises(MinifastError, match=expected):
        compare([call, call, other], "Seed it.")
    compare([call, call], "Seed it.")
    assert list(find_differences("fit", {}, {"lr": 1})) == [("lr of fit", ABSENT, 1)]


types = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.int64])


@given(types, st.integers(1, 3000), st.integers(0, 2**31), st.sampled_from(["one", "all", "noise", "nan"]))
def test_a_change_of_a_weight_is_found_and_rounding_is_not(dtype, n, seed, change):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    values = 5 * noise
    before = {"same": torch.ones(3), "weight": values.to(dtype)}
    ours = sums_and_norms(before)
    assert first_difference(ours, sums_and_norms({name: tensor.clone() for name, tensor in before.items()})) is None
    if dtype in (torch.float64, torch.float32, torch.complex64):
        rounded = values.to(torch.float64) * (1 + 1e-7 * torch.randn(n, generator=generator, dtype=torch.float64))
        assert first_difference(ours, sums_and_norms({**before, "weight": rounded.to(dtype)})) is None
    changed = values.clone()
    if change == "one":
        changed[0] += 3 * math.sqrt(n)
    elif change == "nan" and dtype is not torch.int64:
        changed[-1] = math.nan
    else:
        changed += 2 if change == "all" else 2 * noise.sign()
    assert first_difference(ours, sums_and_norms({**before, "weight": changed.to(dtype)})) == "weight"


def test_noise_in_a_large_tensor_and_a_missing_one_are_found():
    weight = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    noisy = weight * (1 + 0.01 * torch.randn(1_000_000, generator=torch.Generator().manual_seed(1)))
    assert first_difference(sums_and_norms({"w": weight}), sums_and_norms({"w": noisy})) == "w"
    assert first_difference(sums_and_norms({"w": weight}), {}) == "w"
    both = sums_and_norms({"w": torch.full((2,), math.nan)})
    assert first_difference(both, both) is None  # the checks of the loss tell more


def checksum(tensor):
    (found,) = checksums({"w": tensor}).values()
    return found


every_type = st.sampled_from(
    [
        *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2),
        *(torch.complex64, torch.complex128, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool),
    ]
)


@given(every_type, st.integers(1, 300), st.data())
def test_a_checksum_changes_with_any_bits_and_not_with_the_layout(dtype, n, data):
    size = torch.empty((), dtype=dtype).element_size()
    bits = torch.randint(2 if dtype is torch.bool else 256, (n * size,), dtype=torch.uint8)
    ours = checksum(bits.view(dtype))
    apart = torch.stack([bits.view(dtype)] * 2, 1)[:, 0]  # its elements are not one after another
    assert ours == checksum(apart) == checksum(bits.clone().view(dtype))
    masks = st.just(1) if dtype is torch.bool else st.sampled_from([1, 64, 128, 255])
    changes = data.draw(st.dictionaries(st.integers(0, n * size - 1), masks, min_size=1))
    for i, mask in changes.items():
        bits[i] ^= mask
    assert checksum(bits.view(dtype)) != ours


@pytest.mark.parametrize("n", [1, 2, 3, ROW - 1, ROW, ROW + 1, 3 * ROW, 3 * ROW + 7])
def test_a_checksum_changes_with_signs_and_places(n):
    weight = torch.randn(n, generator=torch.Generator().manual_seed(0))
    negative, swapped = weight.clone(), weight.clone()
    negative[[0, -1]] *= -1  # the highest bits of two elements
    swapped[[0, -1]] = weight[[-1, 0]]
    turned = weight.roll(ROW if n > ROW else 1)  # whole rows
    every = [weight, -weight, negative, swapped, turned]
    assert len({checksum(tensor) for tensor in every}) == len({tuple(tensor.tolist()) for tensor in every})
    assert checksum(weight.reshape(1, -1).mT) == checksum(weight)


def test_checksums_of_views_with_pending_signs_are_those_of_their_values():
    values = torch.randn(10, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    for view in (values.conj(), values.conj().imag):
        assert checksum(view) == checksum(view.clone())


def test_a_checksum_reads_one_number_of_a_row(monkeypatch):
    read, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(tensor.numel()) or tolist(tensor))
    monkeypatch.setattr(torch.Tensor, "cpu", None)
    checksums({"a": torch.zeros(4 * ROW), "b": torch.zeros(2, 3), "c": torch.zeros(0)})
    assert read == [4 + 1 + 1]  # of all tensors at once, with one for the rest of each
