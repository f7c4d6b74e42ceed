"""The page ``report.html`` of ``minifast train``: plots, metrics, errors and settings in one file without links."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from minifast.cli.common import is_first_process
from minifast.cli.learner import epoch_rows, fits_of, kind_of
from minifast.plotting import shorten
from minifast.utils.text import cell, clock

N_TOP_LOSSES = 12
MOST_CLASSES = 20  # of a confusion matrix that is a table; that of more is a plot
LONGEST = 30  # characters of a column's name in that table; the row has the whole one
RIGHT, WRONG = "46 160 67", "219 97 48"  # colors of its cells: the darker, the larger the share of the row
PIXELATED = 64  # pixels of a side; smaller images are enlarged without blur
INK = "#010203"  # of the plots' text and axes; the page's color replaces it, dark on light or light on dark
PLOT_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "legend.frameon": False,
    "font.size": 13,  # to be read on a phone, where a plot is less than 400 pixels wide
}
PLOT_COLORS = (
    "<style>:root{color:#1f2328;color-scheme:light dark}@media(prefers-color-scheme:dark){:root{color:#e6edf3}}</style>"
)
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --text: #1f2328; --soft: #59636e; --page: #fff; --line: #d1d9e0; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9198a1; --page: #0d1117; --line: #3d444d; } }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; color: var(--text); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
figure { margin: 0 0 1rem; } figcaption { color: var(--soft); padding: .3rem 0; } img { max-width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.images img { width: 100%; } .images .png { image-rendering: pixelated; } .images strong { color: var(--text); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: .3rem .5rem; border: 1px solid var(--line); font-variant-numeric: tabular-nums; }
td { text-align: right; } th[scope=row] { text-align: left; max-width: 14rem; overflow-wrap: anywhere; }
.matrix th[scope=row] { min-width: 7rem; }
.matrix th[scope=col] + th { writing-mode: vertical-rl; text-align: left; white-space: nowrap; }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .2rem 1rem; } dt { color: var(--soft); }
dd { margin: 0; } pre { white-space: pre-wrap; padding: .8rem; border: 1px solid var(--line); }
</style>
</head>
<body>
<h1>$title</h1>
<main>
$sections
</main>
</body>
</html>
""")


def write_report(out: Path, learn: Any, record: dict[str, Any], seconds: float, advice: str = "") -> list[str]:
    """Write ``report.html`` into the results folder, and return what is missing in it and why.

    Args:
        out: the results folder.
        learn: the learner after its training.
        record: the options of the training, as they are in ``options.json``.
        seconds: how long the command took.
        advice: what to try next.
    """
    from minifast.utils.files import replacing

    missing: list[str] = []

    def section(title: str, content: Callable[[], str]) -> str:
        try:
            inner = content()
        except Exception as error:  # the training is done; what cannot be shown must not make it a failure
            missing.append(f"{title}: {' '.join(str(error).split()) or type(error).__name__}")
            inner = f"<p>Missing. {text(missing[-1])}</p>"
        return f"<section>\n<h2>{title}</h2>\n{inner}\n</section>" if inner else ""

    sections = [section("Result", lambda: facts(result_of(learn, record, seconds, advice)))]
    sections.append(section("Plots", lambda: plots(learn, out)))
    sections.append(section("Epochs", lambda: epochs(learn)))
    if record["finished"]:  # after Ctrl-C or an error, nobody waits for predictions
        sections.append(section("Errors on the validation images", lambda: errors(learn)))
    sections.append(section("Settings", lambda: settings(record)))
    title = text(f"{record['arch']} on {Path(record['data']).name}")
    page = PAGE.substitute(title=title, sections="\n".join(sections))
    if is_first_process():  # all of them have predicted
        with replacing(out / "report.html") as file:
            file.write_text(page, encoding="utf-8")
    return missing


def text(value: object) -> str:
    """Return a value as text of the page: escaped, and without bytes of file names that are not UTF-8."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode())


def facts(values: dict[str, object]) -> str:
    """Return names and values as a description list."""
    rows = "\n".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in values.items())
    return f"<dl>\n{rows}\n</dl>"


def table(caption: str, rows: Sequence[Sequence[str]], kind: str = "", styles: Any = None) -> str:
    """Return rows, the header first, as a table that scrolls; ``styles`` are those of the cells but the first ones."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in rows[0])
    lines = []
    for i, (name, *values) in enumerate(rows[1:]):
        style = styles[i] if styles else [""] * len(values)
        cells = "".join(f"<td{how}>{text(value)}</td>" for value, how in zip(values, style, strict=True))
        lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        f'<figure><figcaption>{text(caption)}</figcaption>\n<div class="scroll" tabindex="0" role="group" '
        f'aria-label="{text(caption)}"><table class="{kind}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div></figure>"
    )


def result_of(learn: Any, record: dict[str, Any], seconds: float, advice: str) -> dict[str, object]:
    """Return the last metrics, how long the training took, and what to try next."""
    recorder = learn.recorder
    last = dict(zip(recorder.names[1:], recorder.rows[-1][1:], strict=True)) if recorder.rows else {}
    values: dict[str, object] = {name: cell(value) for name, value in last.items() if name != "time"}
    if not record["finished"]:
        values["state"] = "not finished: the training was stopped or ended with an error"
    in_epochs = sum(row[-1] for row in epoch_rows(learn)[1:])
    values["date"] = time.strftime("%Y-%m-%d %H:%M")
    values["time"] = f"{clock(seconds)} in all, {clock(in_epochs)} of it in the epochs below (minutes:seconds)"
    values["images"] = f"{len(learn.data.train_ds)} for training, {len(learn.data.valid_ds)} for validation"
    return {**values, "next": advice} if advice else values


def epochs(learn: Any) -> str:
    """Return a table of the losses and metrics of each epoch."""
    header, *rows = epoch_rows(learn)
    caption = "Losses, metrics and duration of each epoch"
    caption += "; in the first one, only the new head is trained" if len(fits_of(learn)) > 1 else ""
    return table(caption, [header, *([*map(cell, row[:-1]), clock(row[-1])] for row in rows)])


def plots(learn: Any, out: Path) -> str:
    """Return the plots of the losses, the schedule and the learning rate finder."""
    figures = []
    for name, run in fits_of(learn):
        of = f" ({name})" if name else ""
        best = min((loss for loss in run.val_losses if loss is not None), default=None)
        lowest = "" if best is None else f"; the lowest validation loss is {best:.4g}"
        figures.append(plot(run.plot_losses, f"Losses{of}: the training loss ends at {run.losses[-1]:.4g}{lowest}."))
        figures.append(plot(run.plot_lr, f"Learning rate{of}: up to {max(run.lrs):.2g}, in {len(run.lrs)} steps."))
    if (out / "lr_find.png").is_file():
        caption = "Learning rate finder: the loss while the learning rate rises."
        finders = [run.finder_result for run in learn.history if run.finder_result]
        of_earlier = () if finders else ((out / "lr_find.png").read_bytes(), "png", caption)  # that this one continues
        figures.append(image(*of_earlier) if of_earlier else plot(finders[-1].plot, caption))
    return '<div class="plots">\n' + "\n".join(figures) + "\n</div>"


def plot(draw: Callable[..., Any], caption: str) -> str:
    """Return a figure with a plot, in colors for a light and a dark page."""
    import matplotlib.pyplot as plt

    content = io.StringIO()
    with plt.rc_context(PLOT_STYLE):
        figure = draw(return_fig=True)
        figure.savefig(content, format="svg")
        plt.close(figure)
    start, tag, rest = content.getvalue().partition("<defs>")
    svg = f"{start}{PLOT_COLORS}{tag}{rest}".replace(INK, "currentColor")
    return image(svg.encode(), "svg+xml", caption)


def image(content: bytes, kind: str, caption: str, name: str = "") -> str:
    """Return a figure with a caption, which is also its alternative text."""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    shown = f'<img class="{kind[:3]}" src="{source}" alt="{text(f"{name}: {caption}" if name else caption)}">'
    label = f"<strong>{text(name)}</strong><br>" if name else ""
    return f"<figure>{shown}<figcaption>{label}{text(caption)}</figcaption></figure>"


def errors(learn: Any) -> str:
    """Return the confusion matrix of a classifier, and the images with the highest losses."""
    from minifast.diagnostics.interpretation import ClassificationInterpretation, Interpretation

    is_classifier = kind_of(learn.data) == "class"
    found = (ClassificationInterpretation if is_classifier else Interpretation).from_learner(learn)
    return (matrix(found) if is_classifier else "") + top_losses(learn, found)


def matrix(found: Any) -> str:
    """Return the confusion matrix: a table, or of many classes a plot and the most frequent errors."""
    names, counts = found.classes, found.confusion_matrix()
    right = f"{counts.trace()} of {counts.sum()} images are right"
    if len(names) > MOST_CLASSES:
        pairs = [[*pair[:2], str(pair[2])] for pair in found.most_confused()[:MOST_CLASSES]]
        drawn = plot(found.plot_confusion_matrix, f"Confusion matrix: {right}.")
        return drawn + table("The most frequent errors", [["actual", "predicted", "images"], *pairs])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    styles = [
        [f' style="background: rgb({RIGHT if i == j else WRONG} / {0.6 * share:.0%})"' for j, share in enumerate(row)]
        for i, row in enumerate(shares)
    ]
    rows = [[name, *map(str, row)] for name, row in zip(names, counts.tolist(), strict=True)]
    head = ["actual", *(shorten(name, LONGEST) for name in names)]
    caption = f"Confusion matrix: {right}. A row for each actual class, a column for each predicted one."
    return table(caption, [head, *rows], "matrix", styles)


def top_losses(learn: Any, found: Any) -> str:
    """Return the images with the highest losses, with their names and what was predicted."""
    import torch

    losses, indices = found.top_losses(N_TOP_LOSSES)
    images = learn.data.to_images(torch.stack(found.inputs(indices)))
    names, folder = learn.data.valid_ds.items, learn.data.path.absolute()  # as the names are
    predictions = getattr(found, "pred_class", found.preds)
    figures = []
    for loss, i, pixels in zip(losses.tolist(), indices.tolist(), images, strict=True):
        name = names[i].relative_to(folder) if names[i].is_relative_to(folder) else names[i]
        predicted, actual = (learn.data.label_of(values[i]) or "nothing" for values in (predictions, found.y_true))
        figures.append(image(*encode(pixels), f"predicted {predicted}, actual {actual}, loss {loss:.3g}", str(name)))
    return '<h3>Images with the highest losses</h3>\n<div class="images">\n' + "\n".join(figures) + "\n</div>"


def encode(pixels: Any) -> tuple[bytes, str]:
    """Return an image, an array with values from 0 to 1, as a file and its format; small ones without loss."""
    from PIL import Image

    content = io.BytesIO()
    kind = "png" if max(pixels.shape) <= PIXELATED else "jpeg"
    Image.fromarray((255 * pixels).round().astype("uint8")).save(content, kind)
    return content.getvalue(), kind


def settings(record: dict[str, Any]) -> str:
    """Return the command, what it chose, and the versions."""
    hidden = ("command_line", "versions", "classes", "finished", "lr_option")
    chosen = {name.replace("_", " "): value for name, value in record.items() if name not in hidden}
    command = f"<pre><code>{text(record['command_line'])}</code></pre>"
    return command + facts({**{k: v for k, v in chosen.items() if v is not None}, **record["versions"]})
