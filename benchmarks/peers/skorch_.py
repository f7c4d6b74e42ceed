"""skorch: two epochs of the 1cycle policy on MNIST_SAMPLE, from arrays."""

import torch
from common import BATCH, EPOCHS, LR, model, tensors
from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch.optim.lr_scheduler import OneCycleLR

x, y = tensors("train")
net = NeuralNetClassifier(
    model(),
    criterion=torch.nn.CrossEntropyLoss,
    optimizer=torch.optim.AdamW,
    optimizer__betas=(0.9, 0.99),
    optimizer__weight_decay=1e-2,
    lr=LR,
    batch_size=BATCH,
    max_epochs=EPOCHS,
    iterator_train__shuffle=True,
    iterator_train__drop_last=True,
    train_split=predefined_split(Dataset(*tensors("valid"))),
    callbacks=[LRScheduler(OneCycleLR, max_lr=LR, total_steps=EPOCHS * (len(x) // BATCH), step_every="batch")],
)
net.fit(x, y)
