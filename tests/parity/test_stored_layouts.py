"""Model directories as they lie on the hub, where they are not as the latest transformers writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.checkpoint import hub
from anyformer.errors import UserError

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "embedding_size": 16,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "head_dim": 8,
}
IDS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))


def stored(directory: Path, name: str, **changes: Any) -> Any:
    """A small model of this class of transformers, with weights and biases drawn, and its directory."""
    kind: Any = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    model.save_pretrained(directory)
    return model


def rewritten(directory: Path, change: Callable[[dict[str, Any]], Any], **config: Any) -> None:
    """Change the weights and the config.json of a directory."""
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def assert_equal(directory: Path, theirs: Any) -> None:
    model, _ = af.load(directory)
    with torch.no_grad():
        if theirs.config.is_encoder_decoder:
            want, got = theirs(IDS, decoder_input_ids=IDS).logits, model(IDS, source=IDS).logits
        else:
            want, got = theirs(IDS)[0], model(IDS).logits
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "RobertaForMaskedLM", "AlbertForMaskedLM", "MPNetForMaskedLM", "BertForPreTraining"]
)
def test_the_bias_of_an_untied_head_is_its_projection_s(name: str, tmp_path: Path) -> None:
    theirs = stored(tmp_path, name, tie_word_embeddings=False)
    assert_equal(tmp_path, theirs)


@pytest.mark.parametrize("name", ["BertForPreTraining", "AlbertForPreTraining"])
def test_models_for_pretraining_are_masked_language_models(name: str, tmp_path: Path) -> None:
    assert_equal(tmp_path, stored(tmp_path, name))


@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "MBartForConditionalGeneration", "MarianMTModel"])
def test_a_fixed_bias_that_is_missing_is_zero(name: str, tmp_path: Path) -> None:
    theirs = stored(tmp_path, name, decoder_start_token_id=2, eos_token_id=1)
    rewritten(tmp_path, lambda weights: weights.pop("final_logits_bias"))
    theirs.final_logits_bias.zero_()
    if name != "MarianMTModel":  # whose sinusoids were drawn over
        assert_equal(tmp_path, theirs)
    assert not af.load(tmp_path)[0].head.bias.any()


@pytest.mark.parametrize("name", ["Qwen3", "Llama", "Mistral"])
def test_an_embedding_model_that_is_called_a_language_model(name: str, tmp_path: Path) -> None:
    theirs = stored(tmp_path, f"{name}Model", tie_word_embeddings=False)
    rewritten(tmp_path, lambda weights: None, architectures=[f"{name}ForCausalLM"])
    model, _ = af.load(tmp_path)
    assert model.config.head.kind == "none"
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).hidden, theirs(IDS)[0], atol=2e-6, rtol=1e-4)
    stored(tmp_path, f"{name}ForCausalLM", tie_word_embeddings=False)
    rewritten(tmp_path, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        af.load(tmp_path)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPTNeoXForCausalLM", "PhiForCausalLM", "ModernBertForMaskedLM"])
@pytest.mark.parametrize("buffer", ["model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_buffers_of_older_versions_are_left_aside(name: str, buffer: str, tmp_path: Path) -> None:
    theirs = stored(tmp_path, name)
    rewritten(tmp_path, lambda weights: weights.update({buffer: torch.ones(4)}))
    assert_equal(tmp_path, theirs)


def test_a_single_file_comes_before_an_index_that_was_left(tmp_path: Path) -> None:
    stored(tmp_path, "LlamaForCausalLM").save_pretrained(tmp_path, max_shard_size=20_000)
    assert (tmp_path / "model.safetensors.index.json").exists()
    theirs = stored(tmp_path, "LlamaForCausalLM", hidden_act="gelu")
    assert_equal(tmp_path, theirs)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [("pythia-70m", {"head_dim": 32}, "head_dim = 32"), ("deepseek-v3", {"rope_interleave": None}, "rope_interleave")],
)
def test_fields_that_turn_otherwise_are_refused(name: str, changes: dict[str, Any], says: str) -> None:
    raw = af.families.to_huggingface(af.preset(name))[1]
    with pytest.raises(UserError, match=says):
        af.families.from_huggingface({**raw, **changes})


def test_t5_scales_its_output_unless_it_is_not_tied(tmp_path: Path) -> None:
    sizes = {
        "num_layers": 1,
        "num_decoder_layers": 1,
        "d_ff": 24,
        "d_kv": 8,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }
    theirs = stored(tmp_path, "T5ForConditionalGeneration", **sizes)
    assert_equal(tmp_path, theirs)
    rewritten(tmp_path, lambda weights: None, tie_word_embeddings=None)
    assert_equal(tmp_path, theirs)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT
@pytest.mark.parametrize("lora", [None, 2])
def test_a_bare_bart_learns_to_rewrite(lora: int | None, tmp_path: Path) -> None:
    """As bart-base and bart-large, whose config.json names the class without a head."""
    special = {"decoder_start_token_id": 2, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    stored(tmp_path / "base", "BartModel", **special, vocab_size=300)
    tokenizer = af.Tokenizer.train(["the cat sat on the mat"] * 5, "bpe:280")
    tokenizer.save(tmp_path / "base")
    rows = [{"source": f"the cat {i}", "target": f"the mat {i}"} for i in range(8)]
    settings: Any = {"steps": 2, "context": 16, "runs": str(tmp_path / "runs"), "lora": lora, "quiet": True}
    result = af.finetune(str(tmp_path / "base"), rows, **settings)
    model, _ = af.load(result.directory / "model")
    assert model.config.head.kind == "language_model"
    assert af.generate(model, tokenizer, "the cat", max_new_tokens=3) is not None
    theirs = transformers.BartForConditionalGeneration.from_pretrained(
        tmp_path / "base" if lora else result.directory / "model"
    )
    if lora:
        peft = pytest.importorskip("peft")
        theirs = peft.PeftModel.from_pretrained(theirs, result.directory / "model")
    with torch.no_grad():
        want = theirs(IDS, decoder_input_ids=IDS).logits
        torch.testing.assert_close(model(IDS, source=IDS).logits, want, atol=2e-6, rtol=1e-4)


def test_copies_of_weights_for_other_programs_are_not_downloaded() -> None:
    wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "2_Dense/config.json"]
    wanted += ["2_Dense/model.safetensors", "tokenizer.model", "chat_template.jinja"]
    others = ["original/model.safetensors", "consolidated.safetensors", "metal/model.bin", "onnx/config.json"]
    others += ["model.fp16.safetensors", "openvino/openvino_model.bin", "README.md", "original/config.json"]
    found = filter_repo_objects(wanted + others, allow_patterns=hub._PATTERNS, ignore_patterns=hub._OTHERS)
    assert list(found) == wanted
