"""Convert the BatchNorm layers of any head, of any project, to `RoIBatchNorm2d`, and back."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from .layouts import ImageLayout, RoILayout
from .level_batch_norm import LevelBatchNorm2d
from .normalization_batch import NormalizationBatch
from .roi_batch_norm import RoIBatchNorm2d


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
    optimizer is built or after, the parameters stay the same objects. `revert_roi_batchnorm` gives
    plain layers back.

    Args:
        module: a RoI head; its BN layers see (R, C, ...), R being the RoIs of this worker.
        pooler: makes the RoIs of this head; needed where the batch depends on the images
            ("images", or virtual workers under "worker" or in several shuffle groups, or
            `test_stats` "minibatch").
        Others: see `NormalizationBatch` and `RoILayout`.

    Returns:
        `module`, changed in place (a new module where it is itself a BatchNorm layer).

    Raises:
        ValueError: a setting that is not valid, no BatchNorm in `module` or one that cannot be
            converted, no `pooler` where one is needed, or a whole detector whose backbone sees
            other images than its RoIs come from.

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
    if settings.needs_images and hasattr(module, "backbone") and hasattr(module, "roi_heads"):
        raise ValueError(
            f"convert_roi_batchnorm: {type(module).__name__} is a whole detector, and the "
            f"BatchNorm of its backbone sees no RoIs, but batch={batch!r} with "
            f"test_stats={test_stats!r} depends on the image of each RoI; pass the head instead, "
            "such as model.roi_heads.box_head with pooler=model.roi_heads.box_roi_pool, and use "
            "convert_batchnorm(model.backbone, ...) for the backbone"
        )
    if settings.needs_images and pooler is None:
        groups = f"and shuffle_groups={shuffle_groups} " if shuffle_groups else ""
        tests = f"and test_stats={test_stats!r} " if test_stats == "minibatch" else ""
        raise ValueError(
            f"convert_roi_batchnorm: batch={batch!r} with virtual_workers={virtual_workers} "
            f"{groups}{tests}depends on the image of each RoI; pass the head's pooler=..."
        )
    _require_batchnorm(module, "convert_roi_batchnorm")
    layout = RoILayout(settings, name, process_group)
    converted = use_layout(module, layout)
    if pooler is not None:
        layout.unwatch_later(layout.watch(pooler))
    return converted


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
    _require_batchnorm(module, "convert_batchnorm")
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


def use_layout(module: nn.Module, layout: RoILayout) -> nn.Module:
    """Put every BatchNorm of `module` behind `layout`; the replaced layers keep their tensors.

    Raises:
        ValueError: a BatchNorm that cannot be converted; then nothing is.
    """
    for name, bn in module.named_modules():
        if isinstance(bn, _BatchNorm):
            _check_convertible(name, bn)
    changed = _replaced(module, _BatchNorm, lambda bn: _converted(bn, layout))
    layout.belongs_to(changed)
    return changed


def revert_roi_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every `RoIBatchNorm2d` of `module` by the plain BatchNorm with the same tensors.

    That is the class it was converted from, BatchNorm1d or 3d say, and else `nn.BatchNorm2d`.
    Poolers are watched no more, and heads of this package move no RoIs any more.

    Returns:
        `module`, changed in place (a new module where it is itself a `RoIBatchNorm2d`).
    """
    for layout in layouts_of(module):
        layout.settings = NormalizationBatch()
        layout.unwatch()
    return _replaced(module, RoIBatchNorm2d, _reverted)


def layouts_of(model: nn.Module) -> list[RoILayout]:
    """Return every RoI layout of a model, once: those of its layers and those of its heads."""
    attributes = (value for module in model.modules() for value in vars(module).values())
    return list(dict.fromkeys(value for value in attributes if isinstance(value, RoILayout)))


def set_iteration(module: nn.Module, iteration: int) -> None:
    """Tell every RoI layout of `module` the iteration that begins.

    As `DistributedSampler.set_epoch`: optional, and makes the shuffles of a resumed run those that
    the uninterrupted run draws.
    """
    for layout in layouts_of(module):
        layout.set_iteration(iteration)


def _replaced(module: nn.Module, kind: type, new: Callable[[Any], nn.Module]) -> nn.Module:
    """Replace the submodules of a kind; a module that has several names stays one."""
    made = {m: new(m) for m in module.modules() if isinstance(m, kind)}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child in made:
                setattr(parent, name, made[child])
    return made.get(module, module)


def _require_batchnorm(module: nn.Module, function: str) -> None:
    if not any(isinstance(m, _BatchNorm) for m in module.modules()):
        raise ValueError(f"{function}: no BatchNorm layer in {type(module).__name__}")


def _check_convertible(name: str, bn: _BatchNorm) -> None:
    where = f"the layer {name!r}" if name else "the layer"
    if isinstance(bn, LazyModuleMixin) and bn.has_uninitialized_params():
        raise ValueError(
            f"{where} is a {type(bn).__name__} that does not know its channels yet; run one batch "
            "through the model, then convert it"
        )
    if isinstance(bn, LevelBatchNorm2d):
        raise ValueError(
            f"{where} is a LevelBatchNorm2d, which normalizes feature levels and has a batch of "
            "its own; convert the RoI head by itself"
        )
    own = bn.weight is None or isinstance(bn.weight, nn.Parameter)
    if is_parametrized(bn) or not own:
        raise ValueError(
            f"{where} is a {type(bn).__name__} whose parameters are computed from others; remove "
            "that first, as torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') "
            "does, or convert the model before it is parametrized"
        )


def _converted(bn: _BatchNorm, layout: RoILayout) -> RoIBatchNorm2d:
    new = RoIBatchNorm2d(
        bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats, layout=layout
    )
    new.plain = bn.plain if isinstance(bn, RoIBatchNorm2d) else _plain_class(bn)
    _share_tensors(bn, new)
    if bn.running_mean is not None:
        new.ema_weight = new.ema_weight.to(bn.running_mean.device)
    return new


def _reverted(bn: RoIBatchNorm2d) -> _BatchNorm:
    new = bn.plain(bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats)
    _share_tensors(bn, new)
    return new


def _share_tensors(bn: _BatchNorm, new: _BatchNorm) -> None:
    new.weight, new.bias = bn.weight, bn.bias
    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(new, buffer, getattr(bn, buffer))
    new.train(bn.training)


def _plain_class(bn: _BatchNorm) -> type[_BatchNorm]:
    plain = (nn.BatchNorm1d, nn.BatchNorm3d)
    return next((kind for kind in plain if isinstance(bn, kind)), nn.BatchNorm2d)
