#!/usr/bin/env python3
"""The zoo's recipes in PyTorch, to stand beside its own runs on the same images.

usage: train.py --data DIR [--epochs 20] [--seeds 3] [--threads 1] [--out results.json] [MODEL ...]
needs: pip install torch numpy

DIR holds CIFAR-10 binary records, train.bin and test.bin (any number of records). Every run starts from PyTorch's own
random state (no seed is set), and its record is appended to the output as it ends.
"""
import argparse, importlib.util, json, math, time
from pathlib import Path
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
HALF = ((0.5,) * 3, (0.5,) * 3)
# As crates/zoo-train/src/recipe.rs: cosine changes the rate once an epoch, warm-up at every step.
RECIPES = {
    "modern-200": dict(optimizer="sgd", lr=0.1, wd=5e-4, batch=128, drop_last=False, cosine=True, augment=True,
                       norm=CIFAR10, clip=None, warmup=0),
    "template-600": dict(optimizer="adam", lr=1e-3, wd=1e-4, batch=500, drop_last=True, cosine=False, augment=False,
                         norm=HALF, clip=1.0, warmup=2),
    "mlp-sgd": dict(optimizer="sgd", lr=0.01, wd=5e-4, batch=128, drop_last=False, cosine=True, augment=False,
                    norm=CIFAR10, clip=None, warmup=0),
}
RUNS = {"cifar_resnet20": "modern-200", "cifar_plain20": "modern-200", "template_cnn": "template-600", "mlp": "mlp-sgd"}

def load(path):
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, 3073)
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(records[:, 0].astype(np.int64))

def crop_flip(x):  # x: uint8 (b, 3, 32, 32); each image its own place in the black-padded image, and its own flip
    b = x.shape[0]
    padded = F.pad(x, (4, 4, 4, 4))
    dy, dx, flip = torch.randint(9, (b,)), torch.randint(9, (b,)), torch.rand(b) < 0.5
    out = torch.stack([p[:, i:i + 32, j:j + 32] for p, i, j in zip(padded, dy.tolist(), dx.tolist())])
    return torch.where(flip[:, None, None, None], out.flip(3), out)

def train(model, recipe, train_set, test_set, epochs, log):
    r = RECIPES[recipe]
    net = DEFINITIONS.MODELS[model][0]()
    if model.startswith(("cifar_resnet", "cifar_plain")):
        for m in net.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in r["norm"])
    normal = lambda x: (x.float() / 255 - mean) / std
    kind = {"sgd": lambda p: torch.optim.SGD(p, lr=r["lr"], momentum=0.9, weight_decay=r["wd"]),
            "adam": lambda p: torch.optim.Adam(p, lr=r["lr"], weight_decay=r["wd"])}
    optimizer = kind[r["optimizer"]](net.parameters())
    (xs, ys), (test_x, test_y) = train_set, test_set
    steps = len(ys) // r["batch"] if r["drop_last"] else math.ceil(len(ys) / r["batch"])
    history, start = [], time.time()
    for epoch in range(epochs):
        net.train()
        order, losses = torch.randperm(len(ys)), []
        for step in range(steps):
            lr = r["lr"] * (0.5 * (1 + math.cos(math.pi * epoch / epochs)) if r["cosine"] else 1.0)
            done = epoch * steps + step + 1
            lr *= min(1.0, done / (r["warmup"] * steps)) if r["warmup"] else 1.0
            optimizer.param_groups[0]["lr"] = lr
            rows = order[step * r["batch"]:(step + 1) * r["batch"]]
            x = xs[rows]
            loss = F.cross_entropy(net(normal(crop_flip(x) if r["augment"] else x)), ys[rows])
            optimizer.zero_grad()
            loss.backward()
            if r["clip"]:
                nn.utils.clip_grad_norm_(net.parameters(), r["clip"])
            optimizer.step()
            losses.append(loss.item())
        net.eval()
        with torch.inference_mode():
            hits = sum((net(normal(test_x[i:i + 250])).argmax(1) == test_y[i:i + 250]).sum().item() for i in range(0, len(test_y), 250))
        history.append((sum(losses) / len(losses), 100 * hits / len(test_y)))
        log(f"{model} epoch {epoch + 1}: loss {history[-1][0]:.4f}, test {history[-1][1]:.2f} %, {time.time() - start:.0f} s")
    return {"model": model, "recipe": recipe, "epochs": epochs, "last": history[-1][1], "best": max(h[1] for h in history),
            "train_loss": history[-1][0], "seconds": time.time() - start, "torch": torch.__version__,
            "curve": [round(h[1], 2) for h in history], "losses": [round(h[0], 4) for h in history]}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--definitions", type=Path, required=True, help="tests/golden/generate.py, which defines the networks")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results.json"))
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("definitions", args.definitions)
    DEFINITIONS = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(DEFINITIONS)
    torch.set_num_threads(args.threads)
    torch.seed()  # without it every process starts from the same default seed
    sets = load(args.data / "train.bin"), load(args.data / "test.bin")
    records = json.loads(args.out.read_text()) if args.out.exists() else []
    for _ in range(args.seeds):
        for model in args.models or RUNS:
            records.append(train(model, RUNS[model], *sets, args.epochs, lambda line: print(line, flush=True)))
            args.out.write_text(json.dumps(records, indent=1))
