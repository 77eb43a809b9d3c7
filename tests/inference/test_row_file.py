"""An unfinished file of rows goes on where a kill left it, and is refused where it cannot."""

import json

import pytest

from qwen35_jax.inference.row_file import open_row_file

SETTINGS = {"seed": 7, "stop": ("x",), "bias": None}
ROWS = {
    2: {"id": "c", "response": "tab\t, line\n, é 🙂 \u2028"},
    0: {"id": 0, "response": ""},
    1: {"id": [1.5, None]},
}
WHOLE = "".join(json.dumps(ROWS[place], ensure_ascii=False) + "\n" for place in sorted(ROWS)).encode()


def write(path, settings=SETTINGS, stop_after=3) -> int:
    """Adds the rows that are missing, up to a number of rows; returns how many there were."""
    with open_row_file(path) as rows:
        rows.begin(settings)
        found = len(rows)
        for place, row in list(ROWS.items())[:stop_after]:
            if place not in rows:
                rows.add(place, row)
        if len(rows) == len(ROWS):
            rows.finish()
    return found


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def partial(path):
    return path.with_name("out.jsonl.partial")


def test_rows_are_written_in_the_order_of_their_places_and_nothing_else_stays(path):
    assert write(path) == 0
    assert path.read_bytes() == WHOLE
    assert list(path.parent.iterdir()) == [path]


def test_a_file_cut_at_any_byte_is_finished_to_the_same_bytes(path, partial):
    write(path, stop_after=2)
    written = partial.read_bytes()
    assert not path.exists() and written.count(b"\n") == 3
    for length in range(len(written) + 1):
        partial.write_bytes(written[:length])
        assert write(path) == max(written[:length].count(b"\n") - 1, 0)
        assert path.read_bytes() == WHOLE
        path.unlink()


def test_other_settings_are_refused_by_name_and_keep_the_rows(path, partial):
    write(path, stop_after=2)
    written = partial.read_bytes()
    with pytest.raises(ValueError, match=r"begun with bias=None and not 3, seed=7 and not 8; give the settings"):
        write(path, {**SETTINGS, "seed": 8, "bias": 3})
    assert partial.read_bytes() == written


@pytest.mark.parametrize("line", [b"no row\n", b"2\t{\n", b'x\t{"id": 1}\n'])
def test_a_damaged_line_is_refused_by_number(path, partial, line):
    write(path, stop_after=1)
    partial.write_bytes(partial.read_bytes() + line)
    with pytest.raises(ValueError, match=r"line 3 of .*partial is damaged; remove"):
        write(path)


@pytest.mark.parametrize("line", [b"5\n", b"{}\n", b"words\n"])
def test_a_file_of_something_else_is_not_taken_over(path, partial, line):
    partial.write_bytes(line)
    with pytest.raises(ValueError, match=r"line 1 of .*partial is damaged"):
        write(path)
    assert partial.read_bytes() == line


def test_two_writers_at_once_are_refused(path):
    with open_row_file(path) as rows:
        rows.begin(SETTINGS)
        with pytest.raises(ValueError, match="is being written by another process"):
            write(path)
    assert write(path) == 0


def test_an_existing_file_is_refused(path):
    path.write_text("mine")
    with pytest.raises(ValueError, match="exists; choose another --output"):
        write(path)
    assert path.read_text() == "mine"


def test_a_command_that_fails_before_it_begins_leaves_nothing(path):
    with pytest.raises(KeyError), open_row_file(path):
        raise KeyError
    assert not list(path.parent.iterdir())
