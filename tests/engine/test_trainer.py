"""The trainer on real ranks."""

import json

import torch

from tests.engine.conftest import Command
from tests.helpers.ranks import run_ranks


def train(rank: int, world_size: int, arguments: list[str]) -> dict:
    """Train in this rank; the statistics it evaluates with, and what it gets."""
    from detectron2.engine import HookBase
    from detectron2.utils.events import get_event_storage

    from bn_detect.engine import BNTrainer
    from bn_detect.engine.train import argument_parser, read_config

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


def test_moving_averages_are_equal_on_all_ranks(datasets, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    arguments = Command(datasets).arguments(
        tmp_path, batch="worker", DATASETS__TEST="('coco_2017_val',)"
    )
    first, second = run_ranks(train, 2, arguments)
    assert first["statistics"] and all(
        torch.equal(value, second["statistics"][key]) for key, value in first["statistics"].items()
    )
    assert "bbox" in first["results"]


def test_amp_on_cpu(datasets, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    command = Command(datasets)
    half = run_ranks(train, 2, command.arguments(tmp_path / "amp", SOLVER__AMP__ENABLED=True))
    full = run_ranks(train, 2, command.arguments(tmp_path / "full"))
    losses = torch.tensor([half[0]["losses"], full[0]["losses"]])
    assert torch.isfinite(losses).all()
    assert not torch.equal(losses[0], losses[1])  # it did compute in bfloat16
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0.05)


def test_evaluation_of_the_checkpoint_is_the_evaluation_in_training(train_net, tmp_path):
    keys = {"DATASETS__TEST": "('coco_2017_val',)", "SOLVER__MAX_ITER": 3}
    keys["MODEL__ROI_HEADS__SCORE_THRESH_TEST"] = 0.0  # an untrained detector's scores are low
    train_net.run(train_net.arguments(tmp_path, "--num-gpus", 2, batch="worker", **keys))
    in_training = json.loads((tmp_path / "results.json").read_text())
    seen = tmp_path / "inference" / "coco_2017_val" / "coco_instances_results.json"
    detections = json.loads(seen.read_text())
    keys["MODEL__WEIGHTS"] = tmp_path / "model_final.pth"
    after = tmp_path / "after"
    train_net.run(train_net.arguments(after, "--eval-only", batch="worker", **keys))
    assert json.loads((after / "results.json").read_text()) == in_training
    seen = after / "inference" / "coco_2017_val" / "coco_instances_results.json"
    again = json.loads(seen.read_text())
    assert len(detections) > 0

    def ordered(found: list[dict]) -> list:
        return sorted((d["image_id"], d["category_id"], d["score"], d["bbox"]) for d in found)

    assert ordered(again) == ordered(detections)
