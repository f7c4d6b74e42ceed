"""A snapshot restores the state of objects of any class."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from minifast.utils.state import Snapshot, restoring


@dataclass
class Plain:
    count: int = 0
    seen: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Slotted:
    count: int = 0
    seen: list[int] = field(default_factory=list)


class Both(Slotted):
    """A class with slots and a dict."""


@pytest.mark.parametrize("kind", [Plain, Slotted, Both])
def test_attributes_are_restored_with_and_without_slots(kind):
    value = kind(1, [1])
    seen = value.seen
    with restoring(Snapshot({"value": value})):
        value.count = 5
        value.seen.append(2)
        value.seen = [3]
    assert value.count == 1
    assert value.seen is seen
    assert seen == [1]


def test_a_path_keeps_what_it_caches(tmp_path):
    file = Path(tmp_path) / "a" / "b.png"
    with restoring(Snapshot({"file": file, "files": [file]})):
        texts = str(file), hash(file), file.parts, file.suffix
    assert (str(file), hash(file), file.parts, file.suffix) == texts
