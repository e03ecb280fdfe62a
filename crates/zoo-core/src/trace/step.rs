//! What the steps of a forward pass compute: plain data, from which an exporter writes the network down again.

use crate::kernels::conv::Conv2dParams;
use crate::kernels::pointwise::Pointwise;

/// What a step computes, with all that neither its weights nor the shapes around it say.
///
/// ```
/// use zoo_core::ops::Conv2dParams;
/// use zoo_core::trace::Step;
/// let params = Conv2dParams { stride: (2, 2), ..Conv2dParams::default() };
/// let step = Step::Conv2d { channels: (3, 64), kernel: (7, 7), params };
/// assert_eq!((step.kind(), step.detail().as_str()), ("Conv2d", "7x7, stride 2"));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Step {
    /// Handed to the pass from outside.
    Input,
    /// [`ops::conv2d`](crate::ops::conv2d); tensors `weight` and perhaps `bias`.
    Conv2d {
        /// Of the input and of the output.
        channels: (usize, usize),
        /// (height, width)
        kernel: (usize, usize),
        /// Stride, padding, dilation and groups.
        params: Conv2dParams,
    },
    /// [`ops::linear`](crate::ops::linear); tensors `weight` and perhaps `bias`.
    Linear {
        /// (in, out)
        features: (usize, usize),
    },
    /// The same with some rows of the tensors `PATH_weight` and `PATH_bias`, PATH the node's: queries, keys and values have
    /// one matrix in PyTorch's attention, `in_proj`.
    InProjection {
        /// (in, out)
        features: (usize, usize),
        /// The first row that counts.
        first: usize,
    },
    /// [`BatchNorm`](crate::BatchNorm) by its running statistics; tensors `running_mean`, `running_var`, and `weight`
    /// and `bias` if it is affine.
    BatchNorm {
        /// Added to the variance before its root.
        eps: f64,
        /// Whether a weight and a bias follow.
        affine: bool,
        /// Whether it normalises at all: see [`BatchNormSettings`](crate::BatchNormSettings).
        normalizes: bool,
    },
    /// [`LayerNorm`](crate::LayerNorm) over the last dimensions; tensors `weight` and `bias`.
    LayerNorm {
        /// Added to the variance before its root.
        eps: f64,
        /// How many dimensions it runs over.
        dims: usize,
    },
    /// An activation function, element by element.
    Activation(Pointwise),
    /// exp(x) / Σ exp(x) over the last dimension.
    Softmax,
    /// [`ops::max_pool2d`](crate::ops::max_pool2d) under square windows.
    MaxPool {
        /// Side of the window.
        kernel: usize,
        /// Step of the window.
        stride: usize,
        /// Padding on every side, which never wins.
        padding: usize,
        /// Whether a last window may reach over the edge.
        ceil_mode: bool,
    },
    /// [`ops::avg_pool2d`](crate::ops::avg_pool2d) under square windows.
    AvgPool {
        /// Side of the window.
        kernel: usize,
        /// Step of the window.
        stride: usize,
        /// Zeros on every side.
        padding: usize,
        /// Whether a last window may reach over the edge.
        ceil_mode: bool,
        /// Whether the padding's zeros count in the mean.
        count_include_pad: bool,
    },
    /// The mean over all pixels of a channel: (b, c, h, w) -> (b, c) or (b, c, 1, 1).
    GlobalAvgPool,
    /// The largest value of a channel: (b, c, h, w) -> (b, c).
    GlobalMaxPool,
    /// The mean of its inputs, which are of one shape, element by element.
    Mean,
    /// The mean over each cell of a grid: [`ops::adaptive_avg_pool2d`](crate::ops::adaptive_avg_pool2d).
    AdaptiveAvgPool {
        /// (height, width) of the grid.
        size: (usize, usize),
    },
    /// The mean of every image's tokens: (b, n, c) -> (b, c).
    MeanTokens {
        /// The first token that counts: 1 leaves a class token out.
        first: usize,
    },
    /// The mean of every token's channels: (b, n, c) -> (b, n).
    MeanChannels,
    /// a + b
    Add,
    /// One behind the other along a dimension.
    Concat {
        /// The dimension.
        dim: usize,
    },
    /// (b, n, c) -> (b, c, n)
    Transpose,
    /// (b, …) -> (b, n)
    Flatten,
    /// Zero channels around the others: (b, c, h, w) -> (b, below + c + above, h, w).
    PadChannels {
        /// In front.
        below: usize,
        /// Behind.
        above: usize,
    },
    /// [`channel_shuffle`](crate::channel_shuffle).
    ChannelShuffle {
        /// Groups that the channels come in.
        groups: usize,
    },
    /// A map's pixels as tokens: (b, c, h, w) -> (b, h · w, c).
    Tokens,
    /// Each channel of the first input times its number in the second: (b, c, h, w) and (b, c, 1, 1).
    Scale,
    /// softmax(q · kᵀ / √d) · v, head by head. From one input (b, n, 3 · dim), it holds q, k and v in this order; from two,
    /// (b, n, dim) and (b, m, 2 · dim), q, then k and v.
    Attention {
        /// How many heads share the channels.
        heads: usize,
        /// Whether a mask of the caller's is added to the scores.
        masked: bool,
    },
    /// A learned token, the step's own tensor, in front of every image's tokens: (b, n, c) -> (b, 1 + n, c).
    PrependToken,
    /// Every image's first token: (b, n, c) -> (b, c).
    FirstToken,
    /// Tokens plus the numbers of their places, the step's own tensor: (b, n, c).
    PositionEmbedding,
    /// An image's memory cut into so many rows: (b, c, h, w) -> (b, tokens, c · h · w / tokens).
    Rows {
        /// How many.
        tokens: usize,
    },
    /// x · scale + shift, channel by channel of (b, 3, h, w).
    Normalize {
        /// Factors.
        scale: [f64; 3],
        /// Summands.
        shift: [f64; 3],
    },
    /// Zeroes at random in training.
    Dropout {
        /// How likely.
        p: f64,
    },
    /// Rows of a table, its own tensor, by token: (b, n) -> (b, n, d).
    Embedding,
    /// What this crate has no name for.
    Other {
        /// For example `Roll`.
        kind: &'static str,
        /// What distinguishes it among its kind.
        detail: String,
    },
}

impl Step {
    /// A step that this crate has no name for, for example `Step::other("Roll", "by 3")`.
    pub fn other(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::Other { kind, detail: detail.into() }
    }

    /// `Conv2d`, `ReLU`, `Add`, …
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Input => "Input",
            Self::Conv2d { .. } => "Conv2d",
            Self::Linear { .. } | Self::InProjection { .. } => "Linear",
            Self::BatchNorm { .. } => "BatchNorm",
            Self::LayerNorm { .. } => "LayerNorm",
            Self::Activation(function) => function.name(),
            Self::Softmax => "Softmax",
            // A window of one pixel only leaves pixels out.
            Self::MaxPool { kernel: 1, .. } => "Subsample",
            Self::MaxPool { .. } | Self::GlobalMaxPool => "MaxPool",
            Self::Mean => "Mean",
            Self::AvgPool { .. }
            | Self::GlobalAvgPool
            | Self::AdaptiveAvgPool { .. }
            | Self::MeanTokens { .. }
            | Self::MeanChannels => "AvgPool",
            Self::Add => "Add",
            Self::Concat { .. } => "Concat",
            Self::Transpose => "Transpose",
            Self::Flatten => "Flatten",
            Self::PadChannels { .. } => "PadChannels",
            Self::ChannelShuffle { .. } => "ChannelShuffle",
            Self::Tokens => "Tokens",
            Self::Scale => "Scale",
            Self::Attention { .. } => "Attention",
            Self::PrependToken | Self::FirstToken => "ClassToken",
            Self::PositionEmbedding => "PositionEmbedding",
            Self::Rows { .. } => "Rows",
            Self::Normalize { .. } => "Normalize",
            Self::Dropout { .. } => "Dropout",
            Self::Embedding => "Embedding",
            Self::Other { kind, .. } => kind,
        }
    }

    /// What distinguishes it among its kind, for example `3x3, stride 2`; empty where nothing does.
    pub fn detail(&self) -> String {
        let pair = |(a, b): (usize, usize)| if a == b { a.to_string() } else { format!("{a}x{b}") };
        match self {
            Self::Conv2d { channels, kernel, params: Conv2dParams { stride, padding: _, dilation, groups } } => {
                let mut detail = format!("{}x{}", kernel.0, kernel.1);
                if *stride != (1, 1) {
                    detail += &format!(", stride {}", pair(*stride));
                }
                if *dilation != (1, 1) {
                    detail += &format!(", dilation {}", pair(*dilation));
                }
                match *groups {
                    1 => {}
                    _ if *channels == (*groups, *groups) => detail += ", depthwise",
                    _ => detail += &format!(", {groups} groups"),
                }
                detail
            }
            Self::Linear { features: (c_in, c_out) } | Self::InProjection { features: (c_in, c_out), .. } => {
                format!("{c_in} to {c_out}")
            }
            Self::BatchNorm { normalizes: false, .. } => "off".to_string(),
            Self::MaxPool { kernel, stride: 1, .. } | Self::AvgPool { kernel, stride: 1, .. } => {
                format!("{kernel}x{kernel}")
            }
            Self::MaxPool { kernel, stride, .. } | Self::AvgPool { kernel, stride, .. } => {
                format!("{kernel}x{kernel}, stride {stride}")
            }
            Self::GlobalAvgPool | Self::GlobalMaxPool => "global".to_string(),
            Self::AdaptiveAvgPool { size } => format!("to {}x{}", size.0, size.1),
            Self::MeanTokens { .. } => "over tokens".to_string(),
            Self::MeanChannels => "over channels".to_string(),
            Self::PadChannels { below, above } => format!("{below} + {above}"),
            Self::ChannelShuffle { groups } => format!("{groups} groups"),
            Self::Attention { heads, .. } => format!("{heads} heads"),
            Self::Rows { tokens } => format!("{tokens} of the memory"),
            Self::Dropout { p } => p.to_string(),
            Self::Other { detail, .. } => detail.clone(),
            _ => String::new(),
        }
    }
}
