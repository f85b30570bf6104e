"""Every measurement at a small size: what it prints and writes follows from what it measured."""

import json
import re
import statistics

import pytest
import torch

from bn_detect.benchmarks.measuring import peak_bytes, spread
from bn_detect.commands.benchmark import main


@pytest.fixture
def measure(tmp_path, capsys):
    def run(*arguments: object) -> tuple[dict, str]:
        file = tmp_path / "result.json"
        shared = ["--json", str(file), "--output", str(tmp_path)]
        if arguments[0] not in ("traffic", "kernels", "gpu"):
            shared += ["--repetitions", "2"]
        assert main([*map(str, arguments), *shared]) == 0
        return json.loads(file.read_text()), capsys.readouterr().out

    return run


def test_layer(measure):
    result, printed = measure("layer", "--rois", 0.03)
    rows = result["rows"]
    assert len(rows) == 3 * 2 * 2 * 6  # shapes, dtypes, formats, layers
    for row in rows:
        assert spread(row["ms"], 1) in printed and min(row["ms"]) > 0
    ours = [r for r in rows if r["layer"] == "ours, worker" and r["dtype"] == "float32"]
    reference = [r for r in rows if r["layer"].startswith("torch")]
    assert all(r["ratio"] == [1, 1] for r in reference) and len(ours) == 6


def test_overhead(measure):
    result, printed = measure("overhead", "--calls", 2)
    rows = {row["layer"]: row for row in result["rows"]}
    assert rows["torch BatchNorm2d"]["ratio"] == [1, 1] and len(rows) == 7
    ours = rows["ours, shuffled, 8 virtual"]
    assert spread(ours["ratio"]) in printed and min(ours["us"]) > 0
    assert 0 < ours["forward"] <= 45 and 0 < ours["backward"] <= 25


def test_kernels(measure):
    pytest.importorskip("triton")
    result, printed = measure("kernels", "--targets", 90, "--dtypes", "bfloat16")
    assert {row["target"] for row in result["compiled"]} == {90}
    assert "H100" in printed and "V100" not in printed
    for row in result["compiled"]:
        assert f"{row['registers']}" in printed
    moved = {row["kernel"]: row for row in result["bytes"] if row["shape"][0] == 1024}
    x = 1024 * 256 * 49 * 2
    assert moved["input_gradient"]["bytes"] > 3 * x
    assert f"{1e6 * moved['normalize']['bytes'] / 3.35e12:.3g}" in printed  # us on an H100


def test_dry_run_of_what_needs_a_gpu(measure, tmp_path):
    page = tmp_path / "gpu.md"
    result, printed = measure("gpu", "--dry-run", "--page", page)
    assert page.read_text() in printed
    assert "not run" in result["tests"] and int(re.search(r"(\d+)/\d+ tests", result["tests"])[1])
    for title, numbers in result.items():
        if title not in ("machine", "tests"):
            assert numbers is None and f"## {title}" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_claimed(capsys, tmp_path):
    page = tmp_path / "gpu.md"
    assert main(["gpu", "--page", str(page), "--output", str(tmp_path)]) == 2
    assert "--dry-run" in capsys.readouterr().err
    assert not page.exists()


def test_head(measure):
    result, printed = measure("head", "--rois", 4, "--mask-rois", 2, "--ranks", 2)
    rows = {(row["what"], row["arm"]): row for row in result["rows"]}
    assert len(rows) == 2 * 7 + 2
    assert rows["box head, 4 RoIs", "worker"]["ratio"] == [1, 1]
    assert spread(rows["moving 32 RoIs and back", "shuffled, features"]["ratio"]) in printed


def test_traffic(measure):
    result, printed = measure("traffic", "--rois", 1, "--ranks", 2)
    assert len(result["rows"]) == 2 * 4
    for row in result["rows"]:
        assert row["sent"] == row["sent_computed"] > 0
        assert f"{row['sent']}" in printed
    assert 0 < result["ratios"]["bytes, statistics against all-gather"] < 0.001
    assert 1 <= result["ratios"]["bytes, features against the lower bound"] < 1.02


def test_scaling(measure, tmp_path):
    result, printed = measure("scaling", "--most", 128)
    axes = {p["axis"]: p for p in result["points"]}
    assert list(axes) == ["RoIs, 8 groups", "groups, 128 RoIs", "virtual workers, 128 RoIs"]
    assert str(round(statistics.median(result["points"][0]["ms"]), 1)) in printed
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_train(measure):
    result, printed = measure("train")
    arms = {row["arm"]: row for row in result["rows"]}
    assert arms["Detectron2's own BN head"]["ratio"] == [1, 1]
    assert spread(arms["shuffled, 2 virtual"]["ms"], 1) in printed


def test_peak_of_memory():
    cpu = torch.device("cpu")
    x = torch.ones(1000)  # 4,000 bytes
    both = peak_bytes(lambda: x + 1 + 1, cpu)  # the first sum lives until the second is there
    assert 8000 <= both < 8100  # and a scalar
    assert peak_bytes(lambda: x.add_(1), cpu) < 100
