//! Learning rates that fall from the classifier down to the image.

use super::Group;
use candle_core::Var;

/// How learning rates fall from layer to layer, for [`layer_decay_groups`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerDecay {
    /// A layer's learning rate over that of the layer above.
    pub decay: f64,
    /// What the classifier's learning rate is multiplied with: above 1 for a new one on a pretrained trunk.
    pub head_lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Weight decay on biases and the scales of normalisations too.
    pub decay_all: bool,
}

/// Groups of `parameters`, in the order of construction, with learning rates that fall from the classifier down, the
/// lowest layer first: timm's `param_groups_layer_decay` (Bao et al. 2021, arXiv 2106.08254, after Clark et al. 2020).
///
/// With n the classifier's layer, layer i is trained at decayⁿ⁻ⁱ times the learning rate, and the classifier at `head_lr`
/// times it. A parameter's layer follows from its key:
/// - 0 is what comes before the first block: the stem, class tokens, position embeddings;
/// - every block is one layer, in the order in which the network is built. A block is what stands below a number
///   (`layer1.0`, `features.3`, `blocks.4`; of timm's stages both, `blocks.4.1`), below a name with a number behind an
///   underscore (`encoder_layer_0`), or below a dense layer or an inception (`denselayer2`, `inception3a`);
/// - what comes between two blocks, or behind the last one without being the classifier, belongs to the block before it;
/// - `classifier` is the last layer: what has this key, or stands below it.
///
/// A network without a stem of its own, `features.0` to `features.n`, starts with its first block at 0.
///
/// ```
/// use candle_core::{DType, Device};
/// use zoo_core::{Init, VarStore};
/// use zoo_train::optim::{LayerDecay, layer_decay_groups};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// for key in ["conv1", "layer1.0.conv1", "layer1.1.conv1", "fc"] {
///     store.root().pp(key).param((2, 2), "weight", Init::ONES)?;
/// }
/// let decay = LayerDecay { decay: 0.5, head_lr: 1.0, weight_decay: 0.05, decay_all: false };
/// let groups = layer_decay_groups(store.parameters(), "fc", decay);
/// let factors: Vec<f64> = groups.iter().map(|group| group.factors().0).collect();
/// assert_eq!(factors, [0.125, 0.25, 0.5, 1.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn layer_decay_groups(parameters: Vec<(String, Var)>, classifier: &str, settings: LayerDecay) -> Vec<Group> {
    let keys: Vec<&str> = parameters.iter().map(|(key, _)| key.as_str()).collect();
    let (layers, head) = layers(&keys, classifier);
    // Without weight decay, with it: for each layer.
    let mut groups = vec![[Vec::new(), Vec::new()]; head + 1];
    for (parameter, layer) in parameters.into_iter().zip(layers) {
        let decays = settings.decay_all || parameter.1.rank() > 1;
        groups[layer][usize::from(decays)].push(parameter);
    }
    let mut all = Vec::new();
    for (layer, own) in groups.into_iter().enumerate() {
        let below = i32::try_from(head - layer).unwrap_or(i32::MAX);
        let factor = if layer == head { settings.head_lr } else { settings.decay.powi(below) };
        for (parameters, weight_decay) in own.into_iter().zip([0.0, settings.weight_decay]) {
            if !parameters.is_empty() {
                all.push(Group::new(parameters, weight_decay).lr_factor(factor));
            }
        }
    }
    all
}

/// The layer of every key, and the classifier's.
fn layers(keys: &[&str], classifier: &str) -> (Vec<usize>, usize) {
    let (mut blocks, mut has_stem, mut last) = (Vec::new(), false, 0);
    let mut layers = Vec::with_capacity(keys.len());
    for key in keys {
        if is_below(key, classifier) {
            layers.push(usize::MAX);
            continue;
        }
        match block(key) {
            None => has_stem |= blocks.is_empty(),
            Some(block) => {
                let known = blocks.iter().position(|known| *known == block);
                last = known.unwrap_or_else(|| {
                    blocks.push(block);
                    blocks.len() - 1
                }) + usize::from(has_stem);
            }
        }
        layers.push(last);
    }
    let head = layers.iter().filter(|layer| **layer != usize::MAX).max().map_or(0, |last| last + 1);
    layers.iter_mut().for_each(|layer| *layer = (*layer).min(head));
    (layers, head)
}

fn is_below(key: &str, module: &str) -> bool {
    key.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The block that a key stands below: the key up to its first number.
fn block(key: &str) -> Option<&str> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let numbered = |part: &str| {
        let behind = |name: &str| part.strip_prefix(name).is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()));
        is_number(part)
            || part.rsplit_once('_').is_some_and(|(_, number)| is_number(number))
            || behind("denselayer")
            || behind("inception")
    };
    let mut end = 0;
    let mut parts = key.split('.').peekable();
    let mut before = "";
    while let Some(part) = parts.next() {
        end += part.len();
        if numbered(part) {
            if before == "blocks" && is_number(part) {
                // timm's stages: blocks of blocks.
                end += parts.peek().filter(|next| is_number(next)).map_or(0, |next| next.len() + 1);
            }
            // The last part is the tensor's own name.
            return (end < key.len()).then(|| &key[..end]);
        }
        before = part;
        end += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_in_the_keys_of_all_families() {
        for (key, expected) in [
            ("layer1.0.conv1.weight", Some("layer1.0")),
            ("features.3.conv.0.0.weight", Some("features.3")),
            ("blocks.4.1.conv_dw.weight", Some("blocks.4.1")),
            ("blocks.11.norm1.bias", Some("blocks.11")),
            ("encoder.layers.encoder_layer_0.ln_1.weight", Some("encoder.layers.encoder_layer_0")),
            ("features.denseblock1.denselayer12.norm1.weight", Some("features.denseblock1.denselayer12")),
            ("inception3a.branch2.0.conv.weight", Some("inception3a")),
            ("features.transition1.conv.weight", None),
            ("conv1.weight", None),
            ("cls_token", None),
            ("norm.weight", None),
        ] {
            assert_eq!(block(key), expected, "{key}");
        }
    }

    #[test]
    fn what_stands_between_blocks_belongs_to_the_one_before() {
        let keys = [
            "features.conv0.weight",
            "features.denseblock1.denselayer1.conv1.weight",
            "features.transition1.conv.weight",
            "features.denseblock2.denselayer1.conv1.weight",
            "features.norm5.weight",
            "classifier.weight",
        ];
        assert_eq!(layers(&keys, "classifier"), (vec![0, 1, 1, 2, 2, 3], 3));
        let sequence = ["features.0.weight", "features.0.bias", "features.3.weight", "classifier.6.weight"];
        assert_eq!(layers(&sequence, "classifier.6"), (vec![0, 0, 1, 2], 2));
        assert_eq!(layers(&["fc.weight"], "fc"), (vec![0], 0));
    }
}
