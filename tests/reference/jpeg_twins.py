#!/usr/bin/env python3
"""CIFAR-10 images and the same images after JPEG, in the same order, to measure what compression costs a network.

usage: python tests/reference/jpeg_twins.py ORIGINAL COPY OUT
needs: pip install numpy

ORIGINAL and COPY are folders of CIFAR-10's binary files, data_batch_*.bin and test_batch.bin, or train.bin and test.bin. COPY holds
every image of ORIGINAL through JPEG, in any order, and may hold more. Writes OUT/original and OUT/jpeg, each with train.bin and test.bin.

An image's twin is the image of its split and class with the least mean squared difference. It is taken only where that is less than
half of the next one's, and where no other image has the same twin; else the script ends with an error.
"""

import argparse
import sys
from pathlib import Path

import numpy as np


def load(folder: Path, split: str) -> np.ndarray:
    """Records of 1 + 3072 bytes."""
    batches = sorted(folder.glob("data_batch_*.bin")) if split == "train" else [folder / "test_batch.bin"]
    if not batches or not batches[0].exists():
        batches = [folder / f"{split}.bin"]
    return np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in batches])


def twins(originals: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each original, the copy's index and the mean squared difference per channel of a pixel."""
    index, error = np.empty(len(originals), int), np.empty(len(originals))
    for label in range(10):
        ours, theirs = np.flatnonzero(originals[:, 0] == label), np.flatnonzero(copies[:, 0] == label)
        a, b = originals[ours, 1:].astype(np.float64), copies[theirs, 1:].astype(np.float64)
        apart = ((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T) / 3072
        nearest = apart.argmin(1)
        ordered = np.partition(apart, 1, axis=1)
        if (ordered[:, 0] >= 0.5 * ordered[:, 1]).any() or len(set(nearest)) < len(nearest):
            sys.exit(f"class {label}: an image has no twin that is clearly its own")
        index[ours], error[ours] = theirs[nearest], ordered[:, 0]
    return index, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original", type=Path)
    parser.add_argument("copy", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    for split in ("train", "test"):
        originals, copies = load(args.original, split), load(args.copy, split)
        index, error = twins(originals, copies)
        for name, records in (("original", originals), ("jpeg", copies[index])):
            (args.out / name).mkdir(parents=True, exist_ok=True)
            records.tofile(args.out / name / f"{split}.bin")
        psnr = 10 * np.log10(255**2 / error)
        print(f"{split}: {len(originals)} images, PSNR of the copies {psnr.mean():.1f} dB (least {psnr.min():.1f})")


if __name__ == "__main__":
    main()
