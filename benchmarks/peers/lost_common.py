"""What the scripts of ``benchmarks lost`` share: the problem, what is compared, and processes that are killed."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import signal
import sys
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

SEED, BATCH, RATE, EPOCHS = 1, 32, 1e-2, 2
KEPT_EPOCHS, BATCHES = 3, 20  # of the runs that are killed; batches in an epoch
INTERRUPTED_AT = 20
KILLED_AT = (24, 31, 38, 46, 57)  # after so many optimizer steps, all in the second and third epoch


class Items(Dataset):
    """Rows of 10 numbers in 2 classes; those for training with noise from Python's generator and from NumPy's."""

    def __init__(self, n: int, noisy: bool, seed: int) -> None:
        self.x = torch.randn(n, 10, generator=torch.Generator().manual_seed(seed))
        self.y = (self.x.sum(1) > 0).long()
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = self.x[i]
        if self.noisy:
            x = x * random.uniform(0.9, 1.1) + 0.1 * torch.from_numpy(np.random.randn(10)).float()
        return x, self.y[i]


def items() -> tuple[Items, Items]:
    """Return what is trained on and what is validated on."""
    return Items(BATCH * BATCHES, True, 2), Items(160, False, 3)


def network() -> nn.Sequential:
    """Return a model that has buffers and draws random numbers."""
    return nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


class Steps:
    """Called after each optimizer step: notes it in a file, and ends the run where it was told to."""

    def __init__(self, file: Path, at: int | None = None, end: Callable[[], None] | None = None) -> None:
        self.file, self.at, self.end = file, at, end
        self.count = 0

    def __call__(self, epoch: int, batch: int) -> None:
        """Note a step; one that ends the run is noted too."""
        with self.file.open("a") as file:
            file.write(f"{epoch} {batch}\n")
        self.count += 1
        if self.count == self.at and self.end:
            self.end()


class Subject(ABC):
    """A library with the problem set up: seeded, nothing trained yet. It calls ``steps`` after each step."""

    model: nn.Module

    @abstractmethod
    def __init__(self, folder: Path, steps: Steps) -> None: ...

    @abstractmethod
    def find(self) -> None:
        """Run the learning-rate finder."""

    @abstractmethod
    def train(self, epochs: int) -> None:
        """Train by one cycle."""

    @abstractmethod
    def train_kept(self, epochs: int) -> None:
        """Train by one cycle and keep the run in the folder; go on with what is kept there."""

    @abstractmethod
    def optimizer(self) -> dict[str, Any]:
        """Return the optimizer's ``state`` and its ``groups``, each with a rate called ``lr``."""

    def order(self) -> Any:
        """Return what decides the order of data, besides the global generators."""
        return None


def snapshot(subject: Subject) -> dict[str, Any]:
    """Return a copy of all that a finder should leave as it was."""
    optimizer = subject.optimizer()
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer["groups"]]
    return copy.deepcopy(
        {
            "weights": {name: value.detach() for name, value in subject.model.named_parameters()},
            "buffers": dict(subject.model.named_buffers()),
            "optimizer state": optimizer["state"],
            "learning rate": [group.pop("lr") for group in groups],
            "other hyper-parameters": groups,
            "torch generator": torch.get_rng_state(),
            "Python generator": random.getstate(),
            "NumPy generator": np.random.get_state(),
            "order of data": subject.order(),
            "training flags": [module.training for module in subject.model.modules()],
        }
    )


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same to the bit."""
    if isinstance(a, (Tensor, np.ndarray)) and isinstance(b, (Tensor, np.ndarray)):
        a, b = (np.asarray(one.detach() if isinstance(one, Tensor) else one) for one in (a, b))
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Name the parts of two snapshots that are not the same."""
    parts = [part for part in before if not equal(before[part], after[part])]
    return f"differs: {', '.join(parts)}" if parts else "equal"


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return how far two state dicts are from each other at most."""
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def compared(a: dict[str, Tensor], b: dict[str, Tensor]) -> str:
    """Say whether two state dicts are equal, and how far they are from each other."""
    return "equal" if equal(a, b) else f"differs by up to {distance(a, b):.2g}"


def in_child(work: Callable[[], Any], result: Path) -> Any:
    """Return what ``work`` returns in a process of its own, or None where that was killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            torch.save(work(), result)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status:
        raise SystemExit(f"a run for {result} failed")
    return torch.load(result, weights_only=False)


def kill() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Cases:
    """The tests of one library, each in processes forked from one that only imported it."""

    def __init__(self, make: Callable[[Path, Steps], Subject], folder: Path) -> None:
        self.make, self.folder = make, folder
        self.count = 0

    def _fresh(self) -> Path:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        return folder

    def trained(self, find: bool = False) -> dict[str, Tensor]:
        """Return the model's state after two epochs, with the finder before them or without."""
        folder = self._fresh()

        def work() -> dict[str, Tensor]:
            subject = self.make(folder, Steps(folder / "steps"))
            if find:
                subject.find()
            subject.train(EPOCHS)
            return subject.model.state_dict()

        return in_child(work, folder / "result")

    def found(self, error: type[BaseException] | None = None) -> str:
        """Say what differs after the finder from what was before, where ``error`` ends it early."""
        folder = self._fresh()

        def interrupt() -> None:
            raise error("an interruption")  # type: ignore[misc]

        def work() -> str:
            steps = Steps(folder / "steps", INTERRUPTED_AT if error else None, interrupt)
            subject = self.make(folder, steps)
            before = snapshot(subject)
            arrived = None
            try:
                subject.find()
            except BaseException as ended:
                arrived = type(ended)
                if error is None:
                    raise
            if steps.count < INTERRUPTED_AT or (error and steps.count > INTERRUPTED_AT):
                raise RuntimeError(f"the finder made {steps.count} steps")
            said = differences(before, snapshot(subject)) + ("" if error else f"; after {steps.count} batches")
            if arrived is not error:
                said += f"; arrives as {arrived.__name__ if arrived else 'nothing'}"
            return said

        return in_child(work, folder / "result")

    def kept(self, killed_at: int | None = None) -> tuple[dict[str, Tensor], list[tuple[int, ...]]]:
        """Return the model's state after a run that is kept and maybe killed once, and the steps made, in order."""
        folder = self._fresh()

        def work(at: int | None) -> dict[str, Tensor]:
            subject = self.make(folder, Steps(folder / "steps", at, kill))
            subject.train_kept(KEPT_EPOCHS)
            return subject.model.state_dict()

        state = in_child(lambda: work(killed_at), folder / "result")
        if (state is None) != (killed_at is not None):
            raise SystemExit("a run was killed by somebody else, or not at all")
        if state is None:
            state = in_child(lambda: work(None), folder / "result")
        lines = (folder / "steps").read_text().splitlines()
        return state, [tuple(map(int, line.split())) for line in lines]


def repeats(made: list[tuple[int, ...]]) -> str:
    """Say how many steps of the run were made twice, and how many never."""
    counts = Counter(made)
    never = KEPT_EPOCHS * BATCHES - len(counts)
    return f"{sum(counts.values()) - len(counts)}" + (f" ({never} never)" if never else "")


def main(make: Callable[[Path, Steps], Subject]) -> None:
    """Run all tests of one library in the folder on the command line, and print the cells as the last line."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    cases = Cases(make, folder)
    with contextlib.redirect_stdout(sys.stderr):
        alone, again, after_finder = cases.trained(), cases.trained(), cases.trained(find=True)
        left_alone, made = cases.kept()
        left_again, _ = cases.kept()
        if len(set(made)) != len(made) or len(made) != KEPT_EPOCHS * BATCHES:
            raise SystemExit(f"an uninterrupted run made the steps {made}")
        cells = {
            "two runs from one seed": compared({**alone, **_other(left_alone)}, {**again, **_other(left_again)}),
            "the finder and two epochs, against two epochs alone": compared(alone, after_finder),
            "just after the finder, against just before": cases.found(),
            "the same, the finder ended by Ctrl-C": cases.found(KeyboardInterrupt),
            "the same, the finder ended by an exception": cases.found(RuntimeError),
        }
        killed = [cases.kept(at) for at in KILLED_AT]
        differing = [distance(left_alone, state) for state, _ in killed if not equal(left_alone, state)]
        said = f"equal in {len(killed) - len(differing)} of {len(killed)} kills"
        cells["killed and started again, against not killed"] = said + (
            f"; differs by up to {max(differing):.2g}" if differing else ""
        )
        cells["batches trained twice, for each kill"] = ", ".join(repeats(steps) for _, steps in killed)
    tried = (
        f"For each library: 2 × 2 runs from one seed, 1 run after the finder, 1 finder that ends by itself and 2 ended "
        f"after {INTERRUPTED_AT} batches, {len(KILLED_AT)} runs of {KEPT_EPOCHS} epochs killed by SIGKILL just after "
        f"the optimizer steps {', '.join(map(str, KILLED_AT))} and started again once (none in the first epoch, so "
        f"that each has kept something); {BATCHES} batches of {BATCH} "
        "items an epoch, noise from Python's and NumPy's generators, batch norm, dropout, one thread of a CPU."
    )
    print(json.dumps({"cells": cells, "tried": tried}))


def _other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"kept {name}": value for name, value in state.items()}
