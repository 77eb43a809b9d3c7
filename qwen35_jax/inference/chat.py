"""A conversation line by line: each line of input is a user turn, and its answer appears as it is generated."""

import io
from collections.abc import Iterable
from typing import TextIO

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import StreamedToken
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.tokenizer import Tokenizer

# A type checker calls ``sys.stdout`` a ``TextIO``; when the program runs, it is a ``TextIOBase``.
Output = TextIO | io.TextIOBase

HELP = "/reset starts a new conversation, /quit or the end of the input leaves."

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def chat(
    engine: Engine,
    lines: Iterable[str],
    out: Output,
    *,
    sampling: SamplingParams,
    max_new_tokens: int,
    enable_thinking: bool | None = None,
    system: str | None = None,
    seed: int = 0,
    color: bool = False,
) -> None:
    """Answers every line of ``lines`` in one conversation, until ``/quit`` or their end.

    The whole conversation is rendered anew for each turn: the template drops the reasoning of
    earlier turns, so what the model reads is not what it has just written.

    Args:
      lines: user turns, or the commands ``/reset`` and ``/quit``; empty lines are skipped.
      out: gets the tokens as they are decoded; reasoning is introduced by ``thinking:`` and what
        follows it by ``answer:``.
      color: dim the reasoning with ANSI codes.

    A turn that cannot be answered (too long for the model, refused by the template) is reported on
    ``out`` and left out of the conversation.
    """
    first = [] if system is None else [{"role": "system", "content": system}]
    messages = list(first)
    for turn, line in enumerate(lines):
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            messages = list(first)
        elif text:
            question = {"role": "user", "content": text}
            try:
                prompt = engine.tokenizer.encode_chat([*messages, question], enable_thinking=enable_thinking)
                tokens = engine.stream(prompt, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed + turn)
                answer = _write_answer(engine.tokenizer, tokens, out, color=color)
            except ValueError as err:
                print(f"error: {err}", file=out, flush=True)
                continue
            messages += [question, answer]


def _write_answer(tokenizer: Tokenizer, tokens: Iterable[StreamedToken], out: Output, *, color: bool) -> dict[str, str]:
    """Writes a completion as it comes and returns it as a message of the conversation."""
    shown, token, written = None, None, {"thinking": "", "answer": ""}

    def write(section: str, text: str) -> None:
        nonlocal shown
        if not text:
            return
        if section != shown:
            if shown is not None:
                out.write(f"{_PLAIN if color else ''}\n\n")
            if section == "thinking":
                out.write(f"{_DIM if color else ''}thinking:\n")
            elif shown is not None:
                out.write("answer:\n")
            shown = section
        written[section] += text
        out.write(text)
        out.flush()

    for token in tokens:
        write(token.section, token.text)
    out.write(f"{_PLAIN if color and shown == 'thinking' else ''}\n\n")
    if token is None or token.id not in tokenizer.eos_token_ids:
        out.write("(cut off; raise --max-new-tokens for longer answers)\n\n")
    out.flush()
    message = {"role": "assistant", "content": written["answer"]}
    if written["thinking"].strip("\n"):
        message["reasoning_content"] = written["thinking"].strip("\n")
    return message
