"""A conversation line by line: each line of input is a user turn, and its answer appears as it is generated."""

import io
import os
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.prompts import Prompt, conversation_prompt
from qwen35_jax.inference.requests import Completion, seed_of
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.processing.processor import Processor, check_placeholders, media_of
from qwen35_jax.wording import as_typed

# A type checker calls ``sys.stdout`` a ``TextIO``; when the program runs, it is a ``TextIOBase``.
Output = TextIO | io.TextIOBase

HELP = (
    "/reset starts a new conversation, /quit or the end of the input leaves. /image PATH and /video PATH go with the "
    "next turn. A line that ends with \\ continues on the next line."
)

_OPTIONS = {"max_new_tokens": "--max-new-tokens", "cache_tokens": "--cache-tokens"}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_NOTES = {
    "length": "(cut off; raise --max-new-tokens for longer answers)\n\n",
    "loop": "(ended, since the text had come to repeat itself)\n\n",
}


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
    processor: Processor | None = None,
) -> None:
    """Answers every turn of ``lines`` in one conversation, until ``/quit`` or their end.

    The whole conversation is rendered anew for each turn: the template drops the reasoning of
    earlier turns, so what the model reads is not what it has just written.

    Args:
      lines: user turns, or the commands ``/reset``, ``/quit``, ``/image PATH`` and ``/video PATH``; empty lines are
        skipped. A line that ends with a backslash continues on the next line. A line that begins with another word
        after a slash gets the help.
      out: gets the text as it is decoded; reasoning is introduced by ``thinking:`` and what
        follows it by ``answer:``.
      color: dim the reasoning with ANSI codes.
      processor: opens images and videos; None for a model that reads text alone.

    A turn that cannot be answered (too long for the model, refused by the template) is reported on
    ``out`` and left out of the conversation.
    """
    first: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    messages, attached = list(first), []
    for turn, text in enumerate(_turns(lines)):
        if text == "/quit":
            return
        if text == "/reset":
            messages, attached = list(first), []
        elif text.startswith(("/image ", "/video ")):
            attached += _attach(engine, text, processor, out)
        elif text.startswith("/") and text.split()[0][1:].isalpha():
            print(HELP, file=out, flush=True)
        elif text:
            question = {"role": "user", "content": [*attached, {"type": "text", "text": text}] if attached else text}
            attached = []
            try:
                prompt = _prompt(engine, processor, [*messages, question], enable_thinking)
                request = engine.submit(
                    prompt, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed_of(seed, turn), stream=True
                )
            except ValueError as err:
                print(f"error: {as_typed(str(err), _OPTIONS)}", file=out, flush=True)
                continue
            messages += [question, _message(_write_answer(engine, request, out, color=color))]


def _attach(engine: Engine, line: str, processor: Processor | None, out: Output) -> list[dict[str, str]]:
    """Returns what ``/image PATH`` adds to the next turn: nothing if it cannot be opened, which is told."""
    kind, _, path = line[1:].partition(" ")
    # As in a shell, quotes may surround a path, and ~ is the home folder.
    path = path.strip()
    path = path[1:-1] if path[:1] in ("'", '"') and path[-1:] == path[:1] else os.path.expanduser(path)
    item = {"type": kind, kind: path}
    try:
        if processor is None:
            has_tower = engine.model.config.vision is not None
            remedy = "leave --text-only out" if has_tower else "give a checkpoint that has a vision tower"
            raise ValueError(f"this chat reads text alone; {remedy}.")
        [opened] = processor.items(media_of([{"role": "user", "content": [item]}]))
    except ValueError as err:
        print(f"error: {err}", file=out, flush=True)
        return []
    print(f"({kind} of {processor.num_tokens(opened):,} tokens, for the next turn)", file=out, flush=True)
    return [item]


def _prompt(
    engine: Engine, processor: Processor | None, messages: list[dict[str, Any]], enable_thinking: bool | None
) -> Prompt:
    if processor is None:
        token_ids = engine.tokenizer.encode_chat(messages, enable_thinking=enable_thinking)
        check_placeholders(token_ids, messages, engine.tokenizer)
        return token_ids
    return conversation_prompt(processor, messages, enable_thinking=enable_thinking)


def _turns(lines: Iterable[str]) -> Iterator[str]:
    """Joins the lines that belong together."""
    begun: list[str] = []
    for line in lines:
        begun.append(line.rstrip())
        if begun[-1].endswith("\\"):
            begun[-1] = begun[-1][:-1]
        else:
            yield "\n".join(begun).strip()
            begun = []
    if begun:
        yield "\n".join(begun).strip()


def _write_answer(engine: Engine, request: int, out: Output, *, color: bool) -> Completion:
    """Writes the completion of a streamed request as it comes, and returns it."""
    shown = None
    while True:
        for event in engine.step():
            if event.id != request:
                continue
            for section, text in ((token.section, token.text) for token in event.tokens if token.text):
                if section != shown:
                    out.write(_heading(section, shown, color=color))
                    shown = section
                out.write(text)
            out.flush()
            if event.completion is not None:
                out.write(f"{_PLAIN if color and shown == 'thinking' else ''}\n\n")
                out.write(_NOTES.get(event.completion.finish_reason, ""))
                out.flush()
                return event.completion


def _heading(section: str, shown: str | None, *, color: bool) -> str:
    """Returns what stands between two sections; an answer without reasoning before it needs nothing."""
    gap = "" if shown is None else f"{_PLAIN if color else ''}\n\n"
    if section == "thinking":
        return f"{gap}{_DIM if color else ''}thinking:\n"
    return gap if shown is None else f"{gap}answer:\n"


def _message(completion: Completion) -> dict[str, str]:
    message = {"role": "assistant", "content": completion.answer}
    return message | {"reasoning_content": completion.thinking} if completion.thinking else message
