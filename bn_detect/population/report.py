"""The report of a PreciseBN pass: old and new statistics of each layer, and their precision."""

from dataclasses import dataclass

from tabulate import tabulate
from torch import Tensor

HEADERS = ("layer", "values", "mean shift (sigma)", "log var ratio", "std. error (sigma)")


@dataclass(frozen=True)
class LayerReport:
    """Statistics of one layer before and after a pass, over all ranks.

    Attributes:
        name: of the layer in the model, with ".levelD" where it keeps a population per level.
        samples: values per channel (RoIs or images x positions) that were pooled; with 0 or 1 the
            layer counts as not reached and keeps its statistics.
        old_mean, old_var, new_mean, new_var: (C,) float64 on the CPU.
        standard_error: (C,) of `new_mean`, in standard deviations of the population, estimated from
            the spread of the means of single batches; NaN after a single batch. 0.01 says that
            other batches would typically move an activation by 1% of its spread.
        finite: whether the pooled statistics are; a layer where they are not keeps its own.
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
        """Return whether the layer got new statistics."""
        return self.samples > 1 and self.finite

    @property
    def mean_shift(self) -> Tensor:
        """Return (C,): new minus old mean, in standard deviations of the new statistics."""
        return (self.new_mean - self.old_mean) / self.new_var.clamp(min=1e-12).sqrt()

    @property
    def log_var_ratio(self) -> Tensor:
        """Return (C,): log(new / old variance)."""
        return (self.new_var.clamp(min=1e-12) / self.old_var.clamp(min=1e-12)).log()

    def row(self) -> list[object]:
        """Return the layer's row of the table: root mean squares over the channels."""
        if not self.updated:
            return [self.name, "not reached" if self.finite else "not finite", None, None, None]
        columns = (self.mean_shift, self.log_var_ratio, self.standard_error)
        return [self.name, self.samples, *(c.square().mean().sqrt().item() for c in columns)]


@dataclass(frozen=True)
class PopulationReport:
    """The layers of one pass, in the order of the model; `print` shows a table."""

    layers: tuple[LayerReport, ...]
    iterations: int

    @property
    def not_reached(self) -> list[str]:
        """Names of the layers that got no values and keep their statistics."""
        return [layer.name for layer in self.layers if layer.samples <= 1]

    @property
    def not_finite(self) -> list[str]:
        """Names of the layers that got values that are not finite and keep their statistics."""
        return [layer.name for layer in self.layers if not layer.finite]

    def __str__(self) -> str:
        rows = [layer.row() for layer in self.layers]
        return str(tabulate(rows, headers=HEADERS, floatfmt=".3f"))
