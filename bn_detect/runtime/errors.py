"""The errors that end a command; imports nothing, so that every module may raise them."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, belongs to another model, or might execute code; names the file."""


class FolderInUse(OSError):
    """Another process writes into the folder; names both."""


class RunFailed(RuntimeError):
    """A run, or a worker of it, failed; what was finished before is kept.

    Attributes:
        traceback: the failed worker's traceback, or "" where there is none.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class WorkerDied(RunFailed):
    """A worker ended by a signal or an error, and the others were stopped."""
