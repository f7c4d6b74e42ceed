"""Predictions of batches of any shape: one tensor where they fit, otherwise a list with one per batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from minifast import DataBunch, Interpretation, Learner, accuracy
from minifast.errors import DataError
from minifast.losses import MSELossFlat


class Recurrent(nn.Module):
    """A model of sequences that returns outputs of each step, and what else ``kind`` says."""

    def __init__(self, kind="outputs"):
        super().__init__()
        self.kind, self.gru, self.head = kind, nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        steps, hidden = self.gru(x)
        outputs = self.head(steps)
        values = {
            "outputs": outputs,
            "hidden": (outputs, hidden),
            "dict": {"logits": outputs, "hidden": hidden, "penalty": outputs.mean()},
            "last": outputs[:, -1],
        }
        return values[self.kind]


def first_of(output):
    if isinstance(output, dict):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output


def sequence_loss(output, target):
    return functional.cross_entropy(first_of(output).transpose(1, 2), target)


def learner(batches, kind="outputs", loss=sequence_loss):
    torch.manual_seed(0)
    return Learner(DataBunch(batches, batches, device="cpu", loss_func=loss), Recurrent(kind), silent=True)


def sequences(lengths, sizes):
    return [(torch.randn(n, t, 4), torch.randint(2, (n, t))) for t, n in zip(lengths, sizes, strict=True)]


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    kind=st.sampled_from(["outputs", "hidden", "dict"]),
)
def test_predictions_are_those_of_the_batches(lengths, sizes, kind):
    batches = sequences(lengths, sizes[: len(lengths)])
    learn = learner(batches, kind)
    preds, targets = learn.get_preds()
    with torch.no_grad():
        expected = [first_of(learn.model(x)) for x, _ in batches]
    outputs = first_of(preds)
    if len(set(lengths)) == 1:
        assert torch.equal(targets, torch.cat([y for _, y in batches]))
        assert torch.allclose(outputs, torch.cat(expected), atol=1e-6)
    else:
        assert [values.shape for values in outputs] == [values.shape for values in expected]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(outputs, expected, strict=True))
        assert all(torch.equal(a, y) for a, (_, y) in zip(targets, batches, strict=True))
    if kind == "outputs":
        right = sum((o.argmax(-1) == y).sum().item() for o, (_, y) in zip(expected, batches, strict=True))
        found = learn.validate(metrics=accuracy)[1]
        assert found == pytest.approx(right / sum(y.numel() for _, y in batches))


def test_a_state_without_a_row_per_sample_is_a_list_of_the_batches():
    batches = sequences([3, 3], [5, 5])
    outputs, hidden = learner(batches, "hidden").get_preds()[0]
    assert outputs.shape == (10, 3, 2)
    assert [values.shape for values in hidden] == [(1, 5, 3)] * 2
    preds = learner(batches, "dict").get_preds()[0]
    assert [tuple(values.shape) for values in preds["penalty"]] == [(), ()]


def test_the_loss_of_samples_in_batches_of_other_shapes():
    batches = sequences([3, 5], [4, 2])
    learn = learner(batches)
    preds, targets, losses = learn.get_preds(with_loss=True)
    assert len(preds) == len(targets) == 2
    expected = [
        sequence_loss(o[i : i + 1], y[i : i + 1]) for o, y in zip(preds, targets, strict=True) for i in range(len(y))
    ]
    assert losses.tolist() == pytest.approx([loss.item() for loss in expected])
    with pytest.raises(DataError, match=r"outputs of different shapes.*one tensor per batch"):
        Interpretation.from_learner(learn)


@pytest.mark.parametrize("kind", ["hidden", "dict"])
def test_several_outputs_have_no_loss_and_that_is_known_at_the_first_batch(kind):
    learn = learner(sequences([3, 3], [5, 5]), kind)
    calls = []
    learn.model.register_forward_hook(lambda *args: calls.append(1))
    with pytest.raises(DataError, match="undefined for several outputs or targets"):
        learn.get_preds(with_loss=True)
    assert calls == [1]


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), MSELossFlat(), lambda o, t: (o - t).square().mean()])
def test_the_loss_of_a_single_output(loss):
    items = TensorDataset(torch.randn(7, 4), torch.randint(2, (7, 1)).float())
    data = DataBunch(DataLoader(items, 3), DataLoader(items, 3), device="cpu", loss_func=loss)
    learn = Learner(data, nn.Linear(4, 1), silent=True)
    outputs, targets, losses = learn.get_preds(activ=lambda output: output, with_loss=True)
    assert losses.flatten().tolist() == pytest.approx(
        [loss(outputs[i : i + 1], targets[i : i + 1]).item() for i in range(7)], rel=1e-5
    )


def test_targets_may_be_texts_or_dicts_of_samples():
    batches = [(torch.randn(2, 3, 4), ["a", "b"]), (torch.randn(1, 3, 4), ["c"])]
    learn = learner(batches, loss=lambda output, *target: output.mean())
    assert learn.get_preds()[1] == ["a", "b", "c"]
    boxes = [(torch.randn(2, 3, 4), [{"box": torch.zeros(1, 4)}, {"box": torch.zeros(3, 4)}])]
    targets = learner(boxes, loss=lambda output, *target: output.mean()).get_preds()[1]
    assert [target["box"].shape[0] for target in targets] == [1, 3]


def test_results_of_several_targets_or_outputs_are_a_table(capsys):
    x = torch.randn(3, 2, 4)
    pairs = [(x, (torch.tensor([0, 1, 0]), torch.tensor([0.5, 1.0, 2.0])))]
    learn = learner(pairs, "hidden", loss=lambda output, a, b: output[0].mean())
    learn.show_results(rows=2)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["sample", "target", "prediction"]
    assert [row.split()[1:3] for row in rows] == [["0,", "0.5"], ["1,", "1"]]
    learner([(x, torch.zeros(3, 30, 30))], loss=lambda output, target: output.mean()).show_results(rows=1)
    assert "30 x 30" in capsys.readouterr().out


def test_a_prediction_of_each_position_is_a_map_of_classes():
    images, masks = torch.randn(4, 3, 6, 6), torch.randint(2, (4, 6, 6))
    data = DataBunch([(images, masks)], [(images, masks)], device="cpu", classes=["no", "yes"])
    learn = Learner(data, nn.Conv2d(3, 2, 1), loss_func=nn.CrossEntropyLoss(), metrics=accuracy, silent=True)
    expected = learn.model(images).argmax(1)
    assert learn.validate()[1] == pytest.approx((expected == masks).float().mean().item())
    classes, numbers, probabilities = learn.predict(images[0])
    assert torch.equal(numbers, expected[0])
    assert torch.equal(classes, numbers)
    assert probabilities.shape == (2, 6, 6)
