# %% [markdown]
# # The 2017 Transformer translates
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/anyformer/anyformer/blob/main/notebooks/4_transformer_translates.ipynb)
#
# [Attention Is All You Need](https://arxiv.org/abs/1706.03762) was a paper about translation. In this notebook you train
# its model, with an encoder, a decoder, and attention from one to the other, to translate English into German, in about
# a minute. Then you watch it look at the right word of the source for every word that it writes.

# %% tags=["install"]
# %pip install -q "anyformer[notebooks] @ git+https://github.com/anyformer/anyformer"

# %%
import json
import random
from pathlib import Path

import matplotlib.pyplot as plt
import sacrebleu
import torch
from IPython.display import SVG, display

import anyformer as af

plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
)

# %% [markdown]
# ## 1. A parallel text
#
# A translator learns from pairs of sentences. Real collections have millions; for a minute of training we write a small
# grammar that makes pairs of true English and German. It is small, but it has what makes German hard for an English
# speaker, and for a model that would translate word by word:
#
# | | English | German |
# | --- | --- | --- |
# | **gender and case** | *the* dog, *the* cat, *the* horse | *der, die, das*; as an object *den, die, das* |
# | **verb second** | today the man *buys* a book | heute *kauft* der Mann ein Buch |
# | **verb last** in a subordinate clause | because the child *sees* the dog | weil das Kind den Hund *sieht* |
# | **numbers** | twenty-**one** | **ein**undzwanzig, one-and-twenty |


# %%
NOUNS = {  # singular, plural: singular, plural, gender
    ("dog", "dogs"): ("Hund", "Hunde", "m"),
    ("man", "men"): ("Mann", "Männer", "m"),
    ("teacher", "teachers"): ("Lehrer", "Lehrer", "m"),
    ("apple", "apples"): ("Apfel", "Äpfel", "m"),
    ("woman", "women"): ("Frau", "Frauen", "f"),
    ("cat", "cats"): ("Katze", "Katzen", "f"),
    ("mouse", "mice"): ("Maus", "Mäuse", "f"),
    ("flower", "flowers"): ("Blume", "Blumen", "f"),
    ("child", "children"): ("Kind", "Kinder", "n"),
    ("horse", "horses"): ("Pferd", "Pferde", "n"),
    ("book", "books"): ("Buch", "Bücher", "n"),
    ("picture", "pictures"): ("Bild", "Bilder", "n"),
}
VERBS = {
    "sees": "sieht",
    "buys": "kauft",
    "finds": "findet",
    "draws": "zeichnet",
    "loves": "liebt",
}
ADVERBS = {"today": "heute", "tomorrow": "morgen", "often": "oft", "sometimes": "manchmal"}
SUBJECT, OBJECT = {"m": "der", "f": "die", "n": "das"}, {"m": "den", "f": "die", "n": "das"}
ONES = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
)
ONES += " sixteen seventeen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
EINER = (
    "ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn"
)
EINER += " sechzehn siebzehn"
ZEHNER = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"


def number(n):
    """A number from 2 to 99 in both languages."""
    if n < 20:
        return f"{ONES} eighteen nineteen".split()[n - 1], f"{EINER} achtzehn neunzehn".split()[
            n - 1
        ]
    tens, ones = divmod(n, 10)
    ten, zehn = TENS.split()[tens - 2], ZEHNER.split()[tens - 2]
    if ones == 0:
        return ten, zehn
    return f"{ten}-{ONES.split()[ones - 1]}", f"{EINER.split()[ones - 1]}und{zehn}"


def clause(draw):
    """Subject, verb and object in both languages."""
    (subject, _), (subjekt, _, gender) = draw.choice(list(NOUNS.items()))
    (thing, things), (ding, dinge, case) = draw.choice(list(NOUNS.items()))
    verb, zeitwort = draw.choice(list(VERBS.items()))
    english, german = (
        [f"the {subject}", verb, f"the {thing}"],
        [f"{SUBJECT[gender]} {subjekt}", zeitwort],
    )
    if draw.random() < 0.5:
        many, viele = number(draw.randrange(2, 100))
        return [*english[:2], f"{many} {things}"], [*german, f"{viele} {dinge}"]
    return english, [*german, f"{OBJECT[case]} {ding}"]


def sentence(draw):
    """A sentence and its translation."""
    english, (subjekt, zeitwort, objekt) = clause(draw)
    if draw.random() < 0.5:
        adverb, umstand = draw.choice(list(ADVERBS.items()))
        source, target = (
            " ".join([adverb, *english]),
            f"{umstand} {zeitwort} {subjekt} {objekt}",
        )
    else:
        source, target = " ".join(english), f"{subjekt} {zeitwort} {objekt}"
    if draw.random() < 0.5:
        english, (subjekt, zeitwort, objekt) = clause(draw)
        source += f" because {' '.join(english)}"
        target += f", weil {subjekt} {objekt} {zeitwort}"
    return source + ".", target + "."


draw = random.Random(0)
pairs = list(dict.fromkeys(sentence(draw) for _ in range(6500)))
training, test = pairs[:-300], pairs[-300:]

for name, part in (("train", training), ("test", test)):
    Path(f"{name}.en").write_text(
        "".join(f"{source}\n" for source, _ in part), encoding="utf-8"
    )
    Path(f"{name}.de").write_text(
        "".join(f"{target}\n" for _, target in part), encoding="utf-8"
    )

for source, target in test[:5]:
    print(f"{source}\n    {target}")
assert not {source for source, _ in training} & {source for source, _ in test}
print(f"\n{len(training):,} pairs to learn from, {len(test)} others to be judged by")

# %% [markdown]
# ## 2. The model
#
# There are two stacks. The **encoder** reads the whole source at once; every word sees every other. The **decoder** is a
# GPT: it writes the target token by token, and sees only what it has written. Between the two is **cross-attention**,
# which differs from self-attention in one thing: queries come from the decoder, keys and values from the encoder.
#
# $$\operatorname{CrossAttention}(X, Z) = \operatorname{softmax}\!\left(\frac{(X W_Q)(Z W_K)^\top}{\sqrt{d_k}}\right) Z W_V$$
#
# Here $X$ is `[target, d_model]` and $Z$, the encoder's output, `[source, d_model]`, so the weights are a matrix of
# `[target, source]`: for every word that is written, where in the source the decoder looks.
#
# This is the paper's model at a size for small data, a fraction of its width and two layers in each stack.

# %%
config = af.preset(
    "transformer-tiny",
    encoder_layers=2,
    decoder_layers=2,
    dropout=0.1,
    embedding={"dropout": 0.1},
)
display(SVG(af.diagram(config, names=["the 2017 Transformer, small"])))

# %% [markdown]
# ## 3. Train
#
# The decoder reads the right translation shifted by one and predicts each next token of it, all positions at once. This
# is called *teacher forcing*: in training, it continues the truth and not its own mistakes.
#
# Both languages share one vocabulary of 600 byte-pair tokens. Batches have about 2,048 tokens and hold sentences of like
# length, the learning rate warms up, and a tenth of the target's probability is spread over the vocabulary (*label
# smoothing*), all as in the paper. It takes about a minute.

# %% language="bash" magic_args="-e"
# anyformer train transformer-tiny --name translator \
#     --source train.en --target train.de --validation test.en test.de \
#     --tokenizer bpe:600 --batch-tokens 2048 --steps 400 --evaluate-every 40 \
#     --model.encoder-layers 2 --model.decoder-layers 2 \
#     --model.dropout 0.1 --model.embedding.dropout 0.1

# %%
metrics = [
    json.loads(line) for line in Path("runs/translator/metrics.jsonl").read_text().splitlines()
]
curve = {row["step"]: row["validation_loss"] for row in metrics if "validation_loss" in row}
figure, axes = plt.subplots(figsize=(6, 2.8))
axes.plot(curve.keys(), curve.values(), marker="o", markersize=3)
axes.set(
    xlabel="step",
    ylabel="nats per token",
    title="Loss on sentences that it has not seen",
    yscale="log",
)
plt.show()

losses = list(curve.values())
assert losses[-1] < 0.25 < 5 < losses[0]

# %% [markdown]
# ## 4. How good is it?
#
# Translations are judged by **BLEU** ([Papineni et al. 2002](https://aclanthology.org/P02-1040)): the share of words,
# pairs, triples and quadruples of the output that are in a reference translation, as a geometric mean, with a penalty
# for being short. We take the number from [sacrebleu](https://github.com/mjpost/sacrebleu), as papers do, and put the
# same model with random weights beside it.

# %%
model, tokenizer = af.load("runs/translator")
sources, references = [source for source, _ in test], [target for _, target in test]
torch.manual_seed(0)
untrained = af.build(model.config).eval()


def bleu(model, **options):
    written = af.generate(
        model, tokenizer, sources, max_new_tokens=48, batch_size=100, **options
    )
    return sacrebleu.corpus_bleu(written, [references]).score, written


before, nonsense = bleu(untrained)
after, written = bleu(model)
print(f"BLEU {before:.1f} before training, {after:.1f} after it\n")
for row in range(4):
    print(f"{sources[row]}\n    {written[row]}")
assert before < 5
assert after > 90

# %% [markdown]
# At each step greedy decoding takes the likeliest token, which need not lead to the likeliest sentence. *Beam search*
# keeps the best few beginnings, here four. On hard text it is worth a point or two of BLEU; where the model is nearly
# certain, as here, nothing:

# %%
with_beams, _ = bleu(model, beams=4)
right = sum(ours == reference for ours, reference in zip(written, references))
print(f"BLEU: greedy {after:.1f}, four beams {with_beams:.1f}")
print(f"{right} of {len(test)} sentences are right word for word")
assert abs(with_beams - after) < 3
assert right > 0.8 * len(test)

# %% [markdown]
# And where it goes wrong:

# %%
wrong = [row for row in range(len(test)) if written[row] != references[row]]
for row in wrong[:3]:
    print(f"{sources[row]}\n    {written[row]}\n    {references[row]}  (right)")

# %% [markdown]
# ## 5. Where does it look?
#
# This is what nobody told it: which German word belongs to which English one. The model translates a sentence, and
# `af.attention` gives the weights of cross-attention, `[layers, heads, target, source]`. A row shows where the decoder
# looks while it predicts the token *after* the one on the left.

# %%
text = "today the man buys forty-two books because the child sees the dog."
found = af.attention(model, tokenizer, text)
weights = found.cross.mean(dim=1)[-1]  # last layer, mean of the heads: [target, source]
target, source = (
    [token.strip() for token in found.tokens],
    [token.strip() for token in found.source_tokens],
)
assert torch.allclose(weights.sum(dim=-1), torch.ones(len(target)), atol=1e-4)

figure, axes = plt.subplots(figsize=(7, 6))
axes.imshow(weights, cmap="Blues", vmin=0)
axes.set_xticks(range(len(source)), source, rotation=60, ha="right")
axes.set_yticks(
    range(len(target)), [f"{now} → {then}" for now, then in zip(target, [*target[1:], ""])]
)
axes.set(
    xlabel="source", ylabel="just written → next", title="Cross-attention of the last layer"
)
plt.show()

# %% [markdown]
# Three things to see.
#
# - The line jumps where the languages differ. After *heute* the verb comes first, and at the end the decoder goes back to
#   *sees*, for the verb that German puts last.
# - For an article, *der, das, den*, it looks at *the* and at the noun that follows: only the noun tells its gender.
# - *zweiundvierzig* is read from two places, *forty* and *-two*.
#
# It can be said in numbers. While the decoder predicts a word, which token of the source has the largest weight?


# %%
def looks_at(word):
    """The source token with the largest weight while `word` is predicted."""
    return source[weights[target.index(word) - 1].argmax()]


for word in ("kauft", "Kind", "Hund", "sieht"):
    print(f"{word:>6} is read from {looks_at(word)}")
assert looks_at("kauft") == "buys"
assert looks_at("sieht") == "sees"

# %% [markdown]
# All heads of all layers, of the encoder, the decoder and between them: point at a token.

# %%
found

# %% [markdown]
# ## 6. Try it
#
# Sentences of your own, from the words above. What happens to a word that it has never seen? To a sentence with two
# *because*? The model has no rules, only habits, and these end where its training text ends.

# %%
for source_text in (
    "sometimes the teacher loves ninety-nine mice because the cat finds the book.",
    "the apple draws the man because the man draws the apple because the cat sees the apple.",
    "the king buys a castle.",
):
    (translation,) = af.generate(model, tokenizer, source_text, max_new_tokens=48)
    print(f"{source_text}\n    {translation}")

# %% [markdown]
# With real pairs the command stays the same, and takes longer. On Multi30k, 29,000 captions of pictures, the same kind
# of model reaches 42 BLEU after 42 minutes on two cores ([measured](../docs/measurements/quality.md#multi30k-bleu)):
#
# ```
# anyformer train transformer-tiny --source train.en --target train.de --minutes 45
# ```
#
# What GPT, BERT and T5 made of this model is the subject of [the second notebook](2_gpt_bert_t5_llama.ipynb).
