"""lm-evaluation-harness with our engine as its model: all of its tasks, asked and scored by its own code.

    python -m eval.lm_eval_adapter --model_args pretrained=DIR,enable_thinking=True --tasks gsm8k --apply_chat_template

is the command ``lm_eval`` with the model ``qwen35_jax``, which ``LMEvalConfig`` configures; all other arguments are
lm_eval's own.
"""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from eval.backends.engine import load_engine, template_of
from eval.config import EvalConfig
from qwen35_jax.command import one_line_errors, parse
from qwen35_jax.compiled import keep_compiled_programs
from qwen35_jax.distributed import leave_out_absent_tpu
from qwen35_jax.hf.source import ModelSource
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import Completion, seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.thinking import opens_thinking
from qwen35_jax.sharding import MeshConfig
from qwen35_jax.wording import did_you_mean

NAME = "qwen35_jax"
"""What lm_eval knows the model by."""

# What lm_eval gives every model and only a torch model uses: the engine forms its batches itself.
_FOR_TORCH = ("batch_size", "max_batch_size", "device")
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip
# The first that a request has counts, as in lm_eval.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = ("do_sample", "until", "num_beams", *_SAMPLING, *_LENGTHS)


@dataclasses.dataclass(frozen=True)
class LMEvalConfig:
    """The arguments of the model: ``--model_args pretrained=DIR,slots=32``.

    Raises:
      ValueError: a value is of the wrong type or out of its range.
    """

    pretrained: str = ""
    """Hugging Face folder, also of a bucket, or hub id."""
    adapter: str | None = None
    """PEFT adapter, applied on top."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    data: int = 1
    """With ``fsdp`` and ``tensor``, the mesh of devices."""
    fsdp: int = 1
    tensor: int = 1
    slots: int = 64
    """Most responses written at once."""
    cache_tokens: int | None = None
    """Tokens that the engine's memory holds; by default what the device has room for."""
    speculative_tokens: int = 0
    """Drafts of the MTP head a step."""
    enable_thinking: bool | None = None
    """Whether the chat template opens a think block; by default the template decides. Tasks that compare
    log-likelihoods need False."""
    thinking_budget: int | None = None
    """Most tokens of thinking before it is closed."""
    max_gen_toks: int = 256
    """Longest response in tokens, thinking included, where the task and ``--gen_kwargs`` name none."""
    max_length: int | None = None
    """Tokens of a window of ``loglikelihood_rolling``; by default what the engine holds."""
    prefix_token_id: int | None = None
    """What stands before a text without context; by default ``<|endoftext|>``. lm_eval's ``hf`` takes the tokenizer's
    end token, which is ``<|im_end|>`` in chat checkpoints."""
    seed: int = 0
    """Each sampled response draws from hash(seed, task, document, prompt, settings, repeat)."""

    def __post_init__(self):
        for name in ("max_gen_toks", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; give at least 1.")

    def engine(self) -> Engine:
        """Loads the model.

        Raises:
          ValueError: none is named, or it cannot be loaded.
        """
        if not self.pretrained:
            raise ValueError("no model is named; give --model_args pretrained=DIR, a Hugging Face checkpoint.")
        return load_engine(
            EvalConfig(
                model=ModelSource(self.pretrained, self.adapter, self.dtype),
                mesh=MeshConfig(data=self.data, fsdp=self.fsdp, tensor=self.tensor), slots=self.slots,
                cache_tokens=self.cache_tokens, speculative_tokens=self.speculative_tokens,
            )
        )  # fmt: skip


def settings_of(gen_kwargs: Mapping[str, Any], config: LMEvalConfig) -> tuple[SamplingParams, int]:
    """Returns how a request is written, and its longest response in tokens.

    Without ``do_sample`` a request is sampled if it has a temperature above 0; with it, at 1 if it has none.

    Raises:
      ValueError: a setting that the engine does not have, or a value out of its range.
    """
    given = {name: value for name, value in gen_kwargs.items() if value is not None}
    for name in given:
        if name not in _KNOWN:
            raise ValueError(
                f"gen_kwargs has {name}={given[name]!r}, which the engine does not know; it knows {', '.join(_KNOWN)}."
                f"{did_you_mean(name, _KNOWN)}"
            )
        if name in (*_SAMPLING, *_LENGTHS) and not isinstance(given[name], int | float):
            raise ValueError(f"gen_kwargs has {name}={given[name]!r}; give a number.")
    if given.get("num_beams", 1) != 1:
        raise ValueError(f"gen_kwargs has num_beams={given['num_beams']}, but the engine has no beam search; give 1.")
    sampling: dict[str, Any] = {"temperature": 1.0} | {name: given[name] for name in _SAMPLING if name in given}
    if not given.get("do_sample", given.get("temperature", 0) > 0):
        sampling["temperature"] = 0.0
    until = given.get("until", [])
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    length = next((given[name] for name in _LENGTHS if name in given), config.max_gen_toks)
    return SamplingParams(**sampling, stop=stop, thinking_budget=config.thinking_budget), int(length)


@register_model(NAME)
class Qwen35LM(TemplateLM):
    """lm_eval's view of an engine.

    Args:
      engine: by default the one that the configuration describes is loaded.

    Raises:
      ValueError: the model cannot be loaded.
    """

    def __init__(self, config: LMEvalConfig, engine: Engine | None = None):
        super().__init__()
        self.config, self.engine = config, engine or config.engine()

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "Qwen35LM":
        """Makes the model from ``--model_args``.

        Raises:
          ValueError: an argument that it does not have, or see the configuration.
        """
        arguments = {**arg_dict, **(additional_config or {})}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items() if name not in _FOR_TORCH]
        return cls(parse(options, LMEvalConfig(), program=f"--model {NAME} --model_args"))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "Qwen35LM":
        """Does the same from ``key=value,key=value``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self.engine.tokenizer.pad_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self.eot_token_id if self.config.prefix_token_id is None else self.config.prefix_token_id

    @property
    def tokenizer_name(self) -> str:
        """What lm_eval's cache of prompts tells tokenizers and templates apart by."""
        parts = (self.config.pretrained, template_of(self.engine.tokenizer), self.config.enable_thinking)
        return "__".join(map(str, parts)).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the text of the template, or None if it is not to be applied.

        Raises:
          ValueError: a template is asked for by name.
        """
        if isinstance(chat_template, str):
            raise ValueError(
                f"--apply_chat_template {chat_template}: the checkpoint has one template; leave out the name."
            )
        return self.engine.tokenizer.chat_template.source if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders a conversation up to the model's turn, or into it, if its last message is what that begins with.

        Raises:
          ValueError: the beginning of an answer is given, but the think block stands before the answer.
        """
        begun = "" if add_generation_prompt else chat_history[-1]["content"]
        prompt = self.engine.tokenizer.chat_template.render(
            chat_history if add_generation_prompt else chat_history[:-1],
            add_generation_prompt=True,
            enable_thinking=self.config.enable_thinking,
        )
        if begun and self._opens_thinking(self.tok_encode(prompt)):
            raise ValueError(
                f"the task begins the answer with {begun!r}, which would stand in the think block; give "
                "enable_thinking=False."
            )
        return prompt + begun

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Returns the tokens of a text; none is added."""
        return self.engine.tokenizer.encode(string)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns what follows the think block of each response, up to a stop text; nothing for an unfinished thought.

        Raises:
          ValueError: a setting of a request is unknown or out of range, or a prompt is too long.
        """
        contexts, wanted = zip(*(request.args for request in requests), strict=True)
        settings = [settings_of(each, self.config) for each in wanted]
        prompts = [self.tok_encode(context) or [self.prefix_token_id] for context in contexts]
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:

            def finish(place: int, completion: Completion) -> None:
                self.cache_hook.add_partial("generate_until", requests[place].args, completion.answer)
                bar.update()

            completions = self.engine.generate(
                prompts,
                sampling=[sampling for sampling, _ in settings],
                max_new_tokens=[length for _, length in settings],
                seed=_seeds(self.config.seed, requests),
                on_finish=finish,
            )
        return [completion.answer for completion in completions]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        """Returns for each context and continuation the log-likelihood, and whether greedy decoding would write it."""
        contexts = [context or [self.prefix_token_id] for _, context, _ in requests]
        if any(map(self._opens_thinking, contexts)):
            raise ValueError(
                "the prompts open a think block, and no answer is likely there; give enable_thinking=False, or choose "
                "a task that generates."
            )
        answers = []
        scored = self.engine.score_tokens(contexts, [continuation for _, _, continuation in requests])
        for (texts, _, _), scores in zip(requests, scored, strict=True):
            answers.append((float(scores.log_probabilities.sum(dtype="float64")), bool(scores.greedy.all())))
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
        return answers

    def _opens_thinking(self, tokens: list[int]) -> bool:
        return opens_thinking(self.engine.tokenizer, tokens)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text, in windows where it is longer than one."""
        # The engine holds the token before a window too.
        length = min(self.config.max_length or self.engine.max_length, self.engine.max_length - 1)
        windows = []
        for place, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, length, context_len=1):
                windows.append((place, (None, *make_disjoint_window(window))))
        sums = [0.0] * len(requests)
        answers = self._loglikelihood_tokens([window for _, window in windows])
        for (place, _), (value, _) in zip(windows, answers, strict=True):
            sums[place] += value
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums


def _seeds(seed: int, requests: Sequence[Instance]) -> list[int]:
    """Returns the seed of each request, a function of itself alone; of equal ones, which repeats are, also of its
    number among them."""
    seen, seeds = Counter(), []
    for request in requests:
        key = json.dumps([request.task_name, request.doc_id, request.idx, *request.args], default=str)
        seeds.append(seed_of(seed, f"{key}/{seen[key]}"))
        seen[key] += 1
    return seeds


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``lm_eval`` with our model, unless the arguments or a configuration file name another."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] not in (["run"], ["ls"], ["validate"]):
        arguments = ["run", *arguments]
    names = {argument.partition("=")[0] for argument in arguments}
    if arguments[0] == "run" and not names & {"--model", "-M", "--config", "-C"}:
        arguments += ["--model", NAME]
    leave_out_absent_tpu()
    keep_compiled_programs()
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()


if __name__ == "__main__":
    main()
