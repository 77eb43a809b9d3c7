"""Measures how many of the MTP head's drafts greedy decoding would accept, on a model's own answers.

    python -m eval.mtp_acceptance MODEL QUESTIONS.jsonl [--mode thinking] [--limit 100] [--out FILE.json]

QUESTIONS.jsonl holds rows {"question", ...}. Each is answered greedily, and the drafts for the answer are counted.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import qwen35_jax
from qwen35_jax.command import one_line_errors
from qwen35_jax.hf.hub import find_folder
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.inference.speculative import completion_acceptance
from qwen35_jax.processing.tokenizer import Tokenizer


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and prints its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face folder or hub id")
    parser.add_argument("questions", type=Path, metavar="QUESTIONS.jsonl")
    parser.add_argument("--mode", choices=("thinking", "non_thinking"), default="thinking")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--limit", type=int, default=100, help="only the first so many questions")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--out", type=Path, help="where to write the result as well")
    args = parser.parse_args(argv)

    folder = find_folder(args.model)
    tokenizer = Tokenizer.from_pretrained(folder)
    lines = args.questions.read_text(encoding="utf-8").splitlines()[: args.limit]
    conversations = [[{"role": "user", "content": json.loads(line)["question"]}] for line in lines]
    prompts = [tokenizer.encode_chat(chat, enable_thinking=args.mode == "thinking") for chat in conversations]
    engine = Engine(qwen35_jax.load(folder, args.dtype), tokenizer, max_batch=args.max_batch)
    completions = engine.generate(prompts, sampling=SamplingParams(), max_new_tokens=args.max_new_tokens)
    accepted, proposed = completion_acceptance(
        engine.model, prompts, [completion.token_ids for completion in completions], rows_per_batch=args.max_batch
    )
    result = {
        "model": args.model,
        "mode": args.mode,
        "answers": len(prompts),
        "accepted": accepted,
        "proposed": proposed,
        "acceptance": accepted / proposed if proposed else None,
    }
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
