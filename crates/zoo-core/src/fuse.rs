//! The table of fused operations: which layers are one kernel. No other file knows.
//!
//! Containers look their layers up when they are built, and keep the row that they find. A new fused kernel is a file
//! of `ops/fused/` and a row here.

use crate::layers::{BatchNorm, Conv2d, Layer, LayerNorm, MlpBlock, SelfAttention, Transpose};
use crate::ops::fused::concat_norm::{ConcatView, concat_norm, concat_stats};
use crate::ops::fused::conv_bn::{Scale, conv_bn_eval, conv_bn_train};
use crate::ops::fused::conv_bn_mixed;
use crate::ops::fused::dense_unit_mixed;
use crate::ops::fused::residual_branch::{Inner, residual_branch};
use crate::ops::{FusedActivation, Norm, Pointwise};
use crate::vars::Training;
use candle_core::{DType, Result, Tensor, bail};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Layers that are one operation.
pub(crate) struct Row {
    pub layers: &'static [fn(&dyn Layer) -> bool],
    end: End,
    /// The steps, counted from the first, whose output a training pass keeps besides the last one's.
    kept: &'static [usize],
    /// The same in mixed precision, where that is another.
    kept_mixed: Option<&'static [usize]>,
    run: fn(&Call) -> Result<Option<Tensor>>,
    /// The same on maps that stand one behind the other and are not joined.
    pub on_concat: Option<OnConcat>,
}

type OnConcat = fn(&[Arc<dyn Layer>], &ConcatView, bool) -> Result<Tensor>;

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one operation of {} layers", self.layers.len())
    }
}

/// What of the layers' surroundings is part of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing.
    Alone,
    /// The sum with a shortcut: the layers end a residual branch.
    Sum,
    /// The sum, and behind it an activation that only cuts.
    ActivatedSum,
}

/// A call of a fused operation.
pub(crate) struct Call<'a> {
    layers: &'a [Arc<dyn Layer>],
    xs: &'a Tensor,
    skip: Option<&'a Tensor>,
    /// Behind everything.
    activation: FusedActivation,
    train: bool,
}

/// The operations. Of several that fit, the first is taken.
const TABLE: &[Row] = &[
    // act(norm(conv(x)))
    Row {
        layers: &[is::<Conv2d>, is::<BatchNorm>, cuts],
        end: End::Alone,
        kept: &[0],
        kept_mixed: None,
        run: conv_norm,
        on_concat: None,
    },
    // norm(conv(x))
    Row {
        layers: &[is::<Conv2d>, is::<BatchNorm>],
        end: End::Alone,
        kept: &[0],
        kept_mixed: None,
        run: conv_norm,
        on_concat: None,
    },
    // act(norm(conv(act(norm(x))))), of one map or of many side by side
    Row {
        layers: &[is::<BatchNorm>, cuts, is::<Conv2d>, is::<BatchNorm>, cuts],
        end: End::Alone,
        kept: &[1, 2],
        // Of maps side by side, whose normalised rows are made anew.
        kept_mixed: Some(&[2]),
        run: norm_act_conv_norm,
        on_concat: Some(norm_act_conv_norm_concat),
    },
    // act(norm(x)), of one map or of many side by side
    Row {
        layers: &[is::<BatchNorm>, cuts],
        end: End::Alone,
        kept: &[],
        kept_mixed: None,
        run: norm_act,
        on_concat: Some(norm_act_concat),
    },
    // act(norm(conv(x)) + s)
    Row {
        layers: &[is::<Conv2d>, is::<BatchNorm>],
        end: End::ActivatedSum,
        kept: &[0],
        kept_mixed: None,
        run: conv_norm,
        on_concat: None,
    },
    // x + attention(norm(x))
    Row {
        layers: &[is::<LayerNorm>, is::<SelfAttention>],
        end: End::Sum,
        kept: &[1],
        kept_mixed: None,
        run: attention,
        on_concat: None,
    },
    // x + mlp(norm(x))
    Row {
        layers: &[is::<LayerNorm>, is::<MlpBlock>],
        end: End::Sum,
        kept: &[1],
        kept_mixed: None,
        run: mlp,
        on_concat: None,
    },
    // x + mlp(norm(x)ᵀ)ᵀ
    Row {
        layers: &[is::<LayerNorm>, is::<Transpose>, is::<MlpBlock>, is::<Transpose>],
        end: End::Sum,
        kept: &[2],
        kept_mixed: None,
        run: mlp_of_tokens,
        on_concat: None,
    },
    // x + mlp(norm(xᵀ))ᵀ
    Row {
        layers: &[is::<Transpose>, is::<LayerNorm>, is::<MlpBlock>, is::<Transpose>],
        end: End::Sum,
        kept: &[2],
        kept_mixed: None,
        run: mlp_of_normed_tokens,
        on_concat: None,
    },
];

/// The row for the first of these layers. Layers of which only a part is trained are not one operation: they run one by
/// one.
pub(crate) fn sequence(layers: &[Arc<dyn Layer>]) -> Option<&'static Row> {
    let one = |row: &&Row| {
        let alone = row.end == End::Alone && layers.len() >= row.layers.len();
        alone && row.fits(layers) && !training(&layers[..row.layers.len()]).is_mixed()
    };
    TABLE.iter().find(one)
}

/// The row for the last of these layers, the branch of a shortcut.
pub(crate) fn end_of_branch(layers: &[Arc<dyn Layer>]) -> Option<&'static Row> {
    TABLE.iter().find(|row| {
        let before = layers.len().checked_sub(row.layers.len());
        let one = |before: usize| row.fits(&layers[before..]) && !training(&layers[before..]).is_mixed();
        row.end != End::Alone && before.is_some_and(one)
    })
}

/// What of these layers is trained, of those that operations of the table are made of.
pub(crate) fn training(layers: &[Arc<dyn Layer>]) -> Training {
    let of = |layer: &Arc<dyn Layer>| -> Training {
        let layer = &**layer;
        let own = layer_as::<Conv2d>(layer).map(Conv2d::training);
        let own = own.or_else(|| layer_as::<BatchNorm>(layer).map(BatchNorm::training));
        let own = own.or_else(|| layer_as::<LayerNorm>(layer).map(LayerNorm::training));
        let own = own.or_else(|| layer_as::<SelfAttention>(layer).map(SelfAttention::training));
        let own = own.or_else(|| layer_as::<MlpBlock>(layer).map(MlpBlock::training));
        own.unwrap_or_default()
    };
    layers.iter().fold(Training::default(), |all, layer| all.and(of(layer)))
}

/// A layer as what it is.
pub(crate) fn layer_as<L: 'static>(layer: &dyn Layer) -> Option<&L> {
    (layer as &dyn Any).downcast_ref()
}

fn is<L: 'static>(layer: &dyn Layer) -> bool {
    layer_as::<L>(layer).is_some()
}

/// Whether a layer is an activation that kernels apply before they store a value.
fn cuts(layer: &dyn Layer) -> bool {
    layer_as::<Pointwise>(layer).is_some_and(|&function| FusedActivation::of(Some(function)).is_some())
}

impl Row {
    fn fits(&self, layers: &[Arc<dyn Layer>]) -> bool {
        self.layers.iter().zip(layers).all(|(is, layer)| is(&**layer))
    }

    /// The steps whose output a training pass keeps besides the last one's, in f32 and in mixed precision.
    pub fn kept(&self) -> [&'static [usize]; 2] {
        [self.kept, self.kept_mixed.unwrap_or(self.kept)]
    }

    /// Whether this activation behind a sum is part of the operation.
    pub fn takes(&self, activation: Option<Pointwise>) -> bool {
        match self.end {
            End::ActivatedSum => FusedActivation::of(activation).is_some(),
            End::Sum | End::Alone => activation.is_none(),
        }
    }

    /// Runs the operation, with a shortcut's output and the activation behind the sum if it adds; `None` where its
    /// layers are to run one by one.
    pub fn run(
        &self,
        layers: &[Arc<dyn Layer>],
        xs: &Tensor,
        sum: Option<(&Tensor, Option<Pointwise>)>,
        train: bool,
    ) -> Result<Option<Tensor>> {
        let (skip, behind) = sum.unzip();
        let own = layers.last().and_then(|last| layer_as::<Pointwise>(&**last).copied());
        match FusedActivation::of(behind.unwrap_or(own)) {
            Some(activation) => (self.run)(&Call { layers, xs, skip, activation, train }),
            None => Ok(None),
        }
    }

    /// Runs the operation on maps that are not joined.
    pub fn run_on_concat(&self, layers: &[Arc<dyn Layer>], maps: &ConcatView, train: bool) -> Result<Tensor> {
        match self.on_concat {
            Some(run) => run(layers, maps, train),
            None => bail!("{self:?} reads one map"),
        }
    }
}

impl Call<'_> {
    fn layer<L: 'static>(&self, i: usize) -> Option<&L> {
        layer_as(&**self.layers.get(i)?)
    }

    /// Whether the shortcut is the identity and nothing follows the sum, as the kernels of branches want it.
    fn is_plain_sum(&self) -> bool {
        self.skip.is_some_and(|skip| skip.id() == self.xs.id()) && self.activation == FusedActivation::None
    }
}

fn conv_norm(call: &Call) -> Result<Option<Tensor>> {
    let &Call { xs, skip, activation, train, .. } = call;
    let (Some(conv), Some(norm)) = (call.layer::<Conv2d>(0), call.layer::<BatchNorm>(1)) else { return Ok(None) };
    let (weight, bias, params) = conv.parts(train);
    let mixed = xs.dtype() == DType::BF16;
    if !train && mixed {
        let weights = (&weight, bias.as_ref());
        return conv_bn_mixed::conv_bn_eval(xs, weights, params, &norm.running(), skip, activation).map(Some);
    }
    if !train {
        return conv_bn_eval(xs, &weight, bias.as_ref(), params, &norm.running(), skip, activation).map(Some);
    }
    if !norm.normalizes() {
        return Ok(None);
    }
    let Norm { weight: scale, bias: shift, eps, .. } = norm.running();
    let scale = Scale { weight: scale, bias: shift, eps };
    let train = if mixed { conv_bn_mixed::conv_bn_train } else { conv_bn_train };
    let (ys, stats) = train(xs, (&weight, bias.as_ref()), params, &scale, skip, activation)?;
    norm.update_running_stats(&stats, ys.dims())?;
    Ok(Some(ys))
}

fn norm_act(call: &Call) -> Result<Option<Tensor>> {
    let Some(norm) = call.layer::<BatchNorm>(0) else { return Ok(None) };
    let activation = call.layer::<Pointwise>(1).copied();
    norm.normalize(call.xs, activation, call.train).map(Some)
}

fn norm_act_conv_norm(call: &Call) -> Result<Option<Tensor>> {
    let (front, back) = call.layers.split_at(2);
    let own = layer_as::<Pointwise>(&*front[1]).copied();
    let Some(activation) = FusedActivation::of(own) else { return Ok(None) };
    let Some(ys) = norm_act(&Call { layers: front, activation, ..*call })? else { return Ok(None) };
    conv_norm(&Call { layers: back, xs: &ys, ..*call })
}

fn norm_act_conv_norm_concat(layers: &[Arc<dyn Layer>], maps: &ConcatView, train: bool) -> Result<Tensor> {
    let (front, back) = layers.split_at(2);
    let (Some(first), Some(conv), Some(second)) =
        (layer_as::<BatchNorm>(&*layers[0]), layer_as::<Conv2d>(&*layers[2]), layer_as::<BatchNorm>(&*layers[3]))
    else {
        bail!("{layers:?} are no norm, activation, convolution and norm")
    };
    let activation = |layer: usize| FusedActivation::of(layer_as::<Pointwise>(&*layers[layer]).copied());
    let (weight, bias, params) = conv.parts(train);
    let is_mixed = dense_unit_mixed::fits(maps, &weight, bias.as_ref(), params);
    if let (true, Some(cut), Some(activation)) = (is_mixed, activation(1), activation(4)) {
        let tensors: Vec<&Tensor> = maps.iter().map(|(xs, _)| xs).collect();
        if !train {
            let first = (&first.running(), cut);
            return dense_unit_mixed::dense_unit_eval(&tensors, first, &weight, &second.running(), activation);
        }
        if first.normalizes() && second.normalizes() {
            let (scale, shift) = first.weights(train);
            let stats = concat_stats(maps)?;
            let Norm { weight: gamma, bias: beta, eps, .. } = second.running();
            let behind = Scale { weight: gamma, bias: beta, eps };
            let front = (&first.of_batch(&scale, &shift, &stats), cut);
            let (ys, of_conv) = dense_unit_mixed::dense_unit_train(&tensors, front, &weight, &behind, activation)?;
            let &[b, _, h, w] = ys.dims() else { bail!("dense_unit: an output of {:?}", ys.dims()) };
            first.update_running_stats(&stats, &[b, stats.mean.elem_count(), h, w])?;
            second.update_running_stats(&of_conv, ys.dims())?;
            return Ok(ys);
        }
    }
    let ys = norm_act_concat(front, maps, train)?;
    let fused = match activation(4) {
        Some(activation) => conv_norm(&Call { layers: back, xs: &ys, skip: None, activation, train })?,
        None => None,
    };
    fused.map_or_else(|| back.iter().try_fold(ys, |ys, layer| layer.forward_t(&ys, train)), Ok)
}

fn norm_act_concat(layers: &[Arc<dyn Layer>], maps: &ConcatView, train: bool) -> Result<Tensor> {
    let [norm, activation] = layers else { bail!("a norm and an activation are two layers, not {}", layers.len()) };
    let (norm, activation) = (layer_as::<BatchNorm>(&**norm), layer_as::<Pointwise>(&**activation).copied());
    let (Some(norm), Some(activation)) = (norm, FusedActivation::of(activation)) else {
        bail!("{layers:?} are no norm and no activation that cuts")
    };
    let tensors: Vec<&Tensor> = maps.iter().map(|(xs, _)| xs).collect();
    let (weight, bias) = norm.weights(train);
    if !train || !norm.normalizes() {
        return concat_norm(&tensors, &Norm { weight: &weight, bias: &bias, ..norm.running() }, activation);
    }
    let stats = concat_stats(maps)?;
    let ys = concat_norm(&tensors, &norm.of_batch(&weight, &bias, &stats), activation)?;
    norm.update_running_stats(&stats, ys.dims())?;
    Ok(ys)
}

fn attention(call: &Call) -> Result<Option<Tensor>> {
    if call.is_plain_sum() { attend(call.layers, call.xs, call.train, Inner::Attention) } else { Ok(None) }
}

/// The first token of x + attention(norm(x)).
pub(crate) fn attention_of_first(layers: &[Arc<dyn Layer>], xs: &Tensor, train: bool) -> Result<Option<Tensor>> {
    attend(layers, xs, train, Inner::AttentionOfFirst)
}

fn attend(layers: &[Arc<dyn Layer>], xs: &Tensor, train: bool, inner: fn(usize) -> Inner) -> Result<Option<Tensor>> {
    let [norm, attention] = layers else { return Ok(None) };
    let (norm, attention) = (layer_as::<LayerNorm>(&**norm), layer_as::<SelfAttention>(&**attention));
    match (norm, attention.and_then(|attention| attention.parts(train))) {
        (Some(norm), Some((heads, maps))) => branch(xs, inner(heads), norm, maps, train),
        _ => Ok(None),
    }
}

fn mlp(call: &Call) -> Result<Option<Tensor>> {
    mlp_branch(call, Inner::Gelu, 0, 1)
}

fn mlp_of_tokens(call: &Call) -> Result<Option<Tensor>> {
    mlp_branch(call, Inner::GeluOfTokens(true), 0, 2)
}

fn mlp_of_normed_tokens(call: &Call) -> Result<Option<Tensor>> {
    mlp_branch(call, Inner::GeluOfTokens(false), 1, 2)
}

fn mlp_branch(call: &Call, inner: Inner, norm: usize, mlp: usize) -> Result<Option<Tensor>> {
    let (norm, mlp) = (call.layer::<LayerNorm>(norm), call.layer::<MlpBlock>(mlp));
    match (norm, mlp.and_then(|mlp| mlp.parts(call.train))) {
        (Some(norm), Some(maps)) if call.is_plain_sum() => branch(call.xs, inner, norm, maps, call.train),
        _ => Ok(None),
    }
}

/// Weights and biases of the two linear maps of a branch.
pub(crate) type Maps = [(Tensor, Tensor); 2];

fn branch(xs: &Tensor, inner: Inner, norm: &LayerNorm, maps: Maps, train: bool) -> Result<Option<Tensor>> {
    let ((weight, bias), eps) = norm.parts(train);
    let [first, second] = &maps;
    residual_branch(xs, inner, ((&weight, &bias), eps), (&first.0, &first.1), (&second.0, &second.1))
}
