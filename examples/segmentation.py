"""Find the class of each pixel: images and masks from two folders, augmented alike, and a small U-Net."""

from pathlib import Path
from tempfile import mkdtemp

import torch
from PIL import Image, ImageDraw
from torch import nn

from minifast import *
from minifast.models import conv_layer

set_seed(0)
torch.set_num_threads(1)
path = Path(mkdtemp())  # your folder with images/NAME.png and masks/NAME.png
for name, paper, ink in (("images", (60, 90, 60), (200, 120, 60)), ("masks", 0, 255)):
    (path / name).mkdir()
    for i in range(60):
        image = Image.new("L" if name == "masks" else "RGB", (32, 32), paper)
        left, top = 3 * i % 16, 7 * i % 16
        ImageDraw.Draw(image).ellipse([left, top, left + 14, top + 14], fill=ink)
        image.save(path / name / f"{i}.png")

codes, options = ["background", "disc"], {"bs": 8, "seed": 0, "device": "cpu"}
data = SegmentationDataBunch.from_folder(path, codes, mask_values=[0, 255], ds_tfms=get_transforms(), **options)


class SmallUNet(nn.Module):
    """Half the resolution and back, with the fine details beside it: outputs ``(n, classes, height, width)``."""

    def __init__(self, n_classes: int, width: int = 8) -> None:
        super().__init__()
        self.down = conv_layer(3, width)
        self.deep = nn.Sequential(conv_layer(width, width, stride=2), nn.Upsample(scale_factor=2))
        self.up = nn.Sequential(conv_layer(2 * width, width), nn.Conv2d(width, n_classes, 1))

    def forward(self, x):
        fine = self.down(x)
        return self.up(torch.cat([fine, self.deep(fine)], 1))


learn = Learner(data, SmallUNet(data.c), metrics=[accuracy, dice])
learn.fit_one_cycle(4, 1e-2)
classes, _, _ = learn.predict(path / "images" / "0.png")
print(f"{classes.float().mean():.0%} of the pixels of the first image are {codes[1]}")
assert learn.recorder.metrics[-1][1] > 0.9
