#!/usr/bin/env python3
"""Which kernels a training step spends its time in: the tables of limits of docs/performance.md.

usage: python tests/reference/profile_kernels.py [--zoo target/release/zoo] [--precision f32|bf16] [--mode train|infer]
           [--seconds 6] [--warm-up 5] [--threads N] [--into docs/performance.md] [MODEL...]
           (no model: the ten networks for 32-pixel images)
needs: Linux's perf, readelf and addr2line, and a build that knows its lines:
       cargo build --release --bin zoo --config 'profile.release.package.zoo-core.debug="line-tables-only"'

`perf record` samples `zoo bench MODEL` once it is warm. Each sample counts for the innermost function of the zoo's kernels that it
stands in, inlined ones included; what is outside of them and copies memory is "copies":

tiles      register tiles of products
packing    laying operands out for the tiles, and taking results to their places
norms      normalisation, pointwise functions, pooling, shortcuts, loss, the optimizer
depthwise  depthwise convolutions
copies     the C library's copies and fills: rows of maps that are framed for products
other      candle's own operations, the tape, the allocator, threads, the kernel of the system

With `--into` the table replaces what stands between `<!-- limits -->` and `<!-- limits end -->` in that file, or with bf16 between
`<!-- limits bf16 -->` and `<!-- limits bf16 end -->`.
"""

import argparse
import collections
import datetime
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from compare_speed import TRAIN, git, put

KINDS = ["tiles", "packing", "norms, pointwise", "depthwise", "copies", "other"]
TILES, PACKING, NORMS, DEPTHWISE, COPIES, OTHER = range(len(KINDS))
# By the beginning of the path below kernels/, the first that fits. What stands nowhere, registers among it, is its caller's.
PLACES = {
    "microkernel": TILES, "conv/tile": TILES, "bf16/tiles": TILES,
    "conv/depthwise": DEPTHWISE, "bf16/depthwise": DEPTHWISE,
    "conv/epilogue": NORMS, "batch_norm": NORMS, "layer_norm": NORMS, "pointwise": NORMS, "softmax": NORMS, "pool": NORMS,
    "optim": NORMS, "cross_entropy": NORMS, "residual_block": NORMS, "fused_activation": NORMS, "bias": NORMS, "math": NORMS,
    **{f"bf16/{name}": NORMS for name in [
        "norm", "scale", "softmax", "channels", "concat_norm", "pointwise", "pool", "branch", "walk", "row_mean", "bias",
    ]},
    "conv": PACKING, "gemm": PACKING, "linear": PACKING, "attention": PACKING, "blocking": PACKING, "copy": PACKING, "bf16": PACKING,
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--zoo", type=Path, default=Path("target/release/zoo"))
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--mode", default="train", choices=["train", "infer"])
    parser.add_argument("--seconds", type=float, default=6.0, help="that are sampled")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--into", type=Path, metavar="FILE")
    return parser.parse_args()


def output(*command):
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def text_shift(zoo):
    """What turns an offset in the file into the address that its symbols have."""
    for line in output("readelf", "-lW", zoo).splitlines():
        words = line.split()
        if words[:1] == ["LOAD"] and "E" in words[6:-1]:
            return int(words[2], 16) - int(words[1], 16)
    sys.exit(f"{zoo}: no executable segment")


def samples(zoo, model, args):
    """How often each address of the program was being executed, each function elsewhere that copies, and anything else."""
    with tempfile.NamedTemporaryFile() as data:
        seconds = (args.warm_up + args.seconds) * (2 if args.mode == "infer" else 1)
        bench = [zoo, "bench", model, "--mode", args.mode, "--precision", args.precision, "--seconds", seconds, "--threads", args.threads]
        output("perf", "record", "-q", "-F", "499", "-D", int(1000 * args.warm_up), "-o", data.name, *bench)
        text = output("perf", "script", "-i", data.name, "--show-mmap-events", "-F", "comm,pid,event,ip,sym,dso")
    start, ours, elsewhere = None, collections.Counter(), [0, 0]
    for line in text.splitlines():
        if mapped := re.search(r"PERF_RECORD_MMAP2? .*\[(0x[0-9a-f]+)\(0x[0-9a-f]+\) @ (0x[0-9a-f]+|0) .* r-xp (\S+)$", line):
            if mapped[3] == str(zoo):
                start = int(mapped[1], 16) - int(mapped[2], 16)
        elif sample := re.search(r":\s+([0-9a-f]+) (.*)\((\S+)\)\s*$", line):
            if sample[3] == str(zoo):
                ours[int(sample[1], 16)] += 1
            else:
                elsewhere["mem" not in sample[2]] += 1
    shift = text_shift(zoo)
    return collections.Counter({address - start + shift: count for address, count in ours.items()}), elsewhere


def kind(chain):
    """Of a sample, from the files of its functions below kernels/, the innermost first."""
    for file in chain:
        for place, kind in PLACES.items():
            if file == f"{place}.rs" or file.startswith(f"{place}/"):
                return kind
    return OTHER


def shares(zoo, model, args):
    ours, elsewhere = samples(zoo, model, args)
    lines = output("addr2line", "-f", "-C", "-i", "-a", "-e", zoo, *map(hex, ours)).splitlines()
    counts, chains, address = [0] * len(KINDS), {}, None
    for line in lines:
        if line.startswith("0x"):
            address = int(line, 16)
            chains[address] = []
        else:
            chains[address].append(line)
    for address, count in ours.items():
        # Each function's name is followed by where it stands.
        files = [place.split(":")[0].split("src/kernels/")[1:] for place in chains[address][1::2]]
        counts[kind([file[0] for file in files if file])] += count
    counts[COPIES] += elsewhere[0]
    counts[OTHER] += elsewhere[1]
    return [count / sum(counts) for count in counts]


def main():
    args = arguments()
    zoo = args.zoo.resolve()
    table = [f"| model | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 1) + "|"]
    for model in args.models or TRAIN:
        row = [f"{100 * share:.0f} %" if share >= 0.005 else "" for share in shares(zoo, model, args)]
        table.append(f"| {model} | {' | '.join(row)} |")
        print(table[-1], flush=True)
    commit = (git("rev-parse", "HEAD") or "unknown")[:12]
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    table += ["", f"{args.threads} threads; commit {commit}; {date}; samples of {args.seconds:g} s a row."]
    if args.into:
        put("\n".join(table), args.into, "limits bf16" if args.precision == "bf16" else "limits")


if __name__ == "__main__":
    main()
