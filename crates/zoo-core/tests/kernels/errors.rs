//! A malformed shape is an error that names the shapes.

use crate::norm::EPS;
use candle_core::{DType, Device, Result, Tensor};
use zoo_core::ops::{self, Conv2dParams};

#[test]
fn malformed_shapes_are_errors_that_name_operation_and_shapes() {
    let t = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let pair = |n: usize| (n, n);
    let conv = |stride, padding, dilation, groups| Conv2dParams {
        stride: pair(stride),
        padding: pair(padding),
        dilation: pair(dilation),
        groups,
    };
    let plain = Conv2dParams::default();
    let x = t(&[2, 6, 5, 7]);
    let norm = |w: &[usize], b: &[usize], m: &[usize], v: &[usize]| {
        ops::batch_norm(&x, &t(w), &t(b), (&t(m), &t(v)), 1e-5, true)
    };
    let cases: Vec<(Result<Tensor>, &[&str])> = vec![
        (ops::conv2d(&t(&[6, 5, 7]), &t(&[4, 6, 3, 3]), None, plain), &["conv2d", "[6, 5, 7]", "[4, 6, 3, 3]"]),
        (ops::conv2d(&x, &t(&[4, 6, 3]), None, plain), &["conv2d", "[2, 6, 5, 7]", "[4, 6, 3]"]),
        (ops::conv2d(&x, &t(&[4, 5, 3, 3]), None, plain), &["conv2d", "[2, 6, 5, 7]", "[4, 5, 3, 3]"]),
        (
            ops::conv2d(&x, &t(&[4, 6, 3, 3]), None, conv(1, 0, 1, 2)),
            &["conv2d", "[2, 6, 5, 7]", "[4, 6, 3, 3]", "groups 2"],
        ),
        (
            ops::conv2d(&x, &t(&[5, 3, 3, 3]), None, conv(1, 0, 1, 2)),
            &["conv2d", "[2, 6, 5, 7]", "[5, 3, 3, 3]", "groups 2"],
        ),
        (ops::conv2d(&x, &t(&[4, 6, 6, 3]), None, plain), &["conv2d", "[2, 6, 5, 7]", "[4, 6, 6, 3]"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]), None, conv(1, 0, 3, 1)), &["conv2d", "[2, 6, 5, 7]", "[4, 6, 3, 3]"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]), Some(&t(&[6])), plain), &["conv2d", "bias [6]", "[4, 6, 3, 3]"]),
        (ops::conv2d(&t(&[0, 6, 5, 7]), &t(&[4, 6, 3, 3]), None, plain), &["conv2d", "[0, 6, 5, 7]", "[4, 6, 3, 3]"]),
        (ops::conv2d(&x, &t(&[4, 6, 0, 3]), None, plain), &["conv2d", "[4, 6, 0, 3]"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]), None, conv(0, 0, 1, 1)), &["conv2d", "stride"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]), None, conv(1, 0, 0, 1)), &["conv2d", "dilation"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]), None, conv(1, 0, 1, 0)), &["conv2d", "groups"]),
        (ops::conv2d(&x, &t(&[4, 6, 3, 3]).to_dtype(DType::F64).unwrap(), None, plain), &["conv2d", "F32", "F64"]),
        (ops::linear(&x, &t(&[4, 7]).to_dtype(DType::F64).unwrap(), None), &["linear", "F32", "F64"]),
        (ops::linear(&x, &t(&[4, 6]), None), &["linear", "[2, 6, 5, 7]", "[4, 6]"]),
        (ops::linear(&x, &t(&[7]), None), &["linear", "[2, 6, 5, 7]", "[7]"]),
        (ops::linear(&x, &t(&[4, 7]), Some(&t(&[7]))), &["linear", "bias [7]", "[4, 7]"]),
        (ops::linear(&t(&[0, 7]), &t(&[4, 7]), None), &["linear", "[0, 7]", "[4, 7]"]),
        (ops::matmul(&t(&[2, 3]), &t(&[4, 5])), &["matmul", "[2, 3]", "[4, 5]"]),
        (ops::matmul(&t(&[2, 3, 4]), &t(&[3, 4, 5])), &["matmul", "[2, 3, 4]", "[3, 4, 5]"]),
        (ops::matmul(&t(&[3]), &t(&[3, 5])), &["matmul", "[3]", "[3, 5]"]),
        (norm(&[5], &[6], &[6], &[6]), &["batch_norm", "[2, 6, 5, 7]", "[5]"]),
        (norm(&[6], &[5], &[6], &[6]), &["batch_norm", "[2, 6, 5, 7]", "[5]"]),
        (norm(&[6], &[6], &[1, 6], &[6]), &["batch_norm", "[2, 6, 5, 7]", "[1, 6]"]),
        (norm(&[6], &[6], &[6], &[7]), &["batch_norm", "[2, 6, 5, 7]", "[7]"]),
        (ops::batch_norm(&t(&[6]), &t(&[6]), &t(&[6]), (&t(&[6]), &t(&[6])), EPS, true), &["batch_norm", "[6]"]),
        (ops::batch_stats(&t(&[6])).map(|s| s.mean), &["batch_norm", "[6]"]),
        (ops::layer_norm(&x, &t(&[5]), &t(&[5]), EPS), &["layer_norm", "[2, 6, 5, 7]", "[5]"]),
        (ops::layer_norm(&x, &t(&[7]), &t(&[5]), EPS), &["layer_norm", "[2, 6, 5, 7]", "[7]", "[5]"]),
        (ops::layer_norm(&t(&[0, 7]), &t(&[7]), &t(&[7]), EPS), &["layer_norm", "[0, 7]", "[7]"]),
        (ops::softmax(&t(&[])), &["softmax", "[]"]),
        (ops::softmax(&t(&[3, 0])), &["softmax", "[3, 0]"]),
        (ops::max_pool2d(&t(&[6, 5, 7]), pair(2), pair(2), pair(0), false), &["max_pool2d", "[6, 5, 7]"]),
        (ops::max_pool2d(&x, pair(6), pair(1), pair(0), false), &["max_pool2d", "[2, 6, 5, 7]", "(6, 6)"]),
        (ops::max_pool2d(&x, pair(2), pair(2), pair(2), false), &["max_pool2d", "(2, 2)"]),
        (ops::max_pool2d(&x, pair(2), pair(0), pair(0), false), &["max_pool2d", "[2, 6, 5, 7]", "(0, 0)"]),
        (ops::avg_pool2d(&x, pair(8), pair(1), pair(1), true, true), &["avg_pool2d", "[2, 6, 5, 7]", "(8, 8)"]),
        (ops::avg_pool2d(&t(&[3]), pair(2), pair(2), pair(0), false, true), &["avg_pool2d", "[3]"]),
        (ops::adaptive_avg_pool2d(&t(&[3]), pair(2)), &["adaptive_avg_pool2d", "[3]"]),
        (ops::adaptive_avg_pool2d(&x, pair(0)), &["adaptive_avg_pool2d", "[2, 6, 5, 7]", "(0, 0)"]),
        (ops::cross_entropy(&t(&[2, 3]), &t(&[3]), 0.0), &["cross_entropy", "[2, 3]", "[3]"]),
        (ops::cross_entropy(&t(&[2]), &t(&[2]), 0.0), &["cross_entropy", "[2]"]),
        (ops::cross_entropy(&t(&[2, 3]), &(t(&[2]) + 3.0).unwrap(), 0.0), &["cross_entropy", "target 3", "[2, 3]"]),
        (ops::cross_entropy(&t(&[2, 3]), &t(&[2, 4]), 0.0), &["cross_entropy", "[2, 3]", "[2, 4]", "(b, classes)"]),
        (ops::cross_entropy(&t(&[2, 3]), &t(&[1, 2, 3]), 0.0), &["cross_entropy", "[2, 3]", "[1, 2, 3]"]),
        (ops::cross_entropy(&t(&[2, 3]), &t(&[2, 3]).to_dtype(DType::U32).unwrap(), 0.0), &["cross_entropy", "U32"]),
    ];
    for (i, (result, expected)) in cases.into_iter().enumerate() {
        let message = result.expect_err(&format!("case {i}, {expected:?}, is an error")).to_string();
        for part in expected {
            assert!(message.contains(part), "case {i}: `{message}` does not mention `{part}`");
        }
    }
}
