"""Kill a run at random moments, start it again until it finishes, and compare it with an uninterrupted run.

``python tests/killed.py KILLS FOLDER [KINDS]`` prints, as JSON, how often each kind of run was killed and whether its
weights, lists and table were bitwise identical. Last, runs of the first kind kill themselves in the middle of a save.
One process imports torch and forks a child for each start.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import AccumulateScheduler, DataBunch, Learner, TensorLoader, accuracy
from minifast.utils import files

N_BATCHES, EPOCHS = 10, 5


def noisy(batch):
    x, y = batch
    return x + 0.1 * torch.randn_like(x), y


def learner(kind: str, folder: Path) -> Learner:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20 * N_BATCHES + 7, 10, generator=generator)
    y = (x.sum(1) > 0).long()
    valid = TensorLoader(x, y, 64, device="cpu")
    if kind == "DataLoader, own generator":
        own = torch.Generator().manual_seed(5)
        train = DataLoader(TensorDataset(x, y), 20, shuffle=True, drop_last=True, generator=own)
    elif kind == "DataLoader, global generator":
        train = DataLoader(TensorDataset(x, y), 20, shuffle=True, drop_last=True)
    else:
        train = TensorLoader(x, y, 20, shuffle=True, seed=3, device="cpu")
    data = DataBunch(train, valid, device="cpu", path=folder)
    data.train_dl.add_tfm(noisy)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
    sgd = {"opt_func": lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9)} if kind == "SGD" else {}
    callbacks = [AccumulateScheduler(n_step=3)] if kind == "accumulation" else []
    return Learner(data, model, metrics=[accuracy], callbacks=callbacks, silent=True, **sgd)


KINDS = ("AdamW", "SGD", "accumulation", "DataLoader, own generator", "DataLoader, global generator")


def outcome(learn: Learner) -> dict:
    recorder = learn.recorder
    rows = [row[:-1] for row in recorder.rows]  # but for the seconds
    lists = [recorder.lrs, recorder.moms, recorder.raw_losses, recorder.losses, recorder.val_losses, recorder.metrics]
    return {"weights": learn.model.state_dict(), "lists": [*map(list, lists)], "rows": rows}


def train(kind: str, folder: Path, checkpoint: str | None) -> None:
    learn = learner(kind, folder)
    random.seed(2)
    torch.manual_seed(2)
    learn.fit_one_cycle(EPOCHS, 1e-2, checkpoint=checkpoint, every=2 if checkpoint else None)
    torch.save(outcome(learn), folder / "outcome.partial")
    (folder / "outcome.partial").rename(folder / "outcome.pth")


IN_A_SAVE = {
    "half written": (files._HashingWriter, "write"),
    "before the flush": (os, "fsync"),
    "before a move": (Path, "replace"),
}


def die_in_a_save(moment: str, call: int) -> None:
    """Let this process kill itself at the ``call``-th time that a save comes to ``moment``."""
    owner, name = IN_A_SAVE[moment]
    original = getattr(owner, name)
    calls = []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            if name == "write":
                original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                arguments[0].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(owner, name, dies)


def start(
    kind: str, folder: Path, checkpoint: str | None, patience: float | None = None, die: tuple[str, int] | None = None
) -> bool:
    """Train in a child that is killed after ``patience`` seconds or in a save; return whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            if die:
                die_in_a_save(*die)
            train(kind, folder, checkpoint)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    deadline = None if patience is None else time.monotonic() + patience
    while True:
        done, status = os.waitpid(child, os.WNOHANG if deadline else 0)
        if done:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise SystemExit(f"the run {kind} failed")
            return os.WIFEXITED(status)
        if deadline and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.0005)


def same(folder: Path, expected: dict) -> bool:
    """Whether a run ended as expected and left nothing but its two files."""
    found = torch.load(folder / "outcome.pth", weights_only=True)
    weights = zip(expected["weights"].values(), found["weights"].values(), strict=True)
    left = sorted(path.name for path in (folder / "models").iterdir())
    return (
        all(torch.equal(a, b) for a, b in weights)
        and found["lists"] == expected["lists"]
        and found["rows"] == expected["rows"]
        and left == ["run.checkpoint", "run.previous.checkpoint"]
    )


def main() -> None:
    wanted, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    draw = random.Random(0)
    report = []
    expected = {}
    for kind in KINDS[: int(sys.argv[3]) if len(sys.argv) > 3 else None]:
        alone = folder / kind / "alone"
        alone.mkdir(parents=True)
        start(kind, alone, None)
        saved = folder / kind / "saved"
        saved.mkdir()
        begin = time.monotonic()
        start(kind, saved, "run")
        whole = time.monotonic() - begin  # with its saves, so that one start in three can come to the end
        expected[kind] = torch.load(alone / "outcome.pth", weights_only=True)
        kills, runs, equal = 0, 0, True
        while kills < wanted:
            killed = folder / kind / f"killed{runs}"
            killed.mkdir()
            runs += 1
            while not start(kind, killed, "run", draw.uniform(0, 1.5 * whole)):
                kills += 1
            equal &= same(killed, expected[kind])
        report.append({"kind": kind, "kills": kills, "runs": runs, "equal": equal})
    kills, equal = 0, True
    for moment in IN_A_SAVE:
        for call in range(1, wanted + 1):
            killed = folder / moment / str(call)
            killed.mkdir(parents=True)
            kills += not start(KINDS[0], killed, "run", die=(moment, call))
            start(KINDS[0], killed, "run")
            equal &= same(killed, expected[KINDS[0]])
    report.append({"kind": "in a save", "kills": kills, "runs": len(IN_A_SAVE) * wanted, "equal": equal})
    print(json.dumps(report))


if __name__ == "__main__":
    main()
