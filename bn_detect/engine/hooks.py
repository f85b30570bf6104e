"""Training hooks."""

import numpy as np
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..layers import average_running_statistics, set_iteration


class SeedIteration(HookBase):
    """Make every random number of a step a function of (seed, iteration, rank).

    Proposal and RoI sampling, dropout and RoI shuffles of a resumed run are then those of the
    uninterrupted one.
    """

    def before_step(self) -> None:
        trainer = self.trainer
        key = [trainer.seed, trainer.iter, comm.get_rank()]
        seed_all_rng(int(np.random.SeedSequence(key).generate_state(1)[0]))
        set_iteration(trainer.model, trainer.iter)


class AverageRunningStatistics(HookBase):
    """Make the moving averages equal on all ranks before they are evaluated or saved.

    Args:
        periods: of evaluation and checkpoints, in iterations; 0 means only at the end.
    """

    def __init__(self, *periods: int) -> None:
        self._periods = [p for p in periods if p > 0]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(done % p == 0 for p in self._periods):
            average_running_statistics(self.trainer.model)
