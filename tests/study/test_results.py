"""results.json fits its published schema, and nothing else does."""

import copy
import json
from pathlib import Path

import pytest

from bn_detect.study.results import SCHEMA as VERSION
from tests.helpers.schema import SCHEMA, misfits

from .made_up import run, study


def results() -> dict:
    arms = {"a": {"runs": [run("a", 1, swap=0.5, ap=30.0)]}, "b": {}}
    arms["b"]["failed"] = [{"seed": 1, "error": None, "log": "train.log"}]
    return study(arms)


def test_results_fit_the_schema():
    assert misfits(results()) == []
    assert json.loads(SCHEMA.read_text())["properties"]["schema"]["const"] == VERSION


RUN = ("arms", "a", "runs", 0)
SPOILT = {
    "another version": (("schema",), 3),
    "no name": (("study", "name"), None),
    "an unknown key": (("more",), 1),
    "no runs": (("arms", "a", "runs"), {}),
    "a seed in words": ((*RUN, "seed"), "one"),
    "a number in words": ((*RUN, "measures", "training_loss", "last", "loss_cls"), "0.5"),
    "an AP without its task": ((*RUN, "measures", "evaluation", "population", "d"), {"AP": 1.0}),
    "a bare number for an interval": ((*RUN, "measures", "companion_swap", "flip_rate"), 0.1),
    "a failure without its log": (("arms", "b", "failed", 0), {"seed": 1, "error": ""}),
}


@pytest.mark.parametrize("place, value", SPOILT.values(), ids=SPOILT)
def test_anything_else_does_not(place, value):
    tree = node = copy.deepcopy(results())
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    (found,) = misfits(tree)
    assert str(place[-1]) in found or str(place[-2]) in found


def test_the_schema_is_part_of_the_documents():
    page = Path(__file__).parents[2] / "docs" / "results_json.md"
    assert SCHEMA.name in page.read_text()
