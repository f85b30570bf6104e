"""Detectors whose RoI features are known: an image is a grid of cells, and each cell is a RoI.

The backbone is the identity, and the proposals are the cells, so that a RoI's features are what was
painted into its cell.
"""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, GeneralizedRCNN, build_roi_heads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from tests.modeling.small import config

CHANNELS, GRID, CELL = 6, 4, 4
SIZE = GRID * CELL  # of an image, in pixels
OBJECTS, ROIS = 6, 12  # foreground and all RoIs that are sampled of an image's 16 cells
CLASSES = 4


class _Identity(Backbone):
    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"p0": ShapeSpec(channels=CHANNELS, stride=1)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"p0": x}


def detector(norm: str = "BN", classes: int = CLASSES, seed: int = 0, **roi_bn) -> GeneralizedRCNN:
    """With a box head of one convolution and one fc layer.

    Args:
        norm: of the box head. roi_bn: keys of MODEL.ROI_BN, in lower case.
    """
    cfg = config("box", norm, **roi_bn)
    m = cfg.MODEL
    m.ROI_HEADS.IN_FEATURES, m.ROI_HEADS.NUM_CLASSES = ["p0"], classes
    m.ROI_HEADS.BATCH_SIZE_PER_IMAGE, m.ROI_HEADS.POSITIVE_FRACTION = ROIS, OBJECTS / ROIS
    m.ROI_HEADS.PROPOSAL_APPEND_GT = False
    m.ROI_BOX_HEAD.NUM_CONV, m.ROI_BOX_HEAD.POOLER_RESOLUTION = 1, 2
    torch.manual_seed(seed)
    return GeneralizedRCNN(
        backbone=_Identity(),
        proposal_generator=None,
        roi_heads=build_roi_heads(cfg, _Identity().output_shape()),
        pixel_mean=[0.0] * CHANNELS,
        pixel_std=[1.0] * CHANNELS,
    )


def image(cells: Tensor, classes: Tensor) -> dict:
    """The input of one image.

    Args:
        cells: (GRID * GRID, CHANNELS) what its cells are painted with.
        classes: (O,) of the objects, which are in the first cells.
    """
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    corners = CELL * torch.stack([columns.flatten(), rows.flatten()], dim=1).float()
    boxes = torch.cat([corners, corners + CELL], dim=1)
    pixels = cells.t().reshape(CHANNELS, GRID, GRID)
    return {
        "image": pixels.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2),
        "height": 2 * SIZE,
        "width": 3 * SIZE,
        "file_name": f"{int(1e6 * cells.double().sum().abs())}.png",
        "proposals": Instances(
            (SIZE, SIZE), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes))
        ),
        "instances": Instances(
            (SIZE, SIZE), gt_boxes=Boxes(boxes[: len(classes)]), gt_classes=classes
        ),
    }


def coloured_images(
    count: int,
    generator: torch.Generator,
    *,
    correlation: float,
    own_evidence: float,
    cast: float = 0.0,
    numbers: tuple[int, ...] = (),
) -> list[dict]:
    """Objects that show their class's colour with probability `own_evidence`, else any colour.

    Args:
        correlation: the probability that all objects of an image are of one class.
        cast: standard deviation of a shift of each image's colours, which tells nothing.
        numbers: how many objects images of each class have; () gives all of them 6.
    """
    images = []
    for _ in range(count):
        classes = torch.randint(CLASSES, (OBJECTS,), generator=generator)
        if torch.rand((), generator=generator) < correlation:
            classes[:] = classes[0].clone()
        colour = torch.randint(CLASSES, (OBJECTS,), generator=generator)
        shows = torch.rand(OBJECTS, generator=generator) < own_evidence
        colour[shows] = classes[shows]
        cells = 0.3 * torch.randn(GRID * GRID, CHANNELS, generator=generator)
        cells[torch.arange(OBJECTS), colour] += 2
        cells[:OBJECTS, CLASSES] += 2  # an object is easily told from background
        if cast:
            cells[:, :CLASSES] += cast * torch.randn(CLASSES, generator=generator)
        if numbers:
            count_here = numbers[classes[0]]
            cells[count_here:OBJECTS] = 0.3 * torch.randn(
                OBJECTS - count_here, CHANNELS, generator=generator
            )
            classes = classes[:count_here]
        images.append(image(cells, classes))
    return images


def batches(count: int, images: int, seed: int, **dials) -> list[list[dict]]:
    generator = torch.Generator().manual_seed(seed)
    return [coloured_images(images, generator, **dials) for _ in range(count)]


def train(model: nn.Module, iterations: int, images: int = 8, seed: int = 0, **dials) -> nn.Module:
    """On fresh images in every iteration."""
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(1000 + seed)
    torch.manual_seed(seed)
    model.train()
    with EventStorage():
        for _ in range(iterations):
            losses = model(coloured_images(images, generator, **dials))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    return model


class ReadsTheBatch(nn.Module):
    """A box head whose only feature is own * (mean of the RoI) + batch * (mean of all RoIs)."""

    def __init__(self, own: float, batch: float) -> None:
        super().__init__()
        self.own, self.batch = own, batch

    def forward(self, x: Tensor) -> Tensor:
        return (self.own * x.mean((1, 2, 3)) + self.batch * x.mean())[:, None]


@torch.no_grad()
def batch_reader(own: float, batch: float) -> GeneralizedRCNN:
    """One class; logits z and -z of foreground and background, z being the head's feature."""
    model = detector(classes=1)
    model.roi_heads.box_head = ReadsTheBatch(own, batch)
    predictor = model.roi_heads.box_predictor
    predictor.cls_score = nn.Linear(1, 2, bias=False)
    predictor.cls_score.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    predictor.bbox_pred = nn.Linear(1, 4, bias=False)
    predictor.bbox_pred.weight.fill_(1)
    return model.double()
