"""Interpretation of a model in numbers, plots and tables, and the results of a batch."""

from __future__ import annotations

import itertools
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import slow, toy_data, toy_items, toy_learner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    ClassificationInterpretation,
    DataBunch,
    DatasetType,
    Interpretation,
    Learner,
    TensorLoader,
    accuracy,
    plotting,
    simple_ann,
    simple_cnn,
)
from minifast.data.resume import loader_state
from minifast.errors import DataError


class Echo(nn.Module):
    """A model whose outputs are its inputs, so that a test decides what is predicted; its weight is never used."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x.flatten(1) + 0 * self.weight


def echo(predicted, actual, classes, bs=2, scale=3.0):
    """A learner that predicts these numbers for these actual ones."""
    x = scale * nn.functional.one_hot(torch.tensor(predicted), len(classes)).float()
    x += torch.arange(len(x))[:, None] / 100 * x  # so that no two losses are the same
    items = TensorDataset(x, torch.tensor(actual))
    data = DataBunch(DataLoader(items, bs), DataLoader(items, bs), device="cpu", classes=classes)
    return Learner(data, Echo(), silent=True)


PREDICTED = [0, 1, 1, 2, 2, 2, 0]
ACTUAL = [0, 1, 2, 2, 1, 1, 1]
CLASSES = ["ant", "bee", "cow"]


def pictures_learner(n=24, bs=10, shuffle=False, channels=3, classes=("cat", "dog"), norm=True):
    """Pictures, each of one grey that tells which it is."""
    torch.manual_seed(0)
    x = (torch.arange(n) / n)[:, None, None, None].expand(n, channels, 8, 8).clone()
    y = torch.arange(n) % len(classes)
    loaders = [TensorLoader(x, y, bs, shuffle=shuffle, seed=5, device="cpu", classes=classes) for _ in range(2)]
    data = DataBunch(*loaders, test_dl=loaders[1], device="cpu")
    if norm:
        data.normalize()
    return Learner(data, simple_cnn((channels, 8, len(classes))), metrics=[accuracy], silent=True)


def drawn(figure):
    axes = [ax for ax in figure.axes if ax.images]
    return [float(ax.images[0].get_array().mean()) for ax in axes], [ax.title for ax in axes]


# --- losses


def test_the_largest_losses_come_first_with_their_items():
    learn = echo(PREDICTED, ACTUAL, CLASSES)
    found = Interpretation.from_learner(learn)
    losses, indices = found.top_losses()
    outputs, targets = learn.data.valid_ds.tensors
    wanted = nn.functional.cross_entropy(outputs, targets, reduction="none")
    assert losses.tolist() == pytest.approx(sorted(wanted.tolist(), reverse=True))
    assert torch.equal(wanted[indices], losses)
    assert found.top_losses(2)[1].tolist() == indices[:2].tolist()
    assert found.top_losses(2, largest=False)[1].tolist() == indices.tolist()[:-3:-1]
    assert len(found.top_losses(100)[0]) == len(ACTUAL)
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        found.top_losses(0)


def test_a_sample_of_several_numbers_has_one_loss():
    items = TensorDataset(torch.randn(10, 4), torch.randn(10, 3))
    data = DataBunch(DataLoader(items, 4), DataLoader(items, 4), device="cpu")
    found = Interpretation.from_learner(Learner(data, simple_ann(4, 3), silent=True))
    wanted = (found.preds - found.y_true).square().mean(dim=1)
    assert found.losses.tolist() == pytest.approx(wanted.tolist())


@pytest.mark.parametrize("ds_type", [DatasetType.Train, DatasetType.Valid])
@pytest.mark.parametrize("own_generator", [True, False])
def test_the_inputs_are_those_of_the_samples_also_in_a_shuffled_order(ds_type, own_generator):
    x = torch.arange(30.0)[:, None]
    items = TensorDataset(x, x[:, 0])
    generator = torch.Generator() if own_generator else None
    data = DataBunch(DataLoader(items, 7, shuffle=True, generator=generator), DataLoader(items, 7), device="cpu")
    learn = Learner(data, simple_ann(1, 1), silent=True)
    found = Interpretation.from_learner(learn, ds_type)
    next(iter(learn.data.train_dl))  # which moves the data order on
    _, indices = found.top_losses(5)
    assert torch.cat(found.inputs(indices)).tolist() == found.y_true[indices].tolist()


def test_the_order_of_training_stays_as_it_was():
    learn = pictures_learner(shuffle=True)
    before, random = loader_state(learn.data.train_dl), torch.get_rng_state()
    learn.interpret(DatasetType.Train).plot_top_losses(4)
    learn.show_results(DatasetType.Train)
    assert loader_state(learn.data.train_dl) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_the_model_keeps_its_mode():
    learn = pictures_learner()
    learn.model.train()
    learn.interpret().plot_top_losses(4)
    learn.show_results()
    assert all(module.training for module in learn.model.modules())


# --- which classes are taken for which


def test_the_matrix_counts_actual_by_predicted():
    found = echo(PREDICTED, ACTUAL, CLASSES).interpret()
    assert found.confusion_matrix().tolist() == [[1, 0, 0], [1, 1, 2], [0, 1, 1]]
    assert found.confusion_matrix(slice_size=10).dtype == np.int64


def test_the_most_confused_come_first():
    found = echo(PREDICTED, ACTUAL, CLASSES).interpret()
    assert found.most_confused() == [("bee", "cow", 2), ("bee", "ant", 1), ("cow", "bee", 1)]
    assert found.most_confused(min_val=2) == found.most_confused(2, slice_size=5) == [("bee", "cow", 2)]
    assert found.most_confused(3) == found.most_confused(min_val=0)[3:] == []


def test_classes_without_names_are_numbers():
    found = toy_learner().interpret()
    assert found.classes == ["0", "1"]
    assert found.confusion_matrix().sum() == 60


def test_predictions_may_be_of_another_activation():
    found = ClassificationInterpretation.from_learner(echo(PREDICTED, ACTUAL, CLASSES), activ=lambda output: -output)
    assert found.pred_class.tolist() != PREDICTED


def test_targets_that_are_not_classes_raise_with_an_alternative():
    items = TensorDataset(torch.randn(10, 4), torch.randn(10, 3))
    data = DataBunch(DataLoader(items, 4), DataLoader(items, 4), device="cpu")
    with pytest.raises(DataError, match=r"predictions have the shape \(10, 3\).*Use Interpretation, which"):
        Learner(data, simple_ann(4, 3), silent=True).interpret()


def test_a_model_of_other_classes_than_the_data_raises():
    data = DataBunch(toy_data().train_dl, toy_data().valid_dl, device="cpu", classes=["a", "b", "c"])
    with pytest.raises(DataError, match="The data have 3 classes and the model 2 outputs"):
        Learner(data, simple_ann(10, 2), silent=True).interpret()


# --- the matrix drawn


def cells(figure):
    (ax,) = figure.axes
    n = len(ax.get_xticks())
    texts = [text.get_text() for text in ax.texts]
    return [texts[i * n : (i + 1) * n] for i in range(n)]


def test_the_matrix_is_plotted_with_labels_and_counts():
    found = echo(PREDICTED, ACTUAL, CLASSES).interpret()
    figure = found.plot_confusion_matrix(return_fig=True)
    (ax,) = figure.axes
    assert cells(figure) == [["1", "0", "0"], ["1", "1", "2"], ["0", "1", "1"]]
    assert ax.images[0].get_array().tolist() == found.confusion_matrix().tolist()
    assert [label.get_text() for label in ax.get_xticklabels()] == CLASSES
    assert [label.get_text() for label in ax.get_yticklabels()] == CLASSES
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("predicted", "actual", "Confusion matrix")


def test_shares_are_of_the_rows_and_a_class_without_samples_has_none():
    found = echo([0, 1, 1], [0, 0, 1], CLASSES).interpret()
    figure = found.plot_confusion_matrix(normalize=True, norm_dec=1, title="shares", cmap="Greens", return_fig=True)
    assert cells(figure) == [["0.5", "0.5", "0"], ["0", "1.0", "0"], ["0", "0", "0"]]
    assert figure.axes[0].get_title() == "shares"
    assert figure.axes[0].images[0].get_cmap().name == "Greens"


def test_the_matrix_may_be_plotted_without_numbers_on_axes_or_in_a_size():
    found = echo(PREDICTED, ACTUAL, CLASSES).interpret()
    assert found.plot_confusion_matrix(plot_txt=False) is None
    assert not plt.gcf().axes[0].texts
    figure, axes = plt.subplots(1, 2)
    found.plot_confusion_matrix(ax=axes[1])
    assert len(axes[1].images) == 1
    figure = found.plot_confusion_matrix(figsize=(3, 2), dpi=50, return_fig=True)
    assert figure.get_size_inches().tolist() == [3, 2]
    assert figure.dpi == 50


@pytest.mark.parametrize("n", [2, 10, *slow(40)])
@pytest.mark.parametrize("name", ["c{}", "german_shorthaired_pointer_of_kind_{}"])
def test_labels_and_numbers_overlap_at_no_number_of_classes(n, name):
    classes = [name.format(i) for i in range(n)]
    generator = torch.Generator().manual_seed(0)
    predicted, actual = (torch.randint(n, (3000,), generator=generator).tolist() for _ in range(2))
    figure = echo(predicted, actual, classes, bs=1000).interpret().plot_confusion_matrix(return_fig=True)
    figure.canvas.draw()
    (ax,) = figure.axes
    for group in (ax.get_xticklabels(), ax.get_yticklabels(), ax.texts[:n], ax.texts[::n]):
        boxes = [text.get_window_extent() for text in group]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
    assert len(ax.texts) == n * n


def test_numbers_too_small_to_read_are_left_out():
    _, ax = plt.subplots(figsize=(2, 2))
    plotting.plot_matrix(ax, np.ones((60, 60)), ["x"] * 60, [["1000"] * 60] * 60, "Blues", "")
    assert not ax.texts


@pytest.mark.parametrize("n", [51, *slow(200, 400)])
def test_a_matrix_of_many_classes_has_no_numbers_and_few_labels(n):
    actual = list(range(n))
    figure = echo(actual, actual, [str(i) for i in actual], bs=n).interpret().plot_confusion_matrix(return_fig=True)
    (ax,) = figure.axes
    assert not ax.texts
    assert 10 < len(ax.get_xticklabels()) <= plotting.MOST_LABELS


def test_a_matrix_of_a_thousand_classes_is_plotted_in_seconds():
    n = 1000
    predicted, actual = torch.arange(n).tolist(), (torch.arange(n) // 2).tolist()
    interpretation = echo(predicted, actual, [f"class {i}" for i in range(n)], bs=n).interpret()
    begin = time.process_time()
    figure = interpretation.plot_confusion_matrix(return_fig=True)
    assert time.process_time() - begin < 5  # about 1.3 s; 60 s with a text in each cell
    (ax,) = figure.axes
    assert not ax.texts
    assert 10 < len(ax.get_xticks()) <= plotting.MOST_LABELS
    assert len(interpretation.most_confused()) == n - 1


def test_numbers_are_light_on_dark_cells():
    _, ax = plt.subplots()
    plotting.plot_matrix(ax, [[9, 1], [0, 9]], ["a", "b"], [["9", "1"], ["0", "9"]], "Blues", "")
    assert [text.get_color() for text in ax.texts] == ["white", "black", "0.75", "white"]


# --- items drawn


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("ds_type", [DatasetType.Train, DatasetType.Valid])
def test_the_images_are_those_of_the_losses_before_normalisation(norm, ds_type):
    learn = pictures_learner(shuffle=True, norm=norm)
    found = learn.interpret(ds_type)
    losses, indices = found.top_losses(4)
    greys, titles = drawn(found.plot_top_losses(4, return_fig=True))
    assert len(greys) == 4
    for grey, title, loss, i in zip(greys, titles, losses.tolist(), indices.tolist(), strict=True):
        actual = int(found.y_true[i])
        assert round(grey * 24) % 2 == actual  # what the picture shows is the target
        predicted, share = ["cat", "dog"][int(found.pred_class[i])], found.preds[i, actual]
        assert title.get_text() == f"{predicted}\n{['cat', 'dog'][actual]}\n{loss:.2f} / {share:.2f}"


def test_the_smallest_losses_in_a_size_and_without_a_heading():
    found = pictures_learner().interpret()
    figure = found.plot_top_losses(2, largest=False, figsize=(5, 4), show_text=False, return_fig=True)
    assert figure.get_size_inches().tolist() == [5, 4]
    assert figure.get_suptitle() == ""
    assert found.plot_top_losses(1) is None
    assert plt.gcf().get_suptitle() == "prediction\nactual\nloss / probability"


def test_samples_that_are_not_images_are_a_table(capsys):
    found = echo(PREDICTED, ACTUAL, CLASSES).interpret()
    losses, indices = found.top_losses(2)
    assert found.plot_top_losses(2) is None
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["sample", "prediction", "actual", "loss", "probability"]
    i = int(indices[0])
    assert first.split()[:4] == [str(i), CLASSES[PREDICTED[i]], CLASSES[ACTUAL[i]], f"{losses[0]:.2f}"]
    assert second.split()[0] == str(int(indices[1]))


def test_samples_of_several_tensors_are_a_table(capsys):
    class Sum(Echo):
        def forward(self, a, b):
            return super().forward(a + b)

    batch = ([torch.eye(2), torch.eye(2)], torch.tensor([0, 0]))
    data = DataBunch([batch, batch], [batch, batch], device="cpu", classes=["cat", "dog"])
    learn = Learner(data, Sum(), silent=True)
    learn.interpret().plot_top_losses(2)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["sample", "1", "3"]
    learn.show_results()
    assert capsys.readouterr().out.splitlines()[1:] == ["0       cat     cat", "1       cat     dog"]


# --- show_results


def test_results_are_plotted_with_target_and_prediction_as_text_and_colour():
    learn = pictures_learner()
    greys, titles = drawn(learn.show_results(rows=3, return_fig=True))
    predicted = learn.get_preds()[0].argmax(dim=1)[:9]
    assert [round(grey * 24) for grey in greys] == list(range(9))
    names = ["cat", "dog"]
    assert [title.get_text() for title in titles] == [f"{names[i % 2]}\n{names[p]}" for i, p in enumerate(predicted)]
    wanted = ["tab:green" if i % 2 == p else "tab:red" for i, p in enumerate(predicted)]
    assert [title.get_color() for title in titles] == wanted
    assert {*wanted} == {"tab:green", "tab:red"}
    assert learn.show_results(rows=1) is None


def test_of_the_test_part_there_are_predictions_only():
    learn = pictures_learner()
    figure = learn.show_results(DatasetType.Test, rows=1, return_fig=True)
    _, (title,) = drawn(figure)
    assert title.get_text() in ("cat", "dog")
    assert (title.get_color(), figure.get_suptitle()) == ("black", "prediction")


def test_results_that_are_not_images_are_a_table_of_rows(capsys):
    learn = echo(PREDICTED, ACTUAL, CLASSES, bs=7)
    learn.show_results(rows=2)
    assert capsys.readouterr().out == "sample  target  prediction\n0       ant     ant\n1       bee     bee\n"
    learn.show_results(DatasetType.Train, rows=100)
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_results_of_numbers_and_of_labels_are_shown_as_such(capsys):
    items = TensorDataset(torch.tensor([[0.5], [2.0]]), torch.tensor([0.25, 2.0]))
    learn = Learner(DataBunch(DataLoader(items, 2), DataLoader(items, 2), device="cpu"), Echo(), silent=True)
    learn.show_results()
    assert capsys.readouterr().out.splitlines()[1:] == ["0       0.25    0.5", "1       2       2"]
    labels = TensorDataset(torch.tensor([[3.0, 3.0], [3.0, -3.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    loaders = DataLoader(labels, 2), DataLoader(labels, 2)
    data = DataBunch(*loaders, device="cpu", classes=["sea", "sun"], loss_func=nn.BCEWithLogitsLoss())
    Learner(data, Echo(), silent=True).show_results()
    assert capsys.readouterr().out.splitlines()[1:] == ["0       sea, sun  sea, sun", "1       sun       sea"]


def test_rows_that_are_no_count_raise():
    with pytest.raises(ValueError, match="`rows` must be at least 1, got 0"):
        toy_learner().show_results(rows=0)


def test_long_names_stay_above_their_images():
    classes = ("german_shorthaired_pointer_of_the_old_kind", "staffordshire_bullterrier")
    figure = pictures_learner(classes=classes).show_results(rows=3, return_fig=True)
    figure.canvas.draw()
    _, titles = drawn(figure)
    boxes = [title.get_window_extent() for title in titles[:3]]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    assert "…" in titles[0].get_text()


def test_one_learner_fits_and_is_interpreted():
    learn = toy_learner(metrics=[accuracy])
    learn.fit(3, 1e-2)
    found = learn.interpret()
    share = found.confusion_matrix().trace() / len(toy_items())
    assert share == pytest.approx(learn.recorder.metrics[-1][0])
