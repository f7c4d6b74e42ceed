"""The commands, by name; ``compare`` and ``schedule`` are here."""

from __future__ import annotations

import argparse
from pathlib import Path

from minifast.cli.common import UsageError, check_arch, find_data, make_data, make_model, save_figure, use_file_backend
from minifast.cli.environment import cache as cache
from minifast.cli.environment import env as env
from minifast.cli.predict import predict as predict
from minifast.cli.train import train as train
from minifast.utils.checks import did_you_mean
from minifast.utils.text import write_result, write_text


def compare(options: argparse.Namespace) -> None:
    """Train with several schedules over the same seeds, print the comparison and write its plot."""
    from minifast.comparison import compare as compare_configurations
    from minifast.learner.learner import Learner
    from minifast.metrics.functions import accuracy
    from minifast.schedules.registry import SCHEDULES

    check_figure_suffix(options.out)
    configurations = {name: SCHEDULES[check_schedule(name, "--schedules")].of(options.lr) for name in options.schedules}
    if len(configurations) < 2:
        raise UsageError("--schedules needs two or more different schedules to compare.")
    check_arch(options.arch)
    folder = find_data(options.data)
    use_file_backend()
    data = make_data(folder, options, 0)

    def make_learner() -> Learner:
        return Learner(data, make_model(options.arch, data.c or 0), metrics=[accuracy], wd=options.wd)

    comparison = compare_configurations(
        make_learner, configurations, options.epochs, options.seeds, n_jobs=options.jobs
    )
    trained = any(comparison.runs.values())
    if trained:
        save_figure(comparison.plot(return_fig=True), options.out)
    write_result(comparison)
    if trained:
        write_text(f"Wrote {options.out}.")
    if comparison.ended_by is not None:
        raise comparison.ended_by


def schedule(options: argparse.Namespace) -> None:
    """Plot a schedule, or list all."""
    from minifast import plotting
    from minifast.schedules.registry import SCHEDULES

    if options.list or options.name is None:
        width = max(map(len, SCHEDULES))
        write_result("\n".join(f"{name:{width}}  {named.does}" for name, named in SCHEDULES.items()))
        if not options.list:
            raise UsageError("Give the name of a schedule, such as minifast schedule one_cycle.")
        return
    check_figure_suffix(options.out)
    use_file_backend()

    named = SCHEDULES[check_schedule(options.name, "NAME")]
    schedules = named.of(options.lr)
    progress = [i / 1000 for i in range(1001)]
    axes = plotting.axes_for(None, len(schedules))
    for ax, (name, function) in zip(axes, schedules.items(), strict=True):
        ax.plot([options.epochs * p for p in progress], [function(p) for p in progress])
        ax.set_xlabel("epoch")
        ax.set_ylabel(plotting.NAMES[name])
    axes[0].set_title(f"{options.name}: {named.does}")
    save_figure(plotting.finish(axes, True), options.out)
    write_text(f"Wrote {options.out}.")


def check_schedule(name: str, option: str) -> str:
    """Return ``name`` if there is a schedule of that name."""
    from minifast.schedules.registry import SCHEDULES

    if name not in SCHEDULES:
        raise UsageError(
            f"{option} {name} is not a schedule; minifast schedule --list shows all.{did_you_mean(name, SCHEDULES)}"
        )
    return name


def check_figure_suffix(out: Path) -> None:
    """Raise an error, before any work, if the figure's format cannot be written."""
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--out {out} must end in .png, .pdf or .svg.")
