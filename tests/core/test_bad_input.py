"""What a user can get wrong in a budget, a target, an effort or a recipe: a typed error with rule, value and remedy."""

from collections.abc import Callable

import pytest

from paredown.core.budget import Budget, parse_limit
from paredown.core.effort import Effort
from paredown.core.errors import BudgetError, ParedownError, RecipeError, TargetError
from paredown.core.knowledge import Contrastive, SequenceLevel, TokenLevel
from paredown.core.recipe import Recipe
from paredown.core.steps import Activations, Distill, MixedBits, Prune, Quantize, Schedule, Sparsify, Training, Weights, Widths
from paredown.core.subnets import SubnetSpace
from paredown.core.target import Target

Case = tuple[Callable[[], object], type[ParedownError], str, str]  # call, error, value shown, remedy

BUDGETS: dict[str, Case] = {
    "drop of 3 for 3 %": (lambda: Budget(3, "0.5x"), BudgetError, "got 3", "did you mean 0.03?"),
    "negative drop": (lambda: Budget(-0.1, "0.5x"), BudgetError, "got -0.1", 'write 0.01 or "1%"'),
    "NaN drop": (lambda: Budget(float("nan"), "0.5x"), BudgetError, "got nan", 'write 0.01 or "1%"'),
    "drop as bare text": (lambda: Budget("0.01", "0.5x"), BudgetError, "0.01", 'write "1%"'),
    "drop of 100 %": (lambda: Budget("100%", "0.5x"), BudgetError, "100%", "did you mean 0.01?"),
    "drop that is a bool": (lambda: Budget(True, "0.5x"), BudgetError, "True", 'write 0.01 or "1%"'),
    "nothing to gain": (lambda: Budget(0.01), BudgetError, "must name latency or size", 'add latency="0.4x"'),
    "confidence of 95": (lambda: Budget(0.01, "0.5x", confidence=95), BudgetError, "got 95", "0.95 is the usual choice"),
    "latency without unit": (lambda: Budget(0.01, "3"), BudgetError, "'3'", '"0.4x" or "3 ms"'),
    "latency in MB": (lambda: Budget(0.01, "3 MB"), BudgetError, "'3 MB'", '"0.4x" or "3 ms"'),
    "latency of 0": (lambda: Budget(0.01, "0x"), BudgetError, "0x", '"0.4x" or "3 ms"'),
    "speed-up for a ratio": (lambda: Budget(0.01, "2.5x"), BudgetError, "2.5x", "did you mean 0.4x?"),
    "latency as a number": (lambda: Budget(0.01, 0.4), BudgetError, "0.4", '"0.4x" or "3 ms"'),  # type: ignore[arg-type]
    "size without number": (lambda: Budget(0.01, size="small"), BudgetError, "'small'", '"0.25x" or "5 MB"'),
    "limit on MACs in ms": (lambda: parse_limit("macs", "3 ms"), BudgetError, "'3 ms'", '"0.5x" or "20 M"'),
    "effort without unit": (lambda: Effort.parse("3"), BudgetError, "'3'", 'write "3 epochs" or "60 s"'),
    "effort of 0": (lambda: Effort.parse("0 epochs"), BudgetError, "got 0.0", 'write "3 epochs" or "60 s"'),
    "effort in parsecs": (lambda: Effort.parse("3 parsecs"), BudgetError, "3 parsecs", 'write "3 epochs" or "60 s"'),
    "effort with a made-up unit": (lambda: Effort(3, "days"), BudgetError, "days", 'write "3 epochs"'),  # type: ignore[arg-type]
}
TARGETS: dict[str, Case] = {
    "unknown runtime": (lambda: Target("tensorrt"), TargetError, "'tensorrt'", "onnxruntime"),  # type: ignore[arg-type]
    "batch of 0": (lambda: Target(batch=0), TargetError, "got 0", "write batch=1"),
    "half a thread": (lambda: Target(threads=0.5), TargetError, "got 0.5", "write threads=1"),  # type: ignore[arg-type]
    "more threads than cores": (lambda: Target.of(Target(threads=100_000)), TargetError, "got 100000", "write threads="),
}
RECIPES: dict[str, Case] = {
    "no goal": (Prune, RecipeError, "none", "write Prune(ratio=0.5)"),
    "two goals": (lambda: Prune(ratio=0.5, macs="0.5x"), RecipeError, "ratio", "write Prune(ratio=0.5)"),
    "ratio of 50": (lambda: Prune(ratio=50), RecipeError, "got 50", "did you mean 0.5?"),
    "a table for a uniform scope": (
        lambda: Prune(latency="0.5x", scope="uniform", latency_by="table"),
        RecipeError,
        "each group by itself",
        "leave latency_by",
    ),
    "floors of branches": (
        lambda: Prune(ratio=0.5, scope="depth", widths=Widths(floors={"a": 0.5})),
        RecipeError,
        "whole branches",
        "protect",
    ),
    "ceiling of a subnet": (
        lambda: SubnetSpace(widths=Widths(ceiling=0.5)),
        RecipeError,
        "the model itself",
        "prune to it first",
    ),
    "floor of yes": (
        lambda: Recipe.from_dict({"steps": [{"step": "prune", "ratio": 0.5, "widths": {"floors": {"a": True}}}]}),
        RecipeError,
        "must be a number",
        "write the number",
    ),
    "latency_by without latency": (
        lambda: Prune(ratio=0.5, latency_by="macs"),
        RecipeError,
        "no latency",
        "leave latency_by out",
    ),
    "precision without latency": (lambda: Prune(ratio=0.5, precision="int8"), RecipeError, "no latency", "leave precision out"),
    "unknown importance": (lambda: Prune(ratio=0.5, importance="l3"), RecipeError, "'l3'", "taylor"),  # type: ignore[arg-type]
    "floor above 1": (lambda: Prune(ratio=0.5, widths=Widths(floor=1.5)), RecipeError, "got 1.5", "leave it out"),
    "rounding to -4": (lambda: Prune(ratio=0.5, widths=Widths(round_to=-4)), RecipeError, "got -4", "write round_to=1"),
    "no cut at all": (lambda: Schedule(steps=0), RecipeError, "got 0", "write steps=1"),
    "two goals of sparsity": (lambda: Sparsify(ratio=0.5, pattern="2:4"), RecipeError, "pattern", "Sparsify(ratio=0.5)"),
    "sparsity in percent": (lambda: Sparsify(ratio=50), RecipeError, "got 50", "did you mean 0.5?"),
    "temperature of 0": (lambda: Distill(temperature=0), RecipeError, "got 0", "leave it out"),
    "unknown loss of outputs": (lambda: Distill(soft="tokens"), RecipeError, "'tokens'", 'soft="auto"'),  # type: ignore[arg-type]
    "negative position of a mask": (lambda: TokenLevel(mask=-1), RecipeError, "-1", 'mask="attention_mask"'),
    "padding as text": (lambda: TokenLevel(padding="<pad>"), RecipeError, "'<pad>'", "write padding=0"),  # type: ignore[arg-type]
    "no prompt": (lambda: SequenceLevel(prompt=0), RecipeError, "got 0", "write prompt=1"),
    "sampling at 0": (lambda: SequenceLevel(sampling=0.0), RecipeError, "got 0.0", "leave it out"),
    "contrast at temperature 0": (lambda: Contrastive(temperature=0), RecipeError, "got 0", "leave it out"),
    "hard weight of 2": (lambda: Distill(hard_weight=2), RecipeError, "got 2", "leave it out"),
    "infinite learning rate": (lambda: Training(learning_rate=float("inf")), RecipeError, "got inf", "leave it out"),
    "5 bits": (lambda: Quantize(bits=5), RecipeError, "got 5", "write bits=4"),
    "3 bits of weights alone": (lambda: Quantize(kind="weight_only", bits=3), RecipeError, "got 3", "write bits=4"),
    "dynamic in 4 bits": (lambda: Quantize(kind="dynamic", bits=4), RecipeError, "got 4", "leave bits out"),
    "dynamic with an observer": (
        lambda: Quantize(kind="dynamic", activations=Activations(observer="minmax")),
        RecipeError,
        "observer='minmax'",
        'kind="static"',
    ),
    "activations of 6 bits": (lambda: Activations(bits=6), RecipeError, "got 6", "8 loses the least"),
    "unknown scales": (lambda: Quantize(scales="learned"), RecipeError, "'learned'", 'scales="fixed"'),
    "activations of 8.0 bits": (lambda: Activations(bits=8.0), RecipeError, "got 8.0", "8 loses the least"),  # type: ignore[arg-type]
    "a list of bits as one": (lambda: MixedBits(4, choices=([4], 8)), RecipeError, "([4], 8)", "choices=(2, 4, 8)"),  # type: ignore[arg-type]
    "choices that aren't whole": (lambda: MixedBits(4, choices=(4.0, 8.0)), RecipeError, "(4.0, 8.0)", "(2, 4, 8)"),  # type: ignore[arg-type]
    "a runtime that isn't one": (lambda: Quantize(target="tensorrt"), RecipeError, "'tensorrt'", 'target="onnxruntime"'),
    "runtimes in a list": (lambda: Quantize(target=["openvino"]), RecipeError, "['openvino']", "onnxruntime"),  # type: ignore[arg-type]
    "a reduced range with a zero point": (
        lambda: Weights(symmetric=False, range="reduced"),
        RecipeError,
        "symmetric=False",
        "leave one of them out",
    ),
    "one choice of bits": (lambda: MixedBits(4, choices=(4,)), RecipeError, "(4,)", "choices=(2, 4, 8)"),
    "average beyond the choices": (lambda: MixedBits(9), RecipeError, "got 9", "leave it out"),
    "mixed bits without a limit": (MixedBits, RecipeError, "average, size, latency or bops", "MixedBits(average=4)"),
    "mixed bits of weights alone": (lambda: Quantize(kind="weight_only", bits=MixedBits(4)), RecipeError, "MixedBits", "bits=4"),
    "a percentile of another observer": (
        lambda: Activations(percentile=99.9),
        RecipeError,
        "observer='mse'",
        "leave percentile out",
    ),
    "percentile as a fraction": (lambda: Activations(percentile=0.999), RecipeError, "got 0.999", "99.99"),
    "negative samples": (lambda: Quantize(samples=-1), RecipeError, "got -1", "samples=0"),
    "prune after quantize": (lambda: Recipe((Quantize(), Prune(ratio=0.5))), RecipeError, "quantize > prune", "before quantize"),
    "rounding learned twice": (lambda: Quantize(refine=("adaround", "brecq")), RecipeError, "adaround and brecq", "leave one"),
    "an unknown observer": (lambda: Activations(observer="entropy"), RecipeError, "'entropy'", 'observer="minmax"'),  # type: ignore[arg-type]
    "groups of 48": (lambda: Weights(group=48), RecipeError, "got 48", "32 is the most precise"),
    "scales that nothing trains": (
        lambda: Recipe((Quantize(bits=2, scales="lsq"),)),
        RecipeError,
        "quantize > nothing",
        "put a distill step behind quantize",
    ),
    "quantized twice": (lambda: Recipe((Quantize(), Quantize())), RecipeError, "quantize > quantize", "keep one"),
    "unknown step": (lambda: Recipe.parse("steps: [{step: shrink}]"), RecipeError, "shrink", "write `- step: prune`"),
    "unknown field": (lambda: Recipe.parse("steps: [{step: prune, ratios: 1}]"), RecipeError, "ratios", "its fields are"),
    "wrong type": (lambda: Recipe.parse("steps: [{step: prune, ratio: half}]"), RecipeError, "half", "its fields are"),
    "yes for a number": (lambda: Recipe.parse("steps: [{step: quantize, samples: yes}]"), RecipeError, "True", "the number"),
    "true within a field": (
        lambda: Recipe.parse("steps: [{step: distill, training: {learning_rate: true}}]"),
        RecipeError,
        "learning_rate",
        "number",
    ),
    "a tag of Python's": (lambda: Recipe.parse("!!python/name:os.system x"), RecipeError, "constructor", "recipe.yaml"),
    "a list instead of a recipe": (lambda: Recipe.parse("- prune"), RecipeError, "['prune']", "recipe.yaml"),
    "not YAML": (lambda: Recipe.parse("steps: [{"), RecipeError, "valid YAML or JSON", "recipe.yaml"),
    "empty file": (lambda: Recipe.parse(""), RecipeError, "None", "recipe.yaml"),
}
MISTYPED: dict[str, Case] = {
    "one step for a recipe": (lambda: Recipe(Quantize()), RecipeError, "Quantize(", "Recipe(("),  # type: ignore[arg-type]
    "a class for a step": (lambda: Recipe((Quantize,)), RecipeError, "Quantize", "Recipe(("),  # type: ignore[arg-type]
    "ratio as text": (lambda: Prune(ratio="half"), RecipeError, "'half'", "plain int or float"),  # type: ignore[arg-type]
    "temperature of None": (lambda: Distill(temperature=None), RecipeError, "None", "plain int or float"),  # type: ignore[arg-type]
    "training as text": (lambda: Distill(training="long"), RecipeError, "'long'", "leave it out"),  # type: ignore[arg-type]
    "importance as a list": (lambda: Prune(ratio=0.5, importance=[1]), RecipeError, "[1]", "taylor"),  # type: ignore[arg-type]
    "protect as one string": (
        lambda: Prune(ratio=0.5, protect="stem"), RecipeError, "'stem'", 'protect=("head",)',  # type: ignore[arg-type]
    ),
    "samples as text": (lambda: Quantize(samples="3"), RecipeError, "'3'", "samples=0"),  # type: ignore[arg-type]
    "floors as a number": (lambda: Widths(floors=0.5), RecipeError, "got 0.5", 'floors={"layer4": 0.5}'),  # type: ignore[arg-type]
    "floor of a module above 1": (lambda: Widths(floors={"a": 2}), RecipeError, "floors['a']", "leave it out"),
    "floor above its ceiling": (lambda: Widths(ceilings={"a": 0.05}), RecipeError, "floor 0.1, ceiling 0.05", "name both"),
    "floor as text": (lambda: Widths(floor="a tenth"), RecipeError, "'a tenth'", "plain int or float"),  # type: ignore[arg-type]
    "effort as text only": (lambda: Effort("3"), BudgetError, "3", 'write "3 epochs"'),  # type: ignore[arg-type]
    "effort of a training": (lambda: Training(effort="3 parsecs"), BudgetError, "3 parsecs", "60 s"),  # type: ignore[arg-type]
    "confidence in words": (lambda: Budget(0.01, "0.5x", confidence="high"), BudgetError, "high", "0.95"),  # type: ignore[arg-type]
    "a step that is a list": (lambda: Recipe.parse("steps: [{step: [prune]}]"), RecipeError, "[", "step: prune"),
    "a date that is none": (lambda: Recipe.parse("steps: 2024-13-45"), RecipeError, "month", "recipe.yaml"),
    "a number of 5,000 digits": (lambda: Recipe.parse("steps: " + "9" * 5000), RecipeError, "digits", "recipe.yaml"),
    "a bottomless list": (lambda: Recipe.parse("[" * 100_000), RecipeError, "recursion", "recipe.yaml"),
}  # fmt: skip
CASES = {**BUDGETS, **TARGETS, **RECIPES, **MISTYPED}


def test_effort_of_a_training_can_be_written_as_text() -> None:
    assert Training(effort="60 s") == Training(effort=Effort(60, "seconds"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_a_typed_error_with_value_and_remedy(name: str) -> None:
    call, kind, value, remedy = CASES[name]
    with pytest.raises(ParedownError) as caught:
        call()
    assert type(caught.value) is kind
    assert value in str(caught.value)
    assert remedy in caught.value.remedy
    assert str(caught.value).startswith(caught.value.rule)
    assert "\n" not in str(caught.value)


def test_message_states_rule_value_and_remedy_in_that_order() -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(3, latency="0.5x")
    assert str(caught.value) == "max_drop must be in [0, 1), got 3; did you mean 0.03?"
