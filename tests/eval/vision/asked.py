"""Two questions with images, and the settings that ask a server about them."""

from eval.config import EvalConfig, ServerConfig
from tests.eval.vision.pictures import png

RED, BLUE = png("red", (400, 200)), png("blue", (300, 300))
PROMPT = "Question: What is it?\nOptions:\nA. red\nB. blue\nPlease select the correct answer from the options above."
THOUGHT = "hm\n</think>\n\n"


def config_of(data, url, **settings):
    server = ServerConfig(url=url, connections=2, accept_dropped=("presence_penalty", "top_k", "seed", "thinking"))
    settings = {"tasks": ("mmmu",), "protocol": "card", "max_new_tokens": 50, "out": str(data / "out")} | settings
    return EvalConfig(server=server, data_dir=str(data / "data"), **settings)


def answers(*texts):
    prompts = [PROMPT, PROMPT.replace("What is it?", "What is 2?")]
    return {prompt: THOUGHT + text for prompt, text in zip(prompts, texts, strict=True)}
