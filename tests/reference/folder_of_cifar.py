"""CIFAR-10's pictures as an image folder of JPEG files: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg.

    pip install pillow numpy
    python tests/reference/folder_of_cifar.py cifar-10-batches-bin photos --train 4000 --val 1000 --side 160

The first images of the training and of the test files, enlarged to --side with Pillow's bicubic filter, JPEG quality 90.
"""

import argparse
from pathlib import Path

import numpy
from PIL import Image

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar")
    parser.add_argument("out")
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--val", type=int, default=1000)
    parser.add_argument("--side", type=int, default=160)
    args = parser.parse_args()
    files = {"train": sorted(Path(args.cifar).glob("data_batch_*.bin")), "val": [Path(args.cifar, "test_batch.bin")]}
    for split, count in (("train", args.train), ("val", args.val)):
        records = numpy.concatenate([numpy.fromfile(file, numpy.uint8).reshape(-1, 3073) for file in files[split]])
        for name in CLASSES:
            Path(args.out, split, name).mkdir(parents=True, exist_ok=True)
        for index, record in enumerate(records[:count]):
            pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            image = Image.fromarray(pixels)
            if args.side != 32:
                image = image.resize((args.side, args.side), Image.Resampling.BICUBIC)
            image.save(Path(args.out, split, CLASSES[record[0]], f"{index:05}.jpg"), quality=90)


if __name__ == "__main__":
    main()
