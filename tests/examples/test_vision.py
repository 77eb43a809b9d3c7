"""The vision example: what it draws answers its questions, and its commands run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.vision import run, task

REPO = Path(__file__).resolve().parents[2]


def test_equal_seeds_draw_equal_scenes_and_others_do_not():
    first, again, other = (task.draw_scenes(8, seed) for seed in (0, 0, 1))
    assert [scene.answers for scene in first] == [scene.answers for scene in again]
    assert all(np.array_equal(a.frames[0], b.frames[0]) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a.frames[0], b.frames[0]) for a, b in zip(first, other, strict=True))


def test_frames_show_the_colors_in_the_order_of_the_answer():
    for scene in task.draw_scenes(80, seed=3)[3::4]:
        assert len(scene.frames) == task.NUM_FRAMES
        shown = []
        for frame in scene.frames:
            pixels = np.asarray(frame).reshape(-1, 3).astype(int)
            # The noise and the change of a color move no channel by more than 32; the ground is darker.
            near = {name: np.sum(np.abs(pixels - color).max(axis=1) <= 32) for name, color in task.COLORS.items()}
            shown.append(max(near, key=lambda name: near[name]))
        assert shown[0::2] == shown[1::2] == scene.answers["order"].split()


def test_a_blank_scene_shows_nothing_of_its_answer():
    blank = [task.blank(scene) for scene in task.draw_scenes(8, seed=0)]
    assert {np.asarray(frame).std() for scene in blank for frame in scene.frames} == {0.0}


def test_conversations_hold_every_question_once_and_questions_no_answer(tmp_path):
    scenes = task.draw_scenes(8, seed=0)
    rows = task.write_training(tmp_path / "train", scenes, seed=1).read_text().splitlines()
    for scene, row in zip(scenes, rows, strict=True):
        turns = json.loads(row)["messages"]
        said = {kind.question: scene.answers.get(name) for name, kind in task.KINDS.items()}
        asked = [turns[0]["content"][1]["text"], *(turn["content"] for turn in turns[2::2])]
        assert [said[question] for question in asked] == [turn["content"] for turn in turns[1::2]]
        assert len(asked) == len(scene.answers)
        media = turns[0]["content"][0]
        files = media["video"] if scene.is_video else [media["image"]]
        assert all((tmp_path / file).is_file() for file in files)
    rows = task.write_questions(tmp_path / "test", scenes).read_text().splitlines()
    assert all([turn["role"] for turn in json.loads(row)["messages"]] == ["user"] for row in rows)


def test_scores_compare_the_answer_of_the_question_that_was_asked(tmp_path):
    scenes = task.draw_scenes(8, seed=0)
    answers = [scene.answers[task.kind_asked(number)] for number, scene in enumerate(scenes)]
    answers[0] = "none"
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps({"response": f" {each}\n"}) + "\n" for each in answers))
    scores = run.score(tmp_path / "answers.jsonl", scenes)
    assert {kind: each["value"] for kind, each in scores.items()} == {"digit": 0.5, "shape": 1, "color": 1, "order": 1}
    assert all(each["n"] == 2 for each in scores.values())
    assert "Which digit? n = 2" in run.table({run.SEEN: scores, run.BLANK: scores})


def test_another_directory_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds no vision example"):
        run.start_clean(tmp_path, run.NAME)


@pytest.mark.slow
def test_the_commands_run(tmp_path):
    """A model that has hardly learnt sees nothing yet, and the example says so."""
    command = [sys.executable, "-m", "examples.vision.run", "--workdir", str(tmp_path / "vision")]
    sizes = ["--steps", "3", "--num-train", "300", "--num-test", "8"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    process = subprocess.run([*command, *sizes], cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 1, process.stderr
    assert "the example failed: digit, shape, color, order gained less than 0.3" in process.stderr
    assert (tmp_path / "vision" / run.REPORT).is_file() and "grey pictures" in process.stdout
