#!/usr/bin/env python3
"""Compares `zoo run --grads` with PyTorch on random weights: logits, loss, every gradient, every running statistic.

usage: python tests/reference/run.py [--zoo target/release/zoo] [--batch 4] [MODEL...]      (no model: all of the list below)
needs: pip install torch torchvision timm safetensors

For each network the reference is built with its own initialisation (seeded), its BatchNorm weights, biases and statistics are
drawn at random so that nothing is hidden behind ones and zeros, and one step in training mode runs without dropout,
in f32 and in f64. Printed are
  logits     the largest difference of zoo (f32) and PyTorch (f64), over the largest logit
  gradient   the largest relative norm of a difference among the parameters, and its key; beside it PyTorch's own f32 against
             its f64. A gradient that mathematics cancels (below 1e-6 of the network's largest) is compared with that
  stats      the same for the running statistics
Exit status 1 if a network misses 1e-4 (logits) or 1e-3 (gradients).
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


def compare(zoo, name, batch):
    net = build(name)
    size = 224
    x, target = torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,))
    with tempfile.TemporaryDirectory() as folder:
        weights, x_file, y_file = (str(Path(folder) / f) for f in ("w.safetensors", "x.safetensors", "y.safetensors"))
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, weights)
        save_file({"input": x, "target": target}, x_file)
        subprocess.run([zoo, "run", name, "--weights", weights, "--input", x_file, "--output", y_file, "--grads"],
                       check=True, stdout=subprocess.DEVNULL)
        ours = load_file(y_file)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    single = step(net, x, target)
    net.load_state_dict(state)
    double = step(net.double(), x.double(), target)
    logits, loss, grads, stats = double
    floor = 1e-6 * max(g.norm().item() for g in grads.values())
    logit_error = ((ours["logits"].double() - logits).abs().max() / logits.abs().max()).item()
    part = lambda prefix: {k.removeprefix(prefix): v for k, v in ours.items() if k.startswith(prefix)}
    grad_error, grad_key = worst(part("grad."), grads, floor)
    torch_error, _ = worst(single[2], grads, floor)
    stat_error, _ = worst(part("stat."), stats, 0.0)
    print(f"| {name} | {logit_error:.1e} | {abs(ours['loss'].item() - loss) / loss:.1e} | {grad_error:.1e} ({grad_key}) | "
          f"{torch_error:.1e} | {stat_error:.1e} |", flush=True)
    return logit_error < 1e-4 and grad_error < 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--zoo", default="target/release/zoo")
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    print("| network | logits | loss | worst gradient (its key) | PyTorch f32's own | statistics |\n|---|---|---|---|---|---|")
    results = [compare(arguments.zoo, name, arguments.batch) for name in arguments.models or [*TORCHVISION, *TIMM]]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
