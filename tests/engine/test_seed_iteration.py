"""The hook with a trainer of Detectron2's."""

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from torch import nn

from bn_detect.engine import SeedIteration


class Model(nn.Linear):
    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": super().forward(batch).square().mean()}


class Draws(HookBase):
    def before_train(self) -> None:
        self.drawn: dict[int, float] = {}

    def before_step(self) -> None:
        self.drawn[self.trainer.iter] = torch.rand(()).item()


def trainer() -> tuple[SimpleTrainer, Draws]:
    model, draws = Model(3, 1), Draws()
    made = SimpleTrainer(model, [torch.zeros(2, 3)] * 9, torch.optim.SGD(model.parameters(), 0.1))
    made.register_hooks([SeedIteration(), draws])
    return made, draws


def test_a_trainer_that_starts_later_draws_what_another_drew():
    drawn = []
    for start in (0, 2):
        made, draws = trainer()
        made.seed = 7
        made.train(start, 4)
        drawn.append(draws.drawn)
    assert len(set(drawn[0].values())) == 4
    assert drawn[1] == {i: drawn[0][i] for i in (2, 3)}


def test_a_trainer_without_a_seed_is_refused_before_it_trains():
    made, draws = trainer()
    with pytest.raises(ValueError, match="trainer has no seed; .* trainer.seed = 7"):
        made.train(0, 4)
    assert not getattr(draws, "drawn", None)
