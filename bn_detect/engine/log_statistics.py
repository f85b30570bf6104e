"""How the statistics of BN layers move over training (Wu & Johnson 2021, Figure 2)."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from matplotlib.figure import Figure
from torch import nn

from ..layers import RoIBatchNorm2d
from ..population.precise_bn import update_population_stats
from ..runtime.files import write_json

KINDS = ("minibatch", "ema", "precise")


class LogStatistics(HookBase):
    """Record one channel's mean in each RoI BN layer, as three kinds of statistics have it.

    "minibatch": of this rank's RoIs in the step; "ema": the moving average on rank 0; "precise": of
    a PreciseBN pass, after which the moving average is put back. They go to TensorBoard, to
    `bn_statistics.json` ({layer: [[iteration, minibatch, ema, precise], ...]}) and, at the end of
    training, to `bn_statistics.png`.

    Args:
        model: wrapped or not.
        build_loader: makes the batches of a PreciseBN pass.
        num_iters: batches per pass and rank.
        period: iterations between records.
        images_per_group: of a pass; see `update_population_stats`.
        channel: which one is recorded.

    Raises:
        ValueError: the model has no RoI BN layer.
    """

    def __init__(
        self,
        model: nn.Module,
        build_loader: Callable[[], Iterable],
        num_iters: int,
        *,
        period: int,
        output_dir: str | Path,
        images_per_group: int | None = 0,
        channel: int = 0,
    ) -> None:
        self._model = getattr(model, "module", model)
        self._build_loader, self._num_iters = build_loader, num_iters
        self._period, self._channel, self._group = period, channel, images_per_group
        self._folder = Path(output_dir)
        self._layers = roi_bn_layers(self._model)
        self._records: dict[str, list[list]] = {name: [] for name in self._layers}
        self._seen: dict[str, float] = {}
        self._handles: list = []

    def before_train(self) -> None:
        path = self._folder / "bn_statistics.json"
        if self.trainer.start_iter and path.exists():  # resumed
            for name, rows in json.loads(path.read_text()).items():
                self._records[name] = [row for row in rows if row[0] < self.trainer.start_iter]

    def before_step(self) -> None:
        if (self.trainer.iter + 1) % self._period:
            return
        for name, layer in self._layers.items():

            def see(_, args: tuple, name: str = name) -> None:
                values = args[0].detach()[:, self._channel]
                if values.numel():
                    self._seen[name] = values.float().mean().item()

            self._handles.append(layer.register_forward_pre_hook(see))

    def after_step(self) -> None:
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        ema = {name: self._mean(layer) for name, layer in self._layers.items()}
        precise = self._precise()
        for name in self._layers:
            row = [self.trainer.iter, self._seen.pop(name, None), ema[name], precise[name]]
            self._records[name].append(row)
            if comm.is_main_process():
                for kind, value in zip(KINDS, row[1:], strict=True):
                    if value is not None:
                        self.trainer.storage.put_scalar(
                            f"bn_mean/{name}/{kind}", value, smoothing_hint=False
                        )
        if comm.is_main_process():
            write_json(self._folder / "bn_statistics.json", self._records)

    def after_train(self) -> None:
        if comm.is_main_process() and any(self._records.values()):
            draw_statistics(self._records, self._folder / "bn_statistics.png")

    def _precise(self) -> dict[str, float]:
        before = {
            buffer: buffer.clone() for layer in self._layers.values() for buffer in layer.buffers()
        }
        try:
            update_population_stats(
                self._model,
                self._build_loader(),
                self._num_iters,
                modules=list(self._layers),
                images_per_group=self._group,
                progress=False,
            )
            return {name: self._mean(layer) for name, layer in self._layers.items()}
        finally:
            with torch.no_grad():
                for buffer, value in before.items():
                    buffer.copy_(value)

    def _mean(self, layer: RoIBatchNorm2d) -> float:
        return layer.running_mean[self._channel].item()


def roi_bn_layers(model: nn.Module) -> dict[str, RoIBatchNorm2d]:
    """Those whose statistics are recorded, by name; raises ValueError where there is none."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, RoIBatchNorm2d)}
    if not layers:
        raise ValueError("MODEL.ROI_BN.LOG_STATS is set, but no RoI head has BatchNorm")
    return layers


def draw_statistics(records: dict[str, list[list]], path: Path) -> None:
    """One panel per layer: the channel's mean over iterations, by kind of statistics."""
    figure = Figure(figsize=(7, 2.2 * len(records)))  # not pyplot: no window, no backend chosen
    axes = figure.subplots(len(records), 1, sharex=True, squeeze=False)
    styles = {"minibatch": {"lw": 0.6, "alpha": 0.6}, "ema": {"lw": 1.5}, "precise": {"lw": 1.5}}
    for axis, (name, rows) in zip(axes[:, 0], records.items(), strict=True):
        iterations = [row[0] for row in rows]
        for column, kind in enumerate(KINDS, start=1):
            values = [float("nan") if row[column] is None else row[column] for row in rows]
            axis.plot(iterations, values, label=kind, marker=".", **styles[kind])
        axis.set_title(name, fontsize=8, loc="left")
        axis.set_ylabel("mean")
    axes[0, 0].legend(fontsize=8, ncols=3)
    axes[-1, 0].set_xlabel("iteration")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
