"""Messages: settings as they are typed, settings that exist, and near misses."""

import ast
import dataclasses
import re

import pytest

from eval.config import EvalConfig
from eval.score import ScoreConfig
from qwen35_jax.command import load_config, one_line_errors, parse
from qwen35_jax.wording import as_typed, did_you_mean, did_you_mean_option, options_as_typed, options_of
from tests.conftest import REPO
from train.config import TrainConfig

OPTIONS = options_of(TrainConfig)


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("data.bad_rows='drop' leaves them out", "--data.bad-rows drop leaves them out"),
        ("raise data.sequence_length, or mend the row.", "raise --data.sequence-length, or mend the row."),
        ("data.shards=0 is too small; give 1.", "--data.shards 0 is too small; give 1."),
        ("set mtp.weight=0.", "set --mtp.weight 0."),
        ("set data.epochs=None, or steps=3", "set --data.epochs None, or --steps 3"),
        ("the mesh (mesh.data=8) lies", "the mesh (--mesh.data 8) lies"),
        ("lora.targets=('attention', 'mtp'); add", "--lora.targets attention mtp; add"),
        ("data.train_on_thinking=False and export=True", "--data.no-train-on-thinking and --export"),
        ("optim.learning_rate was 1e-4, now 2e-4; steps was 3, now 4",
         "--optim.learning-rate was 1e-4, now 2e-4; --steps was 3, now 4"),
        ("remat='x' of model.delta_rule='chunked'", "remat='x' of --model.delta-rule chunked"),
        ("profile='3:x' names no steps", "--profile 3:x names no steps"),
        ("workdir='my run' is", "--workdir 'my run' is"),
        ("workdir={5: 1.5, 'x': 'a b'}; give", "--workdir 5=1.5 'x=a b'; give"),
        # Neither a word of English nor a part of another name is a setting.
        ("it has steps, a seed and data/data.path of --data.path 3", None),
        ("data.sources[0] and data.paths=3 and xsteps=3", None),
        ("raise steps, the seed stays", "raise --steps, the seed stays"),
    ],
)  # fmt: skip
def test_settings_are_shown_as_they_are_typed(message, typed):
    assert as_typed(message, OPTIONS) == (message if typed is None else typed)


def test_every_option_is_one_of_the_command():
    names = ("lora_2b_v5e8", "distill_onpolicy_9b_to_2b", "sft_vision_2b")
    configs = [load_config(REPO / "configs" / f"{name}.py") for name in names]
    # These are decided by the models or for the run record alone, and trackers for run files.
    hidden = {"--objective", "--trackers", "--teacher.width", "--has-mtp-head"}
    for option in {*OPTIONS.values(), "--data.no-train-on-thinking"} - hidden:
        errors = []
        for config in configs:
            with pytest.raises(ValueError) as error:
                parse([option], config)
                raise ValueError("a switch, which needs no value")
            errors.append(str(error.value))
        assert not all("Unrecognized" in error for error in errors), option


def texts(node: ast.AST) -> str:
    """Returns the literal part of a message, with ``{}`` for what is put in."""
    if isinstance(node, ast.BinOp):
        return texts(node.left) + texts(node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join("{}" if isinstance(part, ast.FormattedValue) else texts(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "{}"


def test_messages_name_settings_that_exist():
    """A setting that is renamed takes its messages along: they name nothing that no command has."""
    known = {name for each in (TrainConfig, EvalConfig, ScoreConfig) for name in options_of(each)}
    known |= {name.rpartition(".")[0] for name in known}
    known |= {"data.sources", "lora.add", "lora.merge"}  # for run files and from Python alone
    sections = "|".join({name.split(".")[0] for name in known if "." in name})
    found = 0
    places = ("train/**/*.py", "eval/**/*.py", "qwen35_jax/*.py", "qwen35_jax/hf/*.py")
    for path in [path for place in places for path in REPO.glob(place)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                message = texts(node.exc.args[0])
                for name in re.findall(rf"(?<![^\s(])((?:{sections})\.[a-z][a-z_]*)(?![\w{{])", message):
                    assert name in known, f"{path}:{node.lineno} names {name}"
                    found += 1
    assert found > 40


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--data.pat", "--data.path"),
        ("--data.bad_rowz", "--data.bad-rows"),
        ("--stepz", "--steps"),
        ("--mesh.fsdpp", "--mesh.fsdp"),
        ("--learning-rate", "--optim.learning-rate"),
        ("--optim.lr", "--optim.learning-rate"),
        ("--modle.path=x", "--model.path"),
        ("--colour", None),
        ("--steps", None),  # known, but not to this run file
    ],
)
def test_a_mistyped_option_is_recognised(typed, meant):
    assert did_you_mean_option(typed, OPTIONS.values()) == (f" Did you mean {meant}?" if meant else "")


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [("IFEVAL", ["gsm8k", "ifeval"], "ifeval"), ("bf16", ["float32", "bfloat16"], "bfloat16"), ("x", ["gsm8k"], None)],
)
def test_a_mistyped_name_is_recognised(name, known, meant):
    assert did_you_mean(name, known) == (f" Did you mean {meant}?" if meant else "")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--data.pat", "x"], "Unrecognized options: --data.pat, x. Did you mean --data.path? "),
        (["--model.dtype", "bf16"], "Did you mean bfloat16?"),
        (["--data.shards", "0"], "--data.shards 0 is too small"),
        (["--mtp.weight", "-1"], "--mtp.weight -1.0 is negative"),
    ],
)
def test_a_command_says_what_to_type(argv, line, capsys):
    config = load_config(REPO / "configs" / "lora_2b_v5e8.py")
    with pytest.raises(SystemExit) as stop, one_line_errors(), options_as_typed(lambda: OPTIONS):
        parse(argv, config)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and line in error and error.count("\n") == 1


def test_a_mistyped_run_file_is_recognised():
    path = REPO / "configs" / "lora_2b_v5e"
    with pytest.raises(ValueError, match=re.escape(f"Did you mean {path}8.py?")):
        load_config(path)


def test_what_is_no_wrong_input_passes_unchanged():
    for error in (KeyError("data.path=3"), OSError(2, "no data.path=3")):
        with pytest.raises(type(error)) as caught, options_as_typed(lambda: OPTIONS):
            raise error
        assert caught.value is error


def test_fields_of_an_optional_part_and_renamed_fields_have_options():
    @dataclasses.dataclass(frozen=True)
    class Own:
        recipe: TrainConfig | None = None

    assert {"recipe.lora.rank", "recipe.model.remat", "recipe.data.path"} <= options_of(Own).keys()
