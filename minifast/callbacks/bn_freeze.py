"""Keep the running statistics of frozen BatchNorm layers constant."""

from __future__ import annotations

from minifast.training.callback import LearnerCallback
from minifast.training.groups import BatchNorm, is_frozen


class BnFreeze(LearnerCallback):
    """Keep the running statistics of frozen BatchNorm layers constant during training.

    A BatchNorm layer is frozen when it has parameters and none of them requires a gradient. A frozen layer then
    normalizes by its running statistics, in training as in validation. You need this callback only for a Learner with
    ``train_bn=False``, as in fastai v1; the default ``train_bn=None`` does the same without it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from minifast import *
        >>> data = DataBunch([(torch.randn(8, 4), torch.randint(2, (8,)))] * 2, device="cpu", classes=["a", "b"])
        >>> model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> learn = Learner(data, model, train_bn=False, callback_fns=[BnFreeze], silent=True).split([model[1]])
        >>> _ = learn.freeze()
        >>> _ = learn.fit(1, 1e-2)
        >>> model[0].running_mean.tolist()
        [0.0, 0.0, 0.0, 0.0]
    """

    def on_epoch_begin(self) -> None:
        """Put frozen BatchNorm layers in evaluation mode."""
        for module in self.learn.model.modules():
            if isinstance(module, BatchNorm) and is_frozen(module):
                module.eval()
