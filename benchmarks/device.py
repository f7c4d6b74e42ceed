"""Time per step on a CUDA device, against a hand-written loop on the same device."""

from __future__ import annotations

import torch

from benchmarks.hand_written_loop import adamw
from benchmarks.timing import Row, compare, interleaved, seconds
from minifast import DataBunch, Learner, TensorLoader, simple_cnn

N = 64 * 300


def rows() -> list[Row]:
    """Compare µs per step in interleaved rounds."""
    if not torch.cuda.is_available():
        print("device: no CUDA device found, so nothing is measured.")
        return []
    x = torch.randint(0, 256, (N, 1, 28, 28), dtype=torch.uint8)
    y = torch.randint(0, 2, (N,))
    loader = TensorLoader(x, y, shuffle=True, seed=0, device="cuda", classes=["a", "b"])
    data = DataBunch(loader, device="cuda")
    floats = (loader.x.float() / 255).expand(-1, 3, -1, -1).contiguous()

    def ours() -> float:
        learn = Learner(data, simple_cnn((3, 16, 16, 2)), silent=True)
        return seconds(lambda: (learn.fit_one_cycle(1, 1e-2), torch.cuda.synchronize())) / len(loader) * 1e6

    def theirs() -> float:
        model = simple_cnn((3, 16, 16, 2)).cuda()
        optimizer = adamw(model)
        losses = []

        def run() -> None:
            order = torch.randperm(N, device="cuda")
            for i in range(0, N, 64):
                rows = order[i : i + 64]
                loss = torch.nn.functional.cross_entropy(model(floats[rows]), loader.y[rows])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
            torch.cuda.synchronize()

        return seconds(run) / len(loader) * 1e6

    times = interleaved({"ours": ours, "theirs": theirs})
    return [compare("a step on the device, against a hand-written loop", times, "ours", "theirs", 1 / 0.97, "µs")]
