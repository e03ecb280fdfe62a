//! Maps times numbers: the gate of squeeze and excitation, the mask of a dropout.

use crate::kernels::bf16::scale;
use crate::op::on_maps;
use crate::storage::{convert, with_rows};
use crate::tape::foreign_op;
use candle_core::{DType, Result, Tensor};

/// Every pixel times its image's gate: (b, c, h, w) and (b, c, 1, 1) -> (b, c, h, w).
pub(crate) fn gate(xs: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let (b, c, _, _) = xs.dims4()?;
    if gate.dims() == [b, c, 1, 1] {
        let widen = |gates: &[half::bf16]| gates.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let gated = on_maps(
            ("gate", xs.dims(), (true, false)),
            (&[xs, gate], 2),
            |inputs| Ok(scale::by_image(inputs[0].map(), c, &widen(inputs[1].map()))),
            move |saved| {
                let (xs, gates) = (saved.inputs[0].map(), saved.inputs[1].map());
                let dx = saved.want(0, || scale::by_image(saved.grad, c, &widen(gates)));
                Ok(vec![dx, saved.want(1, || scale::by_image_backward(xs, saved.grad, c, b))])
            },
        )?;
        if let Some(ys) = gated {
            return Ok(ys);
        }
    }
    foreign_op(&[xs, gate], |t| t[0].broadcast_mul(&t[1]))
}

/// x times a mask that is 0 or `kept`: (b, …) and the mask's (b, …), whose dimensions are those of x or 1.
pub(crate) fn mask(xs: &Tensor, mask: &Tensor, kept: f32) -> Result<Tensor> {
    if let Some(ys) = mixed_mask(xs, mask, kept)? {
        return Ok(ys);
    }
    foreign_op(&[xs], |xs| xs[0].broadcast_mul(&mask.to_dtype(xs[0].dtype())?))
}

fn mixed_mask(xs: &Tensor, mask: &Tensor, kept: f32) -> Result<Option<Tensor>> {
    let dims = xs.dims();
    let (Some(&b), Some(&last)) = (dims.first(), dims.last()) else { return Ok(None) };
    // Channels are innermost.
    let c = if dims.len() == 4 { dims[1] } else { last };
    let about = ("dropout", dims, (false, false));
    if xs.dtype() == DType::BF16 && mask.dims() == dims {
        let numbers = convert(mask, DType::BF16)?;
        let behind = numbers.clone();
        return on_maps(
            about,
            (&[xs], 1),
            |inputs| with_rows(&[&numbers], |mask| Ok(scale::masked(inputs[0].map(), mask[0], kept))),
            move |saved| {
                let dx = || with_rows(&[&behind], |mask| Ok(scale::masked(saved.grad, mask[0], kept)));
                Ok(vec![crate::op::Passed::Made(dx()?)])
            },
        );
    }
    let gates: Vec<f32> = mask.flatten_all()?.to_vec1()?;
    let gates = match gates.len() {
        n if n == b => gates.iter().flat_map(|&gate| vec![gate; c]).collect(),
        n if n == b * c && dims.len() == 4 => gates,
        _ => return Ok(None),
    };
    let behind = gates.clone();
    on_maps(
        about,
        (&[xs], 1),
        |inputs| Ok(scale::by_image(inputs[0].map(), c, &gates)),
        move |saved| Ok(vec![saved.want(0, || scale::by_image(saved.grad, c, &behind))]),
    )
}
