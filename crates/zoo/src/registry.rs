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
    find_for(name, None)
}

/// The model called `name`, wanted for images of `side` pixels where that is known: of names that are equally close to
/// a mistyped one, those of networks for such images are suggested first.
///
/// # Errors
/// As [`find`].
pub fn find_for(name: &str, side: Option<usize>) -> Result<&'static ModelInfo> {
    if let Some(info) = all().find(|info| info.name == name) {
        return Ok(info);
    }
    if sequence_models().any(|info| info.name == name) {
        bail!(
            "`{name}` is a sequence model: it maps two sequences to one and takes no images; build it with `(find_sequence(\"{name}\")?.builder)(store.root())`"
        )
    }
    match close_to(name, side).as_slice() {
        [] => {
            bail!("there is no model `{name}`; the names are {}", all().map(|i| i.name).collect::<Vec<_>>().join(", "))
        }
        close => bail!("there is no model `{name}`; did you mean {}?", close.join(", ")),
    }
}

/// The three names closest to `name`, the best first; none where none is close. `resnet20` is as close to
/// `cifar_resnet20` as to itself, for people leave the first word out.
fn close_to(name: &str, side: Option<usize>) -> Vec<&'static str> {
    /// Letters by which a mistyped name may differ.
    const FAR: usize = 4;
    /// No name is longer.
    const LONGEST: usize = 100;
    if name.len() > LONGEST {
        return Vec::new();
    }
    let distance = |info: &ModelInfo| {
        let short = info.name.strip_prefix("cifar_").unwrap_or(info.name);
        strsim::levenshtein(name, info.name).min(strsim::levenshtein(name, short))
    };
    let mut close: Vec<_> = all()
        .map(|info| (distance(info), side.is_some_and(|side| info.preprocess.size != side), info.name))
        .filter(|(distance, ..)| *distance <= FAR)
        .collect();
    close.sort();
    close.into_iter().take(3).map(|(.., name)| name).collect()
}

/// The models that any of `patterns` names, each once, in the order of the patterns; `*` and `?` stand for any text and
/// any letter.
///
/// # Errors
/// A pattern that is malformed or names no model.
pub fn select<S: AsRef<str>>(patterns: &[S]) -> Result<Vec<&'static ModelInfo>> {
    select_for(patterns, None)
}

/// As [`select`], for images of `side` pixels where that is known: see [`find_for`].
///
/// # Errors
/// As [`select`].
pub fn select_for<S: AsRef<str>>(patterns: &[S], side: Option<usize>) -> Result<Vec<&'static ModelInfo>> {
    let mut chosen: Vec<&'static ModelInfo> = Vec::new();
    for pattern in patterns.iter().map(AsRef::as_ref) {
        let found: Vec<_> = if pattern.contains(['*', '?', '[']) {
            let glob = Pattern::new(pattern)
                .map_err(|e| candle_core::Error::Msg(format!("`{pattern}` is no valid pattern: {e}")))?;
            all().filter(|info| glob.matches(info.name)).collect()
        } else {
            vec![find_for(pattern, side)?]
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
        // The first word is left out, and one letter is wrong: no other name is as near.
        let suggested = |name: &str, side| find_for(name, side).unwrap_err().to_string();
        assert!(
            suggested("resnet21", None).contains("did you mean cifar_resnet20,"),
            "{}",
            suggested("resnet21", None)
        );
        // All are one letter away; CIFAR-10's images go into some of them.
        let (on_any, on_cifar) = (suggested("resnet10", None), suggested("resnet10", Some(32)));
        assert!(
            on_any.contains("resnet101") && on_cifar.contains("did you mean cifar_resnet101, cifar_resnet110, "),
            "{on_cifar}"
        );
        let error = find(&"resnet".repeat(20_000)).unwrap_err().to_string();
        assert!(error.contains("the names are alexnet"), "{}", error.len());
        assert!(find("zzzzzzzzzzzzzzzzzz").unwrap_err().to_string().contains("template_cnn"));
    }
}
