"""The interface between probes and models: a box head and the way to its RoIs.

Read it before writing an adapter for another kind of detector: a subclass of `RoIHead` in a file of
its own, and a row in `bn_detect/probes/adapters/__init__.py`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..rois import RoIs


class Outputs(NamedTuple):
    """Outputs of a box head for R RoIs.

    logits: (R, classes). deltas: (R, ...) box deltas in the head's own form.
    """

    logits: Tensor
    deltas: Tensor

    def row(self, index: int) -> "Outputs":
        """Return the outputs of one RoI."""
        return Outputs(self.logits[index : index + 1], self.deltas[index : index + 1])


class RoIHead(ABC):
    """A box head, and how to sample RoIs for it.

    Attributes:
        background: the class index of background.
        proposals: the module that makes proposals, or None.
        parts: the layers, and the predictor behind them.
        modules: all modules of `parts`.
        bn_layers: name in the model -> BatchNorm layer of any kind in `modules`.
        seed: of the samples and of the forwards.
        sigmoid: whether classes have independent probabilities, and background has no logit.
        synchronized: types of BatchNorm layers whose batch is that of all workers.
    """

    background: int
    proposals: nn.Module | None
    sigmoid: bool = False
    synchronized: tuple[type[nn.Module], ...] = (nn.SyncBatchNorm,)

    @classmethod
    @abstractmethod
    def adapt(cls, model: nn.Module) -> "RoIHead | None":
        """Return the box head of `model`, or None where it is of another kind."""

    def __init__(self, model: nn.Module, *parts: nn.Module) -> None:
        self.device = next(model.parameters()).device
        self.seed, self._samples = 0, 0
        self.parts = parts
        self.modules = [m for part in parts for m in part.modules()]
        own = set(self.modules)
        self.bn_layers = {
            name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m in own
        }

    def sample(self, batch: Any, times: int = 1) -> list[RoIs]:
        """Draw `times` independent samples of the RoIs of a batch, as in training.

        Raises:
            ValueError: the batch is not of the form that the model is trained with.
        """
        self._samples += 1
        self._seed_generators(self.seed + self._samples)
        with torch.no_grad():
            return self._sample(batch, times)

    def __call__(self, features: Tensor) -> Outputs:
        """Run the head on (R, C, h, w) features; its R RoIs are one normalization batch."""
        # A layer that draws random numbers in evaluation mode too draws the same in every forward.
        self._seed_generators(self.seed)
        return self._forward(features)

    @abstractmethod
    def forward_model(self, batch: Any) -> Any:
        """Run the whole model on a batch, in its present mode."""

    @abstractmethod
    def _sample(self, batch: Any, times: int) -> list[RoIs]:
        """Sample the RoIs of a batch, as `sample` says; each adapter implements it."""

    @abstractmethod
    def _forward(self, features: Tensor) -> Outputs:
        """Run the box head, as `__call__` says; each adapter implements it."""

    @abstractmethod
    def box_loss(self, outputs: Outputs, rois: RoIs, index: int) -> float:
        """Return the head's box loss of the foreground RoI `index`, given its row of outputs.

        It is neither weighted nor divided by the number of RoIs.
        """

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return (R,) cross-entropy in nats, summed over the classes where they are independent."""
        labels = labels.to(logits.device)
        if not self.sigmoid:
            return F.cross_entropy(logits, labels, reduction="none")
        truth = F.one_hot(labels, logits.shape[1]).to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return losses[:, : self.background].sum(1)

    def predictions(self, logits: Tensor) -> Tensor:
        """Return (R,) the most probable class, or background."""
        if self.sigmoid:  # background where no class has a probability above a half
            logits = F.pad(logits[:, : self.background], (0, 1))
        return logits.argmax(1)

    def classes(self, logits: Tensor) -> Tensor:
        """Return (R,) the most probable class, background left out."""
        background = torch.arange(logits.shape[1], device=logits.device) == self.background
        return logits.masked_fill(background, -math.inf).argmax(1)

    def _seed_generators(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":  # this device only: the state of others is not restored
            torch.cuda.default_generators[self.device.index].manual_seed(seed)


def image_of_each(per_image: Sequence[int]) -> Tensor:
    """Return (R,) the image of each RoI, from the number of RoIs per image."""
    return torch.repeat_interleave(torch.arange(len(per_image)), torch.tensor(per_image))


def describe(batch: Any) -> str:
    """Describe a batch that cannot be used, for an error message."""
    if isinstance(batch, Sequence) and len(batch) and isinstance(batch[0], dict):
        return f"dicts with {', '.join(map(repr, batch[0]))}"
    return type(batch).__name__
