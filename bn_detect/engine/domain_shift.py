"""A model under the population statistics of another domain (Wu & Johnson 2021, Section 5.2)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from ..population.precise_bn import update_population_stats
from ..population.report import PopulationReport
from ..population.undisturbed import kept_buffers
from .target_images import TargetImages
from .trainer import BNTrainer


@contextlib.contextmanager
def with_statistics_of(
    cfg: CfgNode, model: nn.Module, dataset_name: str, num_images: int | None, *, seed: int = 0
) -> Iterator[PopulationReport]:
    """Give `model` the population statistics of a dataset's images; restore its own at the end.

    No labels are used: the model runs as at inference, but its BN layers normalize with the
    statistics of their mini-batches. A collective.

    Args:
        cfg: `TEST.PRECISE_BN.MODULES` says which layers; see also `TargetImages`.
        dataset_name: registered, or a name that `register_derived` knows and was called with.
        num_images: over all ranks, chosen at random by `seed`; None: all.

    Raises:
        ValueError: see `TargetImages`; no BN layer in the modules.
    """
    images = TargetImages(cfg, dataset_name, num_images, seed=seed)
    with kept_buffers(model):
        yield update_population_stats(
            model,
            images,
            len(images),
            modules=cfg.TEST.PRECISE_BN.MODULES or None,
            roi_source="test",
            images_per_group=cfg.TEST.PRECISE_BN.IMAGES_PER_GROUP,
        )


def evaluate_on(
    cfg: CfgNode, model: nn.Module, dataset_name: str, output_folder: str | Path
) -> dict[str, dict[str, float]]:
    """Evaluate on a dataset; return metrics by task, on rank 0. A collective."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (dataset_name,)
    evaluator = BNTrainer.build_evaluator(cfg, dataset_name, str(output_folder))
    return BNTrainer.test(cfg, model, [evaluator])
