"""The history in files: complete as JSON, one row per epoch as CSV."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import toy_learner

from minifast import Callback, FileFormatError, History, Learner, MinifastError, error_rate, read_history


@pytest.fixture
def learn() -> Learner:
    """Of a fit, a finder, and a fit by one cycle with another metric."""
    learn = toy_learner()
    learn.fit(2, slice(1e-3, 1e-2))
    learn.lr_find(num_it=30, repeats=2)
    learn.metrics = [error_rate]
    learn.fit_one_cycle(1, 1e-2)
    return learn


def test_the_history_is_a_list(learn):
    assert isinstance(learn.history, list)
    assert len(learn.history) == 4  # each finder run is one
    assert learn.history[-1] is learn.recorder


def test_json_gives_all_of_it_back(learn, tmp_path):
    learn.history.to_json(tmp_path / "history.json")
    back = read_history(str(tmp_path / "history.json"))
    assert type(back) is History
    assert [run.to_dict() for run in back] == [run.to_dict() for run in learn.history]
    for ours, theirs in zip(learn.history, back, strict=True):
        assert (theirs.lrs, theirs.moms, theirs.losses) == (ours.lrs, ours.moms, ours.losses)
        assert (theirs.raw_losses, theirs.rows, theirs.names) == (ours.raw_losses, ours.rows, ours.names)
        assert theirs.call == ours.call
    expected, loaded = learn.history[2].finder_result, back[2].finder_result
    assert (loaded.suggestion, loaded.suggested_range, loaded.curves, loaded.stopped) == (
        expected.suggestion, expected.suggested_range, expected.curves, expected.stopped,
    )  # fmt: skip
    assert back[2].finder_result.lrs == expected.lrs
    assert [path.name for path in tmp_path.iterdir()] == ["history.json"]


def test_a_loaded_history_can_be_plotted_and_put_before_the_own(learn, tmp_path):
    learn.history.to_json(tmp_path / "history.json")
    back = read_history(tmp_path / "history.json")
    for run in (back[0], back[3]):
        run.plot_lr(show_moms=True)
        run.plot_losses()
        run.plot_metrics()
    back[2].plot()
    other = toy_learner()
    other.history[:0] = back
    other.fit(1)
    assert [run.call["method"] for run in other.history] == ["fit", "lr_find", "lr_find", "fit_one_cycle", "fit"]
    with pytest.raises(MinifastError, match="has no learner"):
        _ = back[0].learn


def test_json_holds_no_number_that_json_has_not(tmp_path):
    class Gives(Callback):
        def on_epoch_end(self, epoch, last_metrics):
            value = [math.nan, math.inf, -math.inf, torch.tensor([1.0, math.nan]), None, 3][epoch]
            return {"last_metrics": [*last_metrics, value]}

    learn = toy_learner(metrics=[Gives()])
    learn.fit(6)
    file = tmp_path / "history.json"
    learn.history.to_json(file)

    def refuse(text):
        raise AssertionError(text)

    json.loads(file.read_text(), parse_constant=refuse)
    (run,) = read_history(file)
    values = [value for (value,) in run.metrics]
    assert math.isnan(values[0])
    assert math.isnan(values[3][1])
    assert (values[1], values[2], values[3][0], values[4], values[5]) == (math.inf, -math.inf, 1.0, None, 3)


def test_what_a_call_holds_that_is_no_plain_value_is_described(tmp_path):
    learn = toy_learner()
    learn.fit_schedule(1, lr=lambda p: 1e-2)
    learn.recorder.call["model"] = learn.model
    learn.history.to_json(tmp_path / "history.json")
    (run,) = read_history(tmp_path / "history.json")
    assert run.call["model"] == repr(learn.model)


def test_csv_has_one_row_per_epoch(learn, tmp_path):
    learn.history.to_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["run", "method", "epoch", "train_loss", "valid_loss", "accuracy", "error_rate", "time"]
    fit = [row for row in rows if row[1] == "fit"]
    assert [row[:3] for row in fit] == [["0", "fit", "0"], ["0", "fit", "1"]]
    assert [[float(cell) for cell in (*row[2:6], row[7])] for row in fit] == learn.history[0].rows
    assert [row[6] for row in fit] == ["", ""]
    last = learn.history[-1].rows[0]
    assert rows[-1] == ["3", "fit_one_cycle", "0", repr(last[1]), repr(last[2]), "", repr(last[3]), repr(last[4])]
    finder = [row for row in rows if row[1] == "lr_find"]
    assert {row[4] for row in finder} == {""}


def test_an_empty_history_goes_to_files_too(tmp_path):
    history = toy_learner().history
    history.to_csv(tmp_path / "history.csv")
    history.to_json(tmp_path / "history.json")
    assert (tmp_path / "history.csv").read_text() == "run,method\n"
    assert read_history(tmp_path / "history.json") == []


def test_a_file_that_is_no_history_raises(learn, tmp_path):
    learn.history.to_csv(tmp_path / "history.csv")
    learn.history.to_json(tmp_path / "history.json")
    cut, other = tmp_path / "cut.json", tmp_path / "other.json"
    cut.write_text((tmp_path / "history.json").read_text()[:-20])
    other.write_text('["other"]')
    lacks = tmp_path / "lacks.json"
    lacks.write_text((tmp_path / "history.json").read_text().replace('"moms"', '"moods"'))
    for file in (tmp_path / "history.csv", cut, other, lacks):
        with pytest.raises(FileFormatError, match=rf"{file.name} is no minifast history.*output of to_csv with pandas"):
            read_history(file)
    with pytest.raises(FileNotFoundError):
        read_history(tmp_path / "none.json")


def test_a_file_is_written_whole_or_not_at_all(learn, tmp_path, monkeypatch):
    file = tmp_path / "history.json"
    learn.history.to_json(file)
    before = file.read_text()

    def fails(self, *args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(OSError, match="No space"):
        learn.history.to_json(file)
    assert [path.name for path in tmp_path.iterdir()] == ["history.json"]
    assert file.read_text() == before


def test_it_shows_one_row_per_run() -> None:
    learn = toy_learner(n=200)
    learn.lr_find(num_it=12)
    learn.fit_one_cycle(2, 1e-2)
    header, found, cycle = [line.split() for line in repr(learn.history).splitlines()]
    assert header[:4] == ["run", "method", "epochs", "batches"]
    assert found[:4] == ["0", "lr_find", "2", "12"]
    assert cycle[:5] == ["1", "fit_one_cycle", "2", "20", "0.01"]
    assert cycle[6:] == [f"{learn.recorder.val_losses[-1]:.4f}", f"{learn.recorder.metrics[-1][0]:.4f}"]
    assert len(repr(toy_learner().history).splitlines()) == 1  # the header
