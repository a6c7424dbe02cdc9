"""Drawings of models: all that a config says, at its place, and in color exactly what differs."""

import re
from pathlib import Path
from unittest.mock import patch
from xml.etree.ElementTree import Element

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.analysis import PartCost, part_costs
from anyformer.blocks.mask import attention_mask
from anyformer.blocks.norm import NORMS, RMSNorm
from anyformer.blocks.position import POSITIONS, RotaryPosition
from anyformer.cli.main import main
from anyformer.config import ModelConfig
from anyformer.families import FAMILIES, PRESETS
from anyformer.learn.diagram import differences, draw, panels, undrawn
from anyformer.learn.diagram.facts import facts
from anyformer.learn.diagram.stack import cost_text, sees
from anyformer.learn.diagram.svg import clean, fit, width
from anyformer.spec import read_config
from tests.browser import Browse, Look, assert_readable, looks
from tests.learn.diagrams import CHANGES, SVG, Drawing, changed, configs
from tests.parity.presets import shrunk

UNDRAWN = re.compile(
    r"(\w+\.)*dropout|init\..+|special_tokens\..+|norm\.eps|embedding\.(padding|ngram_rows)|pooling\..+|position\.layout"
    r"|position\.skip_padding|position\.scaling\..+|head\.(label_names|label_bias|problem_type)"
)
"""Fields that are no part of the picture."""


def _blocks(config: ModelConfig) -> dict[str, int]:
    """How many there are of each block, as the model has them."""
    with torch.device("meta"):
        model = af.Transformer(config, initialize=False)
    found: dict[str, int] = {}
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for block in stack.blocks if stack is not None else ():
            for part, module in (
                ("attention", block.attention),
                ("cross-attention", block.cross_attention),
                ("feed-forward", block.feed_forward),
            ):
                if module is not None:
                    found[f"{name}.{part}"] = found.get(f"{name}.{part}", 0) + 1
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_drawn(name: str) -> None:
    config = shrunk(name)
    drawing = Drawing(af.diagram(config, names=[name]))
    root = drawing.root
    assert (root.get("role"), root.get("aria-labelledby")) == ("img", "diagram-title diagram-desc")
    assert [element.get("id") for element in root[:2]] == ["diagram-title", "diagram-desc"]
    assert drawing.words("title")[0] == f"Architecture of {name}"
    description, texts = drawing.words("desc")[0], " ".join(drawing.words("text"))
    found = facts(config)
    for place, fact in found.items():
        assert fact.text in texts
        assert fact.text in description or any(each.startswith(f"{place}.") for each in found)
        assert drawing.at(place), place
    # One model differs from nothing.
    assert not drawing.lit()
    assert "Also different" not in texts


@settings(max_examples=30)
@given(configs())
def test_each_block_is_there_with_its_count_and_its_cost(config: ModelConfig) -> None:
    drawing, blocks = Drawing(af.diagram(config)), _blocks(config)
    costs = {cost.name: cost for cost in part_costs(config, config.max_length)}
    for stack in ("encoder", "decoder"):
        for part in ("attention", "cross-attention", "feed-forward"):
            count = blocks.get(f"{stack}.{part}", 0)
            if not getattr(config, f"{stack}_layers"):
                assert not drawing.at(f"{stack}.{part}")
                continue
            (group,) = drawing.at(f"{stack}.{part}", "g")
            assert ("ghost" in group.get("class", "")) == (count == 0)
            words = "".join(group.itertext())
            assert (cost_text(costs[f"{stack} {part}"]) in words) if count else ("parameters" not in words)
            if count:
                (layers,) = drawing.at(f"{stack}.layers")
                number = getattr(config, f"{stack}_layers")
                words = f" layer{'s' * (number > 1)}" if number == count else f", {count} block{'s' * (count > 1)}"
                others = sum(each is not None for each in config.others(number))
                assert layers.text == f"× {number}{words}" + (f", {others} ■" if others else "")
    whole = PartCost("", 1, sum(cost.parameters for cost in costs.values()), 0)
    assert cost_text(whole).removesuffix(" parameters") in drawing.words("text")


@settings(max_examples=30)
@given(configs())
def test_the_costs_that_are_drawn_are_all_that_there_are(config: ModelConfig) -> None:
    costs = {cost.name: cost for cost in part_costs(config, 16)}
    words = Drawing(draw(panels([("it", config)], 16))).words("text")
    for stack in ("encoder", "decoder"):
        added = cost_text(costs.pop(f"{stack} positions", None), costs.pop(f"{stack} n-grams", None))
        norms = costs.pop(f"{stack} norms", None)
        assert not added or f"added: {added}" in words
        assert norms is None or f"norms: {cost_text(norms)}" in words
        projection = costs.pop(f"{stack} projection", None)
        assert projection is None or f"projection: {cost_text(projection)}" in words
    tables = [config.vocab_size, *([config.source_vocab_size] if config.source_vocab_size else [])]
    width = config.embedding.width or config.d_model
    assert costs.pop("token embedding").parameters == sum(tables) * width
    for rows in tables:
        assert cost_text(PartCost("", 1, rows * width, 0)) in words
    assert all(cost_text(cost) in words for cost in costs.values())


def _places(config: ModelConfig) -> list[tuple[str, dict[str, str]]]:
    """The box at each place."""
    root = Drawing(af.diagram(config, names=["it"])).root
    found = [(group.get("data-place", ""), group.find(f"{SVG}rect")) for group in root.iter(f"{SVG}g")]
    return [(place, dict(box.attrib)) for place, box in found if place and box is not None]


def _stacks(*drawn: ModelConfig) -> list[str]:
    """The stacks that any of some models has."""
    return [stack for stack in ("encoder", "decoder") if any(getattr(config, f"{stack}_layers") for config in drawn)]


SAME_STACKS: dict[tuple[str, ...], str] = {
    ("encoder",): "bert-tiny",
    ("decoder",): "gpt2-nano",
    ("encoder", "decoder"): "t5-nano",
}


@settings(max_examples=20)
@given(configs())
def test_every_drawing_has_the_same_places(config: ModelConfig) -> None:
    stacks = _stacks(config)
    assert _places(config) == _places(af.preset(SAME_STACKS[tuple(stacks)]))
    words = Drawing(af.diagram(config)).words("text")
    for name in ("encoder", "decoder"):
        assert words.count(name) == (name in stacks)
    for name in ("token embedding", "attention", "cross-attention", "feed-forward"):
        assert words.count(name) == len(stacks)
    if config.embedding.segments == 0 and config.embedding.ngrams == 1:
        for stack in stacks:
            ghosts = [each.text for name in ("segments", "ngrams") for each in _at(config, f"{stack}.{name}")]
            assert ghosts == ["segments", "n-grams"]


@settings(max_examples=20)
@given(configs(), configs())
def test_a_column_is_a_stack_of_some_model(a: ModelConfig, b: ModelConfig) -> None:
    drawing, stacks = Drawing(af.diagram(a, b, names=["a", "b"])), _stacks(a, b)
    for name in ("encoder", "decoder"):
        assert len(drawing.at(f"{name}.attention", "g")) == (2 if name in stacks else 0)
    assert float(drawing.root.get("width", 0)) == 2 * (316 * len(stacks) + 40 * len(stacks)) + 28
    # Beside others, a picture has the columns of its own model.
    (first, _) = drawn = panels([("a", a), ("b", b)], 16)
    alone = Drawing(draw([first], among=drawn))
    assert [name for name in ("encoder", "decoder") if alone.at(f"{name}.attention", "g")] == _stacks(a)


def _at(config: ModelConfig, place: str) -> list[Element]:
    return Drawing(af.diagram(config)).at(place, "text")


def _check_differences(a: ModelConfig, b: ModelConfig) -> None:
    drawn, differing = panels([("a", a), ("b", b)], 16), set(af.diff(a, b))
    drawing = Drawing(draw(drawn))
    rest = list(undrawn(drawn))
    blocks = {place for panel in drawn for place in panel.facts if any(p.startswith(f"{place}.") for p in panel.facts)}
    marked = {place for place in drawing.lit() if place not in blocks} | {
        place for place in drawing.lit() & blocks if any("lit" in e.get("class", "") for e in drawing.at(place, "text"))
    }
    said: set[str] = set()
    for place in marked:
        texts = {panel.facts[place].text if place in panel.facts else None for panel in drawn}
        assert len(texts) == 2, f"{place} is the same in both"
        parts = place.split(".")
        whole = {".".join(parts[: end + 1]) for end in range(len(parts))}
        missing = {each for each in whole if any(each not in panel.facts for panel in drawn)} | {place}
        fields = {f for panel in drawn for each in missing & set(panel.facts) for f in panel.facts[each].fields}
        assert fields & differing, f"{place} differs, and none of its fields does"
        said |= fields & differing
    assert said.isdisjoint(rest)
    assert said | set(rest) == differing
    # All that is not the same is marked, in both drawings.
    for place in differences(drawn):
        assert all(
            "lit" in each.get("class", "").split() for each in drawing.at(place, "span") + drawing.at(place, "text")
        )
        # The ghost of a stack has no lines.
        assert place in drawing.lit(), place
    below = drawing.words("tspan")
    assert all(field in below for field in rest)
    description = drawing.words("desc")[0]
    assert ("a and b are the same" in description) == (not differing)


@settings(max_examples=40)
@given(configs(), configs())
def test_what_differs_is_what_is_marked(a: ModelConfig, b: ModelConfig) -> None:
    _check_differences(a, b)
    _check_differences(a, a)


@settings(max_examples=50)
@given(configs(), st.data())
def test_one_change_is_marked_at_its_own_blocks(config: ModelConfig, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(CHANGES)))
    other = changed(config, field, data.draw(st.sampled_from(CHANGES[field])))
    _check_differences(config, other)
    drawn = panels([("a", config), ("b", other)], 16)
    heads = {
        "attention.scale",
        "attention.bias",
        "feed_forward.gated",
        "embedding.scaled",
        "head.kind",
        "norm.placement",
    }
    if field in heads and af.diff(config, other) and not config.decoder_attention:
        assert differences(drawn), f"{field} is not drawn"


PLACES = {
    "llama:norm.kind=layer": r"decoder\.(attention|feed-forward)\.before|decoder\.final_norm",
    "gpt2:norm.placement=post": r"decoder\.(attention|feed-forward)\.(before|after)|decoder\.final_norm",
    "llama:attention.kv_heads=32": r"decoder\.attention\.kv_heads",
    "llama:attention.window=64": r"decoder\.attention\.mask",
    "llama:attention.qk_norm=head": r"decoder\.attention\.qk_norm",
    "llama:embedding.tied=false": r"head\.tied",
    "llama:feed_forward.gated=false": r"decoder\.feed-forward\.gated",
    "gpt2:position.kind=relative": r"decoder\.position|decoder\.attention\.(position|reach)",
    "t5:decoder_layers=3": r"decoder\.layers",
    "t5:vocab_size=99": r"(encoder|decoder)\.embedding\.table|head\.width|output",
    "gpt2:norm.eps=1e-6": r"$",
}


@pytest.mark.parametrize("spec", PLACES)
def test_a_change_is_seen_where_it_is(spec: str) -> None:
    drawn = panels([("a", read_config(spec.partition(":")[0]).config), ("b", read_config(spec).config)], 16)
    found = differences(drawn)
    assert all(re.fullmatch(PLACES[spec], place) for place in found)
    assert bool(found) == (PLACES[spec] != "$")
    assert bool(undrawn(drawn)) == (not found)


@settings(max_examples=50)
@given(configs(), st.data())
def test_all_of_the_architecture_is_drawn(config: ModelConfig, data: st.DataObject) -> None:
    """A field is left to the list below only if it is no part of the picture, or means nothing here."""
    field = data.draw(st.sampled_from([name for name in sorted(CHANGES) if not UNDRAWN.fullmatch(name)]))
    other = changed(config, field, data.draw(st.sampled_from(CHANGES[field])))
    drawn = panels([("a", config), ("b", other)], 16)
    if not undrawn(drawn):
        return
    # What it changes can't be told by the weights, their shapes and the arithmetic.
    assert drawn[0].facts == drawn[1].facts
    assert drawn[0].costs == drawn[1].costs or field.startswith("head.")


def test_a_screen_reader_is_told_the_differences() -> None:
    bert, t5 = af.preset("bert-tiny"), af.preset("t5-nano")
    said = (
        Drawing(af.diagram(bert, t5, names=["bert", "t5"]))
        .words("desc")[0]
        .partition("Differences between bert and t5: ")[2]
    )
    assert "decoder: absent against present" in said
    assert "decoder attention" not in said
    assert "encoder feed-forward activation: gelu against gelu_tanh" in said
    assert "encoder position: learned, 512 against absent" in said
    assert "norm.eps: 1e-12 against 1e-06" in said


def test_the_same_config_gives_the_same_bytes() -> None:
    a, b = (af.diagram(af.preset("t5-nano"), ModelConfig.from_dict(af.preset("bert-tiny").to_dict())) for _ in range(2))
    assert a == b


def test_masks_are_those_of_attention() -> None:
    positions = torch.arange(7)[None]
    for kind, causal, window in (("full", 0, None), ("causal", 1, None), ("window", 1, 3), ("band", 0, 3)):
        padding = torch.ones(1, 7, dtype=torch.bool)
        mask = attention_mask(positions, positions, causal=bool(causal), window=window, padding_mask=padding).scores
        assert mask is not None
        assert [[sees(kind, query, key) for key in range(7)] for query in range(7)] == mask[0, 0].tolist()


def test_windows_of_later_layers() -> None:
    config, own = shrunk("qwen2.5-0.5b"), {"attention": {"window": 3}}
    for changes, kinds, text in (
        ({}, ["causal"], "causal mask"),
        (own, ["window"], "window 3"),
        ({"other_layers": {"first": "..", "window": 3}}, ["causal", "window"], "window 3 from layer 2"),
        ({"other_layers": {"then": "o.", "window": 3}}, ["window", "causal"], "window 3 in o."),
        ({"other_layers": {"then": "...o", "window": 3}}, ["causal"], "causal mask"),
        (
            {"attention": {"window": 3}, "other_layers": {"window": 4, "then": ".o"}},
            ["window", "window"],
            "windows 3 and 4 in .o",
        ),
        (
            {"attention": {"window": 3}, "other_layers": {"first": ".", "then": "o"}},
            ["window", "causal"],
            "window 3 in o.",
        ),
    ):
        (panel,) = panels([("", config.replace(**changes))])
        assert panel.masks("decoder") == kinds
        assert panel.facts["decoder.attention.mask"].text == text


@pytest.mark.parametrize(
    ("name", "place", "text", "cells"),
    [
        ("deepseek-v2-lite", "decoder.feed-forward.others", "■ 2,048 → 10,944 → 2,048", [*range(1)]),
        ("gemma-3-1b", "decoder.attention.others", "■ θ 10,000", [n for n in range(26) if n % 6 != 5]),
        ("smollm3-3b", "decoder.attention.others", "■ no position", [*range(3, 36, 4)]),
        ("gpt-oss-20b", "decoder.layers", "× 24 layers, 12 ■", [*range(0, 24, 2)]),
        ("mixtral-8x7b", "decoder.layers", "× 32 layers", []),
    ],
)
def test_all_kinds_of_layers_are_drawn(name: str, place: str, text: str, cells: list[int]) -> None:
    drawing = Drawing(af.diagram(name))
    assert text in [element.text for element in drawing.at(place)]
    assert text in drawing.words("desc")[0]
    # A cell for each layer, in their order.
    strips = {
        style: [float(x) for x in re.findall(r"M([\d.]+) 239h", path.get("d", ""))]
        for path in drawing.root.iter(f"{SVG}path")
        if (style := path.get("class")) in ("seen", "unseen") and " 239h" in path.get("d", "")
    }
    order = sorted(x for places in strips.values() for x in places)
    assert [order.index(x) for x in strips.get("seen", [])] == cells
    assert len(order) == (af.preset(name).decoder_layers if cells else 0)


class _Turned(RotaryPosition):
    """A kind of one's own."""


def test_blocks_of_ones_own_are_drawn_by_name() -> None:
    config = shrunk("gpt2-nano").replace(norm={"kind": "my_norm"}, position={"kind": "my_turn"})
    unknown = Drawing(af.diagram(config))
    assert {"my_norm", "–"} <= set(unknown.words("text"))
    assert "position: my_turn" in unknown.words("text")
    with patch.dict(NORMS, my_norm=RMSNorm), patch.dict(POSITIONS, my_turn=_Turned):
        known = Drawing(af.diagram(config))
    assert "–" not in known.words("text")
    (place,) = known.at("decoder.attention.position")
    assert place.text == "my_turn"


HOSTILE = [
    '<script>alert("x")</script>&amp;',
    "a\x00b\x1b[31m\n\u202e\ud800",
    "</style></svg>",
    "W" * 100_000,
    "",
    "ﷺ" * 99,
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_harmless_and_fit(name: str) -> None:
    kind = {"norm": {"kind": name}, "position": {"kind": name}, "feed_forward": {"activation": name}}
    config = shrunk("bert-base").replace(**kind, head={"transform": name})
    text = af.diagram(config, shrunk("llama-nano"), names=[name, "llama"])
    text.encode("utf-8")
    drawing = Drawing(text)
    tags = {element.tag.removeprefix(SVG) for element in drawing.root.iter()}
    assert tags <= {*["svg", "title", "desc", "style", "rect", "g", "text", "tspan", "path", "circle", "polygon"]}
    assert len(drawing.words("style")) == 1
    # What is longer than its room is condensed.
    assert all(width(word, 10) < 1.6 * 700 for word in drawing.words("text"))


@given(st.text(max_size=60), st.floats(5, 300), st.booleans())
def test_a_text_fits_its_room(text: str, room: float, bold: bool) -> None:
    shown = fit(text, room, 10, bold=bold)
    assert width(shown, 10, bold=bold) <= max(room, width("…", 10, bold=bold))
    if shown != clean(text):
        assert shown.endswith("…")
        assert clean(text).startswith(shown[:-1])


@pytest.mark.parametrize("name", [next(iter(family.presets)) for family in FAMILIES.values() if family.presets])
def test_no_label_of_a_published_model_is_truncated(name: str) -> None:
    assert "…" not in af.diagram(af.preset(name))


def test_pictures_in_one_page_do_not_clash(tmp_path: Path) -> None:
    drawn = panels([(name, af.preset(name)) for name in ("gpt2", "t5-small", "llama-nano")])
    pictures = [Drawing(draw([panel], drawn, f"model-{number}")) for number, panel in enumerate(drawn)]
    identifiers = [element.get("id") for picture in pictures for element in picture.root.iter() if element.get("id")]
    assert len(set(identifiers)) == len(identifiers) == 9
    for number, picture in enumerate(pictures):
        assert picture.root.get("aria-labelledby") == f"model-{number}-title model-{number}-desc"
        (style,) = picture.words("style")
        rules = [line.strip() for line in style.splitlines() if line.startswith("#") or "  #" in line]
        assert all(rule.startswith(f"#model-{number} ") for rule in rules)
        assert len(rules) > 20
        # In each of them is lit what is not the same in all.
        assert picture.lit() >= {"decoder.layers", "decoder.stream"}
        assert not any("Also different" in text for text in picture.words("text"))


@looks
def test_in_a_browser(look: Look, browse: Browse, tmp_path: Path) -> None:
    pair = [("gpt2", af.preset("gpt2")), ("a " + "name " * 40, af.preset("t5").replace(norm={"kind": "W" * 90}))]
    qwen = af.preset("qwen3").replace(other_layers={"first": "." * 20, "window": 4096}, position={"theta": 1e12})
    roberta = af.preset("roberta")
    pictures = [draw(panels(pair), identifier="a"), draw(panels([("q", qwen), ("r", roberta)]), identifier="b")]
    body = "".join(f'<div style="overflow-x:auto" tabindex="0">{picture}</div>' for picture in pictures)
    page = tmp_path / "page.html"
    others = "<style>svg text { font: bold 20px serif; fill: red; } svg path { stroke: red; stroke-width: 9; }</style>"
    html = f'<!doctype html><html lang="en"><title>t</title>{others}<main><h1>t</h1>{body}</main>'
    page.write_text(html, encoding="utf-8")
    opened = browse(page, look)
    assert opened.locator("text.size-130").first.evaluate("e => getComputedStyle(e).fontSize") == "13px"
    drawn = "[...document.querySelectorAll('svg text, svg tspan, svg path')].map((e) => getComputedStyle(e))"
    assert "rgb(255, 0, 0)" not in opened.evaluate(f"{drawn}.flatMap((style) => [style.fill, style.stroke])")
    assert_readable(opened)
    outside = opened.evaluate(
        """() => [...document.querySelectorAll("svg g[data-place]")].flatMap((group) => {
          const box = group.querySelector(":scope > rect").getBBox();
          return [...group.querySelectorAll("text")].filter((text) => {
            const t = text.getBBox();
            return t.width && (t.x < box.x || t.x + t.width > box.x + box.width || t.y < box.y - 1
              || t.y + t.height > box.y + box.height + 1);
          }).map((text) => text.textContent);
        })"""
    )
    assert outside == []
    apart = opened.evaluate(
        """() => [...document.querySelectorAll("svg")].flatMap((svg) => {
          const boxes = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()])
            .filter(([, r]) => r.width && r.height);
          return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) => p.left < q.right - 1
            && q.left < p.right - 1 && p.top < q.bottom - 3 && q.top < p.bottom - 3).map(([b]) => `${a} / ${b}`));
        })"""
    )
    assert apart == []
    paper = opened.evaluate("getComputedStyle(document.querySelector('.paper')).fill")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 100) == look.dark


@pytest.mark.parametrize("look", [Look(), Look(width=390)], ids=str)
def test_a_picture_alone_is_as_wide_as_the_window_at_most(look: Look, browse: Browse, tmp_path: Path) -> None:
    for models, wide in ((("gpt2",), 356), (("gpt2", "llama"), 740), (("bert", "t5"), 1452)):
        file = tmp_path / f"{'-'.join(models)}.svg"
        file.write_text(af.diagram(*map(af.preset, models)), encoding="utf-8")
        opened = browse(file, look)
        size = opened.evaluate("(({ width, height }) => [width, height])(document.rootElement.getBoundingClientRect())")
        window = opened.evaluate("document.rootElement.clientWidth")
        assert size[0] == pytest.approx(min(wide, window), abs=16)
        assert size[0] / size[1] == pytest.approx(
            wide / float(Drawing(file.read_text()).root.get("height", 0)), rel=0.01
        )


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "blocks.svg"
    assert main(["diagram", "gpt2-nano", "llama-nano:norm.kind=layer", "-o", str(target)]) == 0
    written = target.read_text(encoding="utf-8")
    assert "llama-nano:norm.kind=layer" in Drawing(written).words("title")[0]
    capsys.readouterr()
    assert main(["diagram", "gpt2-nano", "llama-nano:norm.kind=layer"]) == 0
    assert capsys.readouterr().out == written
    assert main(["diagram", "gpt2-nano", "--context", "7"]) == 0
    assert "at 7 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gpt5"], "There is no preset 'gpt5'"),
        (["gpt2-nano:norm.kin=rms"], "norm.kin: no such field"),
        (["gpt2-nano:norm.kind=none"], "norm.kind: 'none' is unknown"),
        (["gpt2-nano", "-o", "there.svg"], "there.svg is there already: name another file, or remove it."),
        (["gpt2-nano", "-o", "."], ". is there already"),
        (["gpt2-nano", "-o", "none/x.svg"], "none/x.svg can't be written: there is no folder none."),
        (["gpt2-nano", "-o", "there.svg/x.svg"], "there.svg/x.svg can't be written"),
        (["gpt2-nano", "--context", "0"], "context is a number of tokens, at least 1, not 0."),
        (["gpt2-nano", "bert", "t5"], "'t5' is one argument too many"),
        (["gpt2:d_model=768000000000000"], "sizes"),
    ],
)
def test_bad_input(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.svg").write_text("mine")
    assert main(["diagram", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.svg"]
    assert (tmp_path / "there.svg").read_text() == "mine"
