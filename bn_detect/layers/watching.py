"""Parts that the BN heads share: they keep layouts informed, and move RoIs where they should."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from ..distributed import unshuffle_rois
from .convert import use_layout
from .layouts import RoILayout
from .normalization_batch import NormalizationBatch

_Watches = TypeVar("_Watches", bound="WatchesRoIs")


class WatchesRoIs(nn.Module):
    """A mixin for modules that keep RoI layouts informed while their layers need it.

    Its hooks are in place in training, and at inference with mini-batch statistics. With population
    statistics there are none, so that the module scripts and exports where its parent does.
    """

    if TYPE_CHECKING:  # submodules are those of Detectron2, which has no types

        def __getattr__(self, name: str) -> Any: ...

    def watch_rois(self, layout: RoILayout, module: nn.Module) -> None:
        """Let `layout` record the calls of `module` (see `RoILayout.watch`) while needed."""
        self.__dict__.setdefault("_watched", []).append((layout, module))
        self.watch(self.training)

    def watched_layouts(self) -> list[RoILayout]:
        """Return the layouts that this module keeps informed."""
        return [layout for layout, _ in self.__dict__.get("_watched", [])]

    def train(self: _Watches, mode: bool = True) -> _Watches:
        super().train(mode)
        self.watch(mode)
        return self

    def watch(self, on: bool) -> None:
        """Put the hooks in place, or remove them unless inference needs them."""
        for handle in self.__dict__.pop("_handles", []):
            handle.remove()
        self.__dict__["_handles"] = [
            layout.watch(module)
            for layout, module in self.__dict__.get("_watched", [])
            if on or layout.settings.test_stats == "minibatch"
        ]


def watched_layouts(model: nn.Module) -> set[RoILayout]:
    """Return the layouts that a module of `model` keeps informed of the RoIs per image."""
    watchers = (module for module in model.modules() if isinstance(module, WatchesRoIs))
    return {layout for watcher in watchers for layout in watcher.watched_layouts()}


def give_layout(
    head: nn.Module,
    conv_norm: str | Callable[[int], nn.Module],
    roi_batch: NormalizationBatch | None,
    name: str,
) -> RoILayout:
    """Make the layout of a head; where `conv_norm` is "BN", put the head's BN layers behind it.

    Raises:
        ValueError: a `roi_batch` of another kind, or one that another norm would ignore.
    """
    if roi_batch is not None and not isinstance(roi_batch, NormalizationBatch):
        raise ValueError(
            f"roi_batch is {roi_batch!r}; it must be a NormalizationBatch, say "
            "NormalizationBatch('shuffled')"
        )
    if roi_batch is not None and conv_norm != "BN":
        raise ValueError(
            f"conv_norm is {conv_norm!r}, which does not follow roi_batch ({roi_batch}); use "
            "conv_norm 'BN', or no roi_batch"
        )
    layout = RoILayout(roi_batch, name=name)
    if conv_norm == "BN":
        use_layout(head, layout)
    return layout


def apply_to_rois(
    layout: RoILayout, layers: Callable[[Tensor], Tensor], x: Tensor, *, training: bool
) -> Tensor:
    """Compute `layers(x)`; in training after RoI shuffling where the layout moves features."""
    layout.require_layers()
    if training and layout.settings.moves_features:
        return apply_to_moved_rois(layout, layers, x)
    return layers(x)


def apply_to_moved_rois(layout: RoILayout, layers: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute `layers(x)` after RoI shuffling: move the features there, and the outputs back.

    Args:
        x: (R, ...), the features of this worker's RoIs.

    Returns:
        (R, ...), the outputs of this worker's RoIs, in their order.
    """
    moved, plan = layout.shuffle(x)
    return unshuffle_rois(layers(moved), plan)
