"""The models and the files that the pages on fine-tuning name, tiny ones."""

from pathlib import Path

import anyformer as af
from tests.finetuning.toys import decoder, encoder, encoder_decoder, rows, write


def make(folder: Path, count: int = 24) -> None:
    """Write them into a folder, models as directories that are called like repositories of the hub."""
    model, tokenizer = decoder(max_length=64)
    for name in ("SmolLM2-135M", "SmolLM2-135M-Instruct"):
        af.save(model, folder / "HuggingFaceTB" / name, tokenizer=tokenizer)
    af.save_gguf(model, folder / "model.gguf", tokenizer=tokenizer)
    model, tokenizer = encoder()
    af.save(model, folder / "nreimers" / "MiniLM-L6-H384-uncased", tokenizer=tokenizer)
    model, tokenizer = encoder(
        head={"kind": "none", "transform": None, "bias": "none"}, pooling={"kind": "mean", "normalize": True}
    )
    af.save(model, folder / "sentence-transformers" / "all-MiniLM-L6-v2", tokenizer=tokenizer)
    model, tokenizer = encoder_decoder()
    af.save(model, folder / "google-t5" / "t5-small", tokenizer=tokenizer)

    for name, task in (("chats", "chat"), ("preferences", "preference"), ("prompts", "completion")):
        write(folder / f"{name}.jsonl", rows(task, count))
    labeled = [(str(row["text"]), str(row["label"])) for row in rows("classify", count)]
    translated = [{"translation": {"en": text, "de": label}} for text, label in labeled]
    write(folder / "translations.jsonl", translated)
    write(
        folder / "topics.jsonl", [{"text": text, "labels": [label, "all"][: len(text) % 3]} for text, label in labeled]
    )
    write(folder / "questions.jsonl", [{"anchor": text, "positive": f"{text} {label}"} for text, label in labeled])
    _table(folder / "reviews.csv", ["review,stars", *(f"{text},{label}" for text, label in labeled)])
    _table(folder / "docstrings.csv", ["text,label", *(f"{text},{label}" for text, label in labeled)])
    _table(folder / "ratings.csv", ["text,rating", *(f"{text},{len(text) / 2}" for text, _ in labeled)])
    pairs = [f"{text},{label},{'same' if 'cat' in text else 'other'}" for text, label in labeled]
    _table(folder / "pairs.csv", ["premise,hypothesis,label", *pairs])
    similar = [f"{text},{label} {text},{len(text) % 5}.5" for text, label in labeled]
    _table(folder / "similar.csv", ["sentence1,sentence2,score", *similar])
    tagged = [zip(row["tokens"], row["ner_tags"], strict=True) for row in rows("tag", count)]
    sentences = ["".join(f"{word} {tag}\n" for word, tag in sentence) for sentence in tagged]
    (folder / "names.conll").write_text("\n".join(sentences), encoding="utf-8")
    (folder / "notes.txt").write_text("\n\n".join(text for text, _ in labeled) * 9, encoding="utf-8")
    (folder / "mine.yaml").write_text("lora: 16\nbatch_size: 8\nsteps: 2\n", encoding="utf-8")


def _table(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
