//! The registry: all models by name. It is plain data; tests, benchmark, reports and the command line follow from it.

use candle_core::{Result, bail};
use glob::Pattern;
use zoo_core::{Model, ModelInfo, ModelOptions, SequenceInfo, VarStore};

const FAMILIES: &[&[&[ModelInfo]]] =
    &[zoo_cnn::MODELS, zoo_resnet::MODELS, zoo_mobile::MODELS, zoo_transformer::MODELS, zoo_mlp::MODELS];

/// Every registered model, family by family.
pub fn all() -> impl Iterator<Item = &'static ModelInfo> {
    files().flatten()
}

/// The variants that share one file's code, file by file.
pub fn files() -> impl Iterator<Item = &'static [ModelInfo]> {
    FAMILIES.iter().copied().flatten().copied()
}

/// Every registered model that maps two sequences to one. They take no images, so they stand apart from [`all`].
pub fn sequence_models() -> impl Iterator<Item = &'static SequenceInfo> {
    zoo_transformer::SEQUENCE_MODELS.iter()
}

/// The sequence model called `name`.
///
/// ```
/// use zoo::VarStore;
/// let info = zoo::find_sequence("transformer_base")?;
/// let store = VarStore::shapes_only();
/// (info.builder)(store.root())?;
/// assert_eq!(store.parameter_count(), info.parameters);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// No such name; the error lists the names that there are.
pub fn find_sequence(name: &str) -> Result<&'static SequenceInfo> {
    if let Some(info) = sequence_models().find(|info| info.name == name) {
        return Ok(info);
    }
    if all().any(|info| info.name == name) {
        bail!("`{name}` takes images, not sequences: build it with `create(\"{name}\", …)`")
    }
    let names: Vec<&str> = sequence_models().map(|info| info.name).collect();
    bail!("there is no sequence model `{name}`; the names are {}", names.join(", "))
}

/// The model called `name`.
///
/// # Errors
/// No such name; the error lists the names that are close, or says how a sequence model of this name is built.
pub fn find(name: &str) -> Result<&'static ModelInfo> {
    if let Some(info) = all().find(|info| info.name == name) {
        return Ok(info);
    }
    if sequence_models().any(|info| info.name == name) {
        bail!(
            "`{name}` is a sequence model: it maps two sequences to one and takes no images; build it with `(find_sequence(\"{name}\")?.builder)(store.root())`"
        )
    }
    let mut close: Vec<(usize, &str)> = all().map(|info| (strsim::levenshtein(name, info.name), info.name)).collect();
    close.sort();
    let close: Vec<&str> = close.iter().filter(|(d, _)| *d <= 4).take(3).map(|&(_, name)| name).collect();
    match close.as_slice() {
        [] => {
            bail!("there is no model `{name}`; the names are {}", all().map(|i| i.name).collect::<Vec<_>>().join(", "))
        }
        close => bail!("there is no model `{name}`; did you mean {}?", close.join(", ")),
    }
}

/// The models that any of `patterns` names, each once, in the order of the patterns; `*` and `?` stand for any text and any
/// letter.
///
/// # Errors
/// A pattern that is malformed or names no model.
pub fn select<S: AsRef<str>>(patterns: &[S]) -> Result<Vec<&'static ModelInfo>> {
    let mut chosen: Vec<&'static ModelInfo> = Vec::new();
    for pattern in patterns.iter().map(AsRef::as_ref) {
        let found: Vec<_> = if pattern.contains(['*', '?', '[']) {
            let glob = Pattern::new(pattern)
                .map_err(|e| candle_core::Error::Msg(format!("`{pattern}` is no valid pattern: {e}")))?;
            all().filter(|info| glob.matches(info.name)).collect()
        } else {
            vec![find(pattern)?]
        };
        if found.is_empty() {
            bail!("the pattern `{pattern}` matches no model")
        }
        chosen.extend(found.into_iter().filter(|info| !chosen.iter().any(|c| c.name == info.name)).collect::<Vec<_>>());
    }
    Ok(chosen)
}

/// Builds the model called `name` in `store`.
///
/// # Errors
/// No such name, or what the model refuses.
pub fn create(name: &str, options: &ModelOptions, store: &VarStore) -> Result<Box<dyn Model>> {
    find(name)?.build(options, store.root())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names = all().map(|info| info.name).chain(sequence_models().map(|info| info.name));
        let mut names: Vec<_> = names.collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn globs_and_names_select_each_model_once() {
        let names = |patterns: &[&str]| select(patterns).unwrap().iter().map(|i| i.name).collect::<Vec<_>>();
        assert_eq!(names(&["mlp", "cifar_plain?0", "cifar_plain20"]), ["mlp", "cifar_plain20"]);
        assert!(select(&["nothing*"]).is_err());
        assert_eq!(select::<&str>(&[]).unwrap().len(), 0);
    }

    #[test]
    fn images_and_sequences_are_told_apart() {
        assert_eq!(find_sequence("transformer_base").unwrap().d_model, 512);
        let error = find("transformer_base").unwrap_err().to_string();
        assert!(error.contains("find_sequence(\"transformer_base\")"), "{error}");
        let error = find_sequence("vit_tiny_patch16_224").unwrap_err().to_string();
        assert!(error.contains("create(\"vit_tiny_patch16_224\""), "{error}");
        assert!(find_sequence("lstm").unwrap_err().to_string().contains("transformer_base"));
    }

    #[test]
    fn a_mistyped_name_gets_a_suggestion() {
        let error = find("cifar_resnet2O").unwrap_err().to_string();
        assert!(error.contains("did you mean cifar_resnet20"), "{error}");
        assert!(find("zzzzzzzzzzzzzzzzzz").unwrap_err().to_string().contains("template_cnn"));
    }
}
