"""The one exception that is meant for people, and the parts of its sentence that quote what somebody wrote."""

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from itertools import islice


class UserError(Exception):
    """A mistake the user can mend: one clear sentence on what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def quote(value: object) -> str:
    """The value as Python writes it, in 200 characters at most, for a message about what a stranger wrote."""
    if isinstance(value, str):
        return cut(repr(value[:_QUOTED]))
    try:
        return cut(_SHORT.repr(value))
    except ValueError:  # a number of thousands of digits
        return "a number too long to write"


def cut(text: str) -> str:
    """The text without quotation marks, in 200 characters at most."""
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 3]}..."


_QUOTED = 200
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = _QUOTED
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20


def check_keywords(function: str, keywords: Iterable[str], parameters: Iterable[str]) -> None:
    """Raise TypeError, as Python does, for the first keyword argument that a function does not have."""
    names = set(parameters)
    for name in keywords:
        if name not in names:
            raise TypeError(f"{function}() got an unexpected keyword argument {quote(name)} ({nearest(name, names)})")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint for a `name` that is not in `valid`.

    `that is 'learning_rate' here` for a setting that other libraries call so, `did you mean 'gpt2'?` when one of the
    valid names is close, else `choose from 'a', 'b'`, or where there are many `the nearest of 55 are 'a', 'b', 'c'`.
    """
    name, names = name[:_LONGEST], sorted({each[:_LONGEST] for each in islice(valid, _MOST)})
    if ours := usual_name(name, names):
        return f"that is {' or '.join(map(repr, ours))} here"
    lower = {each.lower(): each for each in reversed(names)}
    if close := difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6):
        return f"did you mean {lower[close[0]]!r}?"
    if len(names) > _LISTED:
        nearby = difflib.get_close_matches(name, names, n=3, cutoff=0)
        return f"the nearest of {len(names)} are " + ", ".join(map(repr, nearby))
    return "choose from " + ", ".join(map(repr, names)) if names else "there are none to choose from"


_MOST = 1000
"""Names that are looked at; a file may have millions."""
_LISTED = 20
"""Names that a sentence has room for."""
_LONGEST = 100
"""Characters of a name that are looked at."""


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
    "distinct_layers": "num_hidden_groups",
    "d_model": "n_embd n_embed embed_dim embedding_dim hidden_size hidden_dim dim width",
    "embedding.width": "embedding_size",
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
    spelling = {_plain(each): each for each in reversed(valid)}

    def spelled(ours: str) -> str | None:
        """The valid name: whole, behind "model.", or as a part of a field or in one."""
        part, dot, field = ours.partition(".")
        candidates = (ours, f"model.{ours}", *([field] if dot else []))
        usual = next((spelling[each] for each in candidates if each in spelling), None)
        return usual or (ours if dot and part in spelling else None)

    for choice in _BY_NAME.get(_plain(name).rpartition(".")[2], "").split(" / "):
        if ours := [each for each in map(spelled, choice.split()) if each is not None]:
            return ours
    return []


def _plain(name: str) -> str:
    """A flag as the field that it sets."""
    return name.lstrip("-").replace("-", "_").lower()
