"""Transfer learning: pretrained backbones, heads and `cnn_learner`. No test uses the network."""

from __future__ import annotations

import re
import urllib.error
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import slow
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import ResNet18_Weights, ResNet34_Weights, get_model

from minifast import (
    AdaptiveConcatPool2d,
    DataBunch,
    DataError,
    DownloadError,
    FileFormatError,
    Learner,
    accuracy,
    cnn_learner,
    create_body,
    create_head,
    imagenet_stats,
    models,
)
from minifast.vision.body import cut_model, second_half_start

NAME = "resnet18-f37072fd.pth"  # of the file that torchvision downloads


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A state dict of a resnet18 with random weights, in a file as torchvision saves it."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / NAME
    torch.save(models.resnet18().state_dict(), file)
    return file


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty download cache of torch, without network access."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def no_network(*arguments, **keywords):
        raise urllib.error.URLError("no network in the tests")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def make_data(n: int = 16, side: int = 32, classes=("cat", "dog"), path=".") -> DataBunch:
    """Dark and light images, one class each."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % len(classes)
    x = (torch.rand(n, 3, side, side, generator=generator) + y[:, None, None, None]) / len(classes)
    items = TensorDataset(x, y)
    return DataBunch(DataLoader(items, 8), DataLoader(items, 8), device="cpu", classes=classes, path=path)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- names of models


def test_models_of_torchvision_are_attributes_of_models():
    import torchvision

    assert models.resnet18 is torchvision.models.resnet18
    assert {"resnet18", "convnext_tiny", "simple_cnn"} <= set(dir(models))
    with pytest.raises(AttributeError, match=r"minifast\.models has no model 'resnet81'\. Did you mean resnet18\?"):
        getattr(models, "resnet81")  # noqa: B009


# --- heads


def test_layers_of_the_default_head():
    head = create_head(1024, 10)
    first = ["AdaptiveConcatPool2d", "Flatten", "BatchNorm1d", "Dropout", "Linear", "ReLU"]
    assert [type(layer).__name__ for layer in head] == [*first, "BatchNorm1d", "Dropout", "Linear"]
    assert [head[3].p, head[7].p] == [0.25, 0.5]
    assert [(layer.in_features, layer.out_features) for layer in (head[4], head[8])] == [(1024, 512), (512, 10)]
    assert head(torch.randn(4, 512, 3, 5)).shape == (4, 10)


def test_options_of_create_head():
    head = create_head(8, 3, lin_ftrs=[7, 6], ps=[0.1, 0.0, 0.3], concat_pool=False, bn_final=True)
    assert [type(layer).__name__ for layer in head[:2]] == ["AdaptiveAvgPool2d", "Flatten"]
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [0.1, 0.3]
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [7, 6, 3]
    assert isinstance(head[-1], nn.BatchNorm1d)
    assert head(torch.randn(4, 8, 2, 2)).shape == (4, 3)
    assert [layer.p for layer in create_head(8, 3, [7, 6], 0.2) if isinstance(layer, nn.Dropout)] == [0.1, 0.1, 0.2]
    assert [type(layer).__name__ for layer in create_head(8, 3, [], 0)][2:] == ["BatchNorm1d", "Linear"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ps": [0.1, 0.2, 0.3]}, "`ps` has 3 values for 2 linear layers; give one value or one per layer"),
        ({"ps": 1.5}, r"`ps` must be at most 1, got 1\.5"),
        ({"lin_ftrs": [0]}, "each of lin_ftrs must be at least 1, got 0"),
    ],
)
def test_create_head_raises_for_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        create_head(8, 2, **options)


def test_adaptive_concat_pool_returns_maximum_and_mean():
    x = torch.randn(2, 3, 5, 4)
    pooled = AdaptiveConcatPool2d()(x)
    assert torch.equal(pooled[:, :3, 0, 0], x.amax((2, 3)))
    assert pooled[:, 3:, 0, 0].allclose(x.mean((2, 3)))
    assert AdaptiveConcatPool2d(2)(x).shape == (2, 6, 2, 2)


# --- backbones

OPTIONS = {"googlenet": {"init_weights": False}}
N_CHILDREN = {
    "resnet18": 8,
    "squeezenet1_1": 1,
    "mobilenet_v2": 1,
    "mobilenet_v3_small": 1,
    "mnasnet0_5": 1,
    "shufflenet_v2_x0_5": 6,
    "densenet121": 1,
    "efficientnet_b0": 1,
    "regnet_y_400mf": 2,
    "googlenet": 16,
}


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"),
        *slow("mnasnet0_5", "densenet121", "efficientnet_b0", "regnet_y_400mf", "googlenet"),
    ],
)
def test_backbone_ends_before_the_pooling(name):
    arch = partial(getattr(models, name), **OPTIONS.get(name, {}))
    body = create_body(arch, pretrained=False)
    assert len(body) == N_CHILDREN[name]
    output = body.eval()(torch.zeros(1, 3, 96, 96))
    assert output.ndim == 4
    assert output.shape[2] > 1


def test_backbone_with_pooling_and_classifier_equals_the_model():
    model = models.resnet18().eval()
    body = cut_model(model, None, "resnet18").eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.fc(functional.adaptive_avg_pool2d(body(x), 1).flatten(1)), model(x))
    assert all(not module._forward_hooks for module in model.modules())


def test_finding_the_split_point_restores_all_state():
    model = models.resnet18()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    cut_model(model, None, "resnet18")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"])
def test_second_half_of_a_resnet_is_that_of_fastai_v1(name):
    with torch.device("meta"):
        body = nn.Sequential(*list(get_model(name).children())[:8])
    assert second_half_start(body) is body[6]


def test_second_half_of_other_backbones():
    convs = [nn.Conv2d(3, 3, 1) for _ in range(5)]
    assert second_half_start(nn.Sequential(*convs[:4])) is convs[2]
    assert second_half_start(nn.Sequential(nn.Sequential(*convs[:4]))) is convs[2]  # features
    assert second_half_start(nn.Sequential(convs[0], nn.Sequential(*convs[1:]))) is convs[3]  # a stem before them
    assert second_half_start(nn.Sequential(convs[0])) is None
    assert second_half_start(convs[0]) is None


class Tower(nn.Module):
    """A model whose forward transforms its input by ``before``."""

    def __init__(self, before) -> None:
        super().__init__()
        self.before = before
        self.conv = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.pool(self.conv(self.before(x))).flatten(1))


class Scaled(Tower):
    """A tower whose output is not that of its linear layer."""

    def forward(self, x):
        return 2 * super().forward(x)


class Deep(nn.Module):
    """A model with an adaptive pooling in the middle, and a dropout after the last pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.AdaptiveAvgPool2d(16), nn.Conv2d(3, 4, 3))
        self.middle = nn.AdaptiveAvgPool2d(8)
        self.second = nn.Conv2d(4, 5, 3)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.drop = nn.Dropout2d()
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        return self.fc(self.drop(self.pool(self.second(self.middle(self.first(x))))).flatten(1))


def test_backbone_ends_before_the_last_pooling_only():
    model = Deep()
    assert list(cut_model(model, None, "Deep")) == [model.first, model.middle, model.second]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Scaled(lambda x: 2 * x - 1), "its forward does more than call its children one after another"),
        (Tower(lambda x: x[:, :2]), r"it does not accept images of shape 2 x 3 x 128 x 128 \("),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 128 * 128, 2), nn.Softmax(1)),
            r"none of its children returns feature maps \(n.*, and its output is not that of a linear layer",
        ),
    ],
)
def test_model_without_a_split_point_raises(model, reason):
    message = rf"No split point found for Mine: {reason}.*Give `cut`, the number of its children to keep"
    with pytest.raises(DataError, match=message):
        cut_model(model, None, "Mine")


def test_cut_as_a_number_or_a_function():
    model = Tower(lambda x: 2 * x - 1)
    assert list(cut_model(model, 1, "Tower")) == [model.conv]
    assert list(cut_model(model, -2, "Tower")) == [model.conv]
    assert cut_model(model, lambda m: m.conv, "Tower") is model.conv
    for cut, error, message in (
        (0, ValueError, "`cut` is 0, which keeps none of the 3 children of Tower"),
        (-3, ValueError, "`cut` must be at least -2, got -3"),
        (lambda m: None, TypeError, "`cut` must return an nn.Module, got None"),
    ):
        with pytest.raises(error, match=message):
            cut_model(model, cut, "Tower")


# --- weights


def test_backbone_with_weights_from_a_file(weights, tmp_path):
    body = create_body(models.resnet18, weights)
    model = models.resnet18()
    state = torch.load(weights)
    model.load_state_dict(state)
    assert same(body, nn.Sequential(*list(model.children())[:8]))
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    assert same(create_body(models.resnet18, tmp_path / "old.pth"), body)


@pytest.mark.slow
def test_backbone_with_weights_that_a_learner_saved(tmp_path):
    other = Learner(make_data(path=tmp_path), models.resnet18(num_classes=2), silent=True)  # the head is not loaded
    other.fit(1, 1e-3)
    file = other.save("other", return_path=True)
    assert same(create_body(models.resnet18, str(file)), nn.Sequential(*list(other.model.children())[:8]))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            "another model",
            DataError,
            r"has no (bn1\.running_var|conv1\.weight) of shape \(.*, which the backbone of resnet18 needs",
        ),
        ({"epoch": 3}, DataError, "holds a dict with .*, not a state dict of a model"),
        (nn.Linear(1, 1), FileFormatError, "holds more than tensors and plain values"),
        (None, FileNotFoundError, "There is no file"),
    ],
)
def test_file_without_these_weights_raises(tmp_path, content, error, message):
    file = tmp_path / "some.pth"
    if content is not None:
        torch.save(models.mobilenet_v2().state_dict() if content == "another model" else content, file)
    data = make_data()
    with pytest.raises(error, match=message):
        cnn_learner(data, models.resnet18, pretrained=file)
    assert data.norm is None


def test_failed_download_names_the_place_for_a_copy(hub, weights):
    place = re.escape(str(hub / NAME))
    address = re.escape(f"https://download.pytorch.org/models/{NAME}")
    with pytest.raises(
        DownloadError, match=rf"of resnet18 cannot be downloaded from {address} \(.*no network.*{place}"
    ):
        create_body(models.resnet18)
    (hub / NAME).write_bytes(weights.read_bytes())
    assert same(create_body(models.resnet18), create_body(models.resnet18, weights))


@pytest.mark.parametrize("content", [b"", b"half of", "another model"])
def test_damaged_weights_name_the_file(hub, content):
    if isinstance(content, bytes):
        (hub / NAME).write_bytes(content)
    else:
        torch.save(nn.Linear(2, 2).state_dict(), hub / NAME)
    with pytest.raises(FileFormatError, match=rf"{NAME} cannot be used as the weights of resnet18 .*; delete it"):
        create_body(models.resnet18)


def test_weights_enum_of_another_model_raises():
    with pytest.raises(TypeError, match="ResNet18_Weights"):
        create_body(models.resnet18, ResNet34_Weights.DEFAULT)


def test_base_arch_may_be_your_own_function():
    def mine(pretrained):
        asked.append(pretrained)
        return Tower(lambda x: x)

    asked: list[bool] = []
    assert [len(create_body(mine)), len(create_body(mine, False))] == [1, 1]
    assert asked == [True, False]
    assert len(create_body(lambda: Tower(lambda x: x), False)) == 1
    with pytest.raises(ValueError, match="<lambda> has neither an argument `weights` nor `pretrained`"):
        create_body(lambda: Tower(lambda x: x))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (18, r"`base_arch` must be a function that creates a model, .* the name of a model .*; got 18"),
        (lambda: None, "`base_arch` must return an nn.Module; <lambda> returned None"),
    ],
)
def test_base_arch_must_create_a_model(arch, message):
    with pytest.raises(TypeError, match=message):
        create_body(arch, False)


# --- learners


def test_transfer_learning_as_in_fastai_v1(hub, weights, tmp_path, capsys):
    (hub / NAME).write_bytes(weights.read_bytes())
    data = make_data(path=tmp_path)
    learn = cnn_learner(data, models.resnet18, metrics=accuracy)
    line = "The data are now normalized as the weights expect: means 0.485, 0.456, 0.406, standard deviations 0.229"
    assert line in capsys.readouterr().out
    convs = [module for module in learn.model[0].modules() if isinstance(module, nn.Conv2d)]
    before = [conv.weight.detach().clone() for conv in convs]
    learn.fit_one_cycle(1)
    assert all(torch.equal(value, conv.weight) for value, conv in zip(before, convs, strict=True))
    learn.unfreeze()
    learn.fit_one_cycle(1, max_lr=slice(1e-5, 1e-3))
    assert not any(torch.equal(value, conv.weight) for value, conv in zip(before, convs, strict=True))
    assert len(learn.recorder.group_lrs[0]) == 3
    assert learn.recorder.metrics[0][0] >= 0
    assert cnn_learner(data, models.resnet18).data.norm is data.norm  # a second learner does not change them
    assert "normalized" not in capsys.readouterr().out
    plt.close("all")


def test_cnn_learner_splits_freezes_and_initializes(weights):
    learn = cnn_learner(make_data(), models.resnet18, pretrained=weights, silent=True)
    body, head = learn.model
    assert [next(group.parameters()) for group in learn.layer_groups] == [
        body[0].weight,
        next(body[6].parameters()),
        head[2].weight,
    ]
    frozen = [module for module in body.modules() if isinstance(module, nn.Conv2d)]
    assert not any(conv.weight.requires_grad for conv in frozen)
    norms = [module for module in learn.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert [norm.weight.requires_grad for norm in norms] == [False] * 20 + [True] * 2  # those of the head
    assert head[-1].out_features == 2
    linear = head[4].weight
    assert linear.std().item() == pytest.approx((2 / linear.shape[1]) ** 0.5, rel=0.02)  # Kaiming normal
    assert head[4].bias.eq(0).all()
    without_bn = cnn_learner(make_data(), models.resnet18, pretrained=weights, train_bn=False, silent=True)
    assert not any(parameter.requires_grad for parameter in without_bn.model[0].parameters())
    with_bn = cnn_learner(make_data(), models.resnet18, pretrained=weights, train_bn=True, silent=True)
    norms = [module for module in with_bn.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(norm.weight.requires_grad for norm in norms)


def test_frozen_backbone_stays_bitwise_identical_and_builds_no_graph(weights):
    learn = cnn_learner(make_data(), models.resnet18, pretrained=weights, silent=True)
    body = learn.model[0]
    before = {name: value.clone() for name, value in body.state_dict().items()}
    outputs: list[torch.Tensor] = []
    hook = body.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    learn.fit_one_cycle(1, 1e-3)
    hook.remove()
    assert len(outputs) == 4
    assert not any(output.requires_grad for output in outputs)
    assert outputs[0].allclose(outputs[2], rtol=1e-4, atol=1e-5)  # training sees the features of validation
    assert all(torch.equal(before[name], value) for name, value in body.state_dict().items())
    learn.unfreeze()
    learn.fit_one_cycle(1, 1e-3)
    assert not any(torch.equal(before[name], value) for name, value in body.state_dict().items())


def test_cnn_learner_without_pretrained_weights_freezes_nothing(capsys):
    data = make_data()
    learn = cnn_learner(data, models.resnet18, pretrained=False)
    assert all(parameter.requires_grad for parameter in learn.model.parameters())
    assert data.norm is None
    assert capsys.readouterr().out == ""


def test_custom_head_and_split_on():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(512), nn.Linear(512, 2))
    before = head[3].weight.clone()
    learn = cnn_learner(
        make_data(), models.resnet18, pretrained=False, custom_head=head, split_on=lambda m: [m[1]], init=None
    )
    assert learn.model[1] is head
    assert torch.equal(before, head[3].weight)
    assert len(learn.layer_groups) == 2
    cnn_learner(make_data(), models.resnet18, pretrained=False, custom_head=head, init=nn.init.zeros_)
    assert head[3].weight.eq(0).all()
    assert head[2].weight.eq(1).all()


def test_cnn_learner_passes_arguments_to_head_backbone_and_learner():
    learn = cnn_learner(
        make_data(classes=("a", "b", "c")), models.resnet18, 6, False, [9], [0.0, 0.5], bn_final=True,
        concat_pool=False, wd=0.3, opt_func=torch.optim.SGD,
    )  # fmt: skip
    body, head = learn.model
    assert (len(body), head[2].num_features, head[-1].num_features) == (6, 128, 3)
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [0.5]
    assert (learn.wd, learn.opt_func) == (0.3, torch.optim.SGD)


@pytest.mark.parametrize("stats", ["another range", *slow("normalized before", "a file")])
def test_normalized_data_or_unknown_stats_leave_the_data_unchanged(hub, weights, capsys, stats):
    (hub / NAME).write_bytes(weights.read_bytes())
    data = make_data()
    if stats == "normalized before":
        data.normalize(imagenet_stats)
    elif stats == "another range":
        data.add_tfm(lambda batch: (batch[0] * 4 - 2, batch[1]))
    norm, (before, _) = data.norm, data.one_batch(denorm=False)
    cnn_learner(data, models.resnet18, pretrained=weights if stats == "a file" else ResNet18_Weights.IMAGENET1K_V1)
    assert data.norm is norm
    assert torch.equal(before, data.one_batch(denorm=False)[0])
    lines = {
        "normalized before": "",
        "another range": "The images have values from -2 to 2, so they count as normalized and stay unchanged.",
        "a file": "The normalization that these weights expect is unknown, so the data stay unchanged.",
    }
    assert capsys.readouterr().out[: len(lines[stats]) or None] == lines[stats]


def test_silent_learner_prints_nothing_about_normalization(hub, weights, capsys):
    (hub / NAME).write_bytes(weights.read_bytes())
    data = make_data()
    cnn_learner(data, models.resnet18, silent=True)
    assert data.norm is not None
    assert capsys.readouterr().out == ""


def test_cnn_learner_raises_for_invalid_arguments():
    with pytest.raises(TypeError, match="`data` must be a DataBunch, got list; wrap your loaders"):
        cnn_learner([], models.resnet18)
    batches = [(torch.rand(2, 3, 32, 32), torch.rand(2))]
    with pytest.raises(DataError, match=r"The data have no classes, .*; give a `custom_head`"):
        cnn_learner(DataBunch(batches, device="cpu"), models.resnet18)
    with pytest.raises(DataError, match=r"The backbone of resnet18 returns the shape \(2, 512, 1\), neither feature"):
        cnn_learner(
            make_data(), models.resnet18, lambda m: nn.Sequential(*list(m.children())[:-1], nn.Flatten(2)), False
        )
    with pytest.raises(DataError, match=r"The backbone of resnet18 fails on an image \("):
        cnn_learner(make_data(), models.resnet18, lambda m: m.layer4, False)


def test_a_network_without_published_weights_says_so():
    def my_net(weights: None = None, num_classes: int = 2) -> nn.Module:
        return models.mobilenet_v2()

    with pytest.raises(ValueError, match=r"torchvision has no weights for my_net; give pretrained=FILE"):
        cnn_learner(make_data(), my_net)
