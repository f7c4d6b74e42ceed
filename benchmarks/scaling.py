"""Time per batch with 1, 2, 4 and 8 times the data."""

from __future__ import annotations

import torch

from benchmarks.timing import Row, compare, interleaved, seconds
from minifast import DataBunch, Learner, TensorLoader, simple_cnn

N = 64 * 60


def learner(times: int) -> Learner:
    """Return a learner with ``times`` the data: random grayscale images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (N * times, 1, 28, 28), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 2, (N * times,), generator=generator)
    data = DataBunch(TensorLoader(x, y, shuffle=True, seed=0, device="cpu", classes=["a", "b"]), device="cpu")
    return Learner(data, simple_cnn((3, 16, 16, 2)), silent=True)


def rows() -> list[Row]:
    """Compare µs per batch."""
    torch.set_num_threads(1)
    learners = {times: learner(times) for times in (1, 2, 4, 8)}

    def batch(times: int) -> float:
        learn = learners[times]
        return seconds(lambda: learn.fit(1, 1e-3)) / len(learn.data.train_dl) * 1e6

    results = interleaved({str(times): lambda times=times: batch(times) for times in learners})
    return [compare(f"a batch of {n} × the data, against 1 ×", results, n, "1", 1.1, "µs") for n in ("2", "4", "8")]
