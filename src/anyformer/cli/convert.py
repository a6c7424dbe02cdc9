"""`anyformer convert DIR FILE.gguf`, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anyformer.cli.options import LoadOptions, Positional, parse
from anyformer.cli.verify import show
from anyformer.errors import UserError
from anyformer.terminal import write

if TYPE_CHECKING:
    from anyformer.verify import Check

_DTYPES = {None: None, "f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(LoadOptions):
    """Write a model directory as a GGUF file for llama.cpp, or a GGUF file as a model directory.

    An adapter, the one of a run or of --adapter, is merged into the weights.

    With --type int8 or int4 any model becomes a directory of integers, which loads at once and takes half or a quarter
    of the memory; only anyformer opens it.

    Examples:
        anyformer convert openai-community/gpt2 gpt2.gguf --type q8_0 --verify
        anyformer convert gpt2.gguf gpt2
        anyformer convert openai-community/gpt2 small --type int4
        anyformer convert openai-community/gpt2 merged --adapter my-adapter
        anyformer convert runs/chat merged
    """

    source: Positional[str]
    """A model directory, a run directory, a hub id, or a file that ends in .gguf."""
    target: Positional[str]
    """Target: a file that ends in .gguf, or a directory."""
    type: Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "int8", "int4"] | None = None
    """The format of the weights; int8 and int4 make a directory, the q types a GGUF file (default: f16 in a GGUF file,
    as stored in a directory)."""
    adapter_only: bool = False
    """Write the adapter alone, as a GGUF file for llama.cpp."""
    verify: bool = False
    """Compare what was written with what llama.cpp reads (of a directory, transformers): token ids, numbers, text."""


def run(argv: list[str]) -> int:
    """Convert, and say what could not be carried over; exit status 1 if a comparison finds a difference."""
    options = parse(ConvertOptions, argv, "convert")
    if options.quantize is not None:
        if options.type not in (None, options.quantize):
            raise UserError(
                f"--quantize {options.quantize} and --type {options.type} contradict each other: give one of them."
            )
        options = replace(options, type=options.quantize)

    from anyformer.checkpoint.adapter_directory import find_adapter, read_base

    adapter = find_adapter(options.source)
    base = None if adapter is None else read_base(adapter)
    # Of a run directory the model in it is read, and of an adapter its base.
    sources = [Path(options.source), Path(options.source) / "model", *([] if base is None else [Path(base)])]
    if Path(options.target).resolve() in (path.resolve() for path in sources if path.exists()):
        raise UserError(f"{options.target} is what is to be converted, and would be lost: choose another name for it.")
    merges = bool(options.adapter) or base is not None
    if options.type in ("int8", "int4"):
        checks = _to_integers(options, merges)
    elif options.target.endswith(".gguf"):
        checks = _adapter_to_gguf(options) if options.adapter_only else _to_gguf(options)
    elif options.source.endswith(".gguf") or merges:
        checks = _to_directory(options)
    else:
        missing = "" if Path(options.source).exists() else f"There is no {options.source} here. "
        raise UserError(
            f"{missing}convert makes a GGUF file or reads one: one of the two names has to end in .gguf,"
            " or --type is int8 or int4, or there is an adapter to merge: --adapter DIR, or a run that trained one."
        )
    return show(checks)


def _to_integers(options: ConvertOptions, merges: bool) -> Sequence[Check]:
    if options.target.endswith(".gguf"):
        raise UserError(f"{options.type} is for a directory: a GGUF file's integers are q8_0, q4_0 and q4_1.")
    if options.verify:
        raise UserError("No other program reads a directory of integers: `anyformer evaluate` says what they cost.")

    from anyformer.checkpoint import check_target, save
    from anyformer.quantization import quantize

    check_target(Path(options.target))
    kind = options.type if options.type == "int8" else "int4"
    model, tokenizer = replace(options, quantize=None if merges else kind).load(options.source)
    if merges:  # before the weights are rounded
        quantize(model, kind)
    save(model, options.target, tokenizer=tokenizer)
    size = sum(path.stat().st_size for path in Path(options.target).glob("*.safetensors"))
    write(f"{options.target}: {kind}, {size / 1e6:,.1f} MB{'' if tokenizer else ', without a tokenizer'}")
    return ()


def _to_gguf(options: ConvertOptions) -> Sequence[Check]:
    from anyformer.checkpoint import save_gguf

    path = Path(options.target)
    model, tokenizer = options.load(options.source)
    written = save_gguf(model, path, tokenizer=tokenizer, kind=options.type or "f16")
    for note in written.notes:
        write(f"note: {note}")
    formats = ", ".join(f"{count} {name}" for name, count in written.formats.items())
    write(f"{path}: {written.architecture}, tensors {formats}, {written.size / 1e6:,.1f} MB")
    if not options.verify:
        return ()
    from anyformer.verify import verify_gguf

    return verify_gguf(path, model.float(), tokenizer)


def _adapter_to_gguf(options: ConvertOptions) -> Sequence[Check]:
    from anyformer.checkpoint import load, save_adapter

    if len(options.adapter) != 1 or options.verify:
        raise UserError("--adapter-only writes one adapter: give one --adapter, and leave out --verify.")
    path = Path(options.target)
    model, _ = load(options.source, adapter=options.adapter, allow_pickle=options.allow_pickle)
    save_adapter(model, path)
    write(f"{path}: an adapter, {path.stat().st_size / 1e6:,.1f} MB; llama.cpp adds it by --lora")
    return ()


def _to_directory(options: ConvertOptions) -> Sequence[Check]:
    from anyformer.checkpoint import check_target, save

    if options.type not in _DTYPES:
        raise UserError(f"A model directory has no weights of type {options.type}: choose f32, f16 or bf16.")
    check_target(Path(options.target))
    model, tokenizer = replace(options, dtype=_DTYPES[options.type] or options.dtype).load(options.source)
    model_type = save(model, options.target, tokenizer=tokenizer)
    write(f"{options.target}: {model_type}{'' if tokenizer else ', without a tokenizer'}")
    if not options.verify:
        return ()
    from anyformer.verify import verify

    return verify(options.target)
