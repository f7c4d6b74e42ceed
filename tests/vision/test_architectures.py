"""`vision_learner` with models of any architecture: functions, names, instances; fixed sizes, gray images, files."""

from __future__ import annotations

import hashlib
import io
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import slow
from torch import nn

from minifast import (
    DataBunch,
    DataError,
    DownloadError,
    FileFormatError,
    cnn_learner,
    load_learner,
    models,
    vision_learner,
)
from minifast.data.normalize import imagenet_stats
from minifast.vision.architecture import adapt_channels, fit_to_size
from minifast.vision.body import block_starts, create_body


def make_data(side: int = 32, channels: int = 3) -> DataBunch:
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(4, channels, side, side, generator=generator), torch.tensor([0, 1, 0, 1]))]
    return DataBunch(batches, batches, device="cpu", classes=["cat", "dog"])


def small_vit(side: int = 32) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(side, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=5)


class ChannelsLast(nn.Module):
    """A model whose children are called in order, but whose maps are ``(n, height, width, channels)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.stages = nn.Sequential(Permute(), nn.Linear(8, 8), nn.GELU())
        self.head = nn.Sequential(Mean(), nn.Linear(8, 5))

    def forward(self, x):
        return self.head(self.stages(self.stem(x)))


class Permute(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((1, 2))


class Loose(nn.Module):
    """A model that calls the parts of one child itself, and holds a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)])
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + self.scale * block(x).relu()
        return self.fc(x.mean((2, 3)))


WHOLE = [small_vit, ChannelsLast, Loose]


@pytest.mark.parametrize("make", WHOLE)
def test_model_that_cannot_be_cut_stays_whole_without_its_classifier(make):
    torch.manual_seed(0)
    model = make().eval()
    x = torch.rand(2, 3, 32, 32)
    expected = model(x)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    learn = vision_learner(make_data(), model, silent=True)
    body, head = learn.model
    assert last.weight is not None
    assert model(x).equal(expected)  # the caller's model did not change
    assert last(body.eval()(x)).allclose(expected, atol=1e-5)
    assert isinstance(head[0], nn.BatchNorm1d)
    assert head[0].num_features == last.in_features
    assert not any(parameter.requires_grad for parameter in body.parameters())
    before = {name: value.clone() for name, value in body.state_dict().items()}
    learn.fit(1, 1e-2)
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    assert len(learn.layer_groups) == 3
    learn.unfreeze().fit(1, slice(1e-3, 1e-2))
    assert sum(not torch.equal(value, before[name]) for name, value in body.named_parameters()) > len(before) / 2


def test_vision_transformer_takes_images_of_the_size_of_the_data():
    learn = vision_learner(make_data(48), small_vit(32), pretrained=False, silent=True)
    assert learn.model[0].encoder.pos_embedding.shape == (1, 1 + 36, 16)
    learn.fit(1, 1e-3)
    same = small_vit(32)
    before = same.encoder.pos_embedding.clone()
    fit_to_size(same, (32, 32))
    assert same.encoder.pos_embedding.equal(before)


@pytest.mark.parametrize("side", [33, 4])
def test_size_that_a_model_does_not_take_is_named(side):
    with pytest.raises(DataError, match=rf"VisionTransformer does not take images of shape 3 x {side} x {side}, .*=32"):
        vision_learner(make_data(side), small_vit(32), pretrained=False)


@pytest.mark.parametrize("channels", [1, 7, *slow(2, 4)])
def test_first_convolution_takes_the_channels_of_the_data(channels):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    equal = torch.rand(2, 1, 8, 8)
    expected = model(equal.expand(-1, 3, -1, -1))
    adapt_channels(model, channels, "model")
    found = model(equal.expand(-1, channels, -1, -1))
    if channels in (1,):  # others have some of the three weights more often
        assert found.allclose(expected, atol=1e-5)
    learn = vision_learner(make_data(32, channels), "resnet18", pretrained=False, silent=True)
    assert learn.model[0][0].weight.shape[1] == channels
    learn.fit(1, 1e-3)


def test_model_for_other_channels_is_not_changed_silently():
    gray = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert vision_learner(make_data(32, 1), gray, silent=True).model[0][0].in_channels == 1
    with pytest.raises(DataError, match="does not take images of shape 3 x 32 x 32"):
        vision_learner(make_data(32, 3), gray)
    with pytest.raises(DataError, match="The images have 4 channels, but the first convolution of Sequential takes 1"):
        vision_learner(make_data(32, 4), gray)


def test_names_of_torchvision_are_its_functions():
    body = create_body("resnet18", pretrained=False)
    assert [type(child) for child in body] == [type(child) for child in create_body(models.resnet18, pretrained=False)]
    with pytest.raises(ValueError, match=r"resnet81.*Did you mean resnet18\?"):
        create_body("resnet81", pretrained=False)
    with pytest.raises(TypeError, match=r"vision_learner got `arch` and `base_arch`"):
        vision_learner(make_data(), base_arch="resnet18", arch="resnet18")


@pytest.mark.parametrize("create", [vision_learner, cnn_learner])
def test_errors_about_arguments_name_the_function_that_was_called(create):
    name = create.__name__
    data = make_data()
    with pytest.raises(TypeError, match=rf"^{name} has no argument `metricss`\. Did you mean `metrics`\?"):
        create(data, "resnet18", pretrained=False, metricss=[])
    with pytest.raises(TypeError, match=rf"^{name} got `arch` and `base_arch`"):
        create(data, base_arch="resnet18", arch="resnet18")
    with pytest.raises(TypeError, match=rf"^{name}\(\) missing 1 required positional argument: 'base_arch'"):
        create(data)
    with pytest.raises(TypeError, match=rf"^{name}\(\) got multiple values for argument 'data'"):
        create(data, "resnet18", data=data)


def test_name_that_only_timm_may_have_asks_for_timm(monkeypatch):
    monkeypatch.setattr("minifast.vision.architecture.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"torchvision has no model 'convnext_atto'\..* run: pip install timm$"):
        vision_learner(make_data(), "convnext_atto")


@pytest.mark.slow
def test_auxiliary_classifiers_of_inception_networks_do_not_train():
    from torchvision.models import GoogLeNet

    learn = vision_learner(make_data(64), lambda: GoogLeNet(init_weights=False), pretrained=False, silent=True)
    learn.fit(1, 1e-3)
    assert not any("aux" in name for name, _ in learn.model.named_parameters())


def test_groups_of_blocks_have_their_own_learning_rates():
    learn = vision_learner(make_data(), "resnet18", pretrained=False, split_on="blocks", silent=True)
    assert len(learn.layer_groups) == 2 + 8 + 1  # convolution, normalization, blocks, head
    learn.fit_one_cycle(1, slice(1e-5, 1e-2))
    assert len(learn.recorder.group_lrs[0]) == 11
    vit = small_vit()
    assert len(block_starts(vit)) == 1 + 3 + 2  # patches, blocks, normalization, classifier
    with pytest.raises(ValueError, match="`split_on` must be one of 'blocks', got 'layers'"):
        vision_learner(make_data(), "resnet18", pretrained=False, split_on="layers")


def test_backbone_from_a_safetensors_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    model = models.resnet18()
    safetensors.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    learn = vision_learner(make_data(), "resnet18", pretrained=tmp_path / "weights.safetensors", silent=True)
    assert learn.model[0][0].weight.equal(model.conv1.weight)
    (tmp_path / "damaged.safetensors").write_bytes(b"1234")
    with pytest.raises(FileFormatError, match=r"damaged.safetensors is damaged, or no safetensors file"):
        create_body("resnet18", tmp_path / "damaged.safetensors")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none\.safetensors"):
        create_body("resnet18", tmp_path / "none.safetensors")


def test_safetensors_file_without_the_package_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(ImportError, match=r"w\.safetensors needs the package safetensors: pip install safetensors$"):
        create_body("resnet18", tmp_path / "w.safetensors")


def test_file_that_lacks_a_tensor_is_an_error_for_gray_images_too(tmp_path):
    state = models.resnet18().state_dict()
    del state["conv1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(DataError, match=r"part.pth has no conv1.weight of shape \(64, 1, 7, 7\)"):
        vision_learner(make_data(32, 1), "resnet18", pretrained=tmp_path / "part.pth")


def test_statistics_of_a_timm_config_normalize_the_data():
    model = small_vit()
    model.pretrained_cfg = {"mean": imagenet_stats[0], "std": imagenet_stats[1]}
    data = make_data()
    vision_learner(data, model, silent=True)
    assert data.norm.mean.flatten().tolist() == pytest.approx(imagenet_stats[0])
    gray = make_data(channels=1)
    vision_learner(gray, model, silent=True)
    assert gray.norm.mean.item() == pytest.approx(sum(imagenet_stats[0]) / 3)


def test_a_copy_of_published_weights_is_recognized_by_its_content(monkeypatch, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "renamed.pth"
    torch.save(models.resnet18().state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    transforms = SimpleNamespace(mean=imagenet_stats[0], std=imagenet_stats[1])
    others = [SimpleNamespace(url=url, transforms=dict) for url in ("a/b-00000000.pth", "a/b.pth", "a/b-.pth")]
    published = SimpleNamespace(url=f"a/resnet18-{digest[:8]}.pth", transforms=lambda: transforms)
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda arch: [*others, published])
    data = make_data()
    vision_learner(data, "resnet18", pretrained=file, silent=True)
    assert data.norm.mean.flatten().tolist() == pytest.approx(imagenet_stats[0])
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda arch: others)
    data = make_data()
    vision_learner(data, "resnet18", pretrained=file, silent=True)
    assert data.norm is None


# --- fine_tune


def test_fine_tune_trains_the_head_and_then_everything():
    learn = vision_learner(make_data(), small_vit(), pretrained=False, silent=True)
    first = learn.model[0].conv_proj.weight
    before = first.detach().clone()
    states = []

    def note(*_):
        states.append(first.requires_grad)

    hook = learn.model.register_forward_hook(lambda model, *_: note(model) if model.training else None)
    recorder = learn.fine_tune(3, 1e-2, freeze_epochs=2, div=10)
    hook.remove()
    head, everything = learn.history
    assert states == [False] * 2 + [True] * 3
    assert recorder is everything
    assert max(head.lrs) == pytest.approx(1e-2)
    assert everything.group_lrs[0][0] == pytest.approx(5e-5 / 10)
    assert max(lrs[0] for lrs in everything.group_lrs) <= 5e-5
    assert max(lrs[-1] for lrs in everything.group_lrs) <= 5e-3
    assert not torch.equal(before, first)
    learn.fine_tune(1, freeze_epochs=0)
    assert len(learn.history) == 3


def test_fine_tune_resumes_from_its_checkpoints(tmp_path):
    def train(stop: bool):
        torch.manual_seed(0)
        data = make_data()
        data.path = tmp_path
        learn = vision_learner(data, small_vit(), pretrained=False, silent=True)
        calls = 0

        def interrupt(*_):
            nonlocal calls
            calls += learn.model.training
            if stop and calls == 4:
                raise KeyboardInterrupt

        learn.model.register_forward_hook(interrupt)
        learn.fine_tune(3, 1e-2, freeze_epochs=2, checkpoint="run" if name == "resumed" else None)
        return learn

    name = "plain"
    plain = train(False)
    name = "resumed"
    with pytest.raises(KeyboardInterrupt):
        train(True)
    resumed = train(False)
    pairs = zip(plain.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"freeze_epochs": -1}, ValueError, "`freeze_epochs` must be at least 0"),
        ({"base_lr": slice(1e-3)}, TypeError, "`base_lr` must be"),
        ({"max_lr": 1e-3}, TypeError, "fine_tune has no argument `max_lr`"),
        ({"lr_mult": 0}, ValueError, "`lr_mult` must be"),
    ],
)
def test_fine_tune_checks_its_arguments_before_training(arguments, error, message):
    learn = vision_learner(make_data(), small_vit(), pretrained=False, silent=True)
    with pytest.raises(error, match=message):
        learn.fine_tune(1, **arguments)
    assert not learn.history


# --- many architectures

TORCHVISION = [
    ("alexnet", 64), ("vgg11", 32), ("squeezenet1_1", 64), ("resnet18", 32), ("densenet121", 32),
    ("mobilenet_v2", 32), ("mobilenet_v3_small", 32), ("efficientnet_b0", 32), ("convnext_tiny", 32),
    ("regnet_y_400mf", 32), ("shufflenet_v2_x0_5", 32), ("mnasnet0_5", 32), ("googlenet", 64), ("swin_t", 32),
    ("vit_b_32", 64), ("maxvit_t", 224),
]  # fmt: skip
TIMM = [
    ("timm/resnet10t", 32), ("convnext_atto", 32), ("vit_tiny_patch16_224", 64),
    ("deit_tiny_distilled_patch16_224", 64),
    ("swin_tiny_patch4_window7_224", 64), ("maxvit_rmlp_pico_rw_256", 64), ("efficientnet_lite0", 32),
    ("mobilevit_xxs", 64), ("levit_128s", 224), ("eva02_tiny_patch14_224", 56), ("pvt_v2_b0", 64),
    ("xcit_nano_12_p16_224", 224), ("mobilenetv4_conv_small", 64), ("fastvit_t8", 64),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torchvision's and timm's own code
@pytest.mark.parametrize(("name", "side"), [*TORCHVISION, *TIMM])
def test_architecture_freezes_trains_and_exports(name, side):
    if (name, side) in TIMM:
        pytest.importorskip("timm", reason="the models of timm need timm")
    torch.manual_seed(0)
    learn = vision_learner(make_data(side), name, pretrained=False, silent=True).freeze()
    body = learn.model[0]
    assert len(learn.layer_groups) == 3
    sizes = [sum(parameter.numel() for parameter in group.parameters()) for group in learn.layer_groups]
    assert sum(sizes[:2]) == sum(parameter.numel() for parameter in body.parameters())
    before = {key: value.clone() for key, value in body.state_dict().items()}
    learn.fit(1, 1e-3)
    assert all(torch.equal(value, before[key]) for key, value in body.state_dict().items())
    learn.unfreeze().fit(1, 1e-3)
    # Behind a layer that begins with zeros, the first gradients are 0, so that other zeros stay.
    matrices = [(key, value) for key, value in body.named_parameters() if value.ndim > 1 and before[key].any()]
    moved = [not torch.equal(value, before[key]) for key, value in matrices]
    assert sum(moved) > 0.9 * len(moved)
    file = io.BytesIO()
    learn.export(file)  # compares the outputs with the model's
    file.seek(0)
    image = learn.data.one_batch()[0][0]
    assert load_learner(".", file).predict(image)[2].allclose(learn.predict(image)[2], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_failed_download_of_timm_says_what_to_do(monkeypatch):
    timm = pytest.importorskip("timm", reason="the models of timm need timm")

    def no_network(*arguments, **keywords):
        raise OSError("no network in the tests")

    monkeypatch.setattr("timm.models._builder.load_pretrained", no_network)
    for arch in ("convnext_atto", timm.models.convnext_atto):
        with pytest.raises(
            DownloadError, match=r"convnext_atto cannot be loaded by timm \(no network.*pretrained=FILE"
        ):
            vision_learner(make_data(), arch)
