"""Items of several inputs, outputs or targets, and items as arrays: all that a learner says of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import toy_data, write_images
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from minifast import ActivationStats, DataBunch, DataError, ImageDataBunch, Learner, simple_ann, simple_cnn


class Two(nn.Module):
    """A model of one input or two, by place or in a dict, with two outputs where that is wanted."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x, z=None):
        x, z = (x["x"], x["z"]) if isinstance(x, dict) else (x, x if z is None else z)
        return (self.first(x), self.second(z)) if self.outputs == 2 else self.first(x) + self.second(z)


def items(kind: str) -> list:
    draw = torch.Generator().manual_seed(0)
    found = []
    for i in range(40):
        x, z, y = torch.randn(4, generator=draw), torch.randn(4, generator=draw), torch.tensor(i % 2)
        inputs = {"two": [x, z], "dict": {"x": x, "z": z}}.get(kind, x)
        found.append((inputs, (y, 1 - y) if kind == "targets" else y))
    return found


def learner(kind: str) -> Learner:
    torch.manual_seed(0)
    each = items(kind)
    data = DataBunch(DataLoader(each, 20), DataLoader(each, 20), device="cpu")
    cross_entropy = nn.CrossEntropyLoss()

    def both(output, first, second):
        return cross_entropy(output[0], first) + cross_entropy(output[1], second)

    loss = both if kind == "targets" else cross_entropy
    return Learner(data, Two(2 if kind == "targets" else 1), loss_func=loss, silent=True)


@pytest.mark.parametrize("kind", ["one", "two", "dict", "targets"])
def test_whatever_trains_is_validated_predicted_and_looked_at(kind) -> None:
    learn = learner(kind)
    learn.fit(1, 1e-2)
    predictions, targets = learn.get_preds()
    item = items(kind)[3][0]
    value, number, probabilities = learn.predict(item)
    if kind == "targets":
        assert [one.shape for one in predictions] == [(40, 2), (40, 2)]
        assert [one.tolist()[3] for one in targets] == [1, 0]
        assert [one.shape for one in value] == [(2,), (2,)]
        assert torch.allclose(value[1], predictions[1][3])
        with pytest.raises(DataError, match="undefined for several outputs or targets"):
            learn.get_preds(with_loss=True)
    else:
        assert torch.allclose(probabilities, predictions[3], atol=1e-6)
        assert (value, number) == (int(probabilities.argmax()), probabilities.argmax())
        assert targets[3] == 1
    assert "Linear" in str(learn.summary())
    assert not any("cannot be" in str(finding) for finding in learn.check().findings)


@pytest.mark.parametrize(
    ("item", "message"), [(5, "got the number 5"), ("x", "must be like those of the data set, got str")]
)
def test_an_invalid_sample_raises(item, message) -> None:
    learn = Learner(toy_data(), simple_ann(10, 2), silent=True)
    with pytest.raises(DataError, match=message):
        learn.predict(item)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_array_is_an_image_like_its_file(mode, tmp_path) -> None:
    for part in ("train/a", "train/b", "valid/a", "valid/b"):
        write_images(tmp_path / part, 4, mode=mode, seed=len(part))
    data = ImageDataBunch.from_folder(tmp_path, bs=4, device="cpu", seed=0).normalize()
    learn = Learner(data, simple_cnn((3, 4, 2)), silent=True)
    file = tmp_path / "valid" / "a" / "0.png"
    array = np.asarray(Image.open(file))
    assert learn.predict(array)[2].equal(learn.predict(file)[2])
    for bad in (5, torch.zeros(28, 28, dtype=torch.uint8), array[0, 0]):
        with pytest.raises(DataError, match=r"must be a path, a PIL image, an array of .* or a tensor .*, got "):
            learn.predict(bad)


def test_what_is_compiled_has_no_hooks_to_look_through() -> None:
    learn = Learner(toy_data(), simple_ann(10, 2), silent=True)
    learn.compile(backend="eager")
    with pytest.raises(ValueError, match="The model is compiled, and compiled models skip hooks"):
        learn.fit(1, callbacks=[ActivationStats()])
