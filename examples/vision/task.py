"""The task of the vision example: pictures and short videos that are drawn here, and questions about them.

A picture holds a digit and a coloured shape side by side, of any size, on a noisy ground. A question asks for the
digit, for the shape or for its colour. A video shows three of five colours, one after the other, and its question asks
for their order. The questions say nothing about the answers, which are all equally likely.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 64
"""Pixels of a side of a picture and of a frame."""
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
    "pink": (240, 130, 200),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = tuple("0123456789")
NUM_SHOWN = 3
"""Colours that a video shows."""
_FRAMES_A_COLOR, _FPS, _NOISE = 2, 2, 12
NUM_FRAMES = NUM_SHOWN * _FRAMES_A_COLOR


@dataclass(frozen=True)
class Kind:
    """A kind of question, and how often a guess is right that knows which answers there are."""

    question: str
    chance: float


KINDS = {
    "digit": Kind("Which digit?", 1 / len(DIGITS)),
    "shape": Kind("Which shape?", 1 / len(SHAPES)),
    "color": Kind("Which color?", 1 / len(COLORS)),
    "order": Kind("Which order?", 1 / (5 * 4 * 3)),
}


@dataclass(frozen=True)
class Scene:
    """A picture, or the frames of a video, with the answer to each question about it by the question's kind."""

    frames: tuple[Image.Image, ...]
    answers: dict[str, str]

    @property
    def is_video(self) -> bool:
        return len(self.frames) > 1


def draw_scenes(count: int, seed: int) -> list[Scene]:
    """Draws pictures, and a video after every third one. Equal seeds give equal scenes."""
    rng, scenes = random.Random(seed), []
    for number in range(count):
        if number % 4 == 3:
            colors = rng.sample(list(COLORS), NUM_SHOWN)
            frames = [_draw(rng, None, "square", color) for color in colors for _ in range(_FRAMES_A_COLOR)]
            scenes.append(Scene(tuple(frames), {"order": " ".join(colors)}))
        else:
            seen = {"digit": rng.choice(DIGITS), "shape": rng.choice(SHAPES), "color": rng.choice(list(COLORS))}
            scenes.append(Scene((_draw(rng, *seen.values()),), seen))
    return scenes


def kind_asked(number: int) -> str:
    """Returns which question is asked about a held-out scene: all kinds take turns."""
    return list(KINDS)[number % len(KINDS)]


def blank(scene: Scene) -> Scene:
    """Returns a scene with the same answers that shows nothing: grey pictures of the same number and size."""
    grey = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    return Scene((grey,) * len(scene.frames), scene.answers)


def example_texts() -> list[str]:
    """Returns texts that contain every word of the task. A tokenizer is built from them."""
    answers = [*COLORS, *(f" {color}" for color in COLORS), *SHAPES, *DIGITS]
    times = [f"<{tenth / 10:.1f} seconds>" for tenth in range(60)]
    return [*answers, *(kind.question for kind in KINDS.values()), *times]


def write_training(folder: Path, scenes: Sequence[Scene], seed: int) -> Path:
    """Writes scenes into a folder, and beside it a file with a conversation about each: all questions in any order."""
    rng, conversations = random.Random(seed), []
    for number, scene in enumerate(scenes):
        kinds = rng.sample(list(scene.answers), len(scene.answers))
        turns = [_question(scene, kinds[0], folder, number)]
        for kind in kinds:
            if kind != kinds[0]:
                turns.append({"role": "user", "content": KINDS[kind].question})
            turns.append({"role": "assistant", "content": scene.answers[kind]})
        conversations.append(turns)
    return _write(folder, scenes, conversations)


def write_questions(folder: Path, scenes: Sequence[Scene]) -> Path:
    """Writes scenes into a folder, and beside it a file with one question about each."""
    asked = [[_question(scene, kind_asked(number), folder, number)] for number, scene in enumerate(scenes)]
    return _write(folder, scenes, asked)


def _question(scene: Scene, kind: str, folder: Path, number: int) -> dict[str, Any]:
    files = [f"{folder.name}/{name}" for name in _names(scene, number)]
    seen = {"type": "image", "image": files[0]}
    if scene.is_video:
        seen = {"type": "video", "video": files, "raw_fps": _FPS}
    return {"role": "user", "content": [seen, {"type": "text", "text": KINDS[kind].question}]}


def _names(scene: Scene, number: int) -> list[str]:
    return [f"{number:05d}-{place}.png" for place in range(len(scene.frames))]


def _write(folder: Path, scenes: Sequence[Scene], conversations: Sequence[list[dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True)
    for number, scene in enumerate(scenes):
        for name, frame in zip(_names(scene, number), scene.frames, strict=True):
            frame.save(folder / name)
    path = folder.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in conversations), encoding="utf-8")
    return path


def _draw(rng: random.Random, digit: str | None, shape: str, color: str) -> Image.Image:
    """Draws a shape, beside a digit if there is one."""
    ground = tuple(rng.randrange(0, 70) for _ in range(3))
    image = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(image)
    half = SIDE // 2
    left, right = (0, half) if rng.random() < 0.5 else (half, 0)
    size = rng.randrange(22, 28)
    x, y = left + rng.randrange(half - size + 1), rng.randrange(SIDE - size + 1)
    _draw_shape(pen, shape, (x, y, x + size, y + size), tuple(_vary(rng, value) for value in COLORS[color]))
    if digit is not None:
        height = rng.randrange(38, 43)
        place = right + rng.randrange(2, 7), rng.randrange(6, 13)
        pen.text(place, digit, font=ImageFont.load_default(height), fill=(255, 255, 255))
    noise = np.random.default_rng(rng.randrange(2**32)).integers(-_NOISE, _NOISE + 1, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int], color: tuple[int, ...]) -> None:
    left, top, right, bottom = box
    if shape == "circle":
        pen.ellipse(box, fill=color)
    elif shape == "square":
        pen.rectangle(box, fill=color)
    elif shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=color)
    else:
        pen.line([(left, top), (right, bottom)], fill=color, width=6)
        pen.line([(left, bottom), (right, top)], fill=color, width=6)


def _vary(rng: random.Random, value: int) -> int:
    return max(0, min(255, value + rng.randrange(-20, 21)))
