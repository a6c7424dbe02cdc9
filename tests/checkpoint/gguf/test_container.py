"""The reader of GGUF files: what it reads is what was written, and no file can hurt it."""

import random
import struct
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.blocks.quantized import dequantize
from anyformer.checkpoint import load
from anyformer.checkpoint.gguf.container import NAMED, TYPES, Container
from anyformer.checkpoint.gguf.source import QUANTIZED, dense, quantized
from anyformer.errors import UserError
from tests.checkpoint.gguf import sample_files

HEADER = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
STRING, ARRAY, UINT8 = 8, 9, 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_files.tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_reads_what_gguf_py_reads(tiny: Path) -> None:
    ours, theirs = Container(tiny), gguf.GGUFReader(tiny)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.type.name, info.start) == (tensor.tensor_type.name, tensor.data_offset)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(dense(ours, tensor.name).float().numpy(), expected.astype(np.float32))
    for key, field in theirs.fields.items():
        if key.startswith("GGUF."):
            continue
        value, expected = ours.metadata[key], field.contents()
        if isinstance(expected, list):
            assert list(value) == expected
        elif isinstance(expected, float):
            assert np.float32(value) == np.float32(expected)
        else:
            assert value == expected


def test_types_are_those_of_gguf_py() -> None:
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: (kind.name, kind.block, kind.bytes) for number, kind in TYPES.items()}
    assert {number: row for number, row in ours.items() if number in theirs} == theirs


@pytest.mark.parametrize("name", [name for name in NAMED if name not in ("Q8_1", "Q8_K")])
def test_every_type_that_gguf_py_dequantizes(name: str, tmp_path: Path) -> None:
    kind = NAMED[name]
    if not name.startswith(("F", "I8", "I16", "I32", "I64")) and not gguf.quants._type_traits.get(
        gguf.GGMLQuantizationType(kind.number)
    ):
        pytest.skip("gguf-py does not dequantize it")
    blocks = np.random.default_rng(0).integers(0, 256, (3, 2 * kind.bytes), dtype=np.uint8)
    number = gguf.GGMLQuantizationType(kind.number)
    path = sample_files.write(tmp_path / "a.gguf", {"general.architecture": "llama"}, {"a": blocks}, {"a": number})
    container = Container(path)
    if name in ("I8", "I16", "I32", "I64"):
        with pytest.raises(UserError, match=f"a is stored as {name}"):
            dense(container, "a")
        return
    with np.errstate(all="ignore"):
        got = dense(container, "a")
        if name == "F64":
            expected = blocks.view(np.float64)
        else:
            expected = gguf.quants.dequantize(blocks.view({"F32": "f4", "F16": "f2"}.get(name, "u1")), number)
    assert got.shape == (3, 2 * kind.block)
    assert np.array_equal(got.to(torch.float64).numpy(), expected.astype(np.float64), equal_nan=True)


@given(st.sampled_from(list(QUANTIZED)), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**20))
@settings(max_examples=20)
def test_groups_are_the_weights(name: str, rows: int, groups: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, 32 * groups)).astype(np.float32)
    number = gguf.GGMLQuantizationType[name]
    blocks = gguf.quants.quantize(weight, number)
    with TemporaryDirectory() as folder:
        path = sample_files.write(
            Path(folder) / "a.gguf", {"general.architecture": "llama"}, {"a": blocks}, {"a": number}
        )
        weight = quantized(Container(path), "a")
    assert weight is not None
    assert (weight.shape, weight.bits) == ((rows, 32 * groups), 8 if name == "Q8_0" else 4)
    expected = gguf.quants.dequantize(blocks, number)
    assert np.array_equal(dequantize(weight, torch.float32).numpy(), expected)


HOSTILE = {
    "nothing": (b"", "is empty"),
    "another format": (b"PK\x03\x04 and more of it", "does not begin with GGUF"),
    "only the magic": (b"GGUF", "not a whole GGUF file"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "countless pairs": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(19), "18446|9223372036854775808 pairs"),
    "countless tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 0) + bytes(19), "18446744073709551615 tensors"),
    "an endless key": (HEADER + struct.pack("<Q", 2**63) + bytes(11), "a text of 9223372036854775808 bytes"),
    "an endless array": (
        HEADER + struct.pack("<Q1sIIQ", 1, b"a", ARRAY, UINT8, 2**62),
        "4611686018427387904 values of 'a'",
    ),
    "an endless array of texts": (HEADER + struct.pack("<Q1sIIQ", 1, b"a", ARRAY, STRING, 2**61) + bytes(8), "values"),
    "arrays in arrays": (
        HEADER + struct.pack("<Q1sIIQ", 1, b"a", ARRAY, ARRAY, 2**40) + bytes(64),
        "array of the type 9",
    ),
    "an unknown type": (HEADER + struct.pack("<Q1sI", 1, b"a", 77) + bytes(8), "unknown type 77"),
    "a key that is no text": (HEADER + struct.pack("<Q2sIB", 2, b"\xff\xfe", UINT8, 0), "not UTF-8"),
    "a key twice": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * struct.pack("<Q1sIB", 1, b"a", UINT8, 0),
        "'a' is there twice",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(path)


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return struct.pack(f"<Q{len(name)}sI{len(shape)}QIQ", len(name), name, len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([tensor(b"a", (2**32, 2**32), 0, 0)], "ends at byte"),
        ([tensor(b"a", (2**63, 2, 2**63, 4), 0, 0)], "ends at byte"),
        ([tensor(b"a", (8,), 0, 2**63)], "ends at byte"),
        ([tensor(b"a", (8,), 0, 4)], "not aligned"),
        ([tensor(b"a", (0,), 0, 0)], "size 0"),
        ([tensor(b"a", (33,), 8, 0)], "33 weights, not a multiple of Q8_0's 32"),
        ([tensor(b"a", (1,) * 5, 0, 0)], "5 dimensions"),
        ([tensor(b"a", (8,), 4, 0)], "the type 4"),
        ([tensor(b"a", (16,), 0, 0), tensor(b"b", (8,), 0, 32)], "b and a overlap"),
        ([tensor(b"a", (8,), 0, 0), tensor(b"a", (8,), 0, 32)], "'a' is there twice"),
    ],
)
def test_hostile_tensors(tensors: list[bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0) + b"".join(tensors) + bytes(128))
    with pytest.raises(UserError, match=message):
        Container(path)


EXTREMES = (0, 1, 2, 3, 8, 9, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def spoil(content: bytes, header: int, rng: random.Random) -> bytes:
    """A file with a few changes in its header."""
    spoilt = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(min(header, len(spoilt)))
        match rng.randrange(7):
            case 0:
                spoilt[at] = rng.randrange(256)
            case 1:
                spoilt[at] ^= 1 << rng.randrange(8)
            case 2:
                spoilt[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
            case 3:
                spoilt[at : at + 4] = struct.pack("<I", rng.choice(EXTREMES) & 0xFFFFFFFF)
            case 4:
                del spoilt[at : at + rng.randrange(1, 40)]
            case 5:
                spoilt[at:at] = rng.randbytes(rng.randrange(1, 40))
            case _:
                del spoilt[rng.randrange(1, len(spoilt)) :]
    return bytes(spoilt)


def fuzz(tiny: Path, folder: Path, seeds: range, quantize: str | None = None) -> int:
    """Load spoilt files; all that may happen is a model, or one sentence. Returns how many were refused."""
    content, path = tiny.read_bytes(), folder / "spoilt.gguf"
    header = min(info.start for info in Container(tiny).tensors.values())
    refused = 0
    for seed in seeds:
        path.write_bytes(spoilt := spoil(content, header, random.Random(seed)))
        tracemalloc.start()
        started = time.process_time()
        try:
            Container(path)
            made = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            load(path, quantize=quantize)
        except UserError as error:
            made = tracemalloc.get_traced_memory()[1] if tracemalloc.is_tracing() else made
            message = str(error)
            assert "\n" not in message, message
            assert len(message) < 1000, message
            refused += 1
        finally:
            tracemalloc.stop()
        assert time.process_time() - started < 5, seed
        # The texts of the vocabulary as objects, and no more: a spoilt count would ask for gigabytes.
        assert made < len(spoilt) + 2**18, seed
    return refused


@pytest.mark.parametrize(("quantize", "count"), [(None, 500), ("int8", 150), ("int4", 150)])
def test_spoilt_headers(quantize: str | None, count: int, tiny: Path, tmp_path: Path) -> None:
    assert fuzz(tiny, tmp_path, range(count), quantize) > count // 2


@pytest.mark.slow
def test_ten_thousand_spoilt_headers(tiny: Path, tmp_path: Path) -> None:
    assert fuzz(tiny, tmp_path, range(1000, 11000)) > 5000


@pytest.mark.parametrize("size", [0.1, 0.5, 0.9, 0.999])
def test_cut_off(size: float, tiny: Path, tmp_path: Path) -> None:
    content = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(size * len(content))])
    with pytest.raises(UserError, match="not a whole GGUF file"):
        load(path)
