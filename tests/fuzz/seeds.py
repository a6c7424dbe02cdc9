"""The files that are mutated: tiny models, tokenizers of every kind, runs and data, as the library writes them."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
import zstandard

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter, merge
from anyformer.checkpoint import save_adapter
from anyformer.cli.main import main

TEXT = "the cat sat on the mat . a dog ran to my house , and then it slept . we saw it .\n"
TEMPLATE = """\
{% for message in messages %}
{% if message['role'] == 'user' %}<user> {{ message['content'] | trim }}
{% else %}<bot> {{ message['content'] }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<bot> {% endif %}
"""


@dataclass(frozen=True)
class Target:
    """Patterns of the files in a folder that are mutated, and the commands that read them.

    In a command {} is the folder, {seeds} the one of all seeds.
    """

    folder: str
    files: Sequence[str]
    commands: Sequence[str]


_WRITE = (
    "generate {} the --max-new-tokens 2",
    "generate {} the --max-new-tokens 2 --temperature 1 --seed 1 --samples 2",
)
_TOKENIZE = ("generate {} the --max-new-tokens 1", "generate {} <b>é --max-new-tokens 1 --logprobs 1")
_CHECKPOINT = "checkpoints/step-00000002"
COMPARED = (
    "gpt2-nano:d_model=16,decoder_layers=1,attention.heads=2,feed_forward.width=24 t5 --match none --tokens 400"
    " --seeds 1 --tune --context 16 --batch-size 2 --tokenizer bpe:300 --no-tasks --device cpu --dtype float32"
)
TARGETS = {
    "config": Target("llama", ["config.json"], [*_WRITE, "show {}", "diff {} gpt2", "eject {}"]),
    "config of an encoder": Target(
        "bert", ["config.json", "1_Pooling/config.json", "modules.json"], ["embed {} cat dog"]
    ),
    "config of both": Target("t5", ["config.json"], _WRITE),
    "generation config": Target("llama", ["generation_config.json"], [*_WRITE, "chat {} --max-new-tokens 2"]),
    "tokenizer": Target("llama", ["tokenizer.json"], _TOKENIZE),
    "tokenizer of words": Target(
        "bert", ["tokenizer.json", "tokenizer_config.json"], ["fill {} [MASK]", "embed {} cat"]
    ),
    "tokenizer of a vocabulary": Target("t5", ["tokenizer.json"], _TOKENIZE),
    "tokenizer's companions": Target(
        "llama", ["tokenizer_config.json", "special_tokens_map.json"], [*_TOKENIZE, "chat {} --max-new-tokens 2"]
    ),
    "merges": Target("gpt2", ["vocab.json", "merges.txt", "tokenizer_config.json"], _TOKENIZE),
    "vocabulary": Target("words", ["vocab.txt", "tokenizer_config.json"], ["embed {} cat"]),
    "sentencepiece": Target("pieces", ["tokenizer.model", "tokenizer_config.json"], _TOKENIZE),
    "template": Target("llama", ["chat_template.jinja"], ["chat {} --max-new-tokens 2"]),
    "weights": Target("llama", ["model.safetensors"], ["generate {} the --max-new-tokens 1"]),
    "shards": Target(
        "shards",
        ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
        ["generate {} the --max-new-tokens 1"],
    ),
    "adapter": Target(
        "adapted",
        ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"],
        ["generate {}/model the --max-new-tokens 1 --adapter {}/adapter"],
    ),
    "adapter of mlx": Target(
        "mlx",
        ["adapter/adapter_config.json", "adapter/adapters.safetensors"],
        ["generate {}/model the --max-new-tokens 1 --adapter {}/adapter"],
    ),
    "adapter of llama.cpp": Target(
        "adapted",
        ["adapter.gguf"],
        [
            "generate {}/adapter.gguf the --max-new-tokens 1",
            "show {}/adapter.gguf",
            "generate {}/model the --max-new-tokens 1 --adapter {}/adapter.gguf",
        ],
    ),
    "gguf": Target("gguf", ["model.gguf"], ["generate {}/model.gguf the --max-new-tokens 1", "show {}/model.gguf"]),
    "run": Target(
        "run", ["config.yaml", "metrics.jsonl"], ["runs {}", "runs {} --json", "runs {} --html {}/page.html"]
    ),
    "checkpoint": Target(
        "run",
        [
            "config.yaml",
            "metrics.jsonl",
            "checkpoints/step-00000002/run.json",
            "checkpoints/step-00000002/state.safetensors",
        ],
        ["train --resume {} --steps 2 --no-compile"],
    ),
    "finetuning": Target(
        "tuned",
        [
            "config.yaml",
            "metrics.jsonl",
            "before.json",
            f"{_CHECKPOINT}/run.json",
            f"{_CHECKPOINT}/state.safetensors",
            "model/adapter_config.json",
            "model/head_config.json",
        ],
        ["finetune --resume {} --steps 2 --no-compile", "embed {} cat", "classify {} cat", "runs {}"],
    ),
    "labels": Target(
        "labels",
        ["labels.csv"],
        ["finetune {}/model --data {}/labels.csv --preview {}/page.html"],
    ),
    "distinct labels": Target(
        "distinct",
        ["labels.csv", "tags.jsonl"],
        [
            "finetune {}/model --data {}/labels.csv --preview {}/page.html",
            "finetune {}/model --data {}/tags.jsonl --preview {}/page.html",
        ],
    ),
    "comparison": Target(
        "comparison",
        [
            *("out/plan.json", "out/jobs/*-seed*.json", "out/jobs/*-seed*.json", "out/jobs/*-rate*.json"),
            *("out/data/*.bin", "out/data/tokenizer/tokenizer.json", "out/jobs/*/model/*.json", "out/compare.html"),
        ],
        [f"compare {COMPARED} --data {{seeds}}/text.txt --out {{}}/out"],
    ),
    "comparison to go on with": Target(
        "comparing",
        ["out/plan.json", "out/jobs/*/config.yaml", "out/jobs/*/metrics.jsonl", "out/jobs/*/checkpoints/finished.json"],
        [f"compare {COMPARED} --data {{seeds}}/text.txt --out {{}}/out"],
    ),
    "job": Target(
        "job",
        ["answers.jsonl", "answers.jsonl.job"],
        ["generate {}/model --file {}/prompts.txt --out {}/answers.jsonl"],
    ),
    "jsonl": Target("data", ["text.jsonl"], ["evaluate {}/model --data {}/text.jsonl --limit 50"]),
    "json": Target("data", ["text.json"], ["evaluate {}/model --data {}/text.json --limit 50"]),
    "csv": Target("data", ["text.csv"], ["evaluate {}/model --data {}/text.csv --limit 50"]),
    "parquet": Target("data", ["text.parquet"], ["evaluate {}/model --data {}/text.parquet --limit 50"]),
    "parquet's types": Target(
        "data",
        ["types.parquet"],
        [
            "finetune {}/model --data {}/types.parquet --preview {}/page.html",
            "finetune {}/model --data {}/types.parquet --columns text=when --preview {}/page.html",
        ],
    ),
    "gz": Target("data", ["text.jsonl.gz"], ["evaluate {}/model --data {}/text.jsonl.gz --limit 50"]),
    "zst": Target("data", ["text.jsonl.zst"], ["evaluate {}/model --data {}/text.jsonl.zst --limit 50"]),
}


def make_seeds(root: Path) -> None:
    """Write every folder that a target names."""
    torch.manual_seed(0)
    tokenizers = {kind: af.Tokenizer.train([TEXT * 20], kind) for kind in ("bpe:300", "wordpiece:60", "unigram:40")}
    _model("llama-nano", tokenizers["bpe:300"], root / "llama", decoder_layers=1)
    (root / "llama" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    _json(root / "llama" / "special_tokens_map.json", {"eos_token": "<|endoftext|>", "pad_token": {"content": "<pad>"}})
    _json(root / "llama" / "generation_config.json", _GENERATION)
    _model("bert-mini", tokenizers["wordpiece:60"], root / "bert", encoder_layers=1)
    _json(root / "bert" / "modules.json", _MODULES)
    (root / "bert" / "1_Pooling").mkdir()
    _json(
        root / "bert" / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    )
    _model("t5-small", tokenizers["unigram:40"], root / "t5", encoder_layers=1, decoder_layers=1)
    _model("gpt2-nano", tokenizers["bpe:300"], root / "gpt2", decoder_layers=1)
    _unpack_vocabulary(root / "gpt2")
    shutil.copytree(root / "bert", root / "words")
    (root / "words" / "tokenizer.json").unlink()
    vocabulary = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split(), "##s"])
    (root / "words" / "vocab.txt").write_text(vocabulary + "\n", encoding="utf-8")
    _pieces(root)
    model, tokenizer = af.load(root / "llama")
    af.save(model, root / "shards", tokenizer=tokenizer, max_shard_size=20_000)
    shutil.copytree(root / "llama", root / "adapted" / "model")
    add_adapter(model, LoraConfig(rank=2, rank_pattern={"q_proj": 3}, exclude_modules=["v_proj"]))
    save_adapter(model, root / "adapted" / "adapter", base="some/model")
    merge(model)
    shutil.copytree(root / "llama", root / "mlx" / "model")
    add_adapter(model, LoraConfig(rank=2))
    save_adapter(model, root / "mlx" / "adapter", library="mlx")
    save_adapter(model, root / "adapted" / "adapter.gguf")
    merge(model)
    (root / "gguf").mkdir()
    af.save_gguf(model, root / "gguf" / "model.gguf", tokenizer=tokenizer)
    _run(root)
    _finetuning(root)
    _distinct(root)
    _comparison(root)
    _data(root)


_GENERATION = {
    "eos_token_id": [0],
    "temperature": 0.7,
    "top_k": 5,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "do_sample": True,
    "max_new_tokens": 5,
    "suppress_tokens": [3],
    "forced_eos_token_id": None,
    "bad_words_ids": [[4, 5]],
    "no_repeat_ngram_size": 3,
    "num_beams": 1,
}
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def _model(preset: str, tokenizer: af.Tokenizer, folder: Path, **layers: int) -> None:
    config = af.preset(
        preset,
        **layers,
        vocab_size=tokenizer.vocab_size + 8,
        d_model=16,
        max_length=64,
        attention={"heads": 2, "kv_heads": None, "head_dim": None},
        feed_forward={"width": 24},
    )
    af.save(af.build(config), folder, tokenizer=tokenizer)


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _unpack_vocabulary(folder: Path) -> None:
    """Vocabulary and merges in files of their own, as GPT-2's."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    _json(folder / "vocab.json", model["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    _json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})


def _pieces(root: Path) -> None:
    corpus, prefix = root / "corpus.txt", root / "spm"
    corpus.write_text(TEXT * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(prefix),
        vocab_size=60,
        model_type="bpe",
        minloglevel=2,
        normalization_rule_name="identity",
    )
    shutil.copytree(root / "llama", root / "pieces")
    (root / "pieces" / "tokenizer.json").unlink()
    shutil.copy(prefix.with_suffix(".model"), root / "pieces" / "tokenizer.model")
    _json(root / "pieces" / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})


def _run(root: Path) -> None:
    (root / "text.txt").write_text(TEXT * 200, encoding="utf-8")
    sizes = ["--model.d-model=16", "--model.decoder-layers=1", "--model.attention.heads=2", "--context", "16"]
    where = ["--data", str(root / "text.txt"), "--tokenizer", "char", "--runs", str(root), "--name", "run"]
    assert main(["train", "gpt2-nano", *sizes, *where, "--steps", "2", "--batch-size", "2", "--keep-optimizer"]) == 0


def _finetuning(root: Path) -> None:
    words = TEXT.split()
    rows = "".join(f"the {word} {number},{'cat' if number % 2 else 'dog'}\n" for number, word in enumerate(words[:12]))
    (root / "labels").mkdir()
    (root / "labels" / "labels.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    shutil.copytree(root / "bert", root / "labels" / "model")
    where = ["--runs", str(root), "--name", "tuned", "--device", "cpu"]
    data = ["--data", str(root / "labels" / "labels.csv"), "--batch-size", "4"]
    # A head that was just drawn is not measured before training, one that is there already is.
    headed = ["--runs", str(root), "--name", "headed", "--device", "cpu", "--steps", "1"]
    assert main(["finetune", str(root / "bert"), *data, *headed]) == 0
    lora = ["--lora", "2", "--steps", "2", "--keep-optimizer"]
    assert main(["finetune", str(root / "headed"), *data, *where, *lora]) == 0


def _distinct(root: Path) -> None:
    folder = root / "distinct"
    folder.mkdir()
    shutil.copytree(root / "bert", folder / "model")
    rows = "".join(f"the {number},{number % 400}x\n" for number in range(900))
    (folder / "labels.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    tags = [{"tokens": ["the", "cat"], "tags": ["O", f"B-{number % 400}"]} for number in range(900)]
    (folder / "tags.jsonl").write_text("".join(json.dumps(each) + "\n" for each in tags), encoding="utf-8")


def _comparison(root: Path) -> None:
    out = root / "comparison" / "out"
    data = ["--data", str(root / "text.txt"), "--out", str(out)]
    assert main(["compare", *COMPARED.split(), *data]) == 0
    shutil.copytree(root / "comparison", root / "comparing")
    for path in (root / "comparing" / "out" / "jobs").glob("1-*-seed0.json"):
        path.unlink()


def _types(path: Path, texts: list[str]) -> None:
    """A column of each type whose values Python has not all of; not compressed, so that mutations change values."""
    import pyarrow as pa
    from pyarrow import parquet

    whole = pa.array(range(len(texts)), pa.int64())
    types = {
        "when": pa.timestamp("us"),
        "there": pa.timestamp("ns", tz="Europe/Berlin"),
        "long": pa.duration("s"),
        "time": pa.time64("us"),
    }
    columns = {name: whole.cast(kind) for name, kind in types.items()}
    columns |= {
        "text": pa.array(texts),
        "label": pa.array(["x", "y"] * (len(texts) // 2)).dictionary_encode(),
        "day": whole.cast(pa.int32()).cast(pa.date32()),
        "money": whole.cast(pa.decimal128(38, 2)),
        "half": whole.cast(pa.float32()).cast(pa.float16()),
        "bytes": pa.array([text.encode() for text in texts]),
        "pairs": pa.array([[("a", 1)]] * len(texts), pa.map_(pa.string(), pa.int32())),
        "nothing": pa.nulls(len(texts)),
        "inner": pa.array([{"a": [1, 2]}] * len(texts)),
    }
    parquet.write_table(pa.table(columns), path, compression="none", use_dictionary=False)


def _data(root: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    texts = [TEXT.strip(), "a dog", "", "the 猫"] * 5
    for folder in ("data", "job"):
        (root / folder).mkdir()
        shutil.copytree(root / "llama", root / folder / "model")
    data = root / "data"
    lines = "".join(json.dumps({"text": text, "more": {"label": 1}}) + "\n" for text in texts).encode()
    (data / "text.jsonl").write_bytes(lines)
    _json(data / "text.json", {"version": 1, "data": [{"text": text} for text in texts]})
    (data / "text.jsonl.gz").write_bytes(gzip.compress(lines))
    (data / "text.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    rows = "".join(f'{number},"{text}"\n' for number, text in enumerate(texts))
    (data / "text.csv").write_text(f"number,text\n{rows}", encoding="utf-8")
    parquet.write_table(pa.table({"text": texts, "number": list(range(len(texts)))}), data / "text.parquet")
    _types(data / "types.parquet", texts)
    job = root / "job"
    (job / "prompts.txt").write_text("the\na dog\nwe\n", encoding="utf-8")
    argv = ["generate", str(job / "model"), "--file", str(job / "prompts.txt"), "--out", str(job / "answers.jsonl")]
    assert main([*argv, "--max-new-tokens", "2"]) == 0
    assert (job / "answers.jsonl.job").exists()
