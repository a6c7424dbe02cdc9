"""A drawing in words, for those who can't see it."""

from collections.abc import Iterator, Sequence

from anyformer.learn.diagram.panel import ABSENT, Panel, differences, undrawn
from anyformer.pages.formatting import count, si

_PHRASES = {
    "position": "position {}",
    "before": "{} before it",
    "after": "{} after it",
    "embedding_norm": "{} after the embedding",
    "final_norm": "{} after the last layer",
}
"""How a fact is said, by the last word of its place."""


def kind(panel: Panel) -> str:
    """A model in a line."""
    config = panel.config
    stacks = "encoder-" * (config.encoder_layers > 0) + "decoder-" * (config.decoder_layers > 0)
    name = "encoder-decoder" if config.is_encoder_decoder else f"{stacks}only"
    return f"{name}, {config.d_model:,} wide, up to {config.max_length:,} tokens"


def title(drawn: Sequence[Panel]) -> str:
    """Title of a drawing."""
    return "Architecture of " + " and ".join(panel.name for panel in drawn)


def description(drawn: Sequence[Panel], among: Sequence[Panel]) -> str:
    """All that is drawn of models, and their differences.

    Args:
        drawn: The models of the drawing.
        among: The models among which differences are lit.
    """
    sentences = [sentence for panel in drawn for sentence in _sentences(panel)]
    if len(among) > 1:
        names = " and ".join(panel.name for panel in among)
        places, found = differences(among), list[str]()
        for place, texts in places.items():
            above = [place[:end] for end, character in enumerate(place) if character == "."]
            if any(ABSENT in places.get(each, ()) for each in above):
                continue  # a block that one of them lacks is said as a whole
            is_block = any(each.startswith(f"{place}.") for each in places)
            said = (text if text == ABSENT or not is_block else "present" for text in texts)
            found.append(f"{_words(place)}: {' against '.join(said)}")
        found += [f"{each.field}: {' against '.join(each.values)}" for each in undrawn(among)]
        sentences.append(f"Differences between {names}: {'; '.join(found)}." if found else f"{names} are the same.")
    return " ".join(sentences)


def _sentences(panel: Panel) -> Iterator[str]:
    """A model: a sentence for each of its blocks."""
    yield f"{panel.name}: {kind(panel)}."
    blocks: dict[str, list[str]] = {}
    for place, fact in panel.facts.items():
        block, _, last = place.rpartition(".")
        is_heading = any(each.startswith(f"{place}.") for each in panel.facts)
        if is_heading and place != "head":
            blocks.setdefault(place, [])
        else:
            blocks.setdefault(block or place, []).append(_PHRASES.get(last, "{}").format(fact.text))
    for block, texts in blocks.items():
        yield f"{_words(block)}: {', '.join(texts)}."
    cache = f"{panel.cache_bytes:,} bytes" if panel.cache_bytes else "No bytes"
    yield f"{cache} of keys and values per token in bfloat16."
    if panel.costs is not None:
        flops = f"{si(panel.flops)} FLOPs per token at {panel.context:,} tokens"
        yield f"{count(panel.parameters)} parameters, {flops}."


def _words(place: str) -> str:
    return " ".join(place.replace(".", " ").replace("_", " ").split())
