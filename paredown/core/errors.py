"""Every error that paredown raises on purpose: one class per thing a user can act on.

A message states the rule, the value that broke it and the remedy:
`max_drop must be in [0, 1), got 3; did you mean 0.03?`
"""


class ParedownError(Exception):
    """The base of all of them. `rule`: what must hold; `got`: what was found (None: nothing to show); `remedy`: what to do."""

    def __init__(self, rule: str, *, got: object = None, remedy: str) -> None:
        self.rule, self.got, self.remedy = rule, got, remedy
        found = "" if got is None else f", got {got!r}" if not isinstance(got, str) else f", got {got}"
        super().__init__(f"{rule}{found}; {remedy}")


class BudgetError(ParedownError):
    """A budget, an effort or a limit in it is malformed or out of range."""


class TargetError(ParedownError):
    """A target names an unknown runtime, or a batch or thread count that can't be."""


class RecipeError(ParedownError):
    """A recipe or a step config is malformed, out of range, or in an order that can't be applied."""


class TaskError(ParedownError):
    """The model, the data, the loss or the metric of a task doesn't fit the others."""


class BatchError(TaskError):
    """Batches are empty, one-shot, of the wrong form, or don't fit the model."""


class NotFiniteError(TaskError):
    """NaN or infinity in inputs, outputs or a loss."""


class MetricError(TaskError):
    """A metric returned the wrong number of values, or something that isn't a number."""


class NotTrainableError(TaskError):
    """Nothing in the model requires a gradient, yet a step has to train."""


class CertificationError(ParedownError):
    """The validation set is too small to certify the drop that was asked for."""


class MeasurementError(ParedownError):
    """A measurement was asked for in a way that can't give a sound number, or what was to be measured failed."""


class TraceError(ParedownError):
    """torch.export can't take the model; the message names the user's source line."""


class NothingToPruneError(ParedownError):
    """A pruning step would change nothing, or can't reach its goal with what may be cut."""


class NothingToQuantizeError(ParedownError):
    """A quantization step would change nothing: no weight of the model can go on a grid."""


class SurgeryError(ParedownError):
    """A cut model is not equal to the masked original."""


class OrderError(ParedownError):
    """Steps were asked for in an order that can't work; the remedy names the right one."""


class TrainingDivergedError(ParedownError):
    """A loss became NaN or infinite; the message names the step and the loss before it."""


class CheckpointError(ParedownError):
    """A checkpoint is missing, corrupt, truncated, or made from another model."""


class ExportError(ParedownError):
    """The model can't be written as an ONNX file, or the file is not valid."""


class ParityError(ParedownError):
    """An exported file disagrees with the torch model; the message names the first operator that diverges."""


class ArtifactError(ParedownError):
    """A file or folder that was to be read is missing, corrupt, or not one of ours."""


class OutputError(ParedownError):
    """The output folder can't be used as asked."""


class SearchSpaceError(ParedownError):
    """A search space is malformed or empty, or an architecture isn't one of its own."""


class SearchError(ParedownError):
    """An architecture search was asked for in a way that can't work, or none of its evaluations succeeded."""


class MissingExtraError(ParedownError):
    """A feature needs a package that is not installed; the remedy is the line that installs it."""
