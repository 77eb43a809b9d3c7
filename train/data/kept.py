"""Files that are made once from a data file and kept in the user's cache.

They lie in ``$XDG_CACHE_HOME/qwen35-jax``, by default ``~/.cache/qwen35-jax``, and may be deleted at any time.
"""

import hashlib
from pathlib import Path

from qwen35_jax.storage import user_cache

# Raised when what is kept for the same file changes.
_FORMAT = 2


def kept_file(path: Path, kind: str, ending: str) -> Path:
    """Returns where to keep what is made from a file. Another place, size or time of change is another file.

    Args:
      kind: the folder, which says what is made.
    """
    resolved = path.resolve()
    stat = resolved.stat()
    name = hashlib.sha256(f"{_FORMAT}\0{resolved}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    return user_cache(kind) / f"{name}{ending}"
