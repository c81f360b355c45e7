"""Messages of errors."""

import errno

from detection.errors import DataError, DetectionError, ParamsError, reason, user_message


def test_errors_of_a_user_are_also_builtin_errors() -> None:
    assert issubclass(ParamsError, DetectionError)
    assert issubclass(DataError, ValueError)


def test_only_errors_that_a_user_can_fix_have_a_message() -> None:
    assert user_message(ParamsError("params.yaml: seed: not a number")) == "params.yaml: seed: not a number"
    full = user_message(OSError(errno.ENOSPC, "No space left on device", "reports/card.json"))
    assert full is not None
    assert "reports/card.json" in full
    assert user_message(OSError(errno.EACCES, "Permission denied")) is None
    assert user_message(KeyError("a")) is None


def chained(inner: Exception, outer: Exception, cause: Exception | None) -> Exception:
    try:
        try:
            raise inner
        except Exception:
            raise outer from cause
    except Exception as error:
        return error


def test_the_reason_is_the_root_cause() -> None:
    refused = ConnectionError("refused\nmore")
    assert reason(chained(refused, RuntimeError("outer"), refused)) == "refused"
    assert reason(chained(refused, RuntimeError("shown"), None)) == "shown"
    assert reason(ValueError()) == "ValueError"
