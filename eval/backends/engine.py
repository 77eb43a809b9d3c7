"""Our own engine as a backend: loads a model, renders chats, generates and scores."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import jax

from eval.backends.base import Request
from eval.backends.media import prompt_with_media
from eval.config import MOST_PATCHES, EvalConfig
from eval.samples import Reply
from eval.tasks.base import Likelihood
from eval.tasks.media import media_of
from eval.version import code
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.hf.source import ModelSource, load_model, load_tokenizer
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.in_turn import generate_in_turn
from qwen35_jax.inference.prompts import Prompt
from qwen35_jax.inference.requests import Completion
from qwen35_jax.processing.media import MediaError
from qwen35_jax.processing.processor import Processor
from qwen35_jax.processing.thinking import CLOSE
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.storage import fingerprint


def load_engine(config: EvalConfig, *, vision: bool = False) -> Engine:
    """Loads a tokenizer, and its model onto a mesh of this process's devices.

    Args:
      vision: load the vision tower too, if the checkpoint has one.

    Raises:
      ValueError: no model is named, it cannot be loaded, or the mesh does not fit it.
    """
    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model, config.mesh.mesh(jax.local_devices()), vision=vision)
    return Engine(
        model, tokenizer, slots=config.slots, cache_tokens=config.cache_tokens,
        speculative_tokens=config.speculative_tokens,
        most_patches=None if model.vision is None else config.most_patches or MOST_PATCHES,
    )  # fmt: skip


def weights_of(source: ModelSource) -> str:
    """Returns what identifies the weights of a model and its adapter."""
    folders = [find_folder(path) for path in (source.path, source.adapter) if path]
    return fingerprint(path for folder in folders for path in sorted(folder.glob("*.safetensors")))


class EngineBackend:
    """Lets an engine answer.

    Args:
      source: where its model comes from; None for a model in training.
      processor: makes inputs of questions with images or videos; without it these are refused.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, engine: Engine, source: ModelSource | None = None, processor: Processor | None = None):
        self.engine, self._tokenizer, self._processor = engine, engine.tokenizer, processor
        self.identity: dict[str, Any] = {
            "code": code(),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "weights": None if source is None else weights_of(source),
            "dtype": None if source is None else [source.dtype, source.param_dtype],
            "sizes": asdict(engine.sizes),
        }
        self.fingerprint = _digest(json.dumps(self.identity, sort_keys=True))
        self.template = template_of(engine.tokenizer)
        self._close = engine.tokenizer.token_id(CLOSE)

    @property
    def slots(self) -> int:
        """Most responses that are written at once."""
        return self.engine.slots

    @property
    def generated_tokens(self) -> int:
        """Tokens written so far."""
        return self.engine.metrics.generated_tokens

    def generate(self, requests: Sequence[Request], on_reply: Callable[[int, Reply], None]) -> None:
        """Writes all responses; ``on_reply`` is called with the place of each as it finishes, in any order.

        Raises:
          ValueError: a prompt is too long for the engine, or has images or videos and the engine takes none, or one of
            them cannot be read.
        """
        sampling, limits = [request.sampling for request in requests], [request.max_new_tokens for request in requests]
        how: dict[str, Any] = {"sampling": sampling, "max_new_tokens": limits, "seed": [x.seed for x in requests]}
        prompts: dict[int, list[int]] = {}

        def finish(place: int, completion: Completion) -> None:
            on_reply(place, self._reply(prompts[place], requests[place], completion))

        if not any(media_of(request.document.messages) for request in requests):
            prompts |= {place: prompt_of(self._tokenizer, request) for place, request in enumerate(requests)}
            self.engine.generate(list(prompts.values()), on_finish=finish, **how)
            return
        keys = [(id(request.document), request.style, request.mode) for request in requests]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}

        def make(place: int) -> Sequence[int]:
            [prompt] = self.engine.read([self._prompt(requests[place])])
            prompts[place] = list(prompt)
            return prompt

        def finish_sample(place: int, completion: Completion) -> None:
            # Samples of one question share what was made for the first of them.
            prompts.setdefault(place, prompts[first[keys[place]]])
            finish(place, completion)

        # The pixels of all questions would take more than the memory.
        generate_in_turn(self.engine, keys, make, finish_sample, **how)

    def _prompt(self, request: Request) -> Prompt:
        """Returns the tokens of a prompt, or the model inputs of one with images or videos."""
        messages = request.document.messages
        if not media_of(messages):
            return prompt_of(self._tokenizer, request)
        if request.style != "chat":
            raise ValueError(
                f"document {request.document.id!r} shows images or videos, which are asked about in style chat only."
            )
        if self._processor is None:
            raise ValueError(
                f"document {request.document.id!r} shows images or videos, but the model that is evaluated here reads "
                "text alone; evaluate its export with eval.run."
            )
        try:
            return prompt_with_media(self._processor, messages, enable_thinking=request.mode == "thinking")
        except MediaError as err:
            raise ValueError(f"{request.document.where}: {err}") from err

    def _reply(self, prompt: list[int], request: Request, completion: Completion) -> Reply:
        tokens = completion.token_ids
        return Reply(
            thinking=completion.thinking,
            response=completion.answer,
            finish_reason=completion.finish_reason,
            prompt_ids=prompt,
            token_ids=tokens,
            close_positions=[place for place, token in enumerate(tokens) if token == self._close],
            multiple_closes=completion.multiple_closes,
            seed=request.seed,
            closed_by_budget=completion.closed_by_budget,
        )

    def score(self, likelihoods: Sequence[Likelihood]) -> list[list[float]]:
        """Returns the log-likelihood of each choice of each document."""
        pairs = [self.pair(each.context, choice) for each in likelihoods for choice in each.choices]
        sums = iter([float(scores.sum()) for scores in self.engine.score(*zip(*pairs, strict=True))])
        return [[next(sums) for _ in each.choices] for each in likelihoods]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Returns the tokens of a context and of what follows it, as the two together are tokenised.

        Spaces at the end of the context go with what follows it. An empty context becomes the end-of-text token.
        """
        kept = context.rstrip(" ")
        before = self._tokenizer.encode(kept)
        whole = self._tokenizer.encode(context + continuation)
        if not before:
            return [self._tokenizer.pad_token_id], whole
        return before, whole[len(before) :]


def prompt_of(tokenizer: Tokenizer, request: Request) -> list[int]:
    """Returns the tokens of a request's prompt."""
    document = request.document
    if request.style == "chat":
        return tokenizer.encode_chat(document.messages, enable_thinking=request.mode == "thinking")
    assert document.text is not None, "a run checks the style of every document before it begins"
    return tokenizer.encode(document.text)


def template_of(tokenizer: Tokenizer) -> str | None:
    """Returns what identifies the chat template; None where there is none."""
    try:
        return _digest(tokenizer.chat_template.source)
    except ValueError:
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_mtp_head(engine: Engine, *, shows: bool) -> None:
    """Checks that the acceptance of drafts can be measured.

    Args:
      shows: whether some questions have images or videos.

    Raises:
      ValueError: they have, or the model has no MTP head.
    """
    if shows:
        raise ValueError("--mtp-acceptance is measured on text alone; leave it out, or the tasks with images.")
    if not engine.model.config.text.mtp.num_hidden_layers:
        raise ValueError(
            "--mtp-acceptance needs a model with an MTP head, and this checkpoint holds no mtp.* tensors; leave out "
            "--mtp-acceptance, or give a checkpoint that has the head."
        )
