"""A file of rows that is whole or absent, and that a command goes on with where an earlier one was killed.

While rows are missing they stand in ``OUTPUT.partial``, in the order in which they finished. Its first line holds the
settings that decide what the rows say, and each other line the place of a row, a tab and the row. With the last row the
file is written in the order of the places, under another name, and renamed.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def open_row_file(path: Path) -> "Generator[RowFile]":
    """Yields the unfinished file of rows for ``path``, and keeps other processes out of it.

    An unfinished file without settings, of a command that failed before it began, is removed.

    Raises:
      ValueError: the file exists, its folder does not, another process writes it, or its unfinished file is damaged.
    """
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.absolute().parent} is not a folder; make it, or choose another --output.")
    _check_absent(path)
    partial = path.with_name(f"{path.name}.partial")
    with _open_locked(partial) as file:
        _check_absent(path)  # another process may have written it before this one got the lock
        rows = RowFile(path, partial, file)
        try:
            yield rows
        finally:
            if not rows.settings:
                partial.unlink(missing_ok=True)


def _check_absent(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists; choose another --output or remove it.")


def _open_locked(partial: Path) -> BinaryIO:
    """Opens the unfinished file; the lock ends with the process, however that ends."""
    while True:
        file = partial.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            file.close()
            raise ValueError(
                f"{partial} is being written by another process; wait for its end, or choose another --output."
            ) from err
        # The process that held the lock may have removed the file after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                return file
        file.close()


class RowFile:
    """The rows that are there, and those that are added.

    Attributes:
      settings: what the rows were begun with; empty if there are none.
    """

    def __init__(self, path: Path, partial: Path, file: BinaryIO):
        """Reads what an earlier process wrote; its last line is dropped if the process was killed in the middle of it.

        Raises:
          ValueError: a line before the last is damaged.
        """
        self._path, self._partial, self._file = path, partial, file
        self.settings: dict[str, Any] = {}
        self._ranges: dict[int, tuple[int, int]] = {}  # of the bytes of each row
        end = 0
        file.seek(0)
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            try:
                if number == 0:
                    self.settings = _settings_of(line)
                else:
                    self._note(end, line)
            except ValueError as err:
                raise ValueError(f"line {number + 1} of {partial} is damaged; remove the file to start anew.") from err
            end += len(line)
        file.truncate(end)

    def __contains__(self, place: int) -> bool:
        """Whether the row of this place is there."""
        return place in self._ranges

    def __len__(self) -> int:
        """How many rows are there."""
        return len(self._ranges)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Takes note of the settings that decide what the rows say.

        Args:
          settings: values that JSON can hold.

        Raises:
          ValueError: the rows that are there were begun with others; the message names up to three.
        """
        wanted = json.loads(json.dumps(settings))
        if not self.settings:
            self._append(json.dumps(wanted, ensure_ascii=False).encode() + b"\n")
            self.settings = wanted
        if self.settings != wanted:
            names = sorted(self.settings.keys() | wanted.keys())
            pairs = [(name, self.settings.get(name), wanted.get(name)) for name in names]
            other = [f"{name}={old!r} and not {new!r}" for name, old, new in pairs if old != new]
            raise ValueError(
                f"{self._partial} was begun with {', '.join(other[:3])}; give the settings that it was begun with, or "
                "remove it to start anew."
            )

    def add(self, place: int, row: Mapping[str, Any]) -> None:
        """Writes the row of a place, so that a kill from now on does not lose it."""
        line = f"{place}\t{json.dumps(row, ensure_ascii=False)}\n".encode()
        self._note(self._append(line), line)

    def finish(self) -> None:
        """Writes the file, in the order of the places, and removes the unfinished one."""
        ordered = self._path.with_name(f"{self._path.name}.ordered")
        with ordered.open("wb") as out:
            for _, (start, length) in sorted(self._ranges.items()):
                self._file.seek(start)
                out.write(self._file.read(length))
            out.flush()
            os.fsync(out.fileno())
        ordered.replace(self._path)
        self._partial.unlink()

    def _append(self, line: bytes) -> int:
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        return start

    def _note(self, start: int, line: bytes) -> None:
        place, _, row = line.partition(b"\t")
        json.loads(row)
        self._ranges[int(place)] = start + len(place) + 1, len(row)


def _settings_of(line: bytes) -> dict[str, Any]:
    settings = json.loads(line)
    if not isinstance(settings, dict) or not settings:
        raise ValueError("the first line is no object")
    return settings
