"""``qwen35 export``, ``merge`` and ``create``: commands that write checkpoints and adapters."""

import argparse
import math
from pathlib import Path

from qwen35_jax import gcs
from qwen35_jax.commands.options import DTYPES, MODEL_HELP, OUT_HELP, add_mesh_options, mesh_of
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
from qwen35_jax.presets import PRESETS
from qwen35_jax.processing.tokenizer import Tokenizer
from qwen35_jax.publish import check_new, deliver, folder_for
from qwen35_jax.runs import load_run, read_metrics, read_record, stored_dtype

_DENSE = tuple(name for name, config in PRESETS.items() if config.text.moe is None)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``qwen35 export``."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="--workdir of the training run")
    parser.add_argument("--out", required=True, metavar="DIR", help=OUT_HELP)
    parser.add_argument("--step", type=_step, metavar="N|best", help="which checkpoint, by default the newest; best: "
                        "that with the best evaluation, where the run had checkpoint.best_by")  # fmt: skip
    parser.add_argument("--merged", action="store_true", help="write a whole checkpoint, with adapters added in")
    parser.add_argument("--auto-class", choices=AUTO_CLASSES,
                        help="class of transformers that will load the base of an adapter: it decides the names of "
                             "modules; by default as the base's own architecture says")  # fmt: skip
    parser.add_argument("--base", metavar="NAME",
                        help="hub id (org/name@revision) or path by which the adapter names its base; by default as "
                             "the run was given it")  # fmt: skip
    parser.add_argument("--push", metavar="ORG/NAME", help="also upload the folder to this repository of the hub")
    parser.add_argument("--public", action="store_true", help="everybody may see a repository that --push makes")
    add_mesh_options(parser)


def add_merge_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``qwen35 merge``."""
    parser.add_argument("--model", required=True, metavar="DIR", help=MODEL_HELP)
    parser.add_argument("--adapter", required=True, metavar="DIR", help="PEFT adapter for it, given likewise")
    parser.add_argument("--out", required=True, metavar="DIR", help=OUT_HELP)
    add_mesh_options(parser)


def add_create_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``qwen35 create``."""
    parser.add_argument("--preset", choices=_DENSE, default="0.8b", help="the model whose sizes are changed")
    parser.add_argument("--out", required=True, metavar="DIR", help=OUT_HELP)
    parser.add_argument("--tokenizer", metavar="DIR",
                        help="folder (also gs://) whose tokenizer, chat template and vocabulary are taken")  # fmt: skip
    parser.add_argument("--text-only", action="store_true", help="leave the vision tower out")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="type of the weights in the file")
    sizes = parser.add_argument_group("sizes", "By the names of config.json; what follows from a size follows it.")
    for name, kind in size_types().items():
        sizes.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, metavar="N" if kind is int else "X")


def _step(text: str) -> int | str:
    if text == "best" or text.isdecimal():
        return text if text == "best" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither the number of a step nor best")


def run_export(args: argparse.Namespace) -> None:
    """Writes what a run has learnt, and uploads it if asked to."""
    check_new(args.out)
    if args.public and not args.push:
        raise ValueError("--public belongs to --push ORG/NAME.")
    if args.push:
        _check_push(args)
    trained = load_run(args.run_dir, step=args.step, mesh=mesh_of(args))
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


def run_merge(args: argparse.Namespace) -> None:
    """Writes a checkpoint with an adapter added in."""
    check_new(args.out)
    folder, adapter = find_folder(args.model), find_folder(args.adapter)
    files = merged_files(adapter, folder)
    model = load(folder, mesh=mesh_of(args), adapter=adapter, param_dtype=stored_dtype(folder))
    with folder_for(args.out) as out:
        save(model, out, source=folder, files=files)
        deliver(out, args.out)
        print(f"wrote {args.out}{sampling_note(out)}")


def run_create(args: argparse.Namespace) -> None:
    """Writes a checkpoint of random weights."""
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
