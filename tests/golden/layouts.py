#!/usr/bin/env python3
"""Writes layouts.json: the keys and shapes of the checkpoints that the zoo's networks load.

usage: python tests/golden/layouts.py        (rewrites the file beside it)
needs: pip install torch torchvision timm

  "models"        zoo's name -> ["KEY SHAPE", …], the state dict of the reference, in its order
  "alternatives"  zoo's name -> [{"source": …, "keys": ["KEY SHAPE", …]}], other spellings in circulation of the same network

`num_batches_tracked` is left out: no network of the zoo has it. The networks are built on PyTorch's "meta" device, which
has shapes and no memory.
"""

import json
import re
from pathlib import Path

import timm
import torch
import torchvision
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


# zoo's name: (what it is, the network, what becomes of its keys)
ALTERNATIVES = {
    "googlenet": [("torchvision googlenet, as published: with both auxiliary heads",
                   tv("googlenet", aux_logits=True, init_weights=False), same)],
    **{name: [(f"torchvision {name}, as published: a dot before the number of norm and conv", tv(name),
               renamed(OLD_DENSENET))] for name in (f"densenet{n}" for n in (121, 161, 169, 201))},
    "resnet18": [("torchvision resnet18 inside torch.nn.DataParallel", tv("resnet18"), lambda key: f"module.{key}")],
    "mobilenet_v2": [("timm mobilenetv2_100", timm_model("mobilenetv2_100"), same)],
    **{zoo: [(f"torchvision {name}", tv(name), same),
             (f"torchvision {name}, as published: the perceptron's layers by name", tv(name), renamed(*OLD_VIT))]
       for zoo, name in {"vit_base_patch16_224": "vit_b_16", "vit_base_patch32_224": "vit_b_32"}.items()},
}


def lines(build, rename=same):
    with torch.device("meta"):
        state = build().state_dict()
    shapes = {key: list(tensor.shape) for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    return [f"{rename(key)} {','.join(map(str, shape))}" for key, shape in shapes.items()]


def body(entries):
    # One network a line, so that a change shows in a diff as the network that changed.
    return ",\n".join(f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in entries.items())


if __name__ == "__main__":
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    models = {name: lines(build) for name, build in MODELS.items()}
    alternatives = {
        name: [{"source": source, "keys": lines(build, rename)} for source, build, rename in entries]
        for name, entries in ALTERNATIVES.items()
    }
    head = json.dumps({"generator": "tests/golden/layouts.py", **versions})[1:-1]
    (HERE / "layouts.json").write_text(
        f"{{{head},\n\"models\": {{\n{body(models)}\n}},\n\"alternatives\": {{\n{body(alternatives)}\n}}}}\n")
