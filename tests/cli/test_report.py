"""The page ``report.html`` of ``minifast train``."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minifast import Callback, ClassificationInterpretation, DataBunch, Learner, cli, simple_ann
from minifast.cli import report

HOSTILE = ['<script>alert("1")', "Größe & Übermaß <b>", "$title ${x} 日本"]
VOID = ("meta", "img", "br")


class Page(HTMLParser):
    """The tags, texts, rows of tables and images of a page; an error if a tag is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.images: list[dict[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] in (["td"], ["th"]):
            self.tables[-1][-1][-1] += data


def content_of(image: dict[str, str]) -> bytes:
    kind, _, content = image["src"].partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg", "data:image/svg+xml")
    return base64.b64decode(content, validate=True)


def is_svg(image: dict[str, str]) -> bool:
    return image["src"].startswith("data:image/svg")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The results of a training whose classes have hostile names, with a file name that is not UTF-8."""
    folder = tmp_path_factory.mktemp("hostile")
    for part, n in (("train", 12), ("valid", 5)):
        for i, name in enumerate(HOSTILE):
            write_images(folder / "images <i>" / part / name, n, seed=i + n)
    odd = folder / "images <i>" / "valid" / HOSTILE[0]
    (odd / "0.png").rename(odd / os.fsdecode(b"caf\xe9.png"))
    command = ["train", str(folder / "images <i>"), "--bs", "6", "--epochs", "3", "--seed", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIFAST_HOME", str(folder / "home"))
        patch.setattr("minifast.learner.learner.Learner.export", lambda learn: None)
        patch.setattr("minifast.cli.learning_rate.STEPS", (50,))
        assert cli.main([*command, "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def page(trained) -> Page:
    return Page((trained / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_from_elsewhere_and_runs_no_code(trained, page):
    assert not page.tags & {"script", "link", "iframe", "object", "a", "b", "i"}
    assert not re.search(r"(https?:)?//", re.sub(r"base64,[^\"]*", "", (trained / "report.html").read_text("utf-8")))
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "srcset", "action")]
    assert all(image["src"].startswith("data:") for image in page.images)


def test_the_page_has_headings_and_each_image_says_what_it_shows(page):
    assert {"html", "title", "main", "h1", "h2", "figure", "figcaption", "table", "thead"} <= page.tags
    assert ("lang", "en") in page.attributes
    assert ("content", "width=device-width, initial-scale=1") in page.attributes
    assert all(len(image["alt"]) > 10 for image in page.images)


def test_the_table_of_epochs_is_that_of_history_csv(trained, page):
    header, *rows = csv.reader((trained / "history.csv").read_text().splitlines())
    assert page.tables[0][0] == header
    assert len(page.tables[0]) == 1 + len(rows) == 4
    for shown, row in zip(page.tables[0][1:], rows, strict=True):
        assert shown[0] == row[0]
        assert shown[1:-1] == [f"{float(value):.6f}" for value in row[1:-1]]


def test_the_confusion_matrix_counts_the_validation_images(trained, page):
    header, *rows = page.tables[1]
    assert header[1:] == sorted(HOSTILE)
    assert [row[0] for row in rows] == sorted(HOSTILE)
    counts = np.array([row[1:] for row in rows], dtype=int)
    assert counts.sum(axis=1).tolist() == [5, 5, 5]
    *_, last = csv.reader((trained / "history.csv").read_text().splitlines())
    assert counts.trace() / counts.sum() == pytest.approx(float(last[3]))


def test_the_highest_losses_are_shown_with_the_files_that_they_name(trained, page):
    shown = [image for image in page.images if not is_svg(image)]
    assert len(shown) == 12
    losses = [float(re.search(r"loss ([\d.e+-]+)$", image["alt"])[1]) for image in shown]
    assert losses == sorted(losses, reverse=True)
    folder = trained.parent / "images <i>"
    for image in shown:
        name = image["alt"].partition(": predicted")[0].replace("caf\\udce9", "caf\udce9")
        assert f", actual {name.split('/')[1]}, loss" in image["alt"]
        with Image.open(folder / name) as original, Image.open(io.BytesIO(content_of(image))) as decoded:
            assert np.array_equal(np.asarray(original.convert("RGB")), np.asarray(decoded.convert("RGB")))


def test_plots_are_readable_on_a_light_and_a_dark_page(page):
    plots = [content_of(image).decode() for image in page.images if is_svg(image)]
    assert len(plots) == 3
    for svg in plots:
        assert "prefers-color-scheme:dark" in svg
        assert svg.count("currentColor") > 10
        assert report.INK not in svg


def test_the_page_names_the_command_the_settings_and_the_versions(trained, page):
    options = json.loads((trained / "options.json").read_text())
    assert f"minifast train '{options['data']}' --bs 6 --epochs 3 --seed 0" in page.text
    assert str(options["lr"]) in page.text
    assert options["versions"]["torch"] in page.text


@pytest.mark.usefixtures("without_export")
def test_what_cannot_be_drawn_is_no_failure(trained, tmp_path, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no <font>")

    command = ["train", str(trained.parent / "images <i>"), "--bs", "6", "--epochs", "1", "--lr", "1e-2"]
    monkeypatch.setattr(report, "plots", fail)
    assert cli.main([*command, "--out", str(tmp_path / "a")]) == 0
    assert f"{tmp_path}/a/report.html in a browser" in (printed := capsys.readouterr().out)
    assert "Plots: no <font>" in printed
    written = Page((tmp_path / "a" / "report.html").read_text("utf-8"))
    assert "Missing. Plots: no <font>" in written.text
    assert len(written.tables) == 2
    monkeypatch.setattr(report, "facts", fail)
    monkeypatch.setattr(report, "text", fail)
    assert cli.main([*command, "--out", str(tmp_path / "b")]) == 0
    assert "There is no report.html: no <font>" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "b").iterdir()} >= {"history.csv", "losses.png", "options.json"}
    assert not [path for path in (tmp_path / "b").iterdir() if "report" in path.name]


@pytest.mark.usefixtures("without_export")
def test_a_training_that_was_stopped_has_a_page_without_predictions(trained, tmp_path, monkeypatch):
    class Stops(Callback):
        def on_epoch_end(self, epoch):
            if epoch == 1:
                raise KeyboardInterrupt

    fit = Learner.fit_one_cycle
    monkeypatch.setattr(Learner, "fit_one_cycle", lambda *given, **more: fit(*given, callbacks=Stops(), **more))
    command = ["train", str(trained.parent / "images <i>"), "--bs", "6", "--epochs", "5", "--lr", "1e-2"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 130
    written = Page((tmp_path / "out" / "report.html").read_text("utf-8"))
    assert "not finished: the training was stopped" in written.text
    assert "Errors on the validation images" not in written.text
    rows = list(csv.reader((tmp_path / "out" / "history.csv").read_text().splitlines()))
    assert [row[0] for row in written.tables[0]] == [row[0] for row in rows]


def test_many_classes_have_a_plot_and_the_most_frequent_errors():
    n = report.MOST_CLASSES + 1
    y = torch.arange(n).repeat(2)
    data = DataBunch([(torch.randn(2 * n, 4), y)], [(torch.randn(2 * n, 4), y)], device="cpu", classes=list(range(n)))
    found = ClassificationInterpretation.from_learner(Learner(data, simple_ann(4, n), silent=True))
    written = Page(report.matrix(found))
    (image,) = written.images
    right = int((found.pred_class == found.y_true).sum())
    assert image["alt"] == f"Confusion matrix: {right} of {2 * n} images are right."
    expected = [[str(value) for value in pair] for pair in found.most_confused()[: report.MOST_CLASSES]]
    assert written.tables == [[["actual", "predicted", "images"], *expected]]


PRINTABLE = st.text(st.characters(exclude_categories=["Cc"]), max_size=30)


@given(rows=st.lists(st.lists(PRINTABLE, min_size=2, max_size=2), min_size=1, max_size=4), caption=PRINTABLE)
def test_any_text_stays_text(rows, caption):
    def shown(value: str) -> str:
        return value.encode("utf-8", "backslashreplace").decode()

    written = Page(report.table(caption, rows) + report.facts({caption: rows[0][0]}))
    assert written.tables == [[list(map(shown, row)) for row in rows]]
    assert written.tags == {"figure", "figcaption", "div", "table", "thead", "tbody", "tr", "th", "dl", "dt", "dd"} | (
        {"td"} if len(rows) > 1 else set()
    )
    assert ("aria-label", shown(caption)) in written.attributes
