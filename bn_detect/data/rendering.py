"""Render images as a camera might have taken them: `INPUT.RENDERING`, for image classifiers.

Digits of a dataset are all alike: white on black, centred, of one size. Photographs are not, and it
is the contrast and brightness of an image that mini-batch statistics of few images remove. So
what the paper shows on photographs about the normalization batch size shows on rendered digits.
"""

import functools
import math
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

PER = ("image", "batch")  # whose contrast and brightness are the same
ROTATION, SCALE, SHEAR, SHIFT = 0.35, 0.3, 0.3, 0.3  # radians, log, tangent, half sides


class Rendering:
    """Give an image a pose, a contrast, a brightness and noise, all drawn at random.

    A training image gets new ones each time, from the random numbers of its sample, which in
    `ResumableTrainLoader` are a function of (seed, rank, position). A test image gets the same ones
    each time: they depend on the names of its file and folder only.

    Args:
        affine: spread of the affine map. At 1: rotation by +-0.35 radians, scale exp(+-0.3), shear
            +-0.3, shift by +-15% of a side; uniform. What comes from outside is black.
        photometric: s; contrast is multiplied by exp(+-s), brightness shifted by +-s standard
            deviations; uniform. Values are not clipped.
        noise: Gaussian, standard deviations.
        photometric_per: "image", or "batch": training images of one step, on all ranks, share
            contrast and brightness; the loader says in "step" of the dataset dict which step it is.
        pixel_mean, pixel_std: per channel, in grey levels; contrast is about the mean.
    """

    def __init__(
        self,
        *,
        affine: float = 0.0,
        photometric: float = 0.0,
        noise: float = 0.0,
        photometric_per: str = "image",
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        self.affine, self.photometric, self.noise = affine, photometric, noise
        self.photometric_per = photometric_per
        self._mean, self._std = (torch.tensor(p).view(-1, 1, 1) for p in (pixel_mean, pixel_std))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Rendering | None":
        """Return the rendering that `INPUT.RENDERING` says, or None where it changes nothing."""
        keys = {key.lower(): value for key, value in cfg.INPUT.RENDERING.items()}
        if not (keys["affine"] or keys["photometric"] or keys["noise"]):
            return None
        return cls(**keys, pixel_mean=cfg.MODEL.PIXEL_MEAN, pixel_std=cfg.MODEL.PIXEL_STD)

    def __call__(self, image: Tensor, dataset_dict: dict[str, Any], is_train: bool) -> Tensor:
        """Return the rendered image, float32.

        Args:
            image: (C, H, W) in grey levels.
            dataset_dict: with "file_name"; in training under "batch" also with "step".
        """
        if is_train:
            own = int(torch.randint(2**31, ()))
        else:  # wherever the dataset lies
            own = zlib.crc32("/".join(Path(dataset_dict["file_name"]).parts[-2:]).encode())
        shared = is_train and self.photometric_per == "batch"
        light = zlib.crc32(str(dataset_dict["step"]).encode()) if shared else own + 1
        return self.render(image, own, light)

    def render(self, image: Tensor, seed: int, light_seed: int) -> Tensor:
        """Return the rendering of (C, H, W) by two seeds, that of contrast and brightness apart."""
        generator = torch.Generator().manual_seed(seed)
        x = image.to(torch.float32)
        if self.affine:
            x = self._move(x, generator)
        light = torch.Generator().manual_seed(light_seed)
        contrast, brightness = (torch.rand(2, generator=light) * 2 - 1) * self.photometric
        x = (x - self._mean) / self._std * contrast.exp() + brightness
        x += self.noise * torch.randn(x.shape, generator=generator)
        return x * self._std + self._mean

    def _move(self, x: Tensor, generator: torch.Generator) -> Tensor:
        drawn = ((torch.rand(5, generator=generator) * 2 - 1) * self.affine).tolist()
        spreads = (ROTATION, SCALE, SHEAR, SHIFT, SHIFT)
        angle, scale, shear, right, down = (d * s for d, s in zip(drawn, spreads, strict=True))
        cos, sin, scale = math.cos(angle), math.sin(angle), math.exp(scale)
        columns = [[cos * scale, sin * scale], [(shear - sin) * scale, cos * scale], [right, down]]
        height, width = x.shape[1:]
        grid = _positions(height, width) @ torch.tensor(columns)
        return F.grid_sample(x[None], grid.view(1, height, width, 2), align_corners=False)[0]


@functools.lru_cache(maxsize=8)
def _positions(height: int, width: int) -> Tensor:
    """Return x, y (the edges of the image are at -1 and 1) and 1 of each pixel: (H W, 3)."""
    y, x = (torch.arange(0.5, n) * (2 / n) - 1 for n in (height, width))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], 2).view(-1, 3)
