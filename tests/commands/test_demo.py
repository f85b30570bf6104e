"""The demo is two studies, one after the other."""

from bn_detect.commands import demo
from bn_detect.study.reading import read_study


def called(monkeypatch, codes: list[int]) -> list[list[str]]:
    """The arguments of the studies that are started from now on; they end with these codes."""
    calls: list[list[str]] = []

    def main(words: list[str]) -> int:
        calls.append(words)
        return codes[len(calls) - 1]

    monkeypatch.setattr(demo.study, "main", main)
    return calls


def test_both_studies_of_one_seed_in_folders_of_their_own(monkeypatch, tmp_path):
    calls = called(monkeypatch, [0, 0])
    assert demo.main(["--output", str(tmp_path), "--options", "SOLVER.MAX_ITER", "5"]) == 0
    trees, shapes = (read_study(words[0]) for words in calls)
    assert trees.workers == 2 and [arm.name for arm in trees.arms] == ["worker", "shuffled"]
    assert list(trees.measure) == ["evaluation", "detections"] and shapes.workers == 1
    assert [words[4] for words in calls] == [str(tmp_path / n) for n in ("trees", "leakage")]
    for words in calls:
        assert words[1:4] == ["--seeds", "1", "--output"] and words[-2:] == ["SOLVER.MAX_ITER", "5"]


def test_a_failure_ends_it(monkeypatch):
    calls = called(monkeypatch, [1, 0])
    assert demo.main([]) == 1 and len(calls) == 1


def test_one_of_them(monkeypatch):
    calls = called(monkeypatch, [0])
    assert demo.main(["--only", "shapes"]) == 0 and calls[0][0].endswith("demo.yaml")
