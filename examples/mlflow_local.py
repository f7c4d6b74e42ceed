"""Write runs and the exported model to a local MLflow.

``mlflow ui --backend-store-uri sqlite:///mlflow.db`` shows them.
"""

import mlflow
import torch

from minifast import *
from minifast.callbacks import MLflowCallback

set_seed(0)
x = torch.randn(400, 8)
data = TensorDataBunch.from_arrays(x, x[:, 0] > 0, seed=0, classes=["no", "yes"], device="cpu")
learn = Learner(data, simple_ann(8, 2), metrics=[accuracy])
logger = MLflowCallback(experiment="example", tracking_uri="sqlite:///mlflow.db", log_model=True)
learn.fit_one_cycle(2, 1e-2, callbacks=[logger])

client = mlflow.MlflowClient("sqlite:///mlflow.db")
print(client.get_run(logger.run_id).data.metrics)
folder = client.download_artifacts(logger.run_id, "model")
print(load_learner(folder).predict(x[0])[0])
