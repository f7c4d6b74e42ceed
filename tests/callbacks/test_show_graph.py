"""The loss plot of a notebook: below the progress bar, not too often, and only in a notebook."""

from __future__ import annotations

import sys
import types

import pytest
from conftest import as_html, toy_learner

from minifast import Callback, LearningRateScheduler, Recorder, ShowGraph
from minifast.callbacks import show_graph
from minifast.training import progress

PNG = b"\x89PNG"


class Shown(list):
    """What a notebook shows: of each output the contents that it had, one after another."""

    def display(self, content, display_id=False):
        history = [content]
        self.append(history)
        return types.SimpleNamespace(update=history.append)

    @property
    def pictures(self) -> list[list[bytes]]:
        return [history for history in self if isinstance(history[0], bytes)]


@pytest.fixture
def notebook(monkeypatch) -> Shown:
    from fastprogress import fastprogress

    shown = Shown()
    ipython = types.ModuleType("IPython.display")
    ipython.display, ipython.Image, ipython.HTML = shown.display, lambda content: content, lambda text: text
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setattr(fastprogress, "_style_shown", True, raising=False)
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(fastprogress, "display", shown.display, raising=False)
    monkeypatch.setattr(fastprogress, "HTML", lambda text: text, raising=False)
    return shown


class Clock:
    """A clock that stands still but for what is added to it."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_a_notebook_shows_one_plot_that_changes(notebook, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(show_graph, "time", Clock())  # so that drawing takes no time
    learn = toy_learner(silent=False, callback_fns=ShowGraph)
    learn.fit(3)
    (picture,) = notebook.pictures
    assert [content[:4] for content in picture] == [PNG] * 3
    assert len(set(picture)) == 3
    assert plt.get_fignums() == []
    learn.fit(1)
    assert [len(each) for each in notebook.pictures] == [3, 1]


def test_plotting_takes_a_small_share_of_the_time(notebook, monkeypatch):
    clock, plots = Clock(), []
    monkeypatch.setattr(show_graph, "time", clock)

    class TwoSeconds(Callback):
        def on_epoch_begin(self):
            clock.now += 2

    def takes_a_second(self, ax):
        plots.append(clock.now)
        clock.now += 1

    monkeypatch.setattr(Recorder, "plot_losses", takes_a_second)
    toy_learner(silent=False, callbacks=[TwoSeconds(), ShowGraph()]).fit(8)
    assert plots == [102.0, 113.0, 118.0]  # after nine seconds without drawing, and when the fit ends


@pytest.mark.parametrize("silent", [True, False])
def test_elsewhere_it_does_nothing(capsys, monkeypatch, silent):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # not even import what draws
    toy_learner(silent=silent, callbacks=[ShowGraph()]).fit(2)
    assert len(capsys.readouterr().out.splitlines()) == (0 if silent else 3)


def test_the_learning_rate_finder_plots_nothing(notebook):
    learn = toy_learner(silent=False, callbacks=[ShowGraph()], callback_fns=ShowGraph)
    learn.lr_find(num_it=5)
    assert notebook.pictures == []


def test_a_fit_that_fails_before_its_first_batch_plots_nothing(notebook):
    learn = toy_learner(silent=False, callbacks=[ShowGraph()])
    learn.loss_func = lambda output, target: 1 / 0
    with pytest.raises(ZeroDivisionError):
        learn.fit(1)
    assert notebook.pictures == []


def test_lines_stay_below_a_notebooks_table(notebook):
    class Says(LearningRateScheduler):
        def on_epoch_end(self, epoch, pbar):
            pbar.write(f"after {epoch}")

    toy_learner(silent=False, callbacks=[Says(lambda epoch: 1e-2)]).fit(2)
    last = as_html(notebook[-1][-1])
    assert last.index("</table>") < last.index("after 0") < last.index("after 1")
    assert last.count("after 0") == 1
