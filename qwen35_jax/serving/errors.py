"""What goes wrong with a request, and how OpenAI's protocol says it."""

import dataclasses
from typing import Any

from qwen35_jax.inference.sampling import SamplingParams

_SETTINGS = {field.name for field in dataclasses.fields(SamplingParams)}
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that cannot be answered; the message is for its sender.

    Args:
      status: the HTTP status.
      param: the field that is at fault, with dots for fields of fields.
      retry_after: seconds after which it makes sense to ask again.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.body = error_body(message, status, param)


def refusal_of(err: ValueError) -> RequestError:
    """Returns the refusal for wrong input. A message about a setting begins with its name, which is then ``param``."""
    message = str(err)
    name = message.partition("=")[0].partition(" ")[0]
    return RequestError(message, param=name if name in _SETTINGS else None)


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Returns the JSON of an error as clients of OpenAI read it."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
