#!/usr/bin/env python3
"""Writes train.parquet and test.parquet, in the layout of the hub's copy of CIFAR-10 (a struct `img` of PNG bytes and
path, an int64 `label`), but with two images and one.

usage: make.py          (needs: pip install pillow numpy pyarrow)
Pixel (c, y, x) of image i is (7 y + x + 40 c + 100 i) mod 256: no two axes can be swapped unseen. tests/hub.rs computes
the same values.
"""
import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(i):
    c, y, x = np.meshgrid(np.arange(3), np.arange(32), np.arange(32), indexing="ij")
    pixels = ((7 * y + x + 40 * c + 100 * i) % 256).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(out, "PNG", optimize=True)
    return out.getvalue()


def write(name, images, labels):
    img = [{"bytes": png(i), "path": None} for i in images]
    schema = pa.schema([("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    table = pa.table({"img": img, "label": labels}, schema=schema)
    pq.write_table(table, os.path.join(os.path.dirname(os.path.abspath(__file__)), name))


write("train.parquet", [0, 1], [6, 9])
write("test.parquet", [2], [3])
