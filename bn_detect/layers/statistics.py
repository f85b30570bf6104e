"""Switch which statistics the layers of a model normalize with, for a while.

The three words for it are the same everywhere: "minibatch", the statistics of the RoIs at hand;
"population", those that the model holds; "precise", those that a PreciseBN pass puts into the model
(then they are its population statistics; see `bn_detect.population`).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from .convert import layouts_of
from .watching import WatchesRoIs

STATISTICS = ("minibatch", "population", "precise")


@contextlib.contextmanager
def use_statistics(
    model: nn.Module, statistics: str | None = None, **settings: Any
) -> Iterator[None]:
    """Switch the statistics or settings of every RoI layout of `model`; restore them at the end.

    Layers, hooks on poolers, and heads that move features follow the change at once. The recorded
    RoIs and the position in the sequence of shuffles are restored as well, so that training goes on
    as if nothing had happened. Layouts that `model` shares with other modules change for them, too.

    Args:
        model: any module; without a RoI layout nothing happens.
        statistics: what normalizes in eval mode: "minibatch", "population", or None for no change.
        settings: fields of `NormalizationBatch` to change, such as `test_images_per_group=4` or
            `exchange="statistics"` (leave the RoIs where they are; the groups are the same).

    Raises:
        ValueError: other `statistics`, or settings that are not valid; then nothing has changed.
    """
    if statistics == "precise":
        raise ValueError(
            "statistics is 'precise': make a PreciseBN pass with update_population_stats and use "
            "'population'"
        )
    if statistics is not None:
        settings["test_stats"] = statistics
    layouts = layouts_of(model)
    changed = {layout: replace(layout.settings, **settings) for layout in layouts}
    with contextlib.ExitStack() as stack:
        stack.callback(_watch_again, model)
        for layout in layouts:
            stack.enter_context(layout.undisturbed())
        for layout in layouts:
            layout.settings = changed[layout]
        _watch_again(model)
        yield


def _watch_again(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, WatchesRoIs):
            module.watch(module.training)
