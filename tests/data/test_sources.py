"""Images from tables, lists and names: the same bunch as from folders, for classes, multi-label and regression."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from torch import nn

from minifast import DataError, DatasetType, ImageDataBunch, Learner, TensorLoader, get_image_files, simple_cnn
from minifast.data.tables import column, read_csv
from minifast.losses import MSELossFlat

N = 10


@pytest.fixture
def folder(tmp_path) -> Path:
    write_images(tmp_path / "pets", N, (6, 5))
    return tmp_path / "pets"


OPTIONS = {"device": "cpu", "bs": 4, "seed": 0}


def files(folder: Path) -> list[Path]:
    return [folder / f"{i}.png" for i in range(N)]


NAMES = ["cat" if i % 3 else "dog" for i in range(N)]


def from_lists(folder: Path, labels=NAMES, **kwargs) -> ImageDataBunch:
    return ImageDataBunch.from_lists(folder, files(folder), labels, **(OPTIONS | kwargs))


def labels_of(data: ImageDataBunch, folder: Path) -> dict[str, object]:
    """The target of each image of training and validation, by the name of its file."""
    from minifast.data.images.decoding import read_image

    known = {read_image(str(file)).tobytes(): file.name for file in files(folder)}
    found = {}
    for dl in (data.train_dl, data.valid_dl):
        for x, y in dl:
            for image, target in zip(x, y, strict=True):
                pixels = (image[0] * 255).round().to(torch.uint8).numpy().tobytes()
                found[known[pixels]] = data.label_of(target)
    return found


def parts(data: ImageDataBunch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [tuple(map(torch.cat, zip(*dl, strict=True))) for dl in data.dls]


def write_csv(folder: Path, rows: list[str], name: str = "labels.csv") -> None:
    (folder / name).write_text("\n".join(rows) + "\n")


# --- from lists


def test_each_file_has_its_label(folder):
    data = from_lists(folder)
    assert (data.classes, data.c, data.path) == (["cat", "dog"], 2, folder)
    assert [len(ds) for ds in (data.train_ds, data.valid_ds)] == [8, 2]
    assert isinstance(data.loss_func, nn.CrossEntropyLoss)
    assert labels_of(data, folder) == dict(zip((file.name for file in files(folder)), NAMES, strict=True))
    assert "each target is one of 2 classes, because the labels are names; classes: ['cat', 'dog']" in repr(data)


@pytest.mark.parametrize(
    "labels", [NAMES, [i / 7 for i in range(N)], [["a", "b"], ["b"]] * 5], ids=["one", "real", "many"]
)
def test_memory_and_files_give_the_same_batches(folder, labels):
    first = from_lists(folder, labels, bs=3)
    second = from_lists(folder, labels, bs=3, memory=0, num_workers=0)
    assert isinstance(first.train_dl, TensorLoader)
    assert not isinstance(second.train_dl, TensorLoader)
    for _ in range(2):
        for (x, y), (a, b) in zip(parts(first), parts(second), strict=True):
            assert x.equal(a)
            assert y.equal(b)
            assert y.dtype == b.dtype


def test_workers_read_targets_of_all_kinds(folder):
    labels = [[i / 7, i] for i in range(N)]
    first, second = from_lists(folder, labels), from_lists(folder, labels, memory=0, num_workers=2)
    assert parts(first)[0][1].equal(parts(second)[0][1])


def test_names_lead_from_here_or_into_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for names in (["pets/0.png", "pets/1.png"], ["0.png", "1.png"], get_image_files("pets")[:2]):
        with pytest.warns(UserWarning, match="fewer than bs=4"):
            data = ImageDataBunch.from_lists("pets", names, ["a", "b"], **OPTIONS)
        assert len(data.train_ds) + len(data.valid_ds) == 2


def test_the_split_is_a_function_of_the_seed(folder):
    def split(seed):
        return parts(from_lists(folder, valid_pct=0.4, seed=seed))[1][0]

    assert len(split(0)) == 4
    assert split(0).equal(split(0))
    assert not split(0).equal(split(1))


def test_classes_have_the_order_that_is_given(folder):
    data = from_lists(folder, classes=["fox", "dog", "cat"])
    assert (data.classes, data.c) == (["fox", "dog", "cat"], 3)
    assert labels_of(data, folder)["0.png"] == "dog"
    with pytest.raises(DataError, match=r"^The image .*1\.png has the label 'cat', which is not one of .*dog"):
        from_lists(folder, classes=["dog"])


def test_missing_files_are_named_and_counted(folder):
    with pytest.raises(
        DataError, match=r"^There is no file lost\.png, and 1 more of 3 are missing\. Check the folder and the suffix"
    ):
        ImageDataBunch.from_lists(folder, ["0.png", "lost.png", "gone.png"], [0, 1, 0], **OPTIONS)
    with pytest.raises(DataError, match=r"^The list of files is empty"):
        ImageDataBunch.from_lists(folder, [], [], **OPTIONS)
    with pytest.raises(DataError, match=r"^There is no folder"):
        ImageDataBunch.from_lists(folder / "lost", ["0.png"], [0], **OPTIONS)
    with pytest.raises(DataError, match=r"^Give one label per file, got 10 files and 2 labels"):
        from_lists(folder, ["a", "b"])
    assert from_lists(folder, iter(NAMES)).classes == ["cat", "dog"]
    with pytest.raises(DataError, match=r"^The image .*3\.png has no valid label"):
        from_lists(folder, [*NAMES[:3], None, *NAMES[4:]])


def test_a_file_that_is_listed_twice_warns(folder):
    names = [*files(folder), files(folder)[3]]
    with pytest.warns(
        UserWarning, match=r"3\.png is listed 2 times, so it may be in the training and the validation set"
    ):
        ImageDataBunch.from_lists(folder, names, [*NAMES, "cat"], **OPTIONS)


def test_an_option_that_is_misspelt_raises(folder):
    with pytest.raises(TypeError, match="batch_size"):
        from_lists(folder, batch_size=4)


def test_a_test_folder_has_no_labels(folder):
    write_images(folder / "unseen", 3, (6, 5), seed=9)
    for labels in (NAMES, [0.5] * N, [["a"], ["b"]] * 5):
        data = from_lists(folder, labels, test="unseen")
        x, y = data.one_batch(DatasetType.Test)
        assert (len(x), y.shape[1:], y.dtype) == (3, data.labels.targets.shape[1:], data.labels.targets.dtype)
        figure = data.show_batch(ds_type=DatasetType.Test, return_fig=True)
        assert {ax.get_title() for ax in figure.axes} == {""}


# --- kinds of labels


def test_several_classes_are_trained_by_binary_cross_entropy(folder):
    labels = [["a"], [], ["a", "b"], ["c"], ["b"]] * 2
    data = from_lists(folder, labels)
    assert (data.classes, data.c) == (["a", "b", "c"], 3)
    assert isinstance(data.loss_func, nn.BCEWithLogitsLoss)
    _, y = data.one_batch()
    assert (y.shape, y.dtype) == ((4, 3), torch.float32)
    assert labels_of(data, folder)["2.png"] == "a, b"
    assert labels_of(data, folder)["1.png"] == ""
    learn = Learner(data, simple_cnn((3, 4, 3)), silent=True)
    learn.fit(1)
    predictions, targets = learn.get_preds()
    assert predictions.shape == targets.shape == (2, 3)
    assert (predictions >= 0).all()
    with torch.no_grad():
        learn.model[0].bias.fill_(5)  # so that every class is likely
    names, chosen, probabilities = learn.predict(files(folder)[0])
    assert [data.classes[i] for i in chosen.nonzero()] == names
    assert (probabilities > 0.5).float().equal(chosen)


def test_numbers_are_trained_by_the_squared_error(folder):
    data = from_lists(folder, [i / 2 for i in range(N)])
    assert (data.classes, data.c) == (None, 1)
    assert isinstance(data.loss_func, MSELossFlat)
    assert data.one_batch()[1].dtype is torch.float32
    assert labels_of(data, folder)["7.png"] == "3.5"
    learn = Learner(data, simple_cnn((3, 4, 1)), silent=True)
    learn.fit(1)
    assert learn.predict(files(folder)[0])[0].shape == (1,)
    assert from_lists(folder, [(i / 2, 1.0) for i in range(N)]).c == 2


@pytest.mark.parametrize(
    ("labels", "titles"),
    [
        (NAMES, {"cat", "dog"}),
        ([0.25] * N, {"0.25"}),
        ([(0.25, 7.0)] * N, {"0.25, 7"}),
        ([["a", "b"], ["b"]] * 5, {"a, b", "b"}),
    ],
    ids=["class", "number", "numbers", "classes"],
)
def test_images_are_shown_with_what_their_targets_say(folder, labels, titles):
    figure = from_lists(folder, labels, bs=8).show_batch(return_fig=True)
    assert {ax.get_title() for ax in figure.axes if ax.images} == titles


def test_long_titles_are_broken_between_words_and_stay_over_their_images(folder):
    figure = from_lists(folder, [["green hill", "red house", "yellow sun"]] * N, bs=8).show_batch(return_fig=True)
    figure.draw_without_rendering()
    shown = [ax for ax in figure.axes if ax.images]
    assert {ax.get_title() for ax in shown} == {"green hill,\nred house,\nyellow sun"}
    boxes = [ax.title.get_window_extent() for ax in shown]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert not any(ax.images[0].get_window_extent().overlaps(box) for ax in shown for box in boxes)


# --- from tables


def test_a_csv_file_names_files_and_labels(folder):
    write_csv(folder, ["name,label", *(f"{i}.png,{name}" for i, name in enumerate(NAMES))])
    data = ImageDataBunch.from_csv(folder, **OPTIONS)
    same = from_lists(folder)
    assert (data.classes, data.path) == (same.classes, folder)
    for (x, y), (a, b) in zip(parts(data), parts(same), strict=True):
        assert x.equal(a)
        assert y.equal(b)


def test_a_csv_file_is_read_without_pandas(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    write_csv(folder, ["name,label", "0.png,a", "1.png,b", "2.png,a", "3.png,b", "4.png,b"])
    assert ImageDataBunch.from_csv(folder, **OPTIONS).classes == ["a", "b"]


def test_a_csv_file_may_be_written_otherwise(folder):
    write_csv(folder.parent, ["7;pets of all kinds", *(f"{name};{i}" for i, name in enumerate(NAMES))], "other.txt")
    data = ImageDataBunch.from_csv(
        folder.parent,
        folder="pets",
        csv_labels="other.txt",
        fn_col=1,
        label_col="7",
        suffix=".png",
        delimiter=";",
        **OPTIONS,
    )
    assert labels_of(data, folder)["0.png"] == "dog"
    write_csv(folder, [f"{i}.png,{name}" for i, name in enumerate(NAMES)])
    assert labels_of(ImageDataBunch.from_csv(folder, header=None, **OPTIONS), folder)["0.png"] == "dog"
    write_csv(folder, ["made by hand,", "name,label", *(f"{i}.png,{name}" for i, name in enumerate(NAMES))])
    assert labels_of(ImageDataBunch.from_csv(folder, header=1, **OPTIONS), folder)["0.png"] == "dog"


@pytest.mark.parametrize(
    ("column", "classes", "loss"),
    [
        ([f"{i % 2}" for i in range(N)], [0, 1], nn.CrossEntropyLoss),
        ([f"{i % 2 + 1}.5" for i in range(N)], None, MSELossFlat),
        ([f"00{i % 2}" for i in range(N)], ["000", "001"], nn.CrossEntropyLoss),
    ],
    ids=["whole", "real", "codes"],
)
def test_a_column_of_numbers_is_read_as_what_it_says(folder, column, classes, loss):
    write_csv(folder, ["name,label", *(f"{i}.png,{label}" for i, label in enumerate(column))])
    data = ImageDataBunch.from_csv(folder, **OPTIONS)
    assert data.classes == classes
    assert isinstance(data.loss_func, loss)


def test_several_classes_stand_in_one_column_or_in_many(folder):
    write_csv(folder, ["name,tags,a,b", *(f"{i}.png,{'a b' if i % 2 else 'b'},{i % 2},1" for i in range(N))])
    one = ImageDataBunch.from_csv(folder, label_delim=" ", **OPTIONS)
    many = ImageDataBunch.from_csv(folder, label_col=["a", "b"], **OPTIONS)
    places = ImageDataBunch.from_csv(folder, label_col=[2, 3], **OPTIONS)
    assert one.classes == many.classes == places.classes == ["a", "b"]
    assert one.labels.targets.equal(many.labels.targets)
    assert one.labels.targets.equal(places.labels.targets)
    assert labels_of(one, folder)["1.png"] == "a, b"


def test_numbers_may_stand_in_several_columns(folder):
    write_csv(folder, ["name,x,y", *(f"{i}.png,{i}.5,{i}" for i in range(N))])
    data = ImageDataBunch.from_csv(folder, label_col=[1, 2], **OPTIONS)
    assert (data.c, data.classes) == (2, None)
    assert labels_of(data, folder)["3.png"] == "3.5, 3"


class Frame:
    """As a data frame has them: columns with names, in an order."""

    def __init__(self, **columns) -> None:
        self.columns = list(columns)
        self._columns = columns

    def __getitem__(self, name):
        return np.array(self._columns[name], object)


def test_a_table_is_anything_with_columns(folder):
    frame = Frame(label=NAMES, name=[str(i) for i in range(N)])
    data = ImageDataBunch.from_df(folder, frame, fn_col="name", label_col=0, suffix=".png", **OPTIONS)
    assert labels_of(data, folder)["0.png"] == "dog"


def test_pandas_frames_are_tables(folder):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"name": [f"{i}.png" for i in range(N)], "label": NAMES, "x": np.arange(N) / 2})
    data = ImageDataBunch.from_df(folder, frame, **OPTIONS)
    assert labels_of(data, folder)["0.png"] == "dog"
    assert ImageDataBunch.from_df(folder, frame[::-1], **OPTIONS).classes == ["cat", "dog"]
    assert ImageDataBunch.from_df(folder, frame, label_col="x", **OPTIONS).classes is None
    frame.loc[4, "label"] = None
    with pytest.raises(DataError, match=r"^The image .*4\.png has no valid label"):
        ImageDataBunch.from_df(folder, frame, **OPTIONS)
    frame.loc[5, "name"] = None
    with pytest.raises(DataError, match=r"^Row 5 of the table must hold a file name, got "):
        ImageDataBunch.from_df(folder, frame, **OPTIONS)


def test_a_column_that_is_not_there_is_named(folder):
    frame = Frame(name=["0.png"], label=["a"])
    with pytest.raises(
        DataError, match=r"^`label_col` must be .* of the columns name, label, got 'lable'\. Did you mean label"
    ):
        ImageDataBunch.from_df(folder, frame, label_col="lable")
    with pytest.raises(DataError, match=r"^`fn_col` must be .* of the columns name, label, got 2\."):
        ImageDataBunch.from_df(folder, frame, fn_col=2)
    with pytest.raises(TypeError, match=r"^`df` must be a data frame .*, got list"):
        ImageDataBunch.from_df(folder, [1, 2])


def test_a_class_without_validation_images_is_named_for_all_sources(tmp_path):
    write_images(tmp_path, 60, (4, 4))
    labels = ["rare", "scarce", *["a", "b"] * 29]
    write_csv(tmp_path, ["name,label", *(f"{i}.png,{label}" for i, label in enumerate(labels))])
    names = [f"{i}.png" for i in range(60)]
    options = {"seed": 1, "bs": 16, "device": "cpu"}
    calls = [
        lambda: ImageDataBunch.from_csv(tmp_path, **options),
        lambda: ImageDataBunch.from_lists(tmp_path, names, labels, memory=0, num_workers=0, **options),
        lambda: ImageDataBunch.from_name_func(tmp_path, names, lambda file: labels[int(file.stem)], **options),
    ]
    words = r"no images of rare, scarce, .* these classes\. Use a larger `valid_pct`, or another `seed`\.$"
    for call in calls:
        with pytest.warns(UserWarning, match=words) as caught:
            data = call()
        assert len(caught) == 1
        present = {int(y) for _, ys in data.valid_dl for y in ys}
        assert {data.classes[i] for i in present} == {"a", "b"}


def test_a_file_in_place_of_a_folder_is_named_with_where_it_belongs(folder):
    write_csv(folder, ["name,label", *(f"{i}.png,{name}" for i, name in enumerate(NAMES))], "float.csv")
    hint = r" pass it to from_csv as csv_labels='float\.csv'"
    for call in (
        lambda: ImageDataBunch.from_csv(folder, "float.csv"),
        lambda: ImageDataBunch.from_csv(folder / "float.csv"),
        lambda: ImageDataBunch.from_csv(folder / "float.csv", "images"),
        lambda: ImageDataBunch.from_csv(folder / "float.csv", folder),
        lambda: ImageDataBunch.from_df(folder, {}, "float.csv"),
    ):
        with pytest.raises(DataError, match=rf"^`(folder|path)` must be the folder of the images, .*{hint}"):
            call()


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_file_with_another_separator_is_recognized(folder, mark):
    write_csv(folder, [f"name{mark}label", *(f"{i}.png{mark}{name}" for i, name in enumerate(NAMES))])
    with pytest.raises(DataError, match=re.escape(f"separated by {mark!r}: pass delimiter={mark!r} to")) as caught:
        ImageDataBunch.from_csv(folder)
    assert "save the file with commas" in caught.value.cli_message
    with pytest.raises(DataError, match=r"got 5\.$"):
        ImageDataBunch.from_csv(folder, delimiter=mark, label_col=5)


def test_a_csv_file_that_cannot_be_read_is_named(folder):
    with pytest.raises(
        DataError, match=r"^There is no file .*labels\.csv\. Pass the name of your CSV file as `csv_labels`"
    ):
        ImageDataBunch.from_csv(folder)
    write_csv(folder, ["name,label"])
    with pytest.raises(DataError, match=r"labels\.csv has no row below its header"):
        ImageDataBunch.from_csv(folder)
    write_csv(folder, ["name,name", "a,b"])
    with pytest.raises(DataError, match=r"labels\.csv names the column 'name'"):
        ImageDataBunch.from_csv(folder)
    write_csv(folder, ["name,label", "a,b", "", "c,d,e"])
    with pytest.raises(DataError, match=r"^Each line of .*labels\.csv must have 2 fields, got 3 in line 4"):
        ImageDataBunch.from_csv(folder)
    (folder / "labels.csv").write_bytes(b"name,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match=r"labels\.csv is not a CSV file in UTF-8"):
        ImageDataBunch.from_csv(folder)


def test_a_csv_file_of_excel_has_its_first_name_unmarked(tmp_path):
    (tmp_path / "labels.csv").write_text('name,label\n"a, b",1\n', encoding="utf-8-sig")
    assert column(read_csv(tmp_path / "labels.csv"), "name", "fn_col") == ["a, b"]


# --- from names


def test_a_function_of_the_path_says_the_label(folder):
    data = ImageDataBunch.from_name_func(folder, get_image_files(folder), lambda path: NAMES[int(path.stem)], **OPTIONS)
    assert labels_of(data, folder) == labels_of(from_lists(folder), folder)
    ages = ImageDataBunch.from_name_func(folder, get_image_files(folder), lambda path: float(path.stem), **OPTIONS)
    assert isinstance(ages.loss_func, MSELossFlat)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes on errors came with Python 3.11")
def test_a_function_that_fails_is_shown_with_the_file(folder):
    with pytest.raises(ValueError, match="invalid literal") as failed:
        ImageDataBunch.from_name_func(folder, [folder / "0.png"], lambda path: int(path.name))
    assert failed.value.__notes__ == [f"`label_func` was called with {folder / '0.png'}."]


def test_a_pattern_finds_the_label(tmp_path):
    for i in range(6):
        write_images(tmp_path / "x", 1, (6, 5), seed=i)
        (tmp_path / "x" / "0.png").rename(tmp_path / f"{'great_dane' if i % 2 else 'pug'}_{i}.png")
    names = get_image_files(tmp_path)
    data = ImageDataBunch.from_name_re(tmp_path, names, r"/([^/]+)_\d+\.png$", **OPTIONS)
    assert data.classes == ["great_dane", "pug"]
    with pytest.raises(DataError, match=r"^`pat` \(.*\) finds no label in .*great_dane_1\.png\. Correct"):
        ImageDataBunch.from_name_re(tmp_path, names, r"(pug)")
    with pytest.raises(DataError, match=r"^`pat` must have a group .*, got 'pug'"):
        ImageDataBunch.from_name_re(tmp_path, names, "pug")


# --- runs that are kept


def test_a_run_with_other_labels_is_another_run(folder, tmp_path):
    def learner(labels):
        torch.manual_seed(0)
        return Learner(from_lists(folder, labels), simple_cnn((3, 4, 2)), path=tmp_path, silent=True)

    learner(NAMES).fit(1, checkpoint="run")
    with pytest.raises(Exception, match=r"holds another run: its data has checksum of training samples"):
        learner([*NAMES[:-1], "cat" if NAMES[-1] == "dog" else "dog"]).fit(1, checkpoint="run")
