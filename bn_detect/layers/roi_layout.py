"""Which RoI belongs to which image, and so to which normalization batch."""

import contextlib
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed.collectives import all_gather_int, default_group, rank, world_size
from ..distributed.neighbours import neighbours
from ..distributed.roi_shuffle import ShufflePlan, balanced_shares, shuffle_rois, shuffled_owner
from .normalization_batch import NormalizationBatch
from .partition import Partition, by_image, runs_of_images


class RoILayout:
    """The RoIs of one head in the step at hand, shared by the BN layers of that head.

    A hook on the pooler (`watch`) records how many RoIs each image has; the layers ask for the
    partition that follows from it under `settings`. The partition is made once per recording, so
    all layers of a head use the same groups. A backward begins nothing: activation checkpointing
    repeats a forward there, with the groups it had.

    Args:
        settings: the normalization batch.
        name: of the head; heads of other names draw other shuffles.
        process_group: the workers; default: all ranks there are when a partition is made. Not
            together with `settings.shuffle_groups`, which are groups of all ranks.

    Attributes:
        rois_per_image: of the latest recording, on this rank; None before the first.
    """

    def __init__(
        self,
        settings: NormalizationBatch | None = None,
        name: str = "roi_head",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.settings = settings or NormalizationBatch()
        self.name = name
        self.rois_per_image: tuple[int, ...] | None = None
        if process_group is not None and self.settings.shuffle_groups:
            raise ValueError(
                f"{name}: process_group was given, and shuffle_groups is "
                f"{self.settings.shuffle_groups}; use one of them, a process_group of the workers "
                "that shuffle with one another or shuffle_groups of all ranks"
            )
        self._process_group = process_group
        self._iteration = 0
        self._draw = 0  # counts the forwards since `set_iteration`
        self._due = True  # the next layer that asks begins a forward
        self._forward_draw = 0  # `_draw` of the forward that has begun
        self._partition: tuple[tuple, Partition] | None = None  # of the same
        self._served: set[int] = set()

    def __deepcopy__(self, memo: dict) -> "RoILayout":
        copy = type(self)(self.settings, self.name, self._process_group)  # groups cannot be copied
        memo[id(self)] = copy
        copy.rois_per_image = self.rois_per_image
        copy._iteration, copy._draw = self._iteration, self._draw
        return copy

    def __getstate__(self) -> dict:
        forgotten = {"_process_group": None, "_partition": None, "_served": set(), "_due": True}
        return self.__dict__ | forgotten

    def watch(self, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        """Record the RoIs per image at every call of `module`.

        Args:
            module: its second argument holds one item per image, whose len() is its RoIs: a pooler
                of Detectron2 (list[Boxes]) or torchvision (list[Tensor]), or a Detectron2 mask or
                keypoint head (list[Instances]).
        """
        return module.register_forward_pre_hook(self._record_call, with_kwargs=True)

    def _record_call(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if _in_backward():
            return
        per_image = (*args, *kwargs.values())[1]
        draw = self._draw
        self.record([len(rois) for rois in per_image])
        if not module.training:  # ranks may have unequal shares of a test set, but draw alike
            self._draw = draw

    def record(self, rois_per_image: Sequence[int]) -> None:
        """Begin a forward of the head with these RoIs: consecutive rows, image by image."""
        self.rois_per_image = tuple(rois_per_image)
        self.redraw()

    def redraw(self) -> None:
        """Begin a forward of the head, with a fresh shuffle."""
        self._draw += 1
        self._due = True

    def _begin(self) -> None:
        # Not before a layer asks: a pooler that serves several heads records for all of them, while
        # the groups of the head before this one may still be needed, in the backward.
        if self._due and not _in_backward():
            self._partition = None
            self._served.clear()
            self._forward_draw = self._draw
            self._due = False

    def set_iteration(self, iteration: int) -> None:
        """Make the shuffles a function of `iteration`, so that a resumed run repeats them."""
        self._iteration, self._draw = iteration, 0
        self._due = True

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put the recording and the position in the sequence of shuffles back as they were."""
        before = self.__dict__ | {"_served": set(self._served)}
        try:
            yield
        finally:
            self.__dict__.update(before)

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The workers; None where there is only this process."""
        return self._process_group or default_group()

    def shuffle_group(self) -> dist.ProcessGroup | None:
        """The processes that shuffle with this one; None where there is only this process.

        Where not all do, the first call is a collective over all ranks (see `neighbours`).

        Raises:
            ValueError: `settings.shuffle_groups` does not divide the workers.
        """
        everyone = self.process_group
        ranks = self.settings.shuffling_processes(world_size(everyone))
        return everyone if ranks == world_size(everyone) else neighbours(ranks)

    def generator(self) -> torch.Generator:
        """The generator of this forward's shuffle: same seed, iteration and head, same state."""
        self._begin()
        name = zlib.crc32(self.name.encode())
        key = [self.settings.seed, name, self._iteration, self._forward_draw]
        state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) >> 1)

    def shuffle(self, x: Tensor) -> tuple[Tensor, ShufflePlan]:
        """Move this forward's RoIs (R, ...) between the workers; see `shuffle_rois`."""
        if self.rois_per_image is None and not _in_backward():
            self.redraw()
        return shuffle_rois(x, self.generator(), self.shuffle_group())

    def partition(
        self, num_rois: int, device: torch.device, training: bool = True, layer: int | None = None
    ) -> Partition:
        """The groups of this process's RoIs. A collective where they are `shuffled`.

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
        """
        self._begin()
        may_begin = not self.settings.moves_features  # else `shuffle` began the forward
        if self.rois_per_image is None and layer is not None and may_begin:
            begins = not self._served or layer in self._served
            if begins and not _in_backward():
                self.redraw()
                self._begin()
            self._served.add(layer)
        key = (num_rois, device, training)
        if self._partition is None or self._partition[0] != key:
            self._check_shared(num_rois, training)
            self._partition = (key, self._make(num_rois, device, training))
        return self._partition[1]

    def _check_shared(self, num_rois: int, training: bool) -> None:
        """Shuffle once per forward: a rank whose numbers happen to be equal would not join."""
        if not training or self.settings.batch != "shuffled" or self.settings.moves_features:
            return
        if self.rois_per_image is not None:
            self._images(num_rois)
        elif self._partition is not None and self._partition[0][2]:
            raise ValueError(
                f"{self.name}: layers that share a RoILayout got {self._partition[0][0]} and "
                f"{num_rois} RoIs in one forward; a head that sees other RoIs needs a RoILayout of "
                "its own"
            )

    def _make(self, num_rois: int, device: torch.device, training: bool) -> Partition:
        settings = self.settings
        if not training:
            images, size = self._images(num_rois), settings.test_images_per_group
            groups = [i // size for i in range(len(images))]
            return by_image(groups, images, -(-len(images) // size), device)
        split = settings.batch == "worker" and settings.virtual_workers > 1
        if settings.batch == "images" or split:
            images = self._images_per_virtual_worker(num_rois)
            size = max(1, images) if split else settings.images_per_group
            groups, number = runs_of_images(settings.virtual_workers, images, size)
            return by_image(groups, self._images(num_rois), number, device)
        if settings.batch == "shuffled" and not settings.moves_features:
            return self._shuffled(num_rois, device)
        span = self.process_group if settings.batch == "global" else None
        return Partition.one_group(num_rois, device, span)

    def _shuffled(self, num_rois: int, device: torch.device) -> Partition:
        virtual, size = self.settings.virtual_workers, self.settings.shuffle_groups
        if self.settings.shuffles_in_process:
            parts = [
                part * size + shuffled_owner(rois, size, self.generator())
                for part, rois in enumerate(self._rois_per_shuffle_group(num_rois))
            ]
            return Partition(torch.cat(parts), virtual, device=device)
        span = self.shuffle_group()
        counts = all_gather_int(num_rois, device, span)
        groups = world_size(span) * virtual
        start = sum(counts[: rank(span)])
        group = shuffled_owner(sum(counts), groups, self.generator())[start : start + num_rois]
        shares = balanced_shares(sum(counts), groups)
        return Partition(group, groups, span, device=device, rois=shares)

    def _rois_per_shuffle_group(self, num_rois: int) -> list[int]:
        """Of this process, which holds whole groups of workers that shuffle."""
        parts = self.settings.virtual_workers // self.settings.shuffle_groups
        if parts == 1:
            return [num_rois]
        images = self._images_per_virtual_worker(num_rois) * self.settings.shuffle_groups
        return [sum(self._images(num_rois)[i * images : (i + 1) * images]) for i in range(parts)]

    def _images_per_virtual_worker(self, num_rois: int) -> int:
        images, workers = len(self._images(num_rois)), self.settings.virtual_workers
        if images % workers:
            raise ValueError(
                f"MODEL.ROI_BN.VIRTUAL_WORKERS is {workers}, which does not divide the {images} "
                f"images of this worker's batch ({self.name})"
            )
        return images // workers

    def _images(self, num_rois: int) -> tuple[int, ...]:
        if self.rois_per_image is None:
            raise ValueError(
                f"{self.name}: this normalization batch needs to know the image of each RoI, but "
                "no pooler was watched: pass the head's pooler to convert_roi_batchnorm(..., "
                "pooler=...), or call layout.watch(pooler)"
            )
        if sum(self.rois_per_image) != num_rois:
            raise ValueError(
                f"{self.name}: the layer got {num_rois} RoIs, but its pooler made "
                f"{sum(self.rois_per_image)} in the latest call; a layer that sees other RoIs than "
                "its pooler's needs a RoILayout of its own"
            )
        return self.rois_per_image


def _in_backward() -> bool:
    """Whether a backward is running, in which activation checkpointing repeats the last forward."""
    return torch._C._current_graph_task_id() != -1
