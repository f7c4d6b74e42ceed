"""The callback that writes the record of a fit to MLflow."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifast.callbacks.logger import RunLogger
from minifast.errors import MinifastError
from minifast.utils.checks import import_optional
from minifast.utils.public import warn_caller

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

MAX_ROWS = 200  # of values in one request: MLflow takes 1000 numbers
MAX_TEXT = 500  # characters of a parameter


class MLflowCallback(RunLogger):
    """Write the record of a fit to MLflow: losses, learning rates and momentum, metrics, settings, and the model.

    Each fit is a run, unless ``mlflow.start_run`` was called before: then the fit is written to that run, which stays
    open. A resumed fit continues its run. See ``RunLogger`` for what is written and when.

    Needs MLflow: ``python -m pip install mlflow``.

    Args:
        learn: the learner; a learner that you pass the callback to sets it.
        experiment: the name of the experiment, which is made if it does not exist. By default MLflow's own.
        tracking_uri: where the runs are, such as ``"sqlite:///mlflow.db"``. By default MLflow's own setting.
        name: the name of the run.
        log_model: add the exported model of ``learn.export`` to the run's artifacts when the fit ends, as
            ``model/export.pkl`` for ``load_learner``.

    Attributes:
        run_id: the identity of the last run.

    Raises:
        ImportError: if MLflow is not installed.
    """

    def __init__(
        self,
        learn: Learner | None = None,
        experiment: str | None = None,
        tracking_uri: str | None = None,
        name: str | None = None,
        log_model: bool = False,
    ) -> None:
        super().__init__(learn)
        self._module()
        self.experiment = experiment
        self.tracking_uri = tracking_uri
        self.name = name
        self.log_model = log_model
        self.run_id: str | None = None
        self._is_own = False
        self._client: Any = None

    @staticmethod
    def _module() -> Any:
        return import_optional("mlflow", "MLflowCallback", "mlflow")

    def on_train_begin(self) -> None:
        """Begin a new run."""
        super().on_train_begin()
        self.run_id = None

    def open_run(self, config: dict[str, Any]) -> None:
        """Open a run, or take the one that is open."""
        mlflow = self._module()
        self._client = client = mlflow.MlflowClient(self.tracking_uri)
        active = mlflow.active_run() if self.tracking_uri is None else None
        self._is_own = active is None
        if active is not None:
            self.run_id = active.info.run_id
        elif self.run_id is not None:
            client.update_run(self.run_id, status="RUNNING")
            return
        else:
            self.run_id = client.create_run(self._experiment_id(), run_name=self.name).info.run_id
        params = [mlflow.entities.Param(name, str(value)[:MAX_TEXT]) for name, value in config.items()]
        known = client.get_run(self.run_id).data.params  # of an open run; MLflow takes a parameter once
        client.log_batch(self.run_id, params=[param for param in params if param.key not in known])

    def _experiment_id(self) -> str:
        client = self._client
        if self.experiment is None:
            return str(self._module().tracking.fluent._get_experiment_id()) if self.tracking_uri is None else "0"
        found = client.get_experiment_by_name(self.experiment)
        return str(found.experiment_id if found is not None else client.create_experiment(self.experiment))

    def write(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Write values in few requests."""
        metric, now = self._module().entities.Metric, int(time.time() * 1000)
        for i in range(0, len(rows), MAX_ROWS):
            part = rows[i : i + MAX_ROWS]
            metrics = [metric(name, value, now, step) for step, values in part for name, value in values.items()]
            for j in range(0, len(metrics), 1000):
                self._client.log_batch(self.run_id, metrics=metrics[j : j + 1000])

    def close_run(self, failed: bool) -> None:
        """Add the model to the artifacts, and finish a run of its own."""
        if self.log_model and not failed:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    with (Path(folder) / "export.pkl").open("wb") as file:
                        self.learn.export(file)
                except MinifastError as error:
                    warn_caller(f"The model is not among the artifacts: {error}")
                else:
                    self._client.log_artifact(self.run_id, str(Path(folder) / "export.pkl"), "model")
        if self._is_own:
            self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
