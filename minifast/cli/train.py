"""The command ``train``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from minifast.cli.common import UsageError, find_data, make_data, make_model, save_figure, use_file_backend
from minifast.errors import MinifastError
from minifast.utils.text import write_text


def train(options: argparse.Namespace) -> None:
    """Find a learning rate, train with the 1cycle policy, and write the results, also after an early end."""
    out = options.out or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if out == Path():
        raise UsageError("--out is the current folder; give another folder for the results.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder.")
    if existing := [name for name in ("model.pth", "history.csv") if (out / name).exists()]:
        raise UsageError(
            f"--out {out} already has {existing[0]} of another training; give another folder, or remove it."
        )
    folder = find_data(options.data)
    use_file_backend()

    import torch

    from minifast.distributed.exchange import broadcast
    from minifast.learner.learner import Learner
    from minifast.metrics.functions import accuracy

    seed = torch.seed() % 2**31 if options.seed is None else options.seed
    out, seed = broadcast((out, seed))  # of several processes, those of the first
    torch.manual_seed(seed)
    data = make_data(folder, options, seed)
    model = make_model(options.arch, data.c or 0)
    learn = Learner(data, model, metrics=[accuracy], wd=options.wd, path=out, model_dir=".")
    try:
        out.mkdir(parents=True, exist_ok=True)  # now, because an error after the training would waste it
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made ({error.strerror}); give another folder.") from error
    write_text(f"{len(data.train_ds)} training and {len(data.valid_ds)} validation images of {data.c} classes.")
    figures: dict[str, Any] = {}
    lr = options.lr
    try:
        if lr == "auto":
            write_text("Looking for a learning rate.")
            learn.silent = True
            result = learn.lr_find(repeats=3)
            learn.silent = False
            figures["lr_find.png"] = result.plot(return_fig=True)
            if result.suggestion is None:
                raise result.error or MinifastError("lr_find suggests no learning rate; pass one with --lr.")
            lr = result.suggestion
            write_text(f"Training with a maximum learning rate of {lr:.2g}.")
        learn.fit_one_cycle(options.epochs, lr)
    finally:
        record = {name: value for name, value in vars(options).items() if name not in ("command", "debug")}
        record |= {"data": str(folder), "out": str(out), "device": str(data.device), "seed": seed}
        record |= {"lr": lr, "lr_option": options.lr, "classes": data.classes, "versions": versions()}
        written = write_results(out, learn, figures, record)
        write_text(f"Wrote {', '.join(written)}\nto {out}.")
    score = learn.recorder.metrics[-1][0]
    if score < 1.05 / (data.c or 1):
        write_text(f"An accuracy of {score:.3f} is no better than chance: try another --seed or a lower --lr.")


def export_model(learn: Any) -> list[str]:
    """Write the file for ``minifast predict`` and return its name; a model without an export is not an error."""
    try:
        learn.export()
    except MinifastError as error:
        write_text(f"The model is in model.pth only. {error}")
        return []
    return ["export.pkl"]


def write_results(out: Path, learn: Any, figures: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Write model, history, figures and options into ``out``, each file completely or not at all; return the names."""
    import matplotlib.pyplot as plt

    from minifast.distributed.group import current_group
    from minifast.utils.files import replacing, write_rows

    recorder = learn.recorder
    written: list[str] = []
    if recorder.nb_batches and not recorder.silent:  # the record of lr_find is silent
        figures["schedule.png"] = recorder.plot_lr(show_moms=True, return_fig=True)
        figures["losses.png"] = recorder.plot_losses(return_fig=True)
        learn.save("model")
        written = ["model.pth", *export_model(learn)]
    group = current_group()
    if group is not None and group.rank:  # the first process writes
        return written
    if recorder.nb_batches and not recorder.silent:
        rows = [[*row[:-1], round(row[-1], 3)] for row in recorder.rows]
        write_rows([recorder.names, *rows], out / "history.csv")
        written.append("history.csv")
    for name, figure in figures.items():
        save_figure(figure, out / name)
        plt.close(figure)
    with replacing(out / "options.json") as file:
        file.write_text(json.dumps(options, indent=2, default=str) + "\n")
    return [*written, *figures, "options.json"]


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    from importlib import metadata

    from minifast import __version__

    return {"minifast": __version__, **{name: metadata.version(name) for name in ("torch", "torchvision")}}
