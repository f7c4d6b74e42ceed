"""Public functions suggest the argument that was meant, and keep the frames of minifast out of tracebacks."""

import argparse
import ast
import contextlib
import gc
import inspect
import json
import os
import subprocess
import sys
import traceback
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import minifast
from minifast import (
    Callback,
    CSVLogger,
    DataBunch,
    EarlyStoppingCallback,
    ImageDataBunch,
    Learner,
    MinifastError,
    Precision,
    TabularDataBunch,
    accuracy,
    cnn_learner,
    models,
    simple_ann,
    tabular_learner,
)
from minifast.cli.options import CLI_NAMES, _meant_option, parser
from minifast.utils.public import (
    ELSEWHERE,
    OTHER_NAMES,
    PACKAGE,
    frames_to_caller,
    name_meant,
    named_parameters,
    public,
)

LOSS = nn.CrossEntropyLoss()


def learner(width: int = 4, **arguments) -> Learner:
    batches = [(torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]))] * 2
    data = DataBunch(batches, batches, device="cpu", loss_func=LOSS)
    return Learner(data, simple_ann(width, 2), silent=True, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: learner(metric=accuracy), r"^Learner has no argument `metric`\. Did you mean `metrics`\?$"),
        (lambda: learner(cbs=[]), r"^Learner has no argument `cbs`\. Did you mean `callbacks`\?$"),
        (lambda: learner(lr=1e-3), r"^Learner has no argument `lr`\. The learning rate is an argument of fit"),
        (lambda: learner(device="cpu"), r"^Learner has no .* The device is an argument of DataBunch"),
        (lambda: ImageDataBunch.from_folder("x", sz=3), r"Did you mean `size`\?$"),
        (lambda: learner().fit(1, cbs=[]), r"^Learner\.fit has no argument `cbs`\. Did you mean `callbacks`\?$"),
        (lambda: learner().fit(n_epoch=1), r"^Learner\.fit has no .*Did you mean `epochs`\?$"),
        (lambda: learner().fit_one_cycle(1, lr=1), r"^Learner\.fit_one_cycle has no .*Did you mean `max_lr`\?$"),
        (lambda: learner().fit_one_cycle(n_epoch=1), r"Did you mean `epochs`\?$"),
        (lambda: learner().plot_schedule(1, 0.1, pct_strat=3), r"^Learner\.plot_schedule .*`pct_start`"),
        (lambda: learner().lr_find(num_iter=3), r"Did you mean `num_it`\?$"),
        (lambda: cnn_learner(None, models.resnet18, metric=accuracy), "`data` must be a DataBunch"),
        (lambda: cnn_learner(learner().data, models.resnet18, metric=accuracy), "^cnn_learner has no .*`metrics`"),
        (lambda: DataBunch([], batch_size=2), r"^DataBunch has no argument `batch_size`\. The batch size belongs"),
        (lambda: DataBunch.create([], batch_size=2), r"^DataBunch\.create has no .*Did you mean `bs`\?$"),
        (lambda: ImageDataBunch.from_folder("x", batch_size=2), r"^ImageDataBunch\.from_folder has no .*`bs`"),
        (lambda: ImageDataBunch.from_lists("x", [], [], img_size=2), r"^ImageDataBunch\.from_lists has no .*`size`"),
        (lambda: EarlyStoppingCallback(patient=3), r"^EarlyStoppingCallback has no .*Did you mean `patience`\?$"),
        (lambda: CSVLogger(fname="x"), r"^CSVLogger has no .*Did you mean `filename`\?$"),
        (lambda: TabularDataBunch.from_csv("x", "y", "z", batch_size=2), r"^TabularDataBunch\.from_csv has no .*`bs`"),
        (lambda: tabular_learner(None, metric=accuracy), r"^tabular_learner has no .*Did you mean `metrics`\?$"),
        (lambda: learner().fit(1, learning_rat=1), r"^Learner\.fit has no .*Did you mean `lr`\?$"),
        (lambda: Precision(mean=1), r"^Precision has no argument `mean`\. It takes "),
    ],
)
def test_an_unknown_keyword_is_answered_with_the_one_that_was_meant(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@given(st.data(), st.sampled_from(sorted(name for name in OTHER_NAMES if len(name) > 5)))
def test_a_misspelled_name_of_other_libraries_means_what_it_means_there(data, name):
    missing = data.draw(st.integers(1, len(name) - 1))
    (own, *_) = OTHER_NAMES[name]
    assert name_meant(name[:missing] + name[missing + 1 :], ["verbosity", own]) == own
    assert name_meant(name, ["verbosity"]) is None
    assert name_meant("quiet", ["silent"], {"quiet": "silent"}) == "silent"


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("layers", None),
        ("test", None),
        ("classes", None),
        ("images", None),
        ("image", None),
        ("train", "pretrained"),
        ("learning_rat", "lr"),
        ("bach_size", "bs"),
    ],
)
def test_a_word_that_is_a_little_like_a_name_of_other_libraries_is_not_taken_for_it(option, meant):
    subparsers = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    own = [action.dest for action in subparsers.choices["train"]._actions]
    assert name_meant(option, own, CLI_NAMES) == meant
    hint = _meant_option(f"--{option.replace('_', '-')}", subparsers.choices["train"])
    assert hint == (f" Did you mean --{meant.replace('_', '-')}?" if meant else "")


@given(st.sampled_from(sorted(OTHER_NAMES)), st.sampled_from([Learner, Learner.fit, Learner.fit_one_cycle, DataBunch]))
def test_names_of_other_libraries_lead_to_an_argument_or_to_where_it_belongs(name, function):
    if name in named_parameters(function):
        return
    arguments = () if function in (Learner, DataBunch) else (learner(),)
    with pytest.raises(TypeError) as caught:
        function(*arguments, **{name: 1})
    suggested = [other for other in OTHER_NAMES[name] if other in named_parameters(function)]
    places = [ELSEWHERE[other] for other in (*OTHER_NAMES[name], name) if other in ELSEWHERE]
    text = str(caught.value)
    assert (f"`{suggested[0]}`" if suggested else places[0] if places else f"`{name}`") in text


@pytest.mark.parametrize("name", [name for name in minifast.__all__ if inspect.isclass(getattr(minifast, name))])
def test_every_public_class_names_itself_and_not_its_constructor(name):
    cls = getattr(minifast, name)
    if issubclass(cls, BaseException) or "__init__" not in dir(cls) or cls.__init__ is object.__init__:
        return
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls.__init__).parameters.values()):
        return
    if not hasattr(cls.__init__, "__wrapped__"):
        return
    with pytest.raises(TypeError, match=rf"^{name} has no argument `no_such_thing`\."):
        cls(no_such_thing=1)


def test_signatures_and_other_errors_of_the_call_stay():
    assert list(inspect.signature(Learner.fit).parameters)[:3] == ["self", "epochs", "lr"]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'epochs'"):
        learner().fit()


# --- tracebacks


def hidden(error: BaseException) -> list[bool]:
    """Return for each frame inside minifast whether it is hidden."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [
        bool(frame.f_locals.get("__tracebackhide__"))
        for frame in frames
        if frame.f_code.co_filename.startswith(PACKAGE)
    ]


class Wrong(Callback):
    def on_batch_end(self):
        return {"stop_trainin": True}


class Broken(Callback):
    def on_batch_end(self):
        raise KeyError("mine")


MISTAKES = [
    lambda: learner(callbacks=[Wrong()]).fit(1),
    lambda: learner(callbacks=[Broken()]).fit_one_cycle(1, 0.1),
    lambda: learner(5).fit(1),
    lambda: learner().fit(0),
    lambda: learner().load("nowhere"),
    lambda: ImageDataBunch.from_folder("nowhere"),
    lambda: learner(callback_fns=[lambda learn: learn.fit(0)]).fit(1),
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_frame_of_minifast_is_shown(mistake, monkeypatch):
    monkeypatch.delenv("MINIFAST_DEBUG", raising=False)
    with pytest.raises(Exception) as caught:
        mistake()
    shown = hidden(caught.value)
    assert len(shown) > 1
    assert shown.count(False) == 1


@pytest.mark.parametrize("mistake", MISTAKES)
def test_all_frames_are_shown_for_debugging(mistake, monkeypatch):
    monkeypatch.setenv("MINIFAST_DEBUG", "1")
    with pytest.raises(Exception) as caught:
        mistake()
    assert not any(hidden(caught.value))


def test_the_frame_of_a_callback_is_shown_with_the_method_that_called_it():
    with pytest.raises(KeyError) as caught:
        learner(callbacks=[Broken()]).fit(1)
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    names = [frame.f_code.co_name for frame in frames if not frame.f_locals.get("__tracebackhide__")]
    assert names == ["test_the_frame_of_a_callback_is_shown_with_the_method_that_called_it", "fit", "on_batch_end"]
    assert "epoch 0 at batch 0" in "".join(getattr(caught.value, "__notes__", ["epoch 0 at batch 0"]))


def of_library(file: str, error: type[BaseException]):
    """Return a function in a file of a library, which raises ``error`` five calls deeper."""
    space = {"error": error}
    source = "def deep(*arguments, n=5):\n    if not n:\n        raise error('mine')\n    deep(n=n - 1)"
    exec(compile(source, str(Path(file).with_name("deep.py")), "exec"), space)
    return space["deep"]


def shown_functions(error: BaseException) -> list[str]:
    """Return the functions of the frames that IPython shows: those that are not hidden, and always the last."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [
        frame.f_code.co_name for frame in frames if frame is frames[-1] or not frame.f_locals.get("__tracebackhide__")
    ]


@pytest.mark.parametrize("module", [torch, json, pytest], ids=["torch", "json", "site-packages"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("debug", ["0", "1"])
def test_the_frames_of_libraries_are_hidden_from_ctrl_c_and_those_of_torch_from_errors(
    debug, error, module, monkeypatch
):
    monkeypatch.setenv("MINIFAST_DEBUG", debug)
    fails = of_library(module.__file__, error)

    class Calls(Callback):
        def on_batch_end(self):
            fails()

    with pytest.raises(error) as in_callback:
        learner(callbacks=[Calls()]).fit(1)
    with pytest.raises(error) as in_loss:
        learner(loss_func=fails).fit(1)
    own = inspect.currentframe().f_code.co_name
    n_deep = 6 if debug == "1" else 0 if error is KeyboardInterrupt else 1 if module is torch else 6
    for caught, outer in ((in_callback, [own, "fit", "on_batch_end"]), (in_loss, [own, "fit"])):
        shown = shown_functions(caught.value)
        assert [name for name in shown if name in (*outer, "deep")] == [*outer, *["deep"] * n_deep] or debug == "1"
        assert shown.count("deep") == n_deep
        assert debug == "1" or set(shown) <= {*outer, "deep"}


@pytest.mark.parametrize("version", [(8, 12, 0), (8, 14, 0), (9, 1, 0)])
def test_a_note_is_part_of_the_message_where_ipython_does_not_print_notes(version, monkeypatch):
    ipython = SimpleNamespace(version_info=version, get_ipython=lambda: object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with pytest.raises(RuntimeError) as caught:
        learner(5).fit(1)
    printed = str(caught.value) if version < (8, 14) else "\n".join(caught.value.__notes__)
    assert "\nLayer 1, Linear(in_features=5," in printed
    assert "Layer 1" not in (str(caught.value) if version >= (8, 14) else "")
    monkeypatch.setattr(ipython, "get_ipython", lambda: None)  # imported, but no front end of this process
    with pytest.raises(RuntimeError) as caught:
        learner(5).fit(1)
    assert "Layer 1" not in str(caught.value)


@pytest.mark.slow
def test_pytest_shows_the_line_of_the_user_and_one_of_minifast(tmp_path, monkeypatch):
    monkeypatch.delenv("MINIFAST_DEBUG", raising=False)
    file = tmp_path / "test_mine.py"
    file.write_text(
        "from minifast import ImageDataBunch\n\ndef test_mine():\n    ImageDataBunch.from_folder('nowhere')\n"
    )
    root = str(Path(minifast.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    lines = [line for line in done.stdout.splitlines() if ": in " in line]
    assert [line.rpartition(" ")[2] for line in lines] == ["test_mine", "check_folder"]


def test_hiding_keeps_no_learner_alive():
    gc.freeze()  # the collection is of this test's objects only, and takes no time
    learn = learner(callbacks=[Broken()])
    reference = weakref.ref(learn)
    with contextlib.suppress(KeyError):
        learn.fit(1)
    del learn
    gc.collect()
    assert reference() is None


def test_a_warning_names_the_line_of_the_caller():
    learn = learner()
    learn.data.valid_dl.dl = []
    for fit in (learn.fit, partial(learn.fit_one_cycle, max_lr=0.1), partial(learn.fit_schedule, lr=0.1)):
        with pytest.warns(UserWarning, match="validation data have no batch") as caught:
            fit(1)
        assert [warning.filename for warning in caught] == [__file__]


def test_outside_of_minifast_the_caller_is_the_next_frame():
    assert frames_to_caller() == 1


def test_all_warnings_name_the_line_of_the_user():
    calls = [
        f"{file.relative_to(PACKAGE)}: {ast.unparse(node)}"
        for file in sorted(Path(PACKAGE).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warn", "warnings.warn", "warnings.warn_explicit")
    ]
    own = [call for call in calls if not call.startswith(("__init__.py: ", "utils/aliases.py: warn(instance)"))]
    assert own == ["utils/public.py: warnings.warn(message, category, stacklevel=frames_to_caller())"]


@pytest.mark.parametrize("method", ["predict", "fit", "validate"])
def test_a_warning_has_the_file_of_the_caller_also_below_frames_of_torch(method):
    if method == "predict":
        table = pd.DataFrame({"town": ["A", "B"] * 20, "price": torch.arange(40.0).numpy()})
        data = TabularDataBunch.from_df(".", table, "price", bs=8, seed=0, device="cpu")
        learn, arguments = tabular_learner(data, layers=[4], silent=True), [{"town": "C"}]
    else:
        batches = [(torch.randn(6, 4), torch.arange(6) % 3)] * 2
        data = DataBunch(batches, batches, device="cpu", loss_func=LOSS)
        learn, arguments = Learner(data, simple_ann(4, 3), metrics=[Precision()], silent=True), [1][: method == "fit"]
    with pytest.warns(UserWarning, match=r"\S") as caught:
        getattr(learn, method)(*arguments)
    assert {warning.filename for warning in caught} == {__file__}


def test_a_public_function_raises_what_it_raises():
    @public
    def fails(x):
        raise MinifastError("no")

    with pytest.raises(MinifastError, match="no"):
        fails(1)


def test_an_onnx_export_says_that_the_batch_is_dynamic() -> None:
    for name in ("dynamic_axes", "dynamic_shapes"):
        with pytest.raises(TypeError, match=rf"has no argument `{name}`\. The size of the batch is dynamic already"):
            learner().to_onnx("model.onnx", **{name: {}})
