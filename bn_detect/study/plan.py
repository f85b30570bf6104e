"""The plan of a study: arms, seeds, measures, figures and verdicts. `reading` reads it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..reporting.columns import Column
from .measures.registry import MEASURES

Options = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """The start of an arm's training: the checkpoint of another arm.

    Attributes:
        arm: its name. iteration: how many iterations that arm had done at the checkpoint.
    """

    arm: str
    iteration: int


@dataclass(frozen=True)
class Arm:
    """One row of the comparison.

    Attributes:
        name: shown in the report.
        options: config keys on top of the study's base.
        inference_of: the arm whose checkpoint is measured, under that arm's options and then these;
            None: the arm is trained (unless the study trains nothing).
        starts_from: the arm from whose checkpoint the training goes on, under that arm's options
            and then these; None: training starts from the beginning.
        reference: numbers that others found, by column header.
        measure: what is measured of this arm, in place of the study's measures.
        template: the name as the file has it. at: its place in the grid, axis -> value.
    """

    name: str
    options: Options = field(default_factory=dict)
    inference_of: str | None = None
    starts_from: Start | None = None
    reference: dict[str, float | str] = field(default_factory=dict)
    measure: dict[str, Options] | None = None
    template: str = ""
    at: dict[str, str] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return re.sub(r"\W+", "_", self.name.lower()).strip("_")[:80]

    @property
    def parent(self) -> str | None:
        """The arm whose checkpoint this one takes."""
        return self.starts_from.arm if self.starts_from else self.inference_of


@dataclass(frozen=True)
class Series:
    """One line or set of bars of a figure: a column, over the arms of one template (None: all)."""

    column: str
    label: str
    arm: str | None = None


@dataclass(frozen=True)
class Chart:
    """A figure that a study's file asks for.

    Attributes:
        name: of its file. caption: what it shows.
        series: what is drawn.
        over: the grid's axis along x, for lines; None: bars, a group for each arm.
        panels: the grid's axis with a panel for each value; None: one panel.
        label: of the y axis. log: whether that axis is logarithmic (linear below 5).
    """

    name: str
    caption: str
    series: tuple[Series, ...]
    over: str | None = None
    panels: str | None = None
    label: str = ""
    log: bool = False


@dataclass(frozen=True)
class Side:
    """One side of a claim: a column of an arm."""

    arm: str
    column: str


@dataclass(frozen=True)
class Claim:
    """A sentence that the numbers support or not.

    Attributes:
        claim: the sentence; it says that `higher` is above `lower`.
        otherwise: an explanation for where that was not seen.
    """

    claim: str
    higher: Side
    lower: Side
    otherwise: str = ""


@dataclass(frozen=True)
class Study:
    """A study's file.

    Attributes:
        file: where it was read. name: its heading. question: what it asks.
        text: how it was set up, for the document.
        base: config file that all arms share; None where the command line names it.
        options: config keys on top of it, for all arms.
        imports: Python modules that register datasets and heads.
        datasets: options by name of those that are made where they are missing.
        seeds: runs per arm, with SEED 1, 2, ...
        workers: processes (GPUs) of a run.
        arms: at least one, of different names.
        measure: options by name, of `MEASURES`.
        columns: keys of the columns that the table shows; empty: those that measures show.
        figures, verdicts: what is drawn and claimed beyond what the measures bring along.
        train: False: a checkpoint is given, and only measured.
        seconds_per_run: what a run took where the study was written, for the first estimate.
    """

    file: str
    name: str
    arms: tuple[Arm, ...]
    question: str = ""
    text: str = ""
    base: str | None = None
    options: Options = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    datasets: dict[str, Options] = field(default_factory=dict)
    seeds: int = 1
    workers: int = 1
    measure: dict[str, Options] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    figures: tuple[Chart, ...] = ()
    verdicts: tuple[Claim, ...] = ()
    train: bool = True
    seconds_per_run: float | None = None

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def options_of(self, arm: Arm) -> Options:
        """The study's options, those of the arm whose checkpoint is taken, and the arm's own."""
        made_by = self.arm(arm.parent).options if arm.parent else {}
        return {**self.options, **made_by, **arm.options}

    def measures_of(self, arm: Arm) -> dict[str, Options]:
        """Options by name of what is measured of an arm, in the order of `MEASURES`."""
        chosen = self.measure if arm.measure is None else arm.measure
        if self.train and not arm.inference_of:
            chosen = {"training_loss": {}, **chosen}
        return {name: chosen[name] for name in MEASURES if name in chosen}


def columns_of(measures: Mapping[str, Options]) -> dict[str, tuple[str, Column]]:
    """Map the key of each column of these measures to the measure's name and the column."""
    return {
        column.key: (name, column)
        for name, options in measures.items()
        for column in MEASURES[name].all_columns(options)
    }
