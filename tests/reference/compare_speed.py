#!/usr/bin/env python3
"""Speed and memory of the zoo and of PyTorch, side by side on this machine: the table of docs/performance.md.

usage: python tests/reference/compare_speed.py --baseline torch_baseline.py [--zoo target/release/zoo] [--seconds 4] [--rounds 3]
           [--threads N] [--images-224] [--compile] [--preload LIB] [--peak GFLOPS] [--into docs/performance.md]
           [--record target/speed.json] [--check] [MODEL...]          (no model: the ten networks for 32-pixel images)
needs: pip install torch torchvision timm; cargo build --release --bin zoo

A round runs `zoo bench MODEL --json`, `BASELINE --json MODEL` and the first again, each in a process of its own, with the
same batch and threads, so that whatever else the machine does meets both. PyTorch's figure is the better of its two memory
layouts, the zoo's the better of its two runs: both sides have two tries. The figures are medians over the rounds, the ratios
medians of the rounds' ratios. `--images-224` measures inference alone, of the networks for 224-pixel images. `--compile` and `--preload` (an
allocator's library) are for PyTorch only.

The record holds every round and the conditions; it is written anew after each model. With `--into` the table replaces what stands
between `<!-- table -->` and `<!-- table end -->` in that file (`<!-- table 224 -->` with `--images-224`). With `--check` the exit
status is 1 where the zoo is slower, or larger in training.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

TRAIN = [
    "cifar_resnet20", "cifar_resnet56", "cifar_resnet18", "cifar_vgg16_bn", "cifar_densenet121", "cifar_mobilenet_v1",
    "cifar_mobilenet_v2", "cifar_shufflenet_v1_g3", "cifar_vit_tiny_patch4", "template_mixer_s4",
]
INFER_224 = ["resnet50", "vgg16_bn", "googlenet", "mobilenet_v2", "vit_base_patch16_224"]
FIGURES = ["train_images_per_s", "infer_images_per_s", "peak_rss_mb"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--zoo", default="target/release/zoo")
    parser.add_argument("--baseline", required=True, help="the PyTorch script: BASELINE --json --mode M --seconds S --threads N MODEL")
    parser.add_argument("--seconds", type=float, default=4.0, help="of training a run; inference takes half")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--images-224", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--preload", metavar="LIB")
    parser.add_argument("--peak", type=float, metavar="GFLOPS", help="the machine's peak, as `cargo bench -p zoo` prints it")
    parser.add_argument("--into", type=Path, metavar="FILE")
    parser.add_argument("--record", type=Path, default=Path("target/speed.json"))
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


def one_object(command, **environment):
    """Runs a command and reads the JSON object that it prints."""
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode != 0 or len(lines) != 1:
        sys.exit(f"{' '.join(map(str, command))}: exit status {run.returncode}, {len(lines)} JSON lines")
    return json.loads(lines[0])


def git(*words):
    run = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
    return run.stdout.strip() if run.returncode == 0 else None


def command(args):
    """What was typed, with the baseline's name alone: where it lies is each machine's own business."""
    return " ".join(word.replace(args.baseline, Path(args.baseline).name) for word in sys.argv)


def conditions(args):
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "cpu": cpu[1] if cpu else platform.machine(), "cores": os.cpu_count(), "threads": args.threads, "system": platform.platform(),
        "python": platform.python_version(), **{name: metadata.version(name) for name in ["torch", "torchvision", "timm"]},
        "torch_compile": args.compile, "torch_preload": args.preload,
        "environment": {key: os.environ[key] for key in ["LD_PRELOAD", "ZOO_SIMD", "OMP_NUM_THREADS"] if key in os.environ},
        "commit": git("rev-parse", "HEAD"), "changed_files": bool(git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        # Whoever else computes here takes from both sides, and not alike.
        "load_before": round(os.getloadavg()[0], 2), "seconds": args.seconds, "rounds": args.rounds, "command": command(args),
    }


def measure(args, model):
    """All rounds of one model, the medians, their ratios, and what the zoo's are in GFLOP/s."""
    mode = "infer" if args.images_224 else "both"
    common = ["--json", "--mode", mode, "--seconds", str(args.seconds), "--threads", str(args.threads)]
    flags = ["--compile"] if args.compile else []
    preload = {"LD_PRELOAD": args.preload} if args.preload else {}
    rounds = []
    for _ in range(args.rounds):
        ours = one_object([args.zoo, "bench", model, *common])
        theirs = one_object([sys.executable, args.baseline, *common, *flags, model], **preload)
        again = one_object([args.zoo, "bench", model, *common])
        ours.update({f: max(ours[f] or 0.0, again[f] or 0.0) for f in FIGURES})
        for what in ["batch", "image"]:
            if ours[what] != theirs[what]:
                sys.exit(f"{model}: {what} {ours[what]} and {theirs[what]} cannot be compared")
        rounds.append({"zoo": ours, "torch": theirs})
    medians = {
        side: {f: statistics.median(r[side][f] or 0.0 for r in rounds) for f in FIGURES} for side in ["zoo", "torch"]
    }
    ratio = {
        f: statistics.median(r["zoo"][f] / r["torch"][f] for r in rounds) if medians["torch"][f] else None for f in FIGURES
    }
    macs = one_object([args.zoo, "info", model, "--json"])["macs"]
    # A multiply-add is two operations; a training step is three times the forward pass.
    gflops = {"train": 6e-9 * macs * medians["zoo"]["train_images_per_s"], "infer": 2e-9 * macs * medians["zoo"]["infer_images_per_s"]}
    return {
        "model": model, "batch": rounds[0]["zoo"]["batch"], "parameters": [rounds[0]["zoo"]["parameters"], rounds[0]["torch"]["params"]],
        "macs": macs, "median": medians, "ratio": ratio, "gflops": gflops, "rounds": rounds,
    }


def table(rows, args, where):
    modes = ["infer"] if args.images_224 else ["train", "infer"]
    speed = lambda mode: [f"{mode}: zoo", "PyTorch", "ratio", "GFLOP/s" + (", share of peak" if args.peak else "")]
    head = ["model", "batch", *[cell for mode in modes for cell in speed(mode)], "peak MB: zoo", "PyTorch", "ratio"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        ours, theirs, cells = row["median"]["zoo"], row["median"]["torch"], [row["model"], str(row["batch"])]
        for mode in modes:
            figure, gflops = f"{mode}_images_per_s", row["gflops"][mode]
            share = f", {100 * gflops / args.peak:.0f} %" if args.peak else ""
            cells += [f"{ours[figure]:.1f}", f"{theirs[figure]:.1f}", f"**{row['ratio'][figure]:.2f}**", f"{gflops:.0f}{share}"]
        memory = row["ratio"]["peak_rss_mb"]
        lines.append([*cells, f"{ours['peak_rss_mb']:.0f}", f"{theirs['peak_rss_mb']:.0f}", f"**{memory:.2f}**"])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    torch = f"PyTorch {where['torch']}" + (" compiled" if args.compile else "") + (f" with {Path(args.preload).name}" if args.preload else "")
    changed = " with changes" if where["changed_files"] else ""
    return (
        f"{text}\n\n{where['cpu']}, {where['cores']} cores, {where['threads']} threads; {torch}; commit {(where['commit'] or 'unknown')[:12]}{changed}; "
        f"{where['date'][:10]}; medians of {where['rounds']} rounds of {where['seconds']:g} s."
    )


def put(text, path, name):
    """Replaces what stands between the markers."""
    begin, end, document = f"<!-- {name} -->", f"<!-- {name} end -->", path.read_text()
    if document.count(begin) != 1 or document.count(end) != 1:
        sys.exit(f"{path}: wants one `{begin}` and one `{end}`")
    before, rest = document.split(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main():
    args = arguments()
    where, rows = conditions(args), []
    if where["load_before"] > 0.5:
        print(f"the machine is at work already (load {where['load_before']}): these ratios will not hold", file=sys.stderr)
    args.record.parent.mkdir(parents=True, exist_ok=True)
    for model in args.models or (INFER_224 if args.images_224 else TRAIN):
        rows.append(measure(args, model))
        ratio = {f: f"{r:.2f}" if r else "-" for f, r in rows[-1]["ratio"].items()}
        print(f"{model:24} train {ratio['train_images_per_s']}  infer {ratio['infer_images_per_s']}  memory {ratio['peak_rss_mb']}", flush=True)
        args.record.write_text(json.dumps({"conditions": where, "models": rows}, indent=1) + "\n")
    text = table(rows, args, where)
    print(f"\n{text}")
    if args.into:
        put(text, args.into, "table 224" if args.images_224 else "table")
    slower = [r["model"] for r in rows for f in FIGURES[:2] if r["ratio"][f] and r["ratio"][f] < 1.0]
    larger = [r["model"] for r in rows if not args.images_224 and r["ratio"]["peak_rss_mb"] > 1.0]
    if slower or larger:
        print(f"\nslower: {', '.join(dict.fromkeys(slower)) or 'none'}; larger: {', '.join(larger) or 'none'}")
        sys.exit(1 if args.check else 0)


if __name__ == "__main__":
    main()
