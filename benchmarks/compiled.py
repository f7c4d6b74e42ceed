"""``learn.compile()``: the seconds of compilation, the speed gained, and the graphs compiled in each epoch."""

from __future__ import annotations

import os
from statistics import median

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import compare, interleaved, seconds
from minifast import DataBunch, Learner, models, simple_ann, simple_cnn

N_BATCHES, BATCH, ROUNDS = 12, 32, 5
MODELS = {
    "`simple_ann(100, 2)`": ((100,), lambda: simple_ann(100, 2)),
    "`simple_cnn((3, 16, 16, 2))`, 28 × 28": ((3, 28, 28), lambda: simple_cnn((3, 16, 16, 2))),
    "ResNet-18, 64 × 64": ((3, 64, 64), lambda: models.resnet18(num_classes=2)),
}


def report() -> str:
    """Return a table with one row per model; with a CUDA device, rows of it too."""
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # compiled code on the disk would hide the compilation
    torch.set_num_threads(1)
    lines = [
        "| model | device | compilation | batch, compiled | batch, plain | ratio | graphs after 1, 2 and 4 epochs |",
        "|---|---|---|---|---|---|---|",
    ]
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        lines += [row(name, device) for name in MODELS]
    n = f"{N_BATCHES} batches of {BATCH} and a smaller last one"
    return "\n".join(
        [
            *lines,
            "",
            f"Compilation: the first epoch, of {n}, less a later one. Batches: the median of {ROUNDS} interleaved "
            f"epochs, with validation. Graphs: for training, validation and the other size of the last batch.",
        ]
    )


def row(name: str, device: str) -> str:
    """Return the row of one model."""
    from torch._dynamo.utils import counters

    shape, make = MODELS[name]
    torch.manual_seed(0)
    samples = TensorDataset(torch.randn(N_BATCHES * BATCH + 10, *shape), torch.randint(2, (N_BATCHES * BATCH + 10,)))
    data = DataBunch(DataLoader(samples, BATCH, shuffle=True), DataLoader(samples, 2 * BATCH), device=device)
    plain, compiled = (Learner(data, make(), silent=True) for _ in range(2))
    compiled.compile()
    counters.clear()
    torch._dynamo.reset()

    def epoch(learn: Learner, epochs: int = 1) -> float:
        def run() -> None:
            learn.fit_one_cycle(epochs, 1e-3)
            if device == "cuda":
                torch.cuda.synchronize()

        return seconds(run)

    first = epoch(compiled)
    graphs = [counters["stats"]["unique_graphs"]]
    for epochs in (1, 2):
        epoch(compiled, epochs)
        graphs.append(counters["stats"]["unique_graphs"])
    times = interleaved({"compiled": lambda: epoch(compiled), "plain": lambda: epoch(plain)}, ROUNDS)
    batches = len(data.train_dl) / 1000
    result = compare(name, times, "compiled", "plain", None)
    return (
        f"| {name} | {device} | {first - median(times['compiled']):.1f} s | {result.ours / batches:.2f} ms | "
        f"{result.theirs / batches:.2f} ms | {result.ratio:.2f} | {', '.join(map(str, graphs))} |"
    )
