"""What a PreciseBN pass must leave as it was, and what it must find."""

import random

import numpy as np
import torch
from torch import Tensor, nn

STATISTICS = ("running_mean", "running_var", "ema_weight")


class Snapshot:
    """The state of a model and of the random number generators."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors = {name: (t, t.clone()) for name, t in self._named_tensors()}
        self._rest = self._everything_else()

    def assert_unchanged(self, *, statistics: bool = True) -> None:
        """Args: statistics: running statistics too."""
        for name, tensor in self._named_tensors():
            same, value = self._tensors[name]
            assert tensor is same, f"{name} was replaced"
            if statistics or not name.endswith(STATISTICS):
                assert torch.equal(tensor, value), name
        for before, after in zip(self._rest, self._everything_else(), strict=True):
            assert before == after

    def _named_tensors(self):
        yield from self._model.named_parameters()
        yield from self._model.named_buffers()

    def _everything_else(self) -> list:
        modules = dict(self._model.named_modules())
        numpy_state = np.random.get_state()
        return [
            {name: m.training for name, m in modules.items()},
            {name: getattr(m, "momentum", None) for name, m in modules.items()},
            {name: getattr(m, "counter", None) for name, m in modules.items()},
            # In any order: those that record RoIs are taken away for inference and put back.
            {name: sorted(map(repr, m._forward_pre_hooks.values())) for name, m in modules.items()},
            {name: list(m._forward_hooks.values()) for name, m in modules.items()},
            {name: t.grad is None for name, t in self._model.named_parameters()},
            random.getstate(),
            (numpy_state[1].tolist(), *numpy_state[2:]),
            torch.get_rng_state().tolist(),
        ]


def population(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of all values of each channel, float64; batches (N, C, ...)."""
    values = torch.cat([b.double().transpose(0, 1).flatten(1) for b in batches], dim=1)
    return values.mean(1), values.var(1)


def assert_statistics(layer: nn.Module, batches: list[Tensor], *, rtol: float = 1e-5) -> None:
    """The layer holds those of the batches; `rtol` of the variance, and of sigma for the mean."""
    mean, var = population(batches)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=rtol, atol=0)
    rounding = torch.finfo(layer.running_mean.dtype).eps * mean.abs().max().item()
    atol = rtol * var.sqrt().max().item() + rounding
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=0, atol=atol)


class Recorder:
    """Keeps what every BN layer of a model is given."""

    def __init__(self, model: nn.Module) -> None:
        self.inputs: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                seen = self.inputs[name] = []
                module.register_forward_pre_hook(lambda _, args, s=seen: s.append(args[0].clone()))

    def values(self, name: str) -> int:
        """Per channel."""
        return sum(x.numel() // x.shape[1] for x in self.inputs[name])
