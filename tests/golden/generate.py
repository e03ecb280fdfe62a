#!/usr/bin/env python3
"""Writes the golden values that the zoo's tests compare with: what PyTorch computes, in f64.

usage: python tests/golden/generate.py [ops] [optim] [optim_more] [photos] [pictures] [cnn] [resnet] [mobile] [transformer] [mlp]
                                        [transformer_seq]
       (no name: all of them; rewrites the files beside it; a family's networks stand in reference_FAMILY.py)
needs: pip install torch torchvision timm numpy safetensors

Files
  ops.safetensors, ops.json   operations: inputs, output, and the gradient of every input for a random upstream gradient
  models_FAMILY.json          whole networks: logits, loss, gradients, running statistics after one training step; dropout off
  transformer_seq.json        nn.Transformer, and a translator on top of it, on sequences: output, loss, gradients; dropout 0
  optim.json                  optimizers step by step, gradient clipping, learning-rate schedules
  optim_more.json             RMSprop, LAMB, Lion and Muon step by step, layer-wise learning rates: reference_optim.py
  photos.json                 photographs resized and cut by torchvision on Pillow's images, byte by byte
  pictures.json               files of all kinds as Pillow reads them: upright RGB pixels, and which cut-off files it takes
Each holds the generator's name and PyTorch's version. Running the script again on the same version changes nothing.

The rule that fills tensors
  No weights are stored: both languages compute them. Element i (row-major, from 0) of the tensor called `key` is
      unit(key, i) = (z >> 42) / 2^21 - 1            in [-1, 1), a multiple of 2^-21
      z = mix(fnv1a64(key) + (i + 1) * 0x9E3779B97F4A7C15)                        all modulo 2^64
      mix(z): z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB; z ^= z >> 31   (splitmix64)
  then scaled by the key's ending, the first line that fits:
      *running_mean            unit / 4
      *running_var             1 + unit / 2
      *bias                    unit / 8
      one dimension            1 + unit / 4          (the weight of a normalisation)
      anything else            unit * b              with b the largest power of two (at most 1) with b^2 * fan_in <= 12,
                                                     fan_in the product of all dimensions but the first
  and the network's `input` is unit itself. b is He et al.'s sqrt(6 / fan_in) to the nearest power of two, so signals
  neither die nor explode; powers of two make every value exact in f32 as in f64.

How tensors too large to store are compared
  {"norm": L2 norm, "probe": sum_i t[i] * unit("probe." + key, i), "at": [indices], "values": [t[i] for i in at]}
  The probe sees every element and its place, so that a transposed or permuted gradient cannot pass.

Tolerances
  In f64 both sides differ only by the order of sums: relative to the tensor's norm 1e-12 for one operation, 1e-9 through
  a network (BatchNorm over few values divides by small standard deviations, layer after layer). In f32 the unit is
  6e-8, hence 1e-5 and 1e-3. A gradient that mathematics cancels (a bias before BatchNorm, about 1e-17 here) has no
  relative error: compare it with the scale of its network, absolutely.
  In f32 a rounding can turn the winner of a max pooling or the sign before a ReLU, and with it a gradient, by far more
  than its size. How much a network suffers is measured here, in f64: `f32_error` of a network is how far the gradients
  move, relative to their norms and at the most, in ten draws that move every parameter by up to four units of f32. A
  gradient of ours in f32, where every operation rounds, may be four times as far off, or 1e-3 if that is more.
"""

import argparse
import copy
import functools
import io
import importlib
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
HEAD = {"generator": "tests/golden/generate.py", "torch": torch.__version__}


# ---------------------------------------------------------------------------------------------------------- the rule


def fnv1a64(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def unit(key, shape):
    count = math.prod(shape)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is what is wanted
        z = np.uint64(fnv1a64(key)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(42)).astype(np.float64) / 2**21 - 1).reshape(shape)


def fill(key, shape):
    u = unit(key, shape)
    if key.endswith("running_mean"):
        return u / 4
    if key.endswith("running_var"):
        return 1 + u / 2
    if key.endswith("bias"):
        return u / 8
    if len(shape) == 1:
        return 1 + u / 4
    b, fan_in = 1.0, math.prod(shape[1:])
    while b * b * fan_in > 12:
        b /= 2
    return u * b


def summary(key, tensor):
    flat = tensor.detach().flatten()
    n = flat.numel()
    at = sorted({k * n // 5 for k in range(5)} | {n - 1})
    return {
        "norm": flat.norm().item(),
        "probe": (flat * unit("probe." + key, (n,))).sum().item(),
        "at": at,
        "values": flat[at].tolist(),
    }


def write_json(name, content):
    # One case a line, so that a change shows in a diff as the case that changed.
    lists = {k: v for k, v in content.items() if isinstance(v, list)}
    head = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in {**HEAD, **content}.items() if k not in lists)
    body = "".join(
        f",\n{json.dumps(k)}: [\n" + ",\n".join(json.dumps(item) for item in v) + "\n]" for k, v in lists.items()
    )
    (HERE / name).write_text("{\n" + head + body + "\n}\n")


# ------------------------------------------------------------------------------------------------------------ the ops


def ops():
    tensors, cases = {}, []

    def case(op, label, function, inputs, params=None, constants=None, after=None, upstream_shape=None):
        """Records function(**inputs): output, and the gradients of every one of `inputs`."""
        name = f"{op}/{label}"
        leaves = {role: t.clone().requires_grad_() for role, t in inputs.items()}
        output = function(**leaves)
        upstream = unit(f"{name}/upstream", output.shape)
        gradients = torch.autograd.grad(output, list(leaves.values()), upstream)
        stored = {**inputs, **(constants or {}), "output": output.detach(), "upstream": upstream}
        stored |= {f"grad.{role}": g for role, g in zip(leaves, gradients)}
        stored |= after() if after else {}
        tensors.update({f"{name}/{role}": t.clone(memory_format=torch.contiguous_format) for role, t in stored.items()})
        cases.append({"name": name, "op": op, "params": params or {}, "tensors": list(stored)})

    def pair(x):
        return list(x) if isinstance(x, tuple) else [x, x]

    def draw(name, role, shape, scale=1.0):
        return unit(f"{name}/{role}", shape) * scale

    # label: (batch, c_in, h, w), (c_out, kh, kw), stride, padding, dilation, groups, bias
    convs = {
        "3x3_p1": ((2, 3, 5, 6), (4, 3, 3), 1, 1, 1, 1, True),
        "3x3_p0": ((2, 2, 5, 7), (3, 3, 3), 1, 0, 1, 1, False),
        "3x3_p2": ((1, 2, 4, 5), (3, 3, 3), 1, 2, 1, 1, True),
        "3x3_p3_wider_than_the_kernel": ((1, 2, 3, 4), (2, 3, 3), 1, 3, 1, 1, True),
        "3x3_s2_p1_odd": ((2, 3, 7, 9), (4, 3, 3), 2, 1, 1, 1, False),
        "3x3_s2_p1_even": ((2, 3, 8, 6), (4, 3, 3), 2, 1, 1, 1, True),
        "3x3_s2_p0_last_row_unread": ((1, 2, 6, 8), (3, 3, 3), 2, 0, 1, 1, True),
        "3x3_s3_p1_stride_not_dividing": ((2, 2, 7, 8), (3, 3, 3), 3, 1, 1, 1, True),
        "3x3_dilation2_p2": ((1, 2, 7, 6), (3, 3, 3), 1, 2, 2, 1, True),
        "3x3_dilation2_s2_p1": ((2, 2, 8, 7), (2, 3, 3), 2, 1, 2, 1, False),
        "3x3_groups2": ((2, 4, 5, 5), (6, 3, 3), 1, 1, 1, 2, True),
        "3x3_groups3_s2": ((1, 6, 7, 5), (3, 3, 3), 2, 1, 1, 3, False),
        "1x1_groups2": ((2, 4, 3, 5), (6, 1, 1), 1, 0, 1, 2, False),
        "depthwise": ((2, 5, 6, 5), (5, 3, 3), 1, 1, 1, 5, False),
        "depthwise_s2": ((2, 4, 7, 6), (4, 3, 3), 2, 1, 1, 4, True),
        "depthwise_multiplier2": ((2, 3, 5, 6), (6, 3, 3), 1, 1, 1, 3, True),
        "depthwise_dilation2": ((1, 3, 6, 7), (3, 3, 3), 1, 2, 2, 3, False),
        "depthwise_5x5_s2": ((1, 3, 9, 8), (3, 5, 5), 2, 2, 1, 3, False),
        "depthwise_wide": ((1, 2, 5, 37), (2, 3, 3), 1, 1, 1, 2, False),
        "1x1": ((2, 5, 3, 4), (3, 1, 1), 1, 0, 1, 1, True),
        "1x1_s2": ((2, 4, 5, 6), (3, 1, 1), 2, 0, 1, 1, False),
        "1x1_p1": ((1, 2, 3, 3), (3, 1, 1), 1, 1, 1, 1, True),
        "5x5_p2_batch1": ((1, 2, 6, 7), (3, 5, 5), 1, 2, 1, 1, True),
        "7x7_s2_p3": ((1, 3, 11, 12), (4, 7, 7), 2, 3, 1, 1, False),
        "11x11_s4_p2": ((1, 1, 19, 18), (2, 11, 11), 4, 2, 1, 1, True),
        "4x4_s4_patches": ((2, 3, 8, 8), (5, 4, 4), 4, 0, 1, 1, True),
        "non_square": ((2, 2, 6, 7), (3, 1, 5), (2, 1), (0, 2), 1, 1, True),
        "non_square_dilation": ((1, 2, 8, 7), (2, 3, 2), (1, 2), (2, 1), (2, 1), 1, False),
        "kernel_covers_the_image": ((3, 2, 4, 3), (4, 4, 3), 1, 0, 1, 1, True),
        "wide_3x3": ((1, 2, 4, 35), (3, 3, 3), 1, 1, 1, 1, False),
    }
    for label, (shape, (c_out, kh, kw), stride, padding, dilation, groups, bias) in convs.items():
        name = f"conv2d/{label}"
        inputs = {
            "input": draw(name, "input", shape),
            "weight": draw(name, "weight", (c_out, shape[1] // groups, kh, kw)),
        }
        if bias:
            inputs["bias"] = draw(name, "bias", (c_out,))
        geometry = {"stride": pair(stride), "padding": pair(padding), "dilation": pair(dilation), "groups": groups}
        case("conv2d", label, lambda input, weight, bias=None: F.conv2d(
            input, weight, bias, **geometry), inputs, {**geometry, "bias": bias})

    for label, shape, c_out, bias in [("2d", (4, 6), 3, True), ("no_bias", (3, 5), 7, False), ("3d", (2, 3, 4), 5, True)]:
        name = f"linear/{label}"
        inputs = {"input": draw(name, "input", shape), "weight": draw(name, "weight", (c_out, shape[-1]))}
        if bias:
            inputs["bias"] = draw(name, "bias", (c_out,))
        case("linear", label, F.linear, inputs, {"bias": bias})

    # label: shape, momentum, eps, train
    norms = {
        "train_4d": ((3, 4, 3, 2), 0.1, 1e-5, True),
        "train_4d_momentum03_eps1e-3": ((2, 3, 4, 4), 0.3, 1e-3, True),
        "train_2d": ((6, 4), 0.1, 1e-5, True),
        "train_2d_two_rows": ((2, 3), 0.3, 1e-3, True),
        "train_1x1_image": ((4, 3, 1, 1), 0.1, 1e-5, True),
        "train_large_mean": ((4, 2, 3, 3), 0.1, 1e-5, True),
        # Small planes of many images have kernels of their own.
        "train_small_planes": ((9, 5, 2, 3), 0.1, 1e-5, True),
        "train_1x1_many": ((35, 6, 1, 1), 0.1, 1e-5, True),
        "eval_small_planes": ((8, 7, 2, 2), 0.1, 1e-5, False),
        "eval_4d": ((2, 4, 3, 3), 0.1, 1e-5, False),
        "eval_4d_eps1e-3": ((2, 3, 2, 3), 0.1, 1e-3, False),
        "eval_2d": ((3, 5), 0.1, 1e-5, False),
    }
    for label, (shape, momentum, eps, train) in norms.items():
        name, c = f"batch_norm/{label}", shape[1]
        inputs = {
            # A mean of 1000 with a spread of 1: E[x^2] - E[x]^2 in one pass would lose six digits here.
            "input": draw(name, "input", shape) + (1000 if label == "train_large_mean" else 0),
            "weight": 1 + draw(name, "weight", (c,), 0.25),
            "bias": draw(name, "bias", (c,), 0.125),
        }
        stats = {"running_mean": fill(f"{name}/running_mean", (c,)), "running_var": fill(f"{name}/running_var", (c,))}
        mean, var = stats["running_mean"].clone(), stats["running_var"].clone()
        case("batch_norm", label,
             lambda input, weight, bias: F.batch_norm(input, mean, var, weight, bias, train, momentum, eps), inputs,
             {"momentum": momentum, "eps": eps, "train": train}, stats,
             lambda: {"running_mean.after": mean, "running_var.after": var})

    def max_pool(label, input, kernel, stride, padding=0, ceil_mode=False):
        params = {"kernel": pair(kernel), "stride": pair(stride), "padding": pair(padding), "ceil_mode": ceil_mode}
        case("max_pool2d", label, lambda input: F.max_pool2d(
            input, kernel, stride, padding, ceil_mode=ceil_mode), {"input": input}, params)

    def avg_pool(label, input, kernel, stride, padding=0, ceil_mode=False, count_include_pad=True):
        params = {"kernel": pair(kernel), "stride": pair(stride), "padding": pair(padding), "ceil_mode": ceil_mode,
                  "count_include_pad": count_include_pad}
        case("avg_pool2d", label, lambda input: F.avg_pool2d(
            input, kernel, stride, padding, ceil_mode, count_include_pad), {"input": input}, params)

    def pool_input(name, shape=(2, 2, 7, 8)):
        return draw(name, "input", shape)

    for label, kernel, stride, padding, shape in [
        ("2_2", 2, 2, 0, (2, 3, 6, 8)), ("2_2_odd", 2, 2, 0, (2, 2, 7, 5)), ("3_2", 3, 2, 0, (2, 2, 7, 9)),
        ("3_2_p1", 3, 2, 1, (2, 2, 8, 7)), ("3_1_p1", 3, 1, 1, (1, 2, 5, 6)), ("3_3_size7", 3, 3, 0, (1, 1, 7, 7)),
        ("2_3_gaps", 2, 3, 0, (1, 2, 8, 7)), ("non_square", (3, 2), (2, 1), (1, 0), (2, 2, 7, 5)),
        ("global", (4, 3), 1, 0, (2, 3, 4, 3)),
    ]:
        max_pool(label, pool_input(f"max_pool2d/{label}", shape), kernel, stride, padding)
    for size in range(5, 10):
        for kernel, stride, padding in [(3, 2, 0), (3, 2, 1), (2, 2, 0)]:
            label = f"ceil_{kernel}_{stride}_p{padding}_size{size}"
            shape = (1, 2, size, size + 1)
            max_pool(label, pool_input(f"max_pool2d/{label}", shape), kernel, stride, padding, True)
    # Size 5 with padding 1 would put a fourth window at row 6, wholly in the padding: PyTorch leaves it out.
    max_pool("ceil_last_window_in_padding", pool_input("max_pool2d/ceil_last", (1, 2, 5, 5)), 2, 2, 1, True)
    max_pool("ceil_last_window_in_padding_3_3", pool_input("max_pool2d/ceil_last3", (1, 2, 5, 8)), 3, 3, 1, True)
    # Three values only: the gradient must go to the first maximum in row-major order.
    ties = (pool_input("max_pool2d/ties", (2, 2, 7, 7)) * 1.5).round()
    max_pool("ties_3_2_p1", ties, 3, 2, 1)
    max_pool("ties_2_2", ties, 2, 2)
    max_pool("constant", torch.zeros(1, 1, 5, 5, dtype=torch.float64), 3, 2, 1)
    max_pool("all_negative_p1", pool_input("max_pool2d/negative", (1, 2, 6, 5)) - 5, 3, 2, 1)
    max_pool("all_negative_ceil_p1", pool_input("max_pool2d/negative_ceil", (1, 2, 6, 7)) - 5, 3, 2, 1, True)

    for label, kernel, stride, padding, ceil_mode, include, shape in [
        ("2_2", 2, 2, 0, False, True, (2, 3, 6, 4)), ("2_2_odd", 2, 2, 0, False, True, (1, 2, 7, 5)),
        ("3_2", 3, 2, 0, False, True, (2, 2, 8, 7)), ("3_2_p1_include", 3, 2, 1, False, True, (2, 2, 7, 8)),
        ("3_2_p1_exclude", 3, 2, 1, False, False, (2, 2, 7, 8)), ("3_1_p1_include", 3, 1, 1, False, True, (1, 2, 5, 4)),
        ("3_1_p1_exclude", 3, 1, 1, False, False, (1, 2, 5, 4)), ("ceil_3_2", 3, 2, 0, True, True, (1, 2, 6, 8)),
        ("ceil_3_2_p1_include", 3, 2, 1, True, True, (1, 2, 6, 7)),
        ("ceil_3_2_p1_exclude", 3, 2, 1, True, False, (1, 2, 6, 7)),
        ("ceil_2_2_p1_last_window_in_padding", 2, 2, 1, True, True, (1, 2, 5, 5)),
        ("ceil_3_3_exclude", 3, 3, 1, True, False, (1, 2, 5, 8)), ("global", 7, 1, 0, False, True, (2, 2, 7, 7)),
        ("non_square", (2, 3), (1, 2), (1, 0), False, False, (2, 2, 5, 7)),
    ]:
        avg_pool(label, pool_input(f"avg_pool2d/{label}", shape), kernel, stride, padding, ceil_mode, include)
    for label, shape in [("square", (2, 3, 4, 4)), ("non_square", (2, 2, 3, 5)), ("one_pixel", (2, 3, 1, 1))]:
        x = pool_input(f"adaptive_avg_pool2d/{label}", shape)
        case("adaptive_avg_pool2d", label, lambda input: F.adaptive_avg_pool2d(input, 1), {"input": x}, {"output": [1, 1]})
    for label, shape, size in [("dividing", (2, 2, 6, 9), (3, 3)), ("overlapping", (1, 2, 7, 10), (3, 4)),
                               ("repeating", (2, 1, 2, 3), (5, 7)), ("from_one_pixel", (2, 2, 1, 1), (7, 7)),
                               ("same", (1, 2, 3, 4), (3, 4)), ("mixed", (1, 1, 8, 3), (4, 5))]:
        x = pool_input(f"adaptive_avg_pool2d/{label}", shape)
        case("adaptive_avg_pool2d", label, lambda input: F.adaptive_avg_pool2d(input, size), {"input": x},
             {"output": list(size)})

    # Twice the unit covers every branch of the smooth ones; the kinks get exact values.
    smooth = unit("activation/smooth", (3, 11)) * 5
    kinks = torch.cat([torch.tensor([-7., -6., -3.5, -3., -1., -0., 0., 1., 2.5, 3., 5.5, 6., 6.5, 9.]).double(),
                       unit("activation/kinks", (6,)) * 8])
    activations = {
        "relu": (F.relu, {}), "relu6": (F.relu6, {}), "silu": (F.silu, {}), "sigmoid": (torch.sigmoid, {}),
        "hardswish": (F.hardswish, {}), "hardsigmoid": (F.hardsigmoid, {}), "tanh": (torch.tanh, {}),
        "gelu": (F.gelu, {"approximate": "none"}), "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), {"approximate": "tanh"}),
        "leaky_relu_001": (lambda x: F.leaky_relu(x, 0.01), {"negative_slope": 0.01}),
        "leaky_relu_02": (lambda x: F.leaky_relu(x, 0.2), {"negative_slope": 0.2}),
    }
    names = {"gelu_tanh": "gelu", "leaky_relu_001": "leaky_relu", "leaky_relu_02": "leaky_relu"}
    for label, (function, params) in activations.items():
        for kind, x in [("smooth", smooth), ("kinks", kinks)]:
            op = names.get(label, label)
            case(op, f"{label}_{kind}" if op != label else kind, lambda input: function(input), {"input": x}, params)

    target = torch.tensor([2, 0, 6, 6, 3])
    for smoothing in (0.0, 0.1):
        for label, scale in [("", 2.0), ("_large_logits", 800.0)]:  # e^800 overflows f64: the maximum must come off first
            label = f"smoothing{smoothing}{label}"
            x = draw(f"cross_entropy/{label}", "input", (5, 7), scale)
            case("cross_entropy", label, lambda input: F.cross_entropy(
                input, target, label_smoothing=smoothing), {"input": x}, {"label_smoothing": smoothing}, {"target": target})
            # Weights of the classes: of one row zero, of the others whatever sums they have.
            soft = draw(f"cross_entropy/soft_{label}", "target", (5, 7)).abs() * torch.tensor([1, 0.5, 0, 2, 1])[:, None]
            case("cross_entropy", f"soft_{label}", lambda input: F.cross_entropy(
                input, soft, label_smoothing=smoothing), {"input": x}, {"label_smoothing": smoothing}, {"target": soft})

    # label: shape, dimensions that are normalised, eps
    layer_norms = {
        "2d": ((5, 7), 1, 1e-5), "tokens": ((2, 3, 17), 1, 1e-6), "two_dimensions": ((3, 4, 6), 2, 1e-5),
        "one_row": ((1, 33), 1, 1e-5), "one_element": ((4, 1), 1, 1e-5), "many_rows": ((67, 5), 1, 1e-3),
        "large_mean": ((3, 16), 1, 1e-5),
    }
    for label, (shape, last, eps) in layer_norms.items():
        name, normalized = f"layer_norm/{label}", shape[len(shape) - last:]
        inputs = {
            "input": draw(name, "input", shape) + (1000 if label == "large_mean" else 0),
            "weight": 1 + draw(name, "weight", normalized, 0.25),
            "bias": draw(name, "bias", normalized, 0.125),
        }
        case("layer_norm", label, lambda input, weight, bias: F.layer_norm(
            input, normalized, weight, bias, eps), inputs, {"eps": eps})

    for label, shape, scale in [("1d", (7,), 3.0), ("2d", (5, 9), 3.0), ("4d", (2, 3, 4, 5), 3.0), ("one", (3, 1), 3.0),
                                ("large", (3, 6), 900.0), ("many_rows", (67, 3), 3.0)]:
        x = draw(f"softmax/{label}", "input", shape, scale)
        case("softmax", label, lambda input: F.softmax(input, -1), {"input": x})

    # label: queries and keys (b, heads, n, d), (b, heads, m, d); which mask
    attentions = {
        "self": ((2, 3, 5, 4), (2, 3, 5, 4), None), "cross": ((1, 2, 3, 4), (1, 2, 7, 4), None),
        "causal": ((2, 2, 6, 3), (2, 2, 6, 3), "causal"), "padded": ((2, 1, 4, 5), (2, 1, 3, 5), "padding"),
        "one_token": ((1, 1, 1, 8), (1, 1, 1, 8), None),
    }
    for label, (queries, keys, kind) in attentions.items():
        name, n, m = f"attention/{label}", queries[2], keys[2]
        inputs = {"input": draw(name, "q", queries), "weight": draw(name, "k", keys), "bias": draw(name, "v", keys)}
        mask = torch.zeros(queries[0], 1, n, m, dtype=torch.float64)
        if kind == "causal":
            mask += torch.full((n, m), -torch.inf).triu(1)
        if kind == "padding":
            mask[1, :, :, -1] = -torch.inf
        case("attention", label, lambda input, weight, bias: F.scaled_dot_product_attention(
            input, weight, bias, attn_mask=mask), inputs, {}, {"mask": mask})

    # One entry only: safetensors writes several in an order that changes from run to run.
    save_file(tensors, HERE / "ops.safetensors", metadata={"generator": f"{HEAD['generator']}, torch {HEAD['torch']}"})
    write_json("ops.json", {"cases": cases})


# --------------------------------------------------------------------------------------------------------- the models


def sensitivity(run, net, gradients, largest, roundings=10):
    """How far the gradients move, at the most, when every parameter is moved by a few roundings of f32."""
    worst = 0.0
    for draw in range(roundings):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for key, p in moved.named_parameters():
                p.mul_(1 + 4 * 2.0**-24 * unit(f"rounding.{draw}.{key}", p.shape))
        moved.zero_grad()
        run(moved)[1].backward()
        for key, p in moved.named_parameters():
            scale = max(gradients[key].norm().item(), 1e-3 * largest)
            worst = max(worst, (p.grad - gradients[key]).norm().item() / scale)
    return worst


def model(name, reference):
    net = reference.build().double()
    count = sum(p.numel() for p in net.parameters())
    assert reference.parameters in (None, count), f"{name}: {count}"
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                tensor.copy_(fill(key, tensor.shape))
    x = unit("input", (reference.batch, 3, reference.image, reference.image)).requires_grad_()
    target = torch.tensor([(3 * j + 1) % 10 for j in range(reference.batch)])

    def run(net):
        logits, *auxiliary = outputs if isinstance(outputs := net.train()(x), tuple) else (outputs,)
        loss = F.cross_entropy(logits, target)
        return logits, loss + sum(reference.auxiliary * F.cross_entropy(a, target) for a in auxiliary)

    # Evaluation first: it reads the running statistics as the rule filled them.
    with torch.no_grad():
        eval_logits = net.eval()(x)
    logits, loss = run(net)
    loss.backward()
    gradients = {key: p.grad for key, p in net.named_parameters()}
    grad_input = x.grad.clone()
    largest = max(g.norm().item() for g in gradients.values())
    stats = [{"key": k, "shape": list(b.shape), **summary(k, b)}
             for k, b in net.named_buffers() if k.endswith(("running_mean", "running_var"))]
    return {
        "name": name, "settings": reference.settings, "input": list(x.shape), "target": target.tolist(), "parameters": count,
        "f32_error": sensitivity(run, net, gradients, largest),
        "logits_eval": eval_logits.tolist(), "logits_train": logits.tolist(), "loss": loss.item(),
        "grad_input": summary("input", grad_input),
        "grads": [{"key": k, "shape": list(g.shape), **summary(k, g)} for k, g in gradients.items()],
        "stats": stats,
    }


def models(family):
    references = importlib.import_module(f"reference_{family}").MODELS
    entries = []
    for name, reference in references.items():
        print(name, flush=True)
        entries.append(model(name, reference))
    write_json(f"models_{family}.json", {"models": entries})


def transformer_seq():
    entries = []
    for reference in importlib.import_module("reference_transformer").SEQUENCES:
        print(reference.name, flush=True)
        net = reference.build().double()
        with torch.no_grad():
            for key, tensor in net.named_parameters():
                tensor.copy_(fill(key, tensor.shape))
        inputs = reference.inputs(unit)
        leaves = {name: x.requires_grad_() for name, x in inputs.items() if x.is_floating_point()}

        def run(net):
            output, loss = reference.run(net, **inputs)
            # An upstream gradient of random numbers, where there is no loss.
            return output, (output * unit("upstream", output.shape)).sum() if loss is None else loss

        output, loss = run(net.train())
        loss.backward()
        gradients = {key: p.grad for key, p in net.named_parameters()}
        input_gradients = {name: summary(name, x.grad) for name, x in leaves.items()}
        largest = max(g.norm().item() for g in gradients.values())
        entries.append({
            "name": reference.name, "settings": reference.settings, "parameters": sum(g.numel() for g in gradients.values()),
            "inputs": {name: x.tolist() if name not in leaves else list(x.shape) for name, x in inputs.items()},
            "f32_error": sensitivity(run, net, gradients, largest),
            "output": {"shape": list(output.shape), **summary("output", output)}, "loss": loss.item(),
            "grads": [{"key": k, "shape": list(g.shape), **summary(k, g)} for k, g in gradients.items()],
            "grads_inputs": input_gradients,
        })
    write_json("transformer_seq.json", {"models": entries})


FAMILIES = ["cnn", "resnet", "mobile", "transformer", "mlp"]


# ----------------------------------------------------------------------------------- optimizers, clipping, schedules

STEPS = 6
SHAPES = {"w.weight": (3, 4), "w.bias": (5,), "idle.weight": (2, 2)}


def optim():
    initial = {key: unit(f"optim/{key}", shape) for key, shape in SHAPES.items()}
    # `idle` has no gradient at steps 0 and 3: PyTorch leaves such a parameter and its state alone.
    grads = [
        {key: unit(f"optim/{key}/grad{step}", shape) for key, shape in SHAPES.items()
         if not (key.startswith("idle") and step in (0, 3))}
        for step in range(STEPS)
    ]
    optimizers = {
        "sgd": (torch.optim.SGD, {}),
        "sgd_wd": (torch.optim.SGD, {"weight_decay": 0.05}),
        "sgd_momentum": (torch.optim.SGD, {"momentum": 0.9}),
        "sgd_momentum_wd": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.05}),
        "sgd_nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        "sgd_nesterov_wd": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
        "adam": (torch.optim.Adam, {}),
        "adam_wd": (torch.optim.Adam, {"weight_decay": 0.1}),
        "adam_betas_eps": (torch.optim.Adam, {"betas": [0.8, 0.95], "eps": 1e-4, "weight_decay": 0.1}),
        "adamw": (torch.optim.AdamW, {"weight_decay": 0.0}),
        "adamw_wd": (torch.optim.AdamW, {"weight_decay": 0.1}),
        "adamw_betas_eps": (torch.optim.AdamW, {"betas": [0.8, 0.95], "eps": 1e-4, "weight_decay": 0.3}),
    }
    lrs = [0.1, 0.1, 0.05, 0.2, 0.01, 0.1]
    runs = []
    for name, (kind, options) in optimizers.items():
        # Each with one group, and with no weight decay on one-dimensional parameters; each unclipped and clipped.
        for one_dimensional_decay in (True, False):
            if not one_dimensional_decay and not options.get("weight_decay"):
                continue
            for clip in (None, 1.5):
                parameters = {key: t.clone().requires_grad_() for key, t in initial.items()}
                decayed = [p for p in parameters.values() if one_dimensional_decay or p.dim() > 1]
                plain = [p for p in parameters.values() if not (one_dimensional_decay or p.dim() > 1)]
                groups = [{"params": decayed}] + ([{"params": plain, "weight_decay": 0.0}] if plain else [])
                optimizer = kind(groups, lr=lrs[0], foreach=False, **options)
                norms, trajectory = [], []
                for step, lr in enumerate(lrs):
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    for key, p in parameters.items():
                        p.grad = grads[step][key].clone() if key in grads[step] else None
                    if clip:
                        norms.append(nn.utils.clip_grad_norm_(parameters.values(), clip).item())
                    optimizer.step()
                    trajectory.append({key: p.detach().flatten().tolist() for key, p in parameters.items()})
                runs.append({
                    "name": name, "kind": name.split("_")[0], "options": options,
                    "decay_one_dimensional": one_dimensional_decay, "clip": clip, "norms": norms,
                    "parameters": trajectory,
                })

    def schedule(name, make, epochs, **described):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        scheduler, values = make(optimizer), []
        for _ in range(epochs):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return {"name": name, "base": 0.1, **described, "lr": values}

    s = torch.optim.lr_scheduler

    def warm(steps):  # factor (t + 1) / steps
        return lambda o: s.LinearLR(o, start_factor=1 / steps, end_factor=1.0, total_iters=steps - 1)

    def then(steps, make):
        return lambda o: s.SequentialLR(o, [warm(steps)(o), make(o)], milestones=[steps])

    schedules = [
        schedule("constant", lambda o: s.LambdaLR(o, lambda t: 1.0), 8),
        schedule("multi_step", lambda o: s.MultiStepLR(o, [4, 6, 9], 0.1), 12, milestones=[4, 6, 9], gamma=0.1),
        schedule("multi_step_half", lambda o: s.MultiStepLR(o, [2, 3], 0.5), 6, milestones=[2, 3], gamma=0.5),
        schedule("cosine", lambda o: s.CosineAnnealingLR(o, 20), 20),
        schedule("cosine_odd", lambda o: s.CosineAnnealingLR(o, 7), 7),
        schedule("warmup_constant", then(4, lambda o: s.LambdaLR(o, lambda t: 1.0)), 9, warmup=4),
        schedule("warmup_multi_step", then(3, lambda o: s.MultiStepLR(o, [5 - 3, 8 - 3], 0.1)), 10, warmup=3,
                 milestones=[5, 8], gamma=0.1),
        schedule("warmup_cosine", then(5, lambda o: s.CosineAnnealingLR(o, 15)), 20, warmup=5),
    ]
    write_json("optim.json", {
        "lrs": lrs, "shapes": {k: list(v) for k, v in SHAPES.items()},
        "initial": {k: t.flatten().tolist() for k, t in initial.items()},
        "grads": [{k: t.flatten().tolist() for k, t in g.items()} for g in grads],
        "optimizers": runs, "schedules": schedules,
    })


def optim_more():
    write_json("optim_more.json", importlib.import_module("reference_optim").optim_more(unit))


# --------------------------------------------------------------------------------------------------------- photographs


def photos():
    from PIL import Image, __version__ as pillow
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

    def photo(w, h):
        """Waves with an edge: byte(y, x, c) = 64 + (3x + 5y + 40c) mod 96, and 90 more where x > y."""
        y, x, c = np.mgrid[:h, :w, :3]
        return Image.fromarray((64 + (3 * x + 5 * y + 40 * c) % 96 + 90 * (x > y)).astype(np.uint8))

    cases = []
    for w, h in [(50, 37), (33, 80), (11, 11), (9, 7), (12, 25)]:
        for crop, interpolation in [(1.0, "bilinear"), (0.875, "bilinear"), (0.9, "bicubic")]:
            size = 12
            mode = InterpolationMode(interpolation)
            view = Compose([Resize(math.floor(size / crop), interpolation=mode), CenterCrop(size), PILToTensor()])
            cases.append({"photo": [w, h], "size": size, "crop": crop, "interpolation": interpolation,
                          "bytes": view(photo(w, h)).flatten().tolist()})
    write_json("photos.json", {"pillow": pillow, "cases": cases})


def pictures():
    import base64
    import struct
    import zlib

    from PIL import Image, ImageOps, __version__ as pillow

    w, h = 13, 10
    y, x = np.mgrid[:h, :w]
    rgb = Image.fromarray(np.stack([18 * x + 2 * y, 250 - 23 * y, 90 + 11 * (x ^ y)], -1).astype(np.uint8))
    alpha = Image.fromarray((7 * x + 11 * y).astype(np.uint8))
    grey, one, few = rgb.convert("L"), rgb.convert("1"), rgb.quantize(16)
    deep = (1 + 397 * np.arange(w * h * 4)) % 65536
    files = {}

    def add(name, image, format, **options):
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        files[name] = buffer.getvalue()

    def png(depth, kind, channels):
        """A PNG of a depth or kind that Pillow does not write."""
        bits = deep[: w * h * channels].astype(">u2").tobytes()
        length = (w * depth * channels + 7) // 8
        rows = b"".join(b"\0" + bits[i * length : (i + 1) * length] for i in range(h))
        chunk = lambda tag, data: struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
        header = struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    def gif(transparent):
        """A frame inside of a larger screen."""
        buffer = io.BytesIO()
        few.save(buffer, "GIF")
        data = buffer.getvalue()
        colors = 13 + 3 * (2 << (data[10] & 7))
        frame = data[data.index(b",", colors) :]
        control = b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0" if transparent is not None else b""
        screen = data[:6] + struct.pack("<HH", 20, 15) + data[10:colors]
        return screen + control + b"," + struct.pack("<HH", 4, 3) + frame[5:]

    for format in ["JPEG", "PNG", "WEBP", "TIFF"]:
        lossless = {"lossless": True} if format == "WEBP" else {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x112] = orientation
            add(f"{format} held {orientation}", rgb, format, exif=exif, **lossless)
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    add("JPEG with XMP", rgb, "JPEG", xmp=xmp.encode(), quality=95, subsampling=0)
    add("JPEG", rgb, "JPEG", subsampling=0)
    add("JPEG with half the colour", rgb, "JPEG", subsampling=2)
    add("JPEG with restarts", rgb, "JPEG", restart_marker_blocks=1)
    add("progressive JPEG", rgb, "JPEG", progressive=True)
    add("grey JPEG", grey, "JPEG")
    add("CMYK JPEG", rgb.convert("CMYK"), "JPEG", quality=95)
    adobe = files["CMYK JPEG"].index(b"Adobe")
    assert files["CMYK JPEG"][adobe + 11] == 0
    files["YCCK JPEG"] = files["CMYK JPEG"][: adobe + 11] + b"\2" + files["CMYK JPEG"][adobe + 12 :]
    for kind, format in [("PNG", "PNG"), ("BMP", "BMP"), ("TIFF", "TIFF"), ("GIF", "GIF")]:
        for name, image in [("RGB", rgb), ("grey", grey), ("1-bit", one), ("palette", few)]:
            if (format, name) != ("GIF", "RGB"):
                add(f"{name} {kind}", image, format)
    with_alpha, grey_alpha = rgb.copy(), grey.copy()
    with_alpha.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    add("RGBA PNG", with_alpha, "PNG")
    add("RGBA TIFF", with_alpha, "TIFF")
    add("RGBA WebP", with_alpha, "WEBP", lossless=True, exact=True)
    add("RGBA BMP", with_alpha, "BMP")
    add("grey PNG with alpha", grey_alpha, "PNG")
    add("palette PNG with a transparent colour", few, "PNG", transparency=3)
    add("palette PNG with alpha", few, "PNG", transparency=bytes(range(0, 160, 10)))
    add("RGB PNG with a transparent colour", rgb, "PNG", transparency=(0, 250, 90))
    for depth, kind, channels, name in [(1, 0, 1, "1-bit grey"), (2, 0, 1, "2-bit grey"), (4, 0, 1, "4-bit grey"), (16, 2, 3, "16-bit RGB"),
                                        (16, 6, 4, "16-bit RGBA"), (16, 4, 2, "16-bit grey and alpha")]:
        files[f"PNG, {name}"] = png(depth, kind, channels)
    add("GIF with a transparent colour", few, "GIF", transparency=3)
    files["GIF on a larger screen"] = gif(None)
    files["GIF on a larger transparent screen"] = gif(3)
    add("GIF that moves", few, "GIF", save_all=True, append_images=[few.rotate(180)])
    add("WebP that moves", rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)], lossless=True)
    add("PNG that moves", rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)])
    add("WebP", rgb, "WEBP", quality=90)
    for compression in ["tiff_lzw", "tiff_adobe_deflate", "packbits"]:
        add(f"TIFF, {compression}", rgb, "TIFF", compression=compression)
    add("CMYK TIFF", rgb.convert("CMYK"), "TIFF")

    def read(data):
        image = Image.open(io.BytesIO(data))
        return ImageOps.exif_transpose(image).convert("RGB")

    def taken(data):
        try:
            read(data)
            return True
        except Exception:
            return False

    base = lambda data: base64.b64encode(data).decode()
    cases = []
    for name, data in files.items():
        image = read(data)
        cuts = [n for n in range(len(data)) if taken(data[:n])]
        cases.append({"name": name, "file": base(data), "width": image.width, "rgb": base(image.tobytes()), "cuts": cuts})
    write_json("pictures.json", {"pillow": pillow, "cases": cases})


PARTS = {"ops": ops, "optim": optim, "optim_more": optim_more, "photos": photos, "pictures": pictures, "transformer_seq": transformer_seq} | {family: functools.partial(models, family) for family in FAMILIES}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART",
                        help=f"{', '.join(PARTS)} (default: all)")
    # One thread: the order of every sum, and so every last bit, is the same on each run.
    torch.set_num_threads(1)
    for part in parser.parse_args().parts or PARTS:
        PARTS[part]()
