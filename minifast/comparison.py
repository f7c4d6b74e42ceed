"""Compare ways to train: the same learners over the same seeds, a table, a plot, and whether a difference is noise."""

from __future__ import annotations

import html
import itertools
import math
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minifast import plotting
from minifast.callbacks.monitor import LOWER_IS_BETTER
from minifast.callbacks.scheduler import as_schedule, check_values
from minifast.data.resume import load_loader_state, loader_state
from minifast.errors import MinifastError, NonFiniteLossError
from minifast.learner.learner import Learner
from minifast.metrics.base import columns_of
from minifast.training.progress import make_bar
from minifast.utils.checks import add_note, arguments_of, check_callable, check_count, check_word
from minifast.utils.random import get_rng_states, set_rng_states, set_seed
from minifast.utils.text import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


EXACT = 12  # pairs up to which all changes of sign are tried


DRAWN = 20_000  # changes of sign that are drawn of more


LEVEL = 0.05


LEAST = 6  # pairs from which a difference can be told from noise at that level: 2 / 2**6 is below it


class Run(NamedTuple):
    """One training of a comparison: what was recorded, and by name what it reached; NaN where its loss was lost."""

    seed: int
    lrs: list[float]
    losses: list[float]
    reached: dict[str, float]
    seconds: float


class Comparison:
    """What ``compare`` found; a notebook shows it as a table with a sentence below.

    ``runs`` holds the runs of each recipe, a seed each. ``by`` is what the recipes are judged by, ``verdict`` the
    sentence, ``ended_by`` the Ctrl-C or the error that ended it early, or None.
    """

    def __init__(
        self, runs: Mapping[str, list[Run]], by: str | None = None, ended_by: BaseException | None = None
    ) -> None:
        self.ended_by = ended_by
        self.runs = {name: list(each) for name, each in runs.items()}
        reached = next((run.reached for each in self.runs.values() for run in each), {})
        metrics = [name for name in reached if name != "valid_loss"]
        if by is not None:
            check_word("by", by, tuple(reached))
        self.by = by or next((name for name in ("accuracy", "error_rate") if name in reached), "valid_loss")
        self.names = [*metrics, *(["valid_loss"] if reached else [])]
        self.verdict = self._verdict()

    def values(self, name: str, of: str) -> list[float]:
        """Return what the recipe ``name`` reached, a number a seed; ``of`` is a metric or ``valid_loss``."""
        return [run.reached[of] for run in self.runs[name]]

    def _sign(self) -> int:
        return -1 if LOWER_IS_BETTER.search(self.by.lower()) else 1

    def _verdict(self) -> str:
        lost = {
            name: sum(not math.isfinite(one) for one in self.values(name, self.by))
            for name, each in self.runs.items()
            if each
        }
        whole = [name for name, n in lost.items() if not n]
        runs = [f"{n} run{'s' * (n > 1)} of {name}" for name, n in lost.items() if n]
        spoilt = f" The loss was NaN or infinite in {', '.join(runs)}." if runs else ""
        first_recipe = next(iter(self.runs.values()), [])
        if len(first_recipe) > 1 and all(run.losses == first_recipe[0].losses for run in first_recipe):
            return (
                "Every seed gave the same run, so nothing can be told from noise: make_learner seems to set a seed of "
                "its own; let it take the seed as an argument and set that."
            )
        if len(whole) < 2:
            return f"Nothing to compare: fewer than two recipes were trained to the end.{spoilt}"
        whole.sort(key=lambda name: self._sign() * mean_of(self.values(name, self.by)), reverse=True)
        first, second = whole[:2]
        a, b = self.values(first, self.by), self.values(second, self.by)
        if mean_of(a) == mean_of(b):
            return f"By {self.by}, {first} and {second} are equal with {mean_of(a):.4f}.{spoilt}"
        said = f"By {self.by}, {first} is first with {mean_of(a):.4f}, then {second} with {mean_of(b):.4f}"
        if len(a) < LEAST:
            seeds = "1 seed is" if len(a) == 1 else f"{len(a)} seeds are"
            return f"{said}; {seeds} too few to tell that from noise.{spoilt}"
        p = permutation_test(a, b)
        noise = "more than noise" if p < LEVEL else "no more than noise"
        return f"{said}; over {len(a)} seeds the difference is {noise} (paired permutation test, p = {p:.2g}).{spoilt}"

    def rows(self) -> list[list[str]]:
        """Return the table, its header first: mean ± standard deviation of each figure, and seconds a run."""
        table = [["recipe", *self.names, "seconds"]]
        for name, each in self.runs.items():
            cells = [spread_of(self.values(name, of)) for of in self.names]
            table.append([name, *cells, f"{mean_of([run.seconds for run in each]):.2f}" if each else ""])
        return table

    def __str__(self) -> str:
        """Write table and verdict as text."""
        return f"{text_table(self.rows())}\n{self.verdict}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [[f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row] for row in self.rows()]
        table = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
        return f"<table>{table}</table><p>{html.escape(self.verdict)}</p>"

    def plot(self, return_fig: bool | None = None, ax: Any = None) -> Figure | None:
        """Draw rates and training losses over each other: the first seed's rates, the mean of all seeds' losses."""
        if not any(self.runs.values()):
            raise MinifastError("No seed was trained with every recipe, so there is nothing to draw.")
        axes = plotting.axes_for(ax, 2)
        for name, each in self.runs.items():
            whole = [run.losses for run in each if math.isfinite(run.reached["valid_loss"])]
            shortest = min(map(len, whole), default=0)
            losses = np.mean([one[:shortest] for one in whole], axis=0) if whole else []
            plotting.plot_over_batches(axes[0], range(len(each[0].lrs)), each[0].lrs, "learning rate", name)
            plotting.plot_over_batches(
                axes[1], range(shortest), losses, "training loss (smoothed, mean of seeds)", name
            )
        axes[0].legend()
        axes[1].set_yscale("log")
        return plotting.finish(axes, return_fig)


def compare(
    make_learner: Callable[..., Learner],
    recipes: Mapping[str, Any],
    epochs: int = 2,
    seeds: int | Sequence[int] = 10,
    by: str | None = None,
    silent: bool = False,
) -> Comparison:
    """Train with each recipe over the same seeds, and return what they reach.

    Ctrl-C ends it and returns what is done; so does an error after the first seed, in a warning. The global generators
    are seeded before each learner is made, and put back at the end; a loader that learners share begins each run with
    the same order, unless ``make_learner`` takes the seed and sets it.

    Args:
        make_learner: makes a new learner; if it takes an argument, that is the seed, for the data to use.
        recipes: by name, a learning rate or a schedule, a dict of ``fit_schedule``'s ``lr``, ``mom`` and ``wd``, or a
            function of (learner, epochs) that trains.
        epochs: of each run.
        seeds: how many, or which.
        by: what to judge by, a metric's name or ``"valid_loss"``; by default the accuracy or error rate where there is
            one. Losses and errors are better when they are lower.
        silent: show no bar.

    Raises:
        TypeError, ValueError: a recipe is none of these; before anything is trained.

    >>> import torch
    >>> from minifast import *
    >>> items = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
    >>> def make():
    ...     data = DataBunch(items, items, device="cpu", loss_func=torch.nn.CrossEntropyLoss())
    ...     return Learner(data, simple_ann(4, 2), metrics=[accuracy])
    >>> found = compare(make, {"constant": 1e-2, "cosine": schedules.cosine(1e-2, 0.0)}, epochs=1, seeds=2, silent=True)
    >>> [len(runs) for runs in found.runs.values()]
    [2, 2]
    """
    epochs = check_count("epochs", epochs)
    chosen = list(seeds) if isinstance(seeds, Sequence) else list(range(check_count("seeds", seeds)))
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"seeds is {seeds}; give a number of them, or different ones, such as [1, 2, 3].")
    check_callable("make_learner", make_learner)
    if not isinstance(recipes, Mapping) or not recipes:
        raise TypeError(f"recipes is {recipes!r}; give a dict, such as {{'low': 1e-3, 'cosine': cosine(1e-2, 0)}}.")
    recipes = {str(name): recipe for name, recipe in recipes.items()}
    trainers = {name: as_fit_function(name, recipe) for name, recipe in recipes.items()}
    names, needed = arguments_of(make_learner) or ([], 0)
    takes_seed = "seed" in names or needed > 0
    runs: dict[str, list[Run]] = {name: [] for name in trainers}
    begins: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # of loaders that learners share
    generators, bar = get_rng_states(), make_bar(silent)
    bar.what = "Seed"
    ended_by: BaseException | None = None
    doing = "the beginning"
    try:
        bar.start(len(chosen))
        for done, seed in enumerate(chosen):
            for name, train in bar.track(list(trainers.items())):
                doing = f"the recipe {name} with seed {seed}"
                set_seed(seed)
                learn = make_learner(seed) if takes_seed else make_learner()
                check_learner(learn, by)
                loader = getattr(learn.data.train_dl, "dl", learn.data.train_dl)  # without what puts it on a device
                if not takes_seed and loader.__hash__ and hasattr(loader, "__weakref__"):
                    load_loader_state(loader, begins.setdefault(loader, loader_state(loader)))
                if not any(runs.values()):
                    check_configurations(learn, recipes, epochs)
                runs[name].append(train_once(learn, train, epochs, seed))
            bar.epochs_done(done + 1, len(chosen))
    except KeyboardInterrupt as error:
        ended_by = error
        if not silent:
            print(f"Stopped after {sum(map(len, runs.values()))} of {len(chosen) * len(runs)} runs.")
    except Exception as error:
        add_note(error, f"This was {doing}.")
        if not all(runs.values()):  # little is lost
            raise
        ended_by = error
        warnings.warn(f"The comparison ended in {doing}: {type(error).__name__}: {error}", stacklevel=2)
    finally:
        bar.close(interrupted=ended_by is not None)
        set_rng_states(generators)
    fewest = min(map(len, runs.values()), default=0)
    return Comparison({name: each[:fewest] for name, each in runs.items()}, by, ended_by)  # pairs only


def check_learner(learn: Any, by: str | None) -> None:
    """Refuse what is no new learner, data without validation, and a measure that the learner does not have."""
    if not isinstance(learn, Learner):
        raise TypeError(f"make_learner returned {learn!r}; it must return a Learner.")
    if learn.history:
        raise MinifastError("make_learner returned a learner that was trained already; it must make a new one.")
    if not learn.data.valid_dl:
        raise MinifastError("There are no validation data to compare by; give the DataBunch a valid_dl.")
    if by is not None:
        check_word("by", by, ["valid_loss", *columns_of(learn.metrics)])


def check_configurations(learn: Learner, recipes: Mapping[str, Any], epochs: int) -> None:
    """Refuse schedules that a learner could not be trained with."""
    n_batches, n_groups = epochs * len(learn.data.train_dl), len(learn.layer_groups)
    for name, recipe in recipes.items():
        schedules = recipe if isinstance(recipe, Mapping) else {} if is_fit_function(recipe) else {"lr": recipe}
        for what, one in schedules.items():
            called = f"{what} of the recipe {name}"
            schedule, _ = as_schedule(what, one, n_groups, called)
            check_values(what, schedule, (i / n_batches for i in range(n_batches)), n_groups, called)


def is_fit_function(recipe: Any) -> bool:
    """Whether a recipe is a function that trains: of (learner, epochs), where the second may have a default."""
    names, needed = (arguments_of(recipe) if callable(recipe) else None) or ([], 0)
    return needed == 2 or (len(names) > 1 and names[0] in ("learn", "learner"))


def as_fit_function(name: str, recipe: Any) -> Callable[[Learner, int], Any]:
    """Return a function of (learner, epochs) for a recipe."""
    if isinstance(recipe, Mapping):
        if "lr" not in recipe or not recipe.keys() <= {"lr", "mom", "wd"}:
            raise ValueError(f"The recipe {name} has {', '.join(recipe)}; a dict has lr, and mom and wd where wanted.")
        return lambda learn, epochs: learn.fit_schedule(epochs, **recipe)
    if is_fit_function(recipe):
        return recipe  # type: ignore[no-any-return]
    if callable(recipe) and (arguments_of(recipe) or (["p"], 1))[0] in ([], ["learn"], ["learner"]):
        raise TypeError(f"The recipe {name} must take (learner, epochs), or as a schedule progress.")
    if not callable(recipe) and (isinstance(recipe, bool) or not isinstance(recipe, (int, float))):
        raise TypeError(f"The recipe {name} is {recipe!r}; give a rate, a schedule, a dict of schedules or a function.")
    return lambda learn, epochs: learn.fit_schedule(epochs, recipe)


def train_once(learn: Learner, train: Callable[[Learner, int], Any], epochs: int, seed: int) -> Run:
    """Train a learner and return what it reached."""
    learn.silent = True
    begin = time.perf_counter()
    lost = False
    try:
        train(learn, epochs)
    except NonFiniteLossError:
        lost = True
    seconds = time.perf_counter() - begin
    recorder = learn.recorder
    if not lost and not recorder.val_losses:
        raise MinifastError("A recipe trained nothing; it must fit the learner that it is given.")
    if not lost and recorder.val_losses[-1] is None:
        raise MinifastError("A recipe ended without a validation, so there is nothing to compare; let it validate.")
    values = [math.nan] * (1 + len(recorder.metrics_names))
    reached_loss = None if lost else recorder.val_losses[-1]
    if reached_loss is not None and math.isfinite(reached_loss):
        values = [reached_loss, *(recorder.metrics[-1] if recorder.metrics else [])]
    reached = dict(zip(["valid_loss", *recorder.metrics_names], values, strict=True))
    return Run(seed, list(recorder.lrs), list(recorder.losses), reached, seconds)


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of numbers."""
    return math.fsum(values) / len(values)


def spread_of(values: Sequence[float]) -> str:
    """Write numbers as mean ± standard deviation, and how many of them are lost, which do not count.

    >>> spread_of([1.0, 2.0]), spread_of([1.0]), spread_of([]), spread_of([1.0, math.nan])
    ('1.5000 ± 0.7071', '1.0000', '', '1.0000 (1 lost)')
    """
    kept = [value for value in values if math.isfinite(value)]
    parts = [f"{mean_of(kept):.4f}"] if kept else []
    parts += [f"± {np.std(kept, ddof=1):.4f}"] if len(kept) > 1 else []
    parts += [f"({len(values) - len(kept)} lost)"] if len(kept) < len(values) else []
    return " ".join(parts)


def permutation_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Return how often a mean difference as large as that of the pairs comes up when each pair's sign is a coin's.

    Two-sided; exact for up to 12 pairs, 20,000 drawn changes of sign for more. Source: R. A. Fisher, "The design of
    experiments" (1935), section 21.

    >>> permutation_test([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0])
    0.03125
    """
    differences = np.asarray(a, float) - np.asarray(b, float)
    n = len(differences)
    if n <= EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(DRAWN, n))
        signs[0] = 1
    sums = np.abs(signs @ differences)
    return float((sums >= sums[0] * (1 - 1e-9)).mean())  # the first one is what was seen
