"""tools/precise_bn.py, run on a tiny checkpoint."""

import subprocess
import sys

import pytest
import torch

from bn_detect.commands.precise_bn import main
from bn_detect.population import update_population_stats
from bn_detect.runtime.weights_file import read_weights, write_weights

from ..helpers.in_process import Trainer, assert_same_bits, config, statistics, trained
from ..helpers.train_net import REPOSITORY


@pytest.fixture(scope="module")
def weights(datasets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    trained(config(datasets, folder, SOLVER__MAX_ITER=2))
    return folder / "model_final.pth"


def load(path) -> dict:
    return torch.load(path, weights_only=False)


def run_tool(train_net, *flags: object) -> str:
    """`flags` come before the tiny settings."""
    arguments = train_net.arguments(
        flags[1].parent, *flags, batch="worker", SOLVER__IMS_PER_BATCH=2
    )
    run = subprocess.run(
        [sys.executable, REPOSITORY / "tools/precise_bn.py", *arguments],
        env=train_net.environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def assert_only_statistics_differ(ours: dict, theirs: dict, modules: str) -> None:
    assert list(ours) == list(theirs)
    assert {"model", "trainer", "iteration"} <= set(ours)
    for key in ours.keys() - {"model"}:
        assert repr(ours[key]) == repr(theirs[key])
    model, before = ours["model"], theirs["model"]
    assert list(model) == list(before)
    changed = {k for k, value in before.items() if not torch.equal(value, model[k])}
    assert changed == {k for k in before if k.startswith(modules) and "running_" in k}
    assert all(model[k].dtype == before[k].dtype for k in model)


def test_rewritten_file(train_net, datasets, weights, tmp_path):
    before, output = weights.read_bytes(), tmp_path / "out.pth"
    flags = ("--weights", weights, "--output", output, "--num-iter", 3, "--roi-source", "test")
    printed = run_tool(train_net, *flags)
    assert weights.read_bytes() == before
    assert_only_statistics_differ(load(output), load(weights), "roi_heads")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth"]
    for column in ("layer", "mean shift (sigma)", "log var ratio", "std. error (sigma)"):
        assert column in printed
    assert "roi_heads.box_head.conv1.norm" in printed and f"Written to {output}" in printed

    cfg = config(datasets, tmp_path)
    model = Trainer.build_model(cfg)
    model.load_state_dict(load(weights)["model"])
    loader = Trainer.build_population_loader(cfg, cfg.SEED)
    update_population_stats(model, loader, 3, roi_source="test", progress=False)
    assert_same_bits(statistics(load(output)["model"]), statistics(model.state_dict()))


def test_in_place_and_some_modules(datasets, weights, tmp_path, capsys):
    copy = tmp_path / "copy.pth"
    copy.write_bytes(weights.read_bytes())
    (tmp_path / "config.yaml").write_text(config(datasets, tmp_path).dump())
    flags = f"--config-file {tmp_path}/config.yaml --weights {copy} --in-place --num-iter 2"
    assert main([*flags.split(), "--modules", "roi_heads.box_head.conv2"]) == 0
    printed = capsys.readouterr().out
    assert_only_statistics_differ(load(copy), load(weights), "roi_heads.box_head.conv2")
    assert "conv2.norm" in printed and "conv1.norm" not in printed


def test_safetensors_in_and_out(datasets, weights, tmp_path, capsys):
    start, output = tmp_path / "start.safetensors", tmp_path / "out.safetensors"
    write_weights(start, load(weights))
    (tmp_path / "config.yaml").write_text(config(datasets, tmp_path).dump())
    flags = f"--config-file {tmp_path}/config.yaml --weights {start} --output {output}"
    assert main([*flags.split(), "--num-iter", "2"]) == 0
    before, after = read_weights(start), read_weights(output)
    assert before.keys() == after.keys() == load(weights)["model"].keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("running_" in name for name in changed)


@pytest.fixture
def refused(datasets, capsys):
    """Runs the command with these flags and options, which must end with code 2."""
    cfg = config(datasets, "unused")

    def run(*flags: object, **keys) -> str:
        file = REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml"
        options = {
            "DATASETS.TRAIN": cfg.DATASETS.TRAIN,
            "MODEL.ROI_HEADS.NUM_CLASSES": 80,
            "MODEL.FPN.OUT_CHANNELS": 32,
            "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
        } | {key.replace("__", "."): value for key, value in keys.items()}
        words = [word for pair in options.items() for word in pair]
        assert main([str(w) for w in ("--config-file", file, *flags, *words)]) == 2
        return capsys.readouterr().err

    return run


def test_refusals(weights, tmp_path, refused):
    missing, exists, other = (tmp_path / f"{n}.pth" for n in ("missing", "exists", "other"))
    exists.write_bytes(b"precious")
    new = tmp_path / "new.pth"
    assert f"{missing}: no such file" in refused("--weights", missing, "--output", new)
    assert "exists; use --overwrite" in refused("--weights", weights, "--output", exists)
    assert "is --weights; use --in-place" in refused(
        "--weights", weights, "--output", weights.parent / "." / weights.name, "--overwrite"
    )
    assert "no folder" in refused("--weights", weights, "--output", tmp_path / "no" / "new.pth")
    assert f"{exists} is damaged or no checkpoint" in refused("--weights", exists, "--output", new)
    torch.save({"model": {}}, other)
    assert "holds no state of a model" in refused("--weights", other, "--output", new)

    to = ("--weights", weights, "--output", new)
    assert "no BatchNorm layer" in refused(*to, MODEL__ROI_BOX_HEAD__NORM="GN")
    assert "'backbone' matches no BatchNorm" in refused(*to, "--modules", "backbone")
    assert "NUM_ITER is 0" in refused(*to, "--num-iter", 0)
    assert "does not fit --config-file" in refused(*to, MODEL__ROI_BOX_HEAD__CONV_DIM=48)
    assert "it lacks roi_heads.box_head.conv3" in refused(*to, MODEL__ROI_BOX_HEAD__NUM_CONV=3)
    assert exists.read_bytes() == b"precious" and not new.exists()
