"""fastai v2: two epochs of the 1cycle policy on MNIST_SAMPLE."""

from common import BATCH, EPOCHS, FOLDER, LR, model
from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Learner, accuracy

data = ImageDataLoaders.from_folder(FOLDER, bs=BATCH, num_workers=0)
learn = Learner(data, model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
learn.fit_one_cycle(EPOCHS, LR)
