#!/usr/bin/env python3
"""Compares `zoo run --grads` with PyTorch on random weights: logits, loss, every gradient, every running statistic.

usage: python tests/reference/run.py [--zoo target/release/zoo] [--batch 4] [MODEL...]      (no model: all of the list below)
needs: pip install torch torchvision timm safetensors

For each network the reference is built with its own initialisation (seeded); BatchNorm's weights, biases and statistics, and heads
that start at zero, are drawn at random, so that nothing is hidden. One step in training mode runs without dropout, four
times: by zoo and by PyTorch, in f64 and in f32. PyTorch in f64 is what all are compared with:
  logits     the largest difference over the largest logit
  gradient   the largest relative norm of a difference among the parameters. A gradient below a thousandth of the network's largest
             is compared with that: a convolution's bias before BatchNorm is cancelled and holds rounding only
  stats      the same for the running statistics
In f64 only the order of sums differs. In f32 a rounding turns the sign before some ReLU or the winner of some pooling, and gradients
jump: by how much, PyTorch's own f32 shows. Exit status 1 if f64 misses 1e-9, or the f32 logits miss 1e-4.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file

TORCHVISION = ["alexnet", "vgg16_bn", "googlenet", "densenet121", "resnet50", "mobilenet_v2"]
TIMM = {
    "seresnet50": "seresnet50", "mobilenet_v1": "mobilenetv1_100", "vit_base_patch16_224": "vit_base_patch16_224",
    "mixer_b16_224": "mixer_b16_224",
}


def build(name):
    torch.manual_seed(1)
    if name in TIMM:
        net = timm.create_model(TIMM[name], pretrained=False)
    else:
        options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
        net = torchvision.models.get_model(name, weights=None, **options)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)
    return net


def step(net, x, target):
    """Logits, loss, gradients and statistics of one training step, in f64."""
    net.train().zero_grad()
    logits = net(x)
    loss = F.cross_entropy(logits, target)
    loss.backward()
    grads = {key: p.grad.double() for key, p in net.named_parameters()}
    stats = {key: b.double() for key, b in net.named_buffers() if key.endswith(("running_mean", "running_var"))}
    return logits.detach().double(), loss.item(), grads, stats


def worst(got, want, floor):
    """The largest relative norm of a difference, and its key."""
    def error(key):
        return ((got[key].double() - want[key]).norm() / max(want[key].norm(), floor)).item()
    assert set(got) == set(want), set(got) ^ set(want)
    return max(((error(key), key) for key in want), default=(0.0, "-"))


def differences(got, want):
    """Of logits, of the loss, of gradients and of statistics."""
    (logits, loss, grads, stats), (true_logits, true_loss, true_grads, true_stats) = got, want
    floor = 1e-3 * max(g.norm().item() for g in true_grads.values())
    return (((logits - true_logits).abs().max() / true_logits.abs().max()).item(), abs(loss - true_loss) / true_loss,
            worst(grads, true_grads, floor)[0], worst(stats, true_stats, 0.0)[0])


def compare(zoo, name, batch):
    net = build(name)
    x, target = torch.randn(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        weights, x_file = str(Path(folder) / "w.safetensors"), str(Path(folder) / "x.safetensors")
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, weights)
        save_file({"input": x, "target": target}, x_file)
        for dtype in ("f64", "f32"):
            y_file = str(Path(folder) / f"{dtype}.safetensors")
            subprocess.run([zoo, "run", name, "--weights", weights, "--input", x_file, "--output", y_file, "--grads",
                            "--dtype", dtype], check=True, stdout=subprocess.DEVNULL)
            ours = {k: v.double() for k, v in load_file(y_file).items()}
            part = lambda prefix: {k.removeprefix(prefix): v for k, v in ours.items() if k.startswith(prefix)}
            runs[dtype] = ours["logits"], ours["loss"].item(), part("grad."), part("stat.")
    state = {k: v.clone() for k, v in net.state_dict().items()}
    single = step(net, x, target)
    net.load_state_dict(state)
    true = step(net.double(), x.double(), target)
    f64, f32, torch32 = (differences(run, true) for run in (runs["f64"], runs["f32"], single))
    numbers = " | ".join(f"{v:.0e}" for v in (*f64, *f32, torch32[0], torch32[2]))
    print(f"| {name} | {numbers} |", flush=True)
    return max(f64) < 1e-9 and f32[0] < 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--zoo", default="target/release/zoo")
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    print("| network | f64: logits | loss | gradients | statistics | f32: logits | loss | gradients | statistics "
          "| PyTorch's own f32: logits | gradients |\n" + "|---" * 11 + "|")
    results = [compare(arguments.zoo, name, arguments.batch) for name in arguments.models or [*TORCHVISION, *TIMM]]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
