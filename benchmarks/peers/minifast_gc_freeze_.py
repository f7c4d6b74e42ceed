"""minifast, with what the imports made left out of the garbage collection, also of that at the end of the process."""

import gc
import os

from minifast import ImageDataBunch, Learner, accuracy, simple_cnn

gc.freeze()
data = ImageDataBunch.from_folder(os.environ["MNIST_SAMPLE"], seed=0)
learn = Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy])
learn.fit_one_cycle(2, 5e-2)
