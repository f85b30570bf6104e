"""BatchNorm of a layer that several domains share, such as a head over the levels of an FPN."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.collectives import default_group
from .grouped_batch_norm import GroupStatistics
from .level_moments import domain_batch_norm, union

DOMAIN_CHOICES = ("shared", "domain")


class DomainBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` for inputs from several domains (Wu & Johnson 2021, Section 5.3).

    Called with the inputs of all domains, or with those of one and its number: the domain is always
    explicit. `state_dict` has the keys of the parent. Of shape (C,) are, as there, `weight` and
    `bias` where `affine` is "shared", `running_mean` and `running_var` where `population` is; else
    they are (num_domains, C), a row for each domain (see `fill_domains`).

    The moving average takes one step with each call. With population "shared" it is that of the
    union of what was given, every position counting once, whatever `batch` is. Statistics that are
    not finite do not enter.

    Attributes:
        last_finite: bool tensor, whether the statistics of the last training batch were all finite.

    Args:
        num_features: C.
        num_domains: such as the levels of an FPN.
        batch: what normalizes in training: "shared", the statistics of all domains together; or
            "domain", of each by itself.
        population: of which statistics are kept for inference: "shared", one for all domains, or
            "domain", one for each.
        affine: "shared", one weight and bias for all domains, or "domain", one for each.
        synchronized: the statistics of training are those of all ranks (SyncBN); each must call the
            layer, forward and backward.
        eps, momentum, device, dtype: as in the parent.

    Raises:
        ValueError: a value that is not one of those above.
    """

    def __init__(
        self,
        num_features: int,
        num_domains: int,
        *,
        batch: str = "shared",
        population: str = "shared",
        affine: str = "shared",
        synchronized: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("batch", batch), ("population", population), ("affine", affine)):
            if value not in DOMAIN_CHOICES:
                raise ValueError(f"{name} is {value!r}; it must be 'shared' or 'domain'")
        if num_domains < 1:
            raise ValueError(f"num_domains is {num_domains}; it must be at least 1")
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        self.num_domains, self.batch, self.population = num_domains, batch, population
        self.synchronized = synchronized
        self.last_finite: Tensor | None = None
        shape = (num_domains, num_features)
        if affine == "domain":
            self.weight = nn.Parameter(self.weight.new_ones(shape))
            self.bias = nn.Parameter(self.bias.new_zeros(shape))
        if population == "domain":
            self.running_mean = self.running_mean.new_zeros(shape)
            self.running_var = self.running_var.new_ones(shape)

    def forward(
        self, x: Tensor | Sequence[Tensor], domain: int | None = None
    ) -> Tensor | list[Tensor]:
        """Normalize the inputs of all domains, or of one.

        Args:
            x: (N, C, H, W) for each domain, in their order, N may be 0; or of one domain.
            domain: in [0, num_domains), where x is one tensor. In training not with batch "shared",
                which needs all domains at once.

        Returns:
            like x.

        Raises:
            ValueError: another number of inputs than of domains, a domain that is missing or does
                not exist, inputs of other shape, or one domain where all are needed.
        """
        inputs = self.by_domain(x, domain)
        if self.training:
            if domain is not None and self.batch == "shared":
                raise ValueError(
                    "batch is 'shared': in training the inputs of all domains must come at once, "
                    f"not those of domain {domain}"
                )
            ys = self._normalize_batch(inputs)
        else:
            ys = [self._normalize_population(part, d) for d, part in inputs.items()]
        return ys if domain is None else ys[0]

    def by_domain(
        self, x: Tensor | Sequence[Tensor], domain: int | None = None
    ) -> dict[int, Tensor]:
        """The inputs of a call by domain; arguments and errors as in `forward`."""
        if (domain is None) == isinstance(x, Tensor):
            raise ValueError(
                "DomainBatchNorm2d takes the list of the inputs of all domains, or one tensor and "
                f"its domain; got {type(x).__name__} with domain {domain}"
            )
        if domain is None:
            inputs = dict(enumerate(x))
            if len(inputs) != self.num_domains:
                raise ValueError(f"{len(inputs)} inputs for {self.num_domains} domains")
        else:
            if not 0 <= domain < self.num_domains:
                raise ValueError(f"domain is {domain}; it must be in [0, {self.num_domains})")
            inputs = {domain: x}
        for part in inputs.values():
            if part.dim() < 2 or part.shape[1] != self.num_features:
                raise ValueError(
                    f"DomainBatchNorm2d expects (N, {self.num_features}, ...); "
                    f"got {tuple(part.shape)}"
                )
        return inputs

    def statistics_of(self, domain: int) -> tuple[Tensor, Tensor]:
        """The running mean and variance, (C,) each, that normalize a domain; views."""
        return _row(self.running_mean, domain), _row(self.running_var, domain)

    def _normalize_population(self, x: Tensor, domain: int) -> Tensor:
        weight, bias = _row(self.weight, domain), _row(self.bias, domain)
        return F.batch_norm(x, *self.statistics_of(domain), weight, bias, False, 0.0, self.eps)

    def _normalize_batch(self, inputs: dict[int, Tensor]) -> list[Tensor]:
        ys, stats = domain_batch_norm(
            list(inputs.values()),
            [_row(self.weight, domain) for domain in inputs],
            [_row(self.bias, domain) for domain in inputs],
            shared=self.batch == "shared",
            eps=self.eps,
            process_group=default_group() if self.synchronized else None,
        )
        self._update_running_statistics(list(inputs), stats)
        return ys

    @torch.no_grad()
    def _update_running_statistics(self, domains: list[int], stats: GroupStatistics) -> None:
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # cumulative average, as in torch
            momentum = 1.0 / float(self.num_batches_tracked)
        if self.population == "shared":
            stats, domains = union(stats), domains[:1]
        every = []
        for domain, mean, var, count in zip(domains, *stats[:2], stats.count.double(), strict=True):
            unbiased = var * (count / (count - 1).clamp(min=1))
            mean, unbiased = mean.to(self.running_mean), unbiased.to(self.running_var)
            finite = (mean.isfinite() & unbiased.isfinite()).all()
            every.append(finite)
            # A single value has no unbiased variance.
            step = torch.where(finite & (count > 1), momentum, 0.0)
            for buffer, new in zip(self.statistics_of(domain), (mean, unbiased), strict=True):
                buffer.lerp_(torch.where(finite, new, 0.0), step.to(buffer))
        self.last_finite = torch.stack(every).all()

    def extra_repr(self) -> str:
        affine = DOMAIN_CHOICES[self.weight.dim() - 1]
        return (
            f"{self.num_features}, num_domains={self.num_domains}, batch={self.batch}, "
            f"population={self.population}, affine={affine}, eps={self.eps}, "
            f"momentum={self.momentum}, synchronized={self.synchronized}"
        )


def fill_domains(model: nn.Module, state: dict[str, Any]) -> None:
    """Make a state of shared statistics or parameters fit layers that have them per domain.

    In place: where a `DomainBatchNorm2d` of `model` has (num_domains, C) and `state` (C,), each
    domain gets a copy. Nothing else is changed.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, DomainBatchNorm2d):
            continue
        prefix = f"{name}." if name else ""
        for part in ("weight", "bias", "running_mean", "running_var"):
            value, own = state.get(prefix + part), getattr(layer, part)
            if torch.is_tensor(value) and value.dim() == 1 and own.dim() == 2:
                state[prefix + part] = value.expand(len(own), -1).clone()


def _row(values: Tensor, domain: int) -> Tensor:
    """Of (num_domains, C) or (C,): what belongs to a domain."""
    return values[domain] if values.dim() == 2 else values
