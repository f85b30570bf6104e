"""Training hooks for any Detectron2 trainer: seeds, averaged and precise statistics, FrozenBN."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from detectron2.engine import HookBase
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from ..layers import set_iteration
from ..population.averaging import average_running_statistics
from ..population.bn_layers import select_bn_layers, unwrapped
from ..population.freezing import freezable_layers, freeze_batchnorm, is_frozen
from ..population.precise_bn import check_pass, update_population_stats

logger = logging.getLogger(__name__)


class SeedIteration(HookBase):
    """Make every random number of a step a function of (seed, iteration, rank).

    A resumed run then repeats the proposal and RoI sampling, dropout and RoI shuffles of the
    uninterrupted one. The seed is the trainer's attribute `seed`, an integer from 0 up. `BNTrainer`
    has one; give another trainer one, say `trainer.seed = 7`.

    Raises:
        ValueError: before training, where the trainer has none.
    """

    def before_train(self) -> None:
        if not hasattr(self.trainer, "seed"):
            raise ValueError(
                "SeedIteration: the trainer has no seed; give it one, say trainer.seed = 7"
            )

    def before_step(self) -> None:
        trainer = self.trainer
        key = [trainer.seed, trainer.iter, comm.get_rank()]
        seed_all_rng(int(np.random.SeedSequence(key).generate_state(1)[0]))
        set_iteration(trainer.model, trainer.iter)


class AverageRunningStatistics(HookBase):
    """Make the moving averages equal on all ranks before they are evaluated or saved.

    Args:
        periods: iterations between evaluations, and between checkpoints; 0: only at the end.
    """

    def __init__(self, *periods: int) -> None:
        self._periods = periods

    def after_step(self) -> None:
        if _is_due(self.trainer, *self._periods):
            average_running_statistics(self.trainer.model)


class PreciseBN(HookBase):
    """Replace moving averages by PreciseBN's estimate before they are evaluated or saved.

    Put it before the checkpointer and the evaluation among the hooks, so that both see the same
    numbers. Layers that `FreezeBN` froze keep theirs.

    Args:
        model: to update, wrapped or not.
        build_loader: makes the batches of one pass; called anew for each pass.
        num_iters: batches per pass and rank, at least 1.
        period: iterations between passes; 0: only at the end.
        modules, roi_source, images_per_group: see `update_population_stats`.

    Raises:
        ValueError: `modules` that match no BN layer, a loader in place of `build_loader`, or a
            value that `update_population_stats` does not take.

    Example:
        >>> hook = PreciseBN(model, lambda: loader, 200, period=5000, modules=["roi_heads"])
    """

    def __init__(
        self,
        model: nn.Module,
        build_loader: Callable[[], Iterable],
        num_iters: int,
        *,
        period: int = 0,
        modules: Sequence[str] | None = None,
        roi_source: str = "train",
        images_per_group: int | None = 0,
    ) -> None:
        if not callable(build_loader):
            raise ValueError(
                f"build_loader is a {type(build_loader).__name__}; it must be a function that "
                "makes a loader, say lambda: loader"
            )
        check_pass(num_iters, roi_source, images_per_group)
        self._model, self._build_loader, self._num_iters = model, build_loader, num_iters
        self._period, self._roi_source, self._group = period, roi_source, images_per_group
        self._layers = select_bn_layers(unwrapped(model), modules)

    def after_step(self) -> None:
        if _is_due(self.trainer, self._period):
            self.run()

    def run(self) -> None:
        """Make one pass over the layers that are not frozen."""
        names = [name for name, layer in self._layers.items() if not is_frozen(layer)]
        if not names:
            logger.info("PreciseBN: all of its BN layers are frozen, so there is nothing to do")
            return
        report = update_population_stats(
            self._model,
            self._batches(),
            self._num_iters,
            modules=names,
            roi_source=self._roi_source,
            images_per_group=self._group,
        )
        logger.info("PreciseBN over %d batches per worker:\n%s", self._num_iters, report)

    def _batches(self) -> Iterator:
        # The loader is made within the pass, because that may draw random numbers.
        yield from self._build_loader()


class FreezeBN(HookBase):
    """Normalize with population statistics in training too, from an iteration on.

    Weight and bias of the layers still train (Wu & Johnson 2021, Section 4.2: FrozenBN). The
    statistics are averaged over the ranks, or come from a PreciseBN pass, at that iteration. A run
    that is resumed after it stays frozen, with the statistics of its checkpoint.

    Args:
        model: wrapped or not.
        iteration: the first one with frozen statistics.
        modules: dotted prefixes of the layers; None: every BN layer.
        precise_bn: the hook whose pass gives the statistics; None: they are averaged over ranks.

    Raises:
        ValueError: see `freeze_batchnorm`.
    """

    def __init__(
        self,
        model: nn.Module,
        iteration: int,
        *,
        modules: Sequence[str] | None = None,
        precise_bn: PreciseBN | None = None,
    ) -> None:
        freezable_layers(model, modules)  # a mistake ends the run before it trains
        self._model, self._modules = model, modules
        self._iteration, self._precise_bn = iteration, precise_bn
        self._frozen = False

    def before_step(self) -> None:
        if self._frozen or self.trainer.iter < self._iteration:
            return
        if self.trainer.iter == self._iteration:
            average_running_statistics(self.trainer.model)
            if self._precise_bn is not None:
                self._precise_bn.run()
        names = freeze_batchnorm(self._model, self._modules)
        self._frozen = True
        logger.info("BN statistics of %d layers are frozen from here on", len(names))


def _is_due(trainer: TrainerBase, *periods: int) -> bool:
    """Return whether the iteration just done is the last, or the last of a period (0: none)."""
    done = trainer.iter + 1
    return done == trainer.max_iter or any(p > 0 and done % p == 0 for p in periods)
