"""What can go wrong through a person's doing, and what to say about it.

    DetectionError
     ├── ParamsError        params.yaml asks for something that does not exist or contradicts itself
     ├── DataError          pictures or annotations are missing, broken, or changed underfoot
     ├── CheckpointError    weights do not belong to the detector that should load them
     ├── TrackingError      the MLflow store refuses
     ├── DivergedError      the loss is no longer a finite number
     └── VerificationError  a score differs from the official evaluator's

A message says what is wrong, where (file and key), and the mend. Our own bugs are assertions.
"""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)


class DetectionError(Exception):
    """Base of every error that a person can mend; stages and the CLI print it as one line."""


class ParamsError(DetectionError, ValueError):
    """A key, name or value in params.yaml that cannot be used."""


class DataError(DetectionError, ValueError):
    """Raw data that is absent, broken, or not what `prepare` recorded."""


class CheckpointError(DetectionError, ValueError):
    """Weights of another architecture, backbone or class list, or a file that is not a checkpoint."""


class TrackingError(DetectionError, RuntimeError):
    """The MLflow store cannot be used as configured."""


class DivergedError(DetectionError, ArithmeticError):
    """A loss that is not finite; names the pictures of the batch."""


class VerificationError(DetectionError, ArithmeticError):
    """A score that the official evaluator, run beside ours, does not confirm."""


def user_message(error: BaseException) -> str | None:
    """What a person is told of an error that they can mend; None of any other."""
    if isinstance(error, DetectionError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return (
            "the GPU's memory is full: raise train.accumulate, which splits each batch, or lower the "
            "recipe's batch_size or image_size (evaluate.batch_size where a detector is scored)"
        )
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; free some and give the same command again"
    return None


def reason(error: BaseException) -> str:
    """What lay at the bottom of an exception, in one short line: `[Errno 111] Connection refused`."""
    while deeper := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = deeper
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
