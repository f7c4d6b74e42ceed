"""``compare``: train configurations over the same seeds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minifast.comparison.processes import count_jobs, run_in_processes
from minifast.comparison.result import Comparison, Run
from minifast.comparison.runs import Plan, as_fit_function, run_in_turn
from minifast.learner.learner import Learner
from minifast.training.progress import make_bar
from minifast.utils.aliases import rename_arguments
from minifast.utils.checks import add_note, check_callable, check_count, shown, told
from minifast.utils.public import public, warn_caller
from minifast.utils.random import get_rng_states, set_rng_states
from minifast.utils.text import write_text


@public
@rename_arguments(recipes="configurations")
def compare(
    make_learner: Callable[..., Learner],
    configurations: Mapping[str, Any],
    epochs: int = 2,
    seeds: int | Sequence[int] = 10,
    by: str | None = None,
    silent: bool = False,
    n_jobs: int = 1,
) -> Comparison:
    """Train each configuration with the same seeds, and return a table, a plot and a significance test.

    Ctrl-C ends the comparison and returns the finished seeds. An error after the first seed does the same with a
    warning. Before each learner is made, the global random generators are seeded; at the end they are restored.

    If learners share a loader, each run begins with the data order of its first epoch and with the seed of each
    ``torch.Generator`` in it, whatever was done with the loader before. Generators of NumPy and Python do not know
    their seed: in each run they begin as they are when ``compare`` is called, as other state of your own samplers and
    data sets does, such as a counter. To get the same numbers after a fit on the shared data, seed them again. With a
    ``make_learner`` that takes the seed, the state of shared loaders is left to you.

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
        n_jobs: the number of runs at the same time, each in a process of its own; -1 for one per core. It needs joblib:
            ``python -m pip install "minifast[parallel]"``. ``joblib.parallel_config`` selects another backend, such as
            Ray or Dask. The numbers are bitwise identical to those of one process with as many threads: each process
            gets its share of ``torch.get_num_threads()``. Each run works on a copy of what ``make_learner`` uses, and
            writes its files into ``learn.path / "compare"``, in a folder of its own.

    Raises:
        TypeError, ValueError: a configuration is none of these, or cannot be sent to another process. This is checked
            before any training.
        ImportError: ``n_jobs`` needs a package that is not installed.

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
    for name, configuration in configurations.items():
        as_fit_function(name, configuration)  # raises an error before any training
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs < -1 or not n_jobs:
        raise ValueError(f"`n_jobs` must be a number of processes, or -1 for one per core, got {shown(n_jobs)}.")
    plan = Plan(make_learner, configurations, epochs, by)
    jobs = [(seed, name) for seed in seed_list for name in configurations]
    runs: dict[str, list[Run]] = {name: [] for name in configurations}
    generators, bar = get_rng_states(), make_bar(silent)
    bar.what = "Seed"
    ended_by: BaseException | None = None
    stage = "at the start"
    try:
        n_processes = min(count_jobs(n_jobs), len(jobs))
        results = run_in_turn(plan, jobs) if n_processes == 1 else run_in_processes(plan, jobs, n_processes)
        bar.start(len(seed_list))
        with contextlib.closing(results):
            for done, seed in enumerate(seed_list):
                for name in bar.track(list(configurations)):
                    stage = f"in the configuration {name} with seed {seed}"
                    runs[name].append(next(results))
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
        warn_caller(f"The comparison stopped {stage}: {told(error)}")
    finally:
        bar.close(interrupted=ended_by is not None)
        set_rng_states(generators)
    n_complete = min(map(len, runs.values()), default=0)
    return Comparison({name: name_runs[:n_complete] for name, name_runs in runs.items()}, by, ended_by, plan.direction)
