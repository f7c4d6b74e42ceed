"""Code shared by the scripts of ``benchmarks interruptions``: the problem, comparisons, and killed processes."""

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

SEED, BATCH, LR, EPOCHS = 1, 32, 1e-2, 2
CHECKPOINTED_EPOCHS, BATCHES = 3, 20  # of the killed runs; batches per epoch
INTERRUPTED_AT = 20
KILLED_AT = (24, 31, 38, 46, 57)  # optimizer steps, all in the second and third epoch


class NoisyDataset(Dataset):
    """Samples of 10 features in 2 classes; ``noisy`` ones use the generators of Python and NumPy."""

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


def datasets() -> tuple[NoisyDataset, NoisyDataset]:
    """Return the training and the validation data set."""
    return NoisyDataset(BATCH * BATCHES, True, 2), NoisyDataset(160, False, 3)


def network() -> nn.Sequential:
    """Return a model with buffers and random layers."""
    return nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


class Steps:
    """Called after each optimizer step: log it in a file, and call ``end`` at step ``at``."""

    def __init__(self, file: Path, at: int | None = None, end: Callable[[], None] | None = None) -> None:
        self.file, self.at, self.end = file, at, end
        self.count = 0

    def __call__(self, epoch: int, batch: int) -> None:
        """Log a step, also the one that ends the run."""
        with self.file.open("a") as file:
            file.write(f"{epoch} {batch}\n")
        self.count += 1
        if self.count == self.at and self.end:
            self.end()


class Subject(ABC):
    """A library with the problem set up, seeded and untrained. It calls ``steps`` after each step."""

    model: nn.Module

    @abstractmethod
    def __init__(self, folder: Path, steps: Steps) -> None: ...

    @abstractmethod
    def find(self) -> None:
        """Run the learning rate finder."""

    @abstractmethod
    def train(self, epochs: int) -> None:
        """Train with the 1cycle policy."""

    @abstractmethod
    def train_checkpointed(self, epochs: int) -> None:
        """Train with the 1cycle policy and save checkpoints in the folder; resume from them."""

    @abstractmethod
    def optimizer(self) -> dict[str, Any]:
        """Return the optimizer's ``state`` and its ``groups``, each with a learning rate ``lr``."""

    def order(self) -> Any:
        """Return what determines the data order besides the global generators."""
        return None


def snapshot(subject: Subject) -> dict[str, Any]:
    """Return a copy of all state that a finder should restore."""
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
    """Whether two values are bitwise identical."""
    if isinstance(a, (Tensor, np.ndarray)) and isinstance(b, (Tensor, np.ndarray)):
        a, b = (np.asarray(value.detach() if isinstance(value, Tensor) else value) for value in (a, b))
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Name the parts in which two snapshots differ."""
    parts = [part for part in before if not equal(before[part], after[part])]
    return f"differs: {', '.join(parts)}" if parts else "equal"


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between two state dicts."""
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def compare_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> str:
    """Describe whether two state dicts are equal, and their largest difference."""
    return "equal" if equal(a, b) else f"differs by up to {distance(a, b):.2g}"


def in_child(work: Callable[[], Any], result: Path) -> Any:
    """Run ``work`` in a child process and return its result, or None if the child was killed."""
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
    """Kill this process, as a power failure would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Cases:
    """The tests of one library, each in a child process of one that has only imported it."""

    def __init__(self, make: Callable[[Path, Steps], Subject], folder: Path) -> None:
        self.make, self.folder = make, folder
        self.count = 0

    def _fresh(self) -> Path:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        return folder

    def trained(self, find: bool = False) -> dict[str, Tensor]:
        """Return the model's state after two epochs, with or without the finder before them."""
        folder = self._fresh()

        def work() -> dict[str, Tensor]:
            subject = self.make(folder, Steps(folder / "steps"))
            if find:
                subject.find()
            subject.train(EPOCHS)
            return subject.model.state_dict()

        return in_child(work, folder / "result")

    def after_finder(self, error: type[BaseException] | None = None) -> str:
        """Describe what differs after the finder; ``error`` ends it early."""
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
            except BaseException as raised:
                arrived = type(raised)
                if error is None:
                    raise
            if steps.count < INTERRUPTED_AT or (error and steps.count > INTERRUPTED_AT):
                raise RuntimeError(f"the finder made {steps.count} steps")
            result = differences(before, snapshot(subject)) + ("" if error else f"; after {steps.count} batches")
            if arrived is not error:
                result += f"; arrives as {arrived.__name__ if arrived else 'nothing'}"
            return result

        return in_child(work, folder / "result")

    def checkpointed(self, killed_at: int | None = None) -> tuple[dict[str, Tensor], list[tuple[int, ...]]]:
        """Return the model's state after a checkpointed run, killed once with ``killed_at``, and its steps in order."""
        folder = self._fresh()

        def work(at: int | None) -> dict[str, Tensor]:
            subject = self.make(folder, Steps(folder / "steps", at, kill))
            subject.train_checkpointed(CHECKPOINTED_EPOCHS)
            return subject.model.state_dict()

        state = in_child(lambda: work(killed_at), folder / "result")
        if (state is None) != (killed_at is not None):
            raise SystemExit("a run was killed by another process, or not at all")
        if state is None:
            state = in_child(lambda: work(None), folder / "result")
        lines = (folder / "steps").read_text().splitlines()
        return state, [tuple(map(int, line.split())) for line in lines]


def repeats(steps: list[tuple[int, ...]]) -> str:
    """Return how many steps of the run were made twice, and how many never."""
    counts = Counter(steps)
    never = CHECKPOINTED_EPOCHS * BATCHES - len(counts)
    return f"{sum(counts.values()) - len(counts)}" + (f" ({never} never)" if never else "")


def main(make: Callable[[Path, Steps], Subject]) -> None:
    """Run all tests of one library in the folder from the command line, and print the results as JSON."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    cases = Cases(make, folder)
    with contextlib.redirect_stdout(sys.stderr):
        alone, repeated, after_finder = cases.trained(), cases.trained(), cases.trained(find=True)
        uninterrupted, steps = cases.checkpointed()
        repeated_run, _ = cases.checkpointed()
        if len(set(steps)) != len(steps) or len(steps) != CHECKPOINTED_EPOCHS * BATCHES:
            raise SystemExit(f"an uninterrupted run made the steps {steps}")
        cells = {
            "two runs from one seed": compare_states(
                {**alone, **_renamed(uninterrupted)}, {**repeated, **_renamed(repeated_run)}
            ),
            "finder and two epochs, against two epochs alone": compare_states(alone, after_finder),
            "state after the finder, against before": cases.after_finder(),
            "the same, finder ended by Ctrl-C": cases.after_finder(KeyboardInterrupt),
            "the same, finder ended by an exception": cases.after_finder(RuntimeError),
        }
        killed = [cases.checkpointed(at) for at in KILLED_AT]
        differing = [distance(uninterrupted, state) for state, _ in killed if not equal(uninterrupted, state)]
        result = f"equal in {len(killed) - len(differing)} of {len(killed)} kills"
        cells["killed and resumed, against uninterrupted"] = result + (
            f"; differs by up to {max(differing):.2g}" if differing else ""
        )
        cells["batches trained twice, per kill"] = ", ".join(repeats(steps) for _, steps in killed)
    tried = (
        f"For each library: 2 × 2 runs from one seed, 1 run after the finder, 1 finder that ends by itself and 2 ended "
        f"after {INTERRUPTED_AT} batches, {len(KILLED_AT)} runs of {CHECKPOINTED_EPOCHS} epochs killed by SIGKILL just "
        f"after the optimizer steps {', '.join(map(str, KILLED_AT))} and started again once (none in the first epoch, "
        f"so that each has saved a checkpoint); {BATCHES} batches of {BATCH} samples per epoch, noise from the "
        "generators of Python and NumPy, BatchNorm, dropout, one CPU thread."
    )
    print(json.dumps({"cells": cells, "tried": tried}))


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"checkpointed {name}": value for name, value in state.items()}
