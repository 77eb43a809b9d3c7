"""Models of other sizes: what follows from a size, what is refused, and the command that writes them."""

import json
import re

import pytest

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.cli import main
from qwen35_jax.config import FULL, LINEAR, ModelConfig
from qwen35_jax.hf.load import load
from qwen35_jax.hf.sizes import resize, size_types
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing.tokenizer import Tokenizer

SMALL = ("--num-hidden-layers", "2", "--full-attention-interval", "2", "--hidden-size", "32", "--vision.depth", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_tokenizer(["user assistant\n"] * 4, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)


@pytest.mark.parametrize("preset", [name for name, config in PRESETS.items() if config.text.moe is None])
def test_without_other_sizes_a_preset_stays_itself(preset):
    assert resize(PRESETS[preset], {}) == PRESETS[preset]


def test_every_size_reaches_the_configuration():
    """Each alone, twice, half or four times as large, is the only difference beside what follows from it."""
    base = PRESETS["2b"]
    follows = {"hidden_size": {"out_hidden_size"}, "num_hidden_layers": {"layer_types"}, "head_dim": {"mrope_section"},
               "partial_rotary_factor": {"mrope_section"}, "full_attention_interval": {"layer_types"}}  # fmt: skip
    for name in size_types().keys() - {"mtp_num_hidden_layers", "vision.out_hidden_size"}:
        old, (part, _, key) = _flat(base), name.rpartition(".")
        value = old[part, key]
        factor = {"linear_num_key_heads": 0.5, "num_position_embeddings": 4}.get(key, 2)
        new = _flat(resize(base, {name: type(value)(factor * value)}))
        different = {place[1] for place in old if old[place] != new[place]}
        assert different == {key} | follows.get(name, set()), name
    assert resize(base, {"mtp_num_hidden_layers": 0}).text.mtp.num_hidden_layers == 0


def _flat(config: ModelConfig) -> dict:
    content = config.to_hf()
    text = content["text_config"]
    flat = {("", key): value for key, value in (text | text["rope_parameters"]).items() if key != "rope_parameters"}
    return flat | {("vision", key): value for key, value in content["vision_config"].items()}


def test_what_follows_from_a_size():
    config = resize(PRESETS["2b"], {"num_hidden_layers": 6, "full_attention_interval": 3, "head_dim": 40})
    assert config.text.layer_types == (LINEAR, LINEAR, FULL) * 2
    assert config.text.rope.mrope_section == (2, 2, 1)
    text = resize(PRESETS["2b"], {"hidden_size": 64}, text_only=True)
    assert text.vision is None and text.architecture == "Qwen3_5ForCausalLM"


def test_a_tokenizer_gives_vocabulary_and_ids(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    config = resize(PRESETS["2b"], {}, tokenizer=tokenizer)
    assert config.text.vocab_size == 512 >= len(tokenizer)  # the next multiple of 256, as the published one is
    assert config.text.eos_token_id == tokenizer.token_id("<|endoftext|>")
    assert config.vision_start_token_id == tokenizer.token_id("<|vision_start|>")
    assert resize(PRESETS["2b"], {"vocab_size": 333}, tokenizer=tokenizer).text.vocab_size == 333


def test_the_command_writes_a_model_that_loads(folder, tmp_path, capsys):
    options = ("--preset", "tiny", *SMALL, "--tokenizer", str(folder), "--dtype", "float32")
    for name, seed in (("one", "3"), ("same", "3"), ("other", "4")):
        main(["create", *options, "--seed", seed, "--out", str(tmp_path / name)])
    model = load(tmp_path / "one", "float32")
    assert model.config.text.hidden_size == 32 and model.config.text.num_hidden_layers == 2
    assert model.logits([[1, 2, 3]]).shape == (1, 3, 512)
    assert Tokenizer.from_pretrained(tmp_path / "one").chat_template
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other"))
    assert one == same != other
    (count,) = {int(number.replace(",", "")) for number in re.findall(r"wrote ([\d,]+)", capsys.readouterr().out)}
    assert 0 < len(one) - 4 * count < 0.02 * len(one)  # the names beside the numbers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hiden-size", "3"], "Did you mean --hidden-size?"),
        (["--preset", "2c"], "Did you mean 2b?"),
        (["--preset", "35b-a3b"], "invalid choice: '35b-a3b'"),
        (["--hidden-size", "0"], "--hidden-size 0 must be positive"),
        (["--num-hidden-layers", "6"], "--num-hidden-layers 6 is not a multiple of --full-attention-interval 4"),
        (["--num-key-value-heads", "3"], "--num-attention-heads 4 is not a multiple of --num-key-value-heads 3"),
        (["--head-dim", "4"], "--head-dim 4 leaves no frequency"),
        (["--vocab-size", "300"], "no place for '<|video_pad|>', whose id is 492; give --tokenizer DIR"),
        (["--vocab-size", "299", "--tokenizer", "TOKENIZER"], "whose id is 299; raise --vocab-size to 300"),
        (["--tokenizer", "nowhere"], "nowhere: no such folder"),
        (["--out", "TOKENIZER"], "not an empty folder"),
        (["--mtp-num-hidden-layers", "2"], "Qwen3.5 has 0 or 1 MTP layers"),
    ],
)
def test_wrong_sizes_end_in_one_line_and_write_nothing(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [str(folder) if argument == "TOKENIZER" else argument for argument in arguments]
    with pytest.raises(SystemExit) as stop:
        main(["create", "--preset", "tiny", "--out", "new", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_written_configuration_is_complete(tmp_path):
    main(["create", "--preset", "tiny", *SMALL, "--text-only", "--out", str(tmp_path / "text")])
    content = json.loads((tmp_path / "text" / "config.json").read_text())
    assert content["architectures"] == ["Qwen3_5ForCausalLM"] and "vision_config" not in content
    assert load(tmp_path / "text").config.text.hidden_size == 32
