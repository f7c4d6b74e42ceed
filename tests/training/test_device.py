"""Training on a CUDA device: nothing waits for it in the loop, and data and losses stay there."""

from __future__ import annotations

import pytest
import torch

from minifast import (
    ActivationStats,
    AverageMetric,
    DataBunch,
    Learner,
    TensorLoader,
    accuracy,
    load_learner,
    simple_cnn,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def learner(**kwargs) -> Learner:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (640, 1, 28, 28), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 2, (640,), generator=generator)
    loaders = [
        TensorLoader(x, y, shuffle=shuffle, seed=0, device="cuda", classes=["a", "b"]) for shuffle in (True, False)
    ]
    torch.manual_seed(0)
    return Learner(
        DataBunch(*loaders, device="cuda"), simple_cnn((3, 16, 2)), metrics=[accuracy], silent=True, **kwargs
    )


def test_nothing_in_a_fit_waits_for_the_device():
    learn = learner()
    learn.fit(1)  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        learn.fit_one_cycle(2, 1e-2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(learn.recorder.losses) == 20


def test_data_model_and_losses_are_on_the_device():
    learn = learner()
    assert learn.data.train_dl.x.is_cuda
    assert next(learn.model.parameters()).is_cuda
    seen = []

    class Looks(AverageMetric):
        def on_batch_end(self, last_output, last_target):
            seen.append(last_output.is_cuda and last_target.is_cuda)
            super().on_batch_end(last_output, last_target)

    learn.metrics = [Looks(accuracy)]
    learn.fit(1)
    assert seen == [True] * 10
    assert all(isinstance(loss, float) for loss in learn.recorder.raw_losses)


def test_lr_find_puts_the_device_back_too():
    alone, found = learner(), learner()
    found.lr_find(num_it=15)
    for learn in (alone, found):
        learn.fit_one_cycle(1, 1e-2)
    assert alone.recorder.raw_losses == found.recorder.raw_losses


def test_statistics_of_layers_do_not_wait_for_the_device():
    learn = learner(callbacks=[stats := ActivationStats()])
    learn.fit(1)  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        learn.fit(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert stats.stats.shape == (2, 2, 10)
    assert not stats.stats.is_cuda


def test_an_export_predicts_on_both_devices(tmp_path):
    learn = learner(path=tmp_path)
    learn.data.normalize()
    learn.export()
    assert next(learn.model.parameters()).is_cuda
    x = torch.rand(3, 28, 28)
    wanted = learn.predict(x)[2]
    for device in ("cpu", "cuda"):
        loaded = load_learner(tmp_path, device=device)
        assert next(loaded.model.buffers()).device.type == device
        assert torch.allclose(loaded.predict(x)[2], wanted, atol=1e-3)
    assert learn.check().findings is not None


def test_the_loss_of_each_item_with_weights_of_classes():
    learn = learner(loss_func=torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0], device="cuda")))
    assert len(learn.get_preds(with_loss=True)[2]) == 640
    assert learn.loss_func.weight.is_cuda
