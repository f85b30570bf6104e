"""The needs of a config: what it asks of a dataset decides which of its faults matter."""

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T


@dataclass(frozen=True)
class Needs:
    """The use of one dataset. The default is a use that is not known: boxes only.

    Attributes:
        trained, evaluated: whether it is among `DATASETS.TRAIN` and `DATASETS.TEST`.
        mask_format: `INPUT.MASK_FORMAT` under `MODEL.MASK_ON`, otherwise None.
        keypoints: number of keypoints of an object under `MODEL.KEYPOINT_ON`, otherwise 0.
        sigmas: number of `TEST.KEYPOINT_OKS_SIGMAS`.
        edges: pairs (shortest, longest) of edges to which images are resized, in pixels.
    """

    trained: bool = False
    evaluated: bool = False
    mask_format: str | None = None
    keypoints: int = 0
    sigmas: int = 0
    edges: tuple[tuple[int, int], ...] = ()

    def of(self, annotation: dict[str, Any]) -> bool:
        """Return whether the masks and keypoints of an annotation are used.

        Training leaves out the annotations with iscrowd=1; evaluation reads them.
        """
        return self.evaluated or (self.trained and annotation.get("iscrowd", 0) == 0)

    def resize_fault(self, width: int, height: int) -> str | None:
        """Return what is wrong with the shape of an image: an edge of it would get no pixel."""
        for short, long in self.edges:
            resized = T.ResizeShortestEdge.get_output_shape(height, width, short, long)
            if min(resized) < 1:
                return (
                    f"is {width}x{height} px, which would be resized to {resized[1]}x{resized[0]} "
                    f"px (shortest edge {short}, longest {long}): no pixels are left; take it out "
                    "or cut it into pieces"
                )
        return None


def needs_of(cfg: CfgNode, name: str) -> Needs:
    """Return what `cfg` asks of dataset `name`."""
    head = cfg.MODEL.ROI_KEYPOINT_HEAD
    trained, evaluated = name in cfg.DATASETS.TRAIN, name in cfg.DATASETS.TEST
    pairs = [(short, cfg.INPUT.MAX_SIZE_TRAIN) for short in cfg.INPUT.MIN_SIZE_TRAIN] * trained
    pairs += [(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)] * evaluated
    return Needs(
        trained=trained,
        evaluated=evaluated,
        mask_format=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
        keypoints=head.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0,
        sigmas=len(cfg.TEST.KEYPOINT_OKS_SIGMAS),
        edges=tuple(pair for pair in pairs if pair[0] > 0),  # 0: nothing is resized
    )
