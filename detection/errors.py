"""Errors that a user can fix.

    DetectionError
     ├── ParamsError        params.yaml has an unknown key or name, or an invalid or contradictory value
     ├── DataError          images or annotations are missing, invalid, or changed since `prepare`
     ├── CheckpointError    weights do not belong to the detector that loads them
     ├── TrackingError      the MLflow store cannot be used
     ├── DivergedError      the loss is not finite
     └── VerificationError  a metric differs from the reference implementation's

A message states what is invalid, where (file and key or line), and the fix. Our own bugs are assertions.
"""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DetectionError(Exception):
    """Base class; stages and the CLI print it as one line without a traceback."""


class ParamsError(DetectionError, ValueError):
    """Invalid key, name or value in params.yaml."""


class DataError(DetectionError, ValueError):
    """Raw data that is missing, invalid, or differs from what `prepare` recorded."""


class CheckpointError(DetectionError, ValueError):
    """Weights of another architecture, backbone or class list, or a file that is not a checkpoint."""


class TrackingError(DetectionError, RuntimeError):
    """MLflow store that cannot be used as configured."""


class DivergedError(DetectionError, ArithmeticError):
    """Loss that is not finite; the message names the images of the batch."""


class VerificationError(DetectionError, ArithmeticError):
    """Metric that the reference implementation does not confirm."""


def user_message(error: BaseException) -> str | None:
    """Return the message of an error that the user can fix, else None."""
    if isinstance(error, DetectionError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; compared by name to avoid importing torch
        return (
            "out of GPU memory: raise train.accumulate, which splits each batch, or lower the recipe's "
            "batch_size or image_size (train.validate_batch_size if it happened in a validation, "
            "evaluate.batch_size in evaluate, --batch-size in predict)"
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        file = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{file}; free disk space and repeat the command"
    return None


def reason(error: BaseException) -> str:
    """Return the first line of an exception's root cause, for instance `[Errno 111] Connection refused`."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
