"""PreciseBN: its time against a forward-only pass and fvcore's, and its error against samples."""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats
from tabulate import tabulate
from torch import Tensor, nn

from ..population.bn_layers import select_bn_layers
from ..population.moments import Moments, moments
from ..population.precise_bn import update_population_stats
from ..reporting.drawing import COLOURS, new_figure
from .measuring import interleaved, ratios, spread, threads
from .subjects import detector_batch, generated_images, neon_detector, resnet18

HELP = "time and error of PreciseBN"
ARMS = ("forward only", "ours", "fvcore")
EMA_MOMENTUM = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repetitions", type=int, default=15, help="of each pass whose time is taken")
    add("--batches", type=int, default=10, help="per pass whose time is taken")
    add("--samples", type=int, default=10_000, help="the most samples whose error is measured")
    add("--threads", type=int, default=1, help="of PyTorch")


def run(args: argparse.Namespace) -> tuple[str, dict]:
    """Measure, and return the tables and all numbers."""
    with threads(args.threads):
        times = {
            "ResNet-18, 4 images of 128 x 128": _time(
                resnet18(), lambda i: generated_images(4, 128, i), 4, args
            ),
            "NEON detector, 4 images of 200 x 200": _time(
                neon_detector(), lambda i: detector_batch(4, 200, i), 4, args
            ),
        }
        errors = [_error_of_backbone(args.samples), _error_of_heads(args.samples)]
    picture = args.output / "precise_bn_samples.png"
    _draw(errors, picture)
    result = {
        "threads": args.threads,
        "ms_per_image": times,
        "errors": [asdict(error) for error in errors],
    }
    text = f"{_time_table(times)}\n\n{_error_table(errors)}\n\nThe picture is {picture}."
    return text, result


def _time(
    model: nn.Module, batch: Callable[[int], object], images: int, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Milliseconds per image of each arm in each repetition, on the same batches."""
    batches = [batch(i) for i in range(args.batches)]
    model.train()

    @torch.no_grad()
    def forward_only() -> None:
        for each in batches:
            with EventStorage(1):
                model(each)

    def fvcore() -> None:
        with EventStorage(1):
            update_bn_stats(model, batches, len(batches))

    def ours() -> None:
        update_population_stats(model, batches, len(batches), progress=False)

    def seeded(call: Callable[[], None]) -> Callable[[], None]:
        def seeded_call() -> None:
            torch.manual_seed(0)  # the same RoIs for all
            call()

        return seeded_call

    arms = dict(zip(ARMS, map(seeded, (forward_only, ours, fvcore)), strict=True))
    seconds = interleaved(arms, args.repetitions)
    per_image = 1000 / (images * len(batches))
    return {name: [s * per_image for s in values] for name, values in seconds.items()}


def _time_table(times: dict[str, dict[str, list[float]]]) -> str:
    rows = []
    for model, arms in times.items():
        for name, values in arms.items():
            relative = spread(ratios(values, arms[ARMS[0]])) if name != ARMS[0] else "1"
            rows.append([model, name, spread(values), relative])
    headers = ["model, batch", "pass", "ms per image (quartiles)", "ratio to forward only"]
    return tabulate(rows, headers=headers, tablefmt="github")


@dataclass(frozen=True)
class Errors:
    """Measure how far statistics of few samples are from those of many, rms over channels.

    Attributes:
        unit: what a sample is.
        samples: numbers of them.
        mean, worst_mean: of the mean in standard deviations; over all layers, and of the worst.
        log_var: of the logarithm of the variance, over all layers.
        ema: `mean` of a moving average over the same batches, at its end.
        reference: the samples that "many" are.
    """

    what: str
    unit: str
    samples: list[int]
    mean: list[float]
    worst_mean: list[float]
    log_var: list[float]
    ema: float
    reference: int


def _error_of_backbone(samples: int, images: int = 10) -> Errors:
    torch.manual_seed(0)
    model = resnet18()
    batches = (generated_images(images, 32, i) for i in range(-(-2 * samples // images)))
    return _errors("ResNet-18, batches of 10 images", "images", model, batches, images, samples)


def _error_of_heads(samples: int, rois: int = 16) -> Errors:
    torch.manual_seed(0)
    model = neon_detector(rois)
    batches = (detector_batch(1, 96, i) for i in range(-(-2 * samples // rois)))
    return _errors("box head, 16 RoIs an image", "RoIs", model, batches, rois, samples)


def _errors(
    what: str, unit: str, model: nn.Module, batches: Iterator, per_batch: int, most: int
) -> Errors:
    """Errors of random subsets of the batches against all of them, twice `most` samples."""
    layers = _record(model, batches)
    count = len(next(iter(layers.values())))
    sizes = [s for s in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000) if s <= most]
    sizes = sorted({max(1, round(s / per_batch)) for s in sizes})
    g = torch.Generator().manual_seed(0)
    draws = {
        size: [torch.randperm(count, generator=g)[:size].tolist() for _ in range(20)]
        for size in sizes
    }
    # Of each layer; those of `mean` and `log_var` for each size.
    mean: list[list[float]] = []
    log_var: list[list[float]] = []
    ema = []
    for calls in layers.values():
        true_mean, true_var = _pooled(calls)
        mean.append([])
        log_var.append([])
        for size in sizes:
            found = [_pooled([calls[i] for i in draw]) for draw in draws[size]]
            mean[-1].append(_rms([(m - true_mean) / true_var.sqrt() for m, _ in found]))
            log_var[-1].append(_rms([(v / true_var).log() for _, v in found]))
        ema.append(_rms([(_moving_average(calls) - true_mean) / true_var.sqrt()]))
    return Errors(
        what,
        unit,
        [size * per_batch for size in sizes],
        [_rms_of(values) for values in zip(*mean, strict=True)],
        [max(values) for values in zip(*mean, strict=True)],
        [_rms_of(values) for values in zip(*log_var, strict=True)],
        _rms_of(ema),
        count * per_batch,
    )


Call = tuple[int, Tensor, Tensor]  # count, mean, M2


@torch.no_grad()
def _record(model: nn.Module, batches: Iterator) -> dict[str, list[Call]]:
    """The moments of every batch in every layer, in training mode."""
    layers = select_bn_layers(model.train(), None)
    calls: dict[str, list[Call]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, args, seen=calls[name]: seen.append(
                (args[0][:, 0].numel(), *moments(args[0]))
            )
        )
    for batch in batches:
        with EventStorage(1):
            model(batch)
    return calls


def _pooled(calls: list[Call]) -> tuple[Tensor, Tensor]:
    pooled = Moments(len(calls[0][1]), calls[0][1].device)
    for call in calls:
        pooled.merge(*call)
    return pooled.mean, pooled.m2 / (pooled.count - 1)


def _moving_average(calls: list[Call]) -> Tensor:
    average = calls[0][1].clone()
    for _, mean, _ in calls:
        average.lerp_(mean, EMA_MOMENTUM)
    return average


def _rms(values: list[Tensor]) -> float:
    return torch.stack(values).square().mean().sqrt().item()


def _rms_of(values: list[float] | tuple[float, ...]) -> float:
    return statistics.fmean(v * v for v in values) ** 0.5


def _error_table(errors: list[Errors]) -> str:
    rows = [
        [e.what, f"{samples} {e.unit}", *row]
        for e in errors
        for samples, *row in zip(e.samples, e.mean, e.worst_mean, e.log_var, strict=True)
    ]
    rows += [[e.what, "moving average", e.ema] for e in errors]
    headers = ["statistics of", "from", "error of the mean (sigma)", "worst layer", "log variance"]
    return tabulate(rows, headers=headers, tablefmt="github", floatfmt=".4f", missingval="")


def _draw(errors: list[Errors], path: Path) -> None:
    figure = new_figure(5 * len(errors), 4)
    for axis, e in zip(figure.subplots(1, len(errors), squeeze=False)[0], errors, strict=True):
        axis.loglog(e.samples, e.mean, "o-", color=COLOURS[0], label="mean, in sigma")
        axis.loglog(e.samples, e.worst_mean, "o:", color=COLOURS[0], label="mean, worst layer")
        axis.loglog(e.samples, e.log_var, "s-", color=COLOURS[1], label="log variance")
        root = [e.mean[0] * (e.samples[0] / n) ** 0.5 for n in e.samples]
        axis.loglog(e.samples, root, "k--", lw=0.8, label="1 / sqrt(samples)")
        axis.axhline(e.ema, color="gray", lw=0.8, label="mean, moving average")
        axis.set_xlabel(e.unit)
        axis.set_title(f"{e.what}\nagainst {e.reference}", fontsize=9)
        axis.legend(fontsize=7)
    figure.axes[0].set_ylabel("error, rms over channels")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
