"""Labels as targets: what kind they are is read from type, shape and values, and what cannot be learnt is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minifast import DataError
from minifast.data.labels import as_labels

CASES = [  # labels, kind, targets, classes
    (["b", "a", "b"], "class", [1, 0, 1], ["a", "b"]),
    (("b", "a"), "class", [1, 0], ["a", "b"]),
    ([10, 9, 10], "class", [1, 0, 1], [9, 10]),
    ([True, False], "class", [1, 0], [False, True]),
    (np.array(["b", "a"]), "class", [1, 0], ["a", "b"]),
    (np.array(["b", "a"], object), "class", [1, 0], ["a", "b"]),
    (np.array([3, 1], np.uint8), "class", [1, 0], [1, 3]),
    (np.array([[3], [1]]), "class", [1, 0], [1, 3]),
    (torch.tensor([3, 1]), "class", [1, 0], [1, 3]),
    ([torch.tensor(3), torch.tensor(1)], "class", [1, 0], [1, 3]),
    ([np.int64(3), np.int64(1)], "class", [1, 0], [1, 3]),
    ([0.5, 2.0], "number", [0.5, 2.0], None),
    ([0, 2.5], "number", [0.0, 2.5], None),
    ([0.0, 1.0], "number", [0.0, 1.0], None),
    ([np.float32(0.5)], "number", [0.5], None),
    (np.array([0.5, 2], np.float64), "number", [0.5, 2], None),
    (torch.tensor([0.5, 2]).half(), "number", [0.5, 2], None),
    (np.array([[0.5], [2]]), "number", [[0.5], [2]], None),
    (torch.tensor([[0.5, 1], [2, 0]]), "number", [[0.5, 1], [2, 0]], None),
    ([(0.5, 1), (2, 0)], "number", [[0.5, 1], [2, 0]], None),
    ([["b", "a"], [], ["b"]], "classes", [[1, 1], [0, 0], [0, 1]], ["a", "b"]),
    ([{"b"}, ("a", "b")], "classes", [[0, 1], [1, 1]], ["a", "b"]),
    ([[7], [9, 7]], "classes", [[1, 0], [1, 1]], [7, 9]),
    ([[7, 8], [9, 7]], "classes", [[1, 1, 0], [1, 0, 1]], [7, 8, 9]),
    ([[0, 1], [1, 1]], "classes", [[0, 1], [1, 1]], [0, 1]),
    (np.array([[0, 1], [1, 1]]), "classes", [[0, 1], [1, 1]], [0, 1]),
    (np.array([[0, 1], [1, 1]], bool), "classes", [[0, 1], [1, 1]], [0, 1]),
    (torch.tensor([[0.0, 1], [1, 1]]), "classes", [[0, 1], [1, 1]], [0, 1]),
]


@pytest.mark.parametrize(("labels", "kind", "targets", "classes"), CASES, ids=lambda case: repr(case)[:40])
def test_the_kind_of_labels_is_read_from_them(labels, kind, targets, classes):
    found = as_labels(labels)
    assert (found.kind, found.targets.tolist(), found.classes) == (kind, targets, classes)
    assert found.targets.dtype is (torch.int64 if kind == "class" else torch.float32)


class Column:
    """As in a data frame: no list, but a way to an array."""

    def to_numpy(self):
        return np.array(["b", "a"], object)


def test_a_column_of_a_data_frame_is_a_list_of_its_values():
    assert as_labels(Column()).classes == ["a", "b"]


def test_pandas_columns_are_read():
    pandas = pytest.importorskip("pandas")
    assert as_labels(pandas.Series(["b", "a"])).targets.tolist() == [1, 0]
    assert as_labels(pandas.Series(["b", "a"], dtype="category")).classes == ["a", "b"]
    assert as_labels(pandas.Series([0.5, 1])).kind == "number"
    with pytest.raises(DataError, match=r"^sample 1 has no valid label"):
        as_labels(pandas.Series(["b", None]))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", "b"], "each target is one of 2 classes, because the labels are names"),
        ([3, 4, 5], "each target is one of 3 classes, because the labels are integers"),
        ([True, False], "each target is one of 2 classes, because the labels are bools"),
        ([0.5], "each target is a float, because the labels are floats"),
        ([[0.5, 1.5]], "each target is 2 floats, because the labels are floats"),
        ([["a"], ["a", "b"]], "each target is any of 2 classes (multi-label), because the labels are lists of names"),
        (np.eye(3), "each target is any of 3 classes (multi-label), because the labels are rows of 0 and 1"),
    ],
    ids=lambda case: repr(case)[:30],
)
def test_str_describes_how_the_labels_were_understood(labels, expected):
    assert str(as_labels(labels)) == expected


def test_texts_are_split_and_blanks_are_no_class():
    found = as_labels(["haze  primary", "", None, "primary"], delim=" ")
    assert (found.classes, found.targets.tolist()) == (["haze", "primary"], [[1, 1], [0, 0], [0, 0], [0, 1]])
    assert as_labels(["a|b", "c"], delim="|").classes == ["a", "b", "c"]


# --- classes that are given


def test_classes_have_the_order_that_is_given():
    assert as_labels(["a", "b"], ["b", "a", "c"]).targets.tolist() == [1, 0]
    assert as_labels(["a", "b"], ["b", "a", "c"]).c == 3
    assert as_labels([["a"], ["b"]], ["b", "a"]).targets.tolist() == [[0, 1], [1, 0]]
    assert as_labels([7, 5], [7, 5]).targets.tolist() == [0, 1]


@pytest.mark.parametrize("labels", [[1, 0], [True, False], torch.tensor([1, 0])], ids=str)
def test_integers_are_indices_of_classes_with_names(labels):
    found = as_labels(labels, ["cat", "dog"])
    assert (found.targets.tolist(), found.classes) == ([1, 0], ["cat", "dog"])


@given(st.lists(st.integers(-2, 5), min_size=1), st.lists(st.sampled_from("abc"), min_size=1, unique=True))
def test_class_numbers_without_a_name_raise_with_the_names_and_the_numbers(labels, classes):
    outside = [i for i, label in enumerate(labels) if not 0 <= label < len(classes)]
    if not outside:
        assert as_labels(labels, classes).targets.tolist() == labels
        return
    with pytest.raises(DataError) as error:
        as_labels(labels, classes)
    n, names, found = len(set(labels)), len(classes), ", ".join(classes)
    assert str(error.value).startswith(
        f"sample {outside[0]} has the label {labels[outside[0]]}, but `classes` has {names} name{'s' * (names > 1)} "
        f"({found}), and the labels have {n} class number{'s' * (n > 1)}, from {min(labels)} to {max(labels)}."
    )


def test_bools_need_two_names():
    with pytest.raises(DataError, match=r"^Bools are 2 classes, but `classes` has 1 name \(cat\)\. Name both"):
        as_labels([True, False], ["cat"])


def test_a_label_that_is_not_a_class_raises_and_names_its_sample():
    with pytest.raises(DataError, match=r"^image 1 has the label 'dgo', .* classes cat, dog\. Did you mean dog\?"):
        as_labels(["cat", "dgo"], ["cat", "dog"], name="image {}".format)
    with pytest.raises(DataError, match=r"^sample 1 has the label 'c'"):
        as_labels([["a"], ["a", "c"]], ["a", "b"])


def test_columns_are_named_all():
    assert as_labels(np.eye(2), ["a", "b"]).classes == ["a", "b"]
    with pytest.raises(DataError, match=r"must name each column of the labels, got 3 names for 2 columns"):
        as_labels(np.eye(2), ["a", "b", "c"])


def test_a_class_is_named_once():
    with pytest.raises(DataError, match=r"^classes names 'a' twice"):
        as_labels(["a"], ["a", "b", "a"])


def test_floats_have_no_classes():
    with pytest.raises(DataError, match=r"^Float labels .*Leave `classes` out"):
        as_labels([0.5], ["a"])


# --- errors


@pytest.mark.parametrize(
    "labels", [["a", None, "b"], ["a", float("nan"), "b"], ["a", "", "b"], [0.5, float("nan")], [0.5, None], [1, None]]
)
def test_a_missing_label_is_named(labels):
    with pytest.raises(DataError, match=r"^sample 1 has no valid label"):
        as_labels(labels)


def test_missing_labels_are_counted():
    with pytest.raises(DataError, match=r"^sample 0 has no valid label \(nan\), nor have 2 more\. "):
        as_labels(np.array([np.nan, 1, np.inf, np.nan]))


@pytest.mark.parametrize(
    "labels", [["a", 1], [object()], ["a", ["b"]], np.array([0], "datetime64[D]"), [{"a": 1}]], ids=len
)
def test_labels_of_several_kinds_or_of_none_raise(labels):
    with pytest.raises(
        DataError, match=r"^Labels must all be names, all integers, all floats, or all lists of names; the first"
    ):
        as_labels(labels)


@pytest.mark.parametrize("labels", [np.array([[0, 2], [1, 1]]), np.array([["a", "b"]])], ids=str)
def test_columns_that_are_neither_numbers_nor_classes_raise(labels):
    with pytest.raises(
        DataError, match=r"^Labels in several columns must be floats .* or 0s and 1s .* got 2 columns of "
    ):
        as_labels(labels)


@pytest.mark.parametrize("labels", [[], np.zeros((2, 2, 2)), np.float32(1)], ids=["none", "cube", "one"])
def test_labels_are_one_for_each_item(labels):
    with pytest.raises(DataError, match=r"^Labels must have the shape"):
        as_labels(np.asarray(labels))


def test_lists_of_floats_are_of_one_length():
    with pytest.raises(DataError, match=r"^Lists of float labels must have the same length"):
        as_labels([[0.5], [0.5, 1.5]])


def test_no_class_at_all_raises():
    with pytest.raises(DataError, match=r"^No sample has a label"):
        as_labels(["", ""], delim=" ")


def test_a_delimiter_is_a_text_and_columns_have_none():
    with pytest.raises(TypeError, match=r"^`label_delim` must be .*, got ''"):
        as_labels(["a"], delim="")
    with pytest.raises(DataError, match=r"Leave `label_delim` out"):
        as_labels(np.eye(2), delim=" ")


# --- properties

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=5)
PLAIN = st.one_of(
    st.lists(WORDS, min_size=1, max_size=8), st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=8)
)


@settings(deadline=None, max_examples=50)
@given(PLAIN, st.sampled_from([list, tuple, np.array, lambda values: np.array(values, object)]))
def test_names_and_integers_are_indices_of_their_sorted_classes(values, form):
    labels = as_labels(form(values))
    assert labels.classes == sorted(set(values))
    assert [labels.classes[i] for i in labels.targets.tolist()] == values
    assert as_labels(values, labels.classes[::-1]).targets.tolist() == [
        labels.c - 1 - i for i in labels.targets.tolist()
    ]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(WORDS.filter(lambda word: "|" not in word and word == word.strip())), min_size=1).filter(any))
def test_lists_of_names_are_multi_label_rows(lists):
    labels = as_labels(["|".join(names) for names in lists], delim="|")
    assert [{labels.classes[i] for i in row.nonzero().flatten()} for row in labels.targets] == list(map(set, lists))
    assert as_labels(lists).targets.equal(labels.targets) or all(len(names) == len(lists[0]) for names in lists)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=8), st.booleans())
def test_floats_are_regression_targets(values, columns):
    labels = as_labels([[value, value + 0.5] for value in values] if columns else values)
    expected = torch.tensor([[value, value + 0.5] for value in values] if columns else values, dtype=torch.float32)
    if columns and expected.unique().tolist() in ([0.0], [1.0], [0.0, 1.0]):
        return
    assert labels.kind == "number"
    assert labels.targets.equal(expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(4, 6))
def test_integers_are_indices_of_given_names(values, n):
    names = [f"class {i}" for i in range(n)]
    labels = as_labels(values, names)
    assert (labels.targets.tolist(), labels.classes) == (values, names)
