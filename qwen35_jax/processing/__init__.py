"""Conversations to the model's inputs and back, on the host: text, images and videos; thinking and tool calls."""

from qwen35_jax.processing.chat_template import ChatTemplate, ChatTemplateError
from qwen35_jax.processing.media import MediaError, MediaPolicy
from qwen35_jax.processing.processor import Processor
from qwen35_jax.processing.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "ChatTemplateError", "MediaError", "MediaPolicy", "Processor", "Tokenizer"]
