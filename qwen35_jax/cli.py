"""The ``qwen35`` command: generate, chat, export, merge, create."""

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jax.sharding import Mesh

from qwen35_jax import gcs
from qwen35_jax.command import one_line_errors
from qwen35_jax.compiled import keep_compiled_programs
from qwen35_jax.distributed import leave_out_absent_tpu
from qwen35_jax.export import export_adapter, export_checkpoint
from qwen35_jax.hf.adapter import AUTO_CLASSES
from qwen35_jax.hf.chat_files import merged_files, sampling_note
from qwen35_jax.hf.create import create_checkpoint
from qwen35_jax.hf.hub import find_folder, public_name
from qwen35_jax.hf.load import load
from qwen35_jax.hf.names import tensor_table
from qwen35_jax.hf.push import prepare_repository, upload
from qwen35_jax.hf.save import save
from qwen35_jax.hf.sizes import resize, size_types
from qwen35_jax.hf.source import ModelSource, load_model, load_tokenizer
from qwen35_jax.inference import chat as chat_module
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.generate import MODES, Request, generate_rows, read_requests
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.publish import check_new, deliver, folder_for
from qwen35_jax.runs import load_run, read_metrics, read_record, stored_dtype
from qwen35_jax.sharding import GENERATION_AXES, MeshConfig
from qwen35_jax.wording import did_you_mean_choice, did_you_mean_option, options_as_typed, options_by_name

DTYPES = ("bfloat16", "float32")
DENSE = tuple(name for name, config in PRESETS.items() if config.text.moe is None)
MODEL_HELP = "Hugging Face folder of a checkpoint, also of a bucket (gs://), or hub id"
OUT_HELP = "new folder, also of a bucket (gs://)"


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; wrong input ends in one line on stderr and exit code 2.

    Args:
      argv: the arguments after the program's name, by default those of the process.
    """
    args, unknown = _parser().parse_known_args(argv)
    options = options_by_name(vars(args))
    if unknown:
        nearest = "".join(did_you_mean_option(word, options.values()) for word in unknown if word.startswith("-"))
        raise ValueError(f"unknown options: {' '.join(unknown)}.{nearest} (--help lists them)")
    leave_out_absent_tpu()
    keep_compiled_programs()
    with options_as_typed(lambda: options):
        args.run(args)


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option like any other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}.{did_you_mean_choice(message)} ({self.prog} --help lists the options)")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except that of an option that is off or not given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default is None or action.default is False
        return action.help if hidden else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="qwen35", description="Make Qwen3.5 checkpoints, generate with them, export and merge.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=_HelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    generate = add("generate", _generate, "answer prompts from the command line or from a file")
    _add_model_options(generate)
    _add_generation_options(generate)
    generate.add_argument("prompts", nargs="*", metavar="PROMPT", help="user turns, each a conversation of its own")
    generate.add_argument("--input", metavar="FILE.jsonl",
                          help='conversations, also of a bucket: one {"messages": [...], "tools"?: [...], "id"?: ...} '
                               'a line; or {"text": ...}, continued without the chat template')  # fmt: skip
    generate.add_argument("--output", type=_local_path, metavar="FILE.jsonl",
                          help="where to write JSONL rows; without it, text goes to standard output")  # fmt: skip
    generate.add_argument("--max-batch", type=int, default=8, metavar="N", help="most prompts at once")

    chat = add("chat", _chat, f"talk with a model line by line; {chat_module.HELP.rstrip('.')}")
    _add_model_options(chat)
    _add_generation_options(chat)

    export = add("export", _export, "write what a training run has learnt as a PEFT adapter or a checkpoint")
    export.add_argument("run_dir", metavar="RUN_DIR", help="--workdir of the training run")
    export.add_argument("--out", required=True, metavar="DIR", help=OUT_HELP)
    export.add_argument("--step", type=_step, metavar="N|best", help="which checkpoint, by default the newest; best: "
                        "that with the best evaluation, where the run had checkpoint.best_by")  # fmt: skip
    export.add_argument("--merged", action="store_true", help="write a whole checkpoint, with adapters added in")
    export.add_argument("--auto-class", choices=AUTO_CLASSES,
                        help="class of transformers that will load the base of an adapter: it decides the names of "
                             "modules; by default as the base's own architecture says")  # fmt: skip
    export.add_argument("--base", metavar="NAME",
                        help="hub id (org/name@revision) or path by which the adapter names its base; by default as "
                             "the run was given it")  # fmt: skip
    export.add_argument("--push", metavar="ORG/NAME", help="also upload the folder to this repository of the hub")
    export.add_argument("--public", action="store_true", help="everybody may see a repository that --push makes")
    _add_mesh_options(export)

    merge = add("merge", _merge, "write a checkpoint with an adapter's weights added in")
    merge.add_argument("--model", required=True, metavar="DIR", help=MODEL_HELP)
    merge.add_argument("--adapter", required=True, metavar="DIR", help="PEFT adapter for it, given likewise")
    merge.add_argument("--out", required=True, metavar="DIR", help=OUT_HELP)
    _add_mesh_options(merge)

    _add_creation_options(add("create", _create, "write a checkpoint of random weights, of any size"))
    return parser


def _local_path(text: str) -> Path:
    try:
        gcs.check_is_path(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err).rstrip(".")) from err
    return Path(text)


def _step(text: str) -> int | str:
    if text == "best" or text.isdecimal():
        return text if text == "best" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither the number of a step nor best")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help=MODEL_HELP)
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter for it, given likewise")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="type of weights and computation")
    _add_mesh_options(parser)


def _add_creation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=DENSE, default="0.8b", help="the model whose sizes are changed")
    parser.add_argument("--out", required=True, metavar="DIR", help=OUT_HELP)
    parser.add_argument("--tokenizer", metavar="DIR",
                        help="folder (also gs://) whose tokenizer, chat template and vocabulary are taken")  # fmt: skip
    parser.add_argument("--text-only", action="store_true", help="leave the vision tower out")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="type of the weights in the file")
    sizes = parser.add_argument_group("sizes", "By the names of config.json; what follows from a size follows it.")
    for name, kind in size_types().items():
        sizes.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, metavar="N" if kind is int else "X")


def _add_mesh_options(parser: argparse.ArgumentParser) -> None:
    for axis, purpose in GENERATION_AXES.items():
        parser.add_argument(f"--mesh.{axis}", dest=f"mesh.{axis}", type=int, default=1, metavar="N", help=purpose)


def _add_generation_options(parser: argparse.ArgumentParser) -> None:
    defaults = SamplingParams()
    parser.add_argument("--mode", choices=tuple(MODES), default="default",
                        help="whether the model reasons first; default: as its chat template decides")  # fmt: skip
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=1024, metavar="N", help="most tokens of one answer")
    parser.add_argument("--temperature", type=float, default=defaults.temperature, metavar="X",
                        help="0 takes the most likely token")  # fmt: skip
    parser.add_argument(
        "--top-k", type=int, default=defaults.top_k, metavar="N", help="most likely tokens to choose from; 0 keeps all"
    )
    parser.add_argument("--top-p", type=float, default=defaults.top_p, metavar="P",
                        help="keep the most likely tokens whose probabilities sum to P; 1 keeps all")  # fmt: skip
    parser.add_argument("--presence-penalty", type=float, default=defaults.presence_penalty, metavar="X",
                        help="subtracted from the logits of tokens generated before")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random choices")


def _sampling(args: argparse.Namespace) -> SamplingParams:
    return SamplingParams(args.temperature, args.top_k, args.top_p, args.presence_penalty)


def _mesh(args: argparse.Namespace) -> Mesh:
    return MeshConfig(**{axis: getattr(args, f"mesh.{axis}") for axis in GENERATION_AXES}).mesh()


def _source(args: argparse.Namespace) -> ModelSource:
    return ModelSource(args.model, args.adapter, args.dtype)


def _generate(args: argparse.Namespace) -> None:
    sampling = _sampling(args)
    if bool(args.prompts) == bool(args.input):
        raise ValueError("give prompts as arguments or a file with --input, one of the two.")
    if args.input and args.system is not None:
        raise ValueError("--system goes with prompts given as arguments; in a file it is the first message of a row.")
    if args.output:
        _check_output(args.output)
    source = _source(args)
    tokenizer = load_tokenizer(source)
    if args.input:
        requests = read_requests(args.input, tokenizer, enable_thinking=MODES[args.mode])
    else:
        requests = [_request(number, text, args, tokenizer) for number, text in enumerate(args.prompts)]
    engine = Engine(load_model(source, _mesh(args)), tokenizer, slots=args.max_batch)
    engine.check([request.token_ids for request in requests], args.max_new_tokens)
    run = functools.partial(generate_rows, engine, requests, sampling=sampling, max_new_tokens=args.max_new_tokens,
                            seed=args.seed)  # fmt: skip
    if not args.output:
        run(lambda row: _print_row(row, titled=len(requests) > 1))
        return
    with open(args.output, "x", encoding="utf-8") as file:
        run(lambda row: print(json.dumps(row, ensure_ascii=False), file=file, flush=True))


def _check_output(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists; choose another --output or remove it.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.absolute().parent} is not a folder; make it, or choose another --output.")


def _request(number: int, text: str, args: argparse.Namespace, tokenizer: Tokenizer) -> Request:
    messages = [] if args.system is None else [{"role": "system", "content": args.system}]
    messages.append({"role": "user", "content": text})
    return Request(number, tokenizer.encode_chat(messages, enable_thinking=MODES[args.mode]))


def _print_row(row: dict[str, Any], *, titled: bool) -> None:
    if titled:
        print(f"--- {row['id']}")
    if row["thinking"]:
        print(f"thinking:\n{row['thinking']}\n\nanswer:")
    print(row["response"], flush=True)
    if row["finish_reason"] == "length":
        print(f"cut off after {row['num_tokens']} tokens; raise --max-new-tokens.", file=sys.stderr)


def _chat(args: argparse.Namespace) -> None:
    sampling = _sampling(args)
    source = _source(args)
    tokenizer = load_tokenizer(source)
    engine = Engine(load_model(source, _mesh(args)), tokenizer, slots=1)
    interactive = sys.stdin.isatty()
    if interactive:
        print(chat_module.HELP)
    chat_module.chat(
        engine,
        _typed_lines() if interactive else sys.stdin,
        sys.stdout,
        sampling=sampling,
        max_new_tokens=args.max_new_tokens,
        enable_thinking=MODES[args.mode],
        system=args.system,
        seed=args.seed,
        color=sys.stdout.isatty(),
    )


def _typed_lines() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _export(args: argparse.Namespace) -> None:
    check_new(args.out)
    if args.public and not args.push:
        raise ValueError("--public belongs to --push ORG/NAME.")
    if args.push:
        _check_push(args)
    trained = load_run(args.run_dir, step=args.step, mesh=_mesh(args))
    with folder_for(args.out) as out:
        if args.merged or not trained.adapter:
            export_checkpoint(trained.model, out, trained.record, trained.source)
        else:
            export_adapter(
                trained.model,
                out,
                trained.record,
                trained.source,
                step=trained.step,
                metrics=read_metrics(args.run_dir, trained.step),
                auto_class=args.auto_class,
                base=args.base,
            )
        deliver(out, args.out)
        print(f"wrote step {trained.step} to {args.out}{sampling_note(out)}")
        if args.push:
            print(f"uploaded it to {upload(out, args.push, message=f'Step {trained.step}')}")


def _check_push(args: argparse.Namespace) -> None:
    """Refuses what nobody else could load, and makes the repository, before the model is loaded."""
    recipe = read_record(args.run_dir)["recipe"]
    if recipe.get("lora") is not None and not args.merged:
        named = args.base or recipe["model"]["path"]
        name, _ = public_name(named, None if args.base else find_folder(named))
        if gcs.is_address(name) or Path(name).exists():
            raise ValueError(
                f"the adapter's base {name} is a folder of yours; give --base ORG/NAME of the same checkpoint "
                "on the hub, or --merged."
            )
    prepare_repository(args.push, public=args.public)


def _merge(args: argparse.Namespace) -> None:
    check_new(args.out)
    folder, adapter = find_folder(args.model), find_folder(args.adapter)
    files = merged_files(adapter, folder)
    model = load(folder, mesh=_mesh(args), adapter=adapter, param_dtype=stored_dtype(folder))
    with folder_for(args.out) as out:
        save(model, out, source=folder, files=files)
        deliver(out, args.out)
        print(f"wrote {args.out}{sampling_note(out)}")


def _create(args: argparse.Namespace) -> None:
    check_new(args.out)
    sizes = {name: value for name in size_types() if (value := getattr(args, name)) is not None}
    folder = None if args.tokenizer is None else find_folder(args.tokenizer)
    tokenizer = None if folder is None else Tokenizer.from_pretrained(folder)
    config = resize(PRESETS[args.preset], sizes, tokenizer=tokenizer, text_only=args.text_only)
    with folder_for(args.out) as out:
        create_checkpoint(config, out, seed=args.seed, dtype=args.dtype, tokenizer_from=folder)
        deliver(out, args.out)
    count = sum(math.prod(spec.shape) for spec in tensor_table(config).values())
    print(f"wrote {count:,} random parameters to {args.out}")


if __name__ == "__main__":
    main()
