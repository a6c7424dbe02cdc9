"""Names of settings in other libraries, and ours for the same.

They are those of transformers' `TrainingArguments` and model configs, of PEFT, TRL, nanoGPT and PyTorch.
"""

from collections.abc import Sequence

_OURS = {
    "learning_rate": "lr base_lr max_lr peak_lr lrate",
    "epochs": "epoch num_epochs n_epochs num_train_epochs max_epochs",
    "steps": "max_steps num_steps n_steps max_iters iterations total_steps num_train_steps",
    "batch_size": "per_device_train_batch_size per_gpu_train_batch_size train_batch_size micro_batch_size bs bsz",
    "batch_tokens": "per_device_eval_batch_size eval_batch_size",
    "grad_accumulation": "gradient_accumulation_steps accumulate_grad_batches accum_steps grad_accum",
    "context / max_length / max_new_tokens": "max_seq_length max_seq_len max_length max_len seq_len seq_length n_ctx "
    "sequence_length block_size context_length context_size context_window n_positions max_position_embeddings "
    "model_max_length cutoff_len",
    "warmup": "warmup_ratio warmup_steps num_warmup_steps warmup_iters",
    "schedule": "lr_scheduler_type lr_scheduler scheduler lr_schedule",
    "decay": "lr_decay",
    "grad_clip": "max_grad_norm clip_grad clip_grad_norm gradient_clip_val gradient_clipping",
    "weight_decay": "wd",
    "beta2": "adam_beta2 betas",
    "optimizer": "optim",
    "label_smoothing": "label_smoothing_factor",
    "seed": "random_state data_seed",
    "runs": "output_dir out_dir save_dir logging_dir",
    "name": "run_name",
    "save_every": "save_steps save_interval save_strategy",
    "keep": "save_total_limit",
    "evaluate_every": "eval_steps eval_interval eval_strategy evaluation_strategy",
    "log_every": "logging_steps log_interval",
    "track": "report_to logger",
    "dtype": "fp16 bf16 torch_dtype precision mixed_precision",
    "compile": "torch_compile",
    "workers": "num_workers dataloader_num_workers",
    "gradient_checkpointing": "activation_checkpointing grad_checkpointing",
    "validation": "eval_dataset eval_data validation_data val_data valid_data dev_data validation_file test_data",
    "data": "train_dataset train_data training_data train_file dataset data_path",
    "base": "model model_name model_name_or_path base_model pretrained_model_name_or_path",
    "labels": "label_names id2label label2id class_names num_labels",
    "columns": "text_column label_column text_column_name label_column_name dataset_text_field",
    "lora": "r lora_r rank lora_rank",
    "lora_alpha": "alpha",
    "targets": "target_modules lora_target_modules",
    "dora": "use_dora",
    "rslora": "use_rslora",
    "quantize": "load_in_4bit load_in_8bit quantization quantization_config bits",
    "packing": "pack sample_packing",
    "max_new_tokens": "max_tokens max_gen_tokens",
    "beams": "num_beams n_beams beam_size",
    "samples": "num_return_sequences num_samples n_samples",
    "temperature": "do_sample temp",
    "decoder_layers encoder_layers": "n_layer n_layers num_layers num_hidden_layers layers depth",
    "d_model": "n_embd n_embed embed_dim embedding_dim hidden_size hidden_dim dim width",
    "vocab_size": "n_vocab num_embeddings",
    "attention.heads": "n_head n_heads num_heads num_attention_heads nhead",
    "attention.kv_heads": "n_kv_head n_kv_heads num_kv_heads num_key_value_heads",
    "attention.window": "sliding_window window_size",
    "feed_forward.width": "d_ff ffn_dim intermediate_size n_inner mlp_dim dim_feedforward",
    "feed_forward.activation": "hidden_act activation_function",
    "position.theta": "rope_theta rope_base",
    "norm.eps": "rms_norm_eps layer_norm_eps layer_norm_epsilon",
    "embedding.tied": "tie_word_embeddings tie_weights weight_tying",
}
"""Ours: that of others. Of names with a stroke between them the first one that there is counts, others all do."""

_BY_NAME = {name: ours for ours, names in _OURS.items() for name in names.split()}


def usual_name(name: str, valid: Sequence[str]) -> list[str]:
    """Valid names with the meaning that `name` has in other libraries; all may be flags, or dotted."""
    known = {_plain(each): each for each in reversed(valid)}
    for choice in _BY_NAME.get(_plain(name).rpartition(".")[2], "").split(" / "):
        found = [_spelled(ours, known) for ours in choice.split()]
        if ours := [each for each in found if each is not None]:
            return ours
    return []


def _spelled(ours: str, known: dict[str, str]) -> str | None:
    """How a name is spelled among those that are known: whole, behind "model.", or as a part of a field or in one."""
    part, dot, field = ours.partition(".")
    for each in (ours, f"model.{ours}", *([field] if dot else [])):
        if each in known:
            return known[each]
    return ours if dot and part in known else None


def _plain(name: str) -> str:
    """A flag as the field that it sets."""
    return name.lstrip("-").replace("-", "_").lower()
