"""DeBERTa's files as they were published."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import DebertaV2Config, DebertaV2ForMaskedLM

import anyformer as af


def test_the_head_that_was_trained_is_read_under_its_own_name(tmp_path: Path) -> None:
    """Published files have no `legacy` in config.json, and the head that transformers expects where it is false."""
    torch.manual_seed(0)
    form = {"relative_attention": True, "position_biased_input": False, "share_att_key": True}
    scores = {"pos_att_type": "p2c|c2p", "norm_rel_ebd": "layer_norm", "position_buckets": 4}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    theirs = DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=30, legacy=False, **sizes, **form, **scores)).eval()
    with torch.no_grad():
        theirs.lm_predictions.lm_head.bias.normal_()
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if name not in ("legacy", "architectures")})
    )
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {
        "mask_predictions.dense.weight": torch.ones(8, 8),
        "deberta.embeddings.position_embeddings.weight": torch.ones(512, 8),
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, _ = af.load(tmp_path)
    tokens = torch.randint(30, (2, 9))
    expected = theirs(tokens, attention_mask=torch.ones_like(tokens)).logits
    torch.testing.assert_close(ours.eval()(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    af.save(ours, tmp_path / "saved")
    again = DebertaV2ForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(tokens, attention_mask=torch.ones_like(tokens)).logits, expected)
