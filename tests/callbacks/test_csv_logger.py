"""The table in a CSV file: complete after each epoch, each row once; other columns raise an error."""

from __future__ import annotations

import csv
import math
import sys
from itertools import product

import pytest
import torch
from conftest import FailsAt, slow, toy_data, toy_learner

from minifast import Callback, CSVLogger, DataBunch, DataError, Learner, accuracy, error_rate, simple_ann

HEADER = ["epoch", "train_loss", "valid_loss", "accuracy", "time"]


def read(learn: Learner, name: str = "history") -> list[list[str]]:
    with (learn.path / f"{name}.csv").open(newline="") as stream:
        return list(csv.reader(stream))


def test_the_file_holds_the_table_in_full(tmp_path):
    learn = toy_learner(path=tmp_path / "new", callback_fns=CSVLogger)
    learn.fit(3, 1e-2)
    header, *rows = read(learn)
    assert header == HEADER
    assert [[float(cell) for cell in row] for row in rows] == learn.recorder.rows
    assert [file.name for file in learn.path.iterdir()] == ["history.csv"]


def test_each_row_is_there_when_its_epoch_ends(tmp_path):
    seen = []

    class Looks(Callback):
        _order = 1

        def on_epoch_end(self):
            seen.append(len(read(learn, "log")) - 1)

    learn = toy_learner(path=tmp_path, callbacks=[CSVLogger(filename="log.csv"), Looks(), FailsAt(7)])
    with pytest.raises(OSError, match="gone"):
        learn.fit(5)
    assert seen == [1, 2]
    assert len(read(learn, "log")) == 3


def test_a_fit_begins_a_new_file_or_appends(tmp_path):
    learn = toy_learner(path=tmp_path, callbacks=[CSVLogger()])
    learn.fit(2)
    learn.fit(1)
    assert [row[0] for row in read(learn)] == ["epoch", "0"]
    learn.callbacks = [CSVLogger(append=True)]
    learn.fit(2)
    learn.fit(1)
    assert [row[0] for row in read(learn)] == ["epoch", "0", "0", "1", "0"]


def test_appending_to_rows_of_other_columns_raises(tmp_path):
    learn = toy_learner(path=tmp_path, callbacks=[CSVLogger(append=True)])
    learn.fit(1)
    before = read(learn)
    learn.metrics = [error_rate]
    with pytest.raises(
        DataError, match=r"has the columns epoch, .*accuracy, time, and this fit has .*error_rate, time"
    ):
        learn.fit(1)
    assert read(learn) == before


def test_a_folder_that_cannot_be_written_raises_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    learn = toy_learner(path=tmp_path / "file", callbacks=[CSVLogger()])
    with pytest.raises(OSError, match="file"):
        learn.fit(1)
    assert learn.recorder.lrs == []


def test_what_is_missing_is_an_empty_cell(tmp_path):
    data = DataBunch(toy_data().train_dl, device="cpu", path=tmp_path)
    learn = Learner(data, simple_ann(10, 2), loss_func=torch.nn.CrossEntropyLoss(), metrics=accuracy, silent=True)
    learn.fit(1, callbacks=CSVLogger())
    assert read(learn)[1][2:4] == ["", ""]


@pytest.mark.parametrize(
    ("fails_at", "append"), [(1, False), (5, True), *slow((1, True), (5, False), *product((3, 8), (False, True)))]
)
def test_a_resumed_run_has_each_row_once(tmp_path, fails_at, append):
    def learner(at):
        return toy_learner(path=tmp_path, callbacks=[CSVLogger(append=append), FailsAt(at)])

    learner(None).fit(2)
    with pytest.raises(OSError, match="gone"):
        learner(fails_at).fit(4, checkpoint="run", every=1)
    again = learner(None)
    again.fit(4, checkpoint="run", every=1)
    rows = read(again)
    assert [row[0] for row in rows] == ["epoch", *(["0", "1"] if append else []), "0", "1", "2", "3"]
    assert [[float(cell) for cell in row] for row in rows[-4:]] == again.recorder.rows
    learner(None).fit(4, checkpoint="run", every=1)  # it is finished
    assert read(again) == rows


def test_a_row_that_a_killed_run_wrote_before_its_checkpoint_is_not_doubled(tmp_path):
    class Dies(Callback):
        _order = 1  # after the logger has written, before the run is kept

        def __init__(self, at):
            self.at = at

        def on_epoch_end(self, epoch):
            if epoch == self.at:
                raise OSError("gone")

        def state_dict(self):
            return {}

    with pytest.raises(OSError, match="gone"):
        toy_learner(path=tmp_path, callbacks=[CSVLogger(append=True), Dies(1)]).fit(3, checkpoint="run")
    learn = toy_learner(path=tmp_path, callbacks=[CSVLogger(append=True), Dies(None)])
    assert [row[0] for row in read(learn)] == ["epoch", "0", "1"]
    learn.fit(3, checkpoint="run")
    assert [row[0] for row in read(learn)] == ["epoch", "0", "1", "2"]


def test_the_finder_writes_nothing(tmp_path):
    learn = toy_learner(path=tmp_path, callbacks=[CSVLogger()], callback_fns=CSVLogger)
    learn.lr_find(num_it=5)
    assert list(tmp_path.iterdir()) == []


def test_pandas_reads_it(tmp_path):
    pytest.importorskip("pandas", reason="pandas is not installed")
    learn = toy_learner(path=tmp_path, callback_fns=CSVLogger)
    learn.fit(3, 1e-2)
    frame = learn.csv_logger.read_logged_file()
    assert list(frame.columns) == HEADER
    assert frame.to_numpy().tolist() == [pytest.approx(row, rel=1e-14) for row in learn.recorder.rows]
    assert str(frame.dtypes["valid_loss"]) == "float64"


def test_nan_and_what_is_missing_are_missing_in_pandas(tmp_path):
    pytest.importorskip("pandas", reason="pandas is not installed")

    class Gives(Callback):
        def on_epoch_end(self, epoch, last_metrics):
            return {"last_metrics": [*last_metrics, [math.nan, None, 0.5][epoch]]}

    learn = toy_learner(path=tmp_path, callback_fns=CSVLogger, metrics=[Gives()])
    learn.fit(3, 1e-2)
    assert learn.csv_logger.read_logged_file()["gives"].isna().tolist() == [True, True, False]


def test_without_pandas_the_error_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    learn = toy_learner(path=tmp_path, callback_fns=CSVLogger)
    learn.fit(1)
    with pytest.raises(
        ImportError, match=r'read_logged_file needs .*pandas.*; install it with: python -m pip install "pandas"'
    ):
        learn.csv_logger.read_logged_file()
