"""The trainer: Detectron2's, on GPUs or CPUs, which can be resumed to the bit."""

import logging
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..configuration import lazy_config
from ..configuration.lazy_config import is_lazy
from ..configuration.model import check_model, naming
from ..configuration.resuming import changes
from ..configuration.settings import check_settings, is_classifier
from ..data import CLASSIFICATION, BNDatasetMapper, ClassificationMapper
from ..data.metadata import EVALUATORS
from ..data.proposals import dataset_dicts, proposal_files
from ..runtime.checkpointer import AtomicCheckpointer
from ..runtime.errors import CheckpointError
from ..runtime.files import as_folder_name
from .amp import CPUAMPTrainer
from .classification_evaluator import ClassificationEvaluator
from .coco_evaluator import build_coco_evaluator
from .hooks import AverageRunningStatistics, FreezeBN, PreciseBN, SeedIteration
from .loader_processes import forking
from .log_statistics import LogStatistics
from .optimizer import build_optimizer
from .resumable_loader import ResumableTrainLoader, build_resumable_train_loader
from .step_guard import StepGuard, guarded

logger = logging.getLogger(__name__)


class BNTrainer(DefaultTrainer):
    """`DefaultTrainer` for any number of workers on CPU (gloo) or GPU (NCCL).

    It differs from its parent in this: workers may be on CPU; moving averages are equal on all
    ranks when they are evaluated or saved; checkpoints are atomic; SIGTERM, SIGHUP and Ctrl-C end a
    run with one; and a resumed run repeats, bit for bit on CPU, what the uninterrupted run does:
    images, augmentations, proposal sampling, RoI shuffles.

    Args:
        cfg: a config with the keys of `add_bn_detect_config`.
        checked: whether `check_run` passed, as in the commands; else the settings and the model are
            checked here.

    Raises:
        ValueError: a setting that cannot work, or that the model ignores.
    """

    def __init__(self, cfg: CfgNode, *, checked: bool = False) -> None:
        # The parent's __init__ wraps the model for CUDA devices only, so its steps stand here.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        if not checked:
            check_settings(cfg, comm.get_world_size())
        self.cfg = cfg
        # With SEED -1 the start is random, and kept in the checkpoint.
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()

        model = self.build_model(cfg)
        if not checked:
            check_model(cfg, model, trains=True, precise=cfg.TEST.PRECISE_BN.ENABLED)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        on_cuda = next(model.parameters()).is_cuda
        devices = {} if on_cuda else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **devices)
        amp = AMPTrainer if on_cuda else CPUAMPTrainer
        kind = amp if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = guarded(kind)(model, loader, optimizer)

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = AtomicCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self._trainer.guard = self._guard = StepGuard(model, self.checkpointer)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list:
        cfg = self.cfg
        precise_bn = self._build_precise_bn()
        # Statistics are final before the checkpoint is written, which is before the evaluation.
        all_ranks = [
            SeedIteration(),
            self._build_freeze_bn(precise_bn),
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._guard,  # before what takes long: a scheduler kills soon after its signal
            AverageRunningStatistics(cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD),
            precise_bn,
            self._build_log_statistics(),
        ]
        evaluation = hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._test)
        if not comm.is_main_process():
            return [*all_ranks, evaluation]
        checkpoints = hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
        writers = hooks.PeriodicWriter(self.build_writers(), period=20)
        return [*all_ranks, checkpoints, evaluation, writers]

    def _test(self) -> dict:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _build_precise_bn(self) -> PreciseBN | None:
        settings = self.cfg.TEST.PRECISE_BN
        if not settings.ENABLED:
            return None
        with naming("TEST.PRECISE_BN.MODULES"):
            return PreciseBN(
                self.model,
                lambda: self.build_population_loader(self.cfg, self.seed),
                settings.NUM_ITER,
                period=settings.PERIOD or self.cfg.TEST.EVAL_PERIOD,
                modules=settings.MODULES or None,
                roi_source=settings.ROI_SOURCE,
                images_per_group=settings.IMAGES_PER_GROUP,
            )

    def _build_freeze_bn(self, precise_bn: PreciseBN | None) -> FreezeBN | None:
        roi_bn = self.cfg.MODEL.ROI_BN
        if roi_bn.FREEZE_ITER < 0:
            return None
        modules = roi_bn.FREEZE_MODULES or None
        with naming("MODEL.ROI_BN.FREEZE_MODULES"):
            return FreezeBN(self.model, roi_bn.FREEZE_ITER, modules=modules, precise_bn=precise_bn)

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        if isinstance(self.data_loader, ResumableTrainLoader):
            self.data_loader.seed = self.seed
            self.data_loader.start_iteration = self.start_iter
        elif self.start_iter:
            logger.warning(
                "DATALOADER.SAMPLER_TRAIN %s begins anew: this resumed run does not repeat the "
                "order of the images, nor their augmentations.",
                self.cfg.DATALOADER.SAMPLER_TRAIN,
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.seed, "config": self.cfg.dump()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's state.

        Raises:
            CheckpointError: the checkpoint is of a run whose settings cannot change on the way.
        """
        if "config" in state_dict:
            try:
                changed = changes(state_dict["config"], self.cfg)
            except ValueError as error:
                raise CheckpointError(f"the run has other settings: {error}") from error
            if changed and comm.is_main_process():
                logger.warning("--resume: settings change on the way: %s", changed)
        super().load_state_dict(state_dict)
        self.seed = state_dict.get("seed", self.seed)

    def _build_log_statistics(self) -> LogStatistics | None:
        period = self.cfg.MODEL.ROI_BN.LOG_STATS
        if period <= 0:
            return None
        return LogStatistics(
            self.model,
            lambda: self.build_population_loader(self.cfg, self.seed),
            self.cfg.TEST.PRECISE_BN.NUM_ITER,
            period=period,
            images_per_group=self.cfg.TEST.PRECISE_BN.IMAGES_PER_GROUP,
            output_dir=self.cfg.OUTPUT_DIR,
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return lazy_config.build_model(cfg) if is_lazy(cfg) else super().build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        own = lazy_config.build_optimizer(cfg, model) if is_lazy(cfg) else None
        return own or build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        own = lazy_config.build_lr_scheduler(cfg, optimizer) if is_lazy(cfg) else None
        return own or super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_resumable_train_loader(cfg, cls.build_mapper(cfg, is_train=True))

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> Callable[[dict], dict | None]:
        """Build the mapper from dataset dicts to inputs of the model."""
        if is_lazy(cfg):
            return lazy_config.build_mapper(cfg, is_train)
        classifies = is_classifier(cfg)
        return (ClassificationMapper if classifies else BNDatasetMapper)(cfg, is_train)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Build a loader of test images: a batch is a group of images under mini-batch statistics,
        else one image, as usual.

        A classifier's batches are as large as in training, in whole groups.
        """
        roi_bn = cfg.MODEL.ROI_BN
        group = roi_bn.TEST_IMAGES_PER_GROUP if roi_bn.TEST_STATS == "minibatch" else 1
        if is_classifier(cfg):
            group *= max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size() // group)
        files = proposal_files(cfg, dataset_name)
        loader = build_detection_test_loader(
            dataset_dicts([dataset_name], files, filter_empty=False),
            mapper=cls.build_mapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            batch_size=group,
        )
        return forking(loader)

    @classmethod
    def build_population_loader(cls, cfg: CfgNode, seed: int):
        """Training images for a PreciseBN pass; the same ones for each pass of a run.

        Its batches are as large as in training, or hold TEST.PRECISE_BN.IMAGES_PER_GROUP images of
        each rank, if those are more.
        """
        cfg = cfg.clone()
        cfg.defrost()
        group = cfg.TEST.PRECISE_BN.IMAGES_PER_GROUP * comm.get_world_size()
        cfg.SOLVER.IMS_PER_BATCH = max(cfg.SOLVER.IMS_PER_BATCH, group)
        cfg.SEED = seed
        cfg.DATALOADER.NUM_WORKERS = 0  # its processes would stay, for each pass
        return cls.build_train_loader(cfg)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator for the dataset's `evaluator_type`: "coco", "lvis", "pascal_voc" or
        "classification".

        Raises:
            ValueError: another type.
        """
        folder = as_folder_name(dataset_name, "dataset")
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", folder)
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind == "coco":
            return build_coco_evaluator(dataset_name, output_folder)
        if kind == "lvis":
            return LVISEvaluator(dataset_name, output_dir=output_folder)
        if kind == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        if kind == CLASSIFICATION:
            return ClassificationEvaluator()
        raise ValueError(
            f"DATASETS.TEST: {dataset_name!r} has evaluator_type {kind!r}; supported are "
            f"{', '.join(EVALUATORS)}"
        )
