"""The settings of a request."""

import dataclasses

import pytest

from qwen35_jax.inference.sampling import SamplingParams


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0; give 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"presence_penalty": 3.0}, "presence_penalty=3.0"),
        ({"frequency_penalty": -3.0}, "frequency_penalty=-3.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"logit_bias": {-1: 1.0}}, "give a token id"),
        ({"logit_bias": {1: 101.0}}, "from -100 to 100"),
        ({"logit_bias": dict.fromkeys(range(301), 1.0)}, "301 tokens; name at most 300"),
        ({"stop": ("",)}, "stop holds an empty text"),
        ({"stop_token_ids": tuple(range(15))}, "15 tokens; name at most 14"),
        ({"thinking_budget": -1}, "thinking_budget=-1; give a number of tokens from 0"),
        ({"logprobs": 21}, "logprobs=21; give a number of tokens from 0 to 20"),
    ],
)
def test_a_setting_outside_its_range_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**numbers)


def test_equal_settings_are_equal_and_can_be_hashed():
    some, other = SamplingParams(logit_bias={3: 1.0, 2: -1.0}), SamplingParams(logit_bias=((2, -1.0), (3, 1.0)))
    assert some == other and hash(some) == hash(other)
    assert dataclasses.replace(some, temperature=1.0).logit_bias == ((2, -1.0), (3, 1.0))
    assert SamplingParams().greedy and not SamplingParams(temperature=0.1).greedy
