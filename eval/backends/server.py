"""An OpenAI-compatible server as a backend."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from eval.backends.base import Request
from eval.backends.client import Client, Failure
from eval.backends.media import openai_messages
from eval.backends.probe import SETTINGS, Findings, Setting, accepts, probe
from eval.backends.stream import Answer, RefusedError, UnansweredError
from eval.config import EvalConfig, ServerConfig, sampling_of
from eval.protocols import Mode
from eval.samples import Reply
from eval.tasks import get_task
from eval.tasks.base import Likelihood
from qwen35_jax.inference.requests import FinishReason
from qwen35_jax.processing.thinking import CLOSE, Split, split_text

_OUR_NAME = "qwen35-jax"
_PATHS = {"chat": "/chat/completions", "text": "/completions"}
# Statuses that every request would get: no key, no right, no such model.
_FOR_ALL = (401, 403, 404)
_FINISH_REASONS: Mapping[str | None, FinishReason] = {
    "stop": "stop",
    "length": "length",
    # Of a text that looks like a call of a tool; the model has ended it.
    "tool_calls": "stop",
    "abort": "aborted",
}
_OUR_REASONS: Mapping[str | None, FinishReason] = {reason: reason for reason in get_args(FinishReason)}


class _Bodies(Sequence[tuple[str, Mapping[str, Any]]]):
    """Requests as they are sent, each made when it is its turn: images are many gigabytes."""

    def __init__(self, requests: Sequence[Request], make: Callable[[Request], tuple[str, Mapping[str, Any]]]):
        self._requests, self._make = requests, make

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, place: Any) -> Any:
        return self._make(self._requests[place])


class ServerGoneError(OSError):
    """A server no longer answers."""

    def __init__(self, message: str):
        super().__init__(message)
        self.errno = 5  # EIO, by which commands know a fault of the machine.


class ServerBackend:
    """Lets a server answer, after a probe of the settings that the configured tasks need.

    Raises:
      ValueError: the server does not answer, has no such model, does not follow a setting that it must, or the
        configuration has settings that it cannot know.
    """

    template: str | None = None

    def __init__(self, config: EvalConfig):
        settings = config.server
        assert settings.url is not None
        wrong = sorted(set(settings.accept_dropped) - set(SETTINGS))
        if wrong:
            raise ValueError(f"--server.accept-dropped {wrong[0]}: no such setting; give {', '.join(SETTINGS)}.")
        self._client = Client(settings.url, os.environ.get(settings.key_variable), settings.connections)
        model = _model_of(self._client, settings)
        self._model = str(model["id"])
        self._is_ours = model.get("owned_by") == _OUR_NAME
        _check_is_ours_if_needed(config, ours=self._is_ours)
        told = {name: model.get(name) for name in ("id", "root", "owned_by", "max_model_len")}
        self.identity: dict[str, Any] = {"server": self._client.url, **told}
        self.fingerprint = _digest(self.identity)

        def ask(text: str, fields: Mapping[str, Any]) -> Answer:
            asked = {"prompt": text} if config.style == "text" else {"messages": [{"role": "user", "content": text}]}
            return self._client.ask(_PATHS[config.style], {"model": self._model, **asked, **fields})

        try:
            self._findings = probe(ask, needed_settings(config))
            self._takes_min_p = accepts(ask, {"min_p": 0.0})
        except (RefusedError, UnansweredError) as err:
            raise ValueError(
                f"{self._client.url} does not answer a short question: {err}{_hint(err, settings)}"
            ) from err
        self.labels = (*_labels(self._findings, settings), *_media_labels(config))

    @property
    def slots(self) -> int:
        """Most responses that are written at once."""
        return self._client.connections

    @property
    def generated_tokens(self) -> int:
        """Tokens written so far, those of unfinished responses reckoned from their length."""
        return self._client.generated_tokens

    def generate(self, requests: Sequence[Request], on_reply: Callable[[int, Reply], None]) -> None:
        """Writes all responses; ``on_reply`` is called with the place of each as it finishes, in any order.

        A request that the server refuses, or fails to answer again and again, gets a reply that says ``"error"``, with
        the reason.

        Raises:
          ValueError: the server refuses whatever it is asked.
          ServerGoneError: the server no longer answers anything.
        """
        # As in an engine, the longest may begin first, so that none of them is left alone at the end.
        places = sorted(range(len(requests)), key=lambda place: -requests[place].max_new_tokens)

        def finish(number: int, answer: Answer | Failure) -> None:
            place = places[number]
            request = requests[place]
            if isinstance(answer, Answer):
                on_reply(place, self._reply(request, answer))
                return
            self._check_is_there(answer)
            on_reply(place, Reply(None, "", "error", seed=request.seed, failure=str(answer)))

        ordered = [requests[place] for place in places]
        self._client.ask_all(_Bodies(ordered, lambda each: (_PATHS[each.style], self._body(each))), finish)

    def _check_is_there(self, failure: Failure) -> None:
        """Raises an error if what made a request fail will make all fail."""
        kept = "finished samples are kept; start the same command again to go on."
        if isinstance(failure, RefusedError):
            if failure.status in _FOR_ALL:
                raise ValueError(f"{self._client.url} refuses every request now: {failure}; {kept}")
            return
        try:
            self._client.models()
        except UnansweredError as err:
            raise ServerGoneError(f"{self._client.url} does not answer any more: {failure}; {kept}") from err
        except RefusedError:
            pass

    def _body(self, request: Request) -> dict[str, Any]:
        sampling, document = request.sampling, request.document
        body: dict[str, Any] = {"model": self._model, "max_tokens": request.max_new_tokens}
        if request.style == "chat":
            body["messages"] = openai_messages(document.messages)
            body["chat_template_kwargs"] = {"enable_thinking": request.mode == "thinking"}
        else:
            assert document.text is not None, "a run checks the style of every document before it begins"
            body["prompt"] = document.text
        body |= {"temperature": sampling.temperature, "presence_penalty": sampling.presence_penalty}
        if not sampling.greedy:
            body |= {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p, "seed": request.seed}
        # A server that knows no think block would look for them in the thinking.
        if sampling.stop and request.mode != "thinking":
            body["stop"] = list(sampling.stop)
        if sampling.thinking_budget is not None:
            body |= {"thinking_budget": sampling.thinking_budget, "budget_close": sampling.budget_close}
        if sampling.detect_loops:
            body["detect_loops"] = True
        for name in self._left_out:
            body.pop(name, None)
        return body

    @property
    def _left_out(self) -> list[str]:
        """The fields that the server does not read."""
        names: dict[Setting, str] = {"thinking": "chat_template_kwargs"}
        fields = [names.get(setting, setting) for setting in self._findings.rejected]
        return fields if self._takes_min_p else [*fields, "min_p"]

    def _reply(self, request: Request, answer: Answer) -> Reply:
        mode = None if "thinking" in self._findings.dropped else request.mode
        split = split_answer(answer, mode, always_apart=self._is_ours)
        reason = _finish_reason(answer)
        response = split.answer
        if request.mode == "thinking":
            ends = [end for stop in request.sampling.stop if (end := response.find(stop)) >= 0]
            if ends:
                response, reason = response[: min(ends)], "stop"
        return Reply(
            thinking=split.thinking,
            response=response,
            finish_reason=reason,
            multiple_closes=split.multiple_closes,
            seed=request.seed,
            closed_by_budget=answer.finish_detail == "budget",
            num_tokens=answer.completion_tokens,
        )

    def score(self, likelihoods: Sequence[Likelihood]) -> list[list[float]]:
        """Refuses: no server gives the log-likelihood of a given text."""
        raise ValueError("a server does not score choices; give --style chat or text.")


def needed_settings(config: EvalConfig) -> set[Setting]:
    """Returns the settings that the responses of the configured tasks depend on."""
    samplings = [sampling_of(config, get_task(name).protocol(config.protocol), lambda: None) for name in config.tasks]
    sampled = [sampling for sampling in samplings if not sampling.greedy]
    needed: dict[Setting, bool] = {
        "presence_penalty": any(sampling.presence_penalty for sampling in samplings),
        "top_k": any(sampling.top_k for sampling in sampled),
        "seed": bool(sampled),
        "thinking": config.style == "chat",
    }
    return {setting for setting, is_needed in needed.items() if is_needed}


def split_answer(answer: Answer, mode: Mode | None, *, always_apart: bool) -> Split:
    """Returns the thinking and the answer. A thought that has not ended is never an answer.

    Args:
      mode: whether the prompt has opened a think block; None if that is not known.
      always_apart: whether the server keeps all thinking out of the content. Others may leave it there whole, or only
        where it has not ended.
    """
    if answer.reasoning:
        # Without thinking, a server may take the empty block of the prompt for a thought.
        thinks = mode == "thinking" or answer.reasoning.strip()
        thinking = answer.reasoning.strip("\n") if thinks else None
        text = answer.text.lstrip("\n")
        return Split(thinking, text, text.count(CLOSE))
    if always_apart:
        return Split(None, answer.text, answer.text.count(CLOSE))
    return split_text(answer.text, opened=None if mode is None else mode == "thinking")


def _finish_reason(answer: Answer) -> FinishReason | Literal["error"]:
    return _OUR_REASONS.get(answer.finish_detail) or _FINISH_REASONS.get(answer.finish_reason, "error")


def _model_of(client: Client, settings: ServerConfig) -> Mapping[str, Any]:
    """Returns the description of the model that is meant."""
    try:
        models = client.models()
    except UnansweredError as err:
        raise ValueError(f"{client.url} does not answer: {err}; start the server, or correct --server.url.") from err
    except RefusedError as err:
        # Not every server lists its models.
        if settings.model is not None and err.status not in (401, 403):
            return {"id": settings.model}
        raise ValueError(f"{client.url}/models: {err}{_hint(err, settings)}") from err
    names = [str(model.get("id")) for model in models]
    if settings.model is None and len(models) == 1:
        return models[0]
    if settings.model not in names:
        asked = "no --server.model is given" if settings.model is None else f"--server.model {settings.model}"
        raise ValueError(f"{client.url}: {asked}, and the server has {', '.join(names) or 'none'}; name one of them.")
    return models[names.index(settings.model)]


def _hint(err: RefusedError | UnansweredError, settings: ServerConfig) -> str:
    if not isinstance(err, RefusedError):
        return "."
    if err.status in (401, 403):
        return f"; put the key into the environment variable {settings.key_variable}."
    return (
        "; --server.url goes up to the version, such as http://localhost:8000/v1." if err.status in (200, 404) else "."
    )


def _check_is_ours_if_needed(config: EvalConfig, *, ours: bool) -> None:
    named = {"--thinking-budget": config.thinking_budget is not None, "--detect-loops": config.detect_loops}
    for option, is_given in named.items():
        if is_given and not ours:
            raise ValueError(f"{option}: of servers only `qwen35 serve` knows it, and this is another; leave it out.")


def _labels(findings: Findings, settings: ServerConfig) -> tuple[str, ...]:
    """Returns how results must be marked; raises ``ValueError`` if a setting is dropped that may not be."""
    refused = [setting for setting in findings.dropped if setting not in settings.accept_dropped]
    if refused:
        reasons = "; ".join(f"{setting} ({findings.dropped[setting]})" for setting in refused)
        raise ValueError(
            f"{settings.url} does not follow {reasons}. Take a server that does, or give --server.accept-dropped "
            f"{' '.join(settings.accept_dropped + tuple(refused))} to have the results labelled so."
        )
    return tuple(f"the server does not follow {setting}: {reason}" for setting, reason in findings.dropped.items())


def _media_labels(config: EvalConfig) -> tuple[str, ...]:
    """Returns what must be said of tasks whose images or videos have sizes that no request can ask for."""
    sized = [name for name in config.tasks if get_task(name).protocol(config.protocol).media]
    return (f"the limits of pixels and frames of {', '.join(sized)} (the server has its own)",) if sized else ()


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
