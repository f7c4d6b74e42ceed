"""The command ``train``."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minifast.cli.common import UsageError, find_data, is_first_process, save_figure, use_file_backend
from minifast.cli.learner import (
    FINE_TUNE_LR,
    check_options,
    describe,
    epoch_rows,
    fit,
    fits_of,
    kind_of,
    make_learner,
    read_data,
)
from minifast.cli.learning_rate import choose_lr
from minifast.errors import MinifastError
from minifast.utils.text import write_text

CHECKPOINT = "run"  # the name of the run that --checkpoint saves
ADVICE = {
    "stopped": "only a training with --checkpoint can be resumed",
    "batchnorm": "Train for more steps: with more --epochs, or a smaller --bs.",
}
FEW_STEPS = 100  # after so few optimizer steps, more epochs are the first advice
GOOD = 0.95  # from this accuracy on, few steps were enough


def train(options: argparse.Namespace) -> None:
    """Find a learning rate, train with the 1cycle policy, and write the results, also after an early end."""
    begin = time.monotonic()
    resumes = options.resume is not None
    if resumes:
        options = saved_options(options)
    out = options.out or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if out == Path():
        raise UsageError("--out is the current folder; give another folder for the results.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder.")
    results = (f"{CHECKPOINT}.checkpoint", f"{CHECKPOINT}_head.checkpoint", "model.pth", "history.csv")
    existing = [name for name in results if (out / name).exists()]
    if existing and not resumes:
        has = f"--out {out} has {existing[0]} of"
        if any(name.endswith(".checkpoint") for name in existing):
            raise UsageError(
                f"{has} a training that was stopped. {resume_command(out)}; to start a new one, choose another --out."
            )
        raise UsageError(f"{has} an earlier training; choose another --out, or delete that folder.")
    check_options(options)
    folder = find_data(options.data)
    use_file_backend()

    import torch

    from minifast.distributed.exchange import broadcast

    seed = torch.seed() % 2**31 if options.seed is None else options.seed
    out, seed = broadcast((out, seed))  # of several processes, those of the first
    torch.manual_seed(seed)
    write_text(f"Reading the images in {folder}.")  # many of them take minutes
    data = read_data(folder, options, seed)
    learn = make_learner(data, options, out)
    try:
        out.mkdir(parents=True, exist_ok=True)  # now, because an error after the training would waste it
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made ({error.strerror}); give another folder.") from error
    learn._advice = ADVICE
    write_text(describe(data))
    record = {name: value for name, value in vars(options).items() if name not in ("command", "debug", "resume")}
    record |= {"data": str(folder.absolute()), "out": str(out), "device": str(data.device), "seed": seed}
    record |= {"lr_option": options.lr, "classes": data.classes, "versions": versions(), "finished": False}
    written = ["options.json"]
    try:
        if options.lr == "auto":
            record["lr"], figure, reason = choose_lr(learn, FINE_TUNE_LR if options.pretrained else None)
            if figure is not None:
                if is_first_process():
                    save_figure(figure, out / "lr_find.png")
                written.insert(0, "lr_find.png")
            write_text(f"Training with a maximum learning rate of {record['lr']:.2g}, {reason}.")
        write_options(out, record)  # before the training, so that --resume finds them
        fit(learn, options, record["lr"], resumable(out) if options.checkpoint else None)
        record["finished"] = True
    except KeyboardInterrupt:
        if learn.recorder.call.get("method", "lr_find") == "lr_find":  # a fit prints it with what is saved
            rest = resume_command(out) if options.checkpoint else ADVICE["stopped"]
            write_text(f"The command ends before the training; {rest}.")
        raise
    finally:
        write_options(out, record)
        written = [*write_results(out, learn), *written]
        write_text(f"Wrote {', '.join(written)}\nto {out}.")
        if record["finished"] and is_first_process():
            for file in out.glob(f"{CHECKPOINT}*.checkpoint"):
                file.unlink()
        advice = advise(learn, options) if record["finished"] else ""
        if "history.csv" in written or not is_first_process():
            report(out, learn, record, time.monotonic() - begin, advice)
    if advice:
        write_text(advice)


def resume_command(out: Path) -> str:
    """Return the command that continues the training in a results folder, in words without a full stop."""
    return f"minifast train --resume {shlex.quote(str(out))} continues the training"


def resumable(out: Path) -> Any:
    """Return the checkpoint of ``--checkpoint``, whose messages name the command that continues the training."""
    from minifast.checkpoint import RunCheckpoint

    class CommandCheckpoint(RunCheckpoint):
        how_to_resume = resume_command(out)

    return CommandCheckpoint(CHECKPOINT, every="60s")


def report(out: Path, learn: Any, record: dict[str, Any], seconds: float, advice: str) -> None:
    """Write ``report.html`` and print where it is, or why it is not complete; this is not an error."""
    from minifast.cli.report import write_report

    try:
        missing = write_report(out, learn, record, seconds, advice)
    except Exception as error:
        write_text(f"There is no report.html: {' '.join(str(error).split()) or type(error).__name__}")
        return
    write_text("\n".join([f"Open {out / 'report.html'} in a browser to see the results.", *missing]))


def saved_options(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options that the training in the folder of ``--resume`` was started with."""
    if not options.resume.is_dir():
        raise UsageError(f"--resume: there is no folder {options.resume}; give the results folder of a training.")
    file = options.resume / "options.json"
    if not file.is_file():
        raise UsageError(f"--resume {options.resume} has no options.json; give the results folder of a training.")
    try:
        saved = json.loads(file.read_text())
    except ValueError as error:
        raise UsageError(f"--resume {options.resume}: options.json is damaged; start the training again.") from error
    if saved.get("finished"):
        raise UsageError(
            f"--resume {options.resume}: the training is finished. Its model is in export.pkl. To train longer, "
            f"start a new training with more --epochs than {saved.get('epochs', 1)} and another --out."
        )
    if not saved.get("checkpoint"):
        raise UsageError(f"--resume {options.resume}: the training was started without --checkpoint; start it again.")
    known = {name: saved[name] for name in vars(options) if name in saved and name != "nproc"}
    device = options.device or saved["device"]
    return argparse.Namespace(**{**vars(options), **known, "out": options.resume, "device": device})


def advise(learn: Any, options: argparse.Namespace) -> str:
    """Return what to try next if the model is no better than chance or memorized the training images, else ""."""
    recorder, data = learn.recorder, learn.data
    if not recorder.metrics or recorder.metrics[-1][0] is None:
        return ""
    steps = sum(recorder.nb_batches)
    few = "1 optimizer step is few" if steps == 1 else f"{steps} optimizer steps are few"
    few += f": try --epochs {options.epochs * -(-2 * FEW_STEPS // max(1, steps))}"
    if (largest := min(options.bs, len(data.train_ds))) > 1:
        few += f" or a smaller --bs than {largest}"
    if kind_of(data) != "class":
        return f"{few}." if steps < FEW_STEPS else ""
    score, train_loss, valid_loss = recorder.metrics[-1][0], recorder.losses[-1], recorder.val_losses[-1]
    outputs, targets = learn.get_preds()
    predicted, most_frequent = outputs.argmax(1).unique().tolist(), targets.bincount().max().item() / len(targets)
    if score < 1.05 / data.c or score <= most_frequent:
        start = f"An accuracy of {score:.3f} is no better than chance."
        if len(predicted) == 1:
            start += f" All validation images are predicted as {data.classes[predicted[0]]}."
        if steps < FEW_STEPS:
            return f"{start} {few}."
        lower = f"try --lr {max(recorder.lrs) / 10:.1g}"
        if train_loss < 0.9 * recorder.losses[0]:
            if len(predicted) == 1:
                return f"{start} Use more images of the other classes, or {lower}."
            return f"{start} The training loss fell, so the model memorized: use more images, or --augment."
        other = f"leave --lr out or {lower}" if options.lr != "auto" else f"{lower} or another --arch"
        return (
            f"{start} The training loss did not fall: {other}, and check that each image is in the folder of its class."
        )
    if steps < FEW_STEPS and score < GOOD:
        return f"{few}."
    if valid_loss is not None and valid_loss > 2 * train_loss and score < 0.9 and not options.augment:
        return f"The validation loss is {valid_loss / train_loss:.1f} times the training loss: try --augment."
    return ""


def export_model(learn: Any) -> list[str]:
    """Write the file for ``minifast predict`` and return its name; a model without an export is not an error."""
    try:
        learn.export()
    except MinifastError as error:
        write_text(f"The model is in model.pth only. {error}")
        return []
    return ["export.pkl"]


def write_results(out: Path, learn: Any) -> list[str]:
    """Write model, history and figures into ``out``, each file completely or not at all; return the names."""
    import matplotlib.pyplot as plt

    from minifast.utils.files import write_rows

    recorder = learn.recorder
    if not recorder.nb_batches or recorder.silent:  # the record of lr_find is silent
        return []
    learn.save("model")
    written = ["model.pth", *export_model(learn)]
    if not is_first_process():
        return written
    header, *rows = epoch_rows(learn)
    write_rows([header, *([*row[:-1], round(row[-1], 3)] for row in rows)], out / "history.csv")
    figures = {"schedule.png": draw_schedule(fits_of(learn)), "losses.png": draw_losses(fits_of(learn))}
    for name, figure in figures.items():
        save_figure(figure, out / name)
        plt.close(figure)
    return [*written, "history.csv", *figures]


def draw_losses(fits: Sequence[tuple[str, Any]]) -> Any:
    """Return a figure with the losses of each fit."""
    from minifast import plotting

    axes = plotting.axes_for(None, len(fits))
    for ax, (name, recorder) in zip(axes, fits, strict=True):
        recorder.plot_losses(ax=ax)
        ax.set_title(name)
    return axes[0].figure


def draw_schedule(fits: Sequence[tuple[str, Any]]) -> Any:
    """Return a figure with the learning rate and the momentum of each fit."""
    from minifast import plotting

    axes = plotting.axes_for(None, 2 * len(fits))
    for i, (name, recorder) in enumerate(fits):
        recorder.plot_lr(show_moms=True, ax=axes[2 * i : 2 * i + 2])
        if name:
            axes[2 * i].set_title(name)
    return axes[0].figure


def write_options(out: Path, record: dict[str, Any]) -> None:
    """Write the options of the training."""
    from minifast.utils.files import replacing

    if not is_first_process():
        return
    with replacing(out / "options.json") as file:
        file.write_text(json.dumps(record, indent=2, default=str) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    from importlib import metadata

    from minifast import __version__

    return {"minifast": __version__, **{name: metadata.version(name) for name in ("torch", "torchvision")}}
