"""One case of quantization, into benchmarks/results/quantization_CASE.csv.

    python -m benchmarks.quantization resnet20                 10,000 test images; a killed case goes on where it stopped
    python -m benchmarks.quantization resnet20 --samples 500   the same on fewer, to see that it works; nothing is written

Peers in the same run: ONNX Runtime's quantizer, and NNCF, which the extra `bench` installs; one that isn't there has no rows.
"""

import argparse
from collections.abc import Callable

from benchmarks.quantization import arithmetic, convnets, language, lowbit, memory, zoo
from benchmarks.quantization.parts import Parts, done, forget, grow
from benchmarks.record import write

CASES: dict[str, tuple[Callable[[int | None], Parts], str]] = {
    "resnet20": (lambda samples: convnets.cifar(20, samples), "int8 of the CIFAR ResNet-20, in both runtimes, beside the peers"),
    "resnet56": (lambda samples: convnets.cifar(56, samples), "likewise of ResNet-56"),
    "lite0": (convnets.lite0, "likewise of EfficientNet-Lite0, by agreement with fp32 on enlarged CIFAR images"),
    "resnet18": (convnets.resnet18, "bytes and latency of torchvision's ResNet-18, batch 1"),
    "gated": (convnets.gated, "bytes and latency of EfficientNet-B0 and MobileNetV3, whose gates and SiLUs are integers too"),
    "forms": (convnets.forms, "ResNet-20 stored as fp16, bf16 and palettes"),
    "lowbit": (lowbit.trained, "ResNet-20 with weights of 4 bits, three epochs of distillation"),
    "mixed": (lowbit.mixed, "ResNet-20 at 4 bits on average: chosen exactly, by the rule, the same everywhere"),
    "rounding": (lowbit.rounding, "ResNet-20 in 4 bits: nearest, AdaRound, block reconstruction"),
    "minilm": (language.minilm, "MiniLM-L6 on STS-B: int8, and weights of 4 bits"),
    "stories": (language.stories, "stories260K in 4 bits: nearest, GPTQ, AWQ, HQQ, on text that none was calibrated on"),
    "zoo": (zoo.torchvision, "int8 of each of torchvision's classifiers, exported and compared in both runtimes"),
    "arithmetic": (arithmetic.both, "weights of 7 bits against 8 unsigned ones, where products of bytes saturate"),
    "memory": (memory.calibration, "peak memory of calibration on 40 and on 4,000 batches"),
}

GROWING = ("lowbit", "zoo")  # over as many runs as it takes: without their file they begin anew


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = "\n".join(f"  {name:10} {about}" for name, (_, about) in CASES.items())
    parser.add_argument("case", choices=CASES, metavar="CASE", help="one of those below")
    parser.add_argument("--samples", type=int, help="of each split (of the zoo: models); the result is shown, not written")
    parser.epilog = f"cases:\n{known}"
    options = parser.parse_args()
    parts = CASES[options.case][0](options.samples)
    if options.case in GROWING and options.samples is None:
        print(grow(options.case, parts))
        return
    rows = done(options.case, parts, kept=options.samples is None)
    if options.samples is None:
        print(write(f"quantization_{options.case}.csv", rows, other_machines=True))
        forget(options.case)


if __name__ == "__main__":
    main()
