"""Hypothesis strategies for the vocabulary: any valid step, recipe, budget."""

import dataclasses

from hypothesis import strategies as st

from paredown.core.budget import Budget
from paredown.core.effort import Effort
from paredown.core.knowledge import (
    DKD,
    AttentionMaps,
    AttentionTransfer,
    Blocks,
    BoundedRegression,
    Contrastive,
    Embedding,
    Hint,
    Relational,
    SequenceLevel,
    Similarity,
    TokenLevel,
    ValueRelations,
)
from paredown.core.recipe import Recipe
from paredown.core.steps import (
    Activations,
    ChannelAttention,
    Distill,
    MixedBits,
    Prune,
    Quantize,
    Schedule,
    Slimming,
    Sparsify,
    Step,
    Training,
    Weights,
    Widths,
)  # fmt: skip

fractions = st.floats(0.001, 0.999, allow_nan=False)
amounts = st.floats(1e-3, 1e6, allow_nan=False)
names = st.lists(st.text(min_size=1, max_size=12), max_size=3).map(tuple)

efforts = st.builds(Effort, amounts.map(lambda value: float(f"{value:.5g}")), st.sampled_from(["epochs", "steps", "seconds"]))
trainings = st.builds(
    Training,
    effort=efforts,
    optimizer=st.sampled_from(["sgd", "adamw"]),
    learning_rate=amounts,
    weight_decay=fractions,
    warmup=fractions,
    clip=st.none() | amounts,
    ema=st.none() | fractions,
    channels_last=st.booleans(),
)
goals = st.one_of(
    fractions.map(lambda value: {"ratio": value}),
    st.sampled_from([{"macs": "0.5x"}, {"macs": "20 M"}, {"latency": "3 ms"}, {"latency": "0.6x"}]),
    amounts.map(lambda value: {"threshold": value}),
)
prunes: st.SearchStrategy[Prune] = st.builds(
    lambda goal, importance, scope, schedule, widths, protect: Prune(
        **goal,
        importance=importance,
        scope=scope,
        schedule=schedule,
        widths=dataclasses.replace(widths, floors={}) if scope == "depth" else widths,
        protect=protect,
    ),
    goals,
    st.one_of(
        st.sampled_from(["taylor", "magnitude", "fpgm", "random"]),
        st.builds(ChannelAttention, gate=st.sampled_from(["static", "squeeze_excite"]), penalty=fractions, training=trainings),
        st.builds(Slimming, penalty=fractions, training=trainings),
    ),
    st.sampled_from(["global", "uniform", "depth"]),
    st.builds(Schedule, steps=st.integers(1, 9), curve=st.sampled_from(["linear", "cubic"]), between=efforts),
    st.builds(
        Widths,
        floor=fractions,
        round_to=st.integers(0, 64),
        floors=st.dictionaries(st.sampled_from(["", "layer1", "layer1.0.conv1"]), fractions),
    ),
    names,
)
sparsities = st.builds(
    lambda goal, method, scope, samples: Sparsify(**goal, method=method, scope=scope, samples=samples),
    st.one_of(fractions.map(lambda value: {"ratio": value}), st.sampled_from([{"pattern": "2:4"}, {"threshold": 0.1}])),
    st.sampled_from(["magnitude", "sensitivity", "wanda", "sparsegpt"]),
    st.sampled_from(["global", "uniform"]),
    st.integers(1, 10**6),
)
features = st.lists(
    st.one_of(
        st.builds(Hint, weight=amounts),
        st.builds(AttentionTransfer, weight=amounts),
        st.builds(Similarity, weight=amounts),
        st.builds(Relational, weight=amounts, angle=fractions),
        st.builds(Embedding, weight=amounts),
        st.builds(Contrastive, weight=amounts, temperature=amounts),
        st.builds(
            AttentionMaps,
            weight=amounts,
            of=st.sampled_from(["scores", "distributions"]),
            layers=st.sampled_from(["all", "last"]),
        ),
        st.builds(
            ValueRelations,
            weight=amounts,
            of=st.lists(st.sampled_from(["values", "queries", "keys"]), min_size=1, max_size=3).map(tuple),
            heads=st.none() | st.integers(1, 64),
        ),
    ),
    min_size=1,
    unique_by=type,
).map(tuple)
modules = st.text(min_size=1, max_size=12)
comparisons = st.fixed_dictionaries(
    {"features": features, "pairs": st.lists(st.tuples(modules, modules), max_size=3).map(tuple), "balance": st.booleans()}
)
inputs = st.none() | st.sampled_from(["attention_mask", 1])
tokens = st.none() | st.integers(0, 10**6)
softs = st.one_of(
    st.none(),
    st.sampled_from(["soft_labels", "logit_mse", "standardized", "dkd", "multi_label", "regression", "embedding", "contrastive"]),
    st.builds(DKD, alpha=fractions, beta=fractions),
    st.builds(BoundedRegression, margin=amounts),
    st.builds(TokenLevel, mask=inputs, padding=tokens),
    st.builds(SequenceLevel, prompt=st.integers(1, 999), sampling=st.none() | amounts, end=tokens, mask=inputs),
)
distills = st.builds(
    lambda temperature, hard_weight, training, reconstruct, recalibrate, soft, compared: Distill(
        temperature, hard_weight, training, reconstruct, recalibrate, soft, **compared
    ),
    amounts,
    fractions,
    trainings,
    st.booleans() | st.builds(Blocks, training=trainings, inputs=st.sampled_from(["student", "teacher"]), solve=st.booleans()),
    st.booleans(),
    softs,
    st.just({}) | comparisons,
)
common = {
    "samples": st.integers(0, 10**6),
    "target": st.none() | st.sampled_from(["onnxruntime", "openvino"]),
    "protect": names,
}
activations = st.builds(
    Activations,
    bits=st.sampled_from([4, 8]),
    observer=st.sampled_from(["minmax", "percentile", "moving_average", "mse", "kl"]),
) | st.builds(Activations, observer=st.just("percentile"), percentile=st.floats(51, 100))
quantizes: st.SearchStrategy[Quantize] = st.one_of(
    st.builds(
        Quantize,
        bits=st.sampled_from([2, 3, 4, 8])
        | st.builds(MixedBits, st.floats(2, 8), sensitivity=st.sampled_from(["noise", "metric"])),
        activations=activations,
        refine=st.lists(st.sampled_from(["smooth", "equalization", "brecq", "bias_correction"]), unique=True).map(tuple),
        weights=st.builds(Weights, symmetric=st.booleans(), range=st.sampled_from(["auto", "full"]))
        | st.just(Weights(range="reduced")),
        **common,
    ),
    st.builds(Quantize, kind=st.sampled_from(["fp16", "bf16"]), **common),
    st.builds(Quantize, kind=st.just("palette"), bits=st.sampled_from([4, 8]), **common),
    st.builds(
        Quantize,
        kind=st.just("weight_only"),
        bits=st.sampled_from([4, 8]),
        weights=st.builds(
            Weights,
            group=st.sampled_from([32, 64, 128]),
            method=st.sampled_from(["nearest", "gptq", "awq", "hqq"]),
            embeddings=st.booleans(),
        ),
        **common,
    ),
)
before_quantize: st.SearchStrategy[list[Step]] = st.lists(st.one_of(prunes, sparsities, distills), max_size=4)
after_quantize: st.SearchStrategy[list[Step]] = st.lists(distills, max_size=2)
recipes = st.builds(
    lambda before, quantize, after: Recipe((*before, *quantize, *after)),
    before_quantize,
    st.lists(quantizes, max_size=1),
    after_quantize,
)
budgets = st.builds(
    Budget,
    max_drop=st.one_of(fractions, st.integers(0, 99).map(lambda percent: f"{percent}%")),
    latency=st.sampled_from(["0.4x", "3 ms", ".5x", "120us"]),
    size=st.none() | st.sampled_from(["0.25x", "5 MB", "100 KiB"]),
    confidence=st.floats(0.5, 0.999),
)
