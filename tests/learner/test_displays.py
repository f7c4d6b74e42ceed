"""A notebook shows a learner and its results as HTML tables, and the curve of lr_find as a plot."""

import copy
import pickle
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    DataBunch,
    DatasetType,
    Interpretation,
    Learner,
    Recorder,
    TensorDataBunch,
    accuracy,
    simple_ann,
)
from minifast.callbacks import recorder
from minifast.diagnostics.summary import Table, summary
from minifast.finder.result import FinderResult
from minifast.learner import fitting
from minifast.utils import text
from minifast.utils.text import cell as cell_text
from minifast.utils.text import html_table, text_table


class Cells(HTMLParser):
    """Collect the cells of a table row by row, and check that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.open, self.rest = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data
        else:
            self.rest += data


cells = st.text(st.characters(codec="ascii", min_codepoint=32), max_size=6)


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1)), cells)
def test_a_table_has_every_cell_and_no_other_markup(rows, note):
    found = Cells(html_table(rows, right=1, note=note))
    assert (found.rows, found.rest) == (rows, note)


def learner(**arguments) -> Learner:
    batches = [(torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]))] * 12
    data = DataBunch(batches, batches[:2], device="cpu", loss_func=nn.CrossEntropyLoss())
    return Learner(data, simple_ann(4, 2), metrics=[accuracy], **arguments)


def test_a_learner_says_what_it_trains():
    learn = learner(silent=True, path="here")
    learn.fit(2)
    learn.lr_find(num_it=12)
    rows = dict(Cells(learn._repr_html_()).rows)
    assert rows["model"].startswith("Sequential, ")
    assert (rows["loss"], rows["metrics"], rows["optimizer"]) == ("CrossEntropyLoss()", "accuracy", "AdamW")
    assert (rows["trained"], rows["files"]) == ("2 epochs", "here/models")


def test_tables_show_what_their_text_shows():
    learn = learner(silent=True)
    learn.fit(1)
    for shown in (learn.summary(), learn.history):
        found = Cells(shown._repr_html_())
        assert [line.split() for line in text_table(found.rows, right=2).splitlines()] == [
            line.split() for line in repr(shown).splitlines()[: len(found.rows)]
        ]
    assert Cells(learn.summary()._repr_html_()).rest == str(learn.summary()).splitlines()[-1]
    for result in (learn.check(), learn.lr_find(num_it=12)):
        Cells(result._repr_html_())


class Once:
    """An iterable with a length that can be read once, which has no text or table of its own."""

    def __init__(self, batches):
        self.batches, self.given = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while self.given < len(self.batches):
            self.given += 1
            yield self.batches[self.given - 1]


class Fails(TensorDataset):
    def __getitem__(self, i):
        raise OSError("the disk is gone")


SAMPLES = [torch.arange(60.0).reshape(20, 3, 1), torch.arange(20) % 2]
WORDS = DataLoader([{"ids": torch.arange(4), "labels": torch.tensor(i % 2)} for i in range(9)], 4)
DATA = {
    "arrays": (
        lambda: TensorDataBunch.from_arrays(*SAMPLES, valid_pct=0.25, seed=0, bs=4, device="cpu"),
        {"training": "15 samples in 3 batches of 4", "validation": "5 samples in 1 batch of 8"},
        ("3 x 1 float32", "one of 2 classes, because the labels are integers"),
    ),
    "loader": (
        lambda: DataBunch(DataLoader(TensorDataset(*SAMPLES), 8, shuffle=True), device="cpu", classes=["a", "b"]),
        {"training": "20 samples in 3 batches of 8", "classes": "2: a, b", "loss": "CrossEntropyLoss()"},
        ("3 x 1 float32", "1 int64"),
    ),
    "dicts": (
        lambda: DataBunch(WORDS, WORDS, device="cpu"),
        {"training": "9 samples in 3 batches of 4", "validation": "9 samples in 3 batches of 4"},
        ("ids: 4 int64", "1 int64"),
    ),
    "list": (
        lambda: DataBunch([((torch.zeros(5, 2), torch.zeros(5)), torch.zeros(5, 3))] * 2, device="cpu"),
        {"training": "2 batches"},
        ("2 float32, 1 float32", "3 float32"),
    ),
    "iterator": (lambda: DataBunch(Once([(torch.zeros(5, 2), torch.zeros(5))]), device="cpu"), {}, (None, None)),
    "failing": (lambda: DataBunch(DataLoader(Fails(*SAMPLES), 4), device="cpu"), {}, (None, None)),
}


def cells_of(shown) -> dict[str, str]:
    """The names and values in the HTML of a result, which its text has too."""
    head, *rows = Cells(shown._repr_html_()).rows
    name, *lines = str(shown).splitlines()
    assert head == [name, ""] == [type(shown).__name__, ""]
    assert [" ".join(row).split() for row in rows] == [line.split() for line in lines]
    return dict(rows)


@pytest.mark.parametrize("kind", DATA)
def test_data_say_how_many_samples_there_are_and_what_one_is(kind):
    make, expected, (x, y) = DATA[kind]
    torch.manual_seed(0)
    data = make()
    before = torch.get_rng_state()
    rows = cells_of(data)
    assert expected.items() <= rows.items()
    assert (rows.get("input"), rows.get("target")) == (x, y)
    assert rows["device"] == "cpu"
    assert torch.equal(before, torch.get_rng_state())
    if kind == "iterator":
        assert len(list(data.train_dl)) == 1
    assert repr(data).count("\n") == 0


def test_an_interpretation_says_what_it_found():
    learn = learner(silent=True)
    found = learn.interpret()
    rows = cells_of(found)
    assert repr(found) == str(found)
    assert rows["data"] == "12 samples of the validation data"
    right = int(found.confusion_matrix().trace())
    assert rows["correct"] == f"{right} of 12 ({right / 12:.1%})"
    assert [f"{a} as {b} ({n})" for a, b, n in found.most_confused()[:3]] == list(
        filter(None, rows.get("most confused", "").split(", "))
    )
    for method in rows["methods"].split(", "):
        assert hasattr(found, method.partition("(")[0])
    rows = cells_of(Interpretation.from_learner(learn, DatasetType.Train))
    assert rows["data"] == "72 samples of the training data"
    assert rows.keys() == {"data", "loss", "methods"}


def test_a_recorder_shows_its_table_but_not_twice_in_one_cell(monkeypatch):
    cell = 7
    learn = learner()
    monkeypatch.setattr(recorder, "notebook_cell", lambda: cell)
    run = learn.fit(2)
    assert Cells(run._repr_html_()).rows == []  # the table that it wrote in training is above
    cell = 8
    found = Cells(run._repr_html_())
    assert found.rows[0] == run.names
    assert [row[:-1] for row in found.rows[1:]] == [[*map(cell_text, row[:-1])] for row in run.rows]
    assert found.rest == repr(run)
    learn.silent = True
    assert len(Cells(learn.fit(1)._repr_html_()).rows) == 2
    assert Cells(Recorder.from_dict(run.to_dict())._repr_html_()).rows == found.rows


def test_a_summary_is_still_a_text():
    table = summary(nn.Linear(4, 2), torch.zeros(1, 4))
    assert isinstance(table, str)
    for copied in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert isinstance(copied, Table)
        assert (copied, copied.rows, copied._repr_html_()) == (table, table.rows, table._repr_html_())


@pytest.mark.parametrize(
    ("notebook", "silent", "arguments", "shown"),
    [
        (True, False, {}, 1),
        (True, False, {"show_plot": False}, 0),
        (True, True, {}, 0),
        (False, False, {}, 0),
        (False, False, {"show_plot": True}, 0),
    ],
)
def test_a_notebook_shows_the_curve_with_the_suggestion(monkeypatch, notebook, silent, arguments, shown):
    plotted = []
    monkeypatch.setattr(fitting, "in_notebook", lambda: notebook)
    monkeypatch.setattr(FinderResult, "plot", lambda self, suggestion=True: plotted.append(suggestion))
    learner(silent=silent).lr_find(num_it=12, **arguments)
    assert plotted == [True] * shown
    monkeypatch.setattr(text, "_muted", True)  # as in all processes but the first
    learner(silent=silent).lr_find(num_it=12, **arguments)
    assert plotted == [True] * shown
