# %% [markdown]
# # From laptop to cluster, and back to a phone
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/anyformer/anyformer/blob/main/notebooks/5_laptop_cluster_phone.ipynb)
#
# A model begins on a laptop, grows on a cluster, and ends up on a phone. In this notebook one small LLaMA goes all the
# way: it is trained by one process, then by two with `ddp`, `fsdp` and DeepSpeed, with the same losses each time; its
# weights are quantized; it becomes a GGUF file that llama.cpp itself runs; and Keras reads the same directory.

# %% tags=["install"]
# %pip install -q "anyformer[notebooks,deepspeed,verify] @ git+https://github.com/anyformer/anyformer"

# %%
import copy
import importlib.util
import json
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch

import anyformer as af

plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
)

plain = str.maketrans("’‘“”–—", "''\"\"--")
# Python's language reference, which every Python brings
text = "\n\n".join(topics.values()).translate(plain)
Path("reference.txt").write_text(text[:250_000], encoding="utf-8")
Path("held-out.txt").write_text(text[250_000:290_000], encoding="utf-8")

# %% [markdown]
# ## 1. One process
#
# Training is one command. Everything that decides the result is fixed: the data, the order of the batches, the seed. So
# the same command gives the same losses, and a command that shares the work among processes must give them, too.

# %% language="bash" magic_args="-e"
# anyformer train llama-nano --data reference.txt --validation held-out.txt \
#     --tokenizer bpe:1024 --context 64 --batch-size 16 --steps 40 --log-every 1 --dtype float32 --device cpu --name one

# %% [markdown]
# ## 2. Two processes
#
# There are three ways to share a training step, and they differ in what each process has to keep in memory. With $P$
# parameters, $N$ processes and AdamW, whose two moments take 4 bytes each, in bytes:
#
# | engine | weights | gradients | moments |
# | --- | --- | --- | --- |
# | `ddp` | $4P$ | $4P$ | $8P$ |
# | `deepspeed` (ZeRO 2) | $4P + 4P/N$ | $4P/N$ | $8P/N$ |
# | `fsdp` | $4P/N$ | $4P/N$ | $8P/N$ |
#
# **ddp**, *distributed data parallel*: every process has the whole model and computes the gradient of its share of the
# batch, then all gradients are averaged.
# **ZeRO** ([Rajbhandari et al. 2019](https://arxiv.org/abs/1910.02054)): each process keeps the moments and gradients of
# its share of the weights only.
# **fsdp**, *fully sharded*: it keeps only its share of the weights as well, and gathers those of a block just before the
# block is computed.
#
# The flag is the only difference. Here are two processes on one machine, which talk over *gloo*; GPUs would use *nccl*.

# %% language="bash" magic_args="-e"
# train="anyformer train llama-nano --data reference.txt --validation held-out.txt \
#     --tokenizer bpe:1024 --context 64 --batch-size 16 --steps 40 --log-every 1 --dtype float32 --device cpu"
# $train --engine ddp --processes 2 --name ddp
# $train --engine fsdp --processes 2 --name fsdp
# $train --engine deepspeed --zero-stage 2 --processes 2 --name deepspeed

# %% [markdown]
# Optimizations must never change answers. Each run has logged its loss at every step:


# %%
def losses(run):
    lines = Path("runs", run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}


curves = {run: losses(run) for run in ("one", "ddp", "fsdp", "deepspeed")}
assert all(len(curve) == 40 for curve in curves.values())

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
for run, curve in curves.items():
    left.plot(curve.keys(), curve.values(), label=run)
    if run != "one":
        right.plot(
            curve.keys(),
            [abs(loss - curves["one"][step]) + 1e-9 for step, loss in curve.items()],
            label=run,
        )
left.set(xlabel="step", ylabel="nats per token", title="Loss: four curves, one line")
right.set(
    xlabel="step", yscale="log", ylim=(1e-9, 1e-2), title="Distance from that of one process"
)
left.legend(frameon=False)
right.legend(frameon=False)
plt.show()

for run in ("ddp", "fsdp", "deepspeed"):
    worst = max(abs(loss - curves["one"][step]) for step, loss in curves[run].items())
    print(f"{run:9} largest difference from one process: {worst:.1e}")
    assert worst < 1e-4

# %% [markdown]
# What is left are the last digits of floating-point numbers, which depend on the order of a sum. The weights agree as
# well, and every run has left the same kind of directory, whatever the engine was:

# %%
one, tokenizer = af.load("runs/one")
for run in ("ddp", "fsdp", "deepspeed"):
    other, _ = af.load(f"runs/{run}")
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    worst = max((a - b).abs().max().item() for a, b in pairs)
    print(f"{run:9} largest difference of a weight: {worst:.1e}")
    assert worst < 1e-3

# %% [markdown]
# ## 3. A cluster
#
# With four machines of eight GPUs the command is the same, started on each by `torchrun`, which says who is who:
#
# ```
# torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node0:29500 \
#     --module anyformer train llama-3.1-8b --data /shared/text --runs /shared/runs --engine fsdp
# ```
#
# Will it fit? The table above, for a model of 1.5 billion parameters on 8 GPUs:

# %%
P, N = 1.5e9, 8
memory = {
    "one process, ddp": (4 * P, 4 * P, 8 * P),
    "deepspeed, ZeRO 2": (4 * P + 4 * P / N, 4 * P / N, 8 * P / N),
    "fsdp": (4 * P / N, 4 * P / N, 8 * P / N),
}
figure, axes = plt.subplots(figsize=(7, 1.9))
start = [0.0] * len(memory)
for part, name in enumerate(("weights", "gradients", "moments")):
    sizes = [values[part] / 1e9 for values in memory.values()]
    axes.barh(list(memory), sizes, left=start, label=name)
    start = [a + b for a, b in zip(start, sizes)]
axes.invert_yaxis()
axes.set(xlabel="GB in each process, before activations")
axes.legend(frameon=False, loc="lower right")
plt.show()
assert start == [24.0, 9.0, 3.0]

# %% [markdown]
# Activations come on top, and they decide as often. `anyformer plan` counts everything, by running the step on tensors
# that have shapes but no data, for a GPU that you needn't have:

# %% language="bash" magic_args="-e"
# anyformer plan llama-3.2-1b --batch-size 4 --context 1024 --device a100 --no-calibrate

# %% [markdown]
# ## 4. Smaller numbers
#
# Forty steps show that four engines agree, and teach a model next to nothing. Before it goes to the phone it trains on,
# for a minute:

# %% language="bash" magic_args="-e"
# anyformer train llama-nano --data reference.txt --validation held-out.txt \
#     --tokenizer bpe:1024 --context 64 --batch-size 16 --steps 600 --dtype float32 --device cpu --name phone

# %% [markdown]
# A phone has little memory, and generating a token means to read every weight once, so small weights are also fast ones.
# *Quantization* stores a group of 32 neighboring weights as integers of 8 or 4 bits with a scale in common:
#
# $$w_i \approx s\, q_i, \qquad q_i \in \{-127, \dots, 127\}, \qquad s = \max_i |w_i| / 127$$
#
# The 8-bit form is three lines:

# %%
trained, tokenizer = af.load("runs/phone")
weight = trained.decoder.blocks[0].feed_forward.up.weight.detach()  # [width, d_model]
groups = weight.unflatten(1, (-1, 32))  # [width, groups, 32]
scale = groups.abs().amax(dim=-1, keepdim=True) / 127
integers = (groups / scale).round().to(torch.int8)
restored = (integers * scale).flatten(1)

error = (restored - weight).norm() / weight.norm()
small = integers.nelement() + scale.nelement() * 2
print(f"{weight.nelement() * 4:,} bytes -> {small:,}; error {error:.2%}")
assert error < 0.01

# %% [markdown]
# `af.quantize` does that to a whole model. What does it cost in quality? The loss on the held-out text says it.

# %%
ids = torch.tensor(tokenizer.encode(Path("held-out.txt").read_text(encoding="utf-8")))
rows = ids[: len(ids) // 65 * 65].view(-1, 65)  # [rows, context + 1]


@torch.no_grad()
def loss(model):
    return model.eval()(rows[:, :-1], targets=rows[:, 1:]).loss.item()


quality = {"float32": loss(trained)}
for kind in ("int8", "int4"):
    quality[kind] = loss(af.quantize(copy.deepcopy(trained), kind))
print({kind: round(value, 4) for kind, value in quality.items()})
assert abs(quality["int8"] - quality["float32"]) < 0.01
assert abs(quality["int4"] - quality["float32"]) < 0.1

# %% [markdown]
# ## 5. One file for llama.cpp
#
# [llama.cpp](https://github.com/ggml-org/llama.cpp) runs on phones, Raspberry Pis and in browsers, and opens GGUF: one
# file with weights, tokenizer and settings. `--verify` gives the file to llama.cpp itself, and compares the ids of sample
# texts, the logits and a greedy continuation. If one differs, the command fails, and so would this notebook.

# %% language="bash" magic_args="-e"
# for type in f16 q8_0 q4_0; do
#     anyformer convert runs/phone phone-$type.gguf --type $type --verify
# done

# %% [markdown]
# Read back, the files give the same model, but for what rounding took. Size against quality:

# %%
files = {"f16": "phone-f16.gguf", "q8_0": "phone-q8_0.gguf", "q4_0": "phone-q4_0.gguf"}
size = {kind: Path(file).stat().st_size / 1e6 for kind, file in files.items()}
found = {kind: loss(af.load(file, dtype="float32")[0]) for kind, file in files.items()}

figure, axes = plt.subplots(figsize=(5, 2.6))
axes.scatter(size.values(), found.values())
for kind in files:
    axes.annotate(kind, (size[kind], found[kind]), textcoords="offset points", xytext=(6, 4))
axes.axhline(quality["float32"], color="gray", linestyle=":", label="float32")
axes.set(xlabel="megabytes", ylabel="nats per token", title="What a smaller file costs")
axes.ticklabel_format(useOffset=False)
axes.margins(0.25)
axes.legend(frameon=False)
plt.show()
assert size["q4_0"] < size["q8_0"] < size["f16"]
assert abs(found["f16"] - quality["float32"]) < 0.002
assert abs(found["q8_0"] - quality["float32"]) < 0.01

# %% [markdown]
# On the phone it is then `llama-cli -m phone-q8_0.gguf -p "The statement"`. Here the library reads the same file:

# %%
model, _ = af.load(files["q8_0"])
print(
    "The statement"
    + af.generate(
        model, tokenizer, ["The statement"], max_new_tokens=40, temperature=0.7, seed=1
    )[0]
)

# %% [markdown]
# ## 6. The same directory elsewhere
#
# `runs/phone/model` is a directory in Hugging Face's format. There is no export: `transformers`, vLLM and KerasHub open it
# as it is. The first of them came with the install cell:

# %%
import transformers

theirs = transformers.AutoModelForCausalLM.from_pretrained(
    "runs/phone/model", dtype=torch.float32
)
with torch.no_grad():
    expected = theirs(rows[:1, :-1]).logits
    ours = trained(rows[:1, :-1]).logits
assert torch.allclose(ours, expected, atol=1e-3)
difference = (ours - expected).abs().max()
print(f"{type(theirs).__name__}: largest difference of a logit {difference:.1e}")

# %% [markdown]
# And Keras, if it is installed (`pip install keras-hub tensorflow`; [Keras](../docs/keras.md) has the other families):

# %%
if importlib.util.find_spec("keras_hub") and importlib.util.find_spec("tensorflow"):
    import os

    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras_hub

    eps = trained.config.norm.eps
    backbone = keras_hub.models.Llama3Backbone.from_preset(
        "runs/phone/model", layer_norm_epsilon=eps
    )
    keras_model = keras_hub.models.Llama3CausalLM(backbone=backbone)
    tokens = rows[:1, :-1].to(torch.int32).numpy()
    keras_logits = torch.tensor(
        keras_model(
            {"token_ids": tokens, "padding_mask": (tokens >= 0).astype("int32")}
        ).numpy()
    )
    assert torch.allclose(ours, keras_logits, atol=1e-2)
    print(f"Keras: largest difference of a logit {(ours - keras_logits).abs().max():.1e}")
else:
    print("Keras is not installed here")

# %% [markdown]
# One model, five programs, one set of numbers. [Scaling](../docs/scaling.md), [quantization](../docs/quantization.md) and
# [GGUF](../docs/gguf.md) have the details.
