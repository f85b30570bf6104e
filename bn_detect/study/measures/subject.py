"""The subject of measures: a run's config and model, with its images at hand."""

from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn
from torch.utils.data import DataLoader

from ... import probes
from ...configuration.lazy_config import build_probe_mapper
from ...data import register_derived
from ...engine.trainer import BNTrainer
from ...layers import NormalizationBatch

Images = list[dict[str, Any]]


@dataclass
class Subject:
    """A run under measurement.

    Attributes:
        cfg: its config, for the processes that measure. model: with its checkpoint, in eval mode.
        folder: of the run.
        results: what was measured before, by measure.
        followed: what hooks kept during training, by measure.
    """

    cfg: CfgNode
    model: nn.Module
    folder: Path
    results: dict[str, Any]
    followed: dict[str, Any] = field(default_factory=dict)
    _images: dict[str, Images] = field(default_factory=dict)

    def images(self, name: str) -> Images:
        """All images of a dataset in its order, as the model takes them; they stay in memory."""
        if name not in self._images:
            self._images[name] = mapped_images(self.cfg, name)
        return self._images[name]

    def loader(self, split: str = "TEST", seed: int = 0) -> DataLoader[Any]:
        """Batches of as many images as all workers have, of the split's first dataset."""
        name = self.cfg.DATASETS[split][0]
        mapper = build_probe_mapper(self.cfg)
        images = self.cfg.SOLVER.IMS_PER_BATCH
        return probes.probe_loader(self.cfg, name, images, mapper=mapper, seed=seed)

    def batches(self, images: int, *loaders: Sized) -> int:
        """Return how many batches hold so many images, or how many all of these loaders have."""
        return min(-(-images // self.cfg.SOLVER.IMS_PER_BATCH), *map(len, loaders))

    @property
    def classes(self) -> list[str]:
        """Names of the classes of the first test dataset."""
        name = self.cfg.DATASETS.TEST[0]
        DatasetCatalog.get(name)  # reading it may set the names
        return list(MetadataCatalog.get(name).get("thing_classes", []))

    @property
    def partition(self) -> NormalizationBatch:
        """The normalization batch to probe: the head's own."""
        return probes.own_batch(self.model, self.cfg.MODEL.ROI_BN.VIRTUAL_WORKERS)


def mapped_images(cfg: CfgNode, name: str) -> Images:
    """Read and map all images of a dataset as for testing."""
    register_derived([name])
    mapper = BNTrainer.build_mapper(cfg, is_train=False)
    images = (mapper(d) for d in DatasetCatalog.get(name))
    return [image for image in images if image is not None]
