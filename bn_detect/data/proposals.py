"""Precomputed proposals (MODEL.LOAD_PROPOSALS), read without executing the file's code."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..runtime.checkpoint_file import read_checkpoint
from ..runtime.errors import CheckpointError

_OLD_NAMES = {"indexes": "ids", "scores": "objectness_logits"}  # of Detectron


def dataset_dicts(names: Sequence[str], files: Sequence[str] = (), **settings: Any) -> list[dict]:
    """Return Detectron2's dataset dicts of registered datasets.

    Args:
        names: of the datasets.
        files: a file of proposals for each dataset; none: no proposals are added.
        settings: for `get_detection_dataset_dicts`.

    Raises:
        CheckpointError: a file of proposals is damaged, might execute code, or lacks an image.
    """
    if not files:
        return get_detection_dataset_dicts(names, **settings)
    dicts = []
    for name, file in zip(names, files, strict=True):
        dicts += _with_proposals(get_detection_dataset_dicts([name], **settings), file)
    return dicts


def proposal_files(cfg: CfgNode, dataset_name: str) -> list[str]:
    """Return a list with a dataset's file of proposals; an empty one without MODEL.LOAD_PROPOSALS.

    Raises:
        ValueError: the config names no file for this dataset.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return []
    for split in ("TEST", "TRAIN"):
        files = dict(
            zip(cfg.DATASETS[split], cfg.DATASETS[f"PROPOSAL_FILES_{split}"], strict=False)
        )
        if dataset_name in files:
            return [files[dataset_name]]
    raise ValueError(
        f"MODEL.LOAD_PROPOSALS is True, but DATASETS.PROPOSAL_FILES_TEST has no file for dataset "
        f"{dataset_name!r}; name it, and the dataset in DATASETS.TEST"
    )


def _with_proposals(dicts: list[dict], file: str) -> list[dict]:
    """Give each dict its image's proposals, the best first.

    `file` is a pickle of {"ids": [...], "boxes": [(N, 4) ...], "objectness_logits": [(N,) ...]},
    and "bbox_mode" where the boxes are not XYXY_ABS.
    """
    path = PathManager.get_local_path(file)
    content = read_checkpoint(path, trust_by="there is no way to trust a file of proposals")
    try:
        content = {_OLD_NAMES.get(key, key): value for key, value in content.items()}
        mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
        place = {str(image): i for i, image in enumerate(content["ids"])}
        for record in dicts:
            i = place[str(record["image_id"])]
            boxes, logits = np.asarray(content["boxes"][i]), content["objectness_logits"][i]
            best_first = np.argsort(logits)[::-1]
            if boxes.shape != (len(best_first), 4):
                raise ValueError(f"image {record['image_id']} has boxes of shape {boxes.shape}")
            record["proposal_boxes"] = boxes[best_first]
            record["proposal_objectness_logits"] = np.asarray(logits)[best_first]
            record["proposal_bbox_mode"] = mode
    except KeyError as error:
        raise CheckpointError(f"{file}, a file of proposals, has no entry {error}") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} holds no proposals as Detectron2's: {error}") from error
    return dicts
