"""Expected values of crates/zoo-train/src/augment: what torchvision, timm and Pillow make of small images.

    python tests/golden/augment.py

writes augment.json beside this file. Made with torch 2.15, torchvision 0.29, timm 1.0.31, Pillow 13.0, numpy 2.4; the
file names the versions that it was made with. Images are filled by `byte`, which the Rust test computes too; what
comes out is stored as base64 of the planes (channel by channel, row by row).
The strengths of policies are those of torch on a processor with FMA: without it, a few last digits of torch.linspace
differ.
"""

import base64
import json
import math
import pathlib

import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image
from timm.data import auto_augment, mixup
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as F

MODES = {m.value: m for m in (InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)}
PIL_FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


def byte(x, y, c):
    return (31 * x + 17 * y + 73 * c + 5 * x * y + (3 * x * x + 7 * y * y) % 61) % 256


def picture(shape, span=256, low=0):
    """`span` and `low` make an image of fewer values, which stretching has something to do on."""
    channels, height, width = shape
    pixel = lambda x, y: [low + byte(x, y, c) * span // 256 for c in range(channels)]  # noqa: E731
    array = np.array([[pixel(x, y) for x in range(width)] for y in range(height)], dtype=np.uint8)
    return Image.fromarray(array[:, :, 0] if channels == 1 else array)


def packed(image):
    array = np.asarray(image)
    planes = array if array.ndim == 2 else array.transpose(2, 0, 1)
    return base64.b64encode(np.ascontiguousarray(planes).tobytes()).decode()


RGB, GREY, SQUARE, LARGE = [3, 7, 9], [1, 9, 7], [3, 16, 16], [3, 30, 26]


def torchvision_ops():
    signed = {
        "ShearX": [0.3, -0.99, 0.5],
        "ShearY": [-0.3, 0.99, 0.25],
        "TranslateX": [2.7, -3.0, 32.0],
        "TranslateY": [-2.2, 1.0],
        "Rotate": [13.5, -30.0, 90.0, -90.0, 180.0, 135.0],
    }
    plain = {
        "Identity": [0.0],
        "Brightness": [0.33, -0.6, 0.99, -0.99],
        "Color": [0.5, -0.5, 0.99, -0.99],
        "Contrast": [0.3, -0.3, 0.99, -0.99],
        "Sharpness": [0.9, -0.9, 0.3],
        "Posterize": [1, 2, 4, 7, 8],
        "Solarize": [0.0, 127.5, 255.0, 68.0],
        "AutoContrast": [0.0],
        "Equalize": [0.0],
        "Invert": [0.0],
    }
    for name, arguments in signed.items():
        for argument in arguments:
            for shape in (RGB, GREY, SQUARE):
                for mode in ("nearest", "bilinear"):
                    fill = [40, 50, 60] if shape == RGB else [40] if shape == GREY else None
                    yield name, argument, shape, (256, 0), mode, fill
    for name, arguments in plain.items():
        for argument in arguments:
            for shape, span in ((RGB, (256, 0)), (GREY, (256, 0)), ([3, 2, 5], (200, 30)), ([1, 1, 1], (256, 9))):
                yield name, argument, shape, span, "nearest", None
    for name in ("AutoContrast", "Equalize"):
        for shape, span in ((LARGE, (256, 0)), (LARGE, (90, 60)), ([1, 40, 40], (13, 100)), (RGB, (1, 8))):
            yield name, 0.0, shape, span, "nearest", None


def ops():
    for name, argument, shape, span, mode, fill in torchvision_ops():
        made = autoaugment._apply_op(picture(shape, *span), name, argument, MODES[mode], fill)
        yield {
            "name": name, "argument": argument, "shape": shape, "span": span, "mode": mode,
            "fill": ((fill or [0]) * 3)[:3], "bytes": packed(made),
        }  # fmt: skip


def hue():
    for factor in (-0.5, -0.21, -0.004, 0.0, 0.1, 0.33, 0.5):
        for shape, span in ((SQUARE, (256, 0)), (RGB, (60, 100)), (GREY, (256, 0))):
            made = F.adjust_hue(picture(shape, *span), factor)
            yield {"factor": factor, "shape": shape, "span": span, "bytes": packed(made)}


class Coin:
    """What timm draws: always this side."""

    def __init__(self, negative):
        self.negative = negative

    def random(self):
        return 0.75 if self.negative else 0.25


def argument(name, level, negative):
    level_to_arg = auto_augment.LEVEL_TO_ARG[name]
    auto_augment.random = Coin(negative)
    return [] if level_to_arg is None else [float(v) for v in level_to_arg(level, {"translate_pct": 0.45})]


def rand_augment_levels():
    for increasing, names in ((False, auto_augment._RAND_TRANSFORMS), (True, auto_augment._RAND_INCREASING_TRANSFORMS)):
        for level in (0.0, 1.0, 3.3, 5.0, 7.25, 9.0, 10.0):
            made = {name: [argument(name, level, negative) for negative in (False, True)] for name in names}
            yield {"increasing": increasing, "level": level, "arguments": made}


def rand_augment_images():
    for increasing, names in ((False, auto_augment._RAND_TRANSFORMS), (True, auto_augment._RAND_INCREASING_TRANSFORMS)):
        for name in names:
            moves = name.startswith(("Shear", "Translate", "Rotate"))
            if increasing and (moves or not name.endswith("Increasing")):
                continue
            for mode in ("bilinear", "bicubic") if moves else ("bilinear",):
                for level, negative in ((9.0, False), (4.7, True)):
                    image = picture(SQUARE if moves else RGB)
                    arguments = auto_augment.LEVEL_TO_ARG[name] and argument(name, level, negative) or []
                    integral = name.startswith(("Posterize", "Solarize"))
                    arguments = [int(v) for v in arguments] if integral else arguments
                    made = auto_augment.NAME_TO_OP[name](
                        image, *arguments, fillcolor=(128, 128, 128), resample=PIL_FILTERS[mode]
                    )
                    yield {
                        "name": name, "increasing": increasing, "level": level, "negative": negative, "mode": mode,
                        "shape": SQUARE if moves else RGB, "bytes": packed(made),
                    }  # fmt: skip


def resized_crops():
    cases = [
        ([3, 30, 40], [0, 0, 30, 40], 16), ([3, 30, 40], [3, 5, 20, 31], 12), ([1, 30, 40], [3, 5, 20, 31], 12),
        ([3, 40, 20], [1, 2, 36, 16], 18), ([3, 40, 20], [0, 0, 40, 9], 10), ([3, 9, 7], [2, 1, 5, 4], 14),
        ([3, 9, 7], [8, 6, 1, 1], 5), ([1, 60, 8], [0, 0, 60, 8], 4), ([3, 16, 16], [0, 0, 16, 16], 16),
        ([3, 28, 26], [1, 1, 24, 22], 20),
    ]  # fmt: skip
    for shape, box, side in cases:
        for mode in ("bilinear", "bicubic", "nearest"):
            made = F.resized_crop(picture(shape), *box, [side, side], MODES[mode], antialias=True)
            yield {"shape": shape, "box": box, "side": side, "mode": mode, "bytes": packed(made)}


def central_crops():
    """torchvision's last resort, which an impossible scale leads to."""
    for size in ([100, 10], [10, 100], [37, 5], [5, 37], [20, 24]):
        image = torch.zeros(3, *size)
        box = torchvision.transforms.RandomResizedCrop.get_params(image, [4.0, 4.0], [0.75, 4 / 3])
        yield {"size": size, "box": list(box)}


def sides():
    """As torchvision and timm compute them: [area, ratio, width, height] of crops, […, height, width] of erasing."""
    for area in (1.0, 20.48, 63.5, 512.0, 1000.0, 40000.0, 156.25):
        for ratio in (0.3, 0.75, 1.0, 4 / 3, 1 / 0.3, 2.0):
            first, second = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
            yield [area, ratio, first, second]


def cutmix_boxes():
    for size in ([32, 32], [9, 14]):
        for lam in (0.0, 0.1, 0.36, 0.5, 0.75, 0.99):
            for cy, cx in ((0, 0), (size[0] // 2, size[1] // 3), (size[0] - 1, size[1] - 1)):
                draws = iter((cy, cx))
                mixup.np.random.randint = lambda *a, **k: next(draws)  # noqa: B023
                (yl, yh, xl, xh), kept = mixup.cutmix_bbox_and_lam((2, 3, *size), lam)
                box = [int(v) for v in (yl, xl, yh - yl, xh - xl)]
                yield {"size": size, "lam": lam, "centre": [cy, cx], "box": box, "kept": float(kept)}


def targets():
    for lam, smoothing in ((1.0, 0.0), (0.75, 0.0), (0.3, 0.1), (0.5, 0.1), (1.0, 0.1)):
        labels = torch.tensor([0, 3, 2, 2])
        made = mixup.mixup_target(labels, 5, lam, smoothing)
        yield {
            "labels": labels.tolist(), "classes": 5, "lam": lam, "smoothing": smoothing,
            "targets": made.flatten().tolist(),
        }  # fmt: skip


def batches():
    """A batch mixed by timm's Mixup, its draws replaced."""
    shape = [4, 2, 5, 6]
    for cuts in (False, True):
        images = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) * 0.37 % 5 - 2
        mix = mixup.Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, num_classes=3)
        mix._params_per_batch = lambda: (0.64, cuts)  # noqa: B023
        draws = iter((3, 1))
        mixup.np.random.randint = lambda *a, **k: next(draws)  # noqa: B023
        mixed = images.clone()
        lam = mix._mix_batch(mixed)
        yield {
            "shape": shape, "cuts": cuts, "lam": 0.64, "centre": [3, 1], "kept": float(lam),
            "images": [round(v, 6) for v in images.flatten().tolist()],
            "mixed": [round(v, 6) for v in mixed.flatten().tolist()],
        }  # fmt: skip


def space(table):
    """The strengths of operations that have some, and whether they are signed."""
    return {name: {"values": torch.as_tensor(v).double().tolist(), "signed": s} for name, (v, s) in table.items()}


def main():
    auto = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy.CIFAR10)
    golden = {
        "versions": {m.__name__: m.__version__.split("+")[0] for m in (torch, torchvision, timm, PIL, np)},
        "ops": list(ops()),
        "hue": list(hue()),
        "trivial_augment_wide": space(autoaugment.TrivialAugmentWide()._augmentation_space(31)),
        "auto_augment": {
            "policies": auto.policies,
            "space": {f"{h}x{w}": space(auto._augmentation_space(10, (h, w))) for h, w in ((32, 32), (224, 180))},
        },
        "rand_augment": {"levels": list(rand_augment_levels()), "images": list(rand_augment_images())},
        "resized_crops": list(resized_crops()),
        "central_crops": list(central_crops()),
        "sides": list(sides()),
        "cutmix": list(cutmix_boxes()),
        "targets": list(targets()),
        "batches": list(batches()),
    }
    lines = []
    for key, value in golden.items():
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            lines.append(f'"{key}": [\n{rows}\n]')
        else:
            lines.append(f'"{key}": {json.dumps(value, separators=(",", ":"))}')
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    pathlib.Path(__file__).with_suffix(".json").write_text(text)
    print(len(text), "bytes")


if __name__ == "__main__":
    main()
