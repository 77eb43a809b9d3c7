"""Checks of settings by the types of their fields, also for those that a run file builds without the command line."""

import dataclasses
import math
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


def check_finite(settings: Any, part: str = "") -> None:
    """Checks that no field holds NaN or an infinity, which pass most comparisons and would spoil every number.

    Args:
      settings: a dataclass.
      part: what the option of a field begins with, such as ``optim.``.

    Raises:
      ValueError: a field does.
    """
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, float) and not math.isfinite(value):
            # Every such setting has a default, which is a number or None.
            raise ValueError(f"{part}{each.name}={value} is not finite; give a number, or leave it at {each.default}.")
