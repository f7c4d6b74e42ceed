"""The migration pages: each name has a row, and what a row names exists."""

from __future__ import annotations

import inspect
import operator
import re
from pathlib import Path

import pytest

import minifast

DOCS = Path(__file__).parents[2] / "docs" / "migration"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))

# The names of fastai v1's pages on training that a script is likely to use.
FASTAI = """
    AUROC AccumulateScheduler ActivationStats AverageMetric BnFreeze CSVLogger CSVLogger.on_epoch_end
    CSVLogger.on_train_begin CSVLogger.on_train_end CSVLogger.read_logged_file Callback Callback.get_state
    Callback.jump_to_epoch Callback.on_backward_begin Callback.on_backward_end Callback.on_batch_begin
    Callback.on_batch_end Callback.on_epoch_begin Callback.on_epoch_end Callback.on_loss_begin Callback.on_step_end
    Callback.on_train_begin Callback.on_train_end CallbackHandler CallbackHandler.on_backward_begin
    CallbackHandler.on_backward_end CallbackHandler.on_batch_begin CallbackHandler.on_batch_end
    CallbackHandler.on_epoch_begin CallbackHandler.on_epoch_end CallbackHandler.on_loss_begin
    CallbackHandler.on_step_end CallbackHandler.on_train_begin CallbackHandler.on_train_end
    ClassificationInterpretation ClassificationInterpretation.confusion_matrix
    ClassificationInterpretation.from_learner ClassificationInterpretation.most_confused
    ClassificationInterpretation.plot_confusion_matrix ClassificationInterpretation.plot_top_losses Config
    ConfusionMatrix CrossEntropyFlat DataBunch DataBunch.add_tfm DataBunch.create DataBunch.dl DataBunch.one_batch
    DataBunch.sanity_check DataBunch.show_batch DatasetType DeviceDataLoader DeviceDataLoader.add_tfm
    DeviceDataLoader.create DeviceDataLoader.new DeviceDataLoader.proc_batch DeviceDataLoader.remove_tfm
    EarlyStoppingCallback ExpRMSPE ExplainedVariance FBeta FlattenedLoss GeneralScheduler
    GeneralScheduler.on_batch_end GeneralScheduler.on_train_begin GradientClipping Hook Hooks ImageDataBunch
    ImageDataBunch.batch_stats ImageDataBunch.create_from_ll ImageDataBunch.from_csv ImageDataBunch.from_df
    ImageDataBunch.from_folder ImageDataBunch.from_lists ImageDataBunch.from_name_func ImageDataBunch.from_name_re
    ImageDataBunch.normalize Interpretation Interpretation.from_learner Interpretation.top_losses LRFinder
    LRFinder.on_batch_end LRFinder.on_epoch_end LRFinder.on_train_begin LRFinder.on_train_end Learner
    Learner.clip_grad Learner.create_opt Learner.dl Learner.export Learner.fit Learner.fit_one_cycle Learner.freeze
    Learner.freeze_to Learner.get_preds Learner.init Learner.interpret Learner.load Learner.lr_find Learner.lr_range
    Learner.pred_batch Learner.predict Learner.save Learner.show_results Learner.split Learner.summary
    Learner.unfreeze Learner.validate LearnerCallback OneCycleScheduler OneCycleScheduler.on_batch_end
    OneCycleScheduler.on_epoch_end OneCycleScheduler.on_train_begin OneCycleScheduler.steps OptimWrapper
    OptimWrapper.create OptimWrapper.set_stat OptimWrapper.step OptimWrapper.zero_grad Precision R2Score RMSE Recall
    Recorder Recorder.add_metric_names Recorder.format_stats Recorder.on_backward_begin Recorder.on_batch_begin
    Recorder.on_epoch_end Recorder.on_train_begin Recorder.plot Recorder.plot_losses Recorder.plot_lr
    Recorder.plot_metrics ReduceLROnPlateauCallback SaveModelCallback Scheduler Scheduler.step ShowGraph
    DataBunch.fix_dl DataBunch.one_item DataBunch.save DataBunch.single_dl DataBunch.stats Learner.purge
    create_cnn_model load_data
    SmoothenValue SmoothenValue.add_value StopAfterNBatches TerminateOnNaNCallback TrackerCallback
    TrackerCallback.get_monitor_value TrainingPhase TrainingPhase.schedule_hp URLs accuracy accuracy_thresh
    annealing_cos annealing_exp annealing_linear annealing_no annealing_poly channel_view cnn_learner conv_layer
    denormalize error_rate exp_rmspe explained_variance fbeta fit fit_one_cycle foreground_acc get_image_files
    hook_output hook_outputs load_learner loss_batch lr_find mean_absolute_error mean_squared_error
    mean_squared_logarithmic_error model_sizes model_summary normalize normalize_funcs num_features_model
    one_cycle_scheduler r2_score root_mean_squared_error simple_cnn top_k_accuracy untar_data validate
"""

# The parts of Keras's training that its guides use.
KERAS = """
    compile fit evaluate predict train_on_batch history summary save load_model save_weights load_weights
    validation_split class_weight initial_epoch verbose steps_per_epoch
    EarlyStopping ModelCheckpoint ReduceLROnPlateau LearningRateScheduler CSVLogger TensorBoard TerminateOnNaN
    BackupAndRestore History LambdaCallback ProgbarLogger
"""


# The names of fastai v2's training that its tutorials type.
FASTAI_V2 = """
    DataLoaders ImageDataLoaders.from_folder DataBlock vision_learner Learner Learner.fit Learner.fit_one_cycle
    Learner.fine_tune Learner.fit_flat_cos Learner.lr_find Learner.freeze Learner.unfreeze Learner.get_preds
    Learner.predict Learner.export load_learner Learner.to_fp16 aug_transforms Recorder.plot_sched SaveModelCallback
    EarlyStoppingCallback GradientAccumulation MixUp Callback.before_batch Callback.after_loss Callback.after_fit
"""

# The parts of Lightning that its introduction uses.
LIGHTNING = """
    Trainer Trainer.fit Trainer.validate Trainer.predict LightningModule LightningModule.training_step
    LightningModule.configure_optimizers LightningModule.log LightningDataModule EarlyStopping ModelCheckpoint
    Trainer(max_epochs=) Trainer(devices=) Trainer(precision=) Trainer(gradient_clip_val=)
    Trainer(accumulate_grad_batches=) Trainer(logger=) Tuner.lr_find seed_everything Trainer.fit(ckpt_path=)
"""


def rows(page: str) -> list[tuple[str, str, str]]:
    """The rows of a page's tables: a name, what it is in minifast, what differs."""
    text = (DOCS / page).read_text()
    table = re.findall(r"^\| `([^`]+)` \| (.*?) \| ?(.*?) ?\|$", text, re.MULTILINE)
    assert len(table) == len(re.findall(r"^\| `", text, re.MULTILINE))
    return table


def resolves(name: str) -> bool:
    """Whether a dotted name, or an argument as ``name(argument=)``, exists in minifast."""
    path, _, argument = name.partition("(")
    try:
        value = operator.attrgetter(path)(minifast)
    except AttributeError:
        return False
    return not argument or argument.rstrip("=)") in inspect.signature(value).parameters


@pytest.mark.parametrize(
    ("page", "names"),
    [("fastai_v1.md", FASTAI), ("fastai_v2.md", FASTAI_V2), ("lightning.md", LIGHTNING), ("keras.md", KERAS)],
)
def test_each_name_has_one_row(page, names):
    named = [name for name, _, _ in rows(page)]
    assert len(named) == len(set(named))
    assert set(names.split()) <= set(named)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_row_names_exists_or_is_left_out_for_a_reason(page):
    for name, here, differs in rows(page):
        if here == "left out":
            assert not resolves(name)
            assert len(differs.split()) > 3, f"{name} is left out, and {page} does not give a reason"
        elif here == "the same":
            assert resolves(name), name
        else:
            named = re.findall(r"`([^`]+)`", here)
            assert named, f"{name}: {here} names nothing"
            assert [entry for entry in named if not resolves(entry)] == []


def test_a_name_that_the_star_import_lacks_says_so():
    star = set((Path(__file__).parents[1] / "public_names.txt").read_text().split())
    for name, here, differs in rows("fastai_v1.md"):
        if here == "the same" and "." not in name:
            assert differs.startswith(f"`minifast.{name}`") == (name not in star), name


def test_a_name_of_fastai_v1_that_exists_here_is_called_the_same():
    assert [name for name, here, _ in rows("fastai_v1.md") if here != "the same" and resolves(name)] == [
        "Recorder.on_batch_begin",
        "Recorder.on_backward_begin",
    ]
