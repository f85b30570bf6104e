"""What the probes need of a model: its RoIs, and its box head as a function of their features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..rois import RoIs


class Outputs(NamedTuple):
    """Of a box head for R RoIs: logits (R, classes), and box deltas (R, ...) in the head's form."""

    logits: Tensor
    deltas: Tensor

    def row(self, index: int) -> "Outputs":
        """Those of one RoI."""
        return Outputs(self.logits[index : index + 1], self.deltas[index : index + 1])


class RoIHead(ABC):
    """A box head and the way to its RoIs.

    Attributes:
        background: the class index of background.
        proposals: the module that makes proposals, or None.
        parts: the layers, and the predictor behind them.
        modules: all modules of `parts`.
        bn_layers: name in the model -> those of `modules` that are BatchNorm of any kind.
        seed: of the samples and of the forwards.
        sigmoid: classes have independent probabilities, and background has no logit.
    """

    background: int
    proposals: nn.Module | None
    sigmoid = False

    def __init__(self, model: nn.Module, *parts: nn.Module) -> None:
        self.device = next(model.parameters()).device
        self.seed, self._samples = 0, 0
        self.parts = parts
        self.modules = [m for part in parts for m in part.modules()]
        self.bn_layers = {
            name: m
            for name, m in model.named_modules()
            if isinstance(m, _BatchNorm) and any(m is own for own in self.modules)
        }

    def sample(self, batch: Any, times: int = 1) -> list[RoIs]:
        """Independent samples of the RoIs of a batch with ground truth, drawn as in training.

        Raises:
            ValueError: the batch is not what the model is trained with.
        """
        self._samples += 1
        self._seed_generators(self.seed + self._samples)
        with torch.no_grad():
            return self._sample(batch, times)

    def __call__(self, features: Tensor) -> Outputs:
        """Run the head on (R, C, h, w) features: one forward, R RoIs that meet in it."""
        # Where a layer draws random numbers unasked, a row gets the same ones in every forward.
        self._seed_generators(self.seed)
        return self._forward(features)

    @abstractmethod
    def _sample(self, batch: Any, times: int) -> list[RoIs]:
        """See `sample`."""

    @abstractmethod
    def _forward(self, features: Tensor) -> Outputs:
        """See `__call__`."""

    @abstractmethod
    def box_loss(self, outputs: Outputs, rois: RoIs, index: int) -> float:
        """The head's box loss of RoI `index`, a foreground one, whose outputs (one row) are given.

        Without the head's weight of this loss, and without its division by the number of RoIs.
        """

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(R,) cross-entropy in nats; where classes are independent, summed over them."""
        labels = labels.to(logits.device)
        if not self.sigmoid:
            return F.cross_entropy(logits, labels, reduction="none")
        truth = F.one_hot(labels, logits.shape[1]).to(logits)
        each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return each[:, : self.background].sum(1)

    def predictions(self, logits: Tensor) -> Tensor:
        """(R,) the most probable class, or background."""
        if self.sigmoid:  # background where no class has a probability above a half
            logits = F.pad(logits[:, : self.background], (0, 1))
        return logits.argmax(1)

    def _seed_generators(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":  # of this device only: others are nobody's business
            torch.cuda.default_generators[self.device.index].manual_seed(seed)


def image_of_each(per_image: Sequence[int]) -> Tensor:
    """(R,) the image of each RoI, from the RoIs per image."""
    return torch.repeat_interleave(torch.arange(len(per_image)), torch.tensor(per_image))


def described(batch: Any) -> str:
    """What a batch that cannot be used looks like, for an error."""
    if isinstance(batch, Sequence) and len(batch) and isinstance(batch[0], dict):
        return f"dicts with {', '.join(map(repr, batch[0]))}"
    return type(batch).__name__
