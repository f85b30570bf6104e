"""Under population statistics the heads trace, script and export where their parents do.

The cases of Detectron2's tests/modeling/test_roi_heads.py with our classes, and with the stock ones
to see that it is the classes that are tested.
"""

import copy

import pytest
import torch
from detectron2.export.torchscript_patch import (
    freeze_training_mode,
    patch_builtin_len,
    patch_instances,
)
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.testing import convert_scripted_instances
from torch import Tensor, nn

from .images import Images
from .small import SIZE, assert_same_detections, build, config, randomized

FIELDS = {
    "proposal_boxes": Boxes,
    "objectness_logits": Tensor,
    "pred_boxes": Boxes,
    "scores": Tensor,
    "pred_classes": Tensor,
    "pred_masks": Tensor,
    "pred_keypoints": Tensor,
    "pred_keypoint_heatmaps": Tensor,
}
EXACT = {"rtol": 0, "atol": 0}
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch.jit is deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def _trained(kind: str, norm: str, ours: bool) -> nn.Module:
    """Heads whose statistics have moved, in eval mode; the hooks of training came and went."""
    heads = randomized(build(config(kind, norm, ours=ours, batch="images" if ours else "worker")))
    Images().train(heads)
    return heads.eval()


class _Layers(nn.Module):
    """What a mask or keypoint head computes from features."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head.layers(x)


class _OneImage(nn.Module):
    """RoI heads as a function of tensors."""

    def __init__(self, heads: nn.Module) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, features: dict[str, Tensor], boxes: Tensor) -> tuple[Tensor, ...]:
        image = Instances((SIZE, SIZE), proposal_boxes=Boxes(boxes))
        (found,), _ = self.heads(None, features, [image])
        fields = found.get_fields().values()
        return tuple(f.tensor if isinstance(f, Boxes) else f for f in fields)


def _per_roi_module(kind: str, heads: nn.Module) -> nn.Module:
    if kind in ("mask", "keypoint"):
        return _Layers(getattr(heads, f"{kind}_head"))
    return heads.res5 if kind == "c4" else heads.box_head


def _cases(*kinds: str) -> list[tuple[str, str, bool]]:
    """(kind, norm, whether with our classes)."""
    cases = [(kind, norm, ours) for kind in kinds for norm in ("", "BN") for ours in (True, False)]
    return [case for case in cases if case != ("keypoint", "BN", False)]  # stock has no norm


@torch.no_grad()
@pytest.mark.parametrize(("kind", "norm", "ours"), _cases("box", "mask", "keypoint", "c4"))
def test_heads_trace_and_export(kind, norm, ours):
    head = _per_roi_module(kind, _trained(kind, norm, ours))
    channels = 16 if kind == "c4" else 8
    example, x = torch.randn(3, channels, 4, 4), torch.randn(5, channels, 4, 4)
    expected = head(x)

    traced = torch.jit.trace(head, (example,))
    torch.testing.assert_close(traced(x), expected, **EXACT)
    rois = ({0: torch.export.Dim("rois", max=1000)},)
    exported = torch.export.export(head, (example,), dynamic_shapes=rois).module()
    torch.testing.assert_close(exported(x), expected, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "norm", "ours"), _cases("box", "c4"))
def test_box_features_script(kind, norm, ours):
    head = _per_roi_module(kind, _trained(kind, norm, ours))
    x = torch.randn(5, 16 if kind == "c4" else 8, 4, 4)
    torch.testing.assert_close(torch.jit.script(head)(x), head(x), **EXACT)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "norm", "ours"), _cases("mask", "keypoint"))
def test_mask_and_keypoint_heads_script(kind, norm, ours):
    head = getattr(_trained(kind, norm, ours), f"{kind}_head")
    x = torch.randn(4, 8, 4, 4)
    names = ["pred_boxes", "pred_classes", *(n for n in FIELDS if n.startswith(f"pred_{kind}"))]
    images = []
    for size, count in (((10, 10), 3), ((15, 15), 1)):
        corner = torch.rand(count, 2)
        boxes = Boxes(torch.cat([corner, corner + 5], dim=1))
        images.append(Instances(size, pred_boxes=boxes, pred_classes=torch.arange(count)))
    expected = head(x, copy.deepcopy(images))

    with freeze_training_mode(head), patch_instances({n: FIELDS[n] for n in names}) as scripted:
        found = torch.jit.script(head)(x, [scripted.from_instances(image) for image in images])
    found = [convert_scripted_instances(image) for image in found]
    assert expected[0].has(f"pred_{kind}s")
    assert_same_detections(found, expected, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "norm", "ours"), _cases("box", "mask", "keypoint", "c4"))
def test_roi_heads_script(kind, norm, ours):
    """Not the cascade, which Detectron2 does not script."""
    heads, images = _trained(kind, norm, ours), Images(seed=1)
    expected = images.detect(heads)
    inputs = expected[0].get_fields().keys() | {"proposal_boxes", "objectness_logits"}
    with (
        freeze_training_mode(heads),
        patch_instances({n: t for n, t in FIELDS.items() if n in inputs}) as scripted,
    ):
        found, _ = torch.jit.script(heads)(
            ImageList(torch.zeros(2, 3, SIZE, SIZE), [(SIZE, SIZE)] * 2),
            {name: images.features[name].detach() for name in heads.in_features},
            [scripted.from_instances(p) for p in images.proposals],
        )
    found = [convert_scripted_instances(image) for image in found]
    assert_same_detections(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "norm", "ours"), _cases("box", "mask", "keypoint", "cascade", "c4")
)
def test_roi_heads_trace(kind, norm, ours):
    heads = _trained(kind, norm, ours)

    def arguments(seed: int, rois: int) -> tuple[dict, Tensor]:
        images = Images([0], seed=seed, rois=rois)
        features = {name: images.features[name].detach() for name in heads.in_features}
        return features, images.proposals[0].proposal_boxes.tensor

    with patch_builtin_len():
        traced = torch.jit.trace(_OneImage(heads), arguments(1, 10), check_trace=False)
    expected = _OneImage(heads)(*arguments(2, 7))
    assert len(expected[0]) > 5
    torch.testing.assert_close(traced(*arguments(2, 7)), expected, rtol=1e-5, atol=1e-5)
