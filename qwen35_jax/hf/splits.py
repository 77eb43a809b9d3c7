"""Chooses the files of one split out of a folder or repository of data, as its card or the names of its files say.

A dataset may have several configurations, such as languages, each with splits of its own. Reading them together is
hardly ever meant, so it is an error that lists them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".parquet")
"""Names of data files end in one of these."""

_TRAIN = "train"
# Words that name a split in a file's path, and the split that they name.
_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# Files that describe a dataset.
_NO_DATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "metadata.json",
}


def choose_files(
    names: Iterable[str],
    configs: Sequence[Mapping[str, Any]],
    *,
    split: str | None = None,
    subset: str | None = None,
    pattern: str | None = None,
) -> list[str]:
    """Returns the data files to read, sorted.

    Args:
      names: every file, by its path from the folder.
      configs: the configurations that the dataset's card lists (``configs`` of its metadata); empty without a card.
      split: the wanted split; ``train`` if None.
      subset: the wanted configuration.
      pattern: for a file's path without the ending; it takes the place of split, subset and card.

    Raises:
      ValueError: the choice is not one set of files of one kind. The message lists what there is and names the
        options, which are fields of the same settings as ``split``.
    """
    data = sorted(name for name in names if _is_data(name))
    if not data:
        raise ValueError(f"it holds no file that ends in {', '.join(ENDINGS)}")
    if pattern is not None:
        patterns = [pattern + ending for ending in ENDINGS]
        chosen = [name for name in data if any(fnmatch(name, each) for each in patterns)]
        if not chosen:
            raise ValueError(f"no file matches hub-files={pattern!r}; its files: {_listed(data)}")
    elif configs:
        chosen = _by_card(data, configs, split=split, subset=subset)
    else:
        chosen = _by_name(data, split=split, subset=subset)
    kinds = Counter(_ending(name) for name in chosen)
    if len(kinds) > 1:
        found = ", ".join(f"{count} {ending}" for ending, count in sorted(kinds.items()))
        raise ValueError(f"it holds files of several kinds ({found}); choose with --data.hub-files or a glob")
    return chosen


def _by_card(
    data: Sequence[str], configs: Sequence[Mapping[str, Any]], *, split: str | None, subset: str | None
) -> list[str]:
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    name = subset or _default_config(by_name)
    if name not in by_name:
        raise _several("configurations", by_name, "subset", wrong=subset)
    config = by_name[name]
    by_split = _patterns(config)
    folder = f"{str(config['data_dir']).strip('/')}/" if config.get("data_dir") else ""
    if not by_split:  # the card names no files: those of the configuration's folder
        inside = [file for file in data if file.startswith(folder)]
        return _by_name(inside or data, split=split, subset=None if inside and folder else subset)
    wanted = split or _TRAIN
    if wanted not in by_split:
        raise _several("splits", by_split, "split", wrong=split)
    patterns = [folder + pattern for pattern in by_split[wanted]]
    chosen = [file for file in data if any(_matches(file, pattern) for pattern in patterns)]
    if not chosen:
        raise ValueError(f"no data file matches what its card names for {wanted}: {', '.join(patterns)}")
    return chosen


def _default_config(by_name: Mapping[str, Mapping[str, Any]]) -> str | None:
    if len(by_name) == 1:
        return next(iter(by_name))
    marked = [name for name, config in by_name.items() if config.get("default")]
    return marked[0] if marked else "default"


def _patterns(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the patterns of each split. A card writes them as one text, as a list, or with the split's name."""
    files = config.get("data_files")
    entries = files if isinstance(files, list) else [] if files is None else [files]
    by_split: dict[str, list[str]] = {}
    for entry in entries:
        paths = entry.get("path", []) if isinstance(entry, Mapping) else entry
        split = str(entry.get("split", _TRAIN)) if isinstance(entry, Mapping) else _TRAIN
        by_split.setdefault(split, []).extend([paths] if isinstance(paths, str) else map(str, paths))
    return by_split


def _matches(name: str, pattern: str) -> bool:
    """``**/`` matches no folder too."""
    return fnmatch(name, pattern) or fnmatch(name, pattern.replace("**/", ""))


def _by_name(data: Sequence[str], *, split: str | None, subset: str | None) -> list[str]:
    """Chooses by the words of the paths; files without a word that names a split are training data."""
    wanted = split or _TRAIN
    splits = {name: _split_of(name, wanted) for name in data}
    chosen = [name for name in data if splits[name] == wanted]
    if not chosen and wanted == _TRAIN:
        chosen = [name for name in data if splits[name] is None]
    if not chosen:
        raise _several("splits", sorted({str(found or _TRAIN) for found in splits.values()}), "split", wrong=split)
    groups: dict[str, list[str]] = {}
    for name in chosen:
        groups.setdefault(_group_of(name, wanted), []).append(name)
    if subset is None and len(groups) > 1:
        raise _several("folders", groups, "subset")
    if subset is not None and subset not in groups:
        raise _several("folders", groups, "subset", wrong=subset)
    return groups[subset] if subset is not None else chosen


def _split_of(name: str, wanted: str) -> str | None:
    """Returns the split that a path names; a word that is the wanted split's own name goes before others."""
    stem = name.removesuffix(_ending(name))
    if re.search(rf"(?<![^\W_]){re.escape(wanted)}(?![^\W_])", stem):
        return wanted
    words = re.split(r"[\W_]+", stem.lower())
    return next((_WORDS[word] for word in reversed(words) if word in _WORDS), None)


def _group_of(name: str, split: str) -> str:
    """Returns the folder of a file, without the parts that name a split or only say that there are data."""
    folders = name.split("/")[:-1]
    return "/".join(part for part in folders if part != "data" and _split_of(f"{part}/", split) is None) or "."


def _several(what: str, names: Iterable[str], option: str, *, wrong: str | None = None) -> ValueError:
    asked = f"{wrong!r} is none of its {what}" if wrong else f"it has several {what}"
    return ValueError(f"{asked}: {_listed(list(names))}; choose one with --data.{option}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def _is_data(name: str) -> bool:
    parts = name.split("/")
    return name.endswith(ENDINGS) and parts[-1] not in _NO_DATA and not any(part[:1] in "._" for part in parts)


def _ending(name: str) -> str:
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")
