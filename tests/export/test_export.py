"""Exported models: files that run no code, ONNX and torch.export, their errors, and predictions."""

from __future__ import annotations

import io
import os
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import slow, toy_data, toy_learner, write_images
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    Callback,
    DataBunch,
    DataError,
    DatasetType,
    FileFormatError,
    ImageDataBunch,
    LabelSmoothingCrossEntropy,
    Learner,
    MinifastError,
    accuracy,
    load_learner,
    simple_ann,
    simple_cnn,
)
from minifast.export.graph import Program, trace


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i, name in enumerate(("cat", "dog")):
        write_images(folder / "train" / name, 8, (12, 10), "RGB", seed=i)
        write_images(folder / "valid" / name, 3, (12, 10), "L", seed=9 + i)
    return folder


def image_learner(folder: Path, **options) -> Learner:
    torch.manual_seed(0)
    data = ImageDataBunch.from_folder(folder, bs=8, device="cpu", seed=1, **options).normalize()
    learn = Learner(data, simple_cnn((3, 8, 2), bn=True), metrics=[accuracy], silent=True)
    learn.fit(2, 1e-2)
    return learn


@pytest.fixture(scope="module")
def exported() -> tuple[Learner, bytes]:
    """A learner over toy data, and the content of its export."""
    learn, file = toy_learner(), io.BytesIO()
    learn.export(file)
    return learn, file.getvalue()


@pytest.fixture(scope="module")
def resized(images, tmp_path_factory) -> tuple[Learner, Path]:
    """A learner that resizes its images, and the folder of its export."""
    learn = image_learner(images, size=8)
    learn.path = tmp_path_factory.mktemp("resized")
    learn.export()
    return learn, learn.path


# --- export and load_learner


@pytest.mark.parametrize("memory", [2**31, *slow(0)])  # images in memory, and read from files
def test_a_loaded_learner_predicts_like_the_exported_one(images, tmp_path, memory):
    learn = image_learner(images, memory=memory, num_workers=0)
    learn.path = tmp_path
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    assert learn.export() == tmp_path / "export.pkl"
    assert all(torch.equal(value, before[name]) for name, value in learn.model.state_dict().items())
    loaded = load_learner(tmp_path, test=images / "valid", device="cpu")
    assert loaded.data.classes == ["cat", "dog"]
    expected = learn.get_preds()[0]
    got, targets = loaded.get_preds(DatasetType.Test)
    assert torch.allclose(got, expected, atol=1e-6)
    assert targets.tolist() == [0] * 6
    file = images / "valid" / "dog" / "1.png"
    for item in (file, Image.open(file)):
        category, number, probabilities = loaded.predict(item)
        prediction = learn.predict(item)
        assert (category, number) == prediction[:2]
        assert torch.allclose(probabilities, prediction[2], atol=1e-6)
    two_files = [images / "valid" / "dog" / f"{i}.png" for i in (2, 0)]
    predictions, _ = load_learner(tmp_path / "export.pkl", test=two_files, bs=1, device="cpu").get_preds(
        DatasetType.Test
    )
    assert torch.allclose(predictions, expected[[5, 3]], atol=1e-6)


def test_the_file_holds_plain_values_and_does_not_need_the_models_class(tmp_path):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(10, 2)

        def forward(self, x):
            return self.inner(x).tanh() * len(x.shape)

    learn = Learner(toy_data(), Mine(), path=tmp_path)
    file = io.BytesIO()
    learn.export(file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    assert [name for name, _, _ in content["program"]["steps"]][-2:] == ["aten.tanh.default", "aten.mul.Tensor"]
    file.seek(0)
    x = torch.randn(10)
    assert torch.equal(load_learner(".", file, device="cpu").predict(x)[2], learn.predict(x)[2])


def test_batches_may_have_any_size(tmp_path):
    learn = toy_learner(path=tmp_path)
    learn.export("mine.pkl")
    loaded = load_learner(tmp_path, "mine.pkl", device="cpu")
    for n in (0, 1, 2, 20, 33):
        x = torch.randn(n, 10)
        assert torch.equal(loaded.model(x), learn.model(x))


def test_a_model_with_two_inputs_is_exported(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Embedding(7, 3)
            self.b = nn.Linear(2, 3)

        def forward(self, a, b):
            return self.a(a).mean(1) + self.b(b)

    batches = [((torch.randint(7, (4, 5)), torch.randn(4, 2)), torch.randint(3, (4,)))] * 2
    learn = Learner(DataBunch(batches, batches, device="cpu"), Two(), loss_func=nn.CrossEntropyLoss(), path=tmp_path)
    learn.export()
    loaded = load_learner(tmp_path, test=batches, device="cpu")
    assert torch.equal(loaded.get_preds(DatasetType.Test)[0], learn.get_preds()[0])


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]), label_smoothing=0.1),
        *slow(nn.functional.cross_entropy, LabelSmoothingCrossEntropy(eps=0.3)),
    ],
)
def test_losses_are_in_the_file(loss, tmp_path):
    learn = toy_learner(loss_func=loss, path=tmp_path)
    learn.export()
    batches = list(learn.data.valid_dl)
    loaded = load_learner(tmp_path, test=batches, device="cpu")
    both = zip(loaded.get_preds(DatasetType.Test, with_loss=True), learn.get_preds(with_loss=True), strict=True)
    assert all(torch.allclose(got, expected) for got, expected in both)


def test_an_unknown_loss_is_named_when_it_is_needed_and_its_activation_works(tmp_path):
    class Focal(nn.CrossEntropyLoss):
        pass

    learn = toy_learner(loss_func=Focal(), path=tmp_path)
    learn.export()
    loaded = load_learner(tmp_path, test=list(learn.data.valid_dl), device="cpu")
    assert torch.allclose(loaded.get_preds(DatasetType.Test)[0].sum(1), torch.ones(60))
    with pytest.raises(MinifastError, match=r"does not hold the loss Focal, .*; set learn.loss_func"):
        loaded.get_preds(DatasetType.Test, with_loss=True)
    loaded.loss_func = nn.CrossEntropyLoss()
    assert len(loaded.validate(list(learn.data.valid_dl), metrics=[accuracy])) == 2


def test_images_are_resized_and_other_shapes_raise(resized, tmp_path):
    learn, folder = resized
    loaded = load_learner(folder, device="cpu")
    write_images(tmp_path / "big", 1, (50, 40), "RGB")
    big = tmp_path / "big" / "0.png"
    assert torch.allclose(loaded.predict(big)[2], learn.predict(big)[2], atol=1e-6)
    with pytest.raises(DataError, match=r"takes samples of shape 3 x 8 x 8, got 3 x 9 x 9"):
        loaded.predict(torch.rand(3, 9, 9))


def test_a_loaded_learner_cannot_train(exported):
    loaded = load_learner(".", io.BytesIO(exported[1]), device="cpu")
    for train in (lambda: loaded.fit(1), loaded.lr_find, lambda: loaded.fit_one_cycle(1)):
        with pytest.raises(
            ValueError, match="A model from load_learner only predicts; use save and load to continue training"
        ):
            train()
    with pytest.raises(DataError, match="no test part"):
        loaded.get_preds(DatasetType.Test)


@pytest.mark.slow
def test_an_exported_program_can_be_exported_again(exported):
    learn, content = exported
    program = load_learner(".", io.BytesIO(content), device="cpu").model
    again = trace(program, (torch.randn(4, 10),))
    x = torch.randn(5, 10)
    assert torch.equal(again(x), learn.model(x))


# --- models that cannot be exported


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 2)

    def forward(self, x):
        y = self.layer(x)
        return y if y.sum() > 0 else -y


class Noisy(Branches):
    def forward(self, x):
        return self.layer(x) + torch.rand(2)


class Counts(Branches):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.layer(x) + self.seen


class Pair(Branches):
    def forward(self, x):
        return self.layer(x), x


class OneSize(Branches):
    def forward(self, x):
        return self.layer(x.view(20, -1))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Branches, "torch.export cannot trace Branches: Could not guard on data-dependent"),
        (OneSize, "torch.export cannot trace OneSize: Constraints violated"),
        (Counts, "Counts changes its own state during inference"),
        *slow(
            (Noisy, "The exported Noisy and Noisy itself have different outputs"),
            (Pair, "Pair returns a tuple, list or dict, but an exported model must return one tensor"),
        ),
    ],
)
def test_a_model_without_a_program_raises_and_nothing_is_written(model, words, tmp_path, capfd):
    learn = Learner(toy_data(), model(), path=tmp_path)
    with pytest.raises(MinifastError, match=words):
        learn.export()
    assert list(tmp_path.iterdir()) == []
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_pickle_needs_an_option_to_write_and_one_to_read(tmp_path):
    learn = Learner(toy_data(), Branches(), path=tmp_path)
    with pytest.raises(
        MinifastError, match=r"learn.export\(pickle=True\), which load_learner reads with trust=True only"
    ):
        learn.export()
    learn.export(pickle=True)
    with pytest.raises(FileFormatError, match="load it with trust=True, which runs the code in it"):
        load_learner(tmp_path)
    x = torch.randn(10)
    assert torch.equal(load_learner(tmp_path, trust=True, device="cpu").predict(x)[2], learn.predict(x)[2])


def test_a_learner_that_cannot_be_pickled_raises(tmp_path):
    learn = toy_learner(path=tmp_path)
    learn.data.add_tfm(lambda batch: batch)
    with pytest.raises(MinifastError, match="Sequential cannot be pickled"):
        learn.export(pickle=True)
    assert list(tmp_path.iterdir()) == []
    learn.export()  # the lambda can be traced


# --- untrusted files


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_code_in_an_export_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "minifast export", "version": 1, "program": RunsCode()}, "export.pkl")
    Path("raw.pkl").write_bytes(pickle.dumps(RunsCode()))
    for file in ("export.pkl", "raw.pkl"):
        with pytest.raises(FileFormatError):
            load_learner(".", file)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "aten.__class__.mro", "aten.relu_.default", "aten.from_file.default", "aten.resize_.default",
        "aten.add.out", "builtins.eval", "prim.default", "", "aten..default", "aten.no_such.default", 3, None,
    ],
)  # fmt: skip
def test_a_program_names_core_operators_only(name):
    with pytest.raises(FileFormatError, match="not one of torch's core operators"):
        Program({"inputs": [([2], "float32")], "tensors": [], "steps": [(name, [], {})], "output": 0})


@pytest.mark.parametrize(
    "broken",
    [
        {"output": 9},
        {"output": "0"},
        {"steps": [("aten.relu.default", [["value", 1]], {})]},  # its own result
        {"steps": [("aten.relu.default", [["value", -1]], {})]},
        {"steps": [("aten.relu.default", [["dtype", "load"]], {})]},
        {"steps": [("aten.relu.default", [["module", "os"]], {})]},
        {"steps": [("aten.relu.default", [{"a": 1}], {})]},
        {"steps": [3]},
        {"inputs": [([2], "load")]},
        {"tensors": ["a"]},
        {"tensors": None},
    ],
)
def test_an_invalid_program_raises(broken):
    whole = {"inputs": [([2], "float32")], "tensors": [], "steps": [], "output": 0}
    assert torch.equal(Program(whole)(torch.ones(3, 2)), torch.ones(3, 2))
    with pytest.raises(FileFormatError, match=r"not a model of learn.export"):
        Program(whole | broken)


# --- wrong files


def test_missing_foreign_old_and_truncated_files_raise(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*export.pkl; learn.export\(\) writes one"):
        load_learner(tmp_path)
    (tmp_path / "export.pkl").write_bytes(exported[1])
    with pytest.raises(FileNotFoundError, match=r"There is no file .*exprot.pkl; its folder has export.pkl"):
        load_learner(tmp_path, "exprot.pkl")
    toy_learner(path=tmp_path).save("saved")
    with pytest.raises(FileFormatError, match=r"saved.pth is not an export; learn.save wrote it: .* call learn.load"):
        load_learner(tmp_path / "models", "saved.pth")
    torch.save([1], tmp_path / "list.pkl")
    with pytest.raises(FileFormatError, match=r"list.pkl is not an export; learn.export\(\) writes one"):
        load_learner(tmp_path, "list.pkl")
    content = torch.load(tmp_path / "export.pkl", weights_only=True)
    torch.save(content | {"version": 2, "torch": "3.1"}, tmp_path / "new.pkl")
    with pytest.raises(
        FileFormatError, match=r"in format 2, but this version of minifast reads format 1; .*with torch 3.1"
    ):
        load_learner(tmp_path, "new.pkl")
    torch.save({name: value for name, value in content.items() if name != "loss"}, tmp_path / "part.pkl")
    with pytest.raises(FileFormatError, match=r"part.pkl has no loss; export again"):
        load_learner(tmp_path, "part.pkl")
    data = (tmp_path / "export.pkl").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.pkl").write_bytes(data[: int(share * len(data))])
        with pytest.raises(FileFormatError, match=r"cut\.pkl"):
            load_learner(tmp_path, "cut.pkl")


def test_a_damaged_file_raises_or_predicts_the_same(exported):
    learn, content = exported
    x, n_errors = torch.randn(4, 10), 0
    places = range(300, len(content) - 100, len(content) // 40)
    for place in places:
        damaged = bytearray(content)
        damaged[place : place + 4] = b"none"
        try:
            assert torch.equal(load_learner(".", io.BytesIO(damaged), device="cpu").model(x), learn.model(x))
        except FileFormatError:
            n_errors += 1
    assert n_errors > len(places) / 2  # other places are the padding between tensors


def test_missing_or_broken_images_raise(resized, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    for test, words in (
        ("nowhere", "There is no folder nowhere"),
        ([], "There are no images in `test`"),
        (["no.png"], r"There is no file no\.png"),
        ([broken], "broken.png is not a readable image"),
    ):
        with pytest.raises((DataError, FileNotFoundError), match=words):
            load_learner(resized[1], test=test, device="cpu").get_preds(DatasetType.Test)


def test_a_folder_needs_a_model_for_images(exported, tmp_path):
    with pytest.raises(DataError, match="The model was not trained on images, so `test` must be a loader"):
        load_learner(".", io.BytesIO(exported[1]), test=tmp_path)


# --- torch.export and ONNX


def test_pt2_files_are_read_by_torch(images, tmp_path):
    learn = image_learner(images)
    learn.path = tmp_path
    learn.to_pt2("model.pt2")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # torch 2.9 and 2.12
        module = torch.export.load(tmp_path / "model.pt2").module()
    for n in (1, 5):
        x = torch.rand(n, 3, 10, 12)
        learn.model.eval()
        assert torch.allclose(module(x), learn.model(x), atol=1e-6)
    with pytest.raises(MinifastError, match="cannot trace Branches"):
        Learner(toy_data(), Branches(), path=tmp_path).to_pt2("b.pt2")
    assert not (tmp_path / "b.pt2").exists()


@pytest.mark.slow
def test_onnx_predicts_like_the_model(images, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}: pip install onnx onnxscript onnxruntime")
    import onnxruntime

    learn = image_learner(images)
    learn.path = tmp_path
    file = learn.to_onnx("model.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    learn.model.eval()
    for n in (1, 7):
        x = torch.rand(n, 3, 10, 12)
        assert torch.allclose(torch.from_numpy(session.run(None, {name: x.numpy()})[0]), learn.model(x), atol=1e-5)
    assert {file.name for file in tmp_path.iterdir()} - {"home"} == {"model.onnx"}


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
@pytest.mark.slow
def test_onnx_has_the_version_and_the_names_that_were_given(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}: pip install onnx onnxscript onnxruntime")
    import onnx
    import onnxruntime

    learn = toy_learner(path=tmp_path)
    file = learn.to_onnx("model.onnx", opset_version=20, input_names=["image"], output_names=["logits"])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [[part.name for part in parts] for parts in (session.get_inputs(), session.get_outputs())] == [
        ["image"],
        ["logits"],
    ]
    assert {part.version for part in onnx.load(file).opset_import if part.domain == ""} == {20}
    x = torch.randn(7, 10)
    assert torch.allclose(torch.from_numpy(session.run(["logits"], {"image": x.numpy()})[0]), learn.model.eval()(x))
    for names in (["a", "b"], [], "image"):
        with pytest.raises(ValueError, match=r"`input_names` must be a list of 1 different names, one for each, got"):
            learn.to_onnx("other.onnx", input_names=names)
    with pytest.raises(ValueError, match=r"`output_names` must be a list of 1 different names"):
        learn.to_onnx("other.onnx", output_names=["a", "a"])
    with pytest.raises(ValueError, match=r"`opset_version` must be"):
        learn.to_onnx("other.onnx", opset_version=0)
    with pytest.raises(MinifastError, match=r"opset_version|as ONNX"):
        learn.to_onnx("other.onnx", opset_version=99)
    assert {one.name for one in tmp_path.iterdir()} - {"home"} == {"model.onnx"}


def test_onnx_without_its_packages_names_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ImportError, match=r'ONNX needs a package .*install it with: python -m pip install "minifast\[onnx\]"'
    ):
        toy_learner(path=tmp_path).to_onnx("model.onnx")


@pytest.mark.slow
def test_an_export_during_mixup_has_the_original_loss(tmp_path):
    class Exports(Callback):
        def on_batch_end(self, train, num_batch):
            if train and num_batch == 1:
                learn.export()

    learn = toy_learner(path=tmp_path).mixup()
    learn.fit(1, callbacks=Exports())
    assert type(load_learner(tmp_path).loss_func) is nn.CrossEntropyLoss


def test_the_validation_transforms_are_in_the_file(images, tmp_path):
    def dark(batch):
        return batch[0] / 2, batch[1]

    learn = image_learner(images, ds_tfms=(None, dark))
    learn.path = tmp_path
    learn.export()
    x = torch.rand(3, 10, 12)
    assert torch.allclose(load_learner(tmp_path, device="cpu").predict(x)[2], learn.predict(x)[2], atol=1e-6)


# --- predictions


def test_a_test_set_needs_no_targets():
    items = toy_data().valid_ds.tensors[0]
    for test in (DataLoader(TensorDataset(items), 20), DataLoader(items, 20), [(items, torch.ones(60))]):
        data = DataBunch(toy_data().train_dl, test_dl=test, device="cpu")
        learn = Learner(data, simple_ann(10, 2), loss_func=nn.CrossEntropyLoss())
        learn.data.normalize(([0.0], [2.0]))
        predictions, targets = learn.get_preds(DatasetType.Test)
        assert predictions.shape == (60, 2)
        assert set(targets.tolist()) == ({1} if isinstance(test, list) else {0})
        learn.model.eval()
        assert torch.allclose(predictions, learn.model(items / 2).softmax(1))


def test_activ_and_n_batch():
    learn = toy_learner()
    raw, targets = learn.get_preds(activ=lambda output: output, n_batch=2)
    assert raw.shape == (40, 2)
    assert torch.allclose(raw.softmax(1), learn.get_preds(n_batch=2)[0])
    assert torch.equal(targets, learn.data.valid_ds.tensors[1][:40])


def test_a_sample_may_have_several_classes():
    items = [(torch.randn(4, 10), torch.rand(4, 3).round())] * 2
    data = DataBunch(items, items, device="cpu", classes=["a", "b", "c"], loss_func=nn.BCEWithLogitsLoss())
    learn = Learner(data, simple_ann(10, 3))
    nn.init.zeros_(learn.model[3].weight)
    learn.model[3].bias.data = torch.tensor([2.0, -2.0, 3.0])
    names, above, probabilities = learn.predict(torch.zeros(10))
    assert names == ["a", "c"]
    assert above.tolist() == [True, False, True]
    assert torch.allclose(probabilities, torch.tensor([2.0, -2.0, 3.0]).sigmoid())


def test_a_loss_may_name_its_activation():
    class Mine(nn.Module):
        activation = "sigmoid"

        def forward(self, output, target):
            return output.sum()

    learn = toy_learner(loss_func=Mine())
    raw = learn.get_preds(activ=lambda output: output)[0]
    assert torch.equal(learn.get_preds()[0], raw.sigmoid())
    learn.loss_func.activation = "sigmoyd"
    with pytest.raises(ValueError, match="must be one of 'softmax', 'softmax_last', 'exp', 'sigmoid', 'none'"):
        learn.get_preds()
