"""What processes compare: values, of which a message names the one that differs, and checksums of weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minifast import MinifastError
from minifast.distributed.agreement import ABSENT, checksums, compare, find_differences, first_difference

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
    ours = checksums(before)
    assert first_difference(ours, checksums({name: tensor.clone() for name, tensor in before.items()})) is None
    if dtype in (torch.float64, torch.float32, torch.complex64):
        rounded = values.to(torch.float64) * (1 + 1e-7 * torch.randn(n, generator=generator, dtype=torch.float64))
        assert first_difference(ours, checksums({**before, "weight": rounded.to(dtype)})) is None
    changed = values.clone()
    if change == "one":
        changed[0] += 3 * math.sqrt(n)
    elif change == "nan" and dtype is not torch.int64:
        changed[-1] = math.nan
    else:
        changed += 2 if change == "all" else 2 * noise.sign()
    assert first_difference(ours, checksums({**before, "weight": changed.to(dtype)})) == "weight"


def test_noise_in_a_large_tensor_and_a_missing_one_are_found():
    weight = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    noisy = weight * (1 + 0.01 * torch.randn(1_000_000, generator=torch.Generator().manual_seed(1)))
    assert first_difference(checksums({"w": weight}), checksums({"w": noisy})) == "w"
    assert first_difference(checksums({"w": weight}), {}) == "w"
    both = checksums({"w": torch.full((2,), math.nan)})
    assert first_difference(both, both) is None  # the checks of the loss tell more
