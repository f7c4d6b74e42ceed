"""Freed memory is used again without Linux clearing it, and never while something refers to it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minifast.utils import memory
from minifast.utils.memory import empty_floats

CODE = """
import resource
import numpy as np
from minifast.utils.memory import keep_freed_memory
{before}
def step():
    [np.ones(200_000, np.uint8) for _ in range(16)]
step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_uses_the_memory_of_the_last_one():
    def faults(before: str) -> int:
        code = CODE.format(before=before)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", code]
        return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    assert faults("") > 2000
    assert faults("keep_freed_memory()") < 200


@pytest.fixture
def small_blocks(monkeypatch):
    """Keep memory of a few bytes too."""
    monkeypatch.setattr(memory, "LARGEST_KEPT", 16)
    monkeypatch.setattr(memory, "_spare", type(memory._spare)(maxlen=1))


WAYS = {
    "itself": lambda x: x,
    "a row": lambda x: x[1],
    "an array": lambda x: x.numpy(),
    "part of an array": lambda x: x.numpy()[:, 1],
    "another type": lambda x: x.view(torch.int32),
    "detached": lambda x: x.detach().requires_grad_().sum(),
    "a graph": lambda x: (torch.ones((), requires_grad=True) * x).exp().sum(),
    "a dlpack": lambda x: torch.from_dlpack(x),
    "storage": lambda x: x.untyped_storage(),
    "nothing": lambda x: None,
}


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=60, deadline=None, suppress_health_check=["function_scoped_fixture"])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(WAYS)), st.sampled_from([(2, 3), (3, 4)]), st.booleans()), max_size=30
    )
)
def test_memory_is_never_used_twice_at_a_time(steps):
    held: list[tuple[object, int]] = []  # what refers to the memory in some way, and its address
    for way, shape, drops in steps:
        x = torch.from_numpy(empty_floats(shape)).fill_(1)
        assert x.data_ptr() not in {address for _, address in held}
        if way != "nothing":
            held.append((WAYS[way](x), x.data_ptr()))
        del x
        if drops and held:
            held.pop(0)


@pytest.mark.usefixtures("small_blocks")
def test_freed_memory_is_used_for_the_next_array():
    first = torch.from_numpy(empty_floats((4, 5)))
    address = first.data_ptr()
    second = empty_floats((4, 5))
    assert second.ctypes.data != address
    del first
    assert empty_floats((5, 4)).ctypes.data != address  # another shape, which takes its place
    third = torch.from_numpy(empty_floats((5, 4)))
    address = third.data_ptr()
    del third
    assert empty_floats((5, 4)).ctypes.data == address


def test_small_arrays_are_left_to_the_c_library():
    before = len(memory._spare)
    assert empty_floats((2, 3)).shape == (2, 3)
    assert len(memory._spare) == before
