"""BatchNorm over whole images: each image of a batch is what a RoI is in a RoI head."""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .batches import RoIFacts
from .convert import use_layout
from .forward_clock import Forward
from .normalization_batch import NormalizationBatch
from .roi_layout import RoILayout


class ImageLayout(RoILayout):
    """The `RoILayout` of a network that sees images: every row of a batch is an image of its own.

    Nothing needs to be recorded: a layer's input says how many images there are.
    """

    def _facts(self, num_rois: int, device: torch.device, forward: Forward) -> RoIFacts:
        facts = super()._facts(num_rois, device, forward)
        return replace(facts, recorded=(1,) * num_rois)


def convert_batchnorm(
    module: nn.Module,
    batch: str = "images",
    *,
    images_per_group: int = 1,
    virtual_workers: int = 1,
    shuffle_groups: int = 0,
    test_stats: str = "population",
    test_images_per_group: int = 1,
    seed: int = 0,
    name: str = "images",
    process_group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Replace every BatchNorm of a network by a `RoIBatchNorm2d` with the same parameters.

    By default each `images_per_group` consecutive images of a batch are normalized by themselves,
    and the batch stays as it is ("ghost" BatchNorm, Hoffer et al. 2017; the normalization batch
    size of Wu & Johnson 2021). Where that does not divide a worker's images, its last group is
    smaller. A group of one image with one position is normalized with population statistics.

    Args:
        module: any backbone or classifier; its BN layers see (N, C, ...), N being the images of
            this worker.
        batch: "images", "worker", "shuffled" or "global"; with the other arguments as in
            `NormalizationBatch` and `RoILayout`, an image in place of a RoI.

    Returns:
        `module`, changed in place (a new module where it is itself a BatchNorm layer).

    Raises:
        ValueError: a setting that is not valid, or no BatchNorm in `module`.

    Example:
        >>> convert_batchnorm(torchvision.models.resnet50(), images_per_group=32)
    """
    if not any(isinstance(m, _BatchNorm) for m in module.modules()):
        raise ValueError(f"convert_batchnorm: no BatchNorm layer in {type(module).__name__}")
    settings = NormalizationBatch(
        batch,
        images_per_group,
        virtual_workers,
        test_stats=test_stats,
        test_images_per_group=test_images_per_group,
        shuffle_groups=shuffle_groups,
        seed=seed,
    )
    return use_layout(module, ImageLayout(settings, name, process_group))
