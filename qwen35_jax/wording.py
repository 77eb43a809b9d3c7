"""Words of messages: settings as they are typed, and what a mistyped name may have meant."""

import ast
import contextlib
import dataclasses
import difflib
import re
import shlex
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping

_VALUE = r"""'[^']*'|"[^"]*"|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|[^\s,;:)?]*[^\s,;:).?]"""
_VERBS = ("raise ", "lower ", "set ")
_CHOICES = re.compile(r"invalid choice:? '([^']*)'.*(?:choose from|one of) \(?([^)]*)")


def type_of(value: object) -> str:
    """Returns the type of a value with its article, such as ``an int``."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def reason_of(err: Exception) -> str:
    """Returns what an error says, without its number and the file that the message names already, and no full stop."""
    return (getattr(err, "strerror", None) or str(err) or type(err).__name__).rstrip(".")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `` Did you mean X?`` for the known name that is most like ``name``, or nothing where none is."""
    by_lower = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[nearest[0]]}?" if nearest else ""


def did_you_mean_option(typed: str, options: Iterable[str]) -> str:
    """Does the same for an option: its last part counts (``--data.pat``), or its initials (``--lr``)."""
    last = {option: option.lstrip("-").rpartition(".")[2] for option in options}
    wanted = typed.partition("=")[0].lstrip("-").replace("_", "-").lower().rpartition(".")[2]
    alike = difflib.get_close_matches(wanted, last.values(), n=1, cutoff=0.6)
    fitting = [
        option
        for option, part in last.items()
        if option != typed and (part in alike or "".join(word[:1] for word in part.split("-")) == wanted)
    ]
    nearest = difflib.get_close_matches(typed, fitting, n=1, cutoff=0)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def did_you_mean_choice(message: str) -> str:
    """Does the same for a message of tyro or argparse that refuses a choice and lists the others."""
    refused = _CHOICES.search(message)
    return "" if refused is None else did_you_mean(refused[1], re.findall(r"[\w.-]+", refused[2]))


def options_of(config_type: type) -> dict[str, str]:
    """Returns the option of each setting (``--data.bad-rows``) by the name it has in messages (``data.bad_rows``)."""
    return options_by_name(_paths(config_type, ""))


def options_by_name(names: Iterable[str]) -> dict[str, str]:
    """Returns the option that each name of a setting is typed as."""
    return {name.replace("-", "_"): f"--{name.replace('_', '-')}" for name in names}


def _paths(config_type: type, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(config_type, include_extras=True)
    for field in dataclasses.fields(config_type):
        hint = hints[field.name]
        # A field has another name on the command line, or none, where `tyro.conf.arg` gives it one.
        given = (getattr(annotation, "name", None) for annotation in getattr(hint, "__metadata__", ()))
        name = next((name for name in given if name is not None), field.name)
        path = ".".join(filter(None, (prefix, name)))
        bare = hint.__origin__ if hasattr(hint, "__metadata__") else hint
        parts = [part for part in (bare, *typing.get_args(bare)) if dataclasses.is_dataclass(part)]
        for part in parts if typing.get_origin(bare) is not tuple else ():
            yield from _paths(part, path)
        if not parts:
            yield path


def as_typed(message: str, options: Mapping[str, str]) -> str:
    """Replaces the settings that a message names by options: ``data.bad_rows='drop'`` by ``--data.bad-rows drop``.

    A name without a dot is an English word too. It counts where a value follows, and after "raise", "lower" or "set".
    """
    names = "|".join(re.escape(name) for name in sorted(options, key=len, reverse=True))

    def typed(match: re.Match) -> str:
        name, value, was = match.groups()
        if value is not None:
            return _typed_value(options[name], value)
        is_setting = was or "." in name or message[: match.start()].endswith(_VERBS)
        return options[name] + (was or "") if is_setting else match[0]

    return re.sub(rf"(?<![^\s(])({names})(?:=({_VALUE})|( was )|(?![\w=]))", typed, message)


def _typed_value(option: str, text: str) -> str:
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if isinstance(value, bool):
        start, dot, last = option[2:].rpartition(".")
        return option if value else f"--{start}{dot}no-{last}"
    if isinstance(value, dict):
        value = [f"{key}={each}" for key, each in value.items()]
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join([option, *(shlex.quote(str(each)) for each in values)])


@contextlib.contextmanager
def options_as_typed(options: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Writes the settings in the messages of errors about wrong input as options of the command line.

    Settings are checked where they are built, and a run file or a notebook builds them too. There they are fields
    (``data.bad_rows``); who types a command wants to read what to type.

    Args:
      options: returns the options by the names of their settings, and is called only for an error.
    """
    try:
        yield
    except ValueError as err:
        if len(err.args) == 1:
            err.args = (as_typed(str(err), options()),)
        raise
