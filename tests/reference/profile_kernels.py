#!/usr/bin/env python3
"""Which kernels a training step spends its time in: the table of limits of docs/performance.md.

usage: python tests/reference/profile_kernels.py [--zoo target/release/zoo] [--seconds 6] [--warm-up 5] [--threads N]
           [--into docs/performance.md] [MODEL...]          (no model: the ten networks for 32-pixel images)
needs: Linux's perf, readelf and addr2line, and a build that knows its lines:
       cargo build --release --bin zoo --config 'profile.release.package.zoo-core.debug="line-tables-only"'

`perf record` samples `zoo bench MODEL --mode train` once it is warm. Each sample counts for the innermost function of the zoo's
kernels that it stands in, inlined ones included:

tiles      register tiles of products (product.rs), the sums of attention with them
packing    laying operands out for the tiles, and taking results to their places
norms      normalisation, pointwise functions, pooling, shortcuts, loss, the optimizer
depthwise  depthwise convolutions
other      candle's own operations, the tape, the allocator, threads, the kernel of the system

With `--into` the table replaces what stands between `<!-- limits -->` and `<!-- limits end -->` in that file.
"""

import argparse
import collections
import datetime
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from compare_speed import TRAIN, git

KINDS = ["tiles", "packing", "norms, pointwise", "depthwise", "other"]
TILES = {"tile", "tile_of_rows", "add_tile", "multiply", "pair", "add"}
FILES = {
    "batch_norm.rs": 2, "layer_norm.rs": 2, "pointwise.rs": 2, "softmax.rs": 2, "pool.rs": 2, "branch.rs": 2, "rows.rs": 2, "math.rs": 2,
    "optim.rs": 2, "clamp.rs": 2, "cross_entropy.rs": 2, "join.rs": 2, "depthwise.rs": 3, "winograd.rs": 1, "attention.rs": 1,
}
PRODUCTS = {"product.rs", "conv2d.rs", "pixels.rs", "gemm.rs"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--zoo", type=Path, default=Path("target/release/zoo"))
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
    """How often each address of the program, and how often anything else, was being executed."""
    with tempfile.NamedTemporaryFile() as data:
        bench = [zoo, "bench", model, "--mode", "train", "--seconds", args.warm_up + args.seconds, "--threads", args.threads]
        output("perf", "record", "-q", "-F", "499", "-D", int(1000 * args.warm_up), "-o", data.name, *bench)
        text = output("perf", "script", "-i", data.name, "--show-mmap-events", "-F", "comm,pid,event,ip,dso")
    start, ours, elsewhere = None, collections.Counter(), 0
    for line in text.splitlines():
        if mapped := re.search(r"PERF_RECORD_MMAP2? .*\[(0x[0-9a-f]+)\(0x[0-9a-f]+\) @ (0x[0-9a-f]+|0) .* r-xp (\S+)$", line):
            if mapped[3] == str(zoo):
                start = int(mapped[1], 16) - int(mapped[2], 16)
        elif sample := re.search(r"([0-9a-f]+) \((\S+)\)\s*$", line):
            if sample[2] == str(zoo):
                ours[int(sample[1], 16)] += 1
            else:
                elsewhere += 1
    shift = text_shift(zoo)
    return collections.Counter({address - start + shift: count for address, count in ours.items()}), elsewhere


def kind(chain):
    """Of a sample, from its functions and files, the innermost first."""
    for function, file in chain:
        name = re.sub(r"<.*>", "", function).split("::")[-1]
        if file in PRODUCTS:
            return 0 if file == "product.rs" or name in TILES else 1
        if file in FILES:
            return FILES[file]
    return 4


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
        chain = chains[address]
        # Each function's name is followed by where it stands.
        pairs = [(function, Path(place.split(":")[0])) for function, place in zip(chain[::2], chain[1::2])]
        counts[kind([(function, path.name) for function, path in pairs if "ops" in path.parts])] += count
    counts[-1] += elsewhere
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
        text = args.into.read_text()
        before, rest = text.split("<!-- limits -->\n")
        after = rest.split("<!-- limits end -->")[1]
        args.into.write_text(f"{before}<!-- limits -->\n" + "\n".join(table) + "\n<!-- limits end -->" + after)


if __name__ == "__main__":
    main()
