"""FrozenBN: from an iteration on, training normalizes with population statistics."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from bn_detect.engine import FreezeBN
from bn_detect.layers import NormalizationBatch, RoIBatchNorm2d
from bn_detect.population import update_population_stats
from tests.helpers.ranks import run_ranks

from ..helpers.in_process import Trainer, assert_same_bits, checkpoint, config, statistics, trained

FREEZE = 3
PRECISE = {"TEST__PRECISE_BN__ENABLED": True, "TEST__PRECISE_BN__NUM_ITER": 2}


def frozen_config(datasets, output, **keys):
    defaults = {"SOLVER__MAX_ITER": 6, "MODEL__ROI_BN__FREEZE_ITER": FREEZE}
    return config(datasets, output, **{**defaults, **keys})


class Watch(HookBase):
    """What every step begins with, and how the BN layers behave in it."""

    def __init__(self) -> None:
        self.states: list[dict] = []  # before every step
        self.modes: list[dict[str, bool]] = []  # in its forward
        self.population: list[bool] = []  # per call of a layer: were its statistics used?

    def before_train(self) -> None:
        model = self.trainer.model
        self._layers = {n: m for n, m in model.named_modules() if isinstance(m, RoIBatchNorm2d)}
        for layer in self._layers.values():
            layer.register_forward_hook(self._see)

    def _see(self, layer: nn.Module, args: tuple, y: torch.Tensor) -> None:
        expected = F.batch_norm(
            args[0], layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
        )
        self.population.append(torch.allclose(y, expected, atol=1e-5))

    def before_step(self) -> None:
        state = self.trainer.model.state_dict()
        self.states.append({name: value.clone() for name, value in state.items()})
        self.modes.append({name: layer.training for name, layer in self._layers.items()})

    def after_step(self) -> None:
        assert all(
            p.grad is not None for layer in self._layers.values() for p in layer.parameters()
        )


def test_statistics_stay_and_weights_train(datasets, tmp_path):
    """Also where an evaluation puts the model into training mode in between."""
    watch = Watch()
    trainer = trained(frozen_config(datasets, tmp_path, TEST__EVAL_PERIOD=4), watch)
    assert list(trainer.evaluated) == [4, 6]
    states = [*watch.states, trainer.model.state_dict()]
    for i, (before, after) in enumerate(pairwise(states)):
        frozen = i >= FREEZE
        assert all(mode != frozen for mode in watch.modes[i].values())
        for name in before:
            if "norm.running" in name and "roi_heads" in name:
                assert torch.equal(before[name], after[name]) == frozen, (i, name)
            if "roi_heads" in name and name.endswith(("norm.weight", "norm.bias")):
                assert not torch.equal(before[name], after[name]), (i, name)
    calls = len(watch.population) // 6
    assert watch.population == [False] * FREEZE * calls + [True] * (6 - FREEZE) * calls
    for seen in trainer.evaluated.values():
        assert_same_bits(seen, statistics(watch.states[FREEZE]))


def test_frozen_statistics_are_those_of_a_precise_pass(datasets, tmp_path):
    watch = Watch()
    # Inference's RoIs, for those of training are drawn at random.
    cfg = frozen_config(datasets, tmp_path, TEST__PRECISE_BN__ROI_SOURCE="test", **PRECISE)
    trained(cfg, watch)
    model = Trainer.build_model(cfg)
    model.load_state_dict(watch.states[FREEZE])
    loader = Trainer.build_population_loader(cfg, cfg.SEED)
    update_population_stats(
        model, loader, 2, modules="roi_heads", roi_source="test", progress=False
    )
    expected = statistics(model.state_dict())
    for state in (
        *watch.states[FREEZE:],
        checkpoint(tmp_path),
    ):  # the pass at the end leaves them alone
        assert_same_bits(statistics(state), expected)


def test_layers_that_keep_their_mini_batch_at_inference_cannot_be_frozen():
    settings = NormalizationBatch(test_stats="minibatch")
    model = nn.ModuleDict({"a": nn.BatchNorm2d(3), "b": RoIBatchNorm2d(3)})
    FreezeBN(model, 2)
    model["b"].layout.settings = settings
    with pytest.raises(ValueError, match="b has test_stats 'minibatch'.*'population'"):
        FreezeBN(model, 2)
    FreezeBN(model, 2, modules=["a"])


def test_only_the_modules_asked_for(datasets, tmp_path):
    watch = Watch()
    modules = ["roi_heads.box_head.conv1"]
    trained(frozen_config(datasets, tmp_path, MODEL__ROI_BN__FREEZE_MODULES=modules), watch)
    for i, modes in enumerate(watch.modes):
        assert modes == {
            "roi_heads.box_head.conv1.norm": i < FREEZE,
            "roi_heads.box_head.conv2.norm": True,
        }


@pytest.mark.parametrize("precise", [False, True])
def test_resumed_before_at_and_after_the_freeze(datasets, tmp_path, precise):
    keys = PRECISE if precise else {}
    keys |= {"MODEL__ROI_BN__BATCH": "shuffled", "MODEL__ROI_BN__VIRTUAL_WORKERS": 2}
    cfg = frozen_config(datasets, tmp_path, SOLVER__CHECKPOINT_PERIOD=1, **keys)
    trained(cfg)
    whole = checkpoint(tmp_path)
    for after in (FREEZE - 1, FREEZE, FREEZE + 1):
        watch = Watch()
        trained(cfg, watch, resume_after=after)
        assert_same_bits(checkpoint(tmp_path), whole)
        assert [all(m.values()) for m in watch.modes] == [i < FREEZE for i in range(after, 6)]


def test_resumed_on_two_workers(datasets, tmp_path):
    assert run_ranks(resumed_states, 2, datasets, tmp_path) == [[], []]


def resumed_states(rank: int, world_size: int, datasets: Path, folder: Path) -> list[str]:
    """What differs between this rank's model in the whole run and in the resumed ones."""
    comm.create_local_process_group(world_size)
    keys = {"SOLVER__CHECKPOINT_PERIOD": 1, "MODEL__ROI_BN__BATCH": "shuffled", **PRECISE}
    cfg = frozen_config(datasets, folder, **keys)
    whole = trained(cfg).model.state_dict()
    different = []
    for after in (FREEZE - 1, FREEZE, FREEZE + 1):
        resumed = trained(cfg, resume_after=after).model.state_dict()
        different += [f"{after}: {k}" for k, v in whole.items() if not torch.equal(v, resumed[k])]
    return different
