"""Read a study's YAML file; every mistake is a ValueError that names file, key and value."""

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from ..configuration.files import find
from ..runtime.files import as_folder_name
from ..runtime.user_modules import import_modules
from .grid import Grid, expanded
from .measures.registry import DEFAULT, MEASURES
from .plan import Arm, Chart, Claim, Series, Side, Start, Study, columns_of

MOST_SEEDS = 1000
_OF_THE_RUN = ("OUTPUT_DIR", "SEED", "train.output_dir", "train.seed")  # each run gets its own
_SPELLED = {str: "text", bool: "true or false", list: "list", dict: "mapping"}
_KINDS: dict[str, type] = {
    **{"name": str, "question": str, "text": str, "base": str, "options": dict, "imports": list},
    **{"datasets": dict, "grid": dict, "columns": list, "figures": list, "verdicts": list},
    "train": bool,
}


def read_study(path: str | Path) -> Study:
    """Read a study's YAML file; `base` in it is relative to its folder.

    Raises:
        ValueError: there is no such file, and no study of the package by that name; the file is no
            YAML, or there is a mistake in it.
    """
    try:
        path = find(path)
        tree = yaml.safe_load(path.read_text())
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"--study {path}: {error}".replace("\n", " ")) from error
    try:
        return _study(path, tree)
    except ValueError as error:  # a name may hold a line break
        raise ValueError(f"{path}: {error}".replace("\n", "\\n")) from error


def check_number(name: str, value: Any, most: float = math.inf) -> None:
    """Raise ValueError unless `value` is a whole number from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        limit = "from 1 up" if most == math.inf else f"from 1 to {most}"
        raise ValueError(f"{name} is {value!r}; it must be a whole number {limit}")


def _study(path: Path, tree: Any) -> Study:
    known = [*(f.name for f in fields(Study) if f.name != "file"), "grid"]
    _mapping("the study", tree, known, needed=("name", "arms"))
    given = {key: value for key, value in tree.items() if value is not None}
    _kinds("", given, **_KINDS)
    _check_options("", given.get("options", {}))
    given["imports"] = tuple(given.get("imports", ()))
    import_modules(given["imports"], "imports:")  # they may register measures
    trains = given.get("train", True)
    if "base" in given:
        beside = Path(os.path.normpath(path.parent / given["base"]))
        try:
            given["base"] = str(beside if beside.is_file() else find(given["base"]))
        except ValueError as error:
            raise ValueError(f"base is {tree['base']!r}, but there is no {beside}") from error
    elif trains:
        raise ValueError("base: a study that trains needs a config file to start from")
    check_number("seeds", given.get("seeds", 1), MOST_SEEDS)
    check_number("workers", given.get("workers", 1))
    seconds = given.get("seconds_per_run", 1)
    if type(seconds) not in (int, float) or not 0 < seconds < math.inf:
        raise ValueError(f"seconds_per_run is {seconds!r}; it must be a number above 0")
    given["measure"] = _measures("", given.get("measure", list(DEFAULT)))
    given["datasets"] = _datasets(given.get("datasets", {}))
    grid = _grid(given.pop("grid", {}))
    charts, claims = given.pop("figures", []), given.pop("verdicts", [])
    given["columns"] = tuple(given.get("columns", ()))
    study = Study(**given | {"file": str(path), "arms": _arms(given["arms"], grid)})
    _check_parents(study)
    columns = {c for arm in study.arms for c in columns_of(study.measures_of(arm))}
    for number, column in enumerate(study.columns):
        _known(f"columns[{number}]", column, columns)
    return replace(
        study,
        figures=tuple(_chart(n, t, study, grid, columns) for n, t in enumerate(charts)),
        verdicts=tuple(
            _claim(f"verdicts[{number}]", place, study, columns)
            for number, claim in enumerate(claims)
            for _, place in expanded(claim, grid)
        ),
    )


def _measures(where: str, tree: Any) -> dict[str, dict]:
    """A list of names, or of {name: options}; or a mapping of names to options."""
    items = tree if isinstance(tree, list) else [tree]
    chosen: dict[str, dict] = {}
    for number, item in enumerate(items):
        for name, options in (item if isinstance(item, dict) else {str(item): None}).items():
            _known(f"{where}measure[{number}]", name, MEASURES)
            _mapping(f"{where}measure: {name}", options or {}, MEASURES[name].options, ())
            chosen[name] = {**MEASURES[name].options, **(options or {})}
    if not chosen:
        raise ValueError(f"{where}measure is empty; it may hold {', '.join(MEASURES)}")
    return chosen


def _datasets(tree: dict) -> dict[str, dict]:
    for name, options in tree.items():
        if options is not None and not isinstance(options, dict):
            raise ValueError(f"datasets: {name} is {options!r}; it must be options, or nothing")
    return {str(name): options or {} for name, options in tree.items()}


def _grid(tree: dict) -> Grid:
    for axis, values in tree.items():
        _mapping(f"grid: {axis}", values, values if isinstance(values, dict) else (), ())
        for value, options in values.items():
            _kinds(f"grid: {axis}: ", {value: options}, **{str(value): dict})
            _check_options(f"grid: {axis}: {value}: ", options)
    return {axis: {str(v): o for v, o in values.items()} for axis, values in tree.items()}


def _arms(trees: Any, grid: Grid) -> tuple[Arm, ...]:
    if not isinstance(trees, list) or not trees:
        raise ValueError(f"arms is {trees!r}; it must be a list of at least one arm")
    arms: list[Arm] = []
    for number, tree in enumerate(trees):
        where = f"arms[{number}]"
        known = [f.name for f in fields(Arm) if f.name not in ("template", "at")]
        _mapping(where, tree, known, needed=("name",))
        for place, filled in expanded(tree, grid):
            arm = _arm(where, filled, tree["name"], place, grid)
            for other in arms:
                if other.slug == arm.slug:
                    raise ValueError(
                        f"{where}: name is {arm.name!r}, and so is that of another arm "
                        f"({other.name!r}); names must differ in letters or digits"
                    )
            arms.append(arm)
    return tuple(arms)


def _arm(where: str, tree: dict, template: str, place: dict, grid: Grid) -> Arm:
    given = {key: value for key, value in tree.items() if value is not None}
    kinds = {"name": str, "options": dict, "inference_of": str, "reference": dict}
    _kinds(f"{where}: ", given, **kinds)
    own = given.get("options", {})
    _check_options(f"arm {given['name']!r}: ", own)
    options = {k: v for axis, value in place.items() for k, v in grid[axis][value].items()}
    given["options"] = options | own
    if "measure" in given:
        given["measure"] = _measures(f"{where}: ", given["measure"])
    if "starts_from" in given:
        at = f"{where}: starts_from"
        keys = ("arm", "iteration")
        _mapping(at, given["starts_from"], keys, needed=keys)
        start = Start(**given["starts_from"])
        check_number(f"{at}: iteration", start.iteration)
        given["starts_from"] = start
    arm = Arm(**given, template=template, at=place)
    if not arm.slug:
        raise ValueError(f"{where}: name is {arm.name!r}; it needs a letter or a digit")
    return arm


def _check_options(where: str, options: dict) -> None:
    for key in _OF_THE_RUN:
        if key in options:
            raise ValueError(
                f"{where}options: {key} is {options[key]!r}, but each run gets its own; leave "
                "it out"
            )
    for key, value in options.items():
        if isinstance(value, Mapping):
            dotted, leaf = _first_leaf(key, value)
            raise ValueError(f"{where}options: {key} is a mapping; write {dotted}: {leaf}")


def _check_parents(study: Study) -> None:
    trained = [arm.name for arm in study.arms if arm.parent is None]
    for arm in study.arms:
        if arm.parent is None:
            continue
        key = "starts_from" if arm.starts_from else "inference_of"
        where = f"arm {arm.name!r}: {key}"
        if arm.starts_from and arm.inference_of:
            raise ValueError(f"{where}, and inference_of is {arm.inference_of!r}; name one")
        if not study.train:
            raise ValueError(
                f"{where} is {arm.parent!r}, but train is false: all arms take the same "
                "checkpoint; leave it out"
            )
        _known(where, arm.parent, trained, "the arms that are trained")


def _chart(number: int, tree: Any, study: Study, grid: Grid, columns: set[str]) -> Chart:
    where = f"figures[{number}]"
    _mapping(where, tree, [f.name for f in fields(Chart)], ("name", "caption", "series"))
    texts = {"name": str, "caption": str, "label": str, "over": str, "panels": str}
    _kinds(f"{where}: ", tree, **texts, series=list, log=bool)
    as_folder_name(tree["name"], f"{where}: name")
    for axis in ("over", "panels"):
        if axis in tree:
            _known(f"{where}: {axis}", tree[axis], grid, "the axes of the grid")
    series = []
    for item in tree["series"]:
        item = {"column": item} if isinstance(item, str) else item
        _mapping(f"{where}: series", item, ("column", "label", "arm"), ("column",))
        _known(f"{where}: series: column", item["column"], columns)
        templates = [arm.template for arm in study.arms]
        if "arm" in item or "over" in tree:
            _known(f"{where}: series: arm", item.get("arm"), templates, "the arms")
        series.append(Series(**{"label": item["column"], **item}))
    return Chart(**{**tree, "series": tuple(series)})


def _claim(where: str, tree: Any, study: Study, columns: set[str]) -> Claim:
    _mapping(where, tree, [f.name for f in fields(Claim)], ("claim", "higher", "lower"))
    _kinds(f"{where}: ", tree, claim=str, otherwise=str)
    sides = {}
    for key in ("higher", "lower"):
        _mapping(f"{where}: {key}", tree[key], ("arm", "column"), ("arm", "column"))
        sides[key] = Side(**tree[key])
        _known(f"{where}: {key}: arm", sides[key].arm, [a.name for a in study.arms])
        _known(f"{where}: {key}: column", sides[key].column, columns)
    return Claim(tree["claim"], **sides, otherwise=tree.get("otherwise", ""))


def _mapping(where: str, tree: Any, known: Iterable[str], needed: Iterable[str]) -> None:
    known = list(known)
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} is {tree!r}; it must be a mapping of {', '.join(known)}")
    for key in tree:
        _known(f"{where}: the key", key, known)
    for key in needed:
        if tree.get(key) in (None, ""):
            raise ValueError(f"{where}: {key} is missing")


def _kinds(where: str, given: dict, **kinds: type) -> None:
    for key, kind in kinds.items():
        if key in given and not isinstance(given[key], kind):
            raise ValueError(f"{where}{key} is {given[key]!r}; it must be a {_SPELLED[kind]}")


def _known(where: str, name: Any, known: Iterable[str], what: str = "known") -> None:
    known = list(known)
    if name not in known:
        names = [str(each) for each in known]
        near = difflib.get_close_matches(str(name), names, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{where} is {name!r}; {what}: {', '.join(names)}{advice}")


def _first_leaf(key: str, value: Any) -> tuple[str, Any]:
    """The dotted key and the value of a mapping's first entry, of nested mappings too."""
    while isinstance(value, Mapping):
        name, value = next(iter(value.items()), ("KEY", "value"))
        key = f"{key}.{name}"
    return key, value
