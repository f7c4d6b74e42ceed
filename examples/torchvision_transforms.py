"""Train on a data set of torchvision with transforms v2.

``FakeData`` needs no download; ``CIFAR10(path, download=True, transform=...)`` goes into the same place.
"""

import torch
from torch import nn
from torchvision import datasets
from torchvision.transforms import v2

from minifast import *

set_seed(0)
augment = v2.Compose(
    [v2.ToImage(), v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=4), v2.ToDtype(torch.float32, scale=True)]
)
plain = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
train = datasets.FakeData(320, (3, 32, 32), num_classes=4, transform=augment)
valid = datasets.FakeData(80, (3, 32, 32), num_classes=4, transform=plain)
data = DataBunch.create(train, valid, bs=32, seed=0, device="cpu").normalize()
layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, data.c)]
model = nn.Sequential(*layers)
learn = Learner(data, model, metrics=[accuracy])
print(learn.check())
learn.fit_one_cycle(1, 1e-2)
assert learn.get_preds()[0].shape == (80, 4)
