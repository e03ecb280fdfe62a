#!/usr/bin/env python3
"""Networks of torchvision and timm through `zoo export`: ONNX Runtime and timm compute what the library did.

usage: python tests/reference/export.py [--zoo target/release/zoo] [NETWORK...]   (no network: all)
needs: pip install torch torchvision timm onnx onnxruntime numpy safetensors; cargo build --release --bin zoo

Each network is built by its library with random weights and saved. `zoo export --to onnx` turns the file into an ONNX file, with
images and with pixels as input; onnx.checker looks at it with shape inference, and ONNX Runtime runs it on batches of one and
three. `zoo export --to timm` turns it into a folder, from which timm.create_model("local-dir:…") loads it, once with the classes
it has and once with five. Networks of timm's are exported for another size of images too, and for grey ones; torch.nn.Transformer
is exported for sequences of any lengths. The largest difference of a logit is printed, relative to the largest logit; over 1e-4 the script fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

LIMIT = 1e-4
V = torchvision.models


def lively(net, size, channels=3):
    """Statistics of a batch, biases that are not zero and a head that is not, so that nothing is left out unseen."""
    for parameter in net.parameters():
        if parameter.std() == 0 or parameter.numel() == 1:
            parameter.data += torch.randn_like(parameter) * 0.05
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    net.train()
    with torch.no_grad():
        net(torch.randn(4, channels, size, size))
    return net.eval()


# For images of another size, or of one channel: the zoo's name, timm's network, the side, the flags.
OTHERS = {
    "vit_tiny_patch16_224 at 384": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=384), 384, 3),
    "mixer_s32_224 at 256": (lambda: timm.create_model("mixer_s32_224", img_size=256), 256, 3),
    "resnet18 at 160, grey": (lambda: timm.create_model("resnet18", in_chans=1), 160, 1),
}

# The zoo's name, the network, whether timm has it, the side of its images.
CASES = {
    "alexnet": (lambda: V.alexnet(), False, 224),
    "vgg11_bn": (lambda: V.vgg11_bn(), True, 224),
    "googlenet": (lambda: V.googlenet(aux_logits=False, init_weights=True), False, 224),
    "resnet18": (lambda: V.resnet18(), True, 224),
    "resnet50": (lambda: timm.create_model("resnet50"), True, 224),
    "seresnet50": (lambda: timm.create_model("seresnet50"), True, 224),
    "densenet121": (lambda: V.densenet121(), True, 224),
    "mobilenet_v1": (lambda: timm.create_model("mobilenetv1_100"), True, 224),
    "mobilenet_v2": (lambda: V.mobilenet_v2(), True, 224),
    "vit_tiny_patch16_224": (lambda: timm.create_model("vit_tiny_patch16_224"), True, 224),
    "mixer_s32_224": (lambda: timm.create_model("mixer_s32_224"), True, 224),
}


def call(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")


def distance(got, want):
    return (np.abs(np.asarray(got) - want).max() / np.abs(want).max()).item()


def through_onnx(zoo, name, folder, net, size):
    call(zoo, "export", name, "--weights", folder / "net.safetensors", "--to", "onnx", "-o", folder / "net.onnx")
    call(zoo, "export", name, "--weights", folder / "net.safetensors", "--to", "onnx", "--pixels", "-o", folder / "pixels.onnx")
    worst = 0.0
    for file in ["net.onnx", "pixels.onnx"]:
        model = onnx.load(folder / file)
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
        preprocess = json.loads(session.get_modelmeta().custom_metadata_map["preprocess"])
        for batch in (1, 3):
            rng = np.random.default_rng(batch)
            pixels = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
            mean, std = (torch.tensor(preprocess[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
            images = (images - mean) / std
            with torch.no_grad():
                want = net(images).numpy()
            feed = {"pixels": pixels} if file == "pixels.onnx" else {"images": images.numpy()}
            (got,) = session.run(["logits"], feed)
            worst = max(worst, distance(got, want))
    return worst


def through_timm(zoo, name, folder, net, size):
    out = folder / "timm"
    call(zoo, "export", name, "--weights", folder / "net.safetensors", "--to", "timm", "-o", out)
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        want = net(images).numpy()
        worst = distance(theirs(images), want)
    other = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=5).eval()
    with torch.no_grad():
        features = [timm_net.forward_features(images).numpy() for timm_net in (theirs, other)]
        if other(images).shape != (3, 5) or distance(*features) > 0:
            sys.exit(f"{name}: timm's network of five classes sees other features")
    call(zoo, "export", name, "--weights", folder / "net.safetensors", "--to", "timm", "--dtype", "f16", "-o", folder / "half")
    halves = load_file(folder / "half/model.safetensors")
    if any(tensor.dtype != torch.float16 for tensor in halves.values()):
        sys.exit(f"{name}: --dtype f16 left other numbers")
    return worst


def of_other_images(zoo, case):
    build, size, channels = OTHERS[case]
    torch.manual_seed(5)
    name = case.split()[0]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        net = lively(build(), size, channels)
        save_file({key: tensor.contiguous() for key, tensor in net.state_dict().items()}, folder / "net.safetensors")
        call(zoo, "export", name, "--weights", folder / "net.safetensors", "--size", size, "--in-chans", channels, "--to", "timm",
             "-o", folder / "timm")
        theirs = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
        images = torch.randn(2, channels, size, size)
        with torch.no_grad():
            off = distance(theirs(images), net(images).numpy())
    print(f"{case:32} timm {off:.1e}", flush=True)
    return off


def of_sequences(zoo):
    """PyTorch's own Transformer, with random weights that move every tensor."""
    torch.manual_seed(5)
    net = torch.nn.Transformer(batch_first=True).eval()
    for parameter in net.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        torch.save(net.state_dict(), folder / "net.pth")
        call(zoo, "export", "transformer_base", "--weights", folder / "net.pth", "--to", "onnx", "-o", folder / "net.onnx")
        onnx.checker.check_model(onnx.load(folder / "net.onnx"), full_check=True)
        session = onnxruntime.InferenceSession(str(folder / "net.onnx"), providers=["CPUExecutionProvider"])
        worst = 0.0
        for batch, source, target in [(1, 7, 5), (3, 4, 11)]:
            given = {"source": torch.randn(batch, source, 512), "target": torch.randn(batch, target, 512)}
            with torch.no_grad():
                want = net(given["source"], given["target"]).numpy()
            (got,) = session.run(["output"], {name: tensor.numpy() for name, tensor in given.items()})
            worst = max(worst, distance(got, want))
    print(f"{'torch.nn.Transformer':24} onnx {worst:.1e}", flush=True)
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument("--zoo", default="target/release/zoo")
    args = parser.parse_args()
    zoo, worst = Path(args.zoo).resolve(), 0.0
    for name in args.networks or CASES:
        build, has_timm, size = CASES[name]
        torch.manual_seed(5)
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            net = lively(build(), size)
            save_file({key: tensor.contiguous() for key, tensor in net.state_dict().items()}, folder / "net.safetensors")
            found = [through_onnx(zoo, name, folder, net, size)]
            if has_timm:
                found.append(through_timm(zoo, name, folder, net, size))
        columns = "  ".join(f"{library} {off:.1e}" for library, off in zip(("onnx", "timm"), found))
        print(f"{name:24} {columns}", flush=True)
        worst = max(worst, *found)
    if not args.networks:
        worst = max(worst, *(of_other_images(zoo, case) for case in OTHERS), of_sequences(zoo))
    if worst > LIMIT:
        sys.exit(f"{worst:.1e} is more than {LIMIT}")


if __name__ == "__main__":
    main()
