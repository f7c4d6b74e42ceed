"""The house: which file stands on which floor, which names are public, and that importing changes nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import minifast
from minifast import DatasetType

PACKAGE = Path(minifast.__file__).parent

# From the ground up. A file imports only from floors below its own.
FLOORS = [
    ["errors", "callbacks", "data"],  # the two folders' own __init__ hold a docstring each
    ["state"],
    ["groups", "schedules", "files", "suggest", "tables", "eager", "losses", "hooks", "program", "findings"],
    ["part", "data.position", "data.urls"],
    ["data.cache", "data.labels", "data.losses", "data.normalize", "data.tables"],
    ["optimizer", "policies", "diagnosis", "heads", "models", "progress", "plots"],
    ["data.drawn", "data.loader", "data.images"],
    ["data.augment", "data.picture_sets", "finder_result"],
    ["data.bunch"],
    ["data.image_bunch", "data.tensor_bunch"],
    ["callback"],
    ["dispatcher", "metrics", "checkpoint", "callbacks.bn_freeze", "callbacks.scheduler"],
    ["bodies", "confusion", "identity", "loop", "regression", "summary"],
    ["callbacks.csv_logger", "callbacks.show_graph", "callbacks.stoppers", "callbacks.tensorboard"],
    ["interpretation", "callbacks.guard", "callbacks.lr_finder", "callbacks.one_cycle", "callbacks.recorder"],
    [
        *("callbacks.checkpointer", "callbacks.other_schedulers", "callbacks.accumulation", "callbacks.averaging"),
        *("callbacks.activations", "callbacks.gradient_clipping", "callbacks.mixed_precision", "callbacks.mixup"),
        *("callbacks.tracker", "history"),
    ],
    ["predictions", "training"],
    ["checkup"],
    ["fitting", "shipping", "techniques"],
    ["learner"],
    ["loading"],
    ["comparison", "transfer"],
    ["__init__"],
    ["commands"],
    ["cli"],
    ["__main__"],
]

PUBLIC = [
    "AUROC",
    "AccumulateScheduler",
    "ActivationStats",
    "AdamW",
    "AdaptiveConcatPool2d",
    "AverageMetric",
    "BnFreeze",
    "CSVLogger",
    "Callback",
    "CallbackError",
    "CheckResult",
    "ClassificationInterpretation",
    "Comparison",
    "ConfusionMatrix",
    "DataBunch",
    "DataError",
    "DatasetType",
    "DeviceDataLoader",
    "Dispatcher",
    "DownloadError",
    "EMACallback",
    "EVENTS",
    "EarlyStoppingCallback",
    "ExpRMSPE",
    "ExplainedVariance",
    "FBeta",
    "FileFormatError",
    "FinderResult",
    "Finding",
    "GeneralScheduler",
    "GradientClipping",
    "History",
    "Hook",
    "HookCallback",
    "Hooks",
    "ImageDataBunch",
    "Interpretation",
    "KappaScore",
    "LRFinder",
    "LabelSmoothingCrossEntropy",
    "Learner",
    "LearnerCallback",
    "LearningRateScheduler",
    "MatthewsCorreff",
    "MinifastError",
    "MixUpCallback",
    "MixedPrecision",
    "NonFiniteLossError",
    "OneCycleScheduler",
    "OptimWrapper",
    "Precision",
    "R2Score",
    "RMSE",
    "Recall",
    "Recorder",
    "ReduceLROnPlateauCallback",
    "SCHEDULES",
    "SaveModelCallback",
    "ScheduledParameters",
    "Scheduler",
    "ShowGraph",
    "SmoothenValue",
    "StopAfterNBatches",
    "TensorBoardCallback",
    "TensorDataBunch",
    "TensorLoader",
    "TerminateOnNaNCallback",
    "TorchScheduler",
    "TrackerCallback",
    "TrainingPhase",
    "URLs",
    "accuracy",
    "accuracy_thresh",
    "add_metrics",
    "annealing_cos",
    "annealing_exp",
    "annealing_linear",
    "annealing_no",
    "annealing_poly",
    "auc_roc_score",
    "channel_view",
    "cnn_learner",
    "compare",
    "constant",
    "conv_layer",
    "cosine",
    "create_body",
    "create_head",
    "create_one_cycle_lr_schedule",
    "denormalize",
    "dice",
    "error_rate",
    "exp_rmspe",
    "explained_variance",
    "exponential",
    "fbeta",
    "fit_one_cycle",
    "flat_cosine",
    "get_image_files",
    "get_transforms",
    "hook_output",
    "hook_outputs",
    "imagenet_stats",
    "join",
    "linear",
    "load_learner",
    "lr_find",
    "mae",
    "mean_absolute_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "model_sizes",
    "model_summary",
    "models",
    "mse",
    "msle",
    "normalize",
    "num_features_model",
    "one_cycle",
    "one_cycle_momentum",
    "one_cycle_scheduler",
    "polynomial",
    "r2_score",
    "read_history",
    "repeat",
    "rmse",
    "root_mean_squared_error",
    "set_seed",
    "simple_ann",
    "simple_cnn",
    "step",
    "suggest_lr",
    "three_phases",
    "three_phases_momentum",
    "top_k_accuracy",
    "two_halves",
    "untar_data",
    "warm_restarts",
]

# What a user of fastai v1 types from memory.
FASTAI_NAMES = [
    "AUROC",
    "AdaptiveConcatPool2d",
    "AverageMetric",
    "BnFreeze",
    "CSVLogger",
    "Callback",
    "ClassificationInterpretation",
    "ConfusionMatrix",
    "DataBunch",
    "DatasetType",
    "DeviceDataLoader",
    "EarlyStoppingCallback",
    "ExpRMSPE",
    "ExplainedVariance",
    "FBeta",
    "ImageDataBunch",
    "Interpretation",
    "KappaScore",
    "LRFinder",
    "Learner",
    "LearnerCallback",
    "MatthewsCorreff",
    "OneCycleScheduler",
    "OptimWrapper",
    "Precision",
    "R2Score",
    "RMSE",
    "Recall",
    "Recorder",
    "ReduceLROnPlateauCallback",
    "SaveModelCallback",
    "Scheduler",
    "ShowGraph",
    "SmoothenValue",
    "StopAfterNBatches",
    "TerminateOnNaNCallback",
    "TrackerCallback",
    "URLs",
    "accuracy",
    "accuracy_thresh",
    "add_metrics",
    "annealing_cos",
    "annealing_exp",
    "annealing_linear",
    "auc_roc_score",
    "dice",
    "error_rate",
    "exp_rmspe",
    "explained_variance",
    "fbeta",
    "mae",
    "mean_absolute_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "mse",
    "msle",
    "r2_score",
    "rmse",
    "root_mean_squared_error",
    "cnn_learner",
    "conv_layer",
    "create_body",
    "create_head",
    "models",
    "one_cycle_scheduler",
    "simple_cnn",
    "top_k_accuracy",
    "untar_data",
]

REQUIRED = inspect.Parameter.empty
ONE_CYCLE = {
    "moms": (0.95, 0.85),
    "div_factor": 25.0,
    "pct_start": None,  # each form has its own
    "final_div": None,
}
MONITOR = {"learn": None, "monitor": "valid_loss", "mode": "auto"}  # a learner may be left out
NUMBERS = ["mean_squared_error", "mean_absolute_error", "mean_squared_logarithmic_error"]
NUMBERS += ["root_mean_squared_error", "exp_rmspe", "r2_score", "explained_variance", "mse", "mae", "msle", "rmse"]
INTERPRETATION = {"learn": REQUIRED, "preds": REQUIRED, "y_true": REQUIRED, "losses": REQUIRED}
INTERPRETATION["ds_type"] = DatasetType.Valid
FINDER = {"start_lr": 1e-7, "end_lr": 10, "num_it": 100, "stop_div": True}
MIXUP = {"alpha": 0.4, "stack_x": False, "stack_y": True}
# fastai v1's parameters in their order, with their defaults; what we have beside them comes after and may be left out.
SIGNATURES = {
    "Learner.fit": {"epochs": REQUIRED, "lr": slice(3e-3), "wd": None, "callbacks": None},
    "Learner.fit_one_cycle": {"cyc_len": REQUIRED, "max_lr": slice(3e-3), **ONE_CYCLE}
    | {"wd": None, "callbacks": None, "tot_epochs": None, "start_epoch": None},
    "Learner.lr_find": FINDER | {"wd": None},
    "Learner.create_opt": {"lr": REQUIRED, "wd": 0.0},
    "Learner.lr_range": {"lr": REQUIRED},
    "Learner.split": {"split_on": REQUIRED},
    "Learner.freeze_to": {"n": REQUIRED},
    "Learner.freeze": {},
    "Learner.unfreeze": {},
    "Learner.validate": {"dl": None, "metrics": None},
    "Learner.get_preds": {"ds_type": DatasetType.Valid, "activ": None, "with_loss": False, "n_batch": None},
    "Learner.predict": {"item": REQUIRED},
    "Learner.pred_batch": {"ds_type": DatasetType.Valid, "batch": None},
    "Learner.dl": {"ds_type": DatasetType.Valid},
    "Learner.init": {"init": REQUIRED},
    "Learner.save": {"file": REQUIRED, "return_path": False, "with_opt": True},
    "Learner.load": {"file": REQUIRED, "device": None, "strict": True, "with_opt": None},
    "Learner.summary": {},
    "Learner.clip_grad": {"clip": 0.1},
    "Learner.to_fp16": {"loss_scale": None, "max_noskip": 1000},
    "Learner.to_fp32": {},
    "Learner.mixup": MIXUP,
    "Learner.export": {"file": "export.pkl"},
    "load_learner": {"path": REQUIRED, "file": "export.pkl", "test": None},
    "Recorder.format_stats": {"stats": REQUIRED},
    "OptimWrapper.set_stat": {"name": REQUIRED, "value": REQUIRED},
    "one_cycle_scheduler": {"lr_max": REQUIRED},
    "conv_layer": {"ni": REQUIRED, "nf": REQUIRED, "ks": 3, "stride": 1, "padding": None, "bias": None},
    "Recorder.plot": {"skip_start": 10, "skip_end": 5, "suggestion": False},
    "Recorder.plot_lr": {"show_moms": False},
    "Recorder.plot_losses": {"skip_start": 0, "skip_end": 0},
    "Recorder.plot_metrics": {"skip_start": 0, "skip_end": 0},
    "OneCycleScheduler": {"learn": REQUIRED, "lr_max": REQUIRED, **ONE_CYCLE, "tot_epochs": None, "start_epoch": None},
    "LRFinder": {"learn": REQUIRED, **FINDER},
    "TrackerCallback": MONITOR,
    "EarlyStoppingCallback": MONITOR | {"min_delta": 0, "patience": 0},
    "SaveModelCallback": MONITOR | {"every": "improvement", "name": "bestmodel"},
    "ReduceLROnPlateauCallback": MONITOR | {"patience": 0, "factor": 0.2, "min_delta": 0, "min_lr": 0.001},
    "StopAfterNBatches": {"n_batches": 2},
    "CSVLogger": {"learn": None, "filename": "history", "append": False},
    "CSVLogger.read_logged_file": {},
    "ShowGraph": {"learn": None},
    "GradientClipping": {"learn": None, "clip": 0.0},
    "AccumulateScheduler": {"learn": None, "n_step": 1, "drop_last": False},
    "MixedPrecision": {"learn": None, "loss_scale": None, "max_noskip": 1000},
    "MixUpCallback": {"learn": None, **MIXUP},
    "LabelSmoothingCrossEntropy": {"eps": 0.1, "reduction": "mean"},
    "Scheduler": {"vals": REQUIRED, "n_iter": REQUIRED, "func": None},
    "SmoothenValue": {"beta": REQUIRED},
    "AverageMetric": {"func": REQUIRED},
    "accuracy": {"input": REQUIRED, "targs": REQUIRED},
    "error_rate": {"input": REQUIRED, "targs": REQUIRED},
    "top_k_accuracy": {"input": REQUIRED, "targs": REQUIRED, "k": 5},
    "accuracy_thresh": {"y_pred": REQUIRED, "y_true": REQUIRED, "thresh": 0.5, "sigmoid": True},
    "fbeta": {"y_pred": REQUIRED, "y_true": REQUIRED, "thresh": 0.2, "beta": 2, "eps": 1e-9, "sigmoid": True},
    "dice": {"input": REQUIRED, "targs": REQUIRED, "iou": False, "eps": 1e-8},
    **{name: {"pred": REQUIRED, "targ": REQUIRED} for name in NUMBERS},
    **{name: {} for name in ("RMSE", "ExpRMSPE", "R2Score", "ExplainedVariance", "AUROC", "ConfusionMatrix")},
    "auc_roc_score": {"input": REQUIRED, "targ": REQUIRED},
    "Precision": {"average": "binary", "pos_label": 1, "eps": 1e-9},
    "Recall": {"average": "binary", "pos_label": 1, "eps": 1e-9},
    "FBeta": {"average": "binary", "pos_label": 1, "eps": 1e-9, "beta": 2},
    "KappaScore": {"weights": None},
    "MatthewsCorreff": {},
    "Interpretation": INTERPRETATION,
    "Interpretation.from_learner": {"learn": REQUIRED, "ds_type": DatasetType.Valid, "activ": None},
    "Interpretation.top_losses": {"k": None, "largest": True},
    "ClassificationInterpretation": INTERPRETATION,
    "ClassificationInterpretation.confusion_matrix": {"slice_size": 1},
    "ClassificationInterpretation.plot_confusion_matrix": {"normalize": False, "title": "Confusion matrix"}
    | {"cmap": "Blues", "slice_size": 1, "norm_dec": 2, "plot_txt": True, "return_fig": None},
    "ClassificationInterpretation.most_confused": {"min_val": 1, "slice_size": 1},
    "ClassificationInterpretation.plot_top_losses": {"k": REQUIRED, "largest": True, "figsize": None},
    "Learner.show_results": {"ds_type": DatasetType.Valid, "rows": 5},
    "Learner.interpret": {"ds_type": DatasetType.Valid},
    "simple_cnn": {"actns": REQUIRED, "kernel_szs": None, "strides": None, "bn": False},
    "ImageDataBunch.from_folder": {"path": REQUIRED, "train": "train", "valid": "valid", "test": None}
    | {"valid_pct": None, "seed": None, "classes": None},
    "ImageDataBunch.from_csv": {"path": REQUIRED, "folder": None, "label_delim": None, "csv_labels": "labels.csv"}
    | {"valid_pct": 0.2, "seed": None, "fn_col": 0, "label_col": 1, "suffix": "", "delimiter": None}
    | {"header": "infer"},
    "ImageDataBunch.from_df": {"path": REQUIRED, "df": REQUIRED, "folder": None, "label_delim": None, "valid_pct": 0.2}
    | {"seed": None, "fn_col": 0, "label_col": 1, "suffix": ""},
    "ImageDataBunch.from_lists": {"path": REQUIRED, "fnames": REQUIRED, "labels": REQUIRED, "valid_pct": 0.2}
    | {"seed": None},
    "ImageDataBunch.from_name_func": {"path": REQUIRED, "fnames": REQUIRED, "label_func": REQUIRED, "valid_pct": 0.2}
    | {"seed": None},
    "ImageDataBunch.from_name_re": {"path": REQUIRED, "fnames": REQUIRED, "pat": REQUIRED, "valid_pct": 0.2},
    "get_transforms": {"do_flip": True, "flip_vert": False, "max_rotate": 10.0, "max_zoom": 1.1, "max_lighting": 0.2}
    | {"max_warp": 0.2, "p_affine": 0.75, "p_lighting": 0.75, "xtra_tfms": None},
    "normalize": {"x": REQUIRED, "mean": REQUIRED, "std": REQUIRED},
    "denormalize": {"x": REQUIRED, "mean": REQUIRED, "std": REQUIRED, "do_x": True},
    "channel_view": {"x": REQUIRED},
    "DataBunch.batch_stats": {"funcs": None, "ds_type": DatasetType.Train},
    "DataBunch.sanity_check": {},
    "DataBunch.add_tfm": {"tfm": REQUIRED},
    "DataBunch.one_batch": {"ds_type": DatasetType.Train, "detach": True, "denorm": True, "cpu": True},
    "DataBunch.show_batch": {"rows": 5, "ds_type": DatasetType.Train},
    "DataBunch.normalize": {"stats": None},
    "AdaptiveConcatPool2d": {"sz": 1},
    "BnFreeze": {"learn": None},
    "cnn_learner": {"data": REQUIRED, "base_arch": REQUIRED, "cut": None, "pretrained": True}
    | {"lin_ftrs": None, "ps": 0.5, "custom_head": None, "split_on": None, "bn_final": False}
    | {"init": nn.init.kaiming_normal_, "concat_pool": True},
    "create_body": {"arch": REQUIRED, "pretrained": True, "cut": None},
    "create_head": {"nf": REQUIRED, "nc": REQUIRED, "lin_ftrs": None, "ps": 0.5}
    | {"concat_pool": True, "bn_final": False},
    "Hook": {"m": REQUIRED, "hook_func": REQUIRED, "is_forward": True, "detach": True},
    "Hooks": {"ms": REQUIRED, "hook_func": REQUIRED, "is_forward": True, "detach": True},
    "hook_output": {"module": REQUIRED, "detach": True, "grad": False},
    "hook_outputs": {"modules": REQUIRED, "detach": True, "grad": False},
    "HookCallback": {"learn": None, "modules": None, "do_remove": True},
    "ActivationStats": {"learn": None, "modules": None, "do_remove": True},
    "model_sizes": {"m": REQUIRED, "size": (64, 64)},
    "num_features_model": {"m": REQUIRED},
    "model_summary": {"m": REQUIRED, "n": 70},
    "DeviceDataLoader": {"dl": REQUIRED, "device": None, "tfms": None},
}
LEARNER = {
    "data": REQUIRED,
    "model": REQUIRED,
    "opt_func": minifast.AdamW,
    "loss_func": None,
    "metrics": None,
    "wd": 1e-2,
    "bn_wd": True,
    "train_bn": True,
    "path": None,
    "model_dir": "models",
    "callback_fns": None,
    "callbacks": None,
    "layer_groups": None,
}


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] or parts) if parts[-1] == "__init__" else ".".join(parts)


MODULES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}
FLOOR_OF = {module: number for number, floor in enumerate(FLOORS) for module in floor}


def import_nodes(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """The imports of a file, wherever they stand, but for those that only a type checker makes."""
    if isinstance(tree, (ast.Import, ast.ImportFrom)):
        return [tree]
    if isinstance(tree, ast.If) and ast.unparse(tree.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return [found for node in tree.orelse for found in import_nodes(node)]
    return [found for node in ast.iter_child_nodes(tree) for found in import_nodes(node)]


def imported_names(source: str) -> set[str]:
    """What a file imports, as dotted names: ``a.b`` for ``from a import b``."""
    names = set()
    for node in import_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"line {node.lineno}: a relative import; write it out from minifast on"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(source: str) -> set[str]:
    """The modules of minifast that a file imports."""
    found = set()
    for name in imported_names(source):
        package, *inner = name.split(".")
        if package != "minifast":
            continue
        while inner and ".".join(inner) not in MODULES:
            inner.pop()  # a name inside a module
        found.add(".".join(inner) or "__init__")
    return found


# --- floors


def test_imports_are_read_as_python_reads_them():
    source = """
import os, minifast
import minifast.data.urls as urls
from minifast import files, accuracy
from minifast.data.bunch import DataBunch
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from minifast.learner import Learner
else:
    import minifast.plots
def f():
    from minifast.errors import DataError
"""
    wanted = {"__init__", "data.urls", "files", "data.bunch", "plots", "errors"}
    assert imported_modules(source) == wanted


def test_each_file_stands_on_exactly_one_floor():
    listed = [module for floor in FLOORS for module in floor]
    assert len(listed) == len(set(listed))
    assert set(MODULES) == set(listed)


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_from_floors_below_its_own(module):
    imported = imported_modules(MODULES[module].read_text())
    assert [name for name in imported if FLOOR_OF[name] >= FLOOR_OF[module]] == []


def test_only_progress_knows_fastprogress():
    users = {
        module
        for module, file in MODULES.items()
        if any(name.split(".")[0] == "fastprogress" for name in imported_names(file.read_text()))
    }
    assert users == {"progress"}


# --- sizes


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_over_350_lines(module):
    assert len(MODULES[module].read_text().splitlines()) <= 350


def lines_of_code(function: ast.FunctionDef, source: str) -> list[str]:
    """The lines of a function but for its docstring, comments and blank ones."""
    first = function.body[1] if ast.get_docstring(function) is not None else function.body[0]
    lines = source.splitlines()
    start = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    picked = lines[start - 1 : function.body[0].lineno - 1] + lines[first.lineno - 1 : function.end_lineno]
    return [line for line in picked if line.strip() and not line.strip().startswith("#")]


def test_the_core_loop_is_under_60_lines():
    source = MODULES["loop"].read_text()
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    core = [lines_of_code(functions[name], source) for name in ("fit", "one_batch", "validate")]
    assert 40 < sum(map(len, core)) < 60


# --- public names


def test_the_public_names_are_these():
    assert sorted(PUBLIC) == PUBLIC
    assert sorted(minifast.__all__) == PUBLIC
    assert [name for name in PUBLIC if not hasattr(minifast, name)] == []


def test_a_star_import_gives_these_and_no_other():
    names: dict[str, object] = {}
    exec("from minifast import *", names)
    assert sorted(names.keys() - {"__builtins__"}) == PUBLIC


def test_fastai_users_find_their_names():
    assert [name for name in FASTAI_NAMES if name not in minifast.__all__] == []


@pytest.mark.parametrize("name", SIGNATURES)
def test_fastai_users_find_their_parameters(name):
    found = minifast
    for part in name.split("."):
        found = getattr(found, part)
    parameters = {p.name: p for p in inspect.signature(found).parameters.values() if p.name != "self"}
    parameters = {name: p for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    wanted = SIGNATURES[name]
    assert {key: parameters[key].default for key in wanted if key in parameters} == wanted
    assert list(parameters)[: len(wanted)] == list(wanted)
    others = [one for one in list(parameters.values())[len(wanted) :] if one.kind is not inspect.Parameter.VAR_KEYWORD]
    assert [one.name for one in others if one.default is REQUIRED] == []
    assert all(parameters[key].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for key in wanted)


def test_a_learner_takes_what_the_design_says():
    parameters = inspect.signature(minifast.Learner).parameters
    assert list(parameters)[: len(LEARNER)] == list(LEARNER)
    assert {name: parameters[name].default for name in LEARNER} == LEARNER
    assert minifast.AdamW.keywords == {"betas": (0.9, 0.99)}


METHODS = """
    fit fit_one_cycle fit_schedule plot_schedule lr_find resume check validate get_preds predict pred_batch dl
    interpret show_results summary save load export to_onnx to_pt2 split init freeze freeze_to unfreeze clip_grad
    mixup to_fp16 to_bf16 to_fp32 compile create_opt lr_range
"""


@pytest.mark.parametrize("name", METHODS.split())
def test_methods_are_methods_of_the_class_itself(name):
    owner = next(one for one in minifast.Learner.__mro__ if name in vars(one))
    method = vars(owner)[name]
    assert inspect.isfunction(method)
    assert (method.__module__, method.__qualname__) == (owner.__module__, f"{owner.__name__}.{name}")


# --- importing


LOOK = """
import json, logging, os, random, signal, sys, threading, warnings
import numpy, torch

def world():
    return {
        "generators": [
            hash(random.getstate()), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
            torch.initial_seed(),
        ],
        "torch": [
            str(torch.get_default_dtype()), str(torch.get_default_device()), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(), torch.multiprocessing.get_sharing_strategy(),
        ],
        "warnings": [repr(warnings.filters), repr(warnings.showwarning)],
        "signals": [repr(signal.getsignal(number)) for number in signal.valid_signals()],
        "logging": [
            repr(logging.root.handlers), logging.root.level, logging.root.disabled, logging.raiseExceptions,
            sorted(name for name in logging.root.manager.loggerDict if "minifast" in name),
        ],
        "hooks": [repr(hook) for hook in (sys.excepthook, sys.displayhook, threading.excepthook, sys.stdout)],
        "threads": threading.active_count(),
        "numpy": repr(numpy.get_printoptions()) + repr(numpy.geterr()),
        "environment": dict(os.environ),
        "place": [os.getcwd(), list(sys.path), sys.getrecursionlimit()],
    }

deeds = []

def watch(event, arguments):
    if event == "open":
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(arguments[2], int) else 0
        if writes:
            deeds.append(f"opened {arguments[0]} to write")
    elif event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "subprocess.Popen", "os.fork", "os.chmod"):
        deeds.append(f"{event} {arguments[:1]}")

before = world()
sys.addaudithook(watch)
import minifast
from minifast import *
done = list(deeds)
after = world()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "deeds": done,
    "heavy": [name for name in (
        "torchvision", "matplotlib", "fastprogress", "PIL", "pooch", "torchmetrics"
    ) if name in sys.modules],
}))
"""


def test_importing_brings_nothing_heavy_writes_nothing_and_changes_nothing(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MINIFAST", "PYTHON"))}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", LOOK], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"changed": [], "deeds": [], "heavy": []}
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__main__"])
def test_each_file_is_imported_by_its_own_name(module):
    name = "minifast" if module == "__init__" else f"minifast.{module}"
    assert Path(importlib.import_module(name).__file__) == MODULES[module]


def test_type_checkers_are_told_of_the_types():
    assert (PACKAGE / "py.typed").is_file()
