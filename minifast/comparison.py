"""Compare training configurations over the same seeds: a table, a plot and a significance test."""

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
from minifast.callbacks.monitor import guess_direction
from minifast.callbacks.scheduler import as_schedule, check_values
from minifast.data.resume import load_loader_state, loader_state
from minifast.errors import MinifastError, NonFiniteLossError
from minifast.learner.learner import Learner
from minifast.metrics.base import columns_of, direction_of
from minifast.training.progress import make_bar
from minifast.utils.aliases import rename_arguments
from minifast.utils.checks import add_note, arguments_of, check_callable, check_count, check_word, shown
from minifast.utils.random import get_rng_states, set_rng_states, set_seed
from minifast.utils.text import text_table, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


EXACT_PAIRS = 12  # up to this number of pairs all sign changes are tried
SAMPLED_SIGNS = 20_000  # sign changes that are sampled for more pairs
SIGNIFICANCE = 0.05
MIN_SEEDS = 6  # fewer seeds cannot reach that level: with 6 the smallest p is 2 / 2**6


class Run(NamedTuple):
    """One training of a comparison: its record, and its final metrics by name (NaN if the run diverged)."""

    seed: int
    lrs: list[float]
    losses: list[float]
    reached: dict[str, float]
    seconds: float


class Comparison:
    """The result of ``compare``; a notebook shows it as a table with the verdict below.

    Args:
        runs: the runs of each configuration by name, one per seed.
        by: the metric that decides, or ``"valid_loss"``. By default the accuracy or error rate if there is one.
        ended_by: the KeyboardInterrupt or error that ended the comparison early, or None.
        direction: ``"max"`` if higher values of ``by`` are better, ``"min"`` if lower. By default the name decides.

    Attributes:
        names: the names of the compared metrics.
        verdict: a sentence that says which configuration is first, and whether the difference is more than noise.
    """

    def __init__(
        self,
        runs: Mapping[str, list[Run]],
        by: str | None = None,
        ended_by: BaseException | None = None,
        direction: str | None = None,
    ) -> None:
        self.ended_by = ended_by
        self.runs = {name: list(name_runs) for name, name_runs in runs.items()}
        reached = next((run.reached for name_runs in self.runs.values() for run in name_runs), {})
        metrics = [name for name in reached if name != "valid_loss"]
        if by is not None:
            check_word("by", by, tuple(reached))
        self.by = by or next((name for name in ("accuracy", "error_rate") if name in reached), "valid_loss")
        self.direction = direction or guess_direction(self.by)
        self.names = [*metrics, *(["valid_loss"] if reached else [])]
        self.verdict = self._verdict()

    def values(self, name: str, of: str) -> list[float]:
        """Return the final values of one metric for one configuration, one per seed.

        Args:
            name: the configuration.
            of: the metric's name, or ``"valid_loss"``.
        """
        return [run.reached[of] for run in self.runs[name]]

    def _verdict(self) -> str:
        n_diverged = {
            name: sum(not math.isfinite(value) for value in self.values(name, self.by))
            for name, runs in self.runs.items()
            if runs
        }
        complete = [name for name, n in n_diverged.items() if not n]
        diverged = [f"{n} run{'s' * (n > 1)} of {name}" for name, n in n_diverged.items() if n]
        note = f" The loss was NaN or infinite in {', '.join(diverged)}." if diverged else ""
        first_runs = next(iter(self.runs.values()), [])
        if len(first_runs) > 1 and all(run.losses == first_runs[0].losses for run in first_runs):
            return (
                "All seeds gave the same run, so the noise is unknown: make_learner seems to set a seed of its own. "
                "Let it take the seed as an argument and use that one."
            )
        if len(complete) < 2:
            return f"There is nothing to compare: fewer than two configurations were trained to the end.{note}"
        complete.sort(key=lambda name: mean_of(self.values(name, self.by)), reverse=self.direction == "max")
        first, second = complete[:2]
        a, b = self.values(first, self.by), self.values(second, self.by)
        if mean_of(a) == mean_of(b):
            return f"By {self.by}, {first} and {second} are equal with {mean_of(a):.4f}.{note}"
        ranking = f"By {self.by}, {first} is first with {mean_of(a):.4f}, then {second} with {mean_of(b):.4f}"
        if len(a) < MIN_SEEDS:
            seeds = "1 seed is" if len(a) == 1 else f"{len(a)} seeds are"
            return f"{ranking}; {seeds} too few to tell the difference from noise.{note}"
        p = permutation_test(a, b)
        noise = "more than noise" if p < SIGNIFICANCE else "no more than noise"
        return f"{ranking}; over {len(a)} seeds the difference is {noise} (paired permutation test, p = {p:.2g}).{note}"

    def rows(self) -> list[list[str]]:
        """Return the table with its header: mean ± standard deviation of each metric, and the seconds per run."""
        table = [["configuration", *self.names, "seconds"]]
        for name, runs in self.runs.items():
            cells = [spread_of(self.values(name, of)) for of in self.names]
            table.append([name, *cells, f"{mean_of([run.seconds for run in runs]):.2f}" if runs else ""])
        return table

    def __str__(self) -> str:
        """Return the table and the verdict as text."""
        return f"{text_table(self.rows())}\n{self.verdict}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [[f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row] for row in self.rows()]
        table = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
        return f"<table>{table}</table><p>{html.escape(self.verdict)}</p>"

    def plot(self, return_fig: bool | None = None, ax: Any = None) -> Figure | None:
        """Plot the learning rates of the first seed and the mean training losses of all seeds.

        Args:
            return_fig: return the figure.
            ax: two pairs of axes to plot on.

        Raises:
            MinifastError: there are no runs.
        """
        if not any(self.runs.values()):
            raise MinifastError("There is nothing to plot: no seed was trained with every configuration.")
        axes = plotting.axes_for(ax, 2)
        for name, runs in self.runs.items():
            curves = [run.losses for run in runs if math.isfinite(run.reached["valid_loss"])]
            shortest = min(map(len, curves), default=0)
            losses = np.mean([curve[:shortest] for curve in curves], axis=0) if curves else []
            plotting.plot_over_batches(axes[0], range(len(runs[0].lrs)), runs[0].lrs, "learning rate", name)
            plotting.plot_over_batches(
                axes[1], range(shortest), losses, "training loss (smoothed, mean of seeds)", name
            )
        axes[0].legend()
        axes[1].set_yscale("log")
        return plotting.finish(axes, return_fig)


@rename_arguments(recipes="configurations")
def compare(
    make_learner: Callable[..., Learner],
    configurations: Mapping[str, Any],
    epochs: int = 2,
    seeds: int | Sequence[int] = 10,
    by: str | None = None,
    silent: bool = False,
) -> Comparison:
    """Train each configuration with the same seeds, and return a table, a plot and a significance test.

    Ctrl-C ends the comparison and returns the finished seeds. An error after the first seed does the same with a
    warning. Before each learner is made, the global random generators are seeded; at the end they are restored. If
    learners share a loader, each run begins with the same data order, unless ``make_learner`` takes the seed.

    Args:
        make_learner: makes a new learner. If it takes an argument, that is the seed, for use in the data.
        configurations: by name, a learning rate; a schedule; a dict of ``fit_schedule``'s ``lr``, ``mom`` and ``wd``;
            or a function of (learner, epochs) that trains.
        epochs: the number of epochs of each run.
        seeds: the number of seeds, or the seeds themselves.
        by: the metric that decides, or ``"valid_loss"``. By default the accuracy or error rate if there is one.
            The metric decides which direction is better (its ``higher_is_better``), or else its name: lower losses
            and errors are better.
        silent: print no progress bar.

    Raises:
        TypeError, ValueError: a configuration is none of these. This is checked before any training.

    >>> import torch
    >>> from minifast import *
    >>> from minifast.comparison import compare
    >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
    >>> def make():
    ...     data = DataBunch(batches, batches, device="cpu", loss_func=torch.nn.CrossEntropyLoss())
    ...     return Learner(data, simple_ann(4, 2), metrics=[accuracy])
    >>> configurations = {"constant": 1e-2, "cosine": schedules.cosine(1e-2, 0.0)}
    >>> result = compare(make, configurations, epochs=1, seeds=2, silent=True)
    >>> [len(runs) for runs in result.runs.values()]
    [2, 2]
    """
    epochs = check_count("epochs", epochs)
    seed_list = list(seeds) if isinstance(seeds, Sequence) else list(range(check_count("seeds", seeds)))
    if not seed_list or len(set(seed_list)) < len(seed_list):
        raise ValueError(f"`seeds` must be a number of seeds or distinct seeds, such as [1, 2, 3], got {seeds}.")
    check_callable("make_learner", make_learner)
    if not isinstance(configurations, Mapping) or not configurations:
        raise TypeError(
            f"`configurations` must be a dict, such as {{'low': 1e-3, 'cosine': schedules.cosine(1e-2, 0)}}, "
            f"got {shown(configurations)}."
        )
    configurations = {str(name): configuration for name, configuration in configurations.items()}
    fit_functions = {name: as_fit_function(name, configuration) for name, configuration in configurations.items()}
    names, n_required = arguments_of(make_learner) or ([], 0)
    takes_seed = "seed" in names or n_required > 0
    runs: dict[str, list[Run]] = {name: [] for name in fit_functions}
    loader_states: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # of loaders that learners share
    generators, bar = get_rng_states(), make_bar(silent)
    bar.what = "Seed"
    ended_by: BaseException | None = None
    direction: str | None = None
    stage = "at the start"
    try:
        bar.start(len(seed_list))
        for done, seed in enumerate(seed_list):
            for name, fit in bar.track(list(fit_functions.items())):
                stage = f"in the configuration {name} with seed {seed}"
                set_seed(seed)
                learn = make_learner(seed) if takes_seed else make_learner()
                check_learner(learn, by)
                direction = None if by is None else direction_of(by, learn.metrics)
                loader = getattr(learn.data.train_dl, "dl", learn.data.train_dl)  # inside the device loader
                if not takes_seed and loader.__hash__ and hasattr(loader, "__weakref__"):
                    load_loader_state(loader, loader_states.setdefault(loader, loader_state(loader)))
                if not any(runs.values()):
                    check_configurations(learn, configurations, epochs)
                runs[name].append(train_once(learn, fit, epochs, seed))
            bar.epochs_done(done + 1, len(seed_list))
    except KeyboardInterrupt as error:
        ended_by = error
        if not silent:
            write_text(f"Stopped after {sum(map(len, runs.values()))} of {len(seed_list) * len(runs)} runs.")
    except Exception as error:
        add_note(error, f"The comparison stopped {stage}.")
        if not all(runs.values()):  # no complete seed would be lost
            raise
        ended_by = error
        warnings.warn(f"The comparison stopped {stage}: {type(error).__name__}: {error}", stacklevel=2)
    finally:
        bar.close(interrupted=ended_by is not None)
        set_rng_states(generators)
    n_complete = min(map(len, runs.values()), default=0)
    return Comparison({name: name_runs[:n_complete] for name, name_runs in runs.items()}, by, ended_by, direction)


def check_learner(learn: Any, by: str | None) -> None:
    """Raise an error unless ``learn`` is a new learner with validation data and the metric ``by``."""
    if not isinstance(learn, Learner):
        raise TypeError(f"`make_learner` must return a Learner, got {learn!r}.")
    if learn.history:
        raise MinifastError("`make_learner` returned a trained learner; it must make a new one in each call.")
    if not learn.data.valid_dl:
        raise MinifastError("The learner has no validation data to compare by; give the DataBunch a valid_dl.")
    if by is not None:
        check_word("by", by, ["valid_loss", *columns_of(learn.metrics)])


def check_configurations(learn: Learner, configurations: Mapping[str, Any], epochs: int) -> None:
    """Raise an error if a schedule has values that the learner cannot train with."""
    n_batches, n_groups = epochs * len(learn.data.train_dl), len(learn.layer_groups)
    for name, configuration in configurations.items():
        if isinstance(configuration, Mapping):
            schedules = configuration
        else:
            schedules = {} if is_fit_function(configuration) else {"lr": configuration}
        for parameter, value in schedules.items():
            called = f"{parameter} of the configuration {name}"
            schedule, _ = as_schedule(parameter, value, n_groups, called)
            check_values(parameter, schedule, (i / n_batches for i in range(n_batches)), n_groups, called)


def is_fit_function(configuration: Any) -> bool:
    """Return whether a configuration is a function of (learner, epochs) that trains; epochs may have a default."""
    names, n_required = (arguments_of(configuration) if callable(configuration) else None) or ([], 0)
    return n_required == 2 or (len(names) > 1 and names[0] in ("learn", "learner"))


def as_fit_function(name: str, configuration: Any) -> Callable[[Learner, int], Any]:
    """Return a function of (learner, epochs) that trains with a configuration."""
    if isinstance(configuration, Mapping):
        if "lr" not in configuration or not configuration.keys() <= {"lr", "mom", "wd"}:
            raise ValueError(
                f"The configuration {name} must be a dict with lr, and optionally mom and wd, "
                f"got {', '.join(configuration)}."
            )
        return lambda learn, epochs: learn.fit_schedule(epochs, **configuration)
    if is_fit_function(configuration):
        return configuration  # type: ignore[no-any-return]
    if callable(configuration) and (arguments_of(configuration) or (["p"], 1))[0] in ([], ["learn"], ["learner"]):
        raise TypeError(f"The configuration {name} must take (learner, epochs), or as a schedule the progress.")
    if not callable(configuration) and (isinstance(configuration, bool) or not isinstance(configuration, (int, float))):
        raise TypeError(
            f"The configuration {name} must be a learning rate, a schedule, a dict of schedules or a function, "
            f"got {configuration!r}."
        )
    return lambda learn, epochs: learn.fit_schedule(epochs, configuration)


def train_once(learn: Learner, fit: Callable[[Learner, int], Any], epochs: int, seed: int) -> Run:
    """Train a learner and return its record and final metrics."""
    learn.silent = True
    start = time.perf_counter()
    diverged = False
    try:
        fit(learn, epochs)
    except NonFiniteLossError:
        diverged = True
    seconds = time.perf_counter() - start
    recorder = learn.recorder
    if not diverged and not recorder.val_losses:
        raise MinifastError("A configuration's function trained nothing; it must fit the learner it gets.")
    if not diverged and recorder.val_losses[-1] is None:
        raise MinifastError("A run ended without validation, so there is nothing to compare; do not skip it.")
    values = [math.nan] * (1 + len(recorder.metrics_names))
    valid_loss = None if diverged else recorder.val_losses[-1]
    if valid_loss is not None and math.isfinite(valid_loss):
        values = [valid_loss, *(recorder.metrics[-1] if recorder.metrics else [])]
    reached = dict(zip(["valid_loss", *recorder.metrics_names], values, strict=True))
    return Run(seed, list(recorder.lrs), list(recorder.losses), reached, seconds)


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of numbers."""
    return math.fsum(values) / len(values)


def spread_of(values: Sequence[float]) -> str:
    """Format numbers as mean ± standard deviation; diverged runs are counted but not averaged.

    >>> spread_of([1.0, 2.0]), spread_of([1.0]), spread_of([]), spread_of([1.0, math.nan])
    ('1.5000 +/- 0.7071', '1.0000', '', '1.0000 (1 diverged)')
    """
    finite = [value for value in values if math.isfinite(value)]
    parts = [f"{mean_of(finite):.4f}"] if finite else []
    parts += [f"+/- {np.std(finite, ddof=1):.4f}"] if len(finite) > 1 else []
    parts += [f"({len(values) - len(finite)} diverged)"] if len(finite) < len(values) else []
    return " ".join(parts)


def permutation_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p-value of the mean difference of pairs, by a sign permutation test.

    It is exact for up to 12 pairs; for more, 20,000 sign changes are sampled. Source: R. A. Fisher, "The design of
    experiments" (1935), section 21.

    >>> permutation_test([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0])
    0.03125
    """
    differences = np.asarray(a, float) - np.asarray(b, float)
    n = len(differences)
    if n <= EXACT_PAIRS:
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(SAMPLED_SIGNS, n))
        signs[0] = 1
    sums = np.abs(signs @ differences)
    return float((sums >= sums[0] * (1 - 1e-9)).mean())  # the first sign change is the observed one
