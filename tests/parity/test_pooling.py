"""Vectors of texts are those of sentence-transformers: pooled by transformers' model, through Dense, normalized."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import anyformer as af
from anyformer.config import PoolingConfig
from tests.oracle import needs_newer_transformers

TEXTS = ["the cat sat on the mat", "a", "dogs and cats", "the dog ran to the cat and the cat ran to the mat " * 3]
WIDTHS = ((16, 24), (24, 12))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny EmbeddingGemma, as its repository is laid out."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("embedding") / "tiny"
    tokenizer = af.Tokenizer.train(TEXTS, "wordpiece:60", special="masked")
    raw = transformers.Gemma3TextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=64,
        initializer_range=0.3,
        use_bidirectional_attention=True,
    )
    transformers.Gemma3TextModel(raw).save_pretrained(folder)
    tokenizer.save(folder)
    kinds = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write(folder / "modules.json", modules)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    for place, (inputs, outputs) in enumerate(WIDTHS, 2):
        activation = "torch.nn.modules.linear.Identity"
        settings = {"in_features": inputs, "out_features": outputs, "bias": False, "activation_function": activation}
        write(folder / f"{place}_Dense/config.json", settings)
        save_file({"linear.weight": torch.randn(outputs, inputs)}, folder / f"{place}_Dense/model.safetensors")
    return folder


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def expected(directory: Path) -> Tensor:
    """By transformers' model and the matrices in the files."""
    model: Any = transformers.AutoModel.from_pretrained(directory)
    tokenizer = af.Tokenizer.load(directory)
    assert model.config.sliding_window == 4  # of 6 tokens on both sides, the token itself and 3 before it
    vectors: list[Tensor] = []
    for text in TEXTS:
        with torch.no_grad():
            vector = model(torch.tensor([tokenizer.encode(text)])).last_hidden_state.mean(1)
        for place in (2, 3):
            vector = vector @ load_file(directory / f"{place}_Dense/model.safetensors")["linear.weight"].T
        vectors.append(F.normalize(vector, dim=-1))
    return torch.cat(vectors)


@needs_newer_transformers
def test_dense_layers_after_pooling(directory: Path, tmp_path: Path) -> None:
    model, tokenizer = af.load(directory)
    assert model.config.is_encoder_only
    pooling = PoolingConfig(dense=(24, 12), normalize=True, max_tokens=64)
    assert model.config.pooling == pooling
    vectors = af.embed(model, tokenizer, TEXTS)
    torch.testing.assert_close(vectors, expected(directory), rtol=1e-5, atol=1e-6)
    assert af.save(model, tmp_path / "saved", tokenizer=tokenizer) == "gemma3_text"
    for place in (2, 3):
        name = f"{place}_Dense/model.safetensors"
        assert torch.equal(*(load_file(each / name)["linear.weight"] for each in (directory, tmp_path / "saved")))
    torch.testing.assert_close(expected(tmp_path / "saved"), vectors, rtol=1e-5, atol=1e-6)
    again = af.load(tmp_path / "saved")
    assert again[0].config == model.config
    assert torch.equal(af.embed(*again, TEXTS), vectors)
    # Beside integers of 8 bits they stay as they are.
    af.save(af.load(directory, quantize="int8")[0], tmp_path / "int8", tokenizer=tokenizer)
    kept = af.load(tmp_path / "int8")[0].pooling.state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in model.pooling.state_dict().items())
    # A model without such layers, saved in its place, leaves nothing of them behind.
    af.save(af.build(af.preset("bert-tiny", vocab_size=20)), tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*_Dense/*"))


def test_words_before_texts(directory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(directory, folder)
    prompts = {"query": "task: search result | query: ", "document": ""}
    write(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    model, tokenizer = af.load(folder)
    plain, asked = af.embed(model, tokenizer, TEXTS), af.embed(model, tokenizer, TEXTS, prompt="query")
    assert torch.equal(af.embed(model, tokenizer, TEXTS, prompt="document"), plain)
    assert torch.equal(af.embed(model, tokenizer, [prompts["query"] + text for text in TEXTS]), asked)
    with pytest.raises(af.UserError, match=r"no prompt 'querry' \(did you mean 'query'\?\)"):
        af.embed(model, tokenizer, TEXTS, prompt="querry")
    with pytest.raises(af.UserError, match=r"no prompt 'query' \(it has none\)"):
        af.embed(*af.load(directory), TEXTS, prompt="query")
    write(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "query"})
    model, tokenizer = af.load(folder)
    assert torch.equal(af.embed(model, tokenizer, TEXTS), asked)
    af.save(model, tmp_path / "saved", tokenizer=tokenizer)
    assert af.load(tmp_path / "saved")[0].config == model.config
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert torch.equal(af.embed(model, tokenizer, ids), plain)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_sentence_transformers_computes_the_same(directory: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is no dependency of the tests")
    vectors = af.embed(*af.load(directory), TEXTS)
    af.save(*af.load(directory)[:1], tmp_path / "saved", tokenizer=af.load(directory)[1])
    for path in (directory, tmp_path / "saved"):
        theirs = library.SentenceTransformer(str(path), device="cpu").encode(TEXTS, convert_to_tensor=True)
        torch.testing.assert_close(theirs, vectors, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.Softmax"}, "a layer with Softmax"),
        ({"use_residual": True}, "a layer with use_residual"),
        ({"bias": True}, "differs from the layer before it"),
        ({"out_features": 0}, r"3_Dense/config\.json: dense: must be positive"),
        ({"out_features": 13}, r"dense\.1\.weight after pooling is \[12, 24\]"),
    ],
)
def test_layers_that_do_not_fit(directory: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    af.save(*af.load(directory)[:1], tmp_path / "model")
    path = tmp_path / "model/3_Dense/config.json"
    write(path, {**json.loads(path.read_text()), **settings})
    with pytest.raises(af.UserError, match=message):
        af.load(tmp_path / "model")


def test_a_classifier_of_texts_leaves_them_aside(directory: Path, tmp_path: Path) -> None:
    model, _ = af.load_with_head(directory, "classification", 3)
    assert model.config.pooling.dense == ()
    af.save(model, tmp_path / "model")
    assert af.load(tmp_path / "model")[0].config.head.labels == 3
