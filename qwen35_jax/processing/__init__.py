"""Text to token ids and back, on the host: tokenizer, chat template, and where thinking ends and the answer begins."""

from qwen35_jax.processing.chat_template import ChatTemplate, ChatTemplateError
from qwen35_jax.processing.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "ChatTemplateError", "Tokenizer"]
