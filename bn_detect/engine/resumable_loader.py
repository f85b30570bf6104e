"""A training loader whose batches are a function of (seed, rank, iteration).

A resumed run therefore sees the images, and the augmentations of each, that the uninterrupted run
would have seen. Detectron2's own loader always starts with the first image.
"""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..configuration.settings import RESUMABLE_SAMPLERS
from ..data.proposals import dataset_dicts
from .loader_processes import context, forking
from .same_class_sampler import SameClassSampler

Sample = tuple[int, int, int]  # iteration, position in this rank's stream, index in the dataset


class ResumableTrainLoader:
    """Endless batches (list[dict], mapped) of one rank, from `start_iteration` on.

    Args:
        dataset_dicts: Detectron2's standard dataset dicts.
        mapper: from a dataset dict to what the model takes, or None to skip the image. The dict
            also has "step", (seed, iteration): the same for all images of a step, on all ranks.
        indices: from `seed` to this rank's endless stream of indices into `dataset_dicts`.
        batch_size: images per batch on this rank.
        aspect_ratio_grouping: batches hold only wide or only tall images, as in Detectron2; grouped
            by the size in the dataset dict, before anything is read.
        num_workers: data loading processes.

    Attributes:
        seed, start_iteration: may be set until the first batch is drawn.
    """

    def __init__(
        self,
        dataset_dicts: Sequence[dict],
        mapper: Callable[[dict], dict | None],
        indices: Callable[..., Iterable[int]],
        batch_size: int,
        *,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        self._tall = [aspect_ratio_grouping and d["width"] <= d["height"] for d in dataset_dicts]
        self._dataset = DatasetFromList(list(dataset_dicts), copy=False)
        self._mapper, self._indices = mapper, indices
        self._batch_size, self._num_workers = batch_size, num_workers
        self.seed = seed
        self.start_iteration = 0

    def __iter__(self) -> Iterator[list[dict]]:
        loader = DataLoader(
            _SeededSamples(self._dataset, self._mapper, self.seed),
            batch_sampler=self._batches(),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            multiprocessing_context=context(self._num_workers),
            worker_init_fn=_obey_only_the_parent,
            generator=torch.Generator(),  # else it draws from the one that seeds the first step
        )
        return iter(loader)

    def _batches(self) -> Iterator[list[Sample]]:
        buckets: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        iteration = 0
        for position, index in enumerate(self._indices(seed=self.seed)):
            bucket = buckets[self._tall[index]]
            bucket.append((position, index))
            if len(bucket) == self._batch_size:
                if iteration >= self.start_iteration:
                    yield [(iteration, *sample) for sample in bucket]
                bucket.clear()
                iteration += 1


class _SeededSamples(Dataset):
    """Map a sample with random numbers that depend on the seed, the rank and its position."""

    def __init__(self, dataset: Sequence[dict], mapper: Callable, seed: int) -> None:
        self._dataset, self._mapper = dataset, mapper
        self._seed, self._rank = seed, comm.get_rank()

    def __getitems__(self, samples: list[Sample]) -> list[dict]:
        """Return a batch; all of it in one call, since saving the generators' states is slow."""
        with _kept_random_numbers():
            return [self._mapped(*sample) for sample in samples]

    def _mapped(self, iteration: int, position: int, index: int) -> dict:
        _seed_generators([self._seed, self._rank, position])
        for further in range(len(self._dataset)):
            image = self._dataset[(index + further) % len(self._dataset)]
            mapped = self._mapper({**image, "step": (self._seed, iteration)})
            if mapped is not None:
                return mapped
        raise ValueError("the dataset mapper returned None for every image of the training set")


def _obey_only_the_parent(_) -> None:
    """Ignore the signals of a user or scheduler: the trainer ends its iteration, and then this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end_when_the_parent_says_so() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=end_when_the_parent_says_so, daemon=True).start()


@contextlib.contextmanager
def _kept_random_numbers() -> Iterator[None]:
    """Restore the states of Python's, NumPy's and PyTorch's (CPU) generators at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_generators(key: Sequence[int]) -> None:
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def build_resumable_train_loader(cfg: CfgNode, mapper: Callable):
    """Build the loader that `cfg` asks for, which a resumed run can continue.

    Args:
        cfg: `DATASETS`, `DATALOADER`, `INPUT` and `SOLVER.IMS_PER_BATCH` (over all ranks).
        mapper: from a dataset dict to what the model takes.

    Returns:
        `ResumableTrainLoader`; for a `DATALOADER.SAMPLER_TRAIN` other than "TrainingSampler" and
        "RepeatFactorTrainingSampler", Detectron2's own loader.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    dicts = dataset_dicts(
        cfg.DATASETS.TRAIN,
        cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else (),
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints,
    )
    if name not in RESUMABLE_SAMPLERS:
        return forking(build_detection_train_loader(cfg, mapper=mapper, dataset=dicts))
    batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    indices: Callable[..., Iterable[int]]
    if cfg.DATALOADER.CLASSES_PER_WORKER_BATCH:
        indices = partial(
            SameClassSampler,
            [d["label"] for d in dicts],
            cfg.DATALOADER.CLASSES_PER_WORKER_BATCH,
            batch_size // cfg.MODEL.ROI_BN.VIRTUAL_WORKERS,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            virtual_workers=cfg.MODEL.ROI_BN.VIRTUAL_WORKERS,
        )
    elif name == "TrainingSampler":
        indices = partial(TrainingSampler, len(dicts))
    else:
        repeat_factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        indices = partial(RepeatFactorTrainingSampler, repeat_factors)
    return ResumableTrainLoader(
        dicts,
        mapper,
        indices,
        batch_size,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING and "width" in dicts[0],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=max(cfg.SEED, 0),
    )
