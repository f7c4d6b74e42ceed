"""The record of a fit in Weights & Biases and MLflow, and Optuna's pruning."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from conftest import FailsAt, toy_learner

from minifast import load_learner
from minifast.callbacks import MLflowCallback, OptunaPruningCallback, RunLogger, WandbCallback

NAMES = {"loss/batch", "loss/train", "rate/lr", "rate/mom"}


class Rows(RunLogger):
    """Keeps what it gets."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def open_run(self, config):
        self.calls.append(("open", config))

    def write(self, rows):
        self.calls.append(("write", rows))

    def close_run(self, failed):
        self.calls.append(("close", failed))

    def state_dict(self):
        return {name: value for name, value in super().state_dict().items() if name != "calls"}


def steps(logger):
    return [step for kind, rows in logger.calls if kind == "write" for step, _ in rows]


def test_a_logger_gets_each_batch_and_each_epoch_once():
    logger = Rows()
    learn = toy_learner(callbacks=[logger])
    learn.fit_one_cycle(2, 1e-2)
    kinds = [kind for kind, _ in logger.calls]
    assert kinds == ["open", "write", "write", "close"]
    assert steps(logger) == [1, 2, 3, 4, 5, 6]
    config = logger.calls[0][1]
    assert config["method"] == "fit_one_cycle"
    assert config["batch_size"] == 20
    assert json.dumps(config)
    rows = [row for kind, rows in logger.calls if kind == "write" for row in rows]
    assert all(set(values) >= NAMES for _, values in rows)
    ends = [values for step, values in rows if step % 3 == 0]
    assert [values["loss/valid"] for values in ends] == learn.recorder.val_losses
    assert [values["metrics/accuracy"] for values in ends] == [value for (value,) in learn.recorder.metrics]
    assert logger.calls[-1] == ("close", False)


def test_a_failed_fit_writes_its_batches_and_says_so():
    logger = Rows()
    learn = toy_learner(callbacks=[logger, FailsAt(4)])
    with pytest.raises(OSError, match="gone"):
        learn.fit(2)
    assert steps(logger) == [1, 2, 3, 4]
    assert logger.calls[-1] == ("close", True)


def test_a_resumed_run_continues_its_steps(tmp_path):
    first, second = Rows(), Rows()
    with pytest.raises(OSError, match="gone"):
        toy_learner(path=tmp_path).fit(3, checkpoint="run", callbacks=[first, FailsAt(4)])
    toy_learner(path=tmp_path).fit(3, checkpoint="run", callbacks=[second, FailsAt(None)])
    assert steps(first) == [1, 2, 3, 4]
    assert steps(second) == [4, 5, 6, 7, 8, 9]


def test_lr_find_is_not_logged():
    logger = Rows()
    toy_learner(callbacks=[logger]).lr_find(num_it=3)
    assert logger.calls == []


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (WandbCallback, "wandb"),
        (MLflowCallback, "mlflow"),
        (lambda: OptunaPruningCallback(None), "optuna"),
    ],
)
def test_a_missing_package_names_the_command(make, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'needs a package .* python -m pip install "{package}"'):
        make()


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")  # telemetry
    return wandb


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_offline_has_all_values(wandb, monkeypatch):
    callback = WandbCallback(project="toys", mode="offline", config={"note": "mine"})
    logged, configs, open_run = [], [], WandbCallback.open_run

    def open_and_watch(self, config):
        open_run(self, config)
        run, log = self._run, self._run.log
        configs.append(dict(run.config))
        monkeypatch.setattr(run, "log", lambda values, step: (logged.append((step, values)), log(values, step=step)))

    monkeypatch.setattr(WandbCallback, "open_run", open_and_watch)
    learn = toy_learner(callbacks=[callback])
    learn.fit_one_cycle(2, 1e-2)
    assert wandb.run is None
    assert callback.run_id
    recorder = learn.recorder
    assert [(step, values["rate/lr"]) for step, values in logged] == [(i + 1, lr) for i, lr in enumerate(recorder.lrs)]
    assert [values["loss/valid"] for step, values in logged if step in (3, 6)] == recorder.val_losses
    assert configs[0].items() >= {"method": "fit_one_cycle", "note": "mine", "batch_size": 20}.items()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_an_open_wandb_run_stays_open_and_holds_both_fits(wandb):
    run = wandb.init(mode="offline", project="toys")
    learn = toy_learner(callbacks=[WandbCallback()])
    learn.fit(1)
    learn.fit(1)
    assert wandb.run is run
    assert run.step >= 6
    run.finish()


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    yield mlflow
    mlflow.set_tracking_uri(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_all_values_and_the_model(mlflow, tmp_path):
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    callback = MLflowCallback(experiment="toys", tracking_uri=uri, name="first", log_model=True)
    learn = toy_learner(callbacks=[callback], path=tmp_path)
    learn.fit_one_cycle(2, 1e-2)
    client = mlflow.MlflowClient(uri)
    run = client.get_run(callback.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert client.get_experiment(run.info.experiment_id).name == "toys"
    assert run.data.params["method"] == "fit_one_cycle"
    history = client.get_metric_history(callback.run_id, "rate/lr")
    assert [(one.step, one.value) for one in history] == [(i + 1, lr) for i, lr in enumerate(learn.recorder.lrs)]
    losses = client.get_metric_history(callback.run_id, "loss/valid")
    assert [(one.step, one.value) for one in losses] == list(zip([3, 6], learn.recorder.val_losses, strict=True))
    folder = client.download_artifacts(callback.run_id, "model", str(tmp_path))
    loaded = load_learner(folder)
    x = learn.data.valid_ds[0][0]
    assert torch.allclose(loaded.predict(x)[2], learn.predict(x)[2], atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_fit_continues_its_mlflow_run(mlflow, tmp_path):
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    first, second = (MLflowCallback(experiment="toys", tracking_uri=uri) for _ in range(2))
    with pytest.raises(OSError, match="gone"):
        toy_learner(path=tmp_path).fit(3, checkpoint="run", callbacks=[first, FailsAt(4)])
    client = mlflow.MlflowClient(uri)
    assert client.get_run(first.run_id).info.status == "FAILED"
    toy_learner(path=tmp_path).fit(3, checkpoint="run", callbacks=[second, FailsAt(None)])
    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert {one.step for one in client.get_metric_history(first.run_id, "loss/train")} == set(range(1, 10))


@pytest.mark.filterwarnings("ignore")
def test_optuna_prunes_and_refuses_the_wrong_direction():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1 and trial.last_step == 1

    def objective(trial):
        learn = toy_learner()
        learn.fit(3, trial.suggest_float("lr", 1e-4, 1e-2), callbacks=[OptunaPruningCallback(trial)])
        return learn.recorder.val_losses[-1]

    study = optuna.create_study(pruner=Second())
    study.optimize(objective, n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert len(study.trials[1].intermediate_values) == 2
    with pytest.raises(ValueError, match="The study has the direction 'maximize', but lower values of valid_loss"):
        optuna.create_study(direction="maximize").optimize(objective, n_trials=1)
