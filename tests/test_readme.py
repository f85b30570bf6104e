"""The examples of README and its pages run; the table of keys is the list of keys."""

import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from bn_detect import add_bn_detect_config

REPOSITORY = Path(__file__).parents[1]
NAMES = ("README.md", "docs/training.md", "docs/leakage.md", "docs/your_project.md")
PAGES = {name: (REPOSITORY / name).read_text() for name in NAMES}
EXAMPLES = {
    f"{name} {number}": code
    for name, text in PAGES.items()
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name):
    names: dict = {}
    exec(compile(EXAMPLES[name], name, "exec"), names)
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
    table = dict(
        re.findall(
            r"^\| `([A-Z0-9_.]+)` \| `(.+?)` \|", PAGES["docs/training.md"], flags=re.MULTILINE
        )
    )
    assert {key: repr(value).replace("'", '"') for key, value in added.items()} == table


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name):
    named = re.findall(r"(?<![\w/.])(?:configs|tools|bn_detect|docs)/[\w./-]+\w", PAGES[name])
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
    links = re.findall(r"\]\((?!http|#)([^)#]+)", PAGES[name])
    folder = (REPOSITORY / name).parent
    assert links or name == "docs/your_project.md"
    assert [link for link in links if not (folder / link).exists()] == []
