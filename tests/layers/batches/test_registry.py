"""The registry of normalization batches, and that nobody else knows their names."""

import ast
from pathlib import Path

import pytest

import bn_detect
from bn_detect.layers import NormalizationBatch
from bn_detect.layers.batches import BATCHES, Batch, register_batch
from bn_detect.layers.partition import Partition

PACKAGE = Path(bn_detect.__file__).parent
README = Path(__file__).parents[3] / "README.md"


def compared_names(source: str) -> list[tuple[int, str]]:
    """Every string with which something is compared: ==, !=, in, not in, and `case`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        else:
            continue
        strings = (n for part in parts for n in _plain(part))
        found += [(node.lineno, s.value) for s in strings if isinstance(s, ast.Constant)]
    return found


def _plain(node: ast.expr) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]


def test_the_search_finds_comparisons():
    source = 'a.batch == "images"\n"global" in b or c not in ("x", "worker")\nd["images"] = 1'
    names = [name for _, name in compared_names(source)]
    assert names == ["images", "global", "x", "worker"]


def test_no_other_module_compares_the_name_of_a_batch():
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {name!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if "batches" not in path.parent.name
        for line, name in compared_names(path.read_text())
        if name in BATCHES
    ]
    assert not found


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_found_by_its_name(name):
    kind = NormalizationBatch(name).kind
    assert type(kind) is BATCHES[name] and kind.name == name
    assert f"| `{name}` | {kind.description} |" in README.read_text()
    assert kind.settings == NormalizationBatch(name)


def test_a_name_belongs_to_one_class():
    class Another(Batch):
        name = "worker"

        def partition(self, rois) -> Partition:
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"'worker' .*WorkerBatch"):
        register_batch(Another)
    assert register_batch(BATCHES["worker"]) is BATCHES["worker"]


@pytest.mark.parametrize(
    ("setting", "spans", "cost"),
    [
        ({"batch": "images"}, 1, (0, 0, 0)),
        ({"batch": "worker", "virtual_workers": 2}, 1, (0, 0, 0)),
        ({"batch": "global", "virtual_workers": 2}, 4, (0, 11, 10)),
        ({"batch": "shuffled"}, 4, (4, 44, 40)),
        ({"batch": "shuffled", "virtual_workers": 2}, 4, (4, 88, 80)),
        ({"batch": "shuffled", "virtual_workers": 2, "shuffle_groups": 4}, 2, (2, 44, 40)),
        ({"batch": "shuffled", "virtual_workers": 2, "shuffle_groups": 2}, 1, (0, 0, 0)),
        ({"batch": "shuffled", "exchange": "features"}, 4, (0, 0, 0)),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_a_layer_of_5_channels_costs_on_4_processes(setting, spans, cost):
    settings = NormalizationBatch(**setting)
    assert settings.spans(4) == spans
    assert settings.kind.cost(5, 4) == cost
