"""The tokenizer against the official ids, and on a folder like a Base checkpoint's."""

import json
import random
import shutil
import unicodedata

import pytest

from examples.quickstart.tokenizer import ADDED_TOKENS, build_tiny_tokenizer
from qwen35_jax.processing import ChatTemplate, Tokenizer
from tests.conftest import PUBLISHED, shared_dir
from tests.published.cut_tokenizer import cut, texts

CASES = json.loads((PUBLISHED / "tokenizer_cases.json").read_text())


@pytest.fixture(scope="module")
def official(official_tokenizer_dir):
    return Tokenizer.from_pretrained(official_tokenizer_dir)


def assert_exact(tokenizer, cases):
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=False) == unicodedata.normalize("NFC", case["text"])


def test_official_cases_are_encoded_and_decoded_exactly(official):
    assert len(CASES) == 24
    assert_exact(official, CASES)


@pytest.mark.skipif(shared_dir() is None, reason="the whole official tokenizer is not beside the checkout")
def test_the_whole_official_tokenizer_is_exact_and_the_stored_part_is_cut_from_it():
    source = shared_dir() / "qwen35"
    whole = Tokenizer.from_pretrained(source / "hf_2b_processor")
    cases = json.loads((source / "tokenizer_fixture_63cases.json").read_text())["cases"]
    assert (len(cases), len(whole)) == (63, 248077)
    assert_exact(whole, cases)
    content = json.loads((source / "hf_2b_processor" / "tokenizer.json").read_text())
    assert cut(content, texts()) == json.loads((PUBLISHED / "tokenizer_part.json").read_text())


def test_the_official_tokenizer_has_its_published_ids(official):
    assert official.eos_token_ids == (248046, 248044)
    assert official.pad_token_id == 248044
    assert len(official.special_tokens) == 21
    prompt = official.encode_chat([{"role": "user", "content": "hi"}])
    assert prompt == [248045, 846, 198, 5834, 248046, 198, 248045, 74455, 198, 248068, 271, 248069, 271]
    assert official.decode(prompt) == "user\nhi\nassistant\n<think>\n\n</think>\n\n"
    assert official.decode([846, 248300]) == "user"  # 248300 is an id that only pads the embedding


def test_added_tokens_of_the_configuration_complete_a_base_file(official, tmp_path):
    content = json.loads((PUBLISHED / "tokenizer_part.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 248066]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_bytes((PUBLISHED / "tokenizer_config_base.json").read_bytes())
    base = Tokenizer.from_pretrained(tmp_path)
    text = "<think>\na\n</think>\n\n<tool_response>b</tool_response><|audio_pad|><|im_end|>"
    assert base.encode(text) == official.encode(text)
    assert base.special_tokens == official.special_tokens
    assert base.chat_template.source == official.chat_template.source.removesuffix("\n")


def test_tiny_tokenizer_has_the_added_tokens_in_order(tiny_tokenizer):
    first = len(tiny_tokenizer) - len(ADDED_TOKENS)
    assert [tiny_tokenizer.token_id(token) for token in ADDED_TOKENS] == [*range(first, len(tiny_tokenizer))]
    assert len(tiny_tokenizer.special_tokens) == 21
    assert tiny_tokenizer.eos_token_ids == (first + 2, first)
    assert tiny_tokenizer.pad_token_id == first


@pytest.mark.parametrize(
    "text", ["", " ", "1234 abc\n\n", "naïve 毛泽东 👨‍👩‍👧", "<think>\n</think><|im_end|>x", "e\u0301"]
)
def test_text_survives_the_round_trip_up_to_composition(tiny_tokenizer, text):
    ids = tiny_tokenizer.encode(text)
    assert tiny_tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_ranges_are_those_of_the_text_before_composition(tiny_tokenizer):
    text = "e\u0301a<think>x"
    [(ids, ranges)] = tiny_tokenizer.encode_with_ranges([text], [[(3, 10), (10, 11), (4, 10), (0, 11)]])
    assert ids == tiny_tokenizer.encode(text)
    think = ids.index(tiny_tokenizer.token_id("<think>"))
    assert ranges[:2] == [(think, think + 1), (think + 1, len(ids))]
    assert ranges[2][0] == ranges[2][1]  # a part of a token is none
    assert ranges[3] == (0, len(ids))


def test_ranges_hold_exactly_the_tokens_made_from_their_characters(tiny_tokenizer):
    rng = random.Random(0)
    for _ in range(50):
        text = "".join(rng.choices(["What is ", "12", "é", "e\u0301", "👨‍👩", "\n\n", "<think>", "毛", " "], k=20))
        cuts = [tuple(sorted(rng.choices(range(len(text) + 1), k=2))) for _ in range(20)]
        offsets = tiny_tokenizer.backend.encode(text, add_special_tokens=False).offsets
        [(plain, none), (ids, ranges)] = tiny_tokenizer.encode_with_ranges(["12", text], [[], cuts])
        assert (plain, none) == (tiny_tokenizer.encode("12"), [])
        assert len(ids) == len(offsets)
        for (start, end), (first, stop) in zip(cuts, ranges, strict=True):
            wanted = [i for i, (s, e) in enumerate(offsets) if s >= start and e <= end]
            assert wanted == [*range(first, stop)]


def test_tiny_tokenizer_is_deterministic(tmp_path):
    texts = ["alpha beta gamma", "beta gamma delta", "12 + 34 = 46"] * 3
    for name in ("a", "b"):
        build_tiny_tokenizer(texts, tmp_path / name, vocab_size=320)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("vocab_size", [0, 288])
def test_tiny_tokenizer_needs_room_for_bytes_and_added_tokens(tmp_path, vocab_size):
    with pytest.raises(ValueError, match="at least 289"):
        build_tiny_tokenizer(["text"], tmp_path, vocab_size=vocab_size)


def test_transformers_reads_the_tiny_tokenizer(tiny_tokenizer, tiny_tokenizer_dir):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    messages = [{"role": "user", "content": "What is 12 + 34, naïvely?"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert tiny_tokenizer.encode_chat(messages) == list(expected)
    assert len(theirs) == len(tiny_tokenizer)


def _folder(path, **files):
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_errors_name_the_file(tmp_path, tiny_tokenizer_dir):
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no folder Qwen/Qwen3\.5-2B, and hub ids are not read here"):
        Tokenizer.from_pretrained("Qwen/Qwen3.5-2B")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="run is the --workdir of a training run and no Hugging Face folder; make one"):
        Tokenizer.from_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON"):
        Tokenizer.from_pretrained(_folder(tmp_path, tokenizer="{"))
    with pytest.raises(ValueError, match="describes no BPE model"):
        Tokenizer.from_pretrained(_folder(tmp_path, tokenizer={"model": {"type": "BPE"}}))
    good = (tiny_tokenizer_dir / "tokenizer.json").read_text()
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is missing"):
        Tokenizer.from_pretrained(_folder(tmp_path, tokenizer=good))
    config = json.loads((tiny_tokenizer_dir / "tokenizer_config.json").read_text())
    moved = {"9000": config["added_tokens_decoder"].popitem()[1]}
    with pytest.raises(ValueError, match=r"gives .* the id 9000"):
        Tokenizer.from_pretrained(_folder(tmp_path, tokenizer_config={"added_tokens_decoder": moved}))
    bare = Tokenizer.from_pretrained(_folder(tmp_path, tokenizer_config={}))
    with pytest.raises(ValueError, match="has no chat template"):
        bare.encode_chat([{"role": "user", "content": "hi"}])


def test_other_vocabularies_are_refused(tmp_path, tiny_tokenizer_dir):
    content = json.loads((tiny_tokenizer_dir / "tokenizer.json").read_text())
    content["added_tokens"] = []
    with pytest.raises(ValueError, match=r"has no token '<\|im_end\|>'"):
        Tokenizer.from_pretrained(_folder(tmp_path, tokenizer=content, tokenizer_config={}))


@pytest.mark.parametrize("text", ["smile \ud83d", "\udc00", "\ude00\ud83d"])
def test_half_of_a_character_is_named(tiny_tokenizer, text):
    half = rf"the text holds \\u{ord(text.strip('smile ')[0]):04x}, one half of a UTF-16 surrogate pair"
    for encode in (
        tiny_tokenizer.encode,
        lambda text: tiny_tokenizer.encode_with_ranges(["good", text], [[], []]),
        lambda text: tiny_tokenizer.encode_chat([{"role": "user", "content": text}]),
        lambda text: tiny_tokenizer.encode_chat([{"role": "user", "content": "a"}], tools=[{text: text}]),
    ):
        with pytest.raises(ValueError, match=half):
            encode(text)


def test_control_tokens_are_those_with_a_meaning(tiny_tokenizer):
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|image_pad|>", "<|vision_start|>"} <= {
        *tiny_tokenizer.control_tokens
    }
    assert not {"<tts_pad>", "<|audio_start|>"} & {*tiny_tokenizer.control_tokens}
    template = ChatTemplate("<tts_pad>{{ messages }}")
    assert "<tts_pad>" in Tokenizer(tiny_tokenizer.backend, template).control_tokens
    assert "<|im_end|>" in Tokenizer(tiny_tokenizer.backend).control_tokens


def _changed(change):
    """Damages one of the two JSON files of a folder."""

    def damage(folder, name="tokenizer.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(content) or content))

    return damage


def _of_config(change):
    return lambda folder: _changed(change)(folder, "tokenizer_config.json")


def _cut(folder):
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:2000])


NEWER = r"tokenizer\.json cannot be read by tokenizers [\d.]+.*: .*\. It may be of a newer version; update with"
DAMAGES = {
    "a newer model": (_changed(lambda file: file["model"].update(type="BPE2")), NEWER),
    "a newer normalizer": (_changed(lambda file: file.update(normalizer={"type": "NFC2"})), NEWER),
    "a newer pre-tokenizer": (_changed(lambda file: file.update(pre_tokenizer={"type": "Split2"})), NEWER),
    "a newer decoder": (_changed(lambda file: file.update(decoder={"type": "Byte"})), NEWER),
    "a newer version": (_changed(lambda file: file.update(version="2.0")), NEWER + ".*pip install"),
    "a newer part": (_changed(lambda file: file.update(something={"new": 1})), NEWER),
    "a token without an id": (_changed(lambda file: file["added_tokens"][0].pop("id") and None), NEWER),
    "a token as text": (
        _changed(lambda file: file.update(added_tokens=["a"])),
        r"has the added token 'a', which is not",
    ),
    "a token with a new flag": (
        _changed(lambda file: file["added_tokens"][0].update(fuzzy=True)),
        r"'<\|endoftext\|>' has fuzzy=True, which tok",
    ),
    "a declared token with a new flag": (
        _of_config(lambda file: [token.update(fuzzy=1) for token in file["added_tokens_decoder"].values()] and None),
        r"tokenizer_config\.json: the added token .* has fuzzy=1",
    ),
    "declared tokens in a list": (
        _of_config(lambda file: file.update(added_tokens_decoder=[1])),
        "added_tokens_decoder is not an object of tokens",
    ),
    "declared tokens without ids": (
        _of_config(lambda file: file.update(added_tokens_decoder={"x": {"content": "a"}})),
        "by their ids",
    ),
    "a declared token without content": (
        _of_config(lambda file: file.update(added_tokens_decoder={"9": {"special": True}})),
        "has the added token {'spec",
    ),
    "a file that was cut short": (_cut, r"tokenizer\.json is not valid JSON"),
    "a pointer to the file": (
        lambda folder: (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1"),
        "not valid JSON",
    ),
    "no configuration": (
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        r"tokenizer_config\.json is missing",
    ),
    "a template of bytes": (
        lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"),
        r"chat_template\.jinja: 'utf-8' codec",
    ),
    "a template that is not jinja": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% if %}"),
        r"chat_template\.jinja: .* not valid jinja",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_files_of_others_end_in_one_line(tmp_path, tiny_tokenizer_dir, name):
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "copy")
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("template", [3, {"default": "x"}, ["x"], [{"name": "default", "template": 3}]])
def test_a_template_in_the_configuration_of_another_form_is_refused(tmp_path, tiny_tokenizer_dir, template):
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "copy")
    (folder / "chat_template.jinja").unlink()
    _of_config(lambda file: file.update(chat_template=template))(folder)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: The chat template is neither a text nor a list"):
        Tokenizer.from_pretrained(folder)


def test_what_transformers_writes_is_read(tmp_path, tiny_tokenizer, tiny_tokenizer_dir):
    transformers = pytest.importorskip("transformers")
    transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_dir).save_pretrained(tmp_path)
    ours = Tokenizer.from_pretrained(tmp_path)
    text = "What is 12 + 34?<|im_end|><think>"
    assert ours.encode(text) == tiny_tokenizer.encode(text) and ours.eos_token_ids == tiny_tokenizer.eos_token_ids
    assert ours.chat_template.source == tiny_tokenizer.chat_template.source
