"""From a model to a model directory."""

import json
import logging
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from anyformer import atomic, limits
from anyformer.adapters.modules import adapters
from anyformer.checkpoint import generation_settings, pooling
from anyformer.checkpoint.sources import SAFETENSORS, SAFETENSORS_INDEX, write_tensors
from anyformer.dtensor import full_tensor, is_dtensor
from anyformer.errors import UserError, quote
from anyformer.families import FAMILIES, from_huggingface, own, to_huggingface
from anyformer.families.base import Family, write_labels
from anyformer.families.rows import Row, row
from anyformer.kernels.quantization import GROUP, QuantizedWeight
from anyformer.model import Transformer
from anyformer.quantization import bits_of, quantized_weights
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.files import TOKENIZER_FILES

GIGABYTE = 10**9
OWN = "no Hugging Face class can express this model, so only anyformer opens it."

_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_FILES = {
    *("config.json", generation_settings.FILE, SAFETENSORS_INDEX, "README.md", ".git", ".gitattributes"),
    *(name.partition("/")[0] for name in pooling.FILES),
    *TOKENIZER_FILES,
}
"""Files, beside weights, by which a directory without a config.json is recognized as one of a model or tokenizer."""

_LOG = logging.getLogger(__name__)

_GENERATION_FIELDS = {*generation_settings.FIELDS, "max_length"} - {"do_sample", "temperature", "top_k", "top_p"}
"""Settings of generation in the config.json of older models; they belong into generation_config.json now."""


def _rank_and_size(model: nn.Module) -> tuple[int, int]:
    """The number of this process, and of those that hold a share each of a model's weights: (0, 1) for a whole one."""
    if not any(is_dtensor(parameter) for parameter in model.parameters()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def save(
    model: Transformer, directory: str | Path, tokenizer: Tokenizer | None = None, *, max_shard_size: int = 5 * GIGABYTE
) -> str:
    """Write a model directory in Hugging Face's format, whole or not at all.

    Matrices in integers stay integers, and only anyformer opens those (see `families.own`). Of a model that is spread
    over processes all of them call this: each writes files of its own, and gathers the tensors in them one at a time.

    Args:
        directory: Where: a new or empty directory, or one of a model or a tokenizer (see `check_target`), whose files
            are replaced, or removed, once the new ones are complete. Whatever else is there stays.
        tokenizer: Its tokenizer, written beside it; None: one that lies there stays.
        max_shard_size: Bytes of weights in one file, beyond which they are spread over several. Of a model that is
            spread over processes each writes one at least.

    Returns:
        The `model_type` that it was written as: "anyformer" where no Hugging Face class can express the model.

    Raises:
        UserError: the tokenizer has more tokens than the model, the directory holds something else or ends in .gguf,
            or the files can't be written.
    """
    if Path(directory).suffix == ".gguf":
        raise UserError(f"{directory} would be a directory of this name: `save_gguf` writes the file.")
    rank, processes = _rank_and_size(model)
    if rank == 0:
        check_target(Path(directory))
    if next(adapters(model), None) is not None:
        raise UserError("The model has adapters: `merge` them into its weights first, or `save_adapter`.")
    config, bits = model.config, bits_of(model)
    if tokenizer is not None and tokenizer.table_size > config.vocab_size:
        sizes = f"The tokenizer has {tokenizer.table_size} tokens and the model only {config.vocab_size}"
        raise UserError(f"{sizes}: they do not belong together.")
    family, raw = _config_json(model)
    if family is own.FAMILY and not (Path(directory) / "config.json").exists():
        _LOG.warning("%s is written as our own model type, %r: %s", directory, family.model_type, OWN)
    prefix = family.prefix if config.head.kind == "none" else ""
    shapes, read = _tensors(model)
    shapes = {name: tensor for name, tensor in shapes.items() if not name.startswith("pooling.")}
    rows = {
        theirs.removeprefix(prefix): line
        for theirs, line in (
            family.table(config, shapes) if bits is None else {name: row(name, name) for name in shapes}
        ).items()
        if not line.alias or (line.is_separate and not config.embedding.tied)
    }
    with _replacing_directory(Path(directory), rank, processes) as target:
        _write_weights(rows, shapes, read, target, max_shard_size, rank, processes)
        pooled = {name: full_tensor(tensor).cpu() for name, tensor in model.pooling.state_dict().items()}
        if rank:
            return family.model_type
        for name, value in pooling.files(config.pooling, config.d_model).items():
            _write_json(target / name, value)
        for name, tensors in pooling.stored_weights(pooled).items():
            write_tensors(target / name, {part: tensor.contiguous() for part, tensor in tensors.items()})
        _write_json(target / "generation_config.json", _generation(model))
        if tokenizer is not None:
            tokenizer.save(target)
        _write_json(target / "config.json", raw if bits is None else own.quantized_config_json(raw, bits, GROUP))
    return family.model_type


def _config_json(model: Transformer) -> tuple[Family, dict[str, Any]]:
    """The config.json: loaded fields as they were, changed and new ones as the family writes them."""
    origin, config = model.origin.config, model.config
    dtype = str(model.dtype).removeprefix("torch.")
    loaded = from_huggingface(origin) if origin else None
    # A head that is not tied shows in the weights alone, and pooling in other files.
    is_same = loaded and loaded == config.replace(embedding={"tied": loaded.embedding.tied}, pooling=loaded.pooling)
    # Of a model of texts and images only the text model is there.
    if loaded and is_same and FAMILIES[origin["model_type"]].text_model is None:
        # BartConfig of transformers counts three labels where it finds no names, and leaves out those of two.
        family = FAMILIES[origin["model_type"]]
        missing = write_labels(config.head).keys() if "id2label" not in origin else ()
        labels = {name: value for name, value in family.write_head(config.head).items() if name in missing}
        dtype_name = "torch_dtype" if "torch_dtype" in origin else "dtype"
        return family, {**labels, **origin, dtype_name: dtype}
    family, written = to_huggingface(config)
    kept = origin if origin.get("model_type") == family.model_type else {}
    return family, {**{k: v for k, v in kept.items() if k != "torch_dtype"}, **written, "dtype": dtype}


def _generation(model: Transformer) -> dict[str, Any]:
    if model.origin.generation:
        return dict(model.origin.generation)
    tokens = model.config.special_tokens
    ids: dict[str, Any] = {
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.eos[0] if len(tokens.eos) == 1 else list(tokens.eos),
        "pad_token_id": tokens.pad,
        "decoder_start_token_id": tokens.decoder_start,
    }
    settings = {name: model.origin.config.get(name) for name in _GENERATION_FIELDS}
    return {"_from_model_config": True, **{k: v for k, v in {**settings, **ids}.items() if v not in (None, [])}}


def _tensors(model: Transformer) -> tuple[dict[str, Tensor], Callable[[str], Tensor]]:
    """The tensors of a model on the meta device, and what reads one: integers are unpacked a matrix at a time."""
    state: dict[str, Tensor] = {}
    shapes: dict[str, Tensor] = {}
    matrices = dict(quantized_weights(model))
    for name, matrix in matrices.items():
        (rows, columns), scales = matrix.shape, torch.empty(0, dtype=torch.float16)
        integers = torch.empty(0, dtype=torch.int8 if matrix.bits == 8 else torch.uint8)
        parts = {"integers": (integers, columns * matrix.bits // 8), "scales": (scales, columns // GROUP)}
        parts |= {"minima": parts["scales"]} if matrix.bits == 4 else {}
        shapes |= {f"{name}.{part}": like.new_empty(rows, n, device="meta") for part, (like, n) in parts.items()}
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in matrices:  # of which `state_dict` unpacks all
            module._save_to_state_dict(state, name and f"{name}.", keep_vars=False)  # pyright: ignore[reportPrivateUsage]
    shapes |= {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in state.items()}

    @lru_cache(maxsize=1)
    def unpacked(name: str) -> QuantizedWeight:
        return matrices[name].unpacked()

    def read(name: str) -> Tensor:
        if name in state:
            return full_tensor(state[name])
        matrix, _, part = name.rpartition(".")
        return getattr(unpacked(matrix), part)

    return shapes, read


def _write_weights(
    rows: Mapping[str, Row],
    shapes: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    target: Path,
    max_shard_size: int,
    rank: int,
    processes: int,
) -> None:
    """Write the tensors of rows: one at a time, or, by several processes, a file in turn by each, which holds those of
    one file."""
    from huggingface_hub import split_state_dict_into_shards_factory

    stored = {name: line.write(shapes) for name, line in rows.items()}
    sizes = {name: tensor.nbytes for name, tensor in stored.items()}
    if processes > 1:
        max_shard_size = min(max_shard_size, -(-sum(sizes.values()) // processes))
    shards: Any = split_state_dict_into_shards_factory(
        sizes, get_storage_size=int, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )

    def written(name: str) -> Tensor:
        return rows[name].write({ours: read(ours) for ours in rows[name].ours}).contiguous().cpu()

    mine: dict[str, Tensor] = {}
    own = ""
    for number, (file, names) in enumerate(shards.filename_to_tensors.items()):
        if processes == 1:
            write_tensors(target / file, {name: stored[name] for name in names}, {"format": "pt"}, written)
            continue
        is_mine = number % processes == rank
        if is_mine:
            _write_shard(target / own, mine)  # not before, so that all processes write at the same time
            own = file
        for name in names:
            tensor = written(name)
            if is_mine:
                mine[name] = tensor
    _write_shard(target / own, mine)
    if shards.is_sharded and rank == 0:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        _write_json(target / SAFETENSORS_INDEX, index)


def _write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file of tensors, if there are any, and let go of them."""
    if tensors:
        write_tensors(path, tensors, {"format": "pt"})
        tensors.clear()


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _replacing_directory(directory: Path, rank: int, processes: int) -> Generator[Path]:
    """A fresh directory for all processes to write into, whose files are moved into place when all of them are whole.

    Raises UserError where the disk is full or the place can't be written to; what was there before is untouched.
    """
    directory = directory.absolute()
    with atomic.writing(directory, SafetensorError), ExitStack() as stack:
        fresh = [stack.enter_context(atomic.temporary_folder(directory)) if rank == 0 else directory]
        if processes > 1:
            dist.broadcast_object_list(fresh, src=0)
        yield fresh[0]
        if processes > 1:
            dist.barrier()
        if rank == 0:
            _move(fresh[0], directory)
        if processes > 1:
            dist.barrier()


def check_target(directory: Path) -> None:
    """Check that a model may be written to a directory, where it replaces the files of the same names.

    Raises:
        UserError: it is neither new nor empty, has no config.json of a model, and holds more than a model's or a
            tokenizer's files.
    """
    with limits.reading(directory):
        names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    foreign = [name for name in names if name not in _FILES and not _SHARD.fullmatch(name)]
    if foreign and not ("config.json" in names and "model_type" in limits.read_object(directory / "config.json")):
        raise UserError(
            f"{directory} holds something else than a model ({quote(min(foreign))}, for one): choose a new directory, "
            "or empty this one."
        )


def _move(fresh: Path, directory: Path) -> None:
    """Put complete files in place of old ones, config.json last, and remove what an earlier model leaves behind.

    A directory without a config.json, such as a tokenizer's own, holds no earlier model."""
    if not directory.exists():
        fresh.rename(directory)
        return
    files = [str(path.relative_to(fresh)) for path in fresh.rglob("*") if path.is_file()]
    # Whatever else belongs to a model or a tokenizer would be taken for the next one's.
    old = _weight_files(directory)
    if (directory / "config.json").exists():
        old |= {*pooling.FILES, *(TOKENIZER_FILES if any(name in TOKENIZER_FILES for name in files) else ())}
    for folder in {str(Path(name).parent) for name in old.union(files)}:
        limits.path_inside(directory, folder)  # a symbolic link in the place of 1_Pooling would lead elsewhere
    for name in sorted(files, key=lambda name: name == "config.json"):
        (directory / name).parent.mkdir(exist_ok=True)
        (fresh / name).replace(directory / name)
    for name in old.difference(files):
        if (directory / name).is_file():
            (directory / name).unlink()


def _weight_files(directory: Path) -> set[str]:
    """The weights of the model in a directory: those that its index names, and those whose names say it."""
    index: Any = {}
    if (directory / SAFETENSORS_INDEX).exists():
        with suppress(UserError):  # a damaged one names nothing
            index = limits.read_object(directory / SAFETENSORS_INDEX).get("weight_map")
    shards = map(str, cast("dict[str, Any]", index).values()) if isinstance(index, dict) else ()
    # Only those that lie in the directory itself, as every model's do.
    inside = {name for name in shards if name.endswith(".safetensors") and Path(name).name == name}
    by_name = {path.name for path in directory.iterdir() if _SHARD.fullmatch(path.name)}
    return inside | by_name | {SAFETENSORS, SAFETENSORS_INDEX}
