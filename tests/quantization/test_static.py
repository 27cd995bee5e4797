"""Post-training quantization: close to the original, which it leaves alone; every bad input is a typed error."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.errors import BatchError, NotFiniteError, NothingToQuantizeError, RecipeError, TraceError
from paredown.core.steps import Activations, Quantize
from paredown.graph.manifest import Manifest, attach_
from paredown.quantization.static import prepare, quantize_model
from paredown.task.batches import Batch
from paredown.task.task import Task
from tests.conftest import SmallResNet, make_small_resnet
from tests.quantization.models import Attention, PaddedShortcut


def data(samples: int = 64, size: int = 16, shape: tuple[int, ...] = (1, 8, 8)) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, *shape, generator=generator)
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split(size)]


def task_of(model: nn.Module, batches: list[Batch] | None = None, **fields: object) -> Task:
    batches = data() if batches is None else batches
    return Task(model, (batches[0][0],), batches, batches, **fields)  # type: ignore[arg-type]  # fields of a Task


@pytest.mark.parametrize("target", [None, "onnxruntime", "openvino"])
@pytest.mark.parametrize("reduced", [False, True])
def test_result_is_close_to_the_original(target: str | None, reduced: bool) -> None:
    model = make_small_resnet()
    quantized = quantize_model(model, task_of(model), Quantize(target=target), reduced=reduced)
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, output = model(x), quantized(x)
    assert 0 < (output - expected).norm() / expected.norm() < 0.06


@pytest.mark.parametrize("model, shape", [(PaddedShortcut(), (3, 8, 8)), (Attention(), (6, 8))])
def test_other_architectures_are_close_too(model: nn.Module, shape: tuple[int, ...]) -> None:
    batches = data(shape=shape)
    quantized = quantize_model(
        model.eval(), task_of(model, batches), Quantize(activations=Activations(observer="minmax")), reduced=False
    )
    with torch.no_grad():
        expected = model(batches[0][0])
        assert 0 < (quantized(batches[0][0]) - expected).norm() / expected.norm() < 0.06


def test_the_model_is_left_untouched() -> None:
    model = make_small_resnet().train()
    state = copy.deepcopy(model.state_dict())
    quantized = quantize_model(model, task_of(model), Quantize(), reduced=True)
    with torch.no_grad():
        for p in quantized.parameters():
            p.fill_(7.0)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training
    assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in quantized.parameters())


def test_the_same_data_gives_the_same_model() -> None:
    model = make_small_resnet()
    first, second = (quantize_model(model, task_of(model), Quantize(), reduced=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize("reduced, high", [(False, 127), (True, 63)])
def test_weights_are_per_channel_and_use_their_whole_range(reduced: bool, high: int) -> None:
    model = make_small_resnet()
    quantized = quantize_model(model, task_of(model), Quantize(), reduced=reduced)
    weight, quantizer = quantized.get_parameter("block2.conv1.weight"), quantized.quantizer("block2/conv1@0:weight")
    steps = (weight / quantizer.scale.view(-1, 1, 1, 1)).abs().flatten(1).amax(1)
    assert quantizer.scale.shape == (16,)
    assert torch.allclose(steps, torch.full((16,), float(high)))


def test_biases_lie_on_the_grid_of_the_runtime() -> None:
    model = make_small_resnet()
    quantized = quantize_model(model, task_of(model), Quantize(), reduced=True)
    step = quantized.quantizer("stem/0@0:input").scale * quantized.quantizer("stem/0@0:weight").scale
    assert torch.equal(quantized.quantizer("stem/0@0:bias").scale, step)


def test_a_bias_behind_a_dropout_lies_on_the_grid_of_what_the_dropout_reads() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4)).eval()
    quantized = quantize_model(model, task_of(model, data(shape=(8,))), Quantize(), reduced=False)
    read, weight, bias = (quantized.quantizer(key).scale for key in ("0@0:output", "3@0:weight", "3@0:bias"))
    assert torch.equal(bias, read * weight)


def test_a_dead_channel_with_a_bias_does_not_overflow_an_int32() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            with torch.no_grad():
                self.fc.weight[1] *= 1e-14
                self.fc.bias[1] = 1000.0

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x)
            return out

    model, batches = Dead(), data(shape=(4,))
    quantized = quantize_model(model, task_of(model, batches), Quantize(), reduced=False)
    assert 1000.0 / quantized.quantizer("fc@0:bias").scale[1] < 2**31
    assert quantized(batches[0][0])[0, 1].item() == pytest.approx(1000.0)


class HalfDead(nn.Module):
    """A convolution half of whose channels a batch norm scales by `gamma`; what they give is their bias."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3)
        with torch.no_grad():
            self.norm.weight[:8] = gamma
            self.norm.bias.normal_(0, 0.05)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x))).mean((2, 3))


def test_channels_without_weights_keep_their_bias() -> None:
    found = []
    for gamma in (0.0, 1e-6):
        torch.manual_seed(0)
        model = HalfDead(gamma).eval()
        quantized, x = quantize_model(model, task_of(model), Quantize(), reduced=False), data()[0][0]
        with torch.no_grad():
            found.append(float((quantized(x) - model(x)).norm() / model(x).norm()))
    assert found[0] == pytest.approx(found[1], rel=0.1) and found[0] < 0.05


@pytest.mark.parametrize("samples, expected", [(16, 16), (17, 32), (0, 64), (10_000, 64)])
def test_calibration_reads_whole_batches_up_to_the_samples(samples: int, expected: int) -> None:
    read: list[int] = []

    class Counted(list[Batch]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for batch in super().__iter__():
                read.append(len(batch[0]))
                yield batch

    model, batches = make_small_resnet(), data()
    task = task_of(model, batches)
    told: list[float] = []
    counted = dataclasses.replace(task, train=Counted(batches))
    read.clear()
    quantize_model(model, counted, Quantize(samples=samples), reduced=True, progress=lambda _, part: told.append(part))
    assert sum(read) == expected
    assert told[-1] == 1.0 and told == sorted(told)


def test_an_outlier_is_clipped_by_the_percentile_alone() -> None:
    model, batches = make_small_resnet(), data()
    batches[0][0][0, 0, 0, 0] = 1000.0
    scales = [
        quantize_model(model, task_of(model, batches), Quantize(activations=activations), reduced=True)
        .quantizer("stem/0@0:input")
        .scale.item()
        for activations in (Activations(observer="minmax"), Activations(observer="percentile", percentile=99.9))
    ]
    assert scales[0] > 100 * scales[1]


def test_protected_modules_stay_in_float() -> None:
    model = make_small_resnet()
    task = task_of(model, protect=("head",))
    quantized = quantize_model(model, task, Quantize(protect=("block1.conv2",)), reduced=True)
    assert quantized.config.protect == ("block1.conv2", "head")
    assert not [key for key in quantized.quantizers if key.startswith(("block1/conv2@", "head@"))]
    again = prepare(SmallResNet(), task.inputs, quantized.config, reduced=True)
    assert set(again.quantizers) == set(quantized.quantizers)


def test_the_manifest_of_a_pruned_model_comes_along() -> None:
    manifest = Manifest({"stem.0.weight": {0: (0, 2)}})
    model = attach_(make_small_resnet(), manifest)
    assert prepare(model, torch.randn(2, 1, 8, 8), Quantize(), reduced=True).manifest == manifest


def test_unknown_protected_name_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"protect must name modules.*got blok1; see model\.named_modules"):
        prepare(make_small_resnet(), torch.randn(2, 1, 8, 8), Quantize(protect=("blok1",)), reduced=True)


def test_unknown_target_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"target must be one of onnxruntime, openvino, got 'tensorrt'; write target="):
        prepare(make_small_resnet(), torch.randn(2, 1, 8, 8), Quantize(target="tensorrt"), reduced=True)


def test_nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(NothingToQuantizeError, match="quantize a model with convolutions or linear layers"):
        prepare(nn.Sequential(nn.LayerNorm(4), nn.ReLU()), torch.randn(2, 4), Quantize(), reduced=True)
    with pytest.raises(NothingToQuantizeError, match="take names out of protect"):
        prepare(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), Quantize(protect=("0",)), reduced=True)


def test_calibration_data_that_is_not_finite_is_an_error() -> None:
    model, batches = make_small_resnet(), data()
    task = task_of(model, batches)
    batches[2][0][3] = torch.nan
    with pytest.raises(NotFiniteError, match=r"inputs of train, batch 2, must be finite, got NaN"):
        quantize_model(model, task, Quantize(), reduced=True)


def test_activations_that_overflow_are_an_error() -> None:
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc(torch.exp(x * 1.0)))

    model, batches = Overflows(), data(shape=(4,))
    task = task_of(model, batches)
    batches[1][0][0, 0] = 1e4
    with pytest.raises(NotFiniteError, match=r"activations at fc@0:input must be finite, got infinity"):
        quantize_model(model, task, Quantize(), reduced=True)


def test_an_empty_calibration_set_is_an_error() -> None:
    model, batches = make_small_resnet(), data()
    task = task_of(model, batches)
    batches.clear()
    with pytest.raises(BatchError, match="train must hold at least one batch"):
        quantize_model(model, task, Quantize(), reduced=True)


def test_a_name_that_the_quantized_model_needs_is_refused() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.graph(x)
            return out

    with pytest.raises(TraceError, match=r"needs this name for itself, got graph; rename that attribute"):
        prepare(Clash(), torch.randn(2, 4), Quantize(), reduced=True)


@pytest.mark.slow
def test_published_resnet20_keeps_its_accuracy_on_2000_images(shared_data) -> None:  # type: ignore[no-untyped-def]
    """91.73 % top-1 on all 10,000 test images (chenyaofo/pytorch-cifar-models); int8 within 0.6 points on the first 2,000."""
    images, _, _ = shared_data.cifar10("train", 1024)
    x = shared_data.normalize(images)
    train = [(part, None) for part in x.split(128)]
    held, labels, _ = shared_data.cifar10("validation", 2000)
    model = shared_data.cifar_resnet(20)
    validation = [(shared_data.normalize(held), torch.as_tensor(labels))]
    task = Task(model, (x[:2],), train, [(validation[0][0][:8], validation[0][1][:8])])
    quantized = quantize_model(model, task, Quantize(), reduced=True)
    with torch.no_grad():
        right = [float((m(validation[0][0]).argmax(1) == validation[0][1]).double().mean()) for m in (model, quantized)]
    assert right[1] > right[0] - 0.006
