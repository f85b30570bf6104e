"""Trainers of a tiny detector in the test's own process."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from bn_detect.configuration.keys import default_config
from bn_detect.engine import BNTrainer

from .train_net import REPOSITORY, TINY


def config(datasets: Path, output: Path, **keys) -> CfgNode:
    """The settings of `Command`, one process; `keys` with __ for the dots, values as they are."""
    for split in ("train", "val"):
        name, folder = f"in_process_{split}", datasets / "coco"
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        annotations = folder / f"annotations/instances_{split}2017.json"
        register_coco_instances(name, {}, str(annotations), str(folder / f"{split}2017"))
    cfg = default_config()
    cfg.merge_from_file(str(REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml"))
    settings = TINY | {"DATASETS.TRAIN": "('in_process_train',)", "OUTPUT_DIR": str(output)}
    settings |= {"SOLVER.IMS_PER_BATCH": 2, "SOLVER.CHECKPOINT_PERIOD": 100}
    settings |= {key.replace("__", "."): value for key, value in keys.items()}
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    return cfg


class Trainer(BNTrainer):
    """Keeps what the BN layers hold when the model is evaluated, instead of evaluating it."""

    def __init__(self, cfg: CfgNode) -> None:
        self.evaluated: dict[int, dict[str, torch.Tensor]] = {}  # by iterations done
        super().__init__(cfg)

    def _test(self) -> dict:
        self.model.eval()
        self.evaluated[min(self.iter + 1, self.max_iter)] = statistics(self.model.state_dict())
        self.model.train()  # as Detectron2's inference_context does
        return {}


def statistics(state: dict) -> dict[str, torch.Tensor]:
    """The running statistics of a state_dict, copied."""
    return {k: v.clone() for k, v in state.items() if "running_" in k}


def trained(cfg: CfgNode, *hooks, resume_after: int | None = None) -> Trainer:
    """Train to the end; from the checkpoint after so many iterations."""
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    if resume_after is not None and comm.is_main_process():
        (folder / "last_checkpoint").write_text(f"model_{resume_after - 1:07d}.pth")
    comm.synchronize()
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume_after is not None)
    assert trainer.start_iter == (resume_after or 0)
    trainer.register_hooks(list(hooks))
    trainer.train()
    return trainer


def checkpoint(folder: Path, name: str = "model_final") -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{name}.pth", weights_only=False)["model"]


def assert_same_bits(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    different = [k for k, v in theirs.items() if not torch.equal(v, ours[k])]
    assert different == []
