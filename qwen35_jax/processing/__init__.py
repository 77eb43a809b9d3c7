"""Text to token ids and back, on the host: the tokenizer and the chat template of a checkpoint folder."""

from qwen35_jax.processing.chat_template import ChatTemplate, ChatTemplateError
from qwen35_jax.processing.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "ChatTemplateError", "Tokenizer"]
