"""The README's examples run, and its table of keys is the list of keys."""

import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from bn_detect import add_bn_detect_config

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_runs(code):
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    if "losses" in names:
        layer = names["model"].roi_heads.box_head[0][1]
        assert type(layer).__name__ == "RoIBatchNorm2d" and layer.weight.grad.abs().sum() > 0


def keys(cfg: CfgNode, prefix: str = "") -> dict:
    flat = {}
    for name, value in cfg.items():
        nested = isinstance(value, CfgNode)
        flat |= keys(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def test_every_key_is_in_the_table_with_its_default():
    stock, ours = get_cfg(), get_cfg()
    add_bn_detect_config(ours)
    added = {key: value for key, value in keys(ours).items() if key not in keys(stock)}
    table = dict(re.findall(r"^\| `([A-Z0-9_.]+)` \| `(.+?)` \|", README, flags=re.MULTILINE))
    assert {key: repr(value).replace("'", '"') for key, value in added.items()} == table


def test_files_that_are_named_exist():
    named = re.findall(r"(?:configs|tools|bn_detect|docs)/[\w./-]+\w", README)
    assert named
    missing = [name for name in named if not (REPOSITORY / name).exists()]
    assert missing == []
