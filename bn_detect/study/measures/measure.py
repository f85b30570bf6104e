"""The form of a measure: how it is taken, and what columns and figures it contributes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from ...data import DatasetSummary
from ...reporting.columns import Column, Result
from ...reporting.drawing import Picture, Results
from .subject import Subject

Options = Mapping[str, Any]
# Parts of a result, kept on disk as they come. The third argument holds those of an earlier try.
Take = Callable[[Subject, Options, Result], Iterator[dict[str, Any]]]
Check = Callable[[CfgNode, nn.Module, Options], None]
# The third argument holds the datasets of the run, by name; the last is the number of workers.
CheckImages = Callable[[CfgNode, Options, Mapping[str, DatasetSummary], int], None]


@dataclass(frozen=True)
class Measure:
    """One row of the registry.

    Attributes:
        take: yields the parts of the result for a run's checkpoint.
        columns, figures: what it contributes to the report.
        columns_for: further columns, which depend on the options.
        tables: Markdown with tables of its own, for the report; None: the columns say it all.
        options: what a study may set, with defaults.
        check: raises ValueError, on the built model, for what cannot be measured.
        check_images: raises ValueError, once the datasets are there, where they have too few images
            for it, or one that the options name is missing.
        reads: of DATASETS, "TRAIN" or "TEST", whose images it needs.
        first: whether a run takes it before the others, whatever their order in the table.
        every_worker: whether all processes of a run take part.
        grows: the options that may change while the parts measured before are kept.
        follow: makes a training hook with the attribute `result`, for what only training shows.
    """

    take: Take
    columns: tuple[Column, ...] = ()
    figures: tuple[Picture, ...] = ()
    tables: Callable[[Results], str] | None = None
    options: Options = field(default_factory=dict)
    check: Check | None = None
    check_images: CheckImages | None = None
    reads: tuple[str, ...] = ("TEST",)
    first: bool = False
    every_worker: bool = False
    grows: tuple[str, ...] = ()
    follow: Callable[[CfgNode, Options], HookBase] | None = None
    columns_for: Callable[[Options], tuple[Column, ...]] = lambda options: ()

    def keeps(self, before: Options, after: Options) -> bool:
        """Return whether parts measured under the options `before` count under `after`."""
        return all(
            before.get(k) == after.get(k) for k in {**before, **after} if k not in self.grows
        )

    def all_columns(self, options: Options) -> tuple[Column, ...]:
        return (*self.columns, *self.columns_for({**self.options, **options}))
