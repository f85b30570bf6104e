"""What a PreciseBN pass found."""

from dataclasses import dataclass

from tabulate import tabulate
from torch import Tensor


@dataclass(frozen=True)
class LayerReport:
    """What a pass found for one layer; tensors are (C,) float64 on the CPU, over all ranks.

    Attributes:
        name: of the layer in the model; with ".levelD" where it keeps a population per level.
        samples: values per channel (RoIs or images x positions) that were pooled; a layer that was
            not reached has 0 or 1 and keeps its statistics.
        standard_error: of `new_mean`, in standard deviations of the population, from how much the
            means of single batches differ; NaN after a single batch. 0.01: with other batches, an
            activation would typically move by 1% of its spread.
        finite: whether what was found is; a layer where it is not keeps its statistics.
    """

    name: str
    samples: int
    old_mean: Tensor
    old_var: Tensor
    new_mean: Tensor
    new_var: Tensor
    standard_error: Tensor
    finite: bool = True

    @property
    def updated(self) -> bool:
        return self.samples > 1 and self.finite

    @property
    def mean_shift(self) -> Tensor:
        """(C,) (new - old mean), in standard deviations of the new statistics."""
        return (self.new_mean - self.old_mean) / self.new_var.clamp(min=1e-12).sqrt()

    @property
    def log_var_ratio(self) -> Tensor:
        """(C,) log(new / old variance)."""
        return (self.new_var.clamp(min=1e-12) / self.old_var.clamp(min=1e-12)).log()


@dataclass(frozen=True)
class PopulationReport:
    """The layers of one pass, in the order of the model; `print` shows a table."""

    layers: tuple[LayerReport, ...]
    iterations: int

    @property
    def not_reached(self) -> list[str]:
        """Names of the layers that no value reached; their statistics are as before."""
        return [layer.name for layer in self.layers if layer.samples <= 1]

    @property
    def not_finite(self) -> list[str]:
        """Names of the layers that saw values that are not finite; they keep their statistics."""
        return [layer.name for layer in self.layers if not layer.finite]

    def __str__(self) -> str:
        rows = [
            [
                layer.name,
                layer.samples,
                layer.mean_shift.square().mean().sqrt().item(),
                layer.log_var_ratio.square().mean().sqrt().item(),
                layer.standard_error.square().mean().sqrt().item(),
            ]
            if layer.updated
            else [layer.name, "not reached" if layer.finite else "not finite", None, None, None]
            for layer in self.layers
        ]
        return tabulate(
            rows,
            headers=[
                "layer",
                "values",
                "mean shift (sigma)",
                "log var ratio",
                "std. error (sigma)",
            ],
            floatfmt=".3f",
        )
