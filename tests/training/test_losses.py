"""Losses equal those of TRL and sentence-transformers, and the parts of a batch add up to the batch."""

import math
from collections import defaultdict
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import anyformer as af
from anyformer.blocks import TextPooling
from anyformer.blocks import head as heads
from anyformer.config import PoolingConfig
from anyformer.data.batch import IGNORED, Batch, EmbeddingBatch, PreferenceBatch
from anyformer.errors import UserError
from anyformer.training.losses import (
    EMBEDDING_LOSSES,
    EmbeddingLoss,
    LossModule,
    PreferenceLoss,
    answer_log_probabilities,
    pair_class,
)
from anyformer.training.strategies.base import model_inputs
from tests.parity import hf_models, trace
from tests.parity.conversion import ours_of
from tests.parity.model_spec import ragged

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def small(**changes: Any) -> af.Transformer:
    torch.manual_seed(0)
    config = af.preset("llama-nano", vocab_size=40, d_model=16, decoder_layers=2, feed_forward={"width": 24})
    return af.build(config.replace(**{"attention": {"heads": 2}, **changes})).eval()


def small_encoder(**changes: Any) -> af.Transformer:
    torch.manual_seed(0)
    config = af.preset("bert-tiny", vocab_size=40, d_model=16, feed_forward={"width": 24}, max_length=32)
    head = {"kind": "none", "transform": None, "bias": "none"}
    return af.build(config.replace(head=head, init={"std": 0.3}, **changes)).eval()


def preferences(vocab: int, pairs: int, seed: int) -> PreferenceBatch:
    """Answers of different lengths after prompts of different lengths, padded on the right."""
    chance = np.random.default_rng(seed)
    time = 12
    tokens = chance.integers(4, vocab, (2 * pairs, time))
    targets = np.full_like(tokens, IGNORED)
    mask = np.zeros(tokens.shape, dtype=bool)
    for row, text in enumerate(tokens):
        begin = int(chance.integers(1, 6))
        end = int(chance.integers(begin + 1, time + 1)) if row else time
        mask[row, :end] = True
        targets[row, begin - 1 : end - 1] = text[begin:end]
    reference = chance.normal(-5, 3, 2 * pairs).astype(np.float32)
    return PreferenceBatch(tokens=tokens, targets=targets, mask=mask, reference=reference)


def tensors(batch: Batch) -> dict[str, Tensor]:
    return model_inputs(batch, torch.device("cpu"))


def value(module: LossModule, batch: Batch, **settings: Any) -> Tensor:
    return module(**tensors(batch), return_logits=False, **settings)


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}


def assert_split(module: LossModule, batch: Batch, parts: int = 3) -> None:
    """The parts' losses, each weighted by what it predicts, are the batch's, and so are their gradients."""
    whole = value(module, batch)
    exact = gradients(module, whole)
    shares = [value(module, part) * (part.predicted / batch.predicted) for part in batch.split(parts)]
    assert len(shares) > 1
    total = torch.stack(shares).sum()
    torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-6)
    summed = gradients(module, total)
    assert summed.keys() == exact.keys()
    for name, gradient in exact.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


# preferences


def trl_loss(model: Any, batch: PreferenceBatch, beta: float) -> Tensor:
    """What DPOTrainer computes of a batch: its own `compute_loss`, without the trainer around it."""
    trainer: Any = pytest.importorskip("trl", reason="TRL is the reference of DPO").DPOTrainer
    utils = pytest.importorskip("trl.trainer.utils")
    self: Any = trainer.__new__(trainer)
    settings: dict[str, Any] = {
        "beta": beta,
        "precompute_ref_logps": True,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0],
        "label_smoothing": 0.0,
        "use_weighting": False,
        "aux_loss_enabled": False,
        "model": model,
        "args": SimpleNamespace(max_length=None),
        "accelerator": SimpleNamespace(
            device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, parallelism_config=None
        ),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    vars(self).update(settings)
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    ours = tensors(batch)
    completion = F.pad(ours["targets"][:, :-1] != IGNORED, (1, 0))
    order = torch.arange(len(completion)).unflatten(0, (-1, 2)).t().flatten()  # all chosen, then all rejected
    chosen, rejected = ours["reference"][order].chunk(2)
    inputs = {
        "input_ids": ours["tokens"][order],
        "attention_mask": ours["mask"][order].long(),
        "completion_mask": completion[order].long(),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return self.compute_loss(model, inputs)


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM"])
@settings(max_examples=12)
@given(data=st.data())
def test_dpo_is_that_of_trl(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    assume(not drawn.is_dynamic)  # whose angles are those of the longest text of the batch there
    theirs: Any = drawn.build()
    ours = ours_of(theirs)
    batch = preferences(drawn.vocab_size, data.draw(st.integers(1, 3)), data.draw(st.integers(0, 99)))
    beta = data.draw(st.sampled_from((0.1, 0.5)))
    loss, expected = value(PreferenceLoss(ours, beta), batch), trl_loss(theirs, batch, beta)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    found, exact = trace.our_gradients(ours), trace.their_gradients(theirs)
    assert found.keys() == exact.keys()
    largest = max(float(gradient.abs().max()) for gradient in exact.values())
    for name, gradient in exact.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-4 * largest, msg=name)


def test_dpo_is_ln_2_before_the_first_step() -> None:
    model, batch = small(), preferences(40, 4, 1)
    given_ = {name: tensor for name, tensor in tensors(batch).items() if name != "reference"}
    with torch.no_grad():
        reference = answer_log_probabilities(model, **given_)
    loss = value(PreferenceLoss(model), PreferenceBatch(**{**_fields(batch), "reference": reference.numpy()}))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)


def _fields(batch: Batch) -> dict[str, Any]:
    return {field.name: getattr(batch, field.name) for field in fields(batch)}


def test_smoothing_takes_a_share_of_the_pairs_for_swapped() -> None:
    model, batch = small(), preferences(40, 3, 2)
    swapped = {
        name: None if array is None else array.reshape(3, 2, *array.shape[1:])[:, ::-1].reshape(array.shape)
        for name, array in _fields(batch).items()
    }
    module = PreferenceLoss(model, beta=0.3)
    plain, other = value(module, batch), value(module, PreferenceBatch(**{k: _copy(v) for k, v in swapped.items()}))
    assert abs(plain - other) > 0.01
    torch.testing.assert_close(value(module, batch, label_smoothing=0.2), 0.8 * plain + 0.2 * other)


def _copy(array: Any) -> Any:
    return None if array is None else array.copy()


@pytest.mark.parametrize("stacks", ["decoder", "both"])
def test_log_probabilities_are_those_of_the_logits(stacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = small(), tensors(preferences(40, 3, 3))
    more = {}
    if stacks == "both":
        torch.manual_seed(0)
        model = af.build(af.preset("t5-nano", vocab_size=40, d_model=16, attention={"heads": 2, "head_dim": 4})).eval()
        more = {"source": torch.randint(40, (6, 7)), "source_mask": ragged([7, 3, 5, 1, 2, 7], "right")}
    tokens, targets, mask = batch["tokens"], batch["targets"], batch["mask"]
    logits = model(tokens, mask=mask, **more).logits
    assert logits is not None
    of_tokens = logits.log_softmax(dim=-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    expected = of_tokens.masked_fill(targets == IGNORED, 0.0).sum(dim=1)
    expected.square().sum().backward()
    exact = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    for most in (1 << 25, 40 * 5):
        monkeypatch.setattr(heads, "_MAX_LOGITS", most)
        found = answer_log_probabilities(model, tokens, targets, mask, **more)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients(model, found.square().sum()).items():
            torch.testing.assert_close(gradient, exact[name], rtol=1e-4, atol=1e-4, msg=name)


def test_logits_are_computed_of_answers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = small(), preferences(40, 3, 3)
    rows: list[int] = []
    head: Any = model.head
    scored = head.forward
    monkeypatch.setattr(head, "forward", lambda x, **rest: rows.append(x.numel() // 16) or scored(x, **rest))
    monkeypatch.setattr(heads, "_MAX_LOGITS", 40 * 5)
    value(PreferenceLoss(model), batch)
    answers = int((batch.targets != IGNORED).sum())
    assert sum(rows) == answers < batch.tokens.size
    assert max(rows) == 5


def test_rows_without_an_answer_count_for_nothing() -> None:
    """As those of a process that has no rows of its own."""
    model, batch = small(), preferences(40, 2, 4)
    empty = PreferenceBatch(**{**_fields(batch), "targets": np.full_like(batch.targets, IGNORED)})
    loss = value(PreferenceLoss(model), empty)
    assert loss.isfinite()
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


def test_a_preference_needs_a_language_model() -> None:
    with pytest.raises(ValueError, match="only a language model"):
        value(PreferenceLoss(small_encoder()), preferences(40, 1, 1))


# embeddings


class TheirEmbeddings(nn.Module):
    """The end of a sentence-transformers model: its losses ask a model for "sentence_embedding"."""

    device = torch.device("cpu")

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}


LOSSES = {
    "in_batch_negatives": "MultipleNegativesRankingLoss",
    "cosine": "CosineSimilarityLoss",
    "triplet": "TripletLoss",
    "class_triplet": "BatchAllTripletLoss",
}


def their_loss(
    kind: str, model: nn.Module, features: list[dict[str, Tensor]], targets: Tensor, margin: float
) -> Tensor:
    made = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="the reference")
    options: dict[str, Any] = {"triplet": {"triplet_margin": margin}, "class_triplet": {"margin": margin}}.get(kind, {})
    return getattr(made, LOSSES[kind])(model, **options)(features, targets)


def draw_embedding(data: st.DataObject, kind: str) -> tuple[int, int, Tensor]:
    """Examples, texts of each, and targets."""
    count = data.draw(st.integers(2, 6))
    texts = {"in_batch_negatives": data.draw(st.integers(2, 4)), "cosine": 2, "triplet": 3, "class_triplet": 1}[kind]
    chance = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    if kind == "class_triplet":
        return count, texts, torch.randint(3, (count,), generator=chance)
    return count, texts, torch.rand(count, generator=chance)


@pytest.mark.parametrize("kind", LOSSES)
@settings(max_examples=40)
@given(data=st.data())
def test_embedding_losses_are_those_of_sentence_transformers(kind: str, data: st.DataObject) -> None:
    count, texts, targets = draw_embedding(data, kind)
    margin = data.draw(st.sampled_from((0.5, 5.0)))
    chance = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    vectors = torch.randn((count, texts, 8), generator=chance, dtype=torch.float64)
    both = [vectors.clone().requires_grad_() for _ in range(2)]
    features = [{"vectors": both[1][:, text]} for text in range(texts)]
    expected = their_loss(kind, TheirEmbeddings(), features, targets, margin)
    module = EmbeddingLoss(small_encoder(), kind, margin=margin)
    loss = EMBEDDING_LOSSES[kind](module, both[0], targets, 0.0)
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-6, atol=1e-6)
    if expected.requires_grad:
        loss.backward()
        expected.backward()
        torch.testing.assert_close(both[0].grad, both[1].grad, rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(data=st.data())
def test_the_loss_of_a_pairs_class_is_that_of_sentence_transformers(data: st.DataObject) -> None:
    made = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="the reference")
    count, classes = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 4))
    chance = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    vectors = torch.randn((count, 2, 8), generator=chance)
    targets = torch.randint(classes, (count,), generator=chance)
    both = [vectors.clone().requires_grad_() for _ in range(2)]
    theirs = made.SoftmaxLoss(TheirEmbeddings(), embedding_dimension=8, num_labels=classes)
    expected = theirs([{"vectors": both[1][:, text]} for text in range(2)], targets)
    loss = pair_class(both[0], targets, theirs.classifier)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(both[0].grad, both[1].grad, rtol=1e-5, atol=1e-6)


POOLINGS = {"mean": "mean", "first": "cls", "last": "lasttoken", "max": "max"}


class TheirModel(nn.Module):
    """A model of Hugging Face's with the pooling of sentence-transformers."""

    def __init__(self, model: Any, pooling: str, normalize: bool) -> None:
        super().__init__()
        modules = pytest.importorskip("sentence_transformers.models")
        self.model, self.normalize = model, modules.Normalize() if normalize else None
        self.pooling = modules.Pooling(model.config.hidden_size, POOLINGS[pooling])

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        made = self.pooling({**features, "token_embeddings": self.model(**features).last_hidden_state})
        return made if self.normalize is None else self.normalize(made)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("architecture", ["BertModel", "DistilBertModel", "LlamaModel"])
@settings(max_examples=8)
@given(data=st.data())
def test_models_embed_and_learn_as_in_sentence_transformers(architecture: str, kind: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    assume(not drawn.is_dynamic)
    theirs, pooling = drawn.build(), data.draw(st.sampled_from(tuple(POOLINGS)))
    normalize = data.draw(st.booleans())
    count, texts, targets = draw_embedding(data, kind)
    chance = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    lengths = [int(n) for n in torch.randint(1, 9, (count * texts,), generator=chance)]
    tokens, mask = torch.randint(4, 20, (count * texts, max(lengths)), generator=chance), ragged(lengths, "right")
    ours = ours_of(theirs)
    ours.pooling = TextPooling(PoolingConfig(kind=pooling, normalize=normalize), ours.config.d_model)
    batch = EmbeddingBatch(tokens=tokens.numpy(), targets=targets.numpy(), mask=mask.numpy())
    loss = value(EmbeddingLoss(ours, kind), batch)
    rows = torch.arange(count * texts).unflatten(0, (count, texts))
    features = [{"input_ids": tokens[index], "attention_mask": mask[index].long()} for index in rows.unbind(dim=1)]
    expected = their_loss(kind, TheirModel(theirs, pooling, normalize), features, targets, 5.0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    if not expected.requires_grad or kind == "class_triplet":  # whose distances are less exact there
        return
    loss.backward()
    expected.backward()
    found, rounded = trace.our_gradients(ours), trace.their_gradients(cast("Any", theirs))
    theirs = theirs.double()
    theirs.zero_grad()
    their_loss(kind, TheirModel(theirs, pooling, normalize), features, targets, 5.0).backward()
    exact = {name: gradient.float() for name, gradient in trace.their_gradients(cast("Any", theirs)).items()}
    largest = max(1e-4, *(float(gradient.abs().max()) for gradient in exact.values()))
    # Of a softmax that is almost 1, float32 has few digits of the distance to 1.
    error = max(float((rounded[name] - gradient).abs().max()) for name, gradient in exact.items())
    for name, gradient in exact.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=max(1e-4 * largest, error), msg=name)


def embeddings(kind: str, examples: int = 6, side: str = "right") -> EmbeddingBatch:
    texts = {"in_batch_negatives": 3, "cosine": 2, "triplet": 3, "class_triplet": 1}[kind]
    chance = np.random.default_rng(0)
    lengths = [int(n) for n in chance.integers(1, 9, examples * texts)]
    mask = ragged(lengths, side).numpy()
    tokens = chance.integers(4, 40, mask.shape)
    targets: Any = chance.integers(3, size=examples) if kind == "class_triplet" else chance.random(examples)
    targets = targets.astype(np.float32) if kind != "class_triplet" else targets
    return EmbeddingBatch(tokens=tokens, targets=targets, mask=mask)


def alone(kind: str, hidden: Tensor) -> Tensor:
    """The vector of a text by itself."""
    return {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1], "max": hidden.amax(0)}[kind]


def test_vectors_are_those_that_embed_makes() -> None:
    """An encoder-decoder's are its encoder's, and padding on either side changes nothing."""
    torch.manual_seed(0)
    model = af.build(af.preset("t5-nano", vocab_size=40, d_model=16, attention={"heads": 2, "head_dim": 4})).eval()
    for kind in POOLINGS:
        model.pooling = TextPooling(PoolingConfig(kind=kind, normalize=True), 16)
        right = embeddings("cosine")
        loss = value(EmbeddingLoss(model, "cosine"), right)
        cosines = []
        for pair in range(6):
            rows = (right.tokens[row][right.mask[row]] for row in (2 * pair, 2 * pair + 1))
            states = [model.encode(torch.from_numpy(row)[None])[0] for row in rows]
            pooled = {
                "mean": lambda x: x.mean(0),
                "first": lambda x: x[0],
                "last": lambda x: x[-1],
                "max": lambda x: x.amax(0),
            }
            cosines.append(F.cosine_similarity(*(pooled[kind](each) for each in states), dim=0))
        expected = (torch.stack(cosines) - torch.from_numpy(right.targets)).square().mean()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        shift = np.arange(right.tokens.shape[1])[None] + right.mask.sum(1)[:, None]
        moved = [np.take_along_axis(each, shift % right.tokens.shape[1], 1) for each in (right.tokens, right.mask)]
        left = EmbeddingBatch(tokens=moved[0], mask=moved[1], targets=right.targets)
        assert left.mask is not None
        assert left.mask[:, -1].all()
        torch.testing.assert_close(value(EmbeddingLoss(model, "cosine"), left), expected, rtol=1e-5, atol=1e-6)


def test_vectors_are_compared_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast narrows the products of the model, not those of its vectors."""
    model = small_encoder()
    for kind in LOSSES:
        batch = embeddings(kind)
        vectors = torch.randn(*batch.tokens.shape, 16)
        monkeypatch.setattr(model, "encode_text", lambda *_, vectors=vectors: vectors)
        exact = value(EmbeddingLoss(model, kind), batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(value(EmbeddingLoss(model, kind), batch), exact)


def test_texts_that_are_alike_have_finite_gradients() -> None:
    model = small_encoder()
    for kind in ("triplet", "class_triplet"):
        batch = embeddings(kind)
        alike = EmbeddingBatch(tokens=batch.tokens * 0 + 5, targets=np.arange(6) % 2, mask=None)
        for gradient in gradients(model, value(EmbeddingLoss(model, kind), alike)).values():
            assert gradient.isfinite().all()


def test_one_class_has_no_triplet() -> None:
    model, batch = small_encoder(), embeddings("class_triplet")
    loss = value(EmbeddingLoss(model, "class_triplet"), EmbeddingBatch(tokens=batch.tokens, targets=batch.targets * 0))
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


def test_unknown_losses_are_refused() -> None:
    with pytest.raises(UserError, match=r"no embedding loss 'cosin'.*cosine"):
        EmbeddingLoss(small_encoder(), "cosin")


# all of them


def test_parts_of_a_batch_add_up() -> None:
    assert_split(PreferenceLoss(small()), preferences(40, 5, 5))
    for kind in ("cosine", "triplet"):
        assert_split(EmbeddingLoss(small_encoder(), kind), embeddings(kind))


@pytest.mark.parametrize(
    "problem", ["single_label_classification", "multi_label_classification", "regression", "tokens"]
)
def test_parts_of_a_classified_batch_add_up(problem: str) -> None:
    head: dict[str, Any] = {"kind": "classification", "problem_type": problem, "labels": 3}
    if problem == "tokens":
        head = {"kind": "token_classification", "labels": 3}
    torch.manual_seed(0)
    config = small_encoder().config.replace(head=head)
    model, texts = af.build(config).eval(), embeddings("class_triplet")
    chance = np.random.default_rng(1)
    targets: Any = chance.integers(3, size=6)
    if problem == "tokens":
        targets = np.where(
            chance.random(texts.tokens.shape) < 0.3, IGNORED, chance.integers(3, size=texts.tokens.shape)
        )
    elif problem != "single_label_classification":
        targets = chance.random((6, 3)).astype(np.float32)
    targets[0] = IGNORED
    batch = Batch(tokens=texts.tokens, targets=targets, mask=texts.mask)
    assert batch.predicted < targets.size
    assert_split(LossModule(model), batch, parts=6)
