"""The trainer on real ranks."""

import json

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.helpers.train_net import Command

RUNS = {
    # An untrained detector's scores are low.
    "evaluated": {
        "DATASETS__TEST": "('coco_2017_val',)",
        "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
    },
    "half": {"SOLVER__AMP__ENABLED": True},
    "full": {},
}


def train_all(rank: int, world_size: int, every: dict[str, list[str]]) -> dict[str, dict]:
    return {name: train(rank, arguments) for name, arguments in every.items()}


def train(rank: int, arguments: list[str]) -> dict:
    """Train in this rank; the statistics it evaluates with, and what it gets."""
    from detectron2.engine import HookBase
    from detectron2.utils.events import get_event_storage

    from bn_detect.commands.train import argument_parser
    from bn_detect.configuration.reading import read_config
    from bn_detect.engine import BNTrainer

    class Recorder(HookBase):
        def __init__(self):
            self.losses = []

        def after_step(self):
            if rank == 0:
                self.losses.append(get_event_storage().latest()["total_loss"][0])

    trainer = BNTrainer(read_config(argument_parser().parse_args(arguments)))
    recorder = Recorder()
    trainer.register_hooks([recorder])
    trainer.train()
    return {
        "statistics": {k: v for k, v in trainer.model.state_dict().items() if "running" in k},
        "results": getattr(trainer, "_last_eval_results", None),
        "losses": recorder.losses,
    }


@pytest.fixture(scope="module")
def runs(datasets, tmp_path_factory):
    """Each of RUNS on two ranks: its folder, and what each rank returned."""
    folder = tmp_path_factory.mktemp("runs")
    command = Command(datasets)
    every = {
        name: command.arguments(folder / name, batch="worker", **keys)
        for name, keys in RUNS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        ranks = run_ranks(train_all, 2, every)
    return {name: (folder / name, [rank[name] for rank in ranks]) for name in RUNS}


def test_moving_averages_are_equal_on_all_ranks(runs):
    _, (first, second) = runs["evaluated"]
    assert first["statistics"] and all(
        torch.equal(value, second["statistics"][key]) for key, value in first["statistics"].items()
    )
    assert "bbox" in first["results"]


def test_amp_on_cpu(runs):
    half, full = (runs[name][1][0]["losses"] for name in ("half", "full"))
    losses = torch.tensor([half, full])
    assert torch.isfinite(losses).all()
    assert not torch.equal(losses[0], losses[1])  # it did compute in bfloat16
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0.05)


def test_evaluation_of_the_checkpoint_is_the_evaluation_in_training(runs, train_net, tmp_path):
    folder, (first, _) = runs["evaluated"]
    keys = {**RUNS["evaluated"], "MODEL__WEIGHTS": folder / "model_final.pth"}
    train_net.run(train_net.arguments(tmp_path, "--eval-only", batch="worker", **keys))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["bbox"]["AP"] == first["results"]["bbox"]["AP"]
    detections, again = (
        json.loads((where / "inference/coco_2017_val/coco_instances_results.json").read_text())
        for where in (folder, tmp_path)
    )
    assert len(detections) > 0

    def ordered(found: list[dict]) -> list:
        return sorted((d["image_id"], d["category_id"], d["score"], d["bbox"]) for d in found)

    assert ordered(again) == ordered(detections)
