"""Reads the rows of one source into canonical form, and says what they are and what of them is not read."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from train.config.data import Source
from train.data.convert import converted, source_digest
from train.data.forms import NAMES, FormName, forms_of, read_as, unread_columns, unread_message_keys
from train.data.forms.media import check_words, media_column
from train.data.rows import Conversation, RowError, check_row
from train.data.values import named

logger = logging.getLogger(__name__)

_TURN_ON = "give data.vision in the run file, or --data.vision.max-pixels 1048576, to train on them"


class RowReader:
    """Turns a row into a conversation or a text.

    The user's function comes first, if there is one. The form of a row is the one that the settings name; without a
    name it is told by the keys, and must be one of those that were seen when the run started (`Survey`).
    """

    def __init__(self, source: Source, control: re.Pattern[str], *, vision: bool = False):
        """Takes the settings of the source.

        Args:
          control: tokens that a row must not spell (`train.data.rows.control_tokens`).
          vision: whether images and videos are read; rows that hold some are unusable otherwise.
        """
        self._source, self._control, self._vision = source, control, vision
        self._seen: tuple[FormName, ...] | None = None

    def read(self, row: Any) -> Conversation | str:
        """Reads and checks a row.

        Raises:
          RowError: it cannot be used.
        """
        given = self.given(row)
        return self.read_as(self.form_of(given), given)

    def given(self, row: Any) -> Any:
        """Returns what the user's function makes of the row; without one, the row."""
        return row if self._source.convert is None else converted(self._source.convert, row)

    def form_of(self, row: Any) -> FormName:
        """Returns the form of a row.

        Raises:
          RowError: it is of none, or of another one than the rows that were seen at the start.
        """
        if self._source.form is not None:
            return self._source.form
        found = forms_of(row)
        seen = self._seen or NAMES
        if found[0] not in seen:
            raise RowError(
                "other_form", f"the row is of the form {found[0]}, those checked before are {' or '.join(seen)}"
            )
        if self._seen and len(seen) > 1 < len(found):
            raise RowError(
                "other_form", f"the row may be of the forms {' and '.join(found)}; name one with --data.form"
            )
        return found[0]

    def read_as(self, form: FormName, row: Any) -> Conversation | str:
        """Reads and checks a row of a known form.

        Raises:
          RowError: it cannot be used.
        """
        if form != "text" and not self._vision and (column := media_column(row)):
            raise RowError("vision", f"the row holds images or videos in its column {column!r}; {_TURN_ON}")
        content = read_as(form, row)
        if isinstance(content, Conversation) and content.media and not self._vision:
            raise RowError("vision", f"the row holds images or videos; {_TURN_ON}")
        if isinstance(content, Conversation) and self._vision:
            check_words(row, content, unread_columns(form, row))
        if isinstance(content, str) and self._vision and (column := media_column(row)):
            raise RowError("vision", f"a text cannot hold the media of {column!r}; write the row as a conversation")
        check_row(content, self._control)
        return content

    def settle(self, forms: tuple[FormName, ...]) -> None:
        """Says which forms the source has; with the user's function, or if none was seen, it may have any."""
        if self._source.convert is None:
            self._seen = forms or None

    @property
    def identity(self) -> str:
        """Changes when the same rows would be read otherwise."""
        if self._source.convert is not None:
            return f"convert {source_digest(self._source.convert)}"
        return self._source.form or "+".join(self._seen or NAMES)


class Survey:
    """Goes through rows at the start of a run, finds their forms, and counts the keys that are not read."""

    def __init__(self, reader: RowReader, source: Source):
        self._reader, self._source = reader, source
        self._forms: Counter[tuple[FormName, ...]] = Counter()
        self._first: dict[tuple[FormName, ...], str] = {}
        self._columns: Counter[str] = Counter()
        self._message_keys: Counter[str] = Counter()

    def read(self, row: Any, where: Callable[[], str]) -> Conversation | str:
        """Reads a row as `RowReader.read` does.

        Raises:
          RowError: it cannot be used.
        """
        given = self._reader.given(row)
        found = (self._source.form,) if self._source.form else tuple(forms_of(given))
        self._forms[found] += 1
        if found not in self._first:
            self._first[found] = where()
        content = self._reader.read_as(found[0], given)
        self._columns.update(unread_columns(found[0], given))
        self._message_keys.update(unread_message_keys(found[0], given))
        return content

    def finish(self, columns_not_read: Mapping[str, int]) -> None:
        """Settles the form of the source, and logs it with the keys that are not read.

        Args:
          columns_not_read: columns of Parquet files that the rows came without, and how many rows have them.

        Raises:
          ValueError: the rows are of several forms and some may be of more than one.
        """
        counts: Counter[FormName] = Counter()
        for found, count in self._forms.items():
            counts[found[0]] += count
        if self._source.convert is None and len(counts) > 1 and any(len(found) > 1 for found in self._forms):
            kinds = (
                f"{count:,} rows {' and '.join(found)} (first {self._first[found]})"
                for found, count in self._forms.most_common()
            )
            raise ValueError(
                f"the rows of {self._source.path} are of several forms, and some may be of more than one: "
                f"{'; '.join(kinds)}; name the one to read with --data.form."
            )
        self._reader.settle(tuple(name for name in NAMES if name in counts))
        how = (
            "by data.convert" if self._source.convert else "as data.form says" if self._source.form else "by their keys"
        )
        forms = ", ".join(f"{name} ({count:,} rows)" for name, count in counts.most_common())
        if forms:
            logger.info("%s: read as %s, %s", self._source.path, forms, how)
        self._columns.update(columns_not_read)
        for what, keys in (("keys of rows", self._columns), ("keys of messages", self._message_keys)):
            if keys:
                listed = ", ".join(f"{named([key])} ({count:,})" for key, count in keys.most_common(30))
                logger.warning("%s: %s that are not read: %s", self._source.path, what, listed)
