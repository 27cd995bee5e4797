"""What a cut would cost, found before it is trained: prune, quantize, export, and time the file. Its accuracy is never looked at.

Bytes and latency follow from the widths alone, and training changes no width; so minutes here save hours of training a model
that would be too slow. What was found is beside the run's stages, so that a run taken up again plans as before.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pydantic

from paredown.core.artifact import Candidate
from paredown.core.budget import Axis
from paredown.core.errors import NothingToPruneError, NothingToQuantizeError
from paredown.core.progress import Progress
from paredown.core.recipe import Recipe
from paredown.core.target import Target
from paredown.deploy.onnx import export_onnx
from paredown.pipeline.apply import apply
from paredown.pipeline.evaluate import compare_latency, scratch_folder, writing
from paredown.pipeline.plan import Ratios
from paredown.pipeline.store import Store
from paredown.render.findings import steps_text
from paredown.task.task import Task

_ADAPTER: pydantic.TypeAdapter[Ratios | None] = pydantic.TypeAdapter(Ratios | None)


@dataclass(frozen=True)
class Screen:
    """`screen(recipe, axes)`: ratios of the file of an untrained recipe, or None where the cut can't be made. Measured once each.

    baseline: what is compared with; its file lies in the store.
    """

    task: Task
    baseline: Candidate
    target: Target
    store: Store
    seed: int
    progress: Progress

    def __call__(self, recipe: Recipe, axes: Collection[Axis]) -> Ratios | None:
        known = self.store.folder(recipe).with_suffix(".costs.json")
        try:
            found = _ADAPTER.validate_json(known.read_bytes())
            if found is None or set(axes) <= set(found):
                return found
        except (OSError, pydantic.ValidationError):
            pass
        label = f"plan: what {steps_text(Recipe(recipe.steps[:1]))} would cost"
        self.progress(label, 0.0)
        found = self._measured(recipe, axes)
        with scratch_folder(known) as scratch, writing(known):
            (scratch / "costs").write_bytes(_ADAPTER.dump_json(found))
            (scratch / "costs").replace(known)
        self.progress(label, 1.0)
        return found

    def _measured(self, recipe: Recipe, axes: Collection[Axis]) -> Ratios | None:
        try:
            model = apply(self.task, recipe, target=self.target, seed=self.seed)
        except (NothingToPruneError, NothingToQuantizeError):
            return None
        with scratch_folder(self.store.folder(recipe)) as scratch:
            before, file = self.baseline.artifact, scratch / "model.onnx"
            artifact = export_onnx(model, self.task.inputs, file, target=self.target, dynamic=self.task.dynamic)
            ratios: Ratios = {"size": artifact.size_bytes / before.size_bytes}
            if "latency" in axes:
                ratios["latency"] = compare_latency(self.task, Path(before.path), file, self.target).ratio.upper
            return ratios
