"""Standalone files compute what the library does, and read well."""

from __future__ import annotations

import ast
import copy
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import anyformer as af
from anyformer.blocks import norm
from anyformer.blocks.feed_forward import ACTIVATIONS
from anyformer.cli.main import main
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.families import PRESETS
from anyformer.learn.eject import architecture_diff, eject
from anyformer.learn.eject.architecture import literal
from anyformer.learn.eject.parts import NORMS
from anyformer.schema import ConfigError
from tests.training.conftest import TINY

VOCAB, SOURCE_VOCAB = 53, 41
ALONE = """
import importlib.util, sys
sys.modules["anyformer"] = None  # importing it raises ImportError
spec = importlib.util.spec_from_file_location("alone", sys.argv[1])
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
import torch
state = torch.load(sys.argv[3])
model = made.load(sys.argv[2])
torch.save(model(*state["inputs"]).detach(), sys.argv[3])
"""


def small(config: ModelConfig) -> ModelConfig:
    """A preset at a size to be computed."""

    def attention(part: Any) -> dict[str, Any]:
        grouped, head_dim = part.kv_heads is not None, None if part.head_dim is None else 10
        latent = part.latent and {
            "rank": 6,
            "rotary_dim": 4,
            "value_dim": 5,
            "query_rank": part.latent.query_rank and 7,
        }
        scale = part.scale
        if latent is not None:
            head_dim = part.head_dim // 16
            scale = scale and scale * 4  # as of narrower heads, or no field of the family would give it
        sizes = {"heads": 4, "kv_heads": 2 if grouped else None, "head_dim": head_dim}
        return {**sizes, "window": part.window and 3, "latent": latent, "scale": scale}

    def token(value: int | None) -> int | None:
        return None if value is None else value % VOCAB

    tokens = config.special_tokens
    changes: dict[str, Any] = {"attention": attention(config.attention), "feed_forward": {"width": 20}}
    if config.decoder_attention is not None:
        changes["decoder_attention"] = attention(config.decoder_attention)
    if config.source_vocab_size is not None:
        changes["source_vocab_size"] = SOURCE_VOCAB
    if (others := config.other_layers) is not None:
        # A pattern that two layers show.
        network = others.feed_forward and replace(others.feed_forward, width=28)
        pattern = {"first": "o", "then": "."} if network else {"first": "", "then": "o."}
        changes["other_layers"] = {**pattern, "window": others.window and 5, "feed_forward": network}
    fraction = config.position.rotary_fraction
    d_model = 24 if fraction == 1.0 else 40 if fraction == 0.4 else 32
    scaling = config.position.scaling
    if scaling is not None and scaling.kind == "longrope":
        pairs = int(d_model // 4 * fraction) // 2
        shortened = {name: getattr(scaling, name)[:pairs] for name in ("short_factor", "long_factor")}
        changes["position.scaling"] = shortened | {"original_length": 8}
    return config.replace(
        vocab_size=VOCAB,
        d_model=d_model,
        encoder_layers=min(config.encoder_layers, 3),
        decoder_layers=min(config.decoder_layers, 2),
        max_length=32,
        # Only what the family has: with another number, names would be ours and not Hugging Face's.
        embedding={
            "padding": token(config.embedding.padding),
            "ngram_rows": 40 if config.embedding.ngrams > 1 else config.embedding.ngram_rows,
        },
        special_tokens={
            "bos": token(tokens.bos),
            "eos": tuple(each % VOCAB for each in tokens.eos),
            "pad": token(tokens.pad),
            "decoder_start": token(tokens.decoder_start),
        },
        **changes,
    )


SCALINGS = [
    {"kind": "linear", "factor": 2.5},
    {"kind": "dynamic", "factor": 2.0},
    {"kind": "llama3", "factor": 8.0, "original_length": 16},
    {"kind": "yarn", "factor": 4.0, "original_length": 16},
    {"kind": "yarn", "factor": 4.0, "original_length": 8, "truncate": False, "attention_factor": 1.5},
    {"kind": "longrope", "factor": 4.0, "original_length": 8},
]


def other_layers(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Layers that differ by window, and by positions where those of the model are rotary, or none."""
    position: st.SearchStrategy[dict[str, Any] | None] = st.none()
    if kind in ("rotary", "none"):
        scaling = st.sampled_from([None, SCALINGS[0], SCALINGS[3]])
        rotary = st.fixed_dictionaries({"kind": st.just("rotary"), "theta": st.just(300.0), "scaling": scaling})
        position = st.none() | st.just({"kind": "none"}) | rotary
    return st.fixed_dictionaries(
        {
            "first": st.sampled_from(["", "", ".", "o"]),
            "then": st.sampled_from(["o", "o.", ".o"]),
            "window": st.sampled_from([None, 4]),
            "position": position,
        }
    )


def mixture(draw: st.DrawFn) -> dict[str, Any]:
    """Experts, chosen from all or from groups."""
    groups, used_groups = draw(st.sampled_from([(1, 1), (2, 1), (4, 2)]))
    flag = st.booleans()
    return {
        "count": 8,
        "used": draw(st.integers(1, 4 if groups > 1 else 8)),
        "router_bias": draw(flag),
        "normalized": draw(flag),
        "scores": draw(st.sampled_from(["softmax", "sigmoid"])),
        "scale": draw(st.sampled_from([1.0, 2.5])),
        "shared": draw(st.integers(0, 2)),
        "groups": groups,
        "used_groups": used_groups,
        "group_best": draw(st.integers(1, 2)),
        "correction": draw(flag),
    }


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any transformer that can be described, of any kind of blocks."""
    heads = draw(st.sampled_from([1, 2, 4]))
    layers = draw(st.sampled_from([(0, 2), (2, 0), (2, 1), (1, 3)]))
    kind = draw(st.sampled_from(["none", "sinusoidal", "learned", "rotary", "relative"]))
    flag, rate = st.booleans(), st.sampled_from([0.0, 0.1])
    activation = st.sampled_from(sorted(ACTIVATIONS))

    def attention() -> dict[str, Any]:
        return {
            "heads": heads,
            "kv_heads": draw(st.sampled_from([None, *(count for count in (1, 2) if heads % count == 0)])),
            "head_dim": draw(st.sampled_from([None, 6])),
            "bias": draw(flag),
            "output_bias": draw(flag),
            "scale": draw(st.sampled_from([None, 1.0, 0.3])),
            "scale_by_layer": draw(flag),
            "window": draw(st.sampled_from([None, None, 3])),
            "qk_norm": draw(st.sampled_from(["none", "head", "width"])),
            "softcap": draw(st.sampled_from([None, None, 2.0])),
            "sinks": draw(st.sampled_from([False, False, True])),
            "dropout": draw(rate),
        }

    def feed_forward() -> dict[str, Any]:
        gated = draw(flag)
        return {
            "width": draw(st.integers(3, 20)),
            "activation": draw(activation),
            "gated": gated,
            "limit": draw(st.sampled_from([None, 0.7])) if gated else None,
            "up_offset": draw(st.sampled_from([0.0, 1.0])) if gated else 0.0,
            "bias": draw(flag),
            "dropout": draw(rate),
            "experts": mixture(draw) if draw(st.integers(0, 3)) == 0 else None,
        }

    both = layers[0] > 0 and layers[1] > 0
    padding = draw(st.sampled_from([None, 1]))
    layout = draw(st.sampled_from(["interleaved", "halves", "fairseq"]))
    can_skip = kind == "learned" or (kind, layout) == ("sinusoidal", "fairseq")
    skips = can_skip and padding is not None and draw(flag)
    head = draw(st.sampled_from(["none", "language_model", "language_model", "classification", "token_classification"]))
    writes, labels = head == "language_model", draw(st.integers(1, 3))
    binary = "multi_label_classification" if head == "token_classification" and labels == 1 and draw(flag) else None
    config: dict[str, Any] = {
        "vocab_size": VOCAB,
        "d_model": heads * 8,
        "encoder_layers": layers[0],
        "decoder_layers": layers[1],
        "max_length": 32,
        "attention": attention(),
        "feed_forward": feed_forward(),
        "position": {
            "kind": kind,
            "layout": layout,
            "offset": draw(st.integers(1, 2)) if skips else draw(st.integers(0, 2)),
            "skip_padding": skips,
            "theta": draw(st.sampled_from([10_000.0, 500.0])),
            "scaling": draw(st.sampled_from([None, *SCALINGS])) if kind == "rotary" else None,
            "buckets": draw(st.sampled_from([4, 8])),
            "max_distance": 10,
        },
        "norm": {
            "kind": draw(st.sampled_from(sorted(NORMS))),
            "eps": draw(st.sampled_from([1e-5, 1e-12, 1e-6])),
            "placement": draw(st.sampled_from(["pre", "post", "branch", "sandwich"])),
            "final": draw(st.sampled_from([None, True, False])),
        },
        "embedding": {
            "tied": draw(flag),
            "scaled": draw(flag),
            "segments": draw(st.sampled_from([0, 2])),
            "norm": draw(flag),
            "padding": padding,
            "ngrams": 1 if skips else draw(st.sampled_from([1, 1, 2, 3])),
            "ngram_rows": 40,
            "dropout": draw(rate),
        },
        "head": {
            "kind": head,
            "transform": draw(st.sampled_from([None, "gelu"])) if head != "none" else None,
            "transform_norm": draw(flag),
            "transform_bias": draw(flag),
            "problem_type": binary,
            "bias": draw(st.sampled_from(["none", "learned", "fixed"])) if writes else "none",
            "scaled": draw(flag) if writes else False,
            "pooling": draw(st.sampled_from(["first", "last", "mean"])) if layers[1] == 0 else "last",
            "pooler": draw(st.sampled_from([None, "tanh"])) if head in ("classification", "none") else None,
            "labels": labels,
            "label_bias": draw(flag),
            "dropout": draw(rate),
        },
        "init": {
            "kind": draw(st.sampled_from(["normal", "truncated_normal", "xavier", "t5"])),
            "scale_residual": draw(flag),
        },
        "dropout": draw(rate),
        "special_tokens": {"eos": (2,), "decoder_start": 3},
    }
    if both:
        config["decoder_attention"] = draw(st.sampled_from([None, attention()]))
        config["decoder_feed_forward"] = draw(st.sampled_from([None, feed_forward()]))
        config["source_vocab_size"] = draw(st.sampled_from([None, SOURCE_VOCAB]))
    else:
        placements = ["pre", "post", "branch", "sandwich", "parallel", "parallel_shared"]
        config["norm"]["placement"] = draw(st.sampled_from(placements))
        if kind == "rotary" and config["attention"]["head_dim"] is None:
            config["position"]["rotary_fraction"] = draw(st.sampled_from([1.0, 0.5]))
    scaling = config["position"]["scaling"]
    if scaling is not None and scaling["kind"] == "longrope":
        pairs = int((config["attention"]["head_dim"] or 8) * config["position"].get("rotary_fraction", 1.0)) // 2
        config["decoder_attention"] = None
        factors = {"short_factor": [1.0, 1.5, 2.0, 3.0][:pairs], "long_factor": [2.0, 4.0, 6.0, 8.0][:pairs]}
        config["position"]["scaling"] = scaling | factors
    config["residual_scale"] = draw(st.sampled_from([1.0, 0.3]))
    config["embedding"]["scale"] = draw(st.sampled_from([1.0, 3.0]))
    if writes:
        config["head"] |= {"scale": draw(st.sampled_from([1.0, 0.2])), "softcap": draw(st.sampled_from([None, 5.0]))}
    if not both:
        config["other_layers"] = draw(st.none() | other_layers(kind))
        if config["other_layers"] is not None and draw(flag):
            shared = draw(flag)  # a network that differs by its width alone
            other = config["feed_forward"] | {"width": 5, "experts": None} if shared else feed_forward()
            config["other_layers"]["feed_forward"] = other
        if draw(st.integers(0, 3)) == 0 and (scaling is None or scaling["kind"] != "longrope"):
            config["position"]["rotary_fraction"] = 1.0
            plain = {"kv_heads": None, "qk_norm": "none", "softcap": None, "sinks": False, "scale_by_layer": False}
            query_rank = draw(st.sampled_from([None, 7]))
            latent = {"rank": 6, "rotary_dim": 4, "value_dim": draw(st.integers(3, 9)), "query_rank": query_rank}
            config["attention"] |= {**plain, "head_dim": 6, "latent": latent}
    if not layers[1]:
        if config["norm"]["placement"] == "pre" and config["embedding"]["norm"]:
            config["norm"]["first"] = draw(flag)
        config["position"]["relative_bias"] = kind == "learned" and draw(flag)
        config["distinct_layers"] = (
            None
            if config["attention"]["scale_by_layer"] or config["other_layers"] is not None
            else draw(st.sampled_from([None, 1, 2]))
        )
        if config["head"]["transform"] is not None or not writes:
            config["embedding"]["width"] = draw(st.sampled_from([None, 12]))
    return ModelConfig.from_dict(config)


def filled(config: ModelConfig) -> af.Transformer:
    torch.manual_seed(0)
    model = af.build(config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.randn_like(tensor) * 0.3 + ("norm" in name))
    return model.eval()


def takes_source(config: ModelConfig) -> bool:
    return config.is_encoder_decoder and config.head.kind != "classification"


def inputs_of(config: ModelConfig) -> tuple[Tensor, ...]:
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (3, 13), generator=chance)
    source = torch.randint(SOURCE_VOCAB, (3, 9), generator=chance)
    if config.is_encoder_decoder and config.source_vocab_size is not None:
        tokens = tokens.clamp(max=SOURCE_VOCAB - 1)  # a classifier reads it with both
    return (source, tokens) if takes_source(config) else (tokens,)


def expected(model: af.Transformer, inputs: tuple[Tensor, ...]) -> Tensor:
    *source, tokens = inputs
    out = model(tokens, source=source[0] if source else None)
    return out.hidden if out.logits is None else out.logits


def written(config: ModelConfig, folder: Path) -> Path:
    """The file of a config."""
    af.save(af.build(config), folder / "described")
    path = folder / "alone.py"
    path.write_text(eject(str(folder / "described")))
    return path


def imported(path: Path) -> Any:
    made = ModuleType("alone")
    exec(compile(path.read_text(), str(path), "exec"), made.__dict__)
    return made


def check(config: ModelConfig, folder: Path, room: int = 0) -> None:
    """Its file gives our logits, and after a step of AdamW our weights; and it is short, but for so many lines."""
    path, model = written(config, folder), filled(config)
    af.save(model, folder / "model")
    alone = imported(path).load(folder / "model")
    assert alone.state_dict().keys() == model.state_dict().keys()
    inputs = inputs_of(config)
    exact = expected(model, inputs).detach()
    largest = max(1.0, float(exact.abs().max()))
    # In float64 they are the same. In float32 a few drawn configs round by more than 1e-5, in either of the two.
    precise = expected(copy.deepcopy(model).double(), inputs).detach()
    torch.testing.assert_close(copy.deepcopy(alone).double()(*inputs), precise, rtol=1e-10, atol=1e-10 * largest)
    rounding = float((exact - precise).abs().max())
    torch.testing.assert_close(alone(*inputs), exact, rtol=1e-5, atol=max(1e-5 * largest, 3 * rounding))
    # The step is taken in float64, where what gradients magnify is no rounding.
    model, alone = model.double(), alone.double()
    for each, forward in ((model, lambda: expected(model, inputs)), (alone, lambda: alone(*inputs))):
        # Gradients that are nothing but rounding, such as those of keys' biases, would be steps of full length.
        optimizer = torch.optim.AdamW(each.parameters(), lr=1e-3, eps=1e-2)
        (forward() * torch.linspace(-1, 1, exact.numel()).view_as(exact)).mean().backward()
        optimizer.step()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(alone.state_dict()[name], weight, rtol=1e-9, atol=1e-9, msg=name)
    code = path.read_text().partition('"""\n')[2]
    assert code.count("\n") <= longest(config) + room
    assert not re.search(r"\bconfig\b|anyformer\.", code)
    assert_named(code)


def longest(config: ModelConfig) -> int:
    """Lines of a file: a second stack takes some, and so do latents or sinks beside experts."""
    return 400 if config.is_encoder_decoder or config.attention.latent or config.attention.sinks else 300


def room_of(config: ModelConfig) -> int:
    """Lines that a drawn config may take beyond: it may have what no published model has together."""
    others = config.other_layers and config.other_layers.feed_forward
    networks = [config.feed_forward, config.decoder_feed_forward, others]
    has_more = any(each is not None and (each.experts or each.limit or each.up_offset) for each in networks)
    return 100 if has_more or others is not None or config.attention.latent else 10


def assert_named(code: str) -> None:
    """Constants at the head name the numbers of the config, all of them are used, and the code has no others."""
    body = ast.parse(code).body
    constants = {
        node.targets[0].id for node in body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    blocks = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    model = blocks[: 1 + next(place for place, node in enumerate(blocks) if node.name == "initialize")]
    numbers = {
        node.value
        for block in model
        for node in ast.walk(block)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    }
    assert numbers <= {0, 1, 2, -1, 0.5, 1.702, 10_000.0}, numbers
    assert all(len(re.findall(rf"\b{name}\b", code)) > 1 for name in constants - {"MAX_LENGTH"})


def assert_clean(*paths: Path) -> None:
    """The formatter changes nothing, and the linter finds nothing."""
    options = ["--isolated", "--line-length=120", *map(str, paths)]
    for command in (["check", "--select=E,F,W,I,UP,B,SIM,PIE,C4"], ["format", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


CHECKED: set[ModelConfig] = set()
"""Small presets that were found right: many differ in sizes alone, and are the same at a small one."""


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str, tmp_path: Path) -> None:
    config = small(PRESETS[name])
    if config not in CHECKED:
        check(config, tmp_path)
    CHECKED.add(config)


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(config=configs())
def test_configs(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(config, tmp_path_factory.mktemp("drawn"), room_of(config))


def test_heads_of_two_sizes_share_a_function_of_angles(tmp_path: Path) -> None:
    scaling = {"kind": "yarn", "factor": 4.0, "original_length": 16}
    position = {"kind": "rotary", "rotary_fraction": 0.5, "scaling": scaling}
    config = small(PRESETS["transformer-tiny"]).replace(position=position, attention={"head_dim": 8})
    config = config.replace(decoder_attention=replace(config.attention, head_dim=12))
    check(config, tmp_path)
    assert (tmp_path / "alone.py").read_text().count("def angles(") == 1


def test_infinities_are_numbers_in_the_file() -> None:
    # Two standard deviations are beyond the largest float.
    made = imported_text(eject("bert-mini:init.std=1e308,vocab_size=50"))
    assert made.INIT_STD == 1e308
    assert torch.isinf(made.Model().token_embedding.table.weight).any()
    for value in (math.inf, -math.inf, 1e-12, 2.0, 3):
        assert eval(literal(value)) == value
    assert literal(math.inf) == 'float("inf")'
    assert math.isnan(eval(literal(math.nan)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(config=configs())
def test_many_configs(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    check(config, folder, room_of(config))
    assert_clean(folder / "alone.py")


@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_files_are_short_and_clean_and_the_same_each_time(share: int, tmp_path: Path) -> None:
    """Of a quarter of them in the gate; those are written twice."""
    pytest.importorskip("ruff", reason="the linter")
    for name in list(PRESETS)[::share]:
        text = eject(name)
        assert share == 1 or text == eject(name)
        assert text.count("\n") <= longest(PRESETS[name]), name
        (tmp_path / f"{name}.py").write_text(text)
    assert_clean(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "bert-base", "transformer-base"])
def test_files_need_no_library(name: str, tmp_path: Path) -> None:
    config = small(PRESETS[name])
    path, model = written(config, tmp_path), filled(config)
    af.save(model, tmp_path / "model")
    torch.save({"inputs": inputs_of(config)}, tmp_path / "state.pt")
    command = [sys.executable, "-c", ALONE, str(path), str(tmp_path / "model"), str(tmp_path / "state.pt")]
    subprocess.run(command, check=True, timeout=300)
    exact = expected(model, inputs_of(config))
    torch.testing.assert_close(torch.load(tmp_path / "state.pt"), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano", "t5-nano", "transformer-tiny"])
def test_the_same_greedy_tokens(name: str, tmp_path: Path) -> None:
    config = small(PRESETS[name]).replace(special_tokens={"eos": ()})
    path, model = written(config, tmp_path), filled(config)
    af.save(model, tmp_path / "model")
    made = imported(path)
    alone, text = made.load(tmp_path / "model"), torch.tensor([[5, 6, 7]])
    if config.is_encoder_decoder:
        start = torch.tensor([[config.special_tokens.decoder_start]])
        found = made.generate(alone, text, start, 20)[0, 1:]
    else:
        found = made.generate(alone, text, 20)[0, 3:]
    assert found.tolist() == af.generate_ids(model, text, max_new_tokens=20)[0].tolist()


def test_a_file_is_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of one's own, ejected, continues a text as the library does, and learns."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. the dog ran to the cat.\n" * 400)
    flags = ["--data", str(text), "--steps", "30", "--runs", str(tmp_path / "runs"), "--name", "run", "--device", "cpu"]
    cache = ["--cache", str(tmp_path / "cache")]
    assert main(["train", "llama-nano", "--tokenizer", "bpe:300", *TINY, *flags, *cache]) == 0
    path, run = tmp_path / "own.py", tmp_path / "runs" / "run"
    assert main(["eject", str(run), "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["generate", str(run), "the cat", "--max-new-tokens", "20", "--device", "cpu"]) == 0
    wanted = capsys.readouterr().out.split()
    command = [sys.executable, str(path), str(run / "model"), "the cat"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == wanted
    other = tmp_path / "other.txt"  # of the first text there is nothing left to learn
    other.write_text("blue birds sing in tall green trees by the river.\n" * 400)
    more = [*command, "--train", str(other), "--steps", "21", "--temperature", "0.8", "--top-k", "5"]
    done = subprocess.run(more, capture_output=True, text=True, check=True, timeout=300)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert losses[-1] < losses[0]


def test_a_diff_has_a_few_lines_of_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert architecture_diff("gpt2", "gpt2") == ""
    assert main(["eject", "--diff", "gpt2", "llama"]) == 0
    diff = capsys.readouterr().out
    assert "+class RMSNorm(nn.Module):" in diff
    assert "-class LayerNorm(nn.LayerNorm):" in diff
    changed = architecture_diff("llama", "llama:norm.kind=layer").splitlines()
    assert len(changed) < 60
    assert "def load" not in "\n".join(changed)


class Mine(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: str) -> str:
        assert main(["eject", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "There is no preset 'gpt3'" in refused("gpt3")
    there = tmp_path / "mine.py"
    there.write_text("mine")
    assert "mine.py is there already" in refused("gpt2", "-o", str(there))
    assert there.read_text() == "mine"
    assert "there is no folder" in refused("gpt2", "-o", str(tmp_path / "nowhere" / "x.py"))
    assert "compares two models: 1 was given" in refused("--diff", "gpt2")
    assert "compares two models: 2 were given" in refused("gpt2", "llama")
    monkeypatch.setitem(norm.NORMS, "mine", Mine)
    assert "norm.kind is 'mine', a block of your own" in refused("gpt2:norm.kind=mine")


def test_names_in_files_of_strangers_are_no_code(tmp_path: Path) -> None:
    folder = tmp_path / 'x""" + error + """\\'
    config = small(PRESETS["bert-base"]).replace(head={"kind": "classification", "transform": None, "bias": "none"})
    names = ('a"""', "'); error; ('", "c\n")
    af.save(af.build(config.replace(head={"labels": 3, "label_names": names})), folder)
    made = imported_text(eject(str(folder)))
    assert "x___ + error + ____" in made.__doc__
    assert list(names) == made.LABELS


def imported_text(text: str) -> Any:
    made = ModuleType("alone")
    exec(compile(text, "alone", "exec"), made.__dict__)
    return made


def test_the_function() -> None:
    assert af.eject("gpt2") == eject("gpt2")
    with pytest.raises(UserError):
        af.eject("gpt3")
    with pytest.raises(ConfigError):
        af.eject("gpt2:norm.kind=none")
