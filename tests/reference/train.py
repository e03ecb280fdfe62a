#!/usr/bin/env python3
"""The zoo's recipes in PyTorch, to stand beside its own runs on the same images.

usage: python tests/reference/train.py MODEL --recipe review-20 --data DIR --data-name "CIFAR-10" --out results/pytorch.jsonl
           [--amp] [--compile] [--epochs N] [--seed 1] [--threads 2] [--limit 512]
needs: pip install torch torchvision timm numpy

DIR holds CIFAR-10's binary files: data_batch_*.bin and test_batch.bin, or train.bin and test.bin. One run is one line, appended to
--out at the end; `cargo xtask bench-cifar --readme` and the reports set it beside the zoo's runs of the same network, recipe, length
and --data-name. What a recipe says is `zoo recipe show NAME`; the networks are those that the goldens compare with, or the library's.
--amp is torch.autocast to bfloat16, as people train; the weights stay in float32.
--limit trains on the first N images only, to see that it runs; such a run writes no line.
"""

import argparse
import importlib
import json
import math
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
HALF = ((0.5,) * 3, (0.5,) * 3)
# `init`: "torch" lets every layer draw PyTorch's initial values, whatever the network's own are; "he" draws convolutions by He's
# rule and leaves the rest to PyTorch. `norm`: mean and deviation a channel, or "pixel", the mean image of the training images.
SGD = dict(optimizer="sgd", lr=0.1, wd=5e-4, batch=128, drop_last=False, schedule="constant", augment=False, norm=CIFAR10,
           clip=None, warmup=0, hold_out=0.0, epochs=200, steps=None, init="torch")
RECIPES = {
    "review-20": SGD | dict(lr=0.001, epochs=20),
    "resnet-paper": SGD | dict(wd=1e-4, schedule="steps", steps=64_000, augment=True, norm="pixel", hold_out=0.1, init="he"),
    "modern-200": SGD | dict(schedule="cosine", augment=True),
    "template-600": SGD | dict(optimizer="adam", lr=1e-3, wd=1e-4, batch=500, drop_last=True, norm=HALF, clip=1.0, warmup=2, epochs=600),
    "mlp-sgd": SGD | dict(lr=0.01, schedule="cosine", epochs=20),
}
# Networks that the goldens run with other settings, or not at all: as the library builds them.
LIBRARY = {
    "mobilenet_v1": lambda: timm.create_model("mobilenetv1_100", num_classes=10),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "densenet121": lambda: torchvision.models.densenet121(num_classes=10),
    "resnet101": lambda: torchvision.models.resnet101(num_classes=10),
    "seresnet101": lambda: timm.create_model("seresnet101", num_classes=10),
}


def build(model, recipe):
    """The network with the recipe's initial values."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
    for family in () if model in LIBRARY else ("cnn", "resnet", "mobile", "mlp"):
        reference = importlib.import_module(f"reference_{family}").MODELS.get(model)
        if reference is not None and not reference.settings:
            net = reference.build()
            break
    else:
        if model not in LIBRARY:
            sys.exit(f"no PyTorch form of {model} is known here")
        net = LIBRARY[model]()
    thin = model.startswith(("cifar_resnet", "cifar_plain", "cifar_seresnet")) and model != "cifar_resnet18"
    init = "he" if recipe == "modern-200" and thin else RECIPES[recipe]["init"]
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if init == "he" and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def load(folder, split):
    """Images as bytes, (n, 3, 32, 32), and labels."""
    batches = sorted(folder.glob("data_batch_*.bin")) if split == "train" else [folder / "test_batch.bin"]
    if not batches or not batches[0].exists():
        batches = [folder / f"{split}.bin"]
    records = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in batches])
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(records[:, 0].astype(np.int64))


def without_held_out(images, labels, share):
    """The training images less `share` of each class."""
    if share == 0.0:
        return images, labels
    left = []
    for label in range(10):
        rows = torch.nonzero(labels == label).flatten()
        left.append(rows[torch.randperm(len(rows))[round(len(rows) * share):]])
    rows = torch.cat(left).sort().values
    return images[rows], labels[rows]


def crop_and_flip(x, pad):
    """Each image at its own place of the image with a border of 4 pixels of `pad` (3 values), half of them mirrored."""
    n = len(x)
    padded = pad.to(x.dtype).view(1, 3, 1, 1).repeat(n, 1, 40, 40)
    padded[:, :, 4:36, 4:36] = x
    down, right = torch.randint(9, (n, 1)), torch.randint(9, (n, 1))
    rows, columns = down + torch.arange(32), right + torch.arange(32)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def rate(recipe, step, steps, per_epoch):
    """The learning rate of a step, from 0."""
    lr, epochs = recipe["lr"], steps / per_epoch
    if recipe["schedule"] == "cosine":  # changes once an epoch
        lr *= 0.5 * (1 + math.cos(math.pi * (step // per_epoch) / epochs))
    if recipe["schedule"] == "steps":
        lr *= 0.1 ** ((step >= steps * 0.5) + (step >= steps * 0.75))
    if recipe["warmup"]:
        lr *= min(1.0, (step + 1) / (recipe["warmup"] * per_epoch))
    return lr


def commit():
    """The commit of this script's tree, where git knows it."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    said = subprocess.run(asked, capture_output=True, text=True)
    return said.stdout.strip() or None


def train(args):
    torch.manual_seed(args.seed)
    recipe = RECIPES[args.recipe]
    images, labels = without_held_out(*load(args.data, "train"), recipe["hold_out"])
    test_images, test_labels = load(args.data, "test")
    if args.limit:
        images, labels = images[:args.limit], labels[:args.limit]
        test_images, test_labels = test_images[:args.limit], test_labels[:args.limit]
    if recipe["norm"] == "pixel":
        mean_image, black = images.double().mean(0).float() / 255, torch.zeros(3)
        normalise = lambda x: x.float() / 255 - mean_image
    else:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in recipe["norm"])
        black = (-mean / std).flatten()
        normalise = lambda x: (x.float() / 255 - mean) / std
    net = build(args.model, args.recipe).to(memory_format=torch.channels_last)
    kinds = {"sgd": lambda p: torch.optim.SGD(p, lr=recipe["lr"], momentum=0.9, weight_decay=recipe["wd"]),
             "adam": lambda p: torch.optim.Adam(p, lr=recipe["lr"], weight_decay=recipe["wd"])}
    optimizer = kinds[recipe["optimizer"]](net.parameters())
    run = torch.compile(net) if args.compile else net
    batch = recipe["batch"]
    per_epoch = len(labels) // batch if recipe["drop_last"] else math.ceil(len(labels) / batch)
    epochs = args.epochs or (math.ceil(recipe["steps"] / per_epoch) if recipe["steps"] else recipe["epochs"])
    steps = epochs * per_epoch  # whole epochs, as the zoo trains
    autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=args.amp)
    done, losses, accuracies, begin = 0, [], [], time.time()
    for epoch in range(epochs):
        net.train()
        order, total = torch.randperm(len(labels)), 0.0
        for start in range(0, per_epoch * batch, batch):
            optimizer.param_groups[0]["lr"] = rate(recipe, done, steps, per_epoch)
            rows = order[start:start + batch]
            x = normalise(images[rows])
            x = (crop_and_flip(x, black) if recipe["augment"] else x).contiguous(memory_format=torch.channels_last)
            with autocast():
                loss = F.cross_entropy(run(x).float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            if recipe["clip"]:
                nn.utils.clip_grad_norm_(net.parameters(), recipe["clip"])
            optimizer.step()
            total += loss.item()
            done += 1
        net.eval()
        right = 0
        with torch.inference_mode(), autocast():
            for start in range(0, len(test_labels), 250):
                x = normalise(test_images[start:start + 250]).contiguous(memory_format=torch.channels_last)
                right += (net(x).argmax(1) == test_labels[start:start + 250]).sum().item()
        losses.append(round(total / per_epoch, 4))
        accuracies.append(right / len(test_labels))
        print(f"{args.model} {args.recipe} epoch {epoch + 1}/{epochs}: train loss {losses[-1]}, test {accuracies[-1]:.2%}, "
              f"{time.time() - begin:.0f} s", flush=True)
    return {
        "model": args.model, "recipe": args.recipe, "epochs": epochs, "seed": args.seed, "data": args.data_name,
        "train_images": len(labels), "test_images": len(test_labels), "test_acc_last": accuracies[-1],
        "test_acc_best": max(accuracies), "precision": "bf16 autocast" if args.amp else "f32", "compiled": args.compile,
        "torch": torch.__version__, "device": "cpu", "threads": args.threads, "machine": platform.machine(), "seconds": round(time.time() - begin),
        "command": shlex.join(["python", *sys.argv]), "commit": commit(), "test_acc": accuracies, "train_loss": losses,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipe", required=True, choices=RECIPES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--data-name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = train(args)
    if args.limit:
        sys.exit("nothing is recorded of a run on a part of the images")
    with args.out.open("a") as out:
        out.write(json.dumps(record) + "\n")
