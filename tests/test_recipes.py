"""The recipes of docs/recipes.md: their code as it stands there, run, and at most 30 lines each."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import bn_detect
from bn_detect.layers import RoIBatchNorm2d
from tests.helpers.ranks import run_ranks
from tests.probes.torchvision_models import torchvision_batch, torchvision_detector

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
RECIPES = {
    title: re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}
TORCHVISION, LIGHTNING, PLAIN, AVERAGED = RECIPES


def recipe(title: str) -> SimpleNamespace:
    names: dict = {"__name__": "recipe"}
    exec(compile(RECIPES[title], f"docs/recipes.md, {title}", "exec"), names)
    return SimpleNamespace(**names)


def batches(count: int, first: int = 0) -> list:
    return [torchvision_batch(seed, 2) for seed in range(first, first + count)]


def layers(model: nn.Module) -> list[RoIBatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, RoIBatchNorm2d)]


def statistics(model: nn.Module) -> Tensor:
    return torch.cat([m.running_mean for m in layers(model)])


@pytest.mark.parametrize("title", RECIPES)
def test_is_short(title):
    assert len([line for line in RECIPES[title].splitlines() if line.strip()]) <= 30


@pytest.fixture
def iterations(monkeypatch) -> list[int]:
    """The iterations that the recipe sets, which it does in fact."""
    seen: list[int] = []
    real = bn_detect.set_iteration
    monkeypatch.setattr(bn_detect, "set_iteration", lambda m, i: (seen.append(i), real(m, i)))
    return seen


def test_torchvision(iterations):
    code, model = recipe(TORCHVISION), torchvision_detector()
    code.convert(model)
    weight = layers(model)[0].weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    code.train_one_epoch(model, optimizer, batches(2), "cpu", epoch=1)
    assert not torch.equal(before, weight) and iterations == [2, 3]
    moving = statistics(model)
    code.before_evaluation(model, batches(2), "cpu", num_iters=2)
    assert not torch.equal(moving, statistics(model))
    assert len(model.eval()(batches(1)[0][0])) == 2


class StandIn(nn.Module):
    """What the recipe uses of a LightningModule, and a loop that calls its methods in order."""

    global_step, device, trainer = 0, "cpu", None

    def fit(self, loader: list) -> None:
        strategy = SimpleNamespace(batch_to_device=lambda batch, device: batch)
        self.trainer = SimpleNamespace(train_dataloader=None, strategy=strategy)
        self.on_validation_start()  # the sanity check, before there is a training loader
        self.trainer.train_dataloader = loader
        optimizer = self.configure_optimizers()
        for index, batch in enumerate(loader):
            optimizer.zero_grad()
            self.train().training_step(batch, index).backward()
            optimizer.step()
            self.global_step += 1
        self.eval().on_validation_start()


def test_lightning(monkeypatch, iterations):
    modules = {name: ModuleType(name) for name in ("lightning", "lightning.pytorch")}
    modules["lightning.pytorch"].LightningModule = StandIn
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    model = recipe(LIGHTNING).Detector(torchvision_detector(), num_iters=2)
    before = statistics(model)
    model.fit(batches(2))
    assert iterations == [0, 1] and not model.training
    assert not torch.equal(before, statistics(model))


def _plain(rank: int, world_size: int, folder: Path) -> Tensor:
    model = torchvision_detector()
    recipe(PLAIN).train(model, batches(2, first=10 * rank), 2, folder / "model.pth")
    assert layers(model)[0].layout.settings.batch == "shuffled"
    return statistics(model)


def test_plain_loop_on_two_ranks(tmp_path):
    a, b = run_ranks(_plain, 2, tmp_path)
    assert torch.equal(a, b)
    assert "roi_heads.box_head.0.1.weight" in torch.load(tmp_path / "model.pth", weights_only=True)


def test_plain_loop_alone(tmp_path):
    _plain(0, 1, tmp_path)
    assert (tmp_path / "model.pth").exists()


def test_averaged_weights():
    model = torchvision_detector(converted=True)
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    before = statistics(averaged)
    report = recipe(AVERAGED).finish(averaged, batches(2), num_iters=2)
    assert all(row.updated for row in report.layers)
    assert not torch.equal(before, statistics(averaged))
