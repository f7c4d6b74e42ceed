"""minifast: two epochs of the 1cycle policy on MNIST_SAMPLE."""

import os

from minifast import ImageDataBunch, Learner, accuracy, simple_cnn

data = ImageDataBunch.from_folder(os.environ["MNIST_SAMPLE"], seed=0)
learn = Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy])
learn.fit_one_cycle(2, 5e-2)
