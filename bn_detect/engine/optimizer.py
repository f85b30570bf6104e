"""The optimizer: Detectron2's SGD, or AdamW, with a learning rate of its own for the backbone."""

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build Detectron2's SGD or AdamW, by `SOLVER.OPTIMIZER`; see `SOLVER.BACKBONE_MULTIPLIER`."""
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: _lr_factor(name, solver.BACKBONE_MULTIPLIER),
    )
    settings = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY, "foreach": True}
    optimizer: torch.optim.Optimizer
    if solver.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(params, **settings)
    else:
        momentum = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
        optimizer = torch.optim.SGD(params, **settings, **momentum)
    return maybe_add_gradient_clipping(cfg, optimizer)


def _lr_factor(name: str, backbone: float) -> float:
    return backbone if name.removeprefix("module.").startswith("backbone.") else 1.0
