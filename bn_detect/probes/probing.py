"""A model under a probe: its box head on mini-batch statistics, and its RoIs in groups."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..distributed.collectives import default_group
from ..layers import NormalizationBatch, RoIBatchNorm2d, RoILayout
from ..layers.statistics import use_statistics
from ..population.bn_layers import unwrapped
from ..population.precise_bn import detectron2_events
from ..population.undisturbed import undisturbed
from .adapters import find_head
from .adapters.heads import RoIHead
from .rois import RoIs


class Groups:
    """The partition of a batch's RoIs into the groups that meet in a head."""

    def __init__(self, settings: NormalizationBatch) -> None:
        # How features travel between processes does not matter in one.
        self._layout = RoILayout(replace(settings, exchange="statistics"), name="probe")

    def __call__(self, rois: RoIs, step: int) -> list[Tensor]:
        """Return the indices of the RoIs of each group, ascending, without groups of a single RoI.

        Args:
            step: number of the batch; shuffles differ by it.

        Raises:
            ValueError: the images cannot be split into the virtual workers.
        """
        self._layout.set_iteration(step)
        self._layout.record(rois.per_image, rois.labels)
        group = self._layout.partition(len(rois), torch.device("cpu")).group
        groups = [(group == g).nonzero()[:, 0] for g in group.unique()]
        return [indices for indices in groups if len(indices) > 1]


def own_batch(model: nn.Module, virtual_workers: int = 1) -> NormalizationBatch:
    """Return the normalization batch that the box head of a detector is trained with.

    That of its `RoIBatchNorm2d` layers, if it has any; all workers for synchronized BatchNorm
    (torch's SyncBatchNorm, Detectron2's NaiveSyncBatchNorm); else each worker by itself.

    Args:
        virtual_workers: the workers whose images are in one batch of the probe, where the layers
            do not say it.

    Raises:
        ValueError: `RoIBatchNorm2d` layers have unequal normalization batches, or the model is of a
            kind that no adapter knows.
    """
    return _own_batch(find_head(unwrapped(model)), virtual_workers)


def _own_batch(head: RoIHead, virtual_workers: int = 1) -> NormalizationBatch:
    layers = list(head.bn_layers.values())
    settings = dict.fromkeys(m.layout.settings for m in layers if isinstance(m, RoIBatchNorm2d))
    if len(settings) > 1:
        first, second, *_ = settings
        raise ValueError(
            "the layers of the box head have unequal normalization batches, "
            f"{first} and {second}: pass partition="
        )
    if settings:
        return next(iter(settings))
    if any(isinstance(layer, head.synchronized) for layer in layers):
        return NormalizationBatch("global")
    return NormalizationBatch("worker", virtual_workers=virtual_workers)


def require_one_process() -> None:
    """Raise ValueError in one of several processes, whose layers may wait for one another."""
    if default_group() is not None:
        raise ValueError(
            "probes run in one process, and this is one of several: call them after "
            "torch.distributed.destroy_process_group(), or in a process of their own"
        )


@contextlib.contextmanager
def probing(
    model: nn.Module, partition: NormalizationBatch | None, seed: int
) -> Iterator[tuple[RoIHead, Groups]]:
    """Prepare a model for a probe, and restore it afterwards, whatever happens.

    Inside, a forward of the head treats the RoIs it gets as one normalization batch, as in training
    but without dropout. Backbone and proposals work as in inference, with as many proposals as in
    training.

    Args:
        partition: how a batch is cut into groups; None: as `own_batch` says.
        seed: of the RoI samples.

    Yields:
        The box head, and the groups.

    Raises:
        ValueError: see `own_batch`; or this is one of several processes.
    """
    require_one_process()
    model = unwrapped(model)
    head = find_head(model)
    groups = Groups(partition or _own_batch(head))
    # A forward of the head is one batch; in evaluation mode it uses population statistics.
    one_batch = use_statistics(
        nn.ModuleList(head.parts),
        "population",
        batch="worker",
        virtual_workers=1,
        exchange="statistics",
    )
    with undisturbed(model), detectron2_events(), one_batch:
        head.seed = seed
        model.eval()
        if head.proposals is not None:
            head.proposals.training = True  # not its layers: as many proposals as in training
        _train_head(head)
        yield head, groups


@contextlib.contextmanager
def on_population_statistics(head: RoIHead) -> Iterator[None]:
    """Run the head as in inference; for use inside `probing`."""
    for part in head.parts:
        part.eval()
    try:
        yield
    finally:
        _train_head(head)


def _train_head(head: RoIHead) -> None:
    """Put the head into training mode, norm layers of any kind included, but without dropout."""
    for part in head.parts:
        part.train()
    for module in head.modules:
        kind = type(module).__name__.lower()
        if "drop" in kind or kind == "stochasticdepth":
            module.eval()
