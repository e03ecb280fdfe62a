"""The accuracy that timm reaches on a folder of pictures, beside what `zoo train` reaches with the same settings.

The parts of timm that its train.py is made of (create_dataset, create_loader, create_optimizer_v2, create_scheduler_v2,
clipping and label smoothing), in train.py's loop without its logging:

    pip install torch torchvision timm
    python tests/reference/folder_of_cifar.py cifar-10-batches-bin photos --train 4000 --val 1000 --side 160
    python tests/reference/train_timm.py resnet18 photos --size 96 --epochs 6 --seed 1

It prints one JSON object: the settings, the accuracy after every epoch, the best one, and images a second. The zoo's side:

    zoo train resnet18 --data photos --size 96 --epochs 6 --seed 1 --out run --recipe tests/reference/train_timm.toml
"""

import argparse
import json
import time

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--amp", action="store_true", help="torch.autocast to bfloat16")
    parser.add_argument("--own-start", action="store_true", help="timm's own initial values of MobileNet v2")
    args = parser.parse_args()

    random_seed(args.seed)
    names = {"mobilenet_v2": "mobilenetv2_100"}
    # The zoo starts the last norm of a branch at 1, and its MobileNet v2 has a dropout of 0.2, as the papers do.
    extra = {"zero_init_last": False} if args.model.startswith("resnet") else {"drop_rate": 0.2}
    model = timm.create_model(names.get(args.model, args.model), num_classes=10, **extra)
    if args.model == "mobilenet_v2" and not args.own_start:
        # The zoo starts as torchvision does. Under BatchNorm and clipping the size of the weights sets how fast they turn, and
        # timm's depthwise ones start sqrt(channels) as large; its classifier starts uniform up to 1 / sqrt(num_classes).
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
        torch.nn.init.normal_(model.classifier.weight, 0.0, 0.01)
        torch.nn.init.zeros_(model.classifier.bias)
    common = {
        "input_size": (3, args.size, args.size),
        "batch_size": args.batch,
        "use_prefetcher": False,
        "num_workers": 2,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bilinear",
        "persistent_workers": True,
        "device": torch.device("cpu"),
    }
    train = create_loader(
        create_dataset("", root=args.data, split="train", is_training=True),
        is_training=True, scale=(0.35, 1.0), ratio=(0.75, 4 / 3), hflip=0.5, color_jitter=0.4, re_prob=0.0, **common,
    )  # fmt: skip
    val = create_loader(
        create_dataset("", root=args.data, split="val", is_training=False), is_training=False, crop_pct=1.0, **common
    )
    optimizer = create_optimizer_v2(model, opt="sgd", lr=args.lr, weight_decay=1e-4, momentum=0.9)
    steps = len(train)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=args.epochs, min_lr=0.0, warmup_epochs=0, step_on_epochs=False,
        updates_per_epoch=steps,
    )  # fmt: skip
    loss_fn = LabelSmoothingCrossEntropy(smoothing=0.1)
    cast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=args.amp)  # noqa: E731

    accuracies, speeds, updates = [], [], 0
    for epoch in range(args.epochs):
        model.train()
        begin, images = time.time(), 0
        for inputs, labels in train:
            with cast():
                loss = loss_fn(model(inputs), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            images += len(labels)
            scheduler.step_update(num_updates=updates)
        speeds.append(images / (time.time() - begin))
        model.eval()
        correct = total = 0
        with torch.no_grad():
            for inputs, labels in val:
                with cast():
                    correct += (model(inputs).argmax(1) == labels).sum().item()
                total += len(labels)
        accuracies.append(correct / total)
        scheduler.step(epoch + 1)
    result = vars(args) | {
        "timm": timm.__version__, "torch": torch.__version__, "accuracies": accuracies, "last": accuracies[-1],
        "best": max(accuracies), "images_per_s": sorted(speeds)[len(speeds) // 2],
    }  # fmt: skip
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
