"""A model under a probe: a box head on mini-batch statistics, RoIs in groups, and no traces."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads

from ..distributed.collectives import default_group
from ..layers import NormalizationBatch, RoIBatchNorm2d, RoILayout
from ..layers.statistics import use_statistics
from ..population.bn_layers import unwrapped
from ..population.undisturbed import undisturbed
from .adapters.detectron2_heads import Detectron2Head
from .adapters.heads import RoIHead
from .adapters.torchvision_heads import TorchvisionHead
from .rois import RoIs


class Groups:
    """The groups of RoIs that meet in a head."""

    def __init__(self, settings: NormalizationBatch) -> None:
        # How features travel between processes does not matter in one.
        self._layout = RoILayout(replace(settings, exchange="statistics"), name="probe")

    def __call__(self, rois: RoIs, step: int) -> list[Tensor]:
        """The indices of the RoIs of each group, ascending; groups of a single RoI are left out.

        Args:
            step: number of the batch; shuffles differ by it.

        Raises:
            ValueError: the images cannot be split into the virtual workers.
        """
        self._layout.set_iteration(step)
        self._layout.record(rois.per_image)
        group = self._layout.partition(len(rois), torch.device("cpu")).group
        groups = [(group == g).nonzero()[:, 0] for g in group.unique()]
        return [indices for indices in groups if len(indices) > 1]


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
    """The box head of `model`, ready to be run group by group, and the groups.

    Inside, a forward of the head treats the RoIs it gets as one normalization batch, as in training
    but without dropout; backbone and proposals are as in inference, with as many proposals as in
    training. Afterwards everything is as before, whatever happens.

    Args:
        partition: of a batch into groups; None: that of the head's RoIBatchNorm2d layers, or where
            it has none all RoIs of a batch (a worker).
        seed: of the RoI samples.

    Raises:
        ValueError: a model of a kind that is not known, layers of unequal normalization batches
            with partition None, or more than one process.
    """
    require_one_process()
    model = unwrapped(model)
    head = find_head(model)
    groups = Groups(partition or _own_batch(head))
    # A forward of the head is one batch; its parts stay with their own parents.
    one_batch = use_statistics(
        nn.ModuleList(head.parts), batch="worker", virtual_workers=1, exchange="statistics"
    )
    with undisturbed(model), EventStorage(1), one_batch:
        head.seed = seed
        _prepare(model, head)
        yield head, groups


@contextlib.contextmanager
def on_population_statistics(head: RoIHead) -> Iterator[None]:
    """The head as in inference, inside `probing`."""
    for part in head.parts:
        part.eval()
    try:
        yield
    finally:
        _train_head(head)


def find_head(model: nn.Module) -> RoIHead:
    """The box head of Detectron2's or torchvision's `GeneralizedRCNN`.

    Of a cascade it is the first stage. The layers of the head may be any.

    Raises:
        ValueError: a model whose RoI heads are of a kind that is not known here.
    """
    heads = getattr(model, "roi_heads", None)
    if isinstance(heads, StandardROIHeads | Res5ROIHeads):
        return Detectron2Head(model)
    if isinstance(heads, TorchvisionRoIHeads):
        return TorchvisionHead(model)
    raise ValueError(
        f"cannot probe {type(model).__name__} with roi_heads {type(heads).__name__}; known are "
        "Detectron2's StandardROIHeads, CascadeROIHeads, Res5ROIHeads and torchvision's RoIHeads, "
        "and their subclasses"
    )


def _own_batch(head: RoIHead) -> NormalizationBatch:
    layers = [m for m in head.bn_layers.values() if isinstance(m, RoIBatchNorm2d)]
    settings = list(dict.fromkeys(layer.layout.settings for layer in layers))
    if len(settings) > 1:
        raise ValueError(
            "the layers of the box head have unequal normalization batches, "
            f"{settings[0]} and {settings[1]}: pass partition="
        )
    return settings[0] if settings else NormalizationBatch("worker")


def _prepare(model: nn.Module, head: RoIHead) -> None:
    model.eval()
    if head.proposals is not None:
        head.proposals.training = True  # itself, not its layers: as many proposals as in training
    _train_head(head)


def _train_head(head: RoIHead) -> None:
    """In training mode: norm layers of any kind are; but nothing is dropped."""
    for part in head.parts:
        part.train()
    for module in head.modules:
        kind = type(module).__name__.lower()
        if "drop" in kind or kind == "stochasticdepth":
            module.eval()
