#!/usr/bin/env python3
"""Speed and memory of the zoo and of PyTorch, side by side on this machine: the tables of docs/performance.md.

usage: python tests/reference/compare_speed.py --baseline torch_baseline.py [--zoo target/release/zoo] [--precision f32,bf16]
           [--amp] [--compile] [--preload LIB] [--images-224] [--seconds 4] [--rounds 3] [--threads N] [--level LEVEL]
           [--record target/speed.json] [--into docs/performance.md] [--check] [MODEL...]
           (no model: the ten networks for 32-pixel images)
needs: pip install torch torchvision timm; cargo build --release --bin zoo

A round runs, each in a process of its own and with the same batch and threads: `zoo bench MODEL --json` in every precision, every
opponent, and the zoo again. Both sides have two tries: PyTorch one in each memory layout, the zoo one before and one after; the
better counts (of memory the larger). The opponents are PyTorch in f32, with `--amp` under autocast to bfloat16, with `--compile`
either of them through torch.compile; `--preload` gives them all an allocator. An opponent that reaches less than 0.85 of the
fastest in the first round, in training and in inference, is not run again.

Figures are medians over the rounds. Ratios are to the fastest opponent: of the zoo in f32 to the fastest in f32, of the zoo in bf16
to the fastest of all. `--images-224` measures inference alone, of the networks for 224-pixel images. `--level` is the zoo's ZOO_SIMD; ONEDNN_MAX_CPU_ISA lowers PyTorch's.

The record holds every round and the conditions; it is written anew after each model, and models that it holds already, under the
same command and commit, are not measured again. With `--into` the tables replace what stands between `<!-- table -->` and
`<!-- table end -->` in that file (`<!-- table 224 -->` with `--images-224`). With `--check` the exit status is 1 where the zoo is slower.
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
FIGURES = {"train": "train_images_per_s", "infer": "infer_images_per_s", "memory": "peak_rss_mb"}
# Flags of the baseline for each opponent.
OPPONENTS = {"f32": [], "f32 compiled": ["--compile"], "autocast": ["--amp"], "autocast compiled": ["--amp", "--compile"]}
WORTH_ANOTHER_ROUND = 0.85


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--zoo", default="target/release/zoo")
    parser.add_argument("--baseline", required=True, help="the PyTorch script: BASELINE --json --mode M --seconds S --threads N MODEL")
    parser.add_argument("--precision", default="f32", type=lambda list: list.split(","), help="of the zoo: f32, bf16 or f32,bf16")
    parser.add_argument("--amp", action="store_true", help="PyTorch under autocast to bfloat16 too")
    parser.add_argument("--compile", action="store_true", help="PyTorch through torch.compile too")
    parser.add_argument("--preload", metavar="LIB", help="an allocator for PyTorch")
    parser.add_argument("--images-224", action="store_true")
    parser.add_argument("--seconds", type=float, default=4.0, help="of training a run; inference takes half")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--level", metavar="LEVEL", help="ZOO_SIMD for the zoo")
    parser.add_argument("--record", type=Path, default=Path("target/speed.json"))
    parser.add_argument("--into", type=Path, metavar="FILE")
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
    """What was typed, with the names alone of the baseline and the allocator: where they lie is each machine's own business."""
    typed = " ".join(word.replace(args.baseline, Path(args.baseline).name) for word in sys.argv)
    return typed.replace(args.preload, Path(args.preload).name) if args.preload else typed


def conditions(args):
    info = Path("/proc/cpuinfo").read_text()
    cpu = re.search(r"^model name\s*:\s*(.*)$", info, re.M)
    flags = re.search(r"^flags\s*:\s*(.*)$", info, re.M)
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cpu_bf16": [flag for flag in ["amx_bf16", "avx512_bf16"] if flags and flag in flags[1].split()],
        "cores": os.cpu_count(), "threads": args.threads, "system": platform.platform(),
        "python": platform.python_version(), **{name: metadata.version(name) for name in ["torch", "torchvision", "timm"]},
        "precision": args.precision, "amp": args.amp, "torch_compile": args.compile,
        "torch_preload": Path(args.preload).name if args.preload else None,
        "environment": {key: os.environ[key] for key in ["LD_PRELOAD", "ZOO_SIMD", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA"] if key in os.environ},
        "commit": git("rev-parse", "HEAD"), "changed_files": bool(git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        # Whoever else computes here takes from both sides, and not alike.
        "load_before": round(os.getloadavg()[0], 2), "seconds": args.seconds, "rounds": args.rounds, "command": command(args),
    }


def better(first, second):
    """The better of two tries, figure by figure; of memory the larger."""
    return {**first, **{f: max(first[f] or 0.0, second[f] or 0.0) for f in FIGURES.values()}}


def measure(args, model):
    """All rounds of one model, the medians, and the ratios."""
    common = ["--json", "--mode", "infer" if args.images_224 else "both", "--seconds", str(args.seconds), "--threads", str(args.threads)]
    preload = {"LD_PRELOAD": args.preload} if args.preload else {}
    level = {"ZOO_SIMD": args.level} if args.level else {}
    zoo = lambda precision: one_object([args.zoo, "bench", model, "--precision", precision, *common], **level)
    opponents = {
        name: flags for name, flags in OPPONENTS.items()
        if ("--amp" not in flags or args.amp) and ("--compile" not in flags or args.compile)
    }
    rounds = []
    for _ in range(args.rounds):
        ours = {precision: zoo(precision) for precision in args.precision}
        theirs = {
            name: one_object([sys.executable, args.baseline, *common, *flags, model], **preload) for name, flags in opponents.items()
        }
        ours = {precision: better(first, zoo(precision)) for precision, first in ours.items()}
        for run in theirs.values():
            for what in ["batch", "image"]:
                if run[what] != ours[args.precision[0]][what]:
                    sys.exit(f"{model}: {what} {ours[args.precision[0]][what]} and {run[what]} cannot be compared")
        rounds.append({"zoo": ours, "torch": theirs})
        fastest = {f: max(run[f] for run in theirs.values()) for f in [FIGURES["train"], FIGURES["infer"]]}
        near = lambda run: any(speed and run[f] >= WORTH_ANOTHER_ROUND * speed for f, speed in fastest.items())
        opponents = {name: flags for name, flags in opponents.items() if near(theirs[name])}
    runs = lambda side, name: [one[side][name] for one in rounds if name in one[side]]
    medians = {
        side: {
            name: {what: statistics.median(run[f] or 0.0 for run in runs(side, name)) for what, f in FIGURES.items()}
            for name in rounds[0][side]
        }
        for side in ["zoo", "torch"]
    }
    info = one_object([args.zoo, "info", model, "--json"])
    return {
        "model": model, "batch": runs("zoo", args.precision[0])[0]["batch"], "image": runs("zoo", args.precision[0])[0]["image"],
        "parameters": [run["parameters"] for run in runs("zoo", args.precision[0])[:1]] + [run["params"] for run in runs("torch", "f32")[:1]],
        "simd": runs("zoo", args.precision[-1])[0]["simd"], "macs": info["macs"], "median": medians, "rounds": rounds,
    }


def fastest(row, what, only=""):
    """The opponent with the highest median, and that median."""
    return max(((name, figures[what]) for name, figures in row["median"]["torch"].items() if name.startswith(only)), key=lambda pair: pair[1])


def ratios(row, what):
    """Of the zoo's speeds to the fastest opponent of their kind, to autocast, and of bf16 to f32."""
    ours, found = {name: figures[what] for name, figures in row["median"]["zoo"].items()}, {}
    if ours.get("f32"):
        found["f32 / PyTorch f32"] = ours["f32"] / fastest(row, what, "f32")[1]
    if ours.get("bf16"):
        found["bf16 / PyTorch"] = ours["bf16"] / fastest(row, what)[1]
        if "f32" in ours:
            found["bf16 / f32"] = ours["bf16"] / ours["f32"]
    return found


def gflops(row, what, precision):
    """A multiply-add is two operations; a training step is three times the forward pass."""
    return {"train": 6e-9, "infer": 2e-9}[what] * row["macs"] * row["median"]["zoo"][precision][what]


def lines_of(head, rows):
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def speed_table(rows, what, precisions):
    """Images a second of the zoo and of PyTorch at its fastest, the ratios in bold, and the zoo's GFLOP/s."""
    keys = list(ratios(rows[0], what))
    head = ["model (batch)", *[f"zoo {p}" for p in precisions], "PyTorch f32"]
    with_amp = any(name.startswith("autocast") for name in rows[0]["median"]["torch"])
    head += (["autocast"] if with_amp else []) + keys + [f"GFLOP/s {p}" for p in precisions]
    table = []
    for row in rows:
        theirs = [fastest(row, what, only) for only in ["f32", "autocast"][:1 + with_amp]]
        compiled = lambda name: " c" if name.endswith("compiled") else ""
        table.append([
            f"{row['model']} ({row['batch']})", *[f"{row['median']['zoo'][p][what]:.0f}" for p in precisions],
            *[f"{speed:.0f}{compiled(name)}" for name, speed in theirs],
            *[f"**{ratio:.2f}**" for ratio in ratios(row, what).values()], *[f"{gflops(row, what, p):.0f}" for p in precisions],
        ])
    return lines_of(head, table)


def memory_table(rows, precisions):
    """Peak resident sets in MB. PyTorch's is its smallest among the opponents."""
    both = len(precisions) > 1
    head = ["model (batch)", *[f"zoo {p}" for p in precisions], "PyTorch", *(["bf16 / f32"] if both else []), f"{precisions[-1]} / PyTorch"]
    table = []
    for row in rows:
        ours = [row["median"]["zoo"][p]["memory"] for p in precisions]
        theirs = min(figures["memory"] for figures in row["median"]["torch"].values())
        of = [ours[-1] / ours[0]] if both else []
        table.append([
            f"{row['model']} ({row['batch']})", *[f"{mb:.0f}" for mb in [*ours, theirs]], *[f"**{r:.2f}**" for r in [*of, ours[-1] / theirs]]
        ])
    return lines_of(head, table)


def tables(rows, args, where):
    parts = [] if args.images_224 else [f"Training, images/s:\n\n{speed_table(rows, 'train', args.precision)}"]
    parts.append(f"Inference, images/s:\n\n{speed_table(rows, 'infer', args.precision)}")
    parts.append(f"Peak memory, MB:\n\n{memory_table(rows, args.precision)}")
    opponents = "f32" + (" and autocast" if args.amp else "") + (", eager and compiled (c)" if args.compile else "")
    allocator = f" with {where['torch_preload']}" if where["torch_preload"] else ""
    changed = " with changes" if where["changed_files"] else ""
    flags = f" ({', '.join(where['cpu_bf16'])})" if where["cpu_bf16"] else ""
    parts.append(
        f"{where['cpu']}{flags}, {where['cores']} cores, {where['threads']} threads, zoo on {rows[0]['simd']}; PyTorch {where['torch']}{allocator}, "
        f"{opponents}; commit {(where['commit'] or 'unknown')[:12]}{changed}; {where['date'][:10]}; medians of {where['rounds']} rounds of "
        f"{where['seconds']:g} s."
    )
    return "\n\n".join(parts)


def put(text, path, name):
    """Replaces what stands between the markers."""
    begin, end, document = f"<!-- {name} -->", f"<!-- {name} end -->", path.read_text()
    if document.count(begin) != 1 or document.count(end) != 1:
        sys.exit(f"{path}: wants one `{begin}` and one `{end}`")
    before, rest = document.split(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def measured_before(args, where):
    """The models that the record holds already, under the same command and commit, by name."""
    record = json.loads(args.record.read_text()) if args.record.exists() else {"conditions": {}, "models": []}
    same = all(record["conditions"].get(key) == where[key] for key in ["command", "commit", "cpu", "threads"])
    return ({row["model"]: row for row in record["models"]}, record["conditions"]) if same else ({}, where)


def main():
    args = arguments()
    where = conditions(args)
    before, where = measured_before(args, where)
    if where["load_before"] > 0.5:
        print(f"the machine is at work already (load {where['load_before']}): these ratios will not hold", file=sys.stderr)
    args.record.parent.mkdir(parents=True, exist_ok=True)
    rows, slower = [], []
    for model in args.models or (INFER_224 if args.images_224 else TRAIN):
        row = before.get(model) or measure(args, model)
        rows.append(row)
        for what in ["infer"] if args.images_224 else ["train", "infer"]:
            found = ratios(row, what)
            print(f"{model:24} {what:5} " + "  ".join(f"{key} {ratio:.2f}" for key, ratio in found.items()), flush=True)
            slower += [f"{model} ({what}, {key})" for key, ratio in found.items() if ratio < 1.0]
        args.record.write_text(json.dumps({"conditions": where, "models": rows}, indent=1) + "\n")
    text = tables(rows, args, where)
    print(f"\n{text}")
    if args.into:
        put(text, args.into, "table 224" if args.images_224 else "table")
    if slower:
        print(f"\nslower: {', '.join(slower)}")
        sys.exit(1 if args.check else 0)


if __name__ == "__main__":
    main()
