"""Chooses parts of the model by group, name or pattern, as settings name them, and finds such words for a choice.

A word is one of these, tried in this order:

- a group: ``attention``, ``deltanet`` and ``mlp`` of the decoder, ``embed`` (the token embedding), ``mtp`` (all of the
  MTP head); ``tower`` and ``merger`` of the vision tower;
- ``all-linear``: every linear layer of decoder and MTP head;
- a name, made of letters, digits, ``_`` and dots: the end of a module's name in the checkpoint, such as ``q_proj``,
  ``self_attn.q_proj`` or ``layers.3.mlp.up_proj``;
- a regular expression for the whole name, such as ``.*layers\\.(20|21)\\..*_proj``. It never takes the embedding, and
  it takes parts of the vision tower only if it says ``visual``.

The text model's names may begin with ``model.language_model.`` or ``model.``. Source: ``target_modules`` in peft.
"""

import difflib
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

GROUPS = ("attention", "deltanet", "mlp", "embed", "mtp", "tower", "merger")
ALL_LINEAR = "all-linear"
_GROUP_OF_BLOCK = {"self_attn": "attention", "linear_attn": "deltanet", "mlp": "mlp"}
_PREFIXES = ("model.language_model.", "model.")
_VISION = "visual"
VISION_GROUPS = ("tower", "merger")
# Names that the decoder has too.
_SHARED_NAMES = ("norm",)

Key = TypeVar("Key", bound=Hashable)


class Module(NamedTuple):
    """A module, or a weight, of one layer."""

    name: str
    """Its name in the checkpoint without what depends on the architecture, and without ``.weight``."""
    takes_patterns: bool = True
    """Whether a regular expression may choose it."""

    @property
    def group(self) -> str:
        """One of ``GROUPS``, or ``head`` for an output head of its own, or ``norm``."""
        first, *rest = self.name.split(".")
        if first == _VISION:
            return VISION_GROUPS["merger" in rest[0]]
        special = {"mtp": "mtp", "embed_tokens": "embed", "lm_head": "head"}
        blocks = [_GROUP_OF_BLOCK[part] for part in rest if part in _GROUP_OF_BLOCK]
        return special.get(first) or (blocks or ["norm"])[0]

    @property
    def kind(self) -> str:
        """The last part of the name, which the same module of other layers has too."""
        return self.name.rpartition(".")[2]

    def spellings(self) -> tuple[str, ...]:
        """Returns the names that it has in checkpoints."""
        if self.group in ("mtp", "head"):
            return (self.name,)
        prefixes = _PREFIXES[1:] if self.group in VISION_GROUPS else _PREFIXES
        return tuple(prefix + self.name for prefix in prefixes)

    def matches(self, word: str) -> bool:
        if word in GROUPS:
            return self.group == word
        is_vision = self.group in VISION_GROUPS
        if word == ALL_LINEAR:
            return self.group != "embed" and not is_vision
        names = [name + ending for name in self.spellings() for ending in ("", ".weight")]
        if _is_name(word):
            if is_vision and word in _SHARED_NAMES:
                return False
            return any(f".{name}".endswith(f".{word}") for name in names)
        if is_vision and _VISION not in word:
            return False
        return self.takes_patterns and any(re.fullmatch(word, name) for name in names)


def check_words(words: Sequence[str], option: str) -> None:
    """Raises ``ValueError`` if a word is neither of the kinds above; ``option`` is what the user calls them."""
    for word in words:
        try:
            re.compile(word)
        except re.error as err:
            raise ValueError(f"{option} has {word!r}, which is no regular expression: {err}.") from err


def choose(
    modules: Mapping[Key, Module], include: Sequence[str], exclude: Sequence[str], *, option: str, excluding: str
) -> set[Key]:
    """Returns the keys of the modules that a word of ``include`` and none of ``exclude`` matches.

    Args:
      option, excluding: what the user calls the two, for messages.

    Raises:
      ValueError: a word matches nothing, where a group may be missing from ``exclude``; or nothing is left.
    """
    for words, name, optional in ((include, option, ()), (exclude, excluding, GROUPS)):
        for word in words:
            if word not in optional and not any(module.matches(word) for module in modules.values()):
                raise ValueError(
                    f"{name} has {word!r}, which matches no module of this model; {_remedy(word, modules.values())}."
                )
    left = {
        key
        for key, module in modules.items()
        if any(map(module.matches, include)) and not any(map(module.matches, exclude))
    }
    if not left:
        raise ValueError(f"{excluding} takes away all that {option} chooses; change one of them.")
    return left


def describe(modules: Mapping[Key, Module], chosen: Collection[Key]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns short words, to include and to exclude, that choose these keys: groups, else kinds, else whole names."""
    others = [module for key, module in modules.items() if key not in chosen]
    rest = [modules[key] for key in modules if key in chosen]
    # Without the head, ``q_proj`` is that of the decoder alone.
    exclude = () if any(module.group == "mtp" for module in rest) else ("mtp",)
    others = [module for module in others if module.group not in exclude]
    words = []

    def take(word: str) -> None:
        nonlocal rest
        if any(module.matches(word) for module in rest) and not any(module.matches(word) for module in others):
            words.append(word)
            rest = [module for module in rest if not module.matches(word)]

    for word in (*GROUPS, *dict.fromkeys(module.kind for module in rest), *[module.spellings()[-1] for module in rest]):
        take(word)
    is_needed = any(module.matches(word) for word in words for module in modules.values() if module.group in exclude)
    return tuple(words), exclude if is_needed else ()


def _is_name(word: str) -> bool:
    return re.fullmatch(r"[\w.]+", word) is not None


def _remedy(word: str, modules: Collection[Module]) -> str:
    groups = [group for group in GROUPS if any(module.group == group for module in modules)]
    kinds = list(dict.fromkeys(module.kind for module in modules))
    near = [] if word in GROUPS else difflib.get_close_matches(word, [*groups, ALL_LINEAR, *kinds], n=1)
    meant = f"did you mean {near[0]!r}? It" if near else "it"
    return (
        f"{meant} has the groups {', '.join(groups)}, and the modules {', '.join(kinds)}; or give {ALL_LINEAR}, or a "
        "regular expression for whole names such as 'model.language_model.layers.0.mlp.up_proj'"
    )
