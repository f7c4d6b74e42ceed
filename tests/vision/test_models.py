"""Layers, shapes and initial weights of the small models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from minifast import simple_ann, simple_cnn


def layer_types(model: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in model]


def convs(model: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in model if isinstance(layer, nn.Conv2d)]


# --- simple_cnn


@pytest.mark.parametrize("side", [1, 2, 28, 33])
@pytest.mark.parametrize("actns", [(3, 2), (3, 16, 16, 2), (1, 4, 4, 4, 10)])
def test_simple_cnn_maps_images_of_any_size_to_one_output_per_class(actns, side):
    assert simple_cnn(actns)(torch.zeros(5, actns[0], side, side)).shape == (5, actns[-1])


def test_layers_of_simple_cnn():
    model = simple_cnn((3, 16, 16, 2))
    assert layer_types(model) == ["Conv2d", "ReLU"] * 3 + ["AdaptiveAvgPool2d", "Flatten"]
    assert [(c.in_channels, c.out_channels) for c in convs(model)] == [(3, 16), (16, 16), (16, 2)]
    assert {(c.kernel_size, c.stride, c.padding) for c in convs(model)} == {((3, 3), (2, 2), (1, 1))}
    assert [c.bias is not None for c in convs(model)] == [True] * 3
    assert [tuple(model[:i](torch.zeros(1, 3, 28, 28)).shape[2:]) for i in (1, 3, 5)] == [(14, 14), (7, 7), (4, 4)]


def test_last_relu_of_simple_cnn_makes_outputs_non_negative():
    torch.manual_seed(0)
    outputs = simple_cnn((3, 16, 16, 8))(torch.randn(64, 3, 28, 28))
    assert outputs.min() == 0
    assert outputs.max() > 0


def test_output_is_the_mean_of_the_last_relu():
    model = simple_cnn((1, 2))
    x = torch.randn(3, 1, 4, 4)
    assert model(x).allclose(model[0](x).relu().mean((2, 3)))


def test_simple_cnn_initializes_kaiming_normal_weights_and_zero_biases():
    torch.manual_seed(0)
    for conv in convs(simple_cnn((64, 128, 64))):
        expected = math.sqrt(2 / (conv.in_channels * 9))
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert conv.weight.mean().item() == pytest.approx(0, abs=0.02 * expected)
        share = (conv.weight.abs() < expected).float().mean().item()
        assert share == pytest.approx(0.6827, abs=0.01)  # a normal distribution, not a uniform one (0.577)
        assert conv.bias.eq(0).all()


def test_batchnorm_follows_every_relu_but_the_last():
    model = simple_cnn((3, 4, 5, 2), bn=True)
    block = ["Conv2d", "ReLU", "BatchNorm2d"]
    assert layer_types(model) == [*block, *block, "Conv2d", "ReLU", "AdaptiveAvgPool2d", "Flatten"]
    assert [conv.bias is not None for conv in convs(model)] == [False, False, True]
    assert [layer.num_features for layer in model if isinstance(layer, nn.BatchNorm2d)] == [4, 5]


def test_kernel_sizes_and_strides_per_layer():
    first, second = convs(simple_cnn((3, 4, 2), kernel_szs=(5, 1), strides=(1, 3)))
    assert (first.kernel_size, first.stride, first.padding) == ((5, 5), (1, 1), (2, 2))
    assert (second.kernel_size, second.stride, second.padding) == ((1, 1), (3, 3), (0, 0))


@pytest.mark.parametrize("actns", [(), (3,)])
def test_simple_cnn_without_a_layer_raises(actns):
    with pytest.raises(ValueError, match=r"^`actns` must have .*at least one layer"):
        simple_cnn(actns)


@pytest.mark.parametrize(
    ("actns", "error"), [((3, 0), ValueError), ((-1, 2), ValueError), ((3, 2.0), TypeError), (("3", "2"), TypeError)]
)
def test_channels_must_be_positive_integers(actns, error):
    with pytest.raises(error, match="each of actns must be"):
        simple_cnn(actns)


@pytest.mark.parametrize("name", ["kernel_szs", "strides"])
@pytest.mark.parametrize("values", [(3,), (3, 3, 3)])
def test_simple_cnn_needs_one_value_per_layer(name, values):
    with pytest.raises(ValueError, match=rf"^`{name}` has {len(values)} values for 2 layers; give one per layer"):
        simple_cnn((3, 4, 2), **{name: values})


# --- simple_ann


@pytest.mark.parametrize("shape", [(20,), (4, 5), (1, 2, 10)])
def test_simple_ann_flattens_samples(shape):
    model = simple_ann(20, 3, n_hidden=7)
    assert layer_types(model) == ["Flatten", "Linear", "ReLU", "Linear"]
    assert model(torch.zeros(2, *shape)).shape == (2, 3)
    assert model[1].out_features == 7


@pytest.mark.parametrize(("name", "position"), [("n_in", 0), ("n_out", 1), ("n_hidden", 2)])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.0, TypeError)])
def test_widths_must_be_positive_integers(name, position, value, error):
    widths = [4, 4, 4]
    widths[position] = value
    with pytest.raises(error, match=rf"^`{name}` must be"):
        simple_ann(*widths)
