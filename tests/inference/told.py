"""What an engine would tell of tokens that are given."""

from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.inference.transcript import Transcript


def told(tokenizer, prompt, token_ids):
    """Returns the streamed tokens of a completion of these tokens."""
    transcript = Transcript(tokenizer, prompt, SamplingParams(), stream=True)
    for token in token_ids:
        transcript.push(token, None)
    transcript.finish("stop", seed=0, closed_by_budget=False)
    return transcript.fetch()
