"""A notebook shows a learner and its results as HTML tables, and the curve of lr_find as a plot."""

import copy
import pickle
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minifast import DataBunch, Learner, accuracy, simple_ann
from minifast.diagnostics.summary import Table, summary
from minifast.finder.result import FinderResult
from minifast.learner import fitting
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
