"""minifast: two epochs of the 1cycle policy on MNIST_SAMPLE."""

from common import EPOCHS, FOLDER, LR

from minifast import ImageDataBunch, Learner, accuracy, simple_cnn

data = ImageDataBunch.from_folder(FOLDER, seed=0)
learn = Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy])
learn.fit_one_cycle(EPOCHS, LR)
