//! What other libraries call a ViT's tensors, and how their files want images.

use candle_core::Result;
use zoo_core::Preprocess;
use zoo_core::model::Interpolation;
use zoo_core::weights::{Layout, Rename, Source, Weights};

const fn torchvision(from: &'static str, to: &'static str) -> Rename {
    Rename { from, to, reason: "torchvision's name, in vit_b_16 and its kin" }
}

/// The names in torchvision's files.
const RENAMES: &[Rename] = &[
    torchvision("class_token", "cls_token"),
    torchvision("encoder.pos_embedding", "pos_embed"),
    torchvision("conv_proj.*", "patch_embed.proj.*"),
    torchvision("encoder.layers.encoder_layer_*.ln_1.*", "blocks.*.norm1.*"),
    torchvision("encoder.layers.encoder_layer_*.ln_2.*", "blocks.*.norm2.*"),
    // Rows in the order q, k, v, as here.
    torchvision("encoder.layers.encoder_layer_*.self_attention.in_proj_weight", "blocks.*.attn.qkv.weight"),
    torchvision("encoder.layers.encoder_layer_*.self_attention.in_proj_bias", "blocks.*.attn.qkv.bias"),
    torchvision("encoder.layers.encoder_layer_*.self_attention.out_proj.*", "blocks.*.attn.proj.*"),
    torchvision("encoder.layers.encoder_layer_*.mlp.0.*", "blocks.*.mlp.fc1.*"),
    torchvision("encoder.layers.encoder_layer_*.mlp.3.*", "blocks.*.mlp.fc2.*"),
    Rename {
        from: "encoder.layers.encoder_layer_*.mlp.linear_*.*",
        to: "blocks.*.mlp.fc*.*",
        reason: "torchvision's name before 0.13, which its published files still have",
    },
    torchvision("encoder.ln.*", "norm.*"),
    torchvision("heads.head.*", "head.*"),
];

/// torchvision's files.
pub const TORCHVISION: Layout = Layout {
    name: "torchvision",
    sign: "conv_proj.weight",
    renames: RENAMES,
    key_map: None,
    preprocess: Some(Preprocess::IMAGENET),
};

const fn pooler(from: &'static str) -> Rename {
    Rename { from, to: "", reason: "a layer that transformers' ViTModel adds, and the classifier does not read" }
}

/// Hugging Face transformers' files. Its configurations say 1e-12 for the ε that is 1e-6 here, in timm and in the code
/// that the published weights were trained with; where tokens differ, logits follow in the third decimal at most.
pub const TRANSFORMERS: Layout = Layout {
    name: "transformers",
    sign: "embeddings.patch_embeddings.projection.weight",
    renames: &[pooler("pooler.dense.*"), pooler("vit.pooler.dense.*")],
    key_map: Some(from_transformers),
    preprocess: Some(Preprocess { squash: true, interpolation: Interpolation::Bilinear, ..Preprocess::inception(1.0) }),
};

/// The translation of `ViTForImageClassification` in Hugging Face transformers, which keeps queries, keys and values
/// apart: in the names of its files and in those that its version 5 has in memory.
///
/// # Errors
/// None of its own: keys that are not of this layout are left for the loader to complain of.
pub fn from_transformers(weights: &Weights) -> Result<Vec<(String, Source)>> {
    // Theirs, theirs in memory, ours: inside a block.
    const BLOCK: [(&str, &str, &str); 5] = [
        ("attention.output.dense.", "attention.o_proj.", "attn.proj."),
        ("intermediate.dense.", "mlp.fc1.", "mlp.fc1."),
        ("output.dense.", "mlp.fc2.", "mlp.fc2."),
        ("layernorm_before.", "layernorm_before.", "norm1."),
        ("layernorm_after.", "layernorm_after.", "norm2."),
    ];
    const QKV: [[&str; 3]; 2] = [
        ["attention.attention.query.", "attention.attention.key.", "attention.attention.value."],
        ["attention.q_proj.", "attention.k_proj.", "attention.v_proj."],
    ];
    let translated = |key: &str| -> Option<(String, Source)> {
        let rest = key.strip_prefix("vit.").unwrap_or(key);
        let itself = |ours: String| Some((ours, Source::Key(key.to_string())));
        let outside = [
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
            ("layernorm.", "norm."),
            ("classifier.", "head."),
        ];
        for (theirs, ours) in outside {
            if let Some(tensor) = rest.strip_prefix(theirs) {
                return itself(format!("{ours}{tensor}"));
            }
        }
        let (block, rest) = rest.strip_prefix("encoder.layer.").or(rest.strip_prefix("layers."))?.split_once('.')?;
        for [query, others @ ..] in QKV {
            if let Some(tensor) = rest.strip_prefix(query) {
                let before = key.strip_suffix(rest)?;
                let other = |name: &str| format!("{before}{name}{tensor}");
                let keys = [key.to_string()].into_iter().chain(others.map(other)).collect();
                return Some((format!("blocks.{block}.attn.qkv.{tensor}"), Source::Concat { keys, dim: 0 }));
            }
        }
        for (file, memory, ours) in BLOCK {
            if let Some(tensor) = rest.strip_prefix(file).or(rest.strip_prefix(memory)) {
                return itself(format!("blocks.{block}.{ours}{tensor}"));
            }
        }
        None
    };
    Ok(weights.keys().filter_map(translated).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torchvisions_keys_become_timms() {
        let renamed = |key: &str| RENAMES.iter().find_map(|rename| rename.apply(key)).unwrap();
        for (theirs, ours) in [
            ("encoder.layers.encoder_layer_11.self_attention.in_proj_weight", "blocks.11.attn.qkv.weight"),
            ("encoder.layers.encoder_layer_3.mlp.linear_1.bias", "blocks.3.mlp.fc1.bias"),
            ("encoder.layers.encoder_layer_3.mlp.3.weight", "blocks.3.mlp.fc2.weight"),
            ("heads.head.weight", "head.weight"),
        ] {
            assert_eq!(renamed(theirs), ours);
        }
    }
}
