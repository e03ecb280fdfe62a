#!/usr/bin/env python3
"""Gradients in mixed precision, the zoo's and those of PyTorch's autocast, against the exact ones: the table of docs/mixed_precision.md.

usage: python tests/reference/gradients.py [--zoo target/release/zoo] [--images train.bin] [--rounds 4] [--warm-up 30]
           [--record target/gradients.json] [--resume] [--into docs/mixed_precision.md] [MODEL...]   (no model: all of the list below)
needs: pip install torch torchvision timm numpy safetensors; cargo build --release --bin zoo

The networks are those of the goldens (tests/golden/reference_*.py), whose keys are the zoo's. Each starts as PyTorch initialises it and
takes `--warm-up` steps of SGD in f32, so that no head is zero and no norm is what it was made as. Its weights, and each round the images
and their labels, go to both sides as they are. A round is one batch and one backward pass in training mode without dropout, three times:
  exact      PyTorch in f64 on f64 maps. In the first round the zoo in f64 must give the same gradients to 1e-6 of their norm
  autocast   PyTorch under torch.autocast("cpu", torch.bfloat16), f32 weights
  zoo        `zoo run --grads --precision bf16`, f32 weights
Images: records of CIFAR-10's binary layout, or with none given normal random numbers, which are a harder case: a network tells them
apart by little. They are rounded to bfloat16 first, because what is measured is the network.

A tensor's cosine is that of the angle between its gradient and the exact one, the mean over the rounds. Left out are tensors whose exact
gradient is zero, or all but zero: what is left of one that cancels has no direction in bfloat16. Its norm is below 1e-4 of the network's
largest: a bias before BatchNorm (1e-16), and a norm's scale before a depthwise convolution and the next norm, which undoes it but for eps
(1e-6 to 1e-5). `lower` counts the tensors whose cosine is lower on the zoo's side in more than noise, `higher` the opposite: the mean of the rounds' differences is more
than three times its standard error, and 1e-4 or more.

The record has every tensor, and is written anew after each network; with `--resume` those that it holds are not run again. With `--into`
the table replaces what stands between `<!-- gradients -->` and `<!-- gradients end -->`.
"""

import argparse
import datetime
import importlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "golden"))
import reference_mobile  # noqa: E402  (found by the line above)

# name: the golden's family, and images a batch. Norms want many; the f64 maps of a DenseNet want 8 GB of memory for 32.
NETWORKS = {
    "cifar_resnet20": ("resnet", 64), "cifar_resnet18": ("resnet", 64), "cifar_vgg16_bn": ("cnn", 64),
    "cifar_densenet121": ("cnn", 32), "cifar_mobilenet_v1": ("mobile", 64), "cifar_mobilenet_v2": ("mobile", 64),
    "cifar_shufflenet_v1_g3": ("mobile", 64), "cifar_vit_tiny_patch4": ("transformer", 64), "template_mixer_s4": ("mlp", 64),
}


# A gradient's norm beside the network's largest, from which on it is compared.
SMALLEST = 1e-4


def build(name):
    """The goldens' network, or for two that they hold in another size, their classes in this one."""
    if name == "cifar_shufflenet_v1_g3":
        net = reference_mobile.ShuffleNet(3, 240, cifar=True)
    elif name == "cifar_densenet121":
        cnn = importlib.import_module("reference_cnn")
        net = cnn.dense_net(**cnn.SMALL_STEM)
    else:
        net = importlib.import_module(f"reference_{NETWORKS[name][0]}").MODELS[name].build()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


class Images:
    """Batches in their order: of a file, or without one of random numbers."""

    def __init__(self, path, batch):
        self.batch, self.drawn = batch, torch.Generator().manual_seed(7)
        self.records = np.fromfile(path, np.uint8).reshape(-1, 3073) if path else None
        self.at = 0

    def next(self):
        if self.records is None:
            x = torch.randn(self.batch, 3, 32, 32, generator=self.drawn)
            target = torch.randint(0, 10, (self.batch,), generator=self.drawn)
        else:
            rows = np.take(self.records, range(self.at, self.at + self.batch), axis=0, mode="wrap")
            self.at += self.batch
            target = torch.from_numpy(rows[:, 0].astype(np.int64))
            x = torch.from_numpy(rows[:, 1:].astype(np.float32)).reshape(-1, 3, 32, 32) / 255
            x = (x - torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)) / 0.25
        return x.bfloat16().float(), target


def step(net, x, target, autocast=False):
    """The loss and all gradients of one step, as f64."""
    net.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(net(x), target)
    loss.backward()
    return loss.item(), {key: p.grad.double().flatten().clone() for key, p in net.named_parameters()}


def warm_up(net, images, steps):
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.02, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        x, target = images.next()
        F.cross_entropy(net(x), target).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()


def zoo(args, name, folder, *flags):
    file = folder / "gradients.safetensors"
    command = [args.zoo, "run", name, "--weights", folder / "w.safetensors", "--input", folder / "x.safetensors", "--output", file,
               "--force", "--grads", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    tensors = load_file(file)
    grads = {key.removeprefix("grad."): t.double().flatten() for key, t in tensors.items() if key.startswith("grad.")}
    return tensors["loss"].item(), grads


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


def clearly_lower(a, b):
    """Whether the rounds of `a` are below those of `b` in more than noise."""
    differences = [y - x for x, y in zip(a, b)]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return mean > 3 * error and 1 - statistics.fmean(a) > 1.1 * (1 - statistics.fmean(b))


def verdict(tensor):
    ours, theirs = tensor["zoo"], tensor["autocast"]
    return "lower" if clearly_lower(ours, theirs) else "higher" if clearly_lower(theirs, ours) else ""


def compare(args, name):
    torch.manual_seed(1)
    net, images = build(name), Images(args.images, NETWORKS[name][1])
    warm_up(net, images, args.warm_up)
    state = {key: t.clone().contiguous() for key, t in net.state_dict().items()}
    losses, ours, theirs, norms = [], {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save_file(state, folder / "w.safetensors")
        for round in range(args.rounds):
            x, target = images.next()
            save_file({"input": x, "target": target}, folder / "x.safetensors")
            net.load_state_dict(state)
            loss, exact = step(net.double(), x.double(), target)
            net.float().load_state_dict(state)
            cast_loss, cast = step(net, x, target, autocast=True)
            zoo_loss, mixed = zoo(args, name, folder, "--precision", "bf16")
            largest = max(g.norm().item() for g in exact.values())
            if round == 0:
                _, same = zoo(args, name, folder, "--dtype", "f64")
                assert set(same) == set(exact) == set(mixed), f"{name}: {set(same) ^ set(exact)}"
                error = max((same[key] - exact[key]).norm().item() / max(exact[key].norm().item(), 1e-3 * largest) for key in exact)
                assert error < 1e-6, f"{name}: the zoo's f64 gradients are {error} off"
            losses.append((loss, zoo_loss, cast_loss))
            for key, gradient in exact.items():
                norms.setdefault(key, []).append(gradient.norm().item() / largest)
                if gradient.norm() > 1e-9 * largest:  # the record has what is small, too
                    ours.setdefault(key, []).append(cosine(mixed[key], gradient))
                    theirs.setdefault(key, []).append(cosine(cast[key], gradient))
    tensors = [{
        "key": key, "shape": list(state[key].shape), "norm": statistics.fmean(norms[key]), "zoo": [round_to(c) for c in ours[key]],
        "autocast": [round_to(c) for c in theirs[key]],
    } for key in ours]
    return {"model": name, "batch": images.batch, "left_out": sorted(set(norms) - set(ours)), "losses": losses, "tensors": tensors}


def round_to(x):
    return float(f"{x:.7f}")


def row(result):
    columns, tensors = [], [t for t in result["tensors"] if t["norm"] > SMALLEST]
    left_out = len(result["left_out"]) + len(result["tensors"]) - len(tensors)
    for side in ("zoo", "autocast"):
        means = [statistics.fmean(t[side]) for t in tensors]
        columns += [f"{x:.5f}" for x in (min(means), statistics.fmean(means), statistics.median(means))]
    verdicts = [verdict(t) for t in tensors]
    off = [statistics.fmean(abs(loss[side] - loss[0]) / loss[0] for loss in result["losses"]) for side in (1, 2)]
    losses = [f"{x:.1e}" for x in off]
    cells = [result["model"], result["batch"], len(verdicts), left_out, *columns, verdicts.count("lower"), verdicts.count("higher"), *losses]
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = ("| network | batch | tensors | left out | zoo: lowest | mean | median | autocast: lowest | mean | median | zoo lower | zoo higher "
        "| loss off: zoo | autocast |\n" + "|---" * 14 + "|")


def conditions(args):
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return {
        "cpu": cpu[1] if cpu else platform.machine(), "simd": os.environ.get("ZOO_SIMD", "the machine's best"),
        "images": Path(args.images).name if args.images else "random", "rounds": args.rounds,
        "warm_up": args.warm_up, "torch": torch.__version__, "date": datetime.date.today().isoformat(), "commit": git.stdout.strip(),
    }


def read(record):
    """The networks of a record, by name."""
    held = {}
    for line in json.loads(record.read_text())["rows"]:
        if "key" in line:
            held[line.pop("model")]["tensors"].append(line)
        else:
            held[line["model"]] = {**line, "tensors": []}
    return held


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--zoo", default="target/release/zoo")
    parser.add_argument("--images", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=30)
    parser.add_argument("--record", type=Path, default=Path("target/gradients.json"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--into", type=Path, metavar="FILE")
    args = parser.parse_args()
    print(HEAD)
    names = args.models or list(NETWORKS)
    held = read(args.record) if args.resume and args.record.exists() else {}
    results = []
    for name in names:
        results.append(held.get(name) or compare(args, name))
        print(row(results[-1]), flush=True)
        # One tensor a line, so that a change shows in a diff as what changed.
        lines = [json.dumps({"model": r["model"], **{k: r[k] for k in ("batch", "left_out", "losses")}}) for r in results]
        lines += [json.dumps({"model": r["model"], **t}) for r in results for t in r["tensors"]]
        args.record.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"conditions": conditions(args)})[:-1]
        args.record.write_text(head + ', "rows": [\n' + ",\n".join(lines) + "\n]}\n")
    if args.into:
        c = conditions(args)
        under = (f"{c['cpu']}; {c['rounds']} rounds, {c['warm_up']} steps of warm-up, images: {c['images']}; "
                 f"PyTorch {c['torch']}; commit {c['commit'][:12]}; {c['date']}.")
        table = "\n".join([HEAD, *map(row, results), "", under])
        pattern = r"(<!-- gradients -->\n).*?(<!-- gradients end -->)"
        text, count = re.subn(pattern, lambda m: m[1] + table + "\n" + m[2], args.into.read_text(), flags=re.S)
        assert count == 1, f"{args.into} has no place for the table"
        args.into.write_text(text)


if __name__ == "__main__":
    main()
