"""Every error this package raises on purpose, in one hierarchy.

Each message names the module or argument, what was found, what was expected, and the remedy.
"""

from __future__ import annotations


class NetAugError(Exception):
    """Base class: catch this to catch everything the package raises on purpose."""


class InputError(NetAugError, ValueError):
    """An argument cannot be used: wrong type, out of range, matches nothing, or does not fit the model."""


class TraceError(NetAugError):
    """A model could not be run for analysis; the message names the module and the cause."""


class BranchError(NetAugError):
    """In an augmented pass, a forward would go another way than on the example inputs that were analysed."""

    path: str | None = None
    """Path of the module that refused, once it is known."""

    def within(self, path: str, name: str) -> BranchError:
        """The same error, with the module's path and class in front; the innermost module's stay."""
        if self.path is not None:
            return self
        where = f"module {path!r} ({name})" if path else f"the model ({name})"
        error = BranchError(f"{where}: {self}")
        error.path = path
        return error


class PlanError(NetAugError):
    """The model was analysed, but nothing in it can be widened (or nothing was left after ``pin``)."""


class CheckError(NetAugError):
    """The widened supernet does not reproduce the model it came from, so it is not handed over."""


class CheckpointError(NetAugError):
    """A checkpoint is missing, truncated, from another model, or holds more than plain tensors."""


class DataError(NetAugError):
    """A data set cannot be used: empty, of one class, or with a file that cannot be read."""

    def __init__(self, message: str) -> None:
        # What a loader's worker raises, torch raises again with the worker's traceback in front of it.
        super().__init__(message.rpartition(f"{__name__}.DataError: ")[2].rstrip("\n"))


class ExportError(NetAugError):
    """An ONNX file could not be made as asked (for example an opset the exporter does not give)."""


class VerificationError(NetAugError):
    """``Report.raise_if_failed`` found a check that failed."""


class RunError(NetAugError):
    """A training run cannot start or resume: its folder exists, is not a run, or differs from the request."""
