"""The layout of a head decides each RoI's group: it knows the RoIs per image.

The groups themselves are made by the normalization batch (`batches/`); which forward they belong to
is told by the clock (`forward_clock.py`).
"""

import contextlib
import logging
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...distributed.collectives import default_group
from ...distributed.roi_shuffle import ShufflePlan, shuffle_rois
from ..batches import RoIFacts
from ..normalization_batch import NormalizationBatch
from ..partition import Partition
from .forward_clock import Forward, ForwardClock
from .pooler_call import rois_of_call

logger = logging.getLogger(__name__)

_SHUFFLE = -1  # asks as a layer does, of which there is one in a forward


class RoILayout:
    """The RoIs of one head in the forward at hand, shared by the BN layers of that head.

    A hook on the pooler (`watch`) records how many RoIs each image has; the layers ask for the
    partition that follows from it under `settings`. The partition is made once per recording, so
    all layers of a head use the same groups. Activation checkpointing, which repeats a forward in
    the backward, gets the groups that the forward had. Each thread has a recording of its own.

    Args:
        settings: the normalization batch.
        name: of the head; heads of other names draw other shuffles.
        process_group: the workers; default: all ranks there are when a partition is made. Not
            together with `settings.shuffle_groups`, which are groups of all ranks.
    """

    def __init__(
        self,
        settings: NormalizationBatch | None = None,
        name: str = "roi_head",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.settings = settings or NormalizationBatch()
        if process_group is not None and self.settings.shuffle_groups:
            raise ValueError(
                f"{name}: process_group was given, and shuffle_groups is "
                f"{self.settings.shuffle_groups}; use one of them, a process_group of the workers "
                "that shuffle with one another or shuffle_groups of all ranks"
            )
        self._process_group = process_group
        self._clock = ForwardClock(name)
        self._head: weakref.ref[nn.Module] | None = None
        self._replaced = False
        self._handles: list[RemovableHandle] = []

    def __deepcopy__(self, memo: dict[int, object]) -> "RoILayout":
        copy = type(self)(self.settings, self.name, self._process_group)  # groups cannot be copied
        memo[id(self)] = copy
        copy._clock.__setstate__(self._clock.__getstate__())
        return copy

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_process_group": None, "_head": None, "_handles": []}

    @property
    def name(self) -> str:
        """Name of the head."""
        return self._clock.head

    @name.setter
    def name(self, name: str) -> None:
        self._clock.head = name

    @property
    def rois_per_image(self) -> tuple[int, ...] | None:
        """The latest recording of this thread, on this rank; None before the first."""
        return self._clock.latest.rois_per_image

    def belongs_to(self, head: nn.Module) -> None:
        """Remember the head, in which the layers are looked for when they are replaced."""
        self._head = weakref.ref(head)

    def layer_is_gone(self, layer: nn.BatchNorm2d) -> None:
        """Remember whether `SyncBatchNorm.convert_sync_batchnorm` has replaced a layer."""
        head = self._head() if self._head is not None else None
        if head is None or self._replaced or layer.running_mean is None:
            return
        others = (m for m in head.modules() if isinstance(m, nn.SyncBatchNorm))
        if any(other.running_mean is layer.running_mean for other in others):
            self._replaced = True
            logger.error("%s", self._complaint())

    def require_layers(self) -> None:
        """Raise RuntimeError where the head's layers were replaced by SyncBatchNorm."""
        if self._replaced:
            raise RuntimeError(self._complaint())

    def _complaint(self) -> str:
        return (
            f"{self.name}: SyncBatchNorm.convert_sync_batchnorm has replaced RoIBatchNorm2d layers "
            f"of this head, so that batch {self.settings.batch!r} has no effect; call it before "
            "convert_roi_batchnorm, or for the other parts of the model only"
        )

    def watch(self, module: nn.Module) -> RemovableHandle:
        """Record the RoIs per image at every call of `module`.

        Args:
            module: its second argument holds one item per image, whose len() is its RoIs: a pooler
                of Detectron2 (list[Boxes]) or torchvision (list[Tensor]), or a Detectron2 mask or
                keypoint head (list[Instances]).
        """
        return module.register_forward_pre_hook(self._record_call, with_kwargs=True)

    def unwatch_later(self, handle: RemovableHandle) -> None:
        """Keep the handle of a hook, which `unwatch` removes."""
        self._handles.append(handle)

    def unwatch(self) -> None:
        """Remove the hooks of `watch`."""
        while self._handles:
            self._handles.pop().remove()

    def _record_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.require_layers()
        per_image = rois_of_call(module, args, kwargs, self.name)
        counts = [len(rois) for rois in per_image]
        labels = self._clock.take_labels()
        if labels is None and self.settings.needs_labels:
            labels = [rois.gt_classes for rois in per_image if hasattr(rois, "gt_classes")]
        if labels is not None and [len(each) for each in labels] != counts:
            labels = None  # of other RoIs
        # Ranks may have unequal shares of a test set, but draw alike afterwards.
        self.record(counts, torch.cat(labels) if labels else None, draws=module.training)

    def expect_labels(self, labels: Sequence[Tensor]) -> None:
        """Tell the classes, image by image, of the RoIs that the next watched call will pool."""
        self._clock.keep_labels(labels)

    def record(
        self,
        rois_per_image: Sequence[int],
        labels: Tensor | None = None,
        *,
        draws: bool = True,
    ) -> None:
        """Begin a forward of the head with these RoIs: consecutive rows, image by image.

        Args:
            labels: (R,) int64, the class of each RoI; for normalization batches that need them.
            draws: whether a fresh shuffle is drawn, as in training.
        """
        keyed = self.settings.varies
        self._clock.begin(tuple(rois_per_image), labels, draws=draws, keyed=keyed)

    def set_iteration(self, iteration: int) -> None:
        """Make the shuffles a function of `iteration`, so that a resumed run repeats them."""
        self._clock.set_iteration(iteration)

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Restore settings, recording and position in the sequence of shuffles at the end."""
        settings = self.settings
        try:
            with self._clock.undisturbed():
                yield
        finally:
            self.settings = settings

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The workers; None where there is only this process."""
        return self._process_group or default_group()

    def generator(self) -> torch.Generator:
        """Return the generator of this forward's shuffle, a function of seed, iteration, head."""
        return self._generator(self._clock.now(keyed=False))

    def _generator(self, forward: Forward) -> torch.Generator:
        name = zlib.crc32(self.name.encode())
        key = [self.settings.seed, name, forward.iteration, forward.draw]
        state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) >> 1)

    def shuffle(self, x: Tensor) -> tuple[Tensor, ShufflePlan]:
        """Move this forward's RoIs (R, ...) between the workers; see `shuffle_rois`."""
        # Where nobody records, every shuffle begins a forward.
        forward = self._clock.now(layer=_SHUFFLE, keyed=self.settings.varies)
        span = self.settings.kind.span(self.process_group)
        return shuffle_rois(x, self._generator(forward), span)

    def partition(
        self, num_rois: int, device: torch.device, training: bool = True, layer: int | None = None
    ) -> Partition:
        """Return the groups of this process's RoIs; a collective where groups span processes.

        Args:
            num_rois: R on this rank.
            training: False: the partition at inference, `test_images_per_group` consecutive images
                of this process a group.
            layer: identity of the asking layer. Where nobody records, a layer that asks a second
                time has begun another forward.

        Raises:
            ValueError: the RoIs per image are needed and unknown, or do not add up to `num_rois`,
                or the images cannot be split into the virtual workers; or under `shuffled` two
                layers of one forward have unequal numbers of RoIs.
            RuntimeError: activation checkpointing repeats a forward, and nothing says which.
        """
        settings = self.settings
        if settings.moves_features:
            layer = None  # `shuffle` began the forward
        forward = self._clock.now(layer, draws=training, keyed=settings.varies)
        key = (num_rois, device, training, settings)
        if key not in forward.partitions:
            facts = self._facts(num_rois, device, forward)
            if training:
                self._check_shared(facts, forward)
            kind = settings.kind
            made = kind.partition(facts) if training else kind.test_partition(facts)
            forward.partitions[key] = made
        return forward.partitions[key]

    def _facts(self, num_rois: int, device: torch.device, forward: Forward) -> RoIFacts:
        return RoIFacts(
            self.name,
            num_rois,
            device,
            forward.rois_per_image,
            forward.labels,
            self.process_group,
            lambda: self._generator(forward),
        )

    def _check_shared(self, rois: RoIFacts, forward: Forward) -> None:
        """Check that all layers of a forward see the same RoIs, so that each rank draws once."""
        kind = self.settings.kind
        if not kind.draws or kind.moves_features:
            return
        if forward.rois_per_image is not None:
            rois.images()
        elif others := [key[0] for key in forward.partitions if key[2] and key[3] == self.settings]:
            raise ValueError(
                f"{self.name}: layers that share a RoILayout got {others[0]} and {rois.number} "
                "RoIs in one forward; a head that sees other RoIs needs a RoILayout of its own"
            )


class ImageLayout(RoILayout):
    """The `RoILayout` of a network that sees whole images: an image is what a RoI is in a RoI head.

    Nothing needs to be recorded: a layer's input says how many images there are.
    """

    def _facts(self, num_rois: int, device: torch.device, forward: Forward) -> RoIFacts:
        facts = super()._facts(num_rois, device, forward)
        return replace(facts, recorded=(1,) * num_rois)
