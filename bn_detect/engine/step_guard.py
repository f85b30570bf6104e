"""Let all ranks agree at every step whether it is sound, and whether it is the last."""

import contextlib
from collections.abc import Callable, Mapping

import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed.collectives import all_gather_int, default_group
from ..population.averaging import average_running_statistics, statistics_are_finite
from ..population.bn_layers import unwrapped
from ..runtime.signals import Interrupted, Request, requests

_NO_LAYER = 1  # a rank's code, where 0 says that all is well, and 2 or more names a layer


class StepGuard(HookBase):
    """End training, on all ranks at the same step, when a loss is not finite or a signal came.

    A loss that is not finite raises before it changes the weights, and names the first BatchNorm
    layer whose statistics are not finite. SIGTERM, SIGINT or SIGHUP, on any rank, ends the run
    after the current iteration, with a checkpoint. The ranks exchange one number each per step.

    Args:
        model: the model that is trained, wrapped or not.
        checkpointer: saves on rank 0.
    """

    def __init__(self, model: nn.Module, checkpointer: Checkpointer) -> None:
        self._model, self._checkpointer = unwrapped(model), checkpointer
        self._device = next(model.parameters()).device
        self._request, self._stop = Request(), 0
        self._names: list[str] = []  # of the BN layers, in the order in which they are called
        self._signals, self._learning = contextlib.ExitStack(), contextlib.ExitStack()

    def before_train(self) -> None:
        alone = default_group() is None
        # Several workers may get one and the same signal twice: from all sides.
        self._request = self._signals.enter_context(requests(_end_at_once if alone else None))
        for name, module in self._model.named_modules():
            if isinstance(module, _BatchNorm):
                handle = module.register_forward_pre_hook(self._learn(name))
                self._learning.callback(handle.remove)

    def _learn(self, name: str) -> Callable[..., None]:
        def called(*_) -> None:
            if name not in self._names:
                self._names.append(name)

        return called

    def check(self, losses: Mapping[str, Tensor]) -> None:
        """Let all ranks agree that the losses are finite, after backward and before the step.

        Raises:
            FloatingPointError: a loss is not finite on some rank; on every rank.
        """
        self._learning.close()
        values = {name: loss.detach().item() for name, loss in losses.items()}
        sound = torch.isfinite(torch.tensor(list(values.values()))).all()
        code = -self._request.number if sound else self._first_layer()
        codes = all_gather_int(code, self._device, default_group())
        if max(codes) > 0:
            raise FloatingPointError(self._message(codes, values))
        self._stop = -min(codes)

    def _first_layer(self) -> int:
        for place, name in enumerate(self._names):
            layer = self._model.get_submodule(name)
            if isinstance(layer, _BatchNorm) and not statistics_are_finite(layer):
                return _NO_LAYER + 1 + place
        return _NO_LAYER

    def _message(self, codes: list[int], values: dict[str, float]) -> str:
        ranks = [rank for rank, code in enumerate(codes) if code > 0]
        places = [code - _NO_LAYER - 1 for code in codes if code > _NO_LAYER]
        text = f"iteration {self.trainer.iter}: the loss is not finite on rank {ranks[0]}"
        if comm.get_rank() in ranks:
            text += f" ({', '.join(f'{name} {value:.3g}' for name, value in values.items())})"
        if places:
            first = self._names[min(places)]
            text += f"; the first BatchNorm layer whose statistics are not finite is {first}"
        else:
            text += "; the statistics of all BatchNorm layers are finite"
        return f"{text}. The checkpoints are from before it"

    def after_step(self) -> None:
        if not self._stop or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        average_running_statistics(self._model)
        done = self.trainer.iter
        self._checkpointer.save(f"model_{done:07d}", iteration=done)
        comm.synchronize()  # nobody ends, and so ends the others, before it is written
        raise Interrupted(self._stop)

    def after_train(self) -> None:
        self._learning.close()
        self._signals.close()


def _end_at_once(request: Request) -> None:
    if request.times > 1:
        raise Interrupted(request.number)


def guarded(kind: type[SimpleTrainer]) -> type[SimpleTrainer]:
    """Return a trainer class whose `guard` checks the losses between backward and the optimizer."""

    class Guarded(kind):
        guard: StepGuard

        def _write_metrics(self, loss_dict: dict[str, Tensor], *args, **kwargs) -> None:
            self.guard.check(loss_dict)
            super()._write_metrics(loss_dict, *args, **kwargs)

    return Guarded
