#!/usr/bin/env python3
"""Photographs through torchvision, timm and transformers, and through `zoo predict`: the same probabilities, to 1e-4.

usage: python tests/reference/preprocess.py [--zoo target/release/zoo] [CASE...]   (no case: all)
needs: pip install torch torchvision timm transformers numpy pillow safetensors; cargo build --release --bin zoo

Weights are random: a network that sees another crop, another interpolation or another normalisation has other probabilities
whatever its weights are. Each case writes the file as its library does, with what the library lays beside it, and lets that
library's own preprocessing look at the photographs: a drawn scene, large, small, upright and wide, one of them turned by EXIF.
`zoo predict` gets the file and nothing else, unless the case says so. The largest difference of a probability is printed, and the
largest probability; over 1e-4 the script fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from PIL import Image, ImageOps

LIMIT = 1e-4


def photographs(folder):
    """A scene of waves and edges at several sizes, as PNG, so that no decoder stands between; one turned by EXIF."""
    paths = []
    for i, (width, height) in enumerate([(500, 375), (375, 500), (224, 224), (160, 90), (1200, 301), (96, 640)]):
        y, x = np.mgrid[0:height, 0:width] / 64
        waves = [np.sin(3 * x + i) * np.cos(2 * y), np.sin(x * y / 3), ((x * 2).astype(int) + (y * 2).astype(int)) % 2 * 2 - 1]
        image = Image.fromarray(np.stack([(w * 110 + 128).astype(np.uint8) for w in waves], -1))
        path = folder / f"{i}.png"
        exif = Image.Exif()
        if i == 1:
            exif[0x0112] = 6
        image.save(path, exif=exif)
        paths.append(path)
    return paths


def spread(net):
    """Evaluation, with a head that is not zero, as torchvision's ViT starts with."""
    torch.manual_seed(3)
    head = [module for module in net.modules() if isinstance(module, torch.nn.Linear)][-1]
    if not head.weight.any():
        torch.nn.init.normal_(head.weight, 0, 0.02)
    return net.eval()


def probabilities(net, images):
    with torch.no_grad():
        logits = torch.cat([net(image[None]) for image in images])
    return logits


class Case:
    """A network of a library, its file, and how the library sees photographs."""

    def __init__(self, zoo_name, net, transform, save, flags=()):
        self.zoo_name, self.net, self.transform, self.save, self.flags = zoo_name, net, transform, save, flags


def torchvision_case(zoo_name, name, weights, flags=(), **changes):
    def build():
        net = spread(getattr(torchvision.models, name)(num_classes=1000))
        preset = weights.transforms(**changes)
        return Case(zoo_name, net, preset, lambda folder: torch.save(net.state_dict(), folder / "net.pth"), flags)
    return build


def timm_case(zoo_name, name, flags=(), transform=None, **options):
    """As `timm.models.save_for_hf` leaves it: model.safetensors and config.json. With `options` timm itself loads that file into
    a network of another size or other channels, and adapts it."""
    def build():
        torch.manual_seed(3)
        net = spread(timm.create_model(name, pretrained=False))
        config = timm.data.resolve_model_data_config(net)
        config.update(transform or {})
        saved = net

        def save(folder):
            timm.models.save_for_hf(saved, folder, safe_serialization=True)

        if options:
            with tempfile.TemporaryDirectory() as folder:
                save(folder)
                overlay = dict(file=f"{folder}/model.safetensors", num_classes=1000)
                net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
        return Case(zoo_name, net, timm.data.create_transform(**config, is_training=False), save, flags)
    return build


def transformers_case(zoo_name, config, processor):
    def build():
        import transformers
        torch.manual_seed(3)
        net = spread(transformers.AutoModelForImageClassification.from_config(config()))
        seen = processor()

        def save(folder):
            net.save_pretrained(folder, safe_serialization=True)
            seen.save_pretrained(folder)
        look = lambda image: seen(image, return_tensors="pt")["pixel_values"][0]
        return Case(zoo_name, lambda x: net(x).logits, look, save)
    return build


def vit_config():
    import transformers
    return transformers.ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=1000)


def vit_processor():
    import transformers
    return transformers.ViTImageProcessor(resample=2)


V = torchvision.models
CASES = {
    "torchvision vit_b_16": torchvision_case("vit_base_patch16_224", "vit_b_16", V.ViT_B_16_Weights.IMAGENET1K_V1),
    "torchvision resnet18": torchvision_case("resnet18", "resnet18", V.ResNet18_Weights.IMAGENET1K_V1),
    "torchvision resnet50, second weights": torchvision_case(
        "resnet50", "resnet50", V.ResNet50_Weights.IMAGENET1K_V2, ("--crop", "0.9655")),
    "torchvision resnet18 at 288": torchvision_case(
        "resnet18", "resnet18", V.ResNet18_Weights.IMAGENET1K_V1, ("--size", "288", "--crop", "0.9"), crop_size=288, resize_size=320),
    "timm resnet18.a1_in1k": timm_case("resnet18", "resnet18.a1_in1k"),
    "timm resnet18.a1_in1k at 288": timm_case(
        "resnet18", "resnet18.a1_in1k", ("--size", "288", "--crop", "1"), transform={"input_size": (3, 288, 288), "crop_pct": 1.0}),
    "timm vit_tiny_patch16_224": timm_case("vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    "timm vit_tiny_patch16_224 at 384": timm_case(
        "vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", ("--size", "384"), img_size=384,
        transform={"input_size": (3, 384, 384)}),
    "timm mobilenetv2_100": timm_case("mobilenet_v2", "mobilenetv2_100.ra_in1k"),
    "timm mixer_b16_224": timm_case("mixer_b16_224", "mixer_b16_224.goog_in21k_ft_in1k"),
    "transformers vit": transformers_case("vit_tiny_patch16_224", vit_config, vit_processor),
}


def run(zoo, name, build):
    case = build()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "photos").mkdir()
        paths = photographs(folder / "photos")
        (folder / "net").mkdir()
        case.save(folder / "net")
        file = next(p for p in (folder / "net").iterdir() if p.suffix in (".safetensors", ".pth"))
        images = [case.transform(ImageOps.exif_transpose(Image.open(path)).convert("RGB")) for path in paths]
        logits = probabilities(case.net, images)
        want = logits.double().softmax(-1)
        command = [zoo, "predict", case.zoo_name, "--weights", file, "--top", "1000", "--json", *case.flags, *paths]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
        worst = 0.0
        for line, row in zip(done.stdout.splitlines(), want):
            top = json.loads(line)["top"]
            got = torch.zeros(len(row), dtype=torch.float64)
            for entry in top:
                got[entry["class"]] = entry["probability"]
            worst = max(worst, (got - row).abs().max().item())
        said = [line for line in done.stderr.splitlines() if "images of" in line][-1].split("images of ")[-1]
        print(f"{name:40} {worst:.1e}  largest {want.max().item():.3f}  {said}", flush=True)
        return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--zoo", default="target/release/zoo")
    args = parser.parse_args()
    names = [name for name in CASES if not args.cases or any(part in name for part in args.cases)]
    worst = max(run(args.zoo, name, CASES[name]) for name in names)
    if worst > LIMIT:
        sys.exit(f"{worst:.1e} is more than {LIMIT}")


if __name__ == "__main__":
    main()
