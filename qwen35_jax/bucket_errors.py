"""What goes wrong with a bucket of Google Cloud Storage, as one line that a user can act on."""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import PurePath

# tensorstore raises ValueErrors that begin with one of these words.
_REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_STATUS = re.compile(
    rf"({'|'.join(_REFUSALS)}|NOT_FOUND|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|FAILED_PRECONDITION|ABORTED|"
    r"INTERNAL|DATA_LOSS|INVALID_ARGUMENT|UNKNOWN): "
)
_ADDRESS = re.compile(r"gs://[^\s\"',]+[^\s\"',.:]")
_TRANSPORTS = ("aiohttp", "requests", "urllib3")
_PASSING = (408, 429)  # Time-out and too many requests; what the service itself fails in begins with a 5.
_LOG_IN = "run `gcloud auth application-default login`, or give the machine a service account."
_PAYS = "the bucket is requester pays; to read it, let FSSPEC_GCS_REQUESTER_PAYS name the project that pays."
_ROLE = "give the account the role Storage Object User on the bucket (to read only: Storage Object Viewer)."


class BucketError(OSError):
    """A bucket did not do what it was asked for. The message is one line and names the address.

    Where the service failed, rather than refused, ``errno`` is that of a failing disk, and a command ends as it does
    for other faults of the machine.
    """

    def __init__(self, message: str, *, fault: bool = False):
        super().__init__(message)
        if fault:
            self.errno = errno.EIO


class ObjectNotFoundError(BucketError, FileNotFoundError):
    """There is no such object, or no such bucket."""


@contextlib.contextmanager
def bucket_errors(address: str | PurePath) -> Iterator[None]:
    """Turns what gcsfs, its transports and tensorstore raise into a `BucketError`; other errors pass.

    An object that is there already, where it should be made anew, stays a ``FileExistsError``.
    """
    try:
        yield
    except BucketError:
        raise
    except Exception as err:
        if (error := _bucket_error(str(address), err)) is None:
            raise
        raise error from err


def _bucket_error(address: str, err: Exception) -> BucketError | None:
    # Errors of the local disk, which have a number, are not the bucket's; those of a connection are.
    if isinstance(err, FileNotFoundError) and err.errno is None:
        return ObjectNotFoundError(f"{address}: there is no such bucket or object.")
    if isinstance(err, TimeoutError):
        return BucketError(
            f"{address}: the storage service did not do it in time; run the same command again.", fault=True
        )
    package, text = type(err).__module__.split(".")[0], str(err).strip()
    if package in _TRANSPORTS or isinstance(err, ConnectionError) or type(err).__name__ == "TransportError":
        said = _line(text) or type(err).__name__
        return BucketError(f"{address}: the storage service cannot be reached, or broke off ({said}).", fault=True)
    if package == "google":
        return BucketError(f"{address}: no access ({_line(text)}); {_LOG_IN}")
    if package == "gcsfs":
        code = getattr(err, "code", None)
        return _of_status(address, None if code is None else int(code), _line(text))
    if isinstance(err, OSError) and text.startswith("Forbidden: "):
        return _of_status(address, 403, _after_url(text))
    if isinstance(err, ValueError) and text.startswith("Bucket is requester pays"):
        return BucketError(f"{address}: {_PAYS}")
    if isinstance(err, ValueError) and text.startswith("Bad Request: "):
        return _of_status(address, 400, _after_url(text))
    if isinstance(err, ValueError) and (status := _STATUS.match(text)):
        return _of_tensorstore(address, status[1], text)
    return None


def _of_status(address: str, code: int | None, said: str) -> BucketError:
    if code == 401 or "Anonymous caller" in said:
        return BucketError(f"{address}: no access ({said}); {_LOG_IN}")
    if code == 403:
        return BucketError(f"{address}: the bucket refuses ({said}); {_ROLE}")
    if code is None or code >= 500 or code in _PASSING:
        return BucketError(f"{address}: the storage service failed ({said}).", fault=True)
    return BucketError(f"{address}: the bucket refuses ({said}).")


def _of_tensorstore(address: str, status: str, text: str) -> BucketError:
    said = text.split(" [")[0].strip().rsplit(": ", 1)[-1].rstrip(".")
    if status in _REFUSALS:
        return _of_status(address, 401 if status == "UNAUTHENTICATED" else 403, said)
    if status == "NOT_FOUND" and (names := _ADDRESS.findall(text)):
        lost = max(names, key=len)
        return BucketError(f"{lost} is not there although it was written: the bucket loses writes.", fault=True)
    return BucketError(f"{address}: {status.lower().replace('_', ' ')} ({said}).", fault=True)


def _line(text: str) -> str:
    return text.splitlines()[0].rstrip(".") if text else ""


def _after_url(text: str) -> str:
    """Returns what the service said, from gcsfs's message: the address of the request, then the words."""
    _, _, said = text.partition("\n")
    return _line(said.strip()) or "without a reason"
