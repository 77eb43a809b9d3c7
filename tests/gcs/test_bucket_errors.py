"""Every way in which a bucket fails ends in one line: its address, what is wrong, what to do."""

import errno

import google.auth.exceptions
import pytest
import tensorstore
from gcsfs.core import GCSFileSystem

from qwen35_jax import gcs
from qwen35_jax.command import MACHINE_FAULT, WRONG_INPUT, one_line_errors
from tests.gcs.emulator import Fault

NOT_ALLOWED = "tpu@project.iam.gserviceaccount.com does not have storage.objects.create access"


def read(address):
    gcs.read_bytes(address)


def write(address):
    gcs.write_bytes(address, b"content")


def copy(address):
    gcs.local_copy(address)


def remove(address):
    gcs.remove(address)


def line_and_code(capsys, action, *arguments):
    """Returns what a command that does this would say and end with."""
    with pytest.raises(SystemExit) as end, one_line_errors():
        action(*arguments)
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return line.strip(), end.value.code


@pytest.mark.parametrize("action", [read, write, copy, remove])
@pytest.mark.parametrize(
    ("status", "message", "says", "code"),
    [
        (400, "the billing account is closed", "the bucket refuses (the billing account is closed", WRONG_INPUT),
        (400, "invalid name", "the bucket refuses (invalid name", WRONG_INPUT),
        (
            400,
            "requester pays bucket",
            "the bucket is requester pays; to read it, let FSSPEC_GCS_REQUESTER",
            WRONG_INPUT,
        ),
        (401, "expired", "no access (expired, 401); run `gcloud auth application-default login`", WRONG_INPUT),
        (403, NOT_ALLOWED, f"the bucket refuses ({NOT_ALLOWED}); give the account the role Storage", WRONG_INPUT),
        (403, "Anonymous caller does not have access", "no access (Anonymous caller does not", WRONG_INPUT),
        (429, "slow down", "the storage service failed (slow down, 429)", MACHINE_FAULT),
        (502, "", "the storage service cannot be reached, or broke off (ProxyError)", MACHINE_FAULT),
        (503, "backend error", "the storage service failed (backend error, 503)", MACHINE_FAULT),
        (507, "insufficient storage", "the storage service failed (insufficient storage, 507)", MACHINE_FAULT),
    ],
)
def test_an_answer_that_is_no_success(place, capsys, action, status, message, says, code):
    address = place.put("x", b"1")
    place.fail(Fault("refuse", status=status, message=message))
    line, ended_with = line_and_code(capsys, action, address)
    assert line.startswith(f"error: {address}: {says}") and ended_with == code


@pytest.mark.parametrize("action", [read, write, copy, remove])
def test_an_error_that_passes_is_not_noticed(place, action):
    address = place.put("x", b"1")
    place.fail(*(Fault("refuse", status=status, times=1) for status in (429, 500, 503, 504)))
    action(address)


@pytest.mark.parametrize("action", [read, write, copy])
def test_there_is_no_such_bucket(emulator, place, capsys, action):
    line, code = line_and_code(capsys, action, "gs://other-bucket/x")
    assert line == "error: gs://other-bucket/x: there is no such bucket or object." and code == WRONG_INPUT


def test_a_missing_object_can_be_caught_as_a_missing_file(place):
    with pytest.raises(FileNotFoundError):
        gcs.read_bytes(f"{place.address}/none")


@pytest.mark.parametrize("action", [read, copy])
def test_the_service_cannot_be_reached(place, monkeypatch, capsys, action):
    elsewhere = GCSFileSystem(endpoint_url="http://127.0.0.1:1", token="anon", skip_instance_cache=True)
    monkeypatch.setattr(gcs, "filesystem", lambda: elsewhere)
    line, code = line_and_code(capsys, action, "gs://bucket/x")
    assert line.startswith("error: gs://bucket/x: the storage service cannot be reached") and "127.0.0.1" in line
    assert code == MACHINE_FAULT


def test_the_service_does_not_answer(place, monkeypatch, capsys):
    address = place.put("x", b"1")
    monkeypatch.setattr(gcs.filesystem(), "requests_timeout", 0.05)
    place.fail(Fault("delay", seconds=0.5))
    line, code = line_and_code(capsys, read, address)
    assert line.startswith(f"error: {address}: the storage service") and code == MACHINE_FAULT


def write_with_tensorstore(address):
    with gcs.bucket_errors(address):
        tensorstore.KvStore.open(f"{address}/").result().write("x", b"1").result()


@pytest.mark.parametrize(
    ("status", "message", "says"),
    [
        (403, NOT_ALLOWED, f"the bucket refuses ({NOT_ALLOWED}); give the account the role"),
        (401, "Anonymous caller does not have access", "no access (Anonymous caller does not have access); run"),
    ],
)
def test_tensorstore_is_refused(place, capsys, status, message, says):
    place.fail(Fault("refuse", method="POST", status=status, message=message))
    line, code = line_and_code(capsys, write_with_tensorstore, place.address)
    assert line.startswith(f"error: {place.address}: {says}") and code == WRONG_INPUT


def fail_with(error):
    with gcs.bucket_errors("gs://bucket/x"):
        raise error


LOST = "gs://bucket/run/checkpoints/3/state/ocdbt.process_0/d/f076fd43"


@pytest.mark.parametrize(
    ("error", "says", "code"),
    [
        (
            google.auth.exceptions.DefaultCredentialsError("Your default credentials were not found.\nMore."),
            "gs://bucket/x: no access (Your default credentials were not found); run `gcloud auth",
            WRONG_INPUT,
        ),
        (
            google.auth.exceptions.TransportError("Failed to resolve oauth2.googleapis.com"),
            "gs://bucket/x: the storage service cannot be reached, or broke off (Failed to resolve",
            MACHINE_FAULT,
        ),
        (TimeoutError(), "gs://bucket/x: the storage service did not do it in time; run the", MACHINE_FAULT),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "gs://bucket/x: the storage service cannot", MACHINE_FAULT),
        # What tensorstore says.
        (
            ValueError(
                'PERMISSION_DENIED: Error opening "zarr" driver: Error writing "a/.zarray" in OCDBT database at '
                f'gs://bucket/run/checkpoints/3/: {NOT_ALLOWED} [tensorstore_spec=\'{{\\"driver\\": \\"zarr\\"}}\']'
            ),
            f"gs://bucket/x: the bucket refuses ({NOT_ALLOWED}); give the account the role",
            WRONG_INPUT,
        ),
        (
            ValueError(f'NOT_FOUND: Error opening "zarr" driver: Error reading Byte range [0, 185) of {LOST}: gone'),
            f"{LOST} is not there although it was written: the bucket loses writes.",
            MACHINE_FAULT,
        ),
        (
            ValueError("UNAVAILABLE: Error reading gs://bucket/a: CURL error[7] [source locations='...']"),
            "gs://bucket/x: unavailable (CURL error[7]).",
            MACHINE_FAULT,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_errors_of_each_layer(capsys, error, says, code):
    line, ended_with = line_and_code(capsys, fail_with, error)
    assert line.startswith(f"error: {says}") and ended_with == code


@pytest.mark.parametrize(
    "error",
    [
        ValueError("data.path='x' does not exist"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/local/file"),
        OSError(errno.ENOSPC, "No space left on device"),
        FileExistsError("the condition of a write does not hold"),
        KeyError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_others_pass(error):
    with pytest.raises(type(error)) as raised:
        fail_with(error)
    assert raised.value is error
