"""From conversations to replies: loads a model, renders chats, generates, and counts the drafts of the MTP head."""

from collections.abc import Callable, Sequence

from eval.config import Generation, Mode
from eval.samples import Reply
from eval.tasks.base import Message
from qwen35_jax.hf.source import ModelSource, load_model, load_tokenizer
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.requests import Completion
from qwen35_jax.inference.speculative import acceptance_by_completion
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.sharding import MeshConfig


def load_engine(source: ModelSource, mesh: MeshConfig, *, slots: int) -> Engine:
    """Loads a tokenizer, and its model onto a mesh.

    Raises:
      ValueError: no model is named, it cannot be loaded, or the mesh does not fit it.
    """
    tokenizer = load_tokenizer(source)
    return Engine(load_model(source, mesh.mesh()), tokenizer, slots=slots)


def generate_replies(
    engine: Engine,
    conversations: Sequence[Sequence[Message]],
    generation: Generation,
    *,
    mode: Mode,
    seeds: Sequence[int],
    on_reply: Callable[[int, Reply], None],
) -> None:
    """Asks for the assistant's next turn of each conversation.

    Args:
      engine: has ``tokenizer`` and ``generate``.
      generation: sampling and length.
      mode: whether the chat template opens a think block.
      seeds: of sampling, one a conversation.
      on_reply: called with a conversation's place as its reply finishes, in any order.
    """

    def finish(index: int, completion: Completion) -> None:
        on_reply(
            index,
            Reply(
                thinking=completion.thinking,
                response=completion.answer,
                finish_reason=completion.finish_reason,
                token_ids=completion.token_ids,
                multiple_closes=completion.multiple_closes,
            ),
        )

    engine.generate(
        _prompts(engine.tokenizer, conversations, mode),
        sampling=generation.sampling,
        max_new_tokens=generation.max_new_tokens,
        seed=seeds,
        on_finish=finish,
    )


def check_mtp_head(engine: Engine) -> None:
    """Checks that the model can draft.

    Raises:
      ValueError: it has no MTP head.
    """
    if not engine.model.config.text.mtp.num_hidden_layers:
        raise ValueError(
            "--mtp-acceptance needs a model with an MTP head, and this checkpoint holds no mtp.* tensors; leave out "
            "--mtp-acceptance, or give a checkpoint that has the head."
        )


def count_drafts(
    engine: Engine, conversations: Sequence[Sequence[Message]], token_ids: Sequence[Sequence[int]], *, mode: Mode
) -> list[tuple[int, int]]:
    """Returns for each greedy reply how many of the MTP head's drafts are accepted, and how many are proposed.

    Args:
      token_ids: the tokens of each reply.
      mode: the one that the replies were generated in.
    """
    prompts = _prompts(engine.tokenizer, conversations, mode)
    return acceptance_by_completion(engine.model, prompts, token_ids, max_batch=engine.slots)


def _prompts(tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], mode: Mode) -> list[list[int]]:
    return [tokenizer.encode_chat(messages, enable_thinking=mode == "thinking") for messages in conversations]
