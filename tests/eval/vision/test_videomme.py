"""Video-MME: prompts, subtitles of the frames that are shown, and where videos lie."""

import pytest

from eval.tasks import videomme
from eval.tasks.videomme import frame_times, read_subtitles, shown_subtitles
from eval.videos import Length
from tests.eval.vision.pictures import load, parts_of, write_parquet

SRT = """1
00:00:00,000 --> 00:00:01,500
<font color="white" size=".72c">Good
morning</font>

2
00:00:01,600 --> 00:00:01,900
never seen

3
00:01:02,5 --> 01:00:00.000
the end
"""
REQUEST = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option."
)


def row(**changes):
    return {
        "video_id": "001", "duration": "short", "videoID": "fFjv93ACGo8", "question_id": "001-1", "question": "What?",
        "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. All."], "answer": "C",
    } | changes  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "videomme"
    write_parquet(place / "test-00000-of-00001.parquet", [row(), row(question_id="001-2", videoID="other")])
    for name in ("fFjv93ACGo8", "other"):
        (place / "data").mkdir(exist_ok=True)
        (place / "data" / f"{name}.mp4").write_bytes(b"video")
    (place / "subtitle").mkdir()
    (place / "subtitle" / "fFjv93ACGo8.srt").write_text(SRT)
    monkeypatch.setattr(videomme, "length_of", lambda path: Length(250, 25.0))
    return tmp_path


def test_subtitles_are_those_of_the_frames():
    subtitles = read_subtitles(SRT)
    assert [(each.start, each.end, each.text) for each in subtitles] == [
        (0.0, 1.5, "Good morning"), (1.6, 1.9, "never seen"), (62.005, 3600.0, "the end"),
    ]  # fmt: skip
    assert shown_subtitles(subtitles, [0.0, 1.55, 70.0]) == "Good morning the end"
    assert read_subtitles("no subtitles") == []


def test_frames_are_those_that_the_processor_chooses():
    # facts of the reference: 9 frames at 3 a second give 0, 2, 3, 5, 6, 8.
    assert frame_times(Length(9, 3.0), 2.0, 768) == pytest.approx([each / 3 for each in (0, 2, 3, 5, 6, 8)])
    assert len(frame_times(Length(90_000, 25.0), 2.0, 512)) == 512
    assert frame_times(Length(2, 25.0), 2.0, 768) == [0.0, 0.04]


def test_the_prompts_with_and_without_subtitles(folder):
    shown, none = load("videomme", folder)
    asked = f"{REQUEST}\nWhat?\nA. Apples.\nB. Candles.\nC. Berries.\nD. All.\nThe best answer is:"
    video, text = parts_of(shown)
    assert text["text"] == f"This video's subtitles are listed below:\nGood morning\n{asked}"
    assert video == {
        "type": "video", "video": str(folder / "videomme" / "data" / "fFjv93ACGo8.mp4"), "fps": 2, "max_frames": 512,
        "min_pixels": 3_584, "max_pixels": 401_408, "total_pixels": 19_267_584,
    }  # fmt: skip
    assert parts_of(none)[1]["text"] == asked
    assert [parts_of(each)[1]["text"] for each in load("videomme_no_subtitles", folder)] == [asked, asked]
    assert (shown.id, shown.group, shown.target) == ("001-1", "short", "C")
    official = load("videomme", folder, "official")
    assert "based on the video and the subtitles." in parts_of(official[0])[1]["text"]
    assert parts_of(official[1])[0].keys() == {"type", "video"}


def test_what_counts(folder):
    (card, _), (official, _) = load("videomme", folder), load("videomme", folder, "official")
    assert card.score("The answer is C, for A is wrong").correct and card.score("berries.").correct
    assert official.score("The best answer is C.").correct and not official.score("Because of A: C").correct


def test_a_missing_video_is_named_only_when_it_is_shown(folder):
    (folder / "videomme" / "data" / "other.mp4").unlink()
    with pytest.raises(ValueError, match=r"there is no video .*other\.mp4"):
        load("videomme", folder)
    assert len(load("videomme", folder, asked=False)) == 2


def test_wrong_rows(tmp_path):
    write_parquet(tmp_path / "videomme" / "test.parquet", [row(answer="E")])
    with pytest.raises(ValueError, match="answer='E' is the letter of none of the options"):
        load("videomme", tmp_path)
