"""What a study is: a base config, named arms, seeds, and what to measure; read from a YAML file."""

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

MEASURES = (
    "evaluation",
    "companion_swap",
    "cross_roi_jacobian",
    "statistics_probe",
    "decomposition",
)
_OF_THE_RUN = ("OUTPUT_DIR", "SEED")  # config keys that each run gets for itself


@dataclass(frozen=True)
class Arm:
    """One row of the comparison.

    Attributes:
        name: as the report shows it.
        options: config keys on top of the study's base.
        inference_of: the arm whose checkpoint is measured, under that arm's options and then these;
            None: the arm is trained (unless the study trains nothing).
        reference: numbers that others found, by column header.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    inference_of: str | None = None
    reference: dict[str, float | str] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


@dataclass(frozen=True)
class Study:
    """A study's file.

    Attributes:
        file: where it was read. name: its heading. question: what it asks.
        base: config file that all arms share; None where the command line names it.
        options: config keys on top of it, for all arms.
        imports: Python modules that register datasets and heads; only without training.
        datasets: options by name of those that are made where they are missing.
        seeds: runs per arm, with SEED 1, 2, ...
        arms: at least one, of different names.
        measure: of MEASURES.
        train: False: a checkpoint is given, and only measured.
        seconds_per_run: what a run took where the study was written, for the first estimate.
    """

    file: str
    name: str
    arms: tuple[Arm, ...]
    question: str = ""
    base: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: int = 1
    measure: tuple[str, ...] = MEASURES
    train: bool = True
    seconds_per_run: float | None = None

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def options_of(self, arm: Arm) -> dict[str, Any]:
        """The study's options, those of the arm whose checkpoint is taken, and the arm's own."""
        made_by = self.arm(arm.inference_of).options if arm.inference_of else {}
        return {**self.options, **made_by, **arm.options}


def read_study(path: str | Path) -> Study:
    """Read a study's YAML file; `base` in it is relative to its folder.

    Raises:
        ValueError: a file that is not there or no YAML, or a mistake in it; the message names file,
            key and value.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, RecursionError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--study {path}: {error}".replace("\n", " ")) from error
    reader = _Reader(path)
    return reader.study(tree)


class _Reader:
    """Turns the tree of a YAML file into a Study; every error names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.path}: {message}".replace("\n", "\\n"))  # of a name in it

    def study(self, tree: Any) -> Study:
        known = [f.name for f in fields(Study) if f.name != "file"]
        self.mapping("the study", tree, known, needed=("name", "arms"))
        given = {key: value for key, value in tree.items() if value is not None}
        kinds = {"name": str, "question": str, "base": str, "options": dict, "imports": list}
        self.kinds("", given, **kinds, train=bool, measure=list)
        self.check_options("", given.get("options", {}))
        given["imports"] = tuple(given.get("imports", ()))
        if given["imports"] and given.get("train", True):
            raise self.error(
                f"imports is {list(given['imports'])}, but train is true, and tools/train_net.py "
                "imports nothing; train with your own program, and measure with train: false"
            )
        if "base" in given:
            given["base"] = os.path.normpath(self.path.parent / given["base"])
            if not Path(given["base"]).is_file():
                raise self.error(f"base is {tree['base']!r}, but there is no {given['base']}")
        elif given.get("train", True):
            raise self.error("base: a study that trains needs a config file to start from")
        seeds = given.get("seeds", 1)
        if type(seeds) is not int or seeds < 1:
            raise self.error(f"seeds is {seeds!r}; it must be a whole number from 1 up")
        seconds = given.get("seconds_per_run", 1)
        if type(seconds) not in (int, float) or not 0 < seconds < math.inf:
            raise self.error(f"seconds_per_run is {seconds!r}; it must be a number above 0")
        for number, name in enumerate(given.get("measure", ())):
            self.known(f"measure[{number}]", name, MEASURES)
        if given.get("measure") == []:
            raise self.error(f"measure is empty; it may hold {', '.join(MEASURES)}")
        given["measure"] = tuple(dict.fromkeys(given.get("measure", MEASURES)))
        given["datasets"] = self.datasets(given.get("datasets", {}))
        study = Study(**given | {"file": str(self.path), "arms": self.arms(given["arms"])})
        self.check_inference(study)
        return study

    def datasets(self, tree: Any) -> dict[str, dict]:
        self.kinds("", {"datasets": tree}, datasets=dict)
        for name, options in tree.items():
            if options is not None and not isinstance(options, dict):
                raise self.error(f"datasets: {name} is {options!r}; it must be options, or nothing")
        return {str(name): options or {} for name, options in tree.items()}

    def arms(self, trees: Any) -> tuple[Arm, ...]:
        if not isinstance(trees, list) or not trees:
            raise self.error(f"arms is {trees!r}; it must be a list of at least one arm")
        arms: list[Arm] = []
        for number, tree in enumerate(trees):
            where = f"arms[{number}]"
            self.mapping(where, tree, [f.name for f in fields(Arm)], needed=("name",))
            given = {key: value for key, value in tree.items() if value is not None}
            kinds = {"name": str, "options": dict, "inference_of": str, "reference": dict}
            self.kinds(f"{where}: ", given, **kinds)
            arm = Arm(**given)
            for other in arms:
                if other.slug == arm.slug:
                    raise self.error(
                        f"{where}: name is {arm.name!r}, and so is that of another arm "
                        f"({other.name!r}); names must differ in letters or digits"
                    )
            if not arm.slug:
                raise self.error(f"{where}: name is {arm.name!r}; it needs a letter or a digit")
            self.check_options(f"arm {arm.name!r}: ", arm.options)
            arms.append(arm)
        return tuple(arms)

    def check_options(self, where: str, options: dict) -> None:
        for key in _OF_THE_RUN:
            if key in options:
                raise self.error(
                    f"{where}options: {key} is {options[key]!r}, but each run gets its own; leave "
                    "it out"
                )
        for key, value in options.items():
            if isinstance(value, Mapping):
                dotted, leaf = _first_leaf(key, value)
                raise self.error(f"{where}options: {key} is a mapping; write {dotted}: {leaf}")

    def check_inference(self, study: Study) -> None:
        trained = [arm.name for arm in study.arms if arm.inference_of is None]
        for arm in study.arms:
            if arm.inference_of is None:
                continue
            where = f"arm {arm.name!r}: inference_of"
            if not study.train:
                raise self.error(
                    f"{where} is {arm.inference_of!r}, but train is false: all arms take the same "
                    "checkpoint; leave it out"
                )
            self.known(where, arm.inference_of, trained, "the arms that are trained")

    def mapping(self, where: str, tree: Any, known: Iterable[str], needed: Iterable[str]) -> None:
        if not isinstance(tree, Mapping):
            raise self.error(f"{where} is {tree!r}; it must be a mapping of {', '.join(known)}")
        for key in tree:
            self.known(f"{where}: the key", key, known)
        for key in needed:
            if tree.get(key) in (None, ""):
                raise self.error(f"{where}: {key} is missing")

    def kinds(self, where: str, given: dict, **kinds: type) -> None:
        for key, kind in kinds.items():
            if key in given and not isinstance(given[key], kind):
                raise self.error(f"{where}{key} is {given[key]!r}; it must be a {_SPELLED[kind]}")

    def known(self, where: str, name: Any, known: Iterable[str], what: str = "known") -> None:
        known = list(known)
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            advice = f"; did you mean {near[0]}?" if near else ""
            raise self.error(f"{where} is {name!r}; {what}: {', '.join(known)}{advice}")


def _first_leaf(key: str, value: Any) -> tuple[str, Any]:
    """The dotted key and the value of a mapping's first entry, of nested mappings too."""
    while isinstance(value, Mapping):
        name, value = next(iter(value.items()), ("KEY", "value"))
        key = f"{key}.{name}"
    return key, value


_SPELLED = {str: "text", bool: "true or false", list: "list", dict: "mapping"}
