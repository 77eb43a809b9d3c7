"""Video-MME: 2,700 questions about 900 videos of eleven seconds to an hour (arXiv:2405.21075; for research only).

The task ``videomme`` shows the subtitles of the videos that have any, ``videomme_no_subtitles`` none of them.

| protocol | prompt | answer |
|---|---|---|
| card | the authors', with the frames of Qwen's published code | VLMEvalKit's rule, else the last letter stated |
| official | the authors' | the first capital letter from A to D after phrases such as "The best answer is" |

Subtitles count whose time covers a frame that is shown; joined by spaces they stand before the question.

Data, in ``DATA_DIR/videomme``: ``test.parquet`` of lmms-lab/Video-MME on the hub, its videos as ``data/VIDEOID.mp4``
and its subtitles as ``subtitle/VIDEOID.srt``. The length of a video is read with PyAV (extra ``video``).
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.protocols import Protocol, ProtocolName
from eval.scorers.options import videomme_letter
from eval.tasks.base import Document, Task, Verdict
from eval.tasks.choices import LETTERS, letter_verdict
from eval.tasks.data import Data, Row
from eval.tasks.media import user_parts
from eval.tasks.vision import QWEN, choice_judging, chosen, text_of
from eval.videos import Length, length_of

_REQUEST = (
    "Select the best answer to the following multiple-choice question based on the video{and_subtitles}. Respond with "
    "only the letter (A, B, C, or D) of the correct option."
)
_SUBTITLES = "This video's subtitles are listed below:"
_END = "The best answer is:"
_FPS, _LEAST_FRAMES, _MOST_FRAMES = 2.0, 4, 768
_TIME = re.compile(r"(\d+):(\d+):(\d+)[,.](\d+)\s*-->\s*(\d+):(\d+):(\d+)[,.](\d+)")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_PREFIX = re.compile(r"^\(?[A-D][.)]\s*")


@dataclasses.dataclass(frozen=True)
class Subtitle:
    """A text and when it is shown, in seconds."""

    start: float
    end: float
    text: str


def read_subtitles(text: str) -> list[Subtitle]:
    """Returns the subtitles of an SRT file, without their marks of style."""
    found = []
    for block in re.split(r"\r?\n\s*\r?\n", text):
        time = _TIME.search(block)
        if time is None:
            continue
        numbers = [int(number) for number in time.groups()]
        start, end = (
            3600 * hours + 60 * minutes + seconds + milliseconds / 1000
            for hours, minutes, seconds, milliseconds in (numbers[:4], numbers[4:])
        )
        words = " ".join(_TAG.sub("", block[time.end() :]).split())
        if words:
            found.append(Subtitle(start, end, words))
    return found


def frame_times(length: Length, fps: float, most: int) -> list[float]:
    """Returns when the frames that a model sees are shown, in seconds.

    Args:
      length: of the video.
      fps: frames a second that are wanted.
      most: frames that are shown of a long video.
    """
    count = min(max(int(length.frames / length.fps * fps), _LEAST_FRAMES), most, length.frames)
    return [place / length.fps for place in np.linspace(0, length.frames - 1, count).round().tolist()]


def shown_subtitles(subtitles: Sequence[Subtitle], times: Sequence[float]) -> str:
    """Returns the texts that are shown at one of these times, joined by spaces."""
    texts = [each.text for each in subtitles if any(each.start <= time <= each.end for time in times)]
    return " ".join(texts)


def _document(row: Row, protocol: ProtocolName, subtitles: bool) -> Document:
    options, target = _options(row), row.get("answer", str).strip()
    if target not in options:
        raise ValueError(f"{row.where}: answer={target!r} is the letter of none of the options {[*options]}.")
    question = text_of(row, "question")
    asked = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    video = Path(row.where.partition(": row ")[0]).parent / "data" / f"{text_of(row, 'videoID')}.mp4"
    media = PROTOCOLS[protocol].media
    words = _words(video, media) if subtitles else ""
    request = _REQUEST.format(and_subtitles=" and the subtitles" if words and protocol == "official" else "")
    prompt = "\n".join([*([_SUBTITLES, words] if words else []), request, question, asked, _END])
    find = chosen if protocol == "card" else lambda response, _: videomme_letter(response)

    def score(response: str) -> Verdict:
        return letter_verdict(find(response, options), target)

    names = [name for name in ("question_id", "index", "id") if name in row.fields]
    return Document(
        row.get(names[0], int, str) if names else row.number,
        user_parts({"type": "video", "video": str(video), **media}, prompt),
        score,
        group=row.fields.get("duration"),
        target=target,
        judging=choice_judging(question, options, target),
    )


def _options(row: Row) -> dict[str, str]:
    options = row.get("options", list)
    if not 2 <= len(options) <= 8 or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{row.where}: options={options!r}; give 2 to 8 texts.")
    return {letter: _PREFIX.sub("", option) for letter, option in zip(LETTERS, options, strict=False)}


def _words(video: Path, media: Any) -> str:
    """Returns the subtitles of a video that are shown with its frames; empty where it has none, or is not there."""
    file = video.parent.parent / "subtitle" / f"{video.stem}.srt"
    if not (file.is_file() and video.is_file()):
        return ""
    times = frame_times(length_of(video), media.get("fps", _FPS), int(media.get("max_frames", _MOST_FRAMES)))
    return shown_subtitles(read_subtitles(file.read_text(encoding="utf-8", errors="replace")), times)


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "card": Protocol(
        f"{QWEN}/VideoMME", modality="video",
        media={
            "fps": 2, "max_frames": 512, "min_pixels": 3_584, "max_pixels": 401_408, "total_pixels": 19_267_584,
        },
    ),
    "official": Protocol(
        "https://github.com/BradyFU/Video-MME", {"thinking": 32_768, "non_thinking": 4_096}, sampling="greedy",
        cut_is_wrong=False, modality="video",
    ),
}  # fmt: skip


def task_of(name: str, *, subtitles: bool) -> Task:
    """Returns the task with or without subtitles; both read the same folder."""
    return Task(
        name=name,
        data=Data(splits=("test",), folder="videomme"),
        protocols=PROTOCOLS,
        document=lambda row, protocol, examples: _document(row, protocol, subtitles),
    )


TASK = task_of("videomme", subtitles=True)
