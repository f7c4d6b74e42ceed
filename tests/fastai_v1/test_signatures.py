"""The names, parameters and defaults that a fastai v1 user types from memory."""

from __future__ import annotations

import inspect

import pytest
from torch import nn

import minifast
from minifast import DatasetType

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
    "Learner.fit_one_cycle": {"epochs": REQUIRED, "max_lr": slice(3e-3), **ONE_CYCLE}
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
    "Learner.save": {"file": REQUIRED, "return_path": False, "with_opt": None},  # True in fastai v1
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
    "train_bn": None,  # True in fastai v1
    "path": None,
    "model_dir": "models",
    "callback_fns": None,
    "callbacks": None,
    "layer_groups": None,
}


def test_fastai_users_find_their_names():
    assert [name for name in FASTAI_NAMES if name not in dir(minifast)] == []


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
