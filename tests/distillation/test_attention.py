"""Queries, keys, values and scores of every attention, however a model writes it, and the losses of them through the step."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from paredown import AttentionMaps, Distill, Hint, Recipe, Task, Training, ValueRelations
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError, TaskError
from paredown.core.knowledge import OfAttention
from paredown.distillation.attended import Attended, attend, attended_loss, common_heads
from paredown.distillation.attention import Attention, attention_modules, attentions
from paredown.task.batches import call, unfused
from tests.conftest import make_small_resnet

transformers = pytest.importorskip("transformers")
IDS = torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 6, [1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3])
INPUTS = {"input_ids": IDS, "attention_mask": MASK}
LONGER = Training(effort=Effort(30, "steps"), learning_rate=3e-3, optimizer="adamw")


def bert(layers: int = 2, width: int = 16, heads: int = 2, seed: int = 0, kind: str = "sdpa") -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=2 * width,
        max_position_embeddings=16, attn_implementation=kind, return_dict=False, initializer_range=0.3,
    )  # fmt: skip
    model: nn.Module = transformers.BertModel(config, add_pooling_layer=False).eval()
    return model


class Vision(nn.Module):
    """Patches as tokens through torch's own attention; inputs (batch, 1, 8, 8)."""

    def __init__(self, width: int = 16, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.layers = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for i, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            y = norm(x)
            x = x + layer(y, y, y, need_weights=i == 0)[0]
        return self.head(x.mean(1))


def seen(model: nn.Module, inputs: Any, samples: int = 4) -> list[Attention]:
    with attentions(samples) as found, unfused():
        call(model, inputs)
    return found


def task(teacher: nn.Module, inputs: Any = None) -> Task:
    given = INPUTS if inputs is None else inputs
    return Task(
        teacher,
        given if isinstance(given, dict) else (given,),
        [(given, None)] * 2,
        [(given, torch.zeros(4))],
        metric=lambda output, target: 0 * target,
    )


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_attentions_of_a_transformer_are_found_however_its_class_computes_them(kind: str) -> None:
    model = bert(kind=kind)
    found = seen(model, INPUTS)
    projections: dict[str, Tensor] = {}
    part = model.encoder.layer[0].attention.self
    part.query.register_forward_hook(lambda _m, _a, y: projections.update(q=y))
    part.value.register_forward_hook(lambda _m, _a, y: projections.update(v=y))
    call(model, INPUTS)
    assert len(found) == 2 and found[0].queries is not None and found[0].keys is not None
    assert torch.equal(found[0].values, projections["v"].view(4, 6, 2, 8).transpose(1, 2))
    assert torch.equal(found[0].queries, projections["q"].view(4, 6, 2, 8).transpose(1, 2))
    tokens = found[0].tokens()
    assert tokens is not None and torch.equal(tokens, MASK.bool())
    expected = found[0].queries @ found[0].keys.transpose(-1, -2) / math.sqrt(8)
    shown = MASK.bool()[:, None, None].expand_as(expected)
    assert torch.allclose(found[0].scores()[shown], expected[shown], atol=1e-5)
    assert bool((found[0].scores()[~shown] < -1e8).all())


def test_attentions_of_torchs_own_layer_are_found_inside_of_it() -> None:
    model, x = Vision(), torch.randn(4, 1, 8, 8)
    found = seen(model, x)
    assert [tuple(each.scores().shape) for each in found] == [(4, 4, 4, 4)] * 2
    assert attention_modules(model, x) == ["layers.0", "layers.1"]
    y = model.norms[0](model.patches(x).flatten(2).transpose(1, 2))
    weights = model.layers[0](y, y, y, average_attn_weights=False)[1]
    assert torch.allclose(found[0].scores().softmax(-1), weights, atol=1e-6)
    with attentions(4), torch.no_grad():
        watched = model(x)
    assert torch.equal(watched, model(x).detach())


def test_causal_scores_hide_what_comes_later_and_shared_keys_are_repeated() -> None:
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8)
    with attentions(2) as found:
        F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
    probabilities = found[0].scores().softmax(-1)
    assert probabilities.shape == (2, 4, 3, 3) and torch.equal(probabilities.triu(1), torch.zeros(2, 4, 3, 3))
    assert torch.allclose(found[0].scores()[0, 1, 2, 0], q[0, 1, 2] @ k[0, 0, 0] / math.sqrt(8))


def test_a_softmax_over_classes_is_no_attention() -> None:
    with attentions(4) as found:
        torch.randn(4, 3).softmax(1) @ torch.randn(3, 2)
        torch.randn(4, 5, 3).softmax(1).sum()
    assert found == []


def gap(feature: OfAttention, student: nn.Module, teacher: nn.Module, inputs: Any = None) -> float:
    given = INPUTS if inputs is None else inputs
    pairs = attend(Distill(features=(feature,)), teacher, student, given)
    with torch.no_grad():
        return float(attended_loss(feature, pairs, seen(student, given), seen(teacher, given)))


FEATURES: tuple[OfAttention, ...] = (
    AttentionMaps(), AttentionMaps(of="distributions", layers="last"), ValueRelations(),
    ValueRelations(of=("queries", "keys", "values"), layers="all"),
)  # fmt: skip


@pytest.mark.parametrize("feature", FEATURES, ids=str)
def test_each_loss_brings_a_student_nearer_without_labels_or_soft_loss(feature: OfAttention) -> None:
    teacher, student = bert(4), bert(2, seed=1)
    config = Distill(hard_weight=0, soft=None, features=(feature,), training=LONGER)
    found = paredown.distill(task(teacher), config, model=student)
    assert gap(feature, found, teacher) < 0.8 * gap(feature, student, teacher)
    assert gap(feature, teacher, teacher) == pytest.approx(0, abs=1e-6)


def test_padding_does_not_count() -> None:
    teacher, student = bert(), bert(seed=1)
    other = {"input_ids": torch.where(MASK.bool(), IDS, 7), "attention_mask": MASK}
    for feature in FEATURES:
        assert gap(feature, student, teacher) == pytest.approx(gap(feature, student, teacher, other), rel=1e-4)


def test_vision_blocks_of_other_widths_and_heads_share_value_relations() -> None:
    torch.manual_seed(0)
    x, teacher, student = torch.randn(4, 1, 8, 8), Vision(24, 6), Vision(16, 4)
    config = Distill(hard_weight=0, soft=None, features=(ValueRelations(),), training=LONGER)
    found = paredown.distill(task(teacher, x), config, model=student)
    assert gap(ValueRelations(), found, teacher, x) < 0.8 * gap(ValueRelations(), student, teacher, x)
    with pytest.raises(TaskError, match="as many heads"):
        paredown.distill(task(teacher, x), Distill(hard_weight=0, features=(AttentionMaps(),)), model=student)


def test_common_heads_divide_both_widths() -> None:
    assert common_heads(torch.zeros(1, 4, 3, 4), torch.zeros(1, 6, 3, 4)) == 4  # widths 16 and 24
    assert common_heads(torch.zeros(1, 3, 2, 5), torch.zeros(1, 4, 2, 4)) == 1  # 15 and 16


def test_pairs_are_by_lineage_else_even_and_can_be_named() -> None:
    teacher, config = bert(6), Distill(features=(AttentionMaps(),))
    assert attend(config, teacher, bert(3), INPUTS) == [Attended(0, 1), Attended(1, 3), Attended(2, 5)]
    assert attend(config, teacher, bert(6, seed=1), INPUTS) == [Attended(i, i) for i in range(6)]
    named = Distill(features=(AttentionMaps(),), pairs=(("encoder.layer.2", "encoder.layer.4"),))
    assert attend(named, teacher, bert(3), INPUTS) == [Attended(2, 4)]
    wrong = Distill(features=(AttentionMaps(),), pairs=(("embeddings", "encoder.layer.4"),))
    with pytest.raises(TaskError, match="0 in embeddings, 1 in"):
        attend(wrong, teacher, bert(3), INPUTS)


def test_it_goes_together_with_features_of_layers() -> None:
    teacher, student = bert(4), bert(2, seed=1)
    features = (Hint(), ValueRelations())
    short = Training(effort=Effort(2, "steps"))
    found = paredown.distill(
        task(teacher), Distill(hard_weight=0, soft=None, features=features, balance=True, training=short), model=student
    )
    assert list(found.state_dict()) == list(student.state_dict())


def test_models_without_attention_are_an_error_with_its_remedy() -> None:
    model, x = make_small_resnet(), torch.randn(4, 1, 8, 8)
    with pytest.raises(TaskError, match="none in the student; compare other features"):
        paredown.distill(task(model, x), Distill(hard_weight=0, features=(ValueRelations(),)))


def test_configs_check_themselves_and_round_trip() -> None:
    for make in (
        lambda: AttentionMaps(of="values"),
        lambda: ValueRelations(of=()),
        lambda: ValueRelations(heads=0),  # type: ignore[arg-type]  # that is the point
        lambda: ValueRelations(of="values"),
        lambda: AttentionMaps(layers="first"),
    ):  # type: ignore[arg-type]  # that is the point
        with pytest.raises(RecipeError):
            make()  # fmt: skip
    recipe = Recipe((Distill(features=(AttentionMaps(of="distributions"), ValueRelations(of=("keys",), heads=3, layers="all"))),))
    assert Recipe.parse(recipe.to_yaml()) == recipe == Recipe.parse(recipe.to_json())
