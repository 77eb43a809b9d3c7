"""From prompts to replies: loads a model, renders chats, generates."""

from collections.abc import Callable, Sequence

import qwen35_jax
from eval.config import Generation, Mode, ModelSource
from eval.samples import Reply, split_thinking
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.inference.engine import Completion, Engine
from qwen35_jax.processing.tokenizer import Tokenizer


def load_engine(source: ModelSource, *, max_batch: int) -> Engine:
    """Loads model and tokenizer.

    Raises:
      ValueError: no model is named, or it cannot be loaded.
    """
    if not source.path:
        raise ValueError("no model is named; give --model.path DIR, the folder of a Hugging Face checkpoint.")
    folder = find_folder(source.path)
    tokenizer = Tokenizer.from_pretrained(folder)
    model = qwen35_jax.load(folder, dtype=source.dtype, adapter=source.adapter)
    return Engine(model, tokenizer, max_batch=max_batch)


def generate_replies(
    engine: Engine,
    prompts: Sequence[str],
    generation: Generation,
    *,
    mode: Mode,
    seed: int,
    on_reply: Callable[[int, Reply], None],
) -> None:
    """Asks each prompt as a conversation of one user turn.

    Args:
      engine: has ``tokenizer`` and ``generate``.
      prompts: the user turns.
      generation: sampling and length.
      mode: whether the chat template opens a think block.
      seed: of sampling.
      on_reply: called with a prompt's place as its reply finishes, in any order.
    """
    thinking = mode == "thinking"

    def finish(index: int, completion: Completion) -> None:
        on_reply(index, Reply(*split_thinking(completion.text, inside=thinking), completion.finish_reason))

    engine.generate(
        [
            engine.tokenizer.encode_chat([{"role": "user", "content": prompt}], enable_thinking=thinking)
            for prompt in prompts
        ],
        sampling=generation.sampling,
        max_new_tokens=generation.max_new_tokens,
        seed=seed,
        on_finish=finish,
    )
