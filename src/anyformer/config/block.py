"""The blocks of a model, as data: attention, feed-forward, norms."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from typing_extensions import override

from anyformer.config.parts import Count, Factor, PositionConfig, Rate, Size, Softcap
from anyformer.schema import Checked, Rule

Window = Annotated[int, Rule(lambda number: number >= 1, "is at least 1, the token itself")]
Pattern = Annotated[str, Rule(lambda text: {*text} <= {*"o."} and len(text) <= 10_000, 'is made of "o" and "."')]


@dataclass(frozen=True, kw_only=True)
class LatentConfig(Checked, part="attention.latent"):
    """Multi-head latent attention (DeepSeek-AI 2024, 2405.04434, section 2.1): keys and values are made of a narrow
    vector for each token, which is all that a cache holds."""

    rank: Count
    """Width of that vector (DeepSeek's kv_lora_rank)."""
    rotary_dim: Annotated[int, Rule(lambda number: number > 0 and number % 2 == 0, "is even")]
    """Numbers at the end of each head's query that are rotated; their key is one for all heads, and cached as well."""
    value_dim: Count
    """Width of a head's value; that of its query and key is `head_dim`."""
    query_rank: Count | None = None
    """Width of a vector of which the queries are made in the same way; None: they are made of the hidden state."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Checked, part="attention"):
    """Multi-head attention (Vaswani et al. 2017, section 3.2), and what later models changed in it.

    ::

        heads    8 8 8 8 8 8 8 8      queries
        kv_heads 8 8 8 8 8 8 8 8      MHA: one key/value head for each query head
                 2 2 2 2              GQA: a group of query heads shares one
                 1                    MQA: all share one
    """

    heads: Count
    kv_heads: Count | None = None
    """Key/value heads; None: as many as `heads` (Ainslie et al. 2023)."""
    head_dim: Count | None = None
    """Width of one head; None: d_model / heads."""
    bias: bool = True
    """Bias on the query, key and value projections."""
    output_bias: bool = True
    """Bias on the output projection (Qwen2 has it only on the three others)."""
    scale: float | None = None
    """Factor on the scores; None: 1 / sqrt(head_dim). T5 uses 1 and folds it into the initialization."""
    scale_by_layer: bool = False
    """Divide the scores of layer i by i + 1 as well (the Mistral project's GPT-2s)."""
    window: Window | None = None
    """A token sees this many tokens, itself included (Mistral's sliding window); None: all of them."""
    qk_norm: Literal["none", "head", "width"] = "none"
    """An RMS norm on the queries and keys of each head (Qwen3), or of all heads together (OLMo 2)."""
    softcap: Softcap | None = None
    """Bound on the scores, ``softcap * tanh(scores / softcap)`` (Gemma 2, section 2)."""
    sinks: bool = False
    """A learned score of each head that takes a share of the softmax and adds nothing (gpt-oss, section 2.3)."""
    latent: LatentConfig | None = None
    """Keys and values made of a latent (DeepSeek); None: of the hidden state."""
    dropout: Rate = 0.0
    """Dropout on the attention weights."""

    @override
    def _faults(self) -> Iterator[str]:
        if self.latent is not None:
            yield from self._faulty_latent()
        if self.heads % (self.kv_heads or self.heads) != 0:
            yield f"kv_heads: {self.heads} query heads can't share {self.kv_heads} key/value heads evenly"

    def _faulty_latent(self) -> Iterator[str]:
        if self.kv_heads not in (None, self.heads):
            yield "kv_heads: latent attention makes keys and values of every head"
        for name, plain in (("qk_norm", "none"), ("softcap", None), ("sinks", False), ("scale_by_layer", False)):
            if getattr(self, name) != plain:
                yield f"{name}: latent attention has none"


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(Checked, part="feed_forward.experts"):
    """A mixture of experts (Shazeer et al. 2017): several feed-forward networks, of which a router chooses some for
    each token::

        y = sum of p[e] * network[e](x) over the largest p,  p = softmax(router(x))
    """

    count: Annotated[int, Rule(lambda number: 2 <= number <= 10_000, "must lie in [2, 10,000]")]
    """Networks, each as wide as `feed_forward.width`."""
    used: Count
    """Networks that each token is computed by."""
    router_bias: bool = False
    """Bias on the router's logits (gpt-oss)."""
    normalized: bool = True
    """The weights of the chosen networks sum to 1 (Mixtral; without it OLMoE)."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """From the router's logits to p (DeepSeek V3: each by itself)."""
    scale: Factor = 1.0
    """Factor on the weights of the chosen networks (DeepSeek's routed_scaling_factor)."""
    shared: Size = 0
    """Networks that compute every token beside those that are chosen, as one that is wider (DeepSeek)."""
    groups: Count = 1
    """Groups of neighboring networks (DeepSeek V2, section 2.2.2: those on one machine)."""
    used_groups: Count = 1
    """The groups that a token's networks are chosen from."""
    group_best: Annotated[int, Rule(lambda number: number in (1, 2), "is 1 or 2")] = 1
    """A group is as good as its best network (DeepSeek V2), or as its two best together (V3)."""
    correction: bool = False
    """A bias on p that is added for the choice alone, and set by how often each is chosen (DeepSeek V3, 2.1.2)."""
    balance: Annotated[float, Rule(lambda number: 0 <= number <= 100, "must lie in [0, 100]")] = 0.0
    """Factor of the load-balancing loss that is added in training (Fedus et al. 2021, equation 4)."""

    @override
    def _faults(self) -> Iterator[str]:
        if self.used > self.count:
            yield f"used: {self.used} of {self.count} experts can't be chosen"
        size = self.count // self.groups
        if self.count % self.groups or size < self.group_best:
            yield f"groups: {self.count} experts make no {self.groups} groups of {self.group_best} or more"
        elif not self.used <= self.used_groups * size <= self.count:
            yield f"used_groups: {self.used} experts can't be chosen from {self.used_groups} groups of {size}"


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig(Checked, part="feed_forward"):
    """The feed-forward block: ``down(act(up(x)))``, or gated ``down(act(gate(x)) * up(x))`` (Shazeer 2020)."""

    width: Count
    activation: str = "gelu"
    """A name in `anyformer.blocks.feed_forward.ACTIVATIONS`: relu, gelu, gelu_tanh, silu, ..."""
    gated: bool = False
    limit: Softcap | None = None
    """Bound of the gate from above, and of up(x) on both sides (gpt-oss)."""
    up_offset: float = 0.0
    """A number added to up(x) before it is multiplied by the gate (gpt-oss: 1)."""
    bias: bool = True
    dropout: Rate = 0.0
    """Dropout on the inner activations."""
    experts: ExpertsConfig | None = None
    """None: one network for all tokens."""

    @override
    def _faults(self) -> Iterator[str]:
        for name, plain in (("limit", None), ("up_offset", 0.0)):
            if getattr(self, name) != plain and not self.gated:
                yield f"{name}: only a gated feed-forward has it"


@dataclass(frozen=True, kw_only=True)
class NormConfig(Checked, part="norm"):
    """Normalization, and where it sits.

    ::

        post            x = norm(x + f(x))               2017, BERT
        pre             x = x + f(norm(x))               GPT-2, LLaMA
        branch          x = x + norm(f(x))               OLMo 2
        sandwich        x = x + norm2(f(norm1(x)))       Gemma 2
        parallel        x = x + f(norm1(x)) + g(norm2(x))   GPT-NeoX: attention f and feed-forward g side by side
        parallel_shared x = x + f(norm(x)) + g(norm(x))     Phi, Cohere
    """

    kind: str = "layer"
    """A name in `anyformer.blocks.norm.NORMS`: layer (Ba et al. 2016), rms (Zhang & Sennrich 2019), layer_no_bias,
    rms_offset, with 1 + weight (Gemma), or rms_plain, without a weight."""
    eps: Annotated[float, Rule(lambda number: number > 0, "must be positive")] = 1e-5
    placement: Literal["pre", "post", "branch", "sandwich", "parallel", "parallel_shared"] = "pre"
    final: bool | None = None
    """One more norm after the last block; None: unless each block ends with one. `torch.nn.Transformer` has one after
    post-norm blocks, too."""

    first: bool = True
    """Before the attention of the first block as well; False: the embedding's norm is in its place (ModernBERT)."""

    @property
    def has_final(self) -> bool:
        """Whether a norm follows the last block."""
        return self.placement != "post" if self.final is None else self.final

    @property
    def is_parallel(self) -> bool:
        """Whether attention and feed-forward read the same residual stream."""
        return self.placement.startswith("parallel")


@dataclass(frozen=True, kw_only=True)
class OtherLayers(Checked, part="other_layers"):
    """Layers that differ from the others of the model: which they are, and what they have in its place.

    ::

        first="",   then="o."       layers 0, 2, 4 ...                  Gemma 2
        first="",   then="ooooo."   five of six                         Gemma 3
        first="..", then="o"        all but the first two               Qwen2
    """

    first: Pattern = ""
    """The first layers, an `o` for each one that differs and a `.` for each one that does not."""
    then: Annotated[Pattern, Rule(bool, "has at least one layer")] = "o"
    """The layers after them, repeated."""
    window: Window | None = None
    """Their window, as of AttentionConfig; None: they see all tokens."""
    position: PositionConfig | None = None
    """Their positions, rotary or none; None: those of the model."""
    feed_forward: FeedForwardConfig | None = None
    """Their feed-forward; None: that of the model."""

    def __contains__(self, layer: int) -> bool:
        rest = layer - len(self.first)
        return (self.first[layer] if rest < 0 else self.then[rest % len(self.then)]) == "o"

    @classmethod
    def from_list(cls, others: list[bool], **fields: Any) -> "OtherLayers | None":
        """The shortest pattern for layers of which these differ; None: none does."""
        text, count = "".join(".o"[other] for other in others), len(others)
        if "o" not in text:
            return None
        period = next(n for n in range(1, count + 1) if text.startswith(text[n:]))
        start = len(text.rstrip(text[-1]))
        if start + 1 < period:
            return cls(first=text[:start], then=text[-1], **fields)
        return cls(then=text[:period], **fields)

    @override
    def _faults(self) -> Iterator[str]:
        if self.position is not None and self.position.kind not in ("rotary", "none"):
            yield "position: positions that differ by layer are rotary or none"
