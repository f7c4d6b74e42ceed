"""Suggestions for misspelt names."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from minifast.utils.checks import closest, did_you_mean

NAMES = ["vit_tiny_patch16_224", "gcvit_tiny", "resnet18", "resnet101", "convnext_tiny", "efficientnet_b0"]


def test_a_name_that_begins_alike_comes_before_one_that_contains_the_word() -> None:
    assert closest("vit_tinny", NAMES) == "vit_tiny_patch16_224"
    assert closest("gcvit_tinny", NAMES) == "gcvit_tiny"
    assert closest("resnet81", NAMES) == "resnet18"


@settings(deadline=None)
@given(name=st.sampled_from(NAMES), place=st.integers(3, 40), letter=st.sampled_from("xq"))
def test_a_letter_too_many_suggests_the_name(name, place, letter) -> None:
    assert closest(name[:place] + letter + name[place:], NAMES) == name


@settings(deadline=None)
@given(name=st.sampled_from(NAMES), length=st.integers(5, 40))
def test_the_beginning_of_a_name_suggests_one_that_begins_so(name, length) -> None:
    suggested = closest(name[:length], NAMES)
    assert suggested is not None
    assert suggested.startswith(name[:length])


@settings(deadline=None)
@given(word=st.text("jkwz", max_size=12))
def test_what_is_like_no_name_suggests_none(word) -> None:
    assert closest(word, NAMES) is None
    assert did_you_mean(word, NAMES) == ""
    assert closest(word, []) is None
