"""The clock of a head: which forward is at hand, in which iteration, new or repeated.

Read this to learn how activation checkpointing gets the groups that a forward had. Checkpointing
repeats a forward inside the backward, maybe after other forwards. It first restores the state of
torch's CPU generator, so a number that is drawn from this generator is the same in the repetition:
each time a layer asks in a forward that may be repeated, such a number is drawn and remembered.
Forwards without checkpointing draw nothing.
"""

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType

import torch
from torch import Tensor
from torch.utils import checkpoint

from ..partition import Partition

_REMEMBERED = 64  # forwards whose groups a backward may still ask for


@dataclass(eq=False)
class Forward:
    """One forward of a head on this process.

    Attributes:
        iteration, draw: with the seed and the head's name they determine what is drawn at random.
        rois_per_image: as recorded, or None where nobody recorded them.
        labels: (R,) the class of each RoI, or None where nobody recorded them.
        partitions: the groups, made once for each kind of question.
        served: identities of the layers that have asked.
    """

    iteration: int = 0
    draw: int = 0
    rois_per_image: tuple[int, ...] | None = None
    labels: Tensor | None = None
    partitions: dict[tuple[object, ...], Partition] = field(default_factory=dict)
    served: set[int] = field(default_factory=set)

    def again(self, iteration: int | None = None) -> "Forward":
        """Return a new forward with the same recording; in another iteration with draw 0."""
        here = (self.iteration, self.draw) if iteration is None else (iteration, 0)
        return Forward(*here, self.rois_per_image, self.labels)


class ForwardClock:
    """Tell the forwards of one head apart, in every thread and in backwards.

    The iteration and the draws are common to all threads; each thread has a forward of its own.

    Attributes:
        head: name of the head, for messages.
    """

    def __init__(self, head: str) -> None:
        self.head = head
        self._iteration = 0
        self._draw = 0  # forwards since `set_iteration`
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._numbers: dict[int, list[Forward]] = {}  # drawn number -> the forwards that drew it
        self._remembered: deque[tuple[Forward, list[int]]] = deque()
        self._pending: list[Forward] = []  # may be repeated, begun since the latest repetition
        self._repeated = False

    def __getstate__(self) -> dict[str, object]:
        return {"head": self.head, "iteration": self._iteration, "draw": self._draw} | {
            "forward": self.latest.again()
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["head"])  # type: ignore[misc]  # locks are new in a copy
        self.__dict__.update(_iteration=state["iteration"], _draw=state["draw"])
        self._thread.forward = state["forward"]

    @property
    def latest(self) -> Forward:
        """The forward that this thread began last."""
        forward: Forward | None = getattr(self._thread, "forward", None)
        if forward is None:
            forward = self._thread.forward = Forward(self._iteration, self._draw)
        return forward

    def set_iteration(self, iteration: int) -> None:
        """Count draws anew from the beginning of `iteration`."""
        self._iteration, self._draw = iteration, 0
        self._thread.forward = self.latest.again(iteration)

    def keep_labels(self, labels: Sequence[Tensor]) -> None:
        """Keep the classes of the RoIs of this thread's next forward, image by image."""
        self._thread.labels = list(labels)

    def take_labels(self) -> list[Tensor] | None:
        """Return what `keep_labels` kept, once."""
        labels: list[Tensor] | None = getattr(self._thread, "labels", None)
        self._thread.labels = None
        return labels

    def begin(
        self,
        rois_per_image: tuple[int, ...] | None = None,
        labels: Tensor | None = None,
        *,
        draws: bool = True,
        keyed: bool = True,
    ) -> None:
        """Begin a forward in this thread, unless a backward repeats one.

        Args:
            draws: whether it has a draw of its own. At inference it has none: ranks may have
                unequal shares of a test set, but must draw alike afterwards.
            keyed: whether a repetition must be told from other forwards.
        """
        if not _in_backward():
            self._start(rois_per_image, labels, draws)
            self._remember(keyed)
        elif self._find_repeated() is None:
            self._start(rois_per_image, labels, draws)

    def now(self, layer: int | None = None, *, draws: bool = True, keyed: bool = True) -> Forward:
        """Return the forward that the calling layer belongs to.

        Args:
            layer: identity of the layer that asks. Where nobody records, a layer that asks a second
                time has begun another forward.
            draws, keyed: see `begin`.

        Raises:
            RuntimeError: a backward repeats one of several forwards, and nothing says which.
        """
        backward = _in_backward()
        if backward and (repeated := self._find_repeated()) is not None:
            return repeated
        if layer is not None and self.latest.rois_per_image is None:
            if not self.latest.served or layer in self.latest.served:
                self._start(None, None, draws)
            self.latest.served.add(layer)
        if not backward:
            self._remember(keyed)
        return self.latest

    def _start(self, rois: tuple[int, ...] | None, labels: Tensor | None, draws: bool) -> None:
        with self._lock:
            self._draw += draws
            self._thread.forward = Forward(self._iteration, self._draw, rois, labels)

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Restore the iteration, the draws and this thread's forward at the end."""
        before = self._iteration, self._draw, self.latest
        self._thread.forward = replace(self.latest, served=set(self.latest.served))
        try:
            yield
        finally:
            self._iteration, self._draw, self._thread.forward = before

    def _remember(self, keyed: bool) -> None:
        """Let a repetition of this thread's forward find it, if there may be one."""
        if not keyed or not _may_be_repeated():
            return
        forward, number = self.latest, _draw_number()
        with self._lock:
            if self._repeated:
                self._pending, self._repeated = [], False
            if forward not in self._pending:
                self._pending.append(forward)
            if not self._remembered or self._remembered[-1][0] is not forward:
                self._remembered.append((forward, []))
            self._remembered[-1][1].append(number)
            sharing = self._numbers.setdefault(number, [])
            if forward not in sharing:
                sharing.append(forward)
            while len(self._remembered) > _REMEMBERED:
                self._forget(*self._remembered.popleft())

    def _forget(self, forward: Forward, numbers: list[int]) -> None:
        for number in numbers:
            sharing = self._numbers.get(number, [])
            if forward in sharing:
                sharing.remove(forward)
            if not sharing:
                self._numbers.pop(number, None)
        if forward in self._pending:
            self._pending.remove(forward)

    def _find_repeated(self) -> Forward | None:
        """Return the forward that this backward repeats; None if it runs a new one."""
        with self._lock:
            if not self._numbers:
                return None
            state = torch.get_rng_state()
            candidates = self._numbers.get(_draw_number(), [])
            if not candidates:
                torch.set_rng_state(state)  # nothing was drawn in a forward that is not repeated
                if not _checkpoint_repeats():
                    return None
                candidates = self._pending
            elif len(candidates) > 1:  # seeded alike; only what has no backward yet matters
                candidates = [f for f in candidates if f in self._pending] or candidates[-1:]
            self._repeated = True
            if len(candidates) == 1:
                return candidates[0]
        raise RuntimeError(
            f"{self.head}: activation checkpointing repeats one of {len(candidates)} forwards, and "
            "the state of the random number generator does not say which. Call checkpoint(..., "
            "preserve_rng_state=True), give the forwards of one backward different random states, "
            "or run the backward of each forward before the next"
        )


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _may_be_repeated() -> bool:
    """Return whether checkpointing runs this forward, or something that saves tensors like it.

    `checkpoint(use_reentrant=False)` replaces what autograd saves; `use_reentrant=True`, as
    checkpointing elsewhere, runs within an autograd function, in which forward derivatives are off.
    """
    saves = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    inside = not torch._C._is_fwd_grad_enabled() and not torch.is_inference_mode_enabled()
    return saves or inside


def _checkpoint_repeats() -> bool:
    """Return whether torch's checkpointing is running a forward again; looks at the stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename == checkpoint.__file__ and code.co_name in ("recompute_fn", "backward"):
            return True
        frame = frame.f_back
    return False


def _draw_number() -> int:
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())
