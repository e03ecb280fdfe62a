#!/usr/bin/env python3
"""Reads event files that zoo-train has written with TensorBoard's own reader, and compares every point.

usage: python tests/reference/event_files.py [FOLDER]      (no folder: cargo run --example events writes one)
needs: pip install tensorboard

Exit status 1 if a curve, a step or a value is another than crates/zoo-train/examples/events.rs writes.
"""

import subprocess
import sys
import tempfile

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXPECTED = {
    "train/loss": [(step * 391, 2.5 / (1.0 + step)) for step in range(100)],
    "test/accuracy": [(step * 391, step / 100.0) for step in range(100)],
}


def main():
    with tempfile.TemporaryDirectory() as made:
        folder = sys.argv[1] if len(sys.argv) > 1 else made
        if folder == made:
            run = ["cargo", "run", "-q", "-p", "zoo-train", "--features", "tensorboard", "--example", "events", "--"]
            subprocess.run([*run, folder], check=True)
        events = EventAccumulator(folder, size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        if sorted(tags) != sorted(EXPECTED):
            sys.exit(f"curves {tags}, expected {list(EXPECTED)}")
        for tag, expected in EXPECTED.items():
            found = [(point.step, point.value) for point in events.Scalars(tag)]
            wanted = [(step, float(np.float32(value))) for step, value in expected]
            if found != wanted:
                sys.exit(f"{tag}: {found[:3]} …, expected {wanted[:3]} …")
            print(f"{tag}: {len(found)} points, every step and value as written")


if __name__ == "__main__":
    main()
