"""Tokens/s of encoder-decoders: anyformer, Hugging Face and CTranslate2 with the same random weights, in turns.

    python benchmarks/translating.py
    python benchmarks/translating.py --models marian --rounds 3 --only 'anyformer,hf float32'

Two models: the 2017 paper's base size as Marian has it (6 + 6 layers, width 512, a vocabulary of 32,000), and
T5-small's. Sources of 32 tokens, targets of exactly 32 (there is no end-of-text token), one and sixteen at a time,
greedy and with 4 beams. Candidates take turns, round by round, in one process; a ratio is the median over the rounds,
tokens/s are of the fastest round. After a slash follows the ratio of processor time, which other programs on shared
cores hardly affect. "int8_bfloat16" has weights in int8, and in bfloat16 all else, keys and values among it. "same" is
the fraction of generated tokens equal to those of Hugging Face in float32: weights are random, so logits are close to
one another and dtypes of lower precision diverge soon.

Needs `pip install 'anyformer[bench]' ctranslate2`.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import anyformer as af

Translate = Callable[[torch.Tensor, int], list[list[int]]]
"""Generated tokens for sources [batch, time] with so many beams."""

VOCABULARY, LENGTH = 32_000, 32
POINTS = [(1, 1), (1, 4), (16, 1), (16, 4)]
"""Batch size and number of beams."""


def marian() -> Any:
    from transformers import MarianConfig, MarianMTModel

    sizes: dict[str, Any] = {
        f"{stack}_{name}": value
        for stack in ("encoder", "decoder")
        for name, value in (("layers", 6), ("ffn_dim", 2048), ("attention_heads", 8))
    }
    # Marian's padding is the last token, and starts an answer.
    last: dict[str, Any] = {"pad_token_id": VOCABULARY - 1, "decoder_start_token_id": VOCABULARY - 1}
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=512,
        activation_function="relu",
        scale_embedding=True,
        eos_token_id=0,
        forced_eos_token_id=None,
        **sizes,
        **last,
    )
    return MarianMTModel(config)


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    start: dict[str, Any] = {"decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=32_128, **start))


MODELS: dict[str, Callable[[], Any]] = {"marian": marian, "t5": t5}


def hugging_face(directory: Path, dtype: str) -> Translate:
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    settings: Any = model.generation_config
    settings.eos_token_id, settings.forced_eos_token_id = None, None

    def translate(sources: torch.Tensor, beams: int) -> list[list[int]]:
        mask = torch.ones_like(sources)
        out = model.generate(
            input_ids=sources, attention_mask=mask, num_beams=beams, do_sample=False, max_new_tokens=LENGTH
        )
        return out[:, 1:].tolist()

    return translate


def ctranslate2(directory: Path, compute_type: str, threads: int) -> Translate:
    """Through its own converter, with placeholder entries for a tokenizer's vocabulary."""
    import ctranslate2 as ct2
    from ctranslate2.converters import transformers as converters
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(directory)
    config: Any = model.config
    words = [f"w{number}" for number in range(config.vocab_size)]
    words[config.pad_token_id], words[config.eos_token_id] = "<pad>", "</s>"
    words[2] = "<unk>"

    class Words:
        """The part of a tokenizer that the converter needs."""

        pad_token, eos_token, unk_token, bos_token = "<pad>", "</s>", "<unk>", "<pad>"

        def get_vocab(self) -> dict[str, int]:
            return {word: number for number, word in enumerate(words)}

        def convert_ids_to_tokens(self, number: int) -> str:
            return words[number]

    kinds = {"marian": converters.MarianMTLoader, "t5": converters.T5Loader}
    with torch.no_grad():
        spec = kinds[config.model_type]()(model, Words())
    spec.validate()
    spec.optimize()
    with tempfile.TemporaryDirectory() as made:
        spec.save(made)
        translator = ct2.Translator(made, compute_type=compute_type, inter_threads=1, intra_threads=threads)
    numbers = {word: number for number, word in enumerate(words)}

    def translate(sources: torch.Tensor, beams: int) -> list[list[int]]:
        batch = [[words[number] for number in row] for row in sources.tolist()]
        found = translator.translate_batch(
            batch, beam_size=beams, min_decoding_length=LENGTH, max_decoding_length=LENGTH, max_batch_size=0
        )
        return [[numbers[word] for word in one.hypotheses[0]] for one in found]

    return translate


def ours(directory: Path, kind: str) -> Translate:
    """The weights in integers of this kind, and in the dtype after it what is no weight; or all in one dtype."""
    integers, _, dtype = kind.partition("_") if kind.startswith("int") else (None, "", kind)
    model, _ = af.load(directory, dtype or "float32", quantize=integers)

    def translate(sources: torch.Tensor, beams: int) -> list[list[int]]:
        return af.generate_ids(model, sources, max_new_tokens=LENGTH, beams=beams, stop_at_eos=False).tolist()

    return translate


def candidates(directory: Path, threads: int, only: list[str]) -> dict[str, Translate]:
    import ctranslate2 as ct2

    able = ct2.get_supported_compute_types("cpu")
    made: dict[str, Callable[[], Translate]] = {
        "hf float32": lambda: hugging_face(directory, "float32"),
        "hf bfloat16": lambda: hugging_face(directory, "bfloat16"),
        **{
            f"ctranslate2 {kind}": lambda kind=kind: ctranslate2(directory, kind, threads)
            for kind in CT2_KINDS
            if kind in able
        },
        **{f"anyformer {kind}": lambda kind=kind: ours(directory, kind) for kind in OUR_KINDS},
    }
    return {name: make() for name, make in made.items() if not only or any(part in name for part in only)}


CT2_KINDS = ("float32", "int8", "int8_bfloat16", "int16", "bfloat16")
OUR_KINDS = ("float32", "bfloat16", "int8", "int8_bfloat16", "int4")


def measure(translators: dict[str, Translate], batch: int, beams: int, rounds: int) -> None:
    """Print a row for each candidate."""
    sources = torch.randint(3, VOCABULARY - 1, (batch, LENGTH), generator=torch.Generator().manual_seed(batch))
    answers = {name: translate(sources, beams) for name, translate in translators.items()}
    seconds: dict[str, list[float]] = {name: [] for name in translators}
    cpu: dict[str, list[float]] = {name: [] for name in translators}
    for _ in range(rounds):
        for name, translate in translators.items():
            begun, cpu_begun = time.perf_counter(), time.process_time()
            translate(sources, beams)
            seconds[name].append(time.perf_counter() - begun)
            cpu[name].append(time.process_time() - cpu_begun)
    exact = answers[next(iter(translators))]
    theirs = [name for name in translators if name.startswith("ctranslate2")]
    best = min(theirs, key=lambda name: statistics.median(seconds[name]), default=None)

    def ratio(name: str, other: str | None) -> str:
        if other not in seconds:
            return ""
        parts = (
            statistics.median(b / a for a, b in zip(spent[name], spent[other], strict=True)) for spent in (seconds, cpu)
        )
        return " / ".join(f"{part:.2f}" for part in parts)

    for name, spent in seconds.items():
        same = sum(a == b for x, y in zip(exact, answers[name], strict=True) for a, b in zip(x, y, strict=True))
        cells = [
            f"{batch} x {beams}",
            name,
            f"{batch * LENGTH / min(spent):,.0f}",
            ratio(name, "hf float32"),
            ratio(name, best),
            f"{same / (batch * LENGTH):.0%}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--points", default="", help="such as 1x4,16x1; default: all four")
    parser.add_argument(
        "--only", default="", help="candidates whose names have one of these, such as 'hf float32,anyformer'"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wanted = [part for part in options.only.split(",") if part]
    chosen = [point for point in POINTS if not options.points or f"{point[0]}x{point[1]}" in options.points.split(",")]
    for name in options.models.split(","):
        print(f"\n{name}: {LENGTH} -> {LENGTH} tokens, {options.threads} threads\n")
        print("| sources x beams | candidate | tokens/s | x hf float32 | x ctranslate2's best | same |")
        print("| --- | --- | ---: | ---: | ---: | ---: |")
        with tempfile.TemporaryDirectory() as directory:
            torch.manual_seed(0)
            MODELS[name]().save_pretrained(directory)
            translators = candidates(Path(directory), options.threads, wanted)
            for batch, beams in chosen:
                measure(translators, batch, beams, options.rounds)
            del translators
            gc.collect()


if __name__ == "__main__":
    main()
