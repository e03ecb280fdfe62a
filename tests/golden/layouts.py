#!/usr/bin/env python3
"""Writes layouts.json: the keys and shapes of the checkpoints that the zoo's networks load.

usage: python tests/golden/layouts.py        (rewrites the file beside it)
needs: pip install torch torchvision timm transformers

  "models"        zoo's name -> ["KEY SHAPE", …], the state dict of the reference, in its order
  "inputs"        zoo's name -> the image that the reference's published weights of the network want
  "alternatives"  zoo's name -> [{"source": …, "layout": …, "input": …, "keys": ["KEY SHAPE", …]}], other spellings in circulation
                  of the same network: whose they are (null for the zoo's own) and the image that those files want

An image is [size, mean, std, "bilinear" or "bicubic", share of the resized side that is kept, whether it is squashed].

`num_batches_tracked` is left out: no network of the zoo has it. The networks are built on PyTorch's "meta" device, which
has shapes and no memory.
"""

import json
import re
from pathlib import Path

import timm
import torch
import torchvision
import transformers
from timm.models.efficientnet import _gen_mobilenet_v1

HERE = Path(__file__).resolve().parent


def tv(name, **options):
    return lambda: getattr(torchvision.models, name)(weights=None, **options)


def timm_model(name):
    return lambda: timm.create_model(name)


# timm has names for the full width only.
def mobilenet_v1(width):
    return lambda: _gen_mobilenet_v1("mobilenetv1_100", channel_multiplier=width)


MODELS = {
    **{name: tv(name) for name in ["alexnet", *(f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn"))]},
    "googlenet": tv("googlenet", aux_logits=False, init_weights=False),
    **{name: tv(name) for name in [*(f"densenet{n}" for n in (121, 161, 169, 201)),
                                   *(f"resnet{n}" for n in (18, 34, 50, 101, 152))]},
    **{name: timm_model(name) for name in (f"seresnet{n}" for n in (18, 34, 50, 101, 152))},
    "mobilenet_v1": timm_model("mobilenetv1_100"),
    **{f"mobilenet_v1_0{percent}": mobilenet_v1(percent / 100) for percent in (75, 50, 25)},
    "mobilenet_v2": tv("mobilenet_v2"),
    **{name: timm_model(name) for name in ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224",
                                           "vit_base_patch32_224"]},
    **{name: timm_model(name) for name in (f"mixer_{size}_224" for size in ("s32", "s16", "b32", "b16", "l16"))},
}

def vit(hidden, layers, heads, patch):
    config = transformers.ViTConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, patch_size=patch,
                                    intermediate_size=4 * hidden, num_labels=1000)
    return lambda: transformers.ViTForImageClassification(config)


def resnet(kind, depths, width=1):
    config = transformers.ResNetConfig(depths=depths, hidden_sizes=[width * n for n in (64, 128, 256, 512)], layer_type=kind,
                                       num_labels=1000)
    return lambda: transformers.ResNetForImageClassification(config)


def tv_input(name):
    """From the preset of the first weights that were published."""
    preset = next(iter(torchvision.models.get_model_weights(name))).transforms()
    crop = preset.crop_size[0] / preset.resize_size[0]
    return [preset.crop_size[0], preset.mean, preset.std, preset.interpolation.value, crop, False]


def timm_input(name):
    config = timm.get_pretrained_cfg(name)
    assert config.crop_mode == "center"
    return [config.input_size[1], config.mean, config.std, config.interpolation, config.crop_pct, False]


def hf_input(processor):
    size, names = processor.size, {2: "bilinear", 3: "bicubic"}
    squash = size.shortest_edge is None
    side, crop = (size.height, 1) if squash else (size.shortest_edge, processor.crop_pct)
    return [side, processor.image_mean, processor.image_std, names[int(processor.resample)], crop, squash]


HF_VIT = hf_input(transformers.ViTImageProcessor())
# The preprocessor_config.json beside the published ResNets sets these two.
HF_RESNET = hf_input(transformers.ConvNextImageProcessor(
    size={"shortest_edge": 224}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]))

# GoogLeNet is left out: torchvision's changes the mean and deviation again inside the network.
INPUTS = {
    **{name: tv_input(name) for name in ["alexnet", *(f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")),
                                         *(f"densenet{n}" for n in (121, 161, 169, 201)),
                                         *(f"resnet{n}" for n in (18, 34, 50, 101, 152)), "mobilenet_v2"]},
    **{name: timm_input(name) for name in [*(f"seresnet{n}" for n in (18, 34, 50, 101, 152)), "vit_tiny_patch16_224",
                                           "vit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch32_224",
                                           *(f"mixer_{size}_224" for size in ("s32", "s16", "b32", "b16", "l16"))]},
    "mobilenet_v1": timm_input("mobilenetv1_100"),
}

# What torchvision's module calls its children now, and what its published files call them, which it renames as it loads.
OLD_DENSENET = (r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.")
OLD_VIT = [(r"\.mlp\.0\.", ".mlp.linear_1."), (r"\.mlp\.3\.", ".mlp.linear_2.")]


def same(key):
    return key


def renamed(*rules):
    def rename(key):
        for pattern, to in rules:
            key = re.sub(pattern, to, key)
        return key
    return rename


# transformers renames as it writes a file; version 5 has other names in memory.
HF_VIT_FILE = [(r"vit\.layers\.", "vit.encoder.layer."), (r"attention\.([qkv])_proj\.",
               lambda m: f"attention.attention.{dict(q='query', k='key', v='value')[m[1]]}."),
               (r"attention\.o_proj\.", "attention.output.dense."), (r"mlp\.fc1\.", "intermediate.dense."),
               (r"mlp\.fc2\.", "output.dense.")]

VITS = {"tiny_patch16": (192, 3, 16), "small_patch16": (384, 6, 16), "base_patch16": (768, 12, 16), "base_patch32": (768, 12, 32)}
RESNETS = {18: ("basic", [2, 2, 2, 2], 1), 34: ("basic", [3, 4, 6, 3], 1), 50: ("bottleneck", [3, 4, 6, 3], 4),
           101: ("bottleneck", [3, 4, 23, 3], 4), 152: ("bottleneck", [3, 8, 36, 3], 4)}

# zoo's name: (what it is, whose layout, the image it wants, the network, what becomes of its keys)
ALTERNATIVES = {
    "googlenet": [("torchvision googlenet, as published: with both auxiliary heads", None, None,
                   tv("googlenet", aux_logits=True, init_weights=False), same)],
    **{name: [(f"torchvision {name}, as published: a dot before the number of norm and conv", None, tv_input(name), tv(name),
               renamed(OLD_DENSENET))] for name in (f"densenet{n}" for n in (121, 161, 169, 201))},
    "mobilenet_v2": [("timm mobilenetv2_100", "timm", timm_input("mobilenetv2_100"), timm_model("mobilenetv2_100"), same)],
    **{f"vgg{n}{bn}": [(f"timm vgg{n}{bn}", "timm", timm_input(f"vgg{n}{bn}"), timm_model(f"vgg{n}{bn}"), same)]
       for n in (11, 13, 16, 19) for bn in ("", "_bn")},
    **{f"resnet{n}": [(f"transformers ResNetForImageClassification of {n} layers", "transformers", HF_RESNET, resnet(*config), same)]
       for n, config in RESNETS.items()},
    **{f"vit_{name}_224": [
        ("transformers ViTForImageClassification, as published", "transformers", HF_VIT, vit(dim, 12, heads, patch),
         renamed(*HF_VIT_FILE)),
        ("transformers ViTForImageClassification, as version 5 has it in memory", "transformers", HF_VIT,
         vit(dim, 12, heads, patch), same),
    ] for name, (dim, heads, patch) in VITS.items()},
}
ALTERNATIVES["resnet18"].append(
    ("torchvision resnet18 inside torch.nn.DataParallel", None, tv_input("resnet18"), tv("resnet18"), lambda key: f"module.{key}"))
for ours, theirs in {"vit_base_patch16_224": "vit_b_16", "vit_base_patch32_224": "vit_b_32"}.items():
    ALTERNATIVES[ours] += [
        (f"torchvision {theirs}", "torchvision", tv_input(theirs), tv(theirs), same),
        (f"torchvision {theirs}, as published: the perceptron's layers by name", "torchvision", tv_input(theirs), tv(theirs),
         renamed(*OLD_VIT)),
    ]


def lines(build, rename=same):
    with torch.device("meta"):
        state = build().state_dict()
    shapes = {key: list(tensor.shape) for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    return [f"{rename(key)} {','.join(map(str, shape))}" for key, shape in shapes.items()]


def body(entries):
    # One network a line, so that a change shows in a diff as the network that changed.
    return ",\n".join(f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in entries.items())


if __name__ == "__main__":
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__,
                "transformers": transformers.__version__}
    models = {name: lines(build) for name, build in MODELS.items()}
    alternatives = {
        name: [{"source": source, "layout": layout, "input": image, "keys": lines(build, rename)}
               for source, layout, image, build, rename in entries]
        for name, entries in ALTERNATIVES.items()
    }
    head = json.dumps({"generator": "tests/golden/layouts.py", **versions})[1:-1]
    (HERE / "layouts.json").write_text(
        f"{{{head},\n\"models\": {{\n{body(models)}\n}},\n\"inputs\": {{\n{body(INPUTS)}\n}},\n"
        f"\"alternatives\": {{\n{body(alternatives)}\n}}}}\n")
