"""A plausible result of three models, for tests of what is made from results."""

import math

import anyformer as af
from anyformer.compare.result import (
    Ablation,
    Blank,
    ComparedModel,
    Comparison,
    Curve,
    Effect,
    Guess,
    Panel,
    Point,
    Sample,
    Score,
    Setup,
    Trial,
    Verdict,
)

_SIZES = {"gpt2": ("causal", 2.02), "t5": ("span corruption and continuation", 2.31), "bert": ("masked", 2.6)}


def make_comparison(*, ablation: bool = False) -> Comparison:
    """GPT-2, T5 and BERT, trained on the same text with two seeds."""
    models = tuple(make_model(name, objective, final) for name, (objective, final) in _SIZES.items())
    rest = _panel("continuation", "The rest of a text given its beginning", "bits per byte", {"gpt2": 2.1, "t5": 2.4})
    groups = (
        _panel("next_byte", "Next byte", "bits per byte", {"gpt2": 2.02}),
        rest,
        _panel("filling_in", "Filling in", "pseudo bits per byte", {"bert": 1.7}, note="not the probability of a text"),
        _panel("spans", "Spans", "nats per token", {"t5": 3.9}),
    )
    cloze = _panel(
        "cloze", "Cloze", "accuracy", {"bert": 0.61, "t5": 0.55, "gpt2": 0.54}, lower_is_better=False, chance=0.25
    )
    verdicts = (
        _verdict("continuation", "gpt2", "t5", -0.3, better=True),
        _verdict("cloze", "bert", "t5", 0.06, better=True),
        _verdict("cloze", "bert", "gpt2", 0.07, better=True),
        _verdict("cloze", "t5", "gpt2", 0.01, better=False),
    )
    return Comparison(
        title="gpt2, t5 and bert",
        repeat="anyformer compare gpt2 t5 bert --data notes.txt --tokens 1000000 --seeds 2",
        setup=Setup(
            data=("notes.txt",),
            training_bytes=900_000,
            held_out_bytes=100_000,
            training_tokens=310_000,
            held_out_tokens=35_000,
            data_digest="ab" * 32,
            tokenizer="bpe:2048",
            vocab_size=2048,
            context=128,
            window=126,
            batch_size=8,
            match="parameters",
            matched={name: 786_000.0 + 900 * index for index, name in enumerate(_SIZES)},
            budget="tokens",
            amount=1e6,
            seeds=2,
            tuned=True,
            machine="2 cores, torch 2.13",
            seconds=611.5,
        ),
        models=models,
        groups=groups,
        tasks=(cloze,),
        verdicts=verdicts,
        ablation=_ablation() if ablation else None,
    )


def make_model(name: str, objective: str, final: float) -> ComparedModel:
    """One of them, whose loss falls to about `final`."""
    config = af.preset(name).replace(d_model=128, attention={"heads": 4, "head_dim": None})
    points = [
        Point(
            step=step,
            tokens=step * 1008,
            flops=step * 6.1e9,
            seconds=step * 0.05,
            training_loss=None if step == 0 else final + 5 * math.exp(-step / 200),
            validation_loss=final + 5.1 * math.exp(-step / 200),
            bits_per_byte=(final + 5.1 * math.exp(-step / 200)) / 2 if objective == "causal" else None,
        )
        for step in range(0, 1001, 100)
    ]
    return ComparedModel(
        name=name,
        spec=name,
        config=config,
        objective=objective,
        parameters=1_049_000,
        parameters_outside_embeddings=786_432,
        flops_per_token=6.1e6,
        steps=992,
        tokens=1_000_000,
        flops=6.1e12,
        bytes=2_900_000,
        order_digest=("cd" * 32, "ef" * 32),
        seconds=49.8,
        tokens_per_second=20_080.0,
        memory_bytes=16_784_000,
        cache_bytes_per_token=0 if objective == "masked" else 2048,
        learning_rate=2e-3,
        trials=(Trial(learning_rate=1e-3, validation_loss=4.4), Trial(learning_rate=2e-3, validation_loss=4.2)),
        notes=("feed_forward.width 512 -> 384, to match parameters",),
        runs=(f"jobs/{name}-0", f"jobs/{name}-1"),
        curves=(Curve(seed=0, points=tuple(points)), Curve(seed=1, points=tuple(points))),
        samples=(Sample(prompt="def main", written="(self):\n    return <b>1</b>"),),
        blanks=(
            Blank(
                before="import ",
                answer="os",
                after="\n",
                guesses=(Guess(text="sys", probability=0.5), Guess(text="os", probability=0.25)),
            ),
        ),
    )


def _panel(
    name: str,
    title: str,
    measure: str,
    values: dict[str, float],
    *,
    lower_is_better: bool = True,
    chance: float | None = None,
    note: str = "",
) -> Panel:
    scores = tuple(
        Score(model=model, value=value, interval=(value - 0.02, value + 0.02), seeds=(value - 0.01, value + 0.01))
        for model, value in values.items()
    )
    return Panel(
        name=name,
        title=title,
        measure=measure,
        lower_is_better=lower_is_better,
        note=note,
        pieces=128,
        chance=chance,
        scores=scores,
        left_out={each: "another objective" for each in _SIZES if each not in values},
    )


def _verdict(panel: str, a: str, b: str, difference: float, *, better: bool) -> Verdict:
    return Verdict(
        panel=panel,
        a=a,
        b=b,
        measure="accuracy" if panel == "cloze" else "bits per byte",
        difference=difference,
        interval=(difference - 0.02, difference + 0.02),
        p=0.001 if better else 0.4,
        p_corrected=0.003 if better else 0.4,
        verdict="better" if better else "not distinguishable at this budget",
    )


def _ablation() -> Ablation:
    effect = Effect(
        field="norm.kind",
        value="rms",
        baseline="layer",
        panel="next_byte",
        measure="bits per byte",
        difference=-0.01,
        interval=(-0.03, 0.01),
        p=0.3,
        p_corrected=0.3,
        verdict="not distinguishable at this budget",
    )
    return Ablation(
        base="llama-nano",
        factors={"norm.kind": ["layer", "rms"]},
        grid={"norm.kind=layer": {"norm.kind": "layer"}, "norm.kind=rms": {"norm.kind": "rms"}},
        effects=(effect,),
    )
