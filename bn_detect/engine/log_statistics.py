"""Record how the statistics of BN layers move over training (Wu & Johnson 2021, Figure 2)."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ..layers import RoIBatchNorm2d
from ..layers.statistics import STATISTICS
from ..population.bn_layers import unwrapped
from ..population.precise_bn import update_population_stats
from ..population.undisturbed import kept_buffers
from ..reporting.drawing import new_figure, style
from ..runtime.files import write_json


class LogStatistics(HookBase):
    """Record the first channel's mean in each RoI BN layer, as three kinds of statistics have it.

    "minibatch": the mean over this rank's RoIs in the step; "population": the moving average on
    rank 0; "precise": the result of a PreciseBN pass, after which the moving average is put back.
    The means go to TensorBoard, to `bn_statistics.json` ({layer: [[iteration, minibatch,
    population, precise], ...]}) and, at the end of training, to `bn_statistics.png`.

    Args:
        model: wrapped or not.
        build_loader: makes the batches of a PreciseBN pass.
        num_iters: batches per pass and rank.
        period: iterations between records.
        images_per_group: of a pass; see `update_population_stats`.
    """

    def __init__(
        self,
        model: nn.Module,
        build_loader: Callable[[], Iterable],
        num_iters: int,
        *,
        period: int,
        output_dir: str | Path,
        images_per_group: int,
    ) -> None:
        self._model = unwrapped(model)
        self._build_loader, self._num_iters = build_loader, num_iters
        self._period, self._group = period, images_per_group
        self._folder = Path(output_dir)
        modules = self._model.named_modules()
        self._layers = {name: m for name, m in modules if isinstance(m, RoIBatchNorm2d)}
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
                values = args[0].detach()[:, 0]
                if values.numel():
                    self._seen[name] = values.float().mean().item()

            self._handles.append(layer.register_forward_pre_hook(see))

    def after_step(self) -> None:
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        population = self._means()
        with kept_buffers(self._model):
            update_population_stats(
                self._model,
                self._build_loader(),
                self._num_iters,
                modules=list(self._layers),
                images_per_group=self._group,
                progress=False,
            )
            precise = self._means()
        for name in self._layers:
            values = self._seen.pop(name, None), population.get(name), precise.get(name)
            self._records[name].append([self.trainer.iter, *values])
            if comm.is_main_process():
                for kind, value in zip(STATISTICS, values, strict=True):
                    if value is not None:
                        self.trainer.storage.put_scalar(
                            f"bn_mean/{name}/{kind}", value, smoothing_hint=False
                        )
        if comm.is_main_process():
            write_json(self._folder / "bn_statistics.json", self._records)

    def after_train(self) -> None:
        if comm.is_main_process() and any(self._records.values()):
            draw_statistics(self._records, self._folder / "bn_statistics.png")

    def _means(self) -> dict[str, float]:
        means = {name: layer.running_mean for name, layer in self._layers.items()}
        return {name: mean[0].item() for name, mean in means.items() if mean is not None}


def draw_statistics(records: dict[str, list[list]], path: Path) -> None:
    """Draw a panel per layer: the channel's mean over iterations, by kind of statistics."""
    figure = new_figure(7, 2.2 * len(records))
    axes = figure.subplots(len(records), 1, sharex=True, squeeze=False)
    for axis, (name, rows) in zip(axes[:, 0], records.items(), strict=True):
        iterations = [row[0] for row in rows]
        for column, kind in enumerate(STATISTICS, start=1):
            values = [float("nan") if row[column] is None else row[column] for row in rows]
            width = 0.6 if kind == "minibatch" else 1.5
            axis.plot(iterations, values, label=kind, marker=".", lw=width, **style(kind))
        axis.set_title(name, fontsize=8, loc="left")
        axis.set_ylabel("mean")
    axes[0, 0].legend(fontsize=8, ncols=3)
    axes[-1, 0].set_xlabel("iteration")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
