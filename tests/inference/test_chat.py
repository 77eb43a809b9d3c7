"""The chat loop with an engine whose answers are known."""

import io

import pytest

from qwen35_jax.inference.chat import chat
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from tests.inference.told import told


class ScriptedEngine(Engine):
    """Streams given answers and keeps the prompts it was asked."""

    def __init__(self, tokenizer, *answers: str):
        self.tokenizer, self.answers, self.prompts, self.seeds = tokenizer, iter(answers), [], []

    def stream(self, prompt, *, sampling, max_new_tokens, seed):
        self.prompts.append(self.tokenizer.decode(prompt, skip_special_tokens=False))
        self.seeds.append(seed)
        answer = next(self.answers)
        if answer == "too long":
            raise ValueError("prompt 0 has too many tokens")
        end = "" if answer.endswith("...") else "<|im_end|>"
        return told(self.tokenizer, prompt, self.tokenizer.encode(f"{answer}{end}"))


def talk(engine, *lines: str, **settings) -> str:
    out = io.StringIO()
    chat(engine, [f"{line}\n" for line in lines], out, sampling=SamplingParams(), max_new_tokens=99, **settings)
    return out.getvalue()


def test_answers_every_line_with_the_history(tokenizer):
    engine = ScriptedEngine(tokenizer, "Hello 🙂", "Bye")
    assert talk(engine, "hi", "", "leaving", system="Be brief.") == "Hello 🙂\n\nBye\n\n"
    first, second = engine.prompts
    assert first.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n")
    assert "Hello 🙂<|im_end|>\n<|im_start|>user\nleaving<|im_end|>\n" in second
    assert len(set(engine.seeds)) == 2


def test_thinking_is_shown_apart_and_leaves_the_history(tokenizer):
    engine = ScriptedEngine(tokenizer, "easy\n</think>\n\n4", "nothing\n</think>\n\nok")
    shown = talk(engine, "2 + 2?", "thanks", enable_thinking=True)
    assert shown.startswith("thinking:\neasy\n\n\nanswer:\n4\n\nthinking:\nnothing")
    assert engine.prompts[0].endswith("<think>\n")
    assert "easy" not in engine.prompts[1] and "4<|im_end|>" in engine.prompts[1]


def test_an_answer_that_was_cut_off_is_marked(tokenizer):
    engine = ScriptedEngine(tokenizer, "let me think...", "4")
    shown = talk(engine, "2 + 2?", "shorter", enable_thinking=True)
    assert shown.startswith("thinking:\nlet me think...\n\n(cut off; raise --max-new-tokens")
    assert shown.count("cut off") == 1


def test_color_is_switched_off_where_thinking_ends(tokenizer):
    shown = talk(ScriptedEngine(tokenizer, "a</think>b", "cut off"), "x", "y", enable_thinking=True, color=True)
    assert shown == "\x1b[2mthinking:\na\x1b[0m\n\nanswer:\nb\n\n\x1b[2mthinking:\ncut off\x1b[0m\n\n"


def test_reset_starts_anew_and_quit_ends(tokenizer):
    engine = ScriptedEngine(tokenizer, "one", "two")
    talk(engine, "first", "/reset", "second", "/quit", "never asked")
    assert len(engine.prompts) == 2
    assert "first" not in engine.prompts[1]


def test_a_turn_that_cannot_be_answered_is_left_out(tokenizer):
    engine = ScriptedEngine(tokenizer, "too long", "fine")
    assert talk(engine, "first", "second") == "error: prompt 0 has too many tokens\nfine\n\n"
    assert "first" not in engine.prompts[1]


@pytest.mark.parametrize("text", ["naïve 日本語", "🙃"])
def test_text_is_written_in_whole_characters(tokenizer, text):
    assert talk(ScriptedEngine(tokenizer, text), "x") == f"{text}\n\n"
