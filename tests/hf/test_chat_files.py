"""What the files of a chat model say, made from those of a Base, and from published ones."""

import json
import shutil

import pytest

from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.export import export_checkpoint
from qwen35_jax.hf.chat_files import chat_files, companion_files, merged_files, sampling_note
from qwen35_jax.hf.load import load
from qwen35_jax.processing import Tokenizer
from tests.conftest import shared_dir
from tests.hf.helpers import files_of

THINKS = "{{ messages[0].content }}<think>\n"
DOES_NOT = "{{ messages[0].content }}<think>\n\n</think>\n\n"


@pytest.fixture
def base(reference, tmp_path):
    """A Base-like checkpoint: everything ends at <|endoftext|>, and nothing says how to sample."""
    folder = shutil.copytree(reference[0], tmp_path / "base")
    build_tiny_tokenizer(["a b"] * 4, folder, vocab_size=300)
    _edit(folder / "tokenizer_config.json", eos_token={"content": "<|endoftext|>", "__type": "AddedToken"})
    return folder


def _edit(file, **changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes, indent=2))


def _parsed(files):
    return {name: json.loads(content) for name, content in files.items()}


def _ends(folder):
    return list(Tokenizer.from_pretrained(folder).eos_token_ids)


def test_every_file_names_the_end_of_the_turn(base):
    _edit(base / "special_tokens_map.json", eos_token="<|endoftext|>")
    before = _parsed(_always_there(base))
    files = _parsed(chat_files(base))
    end_of_turn, end_of_text = _ends(base)
    assert files["generation_config.json"] == {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 20,
        "top_p": 1.0,
        "eos_token_id": [end_of_turn, end_of_text],
        "pad_token_id": end_of_text,
    }
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert files["tokenizer_config.json"] == before["tokenizer_config.json"] | tokens
    assert files["special_tokens_map.json"] == tokens
    text = before["config.json"]["text_config"] | {"eos_token_id": end_of_turn}
    assert files["config.json"] == before["config.json"] | {"eos_token_id": end_of_turn, "text_config": text}
    assert list(files["config.json"]["text_config"]) == list(before["config.json"]["text_config"])


def _always_there(folder):
    """Returns the two files that every checkpoint has."""
    return {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer_config.json")}


@pytest.mark.parametrize(("template", "top_p"), [(THINKS, 0.95), (DOES_NOT, 1.0)])
def test_sampling_is_the_cards_for_the_mode_of_the_template(base, template, top_p):
    (base / "chat_template.jinja").write_text(template)
    assert _parsed(chat_files(base))["generation_config.json"]["top_p"] == top_p


def test_the_checkpoints_own_sampling_stays(base):
    _edit(base / "generation_config.json", temperature=0.6, do_sample=True, eos_token_id=7, transformers_version="4.57")
    settings = _parsed(chat_files(base))["generation_config.json"]
    assert settings["temperature"] == 0.6 and "top_k" not in settings and settings["transformers_version"] == "4.57"
    assert settings["eos_token_id"] == [*_ends(base), 7]


def test_files_that_are_right_stay_byte_for_byte(base):
    for name, content in chat_files(base).items():
        (base / name).write_bytes(content)
    assert chat_files(base) == {name: (base / name).read_bytes() for name in chat_files(base)}


def test_layout_is_kept(base):
    compact = json.dumps(json.loads((base / "tokenizer_config.json").read_text()))
    (base / "tokenizer_config.json").write_text(compact)
    files = chat_files(base)
    assert b"\n" not in files["tokenizer_config.json"]
    assert files["config.json"].startswith(b'{\n    "architectures"') and not files["config.json"].endswith(b"\n")


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "config.json"])
def test_a_damaged_file_is_named(base, name):
    (base / name).write_text('{"eos_token_id": ')
    with pytest.raises(ValueError, match=rf"{name} is not valid JSON") as caught:
        chat_files(base)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(shared_dir() is None, reason="the published files are not beside the checkout")
def test_the_published_tokenizers(base):
    published = shared_dir() / "qwen35"
    shutil.copytree(published / "hf_2b_processor", base, dirs_exist_ok=True)
    shutil.copy(published / "tokenizer_config_base.json", base / "tokenizer_config.json")
    files = _parsed(chat_files(base))
    assert files["generation_config.json"]["eos_token_id"] == [248046, 248044]
    assert files["generation_config.json"]["pad_token_id"] == 248044
    assert files["config.json"]["text_config"]["eos_token_id"] == files["config.json"]["eos_token_id"] == 248046
    assert files["tokenizer_config.json"]["eos_token"] == "<|im_end|>"
    # What Qwen ships with a chat model is right as it is.
    shutil.copy(published / "tokenizer_config_4b_and_above.json", base / "tokenizer_config.json")
    shutil.copy(published / "generation_config_27B_397B.json", base / "generation_config.json")
    files = chat_files(base)
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert files[name] == (base / name).read_bytes()


def test_after_plain_text_nothing_changes(base, tmp_path):
    model = load(base, "float32")
    for number, record in enumerate(({}, {"identity": {"conversations": False}})):
        export_checkpoint(model, tmp_path / f"out{number}", record, base)
        assert files_of(tmp_path / f"out{number}") == files_of(base)
    export_checkpoint(model, tmp_path / "chat", {"identity": {"conversations": True}}, base)
    assert files_of(tmp_path / "chat") == files_of(base) | chat_files(base)


def test_a_merge_takes_what_differs(base, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert merged_files(adapter, base) == {}
    for name, content in companion_files(base).items():
        (adapter / name).write_bytes(content)
    assert merged_files(adapter, base) == {}
    (adapter / "chat_template.jinja").write_text(THINKS)
    assert merged_files(adapter, base) == {"chat_template.jinja": THINKS.encode()}
    wanted = chat_files(base)
    for name in wanted.keys() - {"config.json"}:
        (adapter / name).write_bytes(wanted[name])
    assert merged_files(adapter, base) == wanted | {"chat_template.jinja": THINKS.encode()}


def test_a_merge_refuses_a_tokenizer_with_more_tokens_than_the_model(base, tmp_path):
    adapter = build_tiny_tokenizer(["x y z" * 9, "alpha beta " * 9], tmp_path / "adapter", vocab_size=300)
    text = json.loads((base / "config.json").read_text())["text_config"]
    _edit(base / "config.json", text_config=text | {"vocab_size": 290})
    with pytest.raises(ValueError, match=r"ids up to 299, but the model's vocab_size is 290"):
        merged_files(adapter, base)


def test_the_note_says_how_others_sample(tmp_path):
    assert sampling_note(tmp_path) == ""
    _edit(tmp_path / "generation_config.json", temperature=0.6, top_k=20)
    assert sampling_note(tmp_path) == ""
    _edit(tmp_path / "generation_config.json", do_sample=True)
    assert "sample from it (temperature 0.6, top_k 20)" in sampling_note(tmp_path)
