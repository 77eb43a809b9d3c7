"""A check that the command line makes of its own values, for settings that a run file builds."""

from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choices(settings: Any, part: str = "") -> None:
    """Checks that every field whose type lists its values, by ``Literal``, holds one of them.

    Args:
      settings: a dataclass.
      part: what the option of a field begins with, such as ``teacher.``.

    Raises:
      ValueError: a field holds something else.
    """
    for name, hint in get_type_hints(type(settings)).items():
        kinds = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal]
        allowed = [value for kind in kinds for value in get_args(kind)]
        value = getattr(settings, name)
        # None is allowed where it is the default.
        if allowed and value not in (*allowed, getattr(type(settings), name)):
            raise ValueError(f"{part}{name}={value!r} is unknown; choose one of {', '.join(map(str, allowed))}.")
