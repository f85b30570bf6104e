"""Give the BN layers of any head, of any project, an explicit normalization batch."""

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .normalization_batch import NormalizationBatch
from .roi_batch_norm import RoIBatchNorm2d
from .roi_layout import RoILayout


def convert_roi_batchnorm(
    module: nn.Module,
    batch: str = "worker",
    *,
    pooler: nn.Module | None = None,
    images_per_group: int = 1,
    virtual_workers: int = 1,
    shuffle_groups: int = 0,
    test_stats: str = "population",
    test_images_per_group: int = 1,
    seed: int = 0,
    name: str = "roi_head",
    process_group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Replace every BatchNorm of `module` by a `RoIBatchNorm2d` with the same parameters.

    As `torch.nn.SyncBatchNorm.convert_sync_batchnorm` does for whole models. Do it before the
    optimizer is built or after, the parameters stay the same objects.

    Args:
        module: a RoI head; its BN layers see (R, C, ...), R being the RoIs of this worker.
        pooler: makes the RoIs of this head; needed where the batch depends on the images
            ("images", or virtual workers under "worker" or in several shuffle groups, or
            `test_stats` "minibatch").
        Others: see `NormalizationBatch` and `RoILayout`.

    Returns:
        `module`, changed in place (a new module where it is itself a BatchNorm layer).

    Raises:
        ValueError: a setting that is not valid, no BatchNorm in `module`, or no `pooler` where one
            is needed.

    Example:
        >>> heads = torchvision_model.roi_heads
        >>> convert_roi_batchnorm(heads.box_head, "shuffled", pooler=heads.box_roi_pool)
    """
    settings = NormalizationBatch(
        batch,
        images_per_group,
        virtual_workers,
        test_stats=test_stats,
        test_images_per_group=test_images_per_group,
        shuffle_groups=shuffle_groups,
        seed=seed,
    )
    if settings.needs_images and pooler is None:
        groups = f"and shuffle_groups={shuffle_groups} " if shuffle_groups else ""
        tests = f"and test_stats={test_stats!r} " if test_stats == "minibatch" else ""
        raise ValueError(
            f"convert_roi_batchnorm: batch={batch!r} with virtual_workers={virtual_workers} "
            f"{groups}{tests}depends on the image of each RoI; pass the head's pooler=..."
        )
    if not any(isinstance(m, _BatchNorm) for m in module.modules()):
        raise ValueError(f"convert_roi_batchnorm: no BatchNorm layer in {type(module).__name__}")
    layout = RoILayout(settings, name, process_group)
    if pooler is not None:
        layout.watch(pooler)
    return use_layout(module, layout)


def use_layout(module: nn.Module, layout: RoILayout) -> nn.Module:
    """Put every BatchNorm of `module` behind `layout`; the replaced layers keep their tensors."""
    converted = {m: _converted(m, layout) for m in module.modules() if isinstance(m, _BatchNorm)}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # a shared layer under each of its names
            if child in converted:
                setattr(parent, name, converted[child])
    return converted.get(module, module)


def _converted(bn: _BatchNorm, layout: RoILayout) -> RoIBatchNorm2d:
    new = RoIBatchNorm2d(
        bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats, layout=layout
    )
    new.weight, new.bias = bn.weight, bn.bias
    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(new, buffer, getattr(bn, buffer))
    if bn.running_mean is not None:
        new.ema_weight = new.ema_weight.to(bn.running_mean.device)
    return new.train(bn.training)


def set_iteration(module: nn.Module, iteration: int) -> None:
    """Tell every RoI layout of `module` the iteration that begins.

    As `DistributedSampler.set_epoch`: optional, and makes the shuffles of a resumed run those that
    the uninterrupted run draws.
    """
    for layout in {m.layout for m in module.modules() if isinstance(m, RoIBatchNorm2d)}:
        layout.set_iteration(iteration)
