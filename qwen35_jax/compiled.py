"""Keeps compiled programs from one start of a command to the next."""

import logging
import os
from pathlib import Path

import jax

from qwen35_jax.storage import user_cache

_MOST_BYTES = 5 * 2**30

logger = logging.getLogger(__name__)


def keep_compiled_programs() -> Path | None:
    """Keeps programs that take a second or longer to compile in the user's cache, of at most 5 GiB; returns its folder.

    What JAX was told already stays: the variables JAX_COMPILATION_CACHE_DIR and JAX_ENABLE_COMPILATION_CACHE, or the
    same settings made by a run file. Where the cache cannot be written nothing is kept, and nothing fails.
    """
    # JAX adds its settings to this object at run time, where a type checker can't see them.
    settings = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:  # pyrefly: ignore
        return None
    folder = user_cache("compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        logger.info("compiled programs are not kept: %s cannot be made (%s)", folder, err.strerror)
        return None
    if not os.access(folder, os.W_OK):
        logger.info("compiled programs are not kept: %s cannot be written", folder)
        return None
    settings.update("jax_compilation_cache_dir", str(folder))
    settings.update("jax_compilation_cache_max_size", _MOST_BYTES)
    return folder
