"""The process behind `fork_server`: it forks a run for each request, a JSON object in a line."""

import functools
import importlib
import json
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.modeling import GeneralizedRCNN

from bn_detect.commands import train

PHASES = {
    "forward": (GeneralizedRCNN, "forward"),
    "backward": (torch.Tensor, "backward"),
    "a collective": (dist, "all_reduce"),
    "PreciseBN": ("bn_detect.engine.hooks", "update_population_stats"),
    "evaluation": ("bn_detect.engine.trainer.BNTrainer", "test"),
    "checkpoint writing": (torch, "save"),
}


class Moment(NamedTuple):
    """When and where a run kills a worker of its own.

    phase: of PHASES. rank: that is killed. call: the number of the phase's call, from 1. delay:
    seconds after its begin.
    """

    phase: str
    rank: int
    call: int
    delay: float

    def arm(self) -> None:
        """Replace the phase's function, in this process and those it forks."""
        where, name = PHASES[self.phase]
        if isinstance(where, str):
            module, _, last = where.rpartition(".")
            where = getattr(importlib.import_module(module), last)
        function, calls = getattr(where, name), 0

        @functools.wraps(function)
        def watched(*args, **kwargs):
            nonlocal calls
            if dist.is_initialized() and dist.get_rank() == self.rank:
                calls += 1
                if calls == self.call:
                    threading.Thread(target=self._kill, daemon=True).start()
                    if not self.delay:
                        time.sleep(60)
            return function(*args, **kwargs)

        # A method that was called on the class, such as `BNTrainer.test`, is called on it again.
        static = isinstance(where, type) and getattr(function, "__self__", None) is not None
        setattr(where, name, staticmethod(watched) if static else watched)

    def _kill(self) -> None:
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL)


def moments(count: int, seed: int = 0) -> list[Moment]:
    """The same ones each time: all phases, both ranks, early and late."""
    rng = random.Random(seed)
    pairs = [(phase, rank) for phase in PHASES for rank in (1, 0)]
    pairs.remove(("checkpoint writing", 1))  # which rank 0 alone does
    rng.shuffle(pairs)
    last = {"forward": 7, "backward": 7, "a collective": 60, "PreciseBN": 2, "evaluation": 1}
    found = []
    for number in range(count):
        phase, rank = pairs[number % len(pairs)]
        # One in three at the very begin of the call.
        delay = rng.choice((0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.1)))
        found.append(Moment(phase, rank, rng.randint(1, last.get(phase, 3)), round(delay, 4)))
    return found


def run(arguments: list[str], log: str, moment: list | None) -> None:
    """In the forked process, which this ends."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, source in ((0, null), (1, file), (2, file)):
        os.dup2(source, number)
    mp.start_processes = functools.partial(mp.start_processes, start_method="fork")
    if moment is not None:
        Moment(*moment).arm()
    code = 1
    try:
        code = train.main(arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    running: set[int] = set()
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        if ready:
            line = sys.stdin.readline()
            if not line:
                return
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                run(request["arguments"], request["log"], request["moment"])
            running.add(pid)
            print(json.dumps({"pid": pid, "log": request["log"]}), flush=True)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                print(json.dumps({"pid": pid, "code": code}), flush=True)


if __name__ == "__main__":
    main()
