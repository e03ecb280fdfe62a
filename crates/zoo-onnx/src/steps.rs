//! Each step of a network as ONNX operators of opset 17.
//!
//! Shapes are the traced ones, with the batch left open: a reshape copies it (a 0 in its target), so that one file serves
//! every batch.

use crate::Error;
use crate::builder::Builder;
use crate::proto::AttributeProto;
use candle_core::Tensor;
use zoo_core::Pointwise;
use zoo_core::ops::Conv2dParams;
use zoo_core::trace::{Graph, Node, Step};

/// One node of the network's graph, and what its operators are called.
pub struct Traced<'a> {
    pub graph: &'a Graph,
    pub node: &'a Node,
    /// Its layer's key, or its block's with its kind.
    pub name: String,
}

impl<'a> Traced<'a> {
    pub fn new(graph: &'a Graph, node: &'a Node) -> Self {
        let block = node.block.map_or("", |block| &graph.blocks[block].path);
        let name = match (node.path.as_str(), block) {
            ("", "") => node.kind().to_string(),
            ("", block) => format!("{block}.{}", node.kind()),
            (path, _) => path.to_string(),
        };
        Self { graph, node, name }
    }

    /// The shape of its first input.
    fn input_shape(&self) -> &[usize] {
        self.node.inputs.first().map_or(&[], |&i| &self.graph.nodes[i].shape)
    }

    fn key(&self, tensor: &str) -> String {
        format!("{}.{tensor}", self.node.path)
    }

    fn part(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    fn refused(&self, why: &str) -> Error {
        Error::NoOperator { step: self.name.clone(), kind: self.node.kind(), why: why.into() }
    }
}

/// Writes what `at` computes from the values `inputs`, and returns the name of its output.
pub fn write(to: &mut Builder, at: &Traced, inputs: &[&str]) -> Result<String, Error> {
    let (name, node) = (at.name.as_str(), at.node);
    let xs = *inputs.first().ok_or_else(|| at.refused("the graph does not know what it reads"))?;
    let reduced = |axis| [AttributeProto::ints("axes", [axis]), AttributeProto::int("keepdims", 0)];
    Ok(match node.step {
        Step::Conv2d { kernel, params, .. } => conv(to, at, xs, kernel, params)?,
        Step::Linear { .. } => linear(to, at, xs)?,
        Step::InProjection { features: (_, rows), first } => {
            let of = |tensor: &str| format!("{}_{tensor}", node.path);
            let some = |what: &str| format!("{}_{what}.{first}", node.path);
            let matrix = |weight: Tensor| weight.narrow(0, first, rows)?.t()?.contiguous();
            let weight = to.weight_as(&of("weight"), &some("weight.T"), matrix)?;
            let bias = to.weight_as(&of("bias"), &some("bias"), |bias| bias.narrow(0, first, rows))?;
            let product = to.op(("MatMul", &at.part("product")), &[xs, &weight], []);
            to.op(("Add", name), &[&product, &bias], [])
        }
        Step::BatchNorm { eps, affine, normalizes } => batch_norm(to, at, xs, eps, [affine, normalizes])?,
        Step::LayerNorm { eps, dims } => {
            let (weight, bias) = (to.weight(&at.key("weight"))?, to.weight(&at.key("bias"))?);
            let set = [AttributeProto::int("axis", -(dims as i64)), AttributeProto::float("epsilon", eps)];
            to.op(("LayerNormalization", name), &[xs, &weight, &bias], set)
        }
        Step::Activation(function) => activation(to, name, xs, function),
        Step::Softmax => to.op(("Softmax", name), &[xs], [AttributeProto::int("axis", -1)]),
        Step::MaxPool { kernel, stride, padding, .. } => {
            let pads = reach(at, kernel, stride, padding);
            to.op(("MaxPool", name), &[xs], window(kernel, stride, pads))
        }
        Step::AvgPool { kernel, stride, padding, ceil_mode, count_include_pad } => {
            let pads = reach(at, kernel, stride, padding);
            let over_the_edge = ceil_mode && pads[2..] != [padding; 2];
            // What lies beyond the padding counts in no mean; ONNX knows no such zone beside zeros that count.
            if over_the_edge && count_include_pad && padding > 0 {
                return Err(at.refused("windows over the edge of a padding that counts"));
            }
            let counts = i64::from(count_include_pad && padding > 0);
            let set =
                window(kernel, stride, pads).into_iter().chain([AttributeProto::int("count_include_pad", counts)]);
            to.op(("AveragePool", name), &[xs], set)
        }
        Step::GlobalAvgPool => {
            let mean = to.op(("GlobalAveragePool", name), &[xs], []);
            match node.shape.len() {
                2 => to.op(("Flatten", &at.part("flat")), &[&mean], [AttributeProto::int("axis", 1)]),
                _ => mean,
            }
        }
        Step::GlobalMaxPool => {
            let largest = to.op(("GlobalMaxPool", name), &[xs], []);
            to.op(("Flatten", &at.part("flat")), &[&largest], [AttributeProto::int("axis", 1)])
        }
        Step::Mean => to.op(("Mean", name), inputs, []),
        Step::AdaptiveAvgPool { size } => adaptive(to, at, xs, size)?,
        Step::MeanTokens { first } => {
            let tokens = if first == 0 { xs.to_string() } else { tokens_from(to, at, xs, first) };
            to.op(("ReduceMean", name), &[&tokens], reduced(1))
        }
        Step::MeanChannels => to.op(("ReduceMean", name), &[xs], reduced(2)),
        Step::Add => to.op(("Add", name), inputs, []),
        Step::Concat { dim } => to.op(("Concat", name), inputs, [AttributeProto::int("axis", dim as i64)]),
        Step::Transpose => to.op(("Transpose", name), &[xs], [AttributeProto::ints("perm", [0, 2, 1])]),
        Step::Flatten => to.op(("Flatten", name), &[xs], [AttributeProto::int("axis", 1)]),
        Step::PadChannels { below, above } => pad(to, at, xs, below, above),
        Step::ChannelShuffle { groups } => {
            let [c, h, w] = sizes(at)?;
            let split = reshape(to, &at.part("groups"), xs, &[groups, c / groups, h, w]);
            let turned = AttributeProto::ints("perm", [0, 2, 1, 3, 4]);
            let dealt = to.op(("Transpose", &at.part("dealt")), &[&split], [turned]);
            reshape(to, name, &dealt, &[c, h, w])
        }
        Step::Tokens => {
            let [c, h, w] = sizes(at)?;
            let rows = reshape(to, &at.part("rows"), xs, &[c, h * w]);
            to.op(("Transpose", name), &[&rows], [AttributeProto::ints("perm", [0, 2, 1])])
        }
        Step::Scale => to.op(("Mul", name), inputs, []),
        Step::Attention { masked: true, .. } => {
            return Err(at.refused("its mask is the caller's, and the file would have none: trace it without"));
        }
        Step::Attention { heads, .. } => attention(to, at, inputs, heads)?,
        Step::PrependToken => {
            let token = to.weight_as(&node.path, &format!("{}.in_front", node.path), |token| {
                token.pad_with_zeros(1, 0, node.shape[1] - 1)
            })?;
            let moved = pad(to, at, xs, 1, 0);
            to.op(("Add", &at.part("tokens")), &[&moved, &token], [])
        }
        Step::FirstToken => {
            let first = to.index(&at.part("index"), 0);
            to.op(("Gather", name), &[xs, &first], [AttributeProto::int("axis", 1)])
        }
        Step::PositionEmbedding => {
            let positions = to.weight(&node.path)?;
            to.op(("Add", &at.part("tokens")), &[xs, &positions], [])
        }
        Step::Rows { tokens } => reshape(to, name, xs, &[tokens, node.shape[2]]),
        Step::Normalize { scale, shift } => channels(to, name, xs, scale, shift),
        Step::Dropout { .. } => return Err(at.refused("it was traced in training")),
        _ => return Err(at.refused("this network's file would have no operator for it")),
    })
}

/// x · scale + shift, channel by channel.
pub fn channels(to: &mut Builder, name: &str, xs: &str, scale: [f64; 3], shift: [f64; 3]) -> String {
    let [scale, shift] = [(scale, "scale"), (shift, "shift")]
        .map(|(values, what)| to.numbers(&format!("{name}.{what}"), &[1, 3, 1, 1], &values.map(|x| x as f32)));
    let scaled = to.op(("Mul", &format!("{name}.scaled")), &[xs, &scale], []);
    to.op(("Add", name), &[&scaled, &shift], [])
}

/// Channels, height and width of a map that a step reads.
fn sizes(at: &Traced) -> Result<[usize; 3], Error> {
    match *at.input_shape() {
        [_, c, h, w] => Ok([c, h, w]),
        _ => Err(at.refused("it reads no map")),
    }
}

/// The same elements behind the batch as `shape`.
fn reshape(to: &mut Builder, name: &str, xs: &str, shape: &[usize]) -> String {
    let target: Vec<i64> = std::iter::once(0).chain(shape.iter().map(|&n| n as i64)).collect();
    let target = to.whole_numbers(&format!("{name}.shape"), &target);
    to.op(("Reshape", name), &[xs, &target], [])
}

fn conv(
    to: &mut Builder,
    at: &Traced,
    xs: &str,
    kernel: (usize, usize),
    Conv2dParams { stride, padding, dilation, groups }: Conv2dParams,
) -> Result<String, Error> {
    let mut inputs = vec![xs.to_string(), to.weight(&at.key("weight"))?];
    if to.has(&at.key("bias")) {
        inputs.push(to.weight(&at.key("bias"))?);
    }
    let set = [
        AttributeProto::ints("kernel_shape", [kernel.0, kernel.1]),
        AttributeProto::ints("strides", [stride.0, stride.1]),
        AttributeProto::ints("pads", [padding.0, padding.1, padding.0, padding.1]),
        AttributeProto::ints("dilations", [dilation.0, dilation.1]),
        AttributeProto::int("group", groups as i64),
    ];
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    Ok(to.op(("Conv", &at.name), &inputs, set))
}

fn linear(to: &mut Builder, at: &Traced, xs: &str) -> Result<String, Error> {
    let (key, has_bias) = (at.key("weight"), to.has(&at.key("bias")));
    if at.input_shape().len() == 2 {
        let mut inputs = vec![xs.to_string(), to.weight(&key)?];
        if has_bias {
            inputs.push(to.weight(&at.key("bias"))?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        return Ok(to.op(("Gemm", &at.name), &inputs, [AttributeProto::int("transB", 1)]));
    }
    let weight = to.weight_as(&key, &format!("{key}.T"), |weight| weight.t()?.contiguous())?;
    if !has_bias {
        return Ok(to.op(("MatMul", &at.name), &[xs, &weight], []));
    }
    let product = to.op(("MatMul", &at.part("product")), &[xs, &weight], []);
    let bias = to.weight(&at.key("bias"))?;
    Ok(to.op(("Add", &at.name), &[&product, &bias], []))
}

/// What it does without, ones and zeros stand for.
fn batch_norm(
    to: &mut Builder,
    at: &Traced,
    xs: &str,
    eps: f64,
    [affine, normalizes]: [bool; 2],
) -> Result<String, Error> {
    let n = at.node.shape[1];
    let mut either = |own: bool, tensor: &str, value: f32| {
        if own { to.weight(&at.key(tensor)) } else { Ok(to.numbers(&at.part(tensor), &[n], &vec![value; n])) }
    };
    let weight = either(affine, "weight", 1.0)?;
    let bias = either(affine, "bias", 0.0)?;
    let mean = either(normalizes, "running_mean", 0.0)?;
    let var = either(normalizes, "running_var", 1.0)?;
    let set = [AttributeProto::float("epsilon", eps)];
    Ok(to.op(("BatchNormalization", &at.name), &[xs, &weight, &bias, &mean, &var], set))
}

fn activation(to: &mut Builder, name: &str, xs: &str, function: Pointwise) -> String {
    let part = |what: &str| format!("{name}.{what}");
    match function {
        Pointwise::Relu => to.op(("Relu", name), &[xs], []),
        Pointwise::Relu6 => {
            let (low, high) = (to.number(&part("low"), 0.0), to.number(&part("high"), 6.0));
            to.op(("Clip", name), &[xs, &low, &high], [])
        }
        Pointwise::LeakyRelu(slope) => to.op(("LeakyRelu", name), &[xs], [AttributeProto::float("alpha", slope)]),
        // x · (1 + erf(x / √2)) · ½
        Pointwise::Gelu => {
            let (root, one, half) =
                (to.number(&part("root"), 2f64.sqrt()), to.number(&part("one"), 1.0), to.number(&part("half"), 0.5));
            let scaled = to.op(("Div", &part("scaled")), &[xs, &root], []);
            let erf = to.op(("Erf", &part("erf")), &[&scaled], []);
            let sum = to.op(("Add", &part("sum")), &[&erf, &one], []);
            let product = to.op(("Mul", &part("product")), &[xs, &sum], []);
            to.op(("Mul", name), &[&product, &half], [])
        }
        // x · (1 + tanh(√(2/π) · x · (1 + 0.044715 x²))) · ½
        Pointwise::GeluTanh => {
            let (root, cubic) = (to.number(&part("root"), (2.0 / std::f64::consts::PI).sqrt()), 0.044_715);
            let cubic = to.number(&part("cubic"), cubic);
            let (one, half) = (to.number(&part("one"), 1.0), to.number(&part("half"), 0.5));
            let square = to.op(("Mul", &part("square")), &[xs, xs], []);
            let bent = to.op(("Mul", &part("bent")), &[&square, &cubic], []);
            let grown = to.op(("Add", &part("grown")), &[&bent, &one], []);
            let inner = to.op(("Mul", &part("inner")), &[xs, &grown], []);
            let scaled = to.op(("Mul", &part("scaled")), &[&inner, &root], []);
            let tanh = to.op(("Tanh", &part("tanh")), &[&scaled], []);
            let sum = to.op(("Add", &part("sum")), &[&tanh, &one], []);
            let product = to.op(("Mul", &part("product")), &[xs, &sum], []);
            to.op(("Mul", name), &[&product, &half], [])
        }
        Pointwise::Silu => {
            let gate = to.op(("Sigmoid", &part("gate")), &[xs], []);
            to.op(("Mul", name), &[xs, &gate], [])
        }
        Pointwise::Sigmoid => to.op(("Sigmoid", name), &[xs], []),
        Pointwise::Tanh => to.op(("Tanh", name), &[xs], []),
        Pointwise::HardSigmoid => {
            let set = [AttributeProto::float("alpha", 1.0 / 6.0), AttributeProto::float("beta", 0.5)];
            to.op(("HardSigmoid", name), &[xs], set)
        }
        Pointwise::HardSwish => to.op(("HardSwish", name), &[xs], []),
    }
}

/// What windows of a pooling reach beyond the map, top, left, bottom, right: as far as the last of them goes.
fn reach(at: &Traced, kernel: usize, stride: usize, padding: usize) -> [usize; 4] {
    let side = |dim: usize| {
        let (from, to) = (at.input_shape()[dim], at.node.shape[dim]);
        padding.max(((to - 1) * stride + kernel).saturating_sub(from + padding))
    };
    [padding, padding, side(2), side(3)]
}

fn window(kernel: usize, stride: usize, pads: [usize; 4]) -> [AttributeProto; 3] {
    [
        AttributeProto::ints("kernel_shape", [kernel; 2]),
        AttributeProto::ints("strides", [stride; 2]),
        AttributeProto::ints("pads", pads),
    ]
}

/// Cells of one size are a pooling; others are products with the matrices that take their means.
fn adaptive(to: &mut Builder, at: &Traced, xs: &str, (rows, columns): (usize, usize)) -> Result<String, Error> {
    let [_, h, w] = sizes(at)?;
    if h.is_multiple_of(rows) && w.is_multiple_of(columns) {
        let cell = [h / rows, w / columns];
        let set = [AttributeProto::ints("kernel_shape", cell), AttributeProto::ints("strides", cell)];
        return Ok(to.op(("AveragePool", &at.name), &[xs], set));
    }
    // Cell i of n over a side of s goes from ⌊i · s / n⌋ to ⌈(i + 1) · s / n⌉.
    let means = |side: usize, cells: usize| {
        let mut matrix = vec![0.0; cells * side];
        for cell in 0..cells {
            let (first, end) = (cell * side / cells, ((cell + 1) * side).div_ceil(cells));
            matrix[cell * side..][first..end].fill(1.0 / (end - first) as f32);
        }
        matrix
    };
    let across = Tensor::from_vec(means(w, columns), (columns, w), &candle_core::Device::Cpu)?.t()?;
    let across = to.numbers(&at.part("across"), &[w, columns], &across.flatten_all()?.to_vec1()?);
    let down = to.numbers(&at.part("down"), &[rows, h], &means(h, rows));
    let narrow = to.op(("MatMul", &at.part("narrow")), &[xs, &across], []);
    Ok(to.op(("MatMul", &at.name), &[&down, &narrow], []))
}

/// Zeros around the second dimension.
fn pad(to: &mut Builder, at: &Traced, xs: &str, below: usize, above: usize) -> String {
    let rank = at.input_shape().len();
    let mut pads = vec![0; 2 * rank];
    (pads[1], pads[rank + 1]) = (below as i64, above as i64);
    let pads = to.whole_numbers(&at.part("pads"), &pads);
    to.op(("Pad", &at.name), &[xs, &pads], [])
}

/// The tokens from the `first` on.
fn tokens_from(to: &mut Builder, at: &Traced, xs: &str, first: usize) -> String {
    let [starts, ends, axes] = [("starts", first as i64), ("ends", i64::MAX), ("axes", 1)]
        .map(|(name, value)| to.whole_numbers(&at.part(name), &[value]));
    to.op(("Slice", &at.part("tokens")), &[xs, &starts, &ends, &axes], [])
}

/// softmax(q · kᵀ / √d) · v, head by head: of one input, queries, keys and values side by side, or of two, the queries and
/// then keys and values. The numbers of tokens stay open.
fn attention(to: &mut Builder, at: &Traced, inputs: &[&str], heads: usize) -> Result<String, Error> {
    let dim = at.node.shape.last().copied().unwrap_or(0);
    let split = |to: &mut Builder, xs: &str, name: &str, parts: usize| {
        let sizes = to.whole_numbers(&at.part(&format!("{name}.parts")), &vec![dim as i64; parts]);
        to.op_of_many(("Split", &at.part(name)), &[xs, &sizes], parts, 2)
    };
    let [queries, keys, values] = match inputs {
        [all] if at.input_shape().last() == Some(&(3 * dim)) => {
            <[String; 3]>::try_from(split(to, all, "split", 3)).map_err(|_| at.refused("three parts"))?
        }
        [queries, others] => match <[String; 2]>::try_from(split(to, others, "split", 2)) {
            Ok([keys, values]) => [queries.to_string(), keys, values],
            Err(_) => return Err(at.refused("two parts")),
        },
        _ => return Err(at.refused("it keeps keys and values from before: trace it without a cache")),
    };
    // (b, n, dim) -> (b, heads, n, d), keys as (b, heads, d, n)
    let mut by_head = |part: &str, name: &str, perm: [usize; 4]| {
        let split = of_tokens(to, &at.part(&format!("{name}.heads")), part, &[heads, dim / heads]);
        to.op(("Transpose", &at.part(name)), &[&split], [AttributeProto::ints("perm", perm)])
    };
    let q = by_head(&queries, "q", [0, 2, 1, 3]);
    let k = by_head(&keys, "k", [0, 2, 3, 1]);
    let v = by_head(&values, "v", [0, 2, 1, 3]);
    let scale = to.number(&at.part("scale"), 1.0 / ((dim / heads) as f64).sqrt());
    let q = to.op(("Mul", &at.part("q.scaled")), &[&q, &scale], []);
    let scores = to.op(("MatMul", &at.part("scores")), &[&q, &k], []);
    let weights = to.op(("Softmax", &at.part("weights")), &[&scores], [AttributeProto::int("axis", -1)]);
    let mixed = to.op(("MatMul", &at.part("mixed")), &[&weights, &v], []);
    let tokens = to.op(("Transpose", &at.part("tokens")), &[&mixed], [AttributeProto::ints("perm", [0, 2, 1, 3])]);
    Ok(of_tokens(to, &at.name, &tokens, &[dim]))
}

/// The same elements of each token as `shape`, whatever the number of images and of tokens.
fn of_tokens(to: &mut Builder, name: &str, xs: &str, shape: &[usize]) -> String {
    let target: Vec<i64> = [0, 0].into_iter().chain(shape.iter().map(|&n| n as i64)).collect();
    let target = to.whole_numbers(&format!("{name}.shape"), &target);
    to.op(("Reshape", name), &[xs, &target], [])
}
