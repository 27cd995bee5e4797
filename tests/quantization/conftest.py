"""A published ResNet-20 on real images, quantized to 4-bit weights, and a story model: what algorithms are tried on."""

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from paredown.core.steps import Quantize
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scheme import BitWidths, Scheme
from paredown.quantization.static import quantize_model
from paredown.task.task import Task


@pytest.fixture(scope="session")
def published(shared_data: ModuleType) -> Task:
    """ResNet-20 (91.73 % top-1), 64 training images in two batches, 100 for validation."""
    images, labels, _ = shared_data.cifar10("train", 64)
    held, held_labels, _ = shared_data.cifar10("validation", 100)
    x, y = shared_data.normalize(images), torch.as_tensor(labels)
    batches = list(zip(x.split(32), y.split(32), strict=True))
    validation = [(shared_data.normalize(held), torch.as_tensor(held_labels))]
    return Task(shared_data.cifar_resnet(20), (x[:4],), batches, validation)


@pytest.fixture(scope="session")
def published_w4(published: Task) -> QuantizedModel:
    """Its simulation with 4-bit weights and 8-bit activations; a test copies it before it changes it."""
    return quantize_model(published.model, published, Quantize(samples=64), reduced=True, scheme=Scheme(BitWidths(4, 8)))


@pytest.fixture(scope="session")
def calibration(published: Task) -> list[Tensor]:
    return [inputs for inputs, _ in published.train]


@pytest.fixture(scope="session")
def held_out(published: Task) -> Tensor:
    return published.validation[0][0]  # type: ignore[index,return-value,no-any-return]  # a list of one batch


@pytest.fixture(scope="session")
def storyteller(shared_data: ModuleType) -> nn.Module:
    """stories260K: tokens (batch, length) -> logits (batch, length, 512)."""
    model: nn.Module = shared_data.TinyLlama().eval()
    return model


@pytest.fixture(scope="session")
def stories(storyteller: nn.Module) -> list[Tensor]:
    """Three batches (8, 48) of tokens that the model itself wrote."""
    generator, tokens = torch.Generator().manual_seed(0), torch.ones(24, 1, dtype=torch.int64)
    with torch.no_grad():
        while tokens.shape[1] < 48:
            drawn = torch.multinomial(storyteller(tokens)[:, -1].softmax(-1), 1, generator=generator)
            tokens = torch.cat([tokens, drawn], 1)
    return list(tokens.split(8))
