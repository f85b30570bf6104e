"""Made-up RoIs whose kinds and classes are given."""

import torch

from bn_detect.probes.rois import RoIs

BACKGROUND = 3


def rois(kinds: list[list[bool]], seed: int = 0) -> RoIs:
    """RoIs whose foreground flags are given image by image."""
    flat = torch.tensor([kind for image in kinds for kind in image], dtype=torch.bool)
    image = torch.tensor([i for i, each in enumerate(kinds) for _ in each], dtype=torch.int64)
    g = torch.Generator().manual_seed(seed)
    count = len(flat)
    return RoIs(
        features=torch.zeros(count, 1, 1, 1),
        image=image,
        labels=(~flat).long(),
        foreground=flat,
        ground_truth=torch.zeros_like(flat),
        boxes=torch.rand(count, 4, generator=g),
        targets=torch.zeros(count, 4),
        objects=tuple(torch.zeros(0) for _ in kinds),
        files=(None,) * len(kinds),
        scale=torch.ones(len(kinds), 2),
    )


def labelled(labels: list[list[int]], seed: int = 0) -> RoIs:
    """RoIs whose classes are given image by image."""
    made = rois([[label != BACKGROUND for label in image] for image in labels], seed)
    flat = torch.tensor([label for image in labels for label in image], dtype=torch.int64)
    return RoIs(**{**vars(made), "labels": flat})
