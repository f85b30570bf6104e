"""A head that recomputes its activations in the backward has the same gradients."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.checkpoint import checkpoint

from .images import Images, float64_mask_loss
from .small import KINDS, SETTINGS, build, config, randomized, setting_name

HEADS = ("box_head", "mask_head", "keypoint_head", "res5")


class Recomputed(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args):
        return checkpoint(self.module, *args, use_reentrant=False)


def _recompute(heads: nn.Module) -> None:
    for name in HEADS:
        head = getattr(heads, name, None)
        if isinstance(head, nn.ModuleList):
            setattr(heads, name, nn.ModuleList(map(Recomputed, head)))
        elif head is not None:
            setattr(heads, name, Recomputed(head))


def _gradients(kind: str, setting: dict, recompute: bool) -> list[torch.Tensor]:
    heads = randomized(build(config(kind, **setting))).double().train()
    parameters = [p for p in heads.parameters() if p.requires_grad]
    if recompute:
        _recompute(heads)
    gradients = []
    for seed in range(2):
        images = Images(range(4), dtype=torch.float64)
        loss = sum(images.train(heads, seed).values())
        with EventStorage(), float64_mask_loss():
            gradients += torch.autograd.grad(loss, parameters, allow_unused=True)
    return gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS, ids=setting_name)
def test_gradients(kind, setting):
    kept, recomputed = (_gradients(kind, setting, recompute) for recompute in (False, True))
    torch.testing.assert_close(recomputed, kept, rtol=1e-9, atol=1e-12)
