"""A trained head gives the same detections with plain layers, fused, exported, and in ONNX."""

import warnings
from collections.abc import Callable

import onnxruntime
import pytest
import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from bn_detect.layers import revert_roi_batchnorm

from ..probes.torchvision_models import torchvision_batch, torchvision_detector
from .images import Images
from .small import assert_same_detections, build, config, randomized

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
DETECTORS = ("detectron2", "torchvision")


class Detector:
    """A detector whose box head is ours and was trained for a step.

    Attributes:
        heads: the RoI heads; `heads.box_head` takes RoI features.
        detect: detections of images, as `Instances`, by the heads as they are now.
    """

    def __init__(self, kind: str) -> None:
        if kind == "detectron2":
            images = Images()
            self.heads = randomized(build(config("box", "BN", batch="images")))
            images.train(self.heads)
            self.detect: Callable[[], list[Instances]] = lambda: images.detect(self.heads)
        else:
            model = torchvision_detector(converted=True)
            self.heads, model.roi_heads.score_thresh = model.roi_heads, 0.0
            model.train()(*torchvision_batch(0, 2))
            self.detect = lambda: _detections(model)
        self.heads.eval()


@torch.no_grad()
def _detections(model: nn.Module) -> list[Instances]:
    images, _ = torchvision_batch(1, 2)
    return [Instances((1, 1), **fields) for fields in model.eval()(images)]


class Recorded(nn.Module):
    """Runs the function it is given in place of a head, and keeps how often."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, features: Tensor) -> Tensor:
        self.calls += 1
        return self.function(features)


@pytest.fixture(params=DETECTORS)
def detector(request) -> Detector:
    return Detector(request.param)


def _features(detector: Detector) -> Tensor:
    """An example of what the box head takes."""
    seen: list[Tensor] = []
    hook = detector.heads.box_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    detector.detect()
    hook.remove()
    return seen[0]


def _conv_layers(head: nn.Module) -> list[tuple[nn.Module, str, nn.Module, str]]:
    """(module of the convolution, its name, module of its BatchNorm, its name), in order."""
    found = []
    for module in head.modules():
        children = dict(module.named_children())
        names = list(children)
        for name, child in children.items():
            norm = getattr(child, "norm", None)  # as in Detectron2's Conv2d
            following = names[names.index(name) + 1 :][:1]
            if isinstance(norm, nn.BatchNorm2d):
                found.append((module, name, child, "norm"))
            elif following and isinstance(children[following[0]], nn.BatchNorm2d):
                found.append((module, name, module, following[0]))
    return found


def test_reverted_layers_are_folded_into_the_convolutions(detector):
    expected = detector.detect()
    head = revert_roi_batchnorm(detector.heads.box_head)
    layers = _conv_layers(head)
    for conv_at, conv, norm_at, norm in layers:
        plain, bn = getattr(conv_at, conv), getattr(norm_at, norm)
        if norm_at is plain:
            plain.norm = None
        else:
            setattr(norm_at, norm, nn.Identity())
        setattr(conv_at, conv, torch.nn.utils.fuse_conv_bn_eval(plain, bn))
    assert layers and not any(isinstance(m, nn.BatchNorm2d) for m in head.modules())
    assert_same_detections(detector.detect(), expected, **CLOSE)


def test_reverted_layers_are_fused_by_quantization():
    detector = Detector("torchvision")
    expected = detector.detect()
    head = revert_roi_batchnorm(detector.heads.box_head)
    names = [[f"{i}.{part}" for part in range(3)] for i in range(4)]  # convolution, norm, ReLU
    detector.heads.box_head = torch.ao.quantization.fuse_modules(head, names)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.heads.modules())
    assert_same_detections(detector.detect(), expected, **CLOSE)


@pytest.mark.parametrize("reverted", [False, True])
@pytest.mark.parametrize("how", ["torch.export", "ONNX"])
def test_an_exported_head_gives_the_same_detections(detector, how, reverted, tmp_path):
    expected, example = detector.detect(), _features(detector)
    head = detector.heads.box_head
    if reverted:
        revert_roi_batchnorm(head)
    function = (_exported if how == "torch.export" else _in_onnx)(head, example[:3])
    detector.heads.box_head = Recorded(function)
    assert_same_detections(detector.detect(), expected, **CLOSE)
    assert detector.heads.box_head.calls == 1 and len(expected[0]) > 0


def _shapes() -> tuple:
    return ({0: torch.export.Dim("rois", max=10000)},)


def _exported(head: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    exported = torch.export.export(head, (example,), dynamic_shapes=_shapes()).module()
    return lambda x: exported(x)  # hidden from train() and eval(), which it refuses


def _in_onnx(head: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            head, (example,), dynamo=True, dynamic_shapes=_shapes(), verbose=False
        )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (name,) = (value.name for value in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])
