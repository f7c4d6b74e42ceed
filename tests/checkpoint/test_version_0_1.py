"""Files that version 0.1 wrote: checkpoints resume, weights and exports load, pickled models raise an error."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch

from minifast import FileFormatError, Learner, MinifastError, TensorDataBunch, accuracy, load_learner, simple_ann

FILES = Path(__file__).with_name("version_0_1")
# The statistics of the first batch, which normalize() used in version 0.1.
STATS = (
    [0.0363709032535553, 0.2147001475095749, 0.22071948647499084, 0.43074271082878113],
    [0.7956587076187134, 1.1176767349243164, 0.9405460357666016, 0.7071792483329773],
)
FINAL_SUMS = [-0.4357156753540039, -0.7847046256065369, 0.18458956480026245, -0.20813432335853577]


def learner(path: Path, lr_scale: float = 1.0) -> Learner:
    torch.manual_seed(0)
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    arguments = {"valid_pct": 0.2, "seed": 3, "bs": 16, "path": path, "device": "cpu", "classes": ["no", "yes"]}
    data = TensorDataBunch.from_arrays((x * lr_scale).numpy(), (x.sum(1) > 0).long().numpy(), **arguments)
    data.normalize(STATS)
    return Learner(data, simple_ann(4, 2, 8), metrics=[accuracy], silent=True, model_dir=".")


def test_a_run_resumes_to_the_weights_that_version_0_1_reaches(tmp_path):
    shutil.copy(FILES / "middle.checkpoint", tmp_path)
    learn = learner(tmp_path)
    learn.fit_one_cycle(3, 1e-2, checkpoint="middle", every=1)
    assert [p.sum().item() for p in learn.model.parameters()] == pytest.approx(FINAL_SUMS, rel=1e-4)
    assert len(learn.recorder.lrs) == 9
    again = learner(tmp_path)  # the file has the new format now
    again.fit_one_cycle(3, 1e-2, checkpoint="middle", every=1)
    assert [p.sum().item() for p in again.model.parameters()] == pytest.approx(FINAL_SUMS, rel=1e-4)


def test_resume_reads_the_arguments_of_version_0_1(tmp_path):
    shutil.copy(FILES / "middle.checkpoint", tmp_path)
    learn = learner(tmp_path)
    learn.resume("middle")
    assert [p.sum().item() for p in learn.model.parameters()] == pytest.approx(FINAL_SUMS, rel=1e-4)


def test_a_run_of_other_data_raises(tmp_path):
    shutil.copy(FILES / "middle.checkpoint", tmp_path)
    with pytest.raises(MinifastError, match="its data has checksum of training items"):
        learner(tmp_path, lr_scale=2.0).fit_one_cycle(3, 1e-2, checkpoint="middle", every=1)


def test_weights_are_loaded_with_the_optimizer(tmp_path):
    learn = learner(tmp_path)
    before = [p.clone() for p in learn.model.parameters()]
    learn.load((FILES / "weights.pth").resolve())
    assert not any(torch.equal(p, q) for p, q in zip(before, learn.model.parameters(), strict=True))
    assert learn.opt is not None
    x = torch.tensor([1.0, -1.0, 0.5, 2.0])
    exported = load_learner(FILES, "tensors.pkl", device="cpu")
    assert torch.allclose(exported.predict(x)[2], learn.predict(x)[2], atol=1e-6)


def test_a_pickled_model_is_to_be_exported_again():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FileFormatError, match=r"another version of minifast .*write it again with"):
            load_learner(FILES, "whole.pkl", trust=True, device="cpu")
