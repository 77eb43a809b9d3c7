"""Words that choose modules: each kind of word, what they leave out, and the words found for a choice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen35_jax.targets import GROUPS, Module, check_words, choose, describe

ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
DELTANET = [f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "out_proj")] + ATTENTION[4:]
NAMES = ["embed_tokens"]
NAMES += [f"layers.{i}.{name}" for i in range(8) for name in (ATTENTION if i % 4 == 3 else DELTANET)]
HEAD = ["mtp.fc", *(f"mtp.layers.0.{name}" for name in ATTENTION)]
BLOCK = ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")
TOWER = [f"visual.blocks.{i}.{name}" for i in range(2) for name in BLOCK]
MERGER = [f"visual.{merger}.linear_fc{i}" for merger in ("merger", "deepstack_merger_list.0") for i in (1, 2)]
TEXT = {name: Module(name, takes_patterns=name != "embed_tokens") for name in NAMES + HEAD}
MODULES = TEXT | {name: Module(name) for name in TOWER + MERGER}


def chosen(*words, exclude=(), modules=MODULES):
    return choose(modules, words, exclude, option="lora.targets", excluding="lora.exclude")


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (("attention",), {f"layers.{i}.{name}" for i in (3, 7) for name in ATTENTION[:4]}),
        (("mtp",), set(HEAD)),
        (("embed",), {"embed_tokens"}),
        (("all-linear",), set(TEXT) - {"embed_tokens"}),
        (("tower",), set(TOWER)),
        (("merger",), set(MERGER)),
        (("qkv", "visual.merger.linear_fc1"), {*TOWER[::4], MERGER[0]}),
        (("model.visual.blocks.1.attn.proj",), {"visual.blocks.1.attn.proj"}),
        ((r".*visual\.blocks.*fc1",), set(TOWER[2::4])),
        (("q_proj",), {"layers.3.self_attn.q_proj", "layers.7.self_attn.q_proj", "mtp.layers.0.self_attn.q_proj"}),
        (("embed_tokens",), {"embed_tokens"}),
        (("layers.2.mlp.up_proj",), {"layers.2.mlp.up_proj"}),
        (("model.layers.2.mlp.up_proj",), {"layers.2.mlp.up_proj"}),
        (("model.language_model.layers.2.mlp.up_proj", "fc"), {"layers.2.mlp.up_proj", "mtp.fc"}),
        (
            (r"model\.language_model\.layers\.[67]\.mlp\..*",),
            {f"layers.{i}.{n}" for i in (6, 7) for n in ATTENTION[4:]},
        ),
        ((r"model\.layers\.[67]\.mlp\.up_proj",), {f"layers.{i}.mlp.up_proj" for i in (6, 7)}),
        ((r"mtp\..*",), set(HEAD)),
        ((".*",), set(TEXT) - {"embed_tokens"}),
    ],
)
def test_words_choose(words, want):
    assert chosen(*words) == want


def test_excluded_words_take_away():
    assert chosen("q_proj", exclude=("mtp",)) == {"layers.3.self_attn.q_proj", "layers.7.self_attn.q_proj"}
    assert chosen("all-linear", exclude=("mlp", "attention", "deltanet")) == set(HEAD)
    trunk = {name: Module(name) for name in NAMES}
    assert chosen("all-linear", exclude=("mtp",), modules=trunk) == set(NAMES) - {"embed_tokens"}


@pytest.mark.parametrize(
    ("words", "exclude", "message"),
    [
        (("q_porj",), (), "lora.targets has 'q_porj', which matches no module of this model; did you mean 'q_proj'"),
        (("layers.9.mlp.up_proj",), (), "matches no module"),
        # A part of a name, and a name in the middle, are no ends of names.
        (("roj",), (), "matches no module"),
        (("mlp.up_proj.bias",), (), "matches no module"),
        (("lm_head",), (), "matches no module"),
        (("up_proj.*",), (), "matches no module"),
        ((".*embed_tokens",), (), "matches no module"),
        (("mlp",), ("norm",), "lora.exclude has 'norm'"),
        (("mtp",), ("mtp",), "lora.exclude takes away all that lora.targets chooses"),
    ],
)
def test_what_chooses_nothing_is_refused(words, exclude, message):
    with pytest.raises(ValueError, match=message):
        chosen(*words, exclude=exclude)


def test_a_group_that_the_model_lacks_is_refused():
    trunk = {name: Module(name) for name in NAMES}
    with pytest.raises(
        ValueError, match=r"'mtp', which matches no module .* the groups attention, deltanet, mlp, embed"
    ):
        chosen("mlp", "mtp", modules=trunk)


def test_names_that_the_decoder_has_too_are_the_decoder_s():
    weights = {name: Module(name) for name in ("norm", "layers.0.linear_attn.norm", "visual.merger.norm")}
    assert chosen("norm", modules=weights) == {"norm", "layers.0.linear_attn.norm"}
    assert chosen("merger.norm", modules=weights) == {"visual.merger.norm"}


def test_a_broken_pattern_is_refused():
    with pytest.raises(ValueError, match=r"lora.targets has '\(q_proj', which is no regular expression"):
        check_words(("mlp", "(q_proj"), "lora.targets")


@pytest.mark.parametrize(
    "words",
    [("attention", "mlp"), ("q_proj", "v_proj"), ("all-linear",), ("embed", "mtp"), (r".*layers\.[0-3]\..*",)],
)
def test_words_are_found_for_a_choice(words):
    include, exclude = describe(MODULES, chosen(*words))
    assert chosen(*include, exclude=exclude) == chosen(*words)


def test_found_words_are_short():
    assert describe(MODULES, chosen("all-linear")) == (("attention", "deltanet", "mlp", "mtp"), ())
    assert describe(MODULES, chosen("all-linear", exclude=("mtp",))) == (("attention", "deltanet", "mlp"), ())
    assert describe(MODULES, chosen("q_proj", "v_proj", exclude=("mtp",))) == (("q_proj", "v_proj"), ("mtp",))


@settings(deadline=None)
@given(st.sets(st.sampled_from(list(MODULES)), min_size=1))
def test_any_choice_can_be_described(names):
    include, exclude = describe(MODULES, names)
    assert chosen(*include, exclude=exclude) == names


def test_every_group_is_a_word():
    assert all(chosen(group) for group in GROUPS)
