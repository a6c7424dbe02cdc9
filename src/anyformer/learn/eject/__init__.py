"""An architecture as one Python file that needs torch and safetensors alone.

architecture   values on the model: constants, embeddings, feed-forward, head
parts          the stacks of a config, what they share, and values on their attention and blocks

Here the templates are filled with a config; values on loading, sampling and training are here as well.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from textwrap import fill
from typing import Any

import jinja2

from anyformer import __version__
from anyformer.config import ModelConfig, OtherLayers, ProblemType
from anyformer.errors import UserError
from anyformer.families import own, to_huggingface
from anyformer.families.rows import ROW, SPLIT, TRANSPOSE
from anyformer.learn import require_own_blocks
from anyformer.learn.eject.architecture import INITIALIZERS, POSITIONS, architecture
from anyformer.learn.eject.parts import ACTIVATIONS, NORMS, WIDTH
from anyformer.learn.eject.stacks import distinct_layers
from anyformer.model import skeleton
from anyformer.spec import read_config


def eject(spec: str) -> str:
    """An architecture as one Python file that needs torch and safetensors alone: its config folded to constants.

    The file has ``class Model``, ``load(directory) -> Model`` for the weights of a directory in Hugging Face's format,
    and functions that sample and train; ``model(tokens)``, or ``model(source, tokens)`` of an encoder-decoder, gives
    logits. It is the same for the same config.

    Args:
        spec: A preset, a config file, a model or run directory, perhaps with fields changed (see `read_config`).

    Returns:
        Its source.

    Raises:
        UserError: there is no such model; it has a block of somebody's own, or one that a file can't show.
    """
    model = read_config(spec)
    return _TEMPLATES.get_template("program.py.jinja").render(_values(model.config, Path(spec).name or spec))


def architecture_diff(a: str, b: str) -> str:
    """Difference of two architectures, as a diff of their files without the code that loads, samples and trains.

    Args:
        a, b: As of `eject`.

    Raises:
        UserError: as `eject`.
    """
    sides = [_values(read_config(spec).config, spec)["architecture"].strip().splitlines() for spec in (a, b)]
    return "\n".join(difflib.unified_diff(sides[0], sides[1], a, b, n=1, lineterm=""))


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FunctionLoader(lambda name: (files(__package__ or "") / name).read_text(encoding="utf-8")),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)


def _values(config: ModelConfig, name: str) -> dict[str, Any]:
    """Values of the templates for a model. Raises UserError for one that a file can't show."""
    kinds = {"activation": ACTIVATIONS, "norm": NORMS, "position": POSITIONS, "init": INITIALIZERS}
    require_own_blocks(config, kinds, "a file can't be made of")
    if config.embedding.ngrams > 1 and config.position.skip_padding:
        raise UserError(
            "embedding.ngrams and position.skip_padding together have no standalone file: drop one of them."
        )
    values = architecture(config)
    values["architecture"] = _TEMPLATES.get_template("architecture.py.jinja").render(values)
    return values | program(config, name)


_ANSWERS: Mapping[ProblemType | None, str] = {"regression": "flatten()", "multi_label_classification": "sigmoid()"}


def program(config: ModelConfig, name: str) -> dict[str, Any]:
    """The values of program.py.jinja that those of the architecture are without."""
    stored, head = stored_names(config), config.head
    models_language = head.kind == "language_model"
    writes = config.decoder_layers > 0 and models_language
    if writes:
        purpose = "rewrites the text" if config.is_encoder_decoder else "writes what follows"
    elif models_language:
        purpose = "fills in [MASK]"
    else:
        purpose = "prints hidden states" if head.kind == "none" else "labels the text"
    kind = "encoder-decoder" if config.is_encoder_decoder else "decoder" if config.decoder_layers else "encoder"
    shapes = f"B texts of T tokens{', S in the source' if config.is_encoder_decoder else ''}; D = D_MODEL; H heads of K"
    larger = "ENCODER_" if config.encoder_layers >= config.decoder_layers else "DECODER_"
    larger = larger if config.is_encoder_decoder else ""
    name = _plain(name)
    return {
        "title": f"{name}, {'an' if kind[0] == 'e' else 'a'} {kind}",
        "version": __version__,
        "name": name,
        "config_lines": _side_by_side(map(_plain, _changed_fields(config))),
        "sources": fill(_sources(config), 118, initial_indent=" " * 8, break_on_hyphens=False).lstrip(),
        "purpose": purpose,
        "purpose_sentence": purpose[0].upper() + purpose[1:] + ".",
        "shapes": f"{shapes} numbers; V tokens in the vocabulary.",
        **stored,
        "has_layers": any("{i}" in ours for ours, _ in stored["names"]),
        "most_layers": "DISTINCT_LAYERS" if distinct_layers(config) else f"{larger}LAYERS",
        "model_type": _plain(config.model_type),
        "writes": writes,
        "learns": models_language,
        "limited": config.position.kind in ("learned", "sinusoidal"),
        "eos": set(config.special_tokens.eos) or None,
        "train_length": min(config.max_length, 128),
        "labelled": head.kind in ("classification", "token_classification"),
        "label_names": _listed(head.names),
        "answer": _ANSWERS.get(head.problem, "softmax(dim=-1)"),
    }


def _changed_fields(part: Any, prefix: str = "") -> Iterator[str]:
    """The fields of a config that aren't as they are by default, and their values."""
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from _changed_fields(value, f"{prefix}{field.name}.")
        elif value != field.default and field.name not in ("label_names", "short_factor", "long_factor"):
            yield f"{prefix}{field.name}={value}"


def _plain(text: str) -> str:
    """The text without what could end the string around it: names come from files of strangers."""
    return re.sub(r"[^ !#-\[\]-~]", "_", text)


def _listed(names: Sequence[str]) -> str:
    items = [json.dumps(name) for name in names]
    line = f"[{', '.join(items)}]"
    return line if len(line) <= WIDTH - len("LABELS = ") else "[\n" + "".join(f"    {item},\n" for item in items) + "]"


def _side_by_side(items: Iterable[str]) -> list[str]:
    """Items with commas between them, as many in a line as it has room for."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + 2 + len(item) <= WIDTH - 12:
            lines[-1] += f", {item}"
        else:
            lines.append(item)
    return lines


def _sources(config: ModelConfig) -> str:
    """The papers of what the config has."""
    attention, position, head = config.attention, config.position, config.head
    others = config.other_layers or OtherLayers()
    papers = {
        "Vaswani et al. 2017 (attention)": True,
        "Ba et al. 2016 (LayerNorm)": config.norm.kind.startswith("layer"),
        "Zhang & Sennrich 2019 (RMSNorm)": config.norm.kind.startswith("rms"),
        "Su et al. 2021 (rotary positions)": position.kind == "rotary",
        "Ding et al. 2024 (LongRoPE)": position.scaling is not None and position.scaling.kind == "longrope",
        "Raffel et al. 2020 (relative positions)": position.has_bias,
        "Lan et al. 2020 (shared layers)": distinct_layers(config) is not None,
        "Ainslie et al. 2023 (grouped queries)": attention.kv_heads not in (None, attention.heads),
        "Jiang et al. 2023 (window)": (attention.window or others.window) is not None,
        "Gemma Team 2024 (bounded scores)": attention.softcap is not None,
        "Yang et al. 2025 (layers without positions)": position.kind == "rotary"
        and others.position is not None
        and others.position.kind == "none",
        "Shazeer 2020 (gated feed-forward)": config.feed_forward.gated,
        "Shazeer et al. 2017 (mixture of experts)": config.feed_forward.experts is not None,
        "DeepSeek-AI 2024 (latent attention)": attention.latent is not None,
        "OpenAI 2025 (sinks)": attention.sinks,
        "Press & Wolf 2017 (tied head)": config.embedding.tied and head.kind == "language_model",
        "Devlin et al. 2019 (masked language model)": config.is_encoder_only and head.kind == "language_model",
    }
    return ", ".join(paper for paper, applies in papers.items() if applies) + "."


def _ranges(numbers: Sequence[int]) -> str:
    stretches: list[list[int]] = []
    for number in numbers:
        last = stretches[-1] if stretches else []
        if last and (len(last) == 1 or number - last[-1] == last[1] - last[0]):
            last.append(number)
        else:
            stretches.append([number])
    ranges: list[str] = []
    for first, *rest in stretches:
        step = rest[0] - first if rest else 1
        start, end = f"{first}, " if first or step != 1 else "", [first, *rest][-1] + step
        ranges.append(f"*range({start}{end}{f', {step}' if step != 1 else ''})")
    return f"[{', '.join(ranges)}]" if ranges else ""


_LAYER = re.compile(r"\.blocks\.(\d+)\.")


def stored_names(config: ModelConfig) -> dict[str, Any]:
    """Names of a model's weights in the files that `save` writes, as the template's values.

    ``names`` has our names and theirs, where ``{i}`` stands for a layer, or none if theirs are ours: of modules, and of
    weights whose last part differs (``has_weights``). Layers with another name come last, by their number. ``prefix``
    is before names of models with a head, and ``transposed`` says whether matrices of blocks are stored as [in, out],
    queries, keys and values side by side. ``heads`` has `HeadLayout`'s groups and counts, which of them is ours and,
    if some have one (``has_order``), the order of its rows, by the last part of our names. ``halves`` says whether gate
    and up stand side by side, ``flattened`` whether a vector is a matrix of one row; ``experts`` how their matrices are
    stored: ``apart`` with ``{e}`` in their names, ``stacked`` in one tensor, or that by ``columns``.
    """
    family, _ = to_huggingface(config)
    flags = dict.fromkeys(("transposed", "halves", "flattened", "has_weights", "has_order"), False)
    heads: dict[str, str] = {}
    stored: dict[str, Any] = {"names": [], "prefix": "", "heads": heads, "experts": "", **flags}
    if family is own.FAMILY:
        return stored
    names = skeleton(config).state_dict()
    found: dict[str, dict[str, list[str]]] = {}
    for theirs, row in family.table(config, names).items():
        if row.alias:
            continue
        is_split, operation = row.operation is SPLIT, row.operation
        stored["transposed"] |= operation is TRANSPOSE
        stored["flattened"] |= operation is ROW
        stored["halves"] |= is_split and row.ours[0].endswith("feed_forward.gate.weight")
        for index, ours in enumerate(row.ours):
            name = ours.split(".")[-2]
            if is_split and ".attention." in ours:
                heads[name] = f"1, {(config.attention.heads,) * len(row.ours)}, {index}"
            if (layout := operation.heads) is not None:
                order = () if layout.order is None or index == 2 else layout.order
                heads[name] = f"{layout.groups}, {layout.counts}, {index}, {_ranges(order) or None}"
                stored["has_order"] |= bool(order)
        if row.part is not None or operation.experts is not None:
            stored["experts"] = "apart" if row.part else "columns" if operation.by_columns else "stacked"
        for ours in row.ours:
            pattern, layer = _LAYER.sub(".blocks.{i}.", ours), _LAYER.search(ours)
            # Of the numbers in their name the first is the layer's.
            name = theirs if layer is None else theirs.replace(f".{layer[1]}.", ".{i}.", 1)
            name = name.removeprefix(family.prefix)
            if row.part is not None:
                name = name.replace(f".{row.part[0]}.", ".{e}.", 1)
            (our_module, our_end), (their_module, their_end) = pattern.rpartition(".")[::2], name.rpartition(".")[::2]
            pair = (our_module, their_module) if our_end == their_end else (pattern, name)
            layers = found.setdefault(pair[0], {}).setdefault(pair[1], [])
            layers += [layer[1]] if layer is not None and layer[1] not in layers else []
    order = dict.fromkeys(_LAYER.sub(".blocks.{i}.", name) for name in names)
    keys = dict.fromkeys(key for name in order for key in (name.rpartition(".")[0], name) if key in found)
    most = {key: max(found[key].items(), key=lambda item: len(item[1]))[0] for key in keys}
    numbered = [
        (key.replace("{i}", layer), theirs.replace("{i}", layer))
        for key in keys
        for theirs, layers in found[key].items()
        if theirs != most[key]
        for layer in layers
    ]
    if not stored["has_order"]:
        stored["heads"] = {name: held.removesuffix(", None") for name, held in heads.items()}
    stored["has_weights"] = not order.keys().isdisjoint(keys)
    return {**stored, "prefix": family.prefix, "names": [*most.items(), *numbered]}
