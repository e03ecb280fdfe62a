//! `cargo xtask tidy`: the rules of ARCHITECTURE.md that the compiler does not enforce.

mod lengths;
mod rooms;

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// The crates that hold models; none may depend on another.
const FAMILIES: [&str; 5] = ["zoo-cnn", "zoo-resnet", "zoo-mobile", "zoo-transformer", "zoo-mlp"];
/// Features with device or library code behind them, which stands in zoo-core alone.
const DEVICE_FEATURES: [&str; 5] = ["cuda", "cudnn", "metal", "accelerate", "mkl"];

/// Checks this repository.
pub fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
    let complaints = check(root)?;
    if complaints.is_empty() {
        println!(
            "tidy: every model file is registered, no family depends on another, device code stands in zoo-core, \
             whose rooms know only what is below them, and no file is too long"
        );
        return Ok(());
    }
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    bail!("tidy: {} complaint{}", complaints.len(), if complaints.len() == 1 { "" } else { "s" })
}

/// Everything in the tree at `root` that breaks a rule, one line each.
fn check(root: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for family in FAMILIES {
        let folder = root.join("crates").join(family);
        complaints.extend(unregistered(root, &folder)?);
        complaints.extend(family_dependencies(root, &folder, family)?);
    }
    let files = rust_files(root)?;
    for file in &files {
        if !file.starts_with(root.join("crates/zoo-core")) {
            complaints.extend(device_code(root, file)?);
        }
    }
    complaints.extend(rooms::upward_imports(root, &root.join("crates/zoo-core/src"), &files)?);
    complaints.extend(lengths::too_long(root, &files)?);
    Ok(complaints)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// Files of a family that its `lib.rs` does not declare, or whose models it does not list.
fn unregistered(root: &Path, folder: &Path) -> Result<Vec<String>> {
    let source = folder.join("src");
    let library = source.join("lib.rs");
    let text = code(&read(&library)?);
    let mut complaints = Vec::new();
    for entry in fs::read_dir(&source).with_context(|| format!("cannot read {}", source.display()))? {
        let path = entry?.path();
        let Some(module) = path.file_stem().and_then(|stem| stem.to_str()).filter(|&stem| stem != "lib") else {
            continue;
        };
        for needed in [format!("mod {module};"), format!("{module}::MODELS")] {
            if !text.contains(&needed) {
                complaints.push(format!(
                    "{}: this model file is not registered: {} lacks `{needed}`",
                    shown(root, &path),
                    shown(root, &library)
                ));
            }
        }
    }
    Ok(complaints)
}

/// Other families among the dependencies of one, of any kind.
fn family_dependencies(root: &Path, folder: &Path, family: &str) -> Result<Vec<String>> {
    let path = folder.join("Cargo.toml");
    let manifest: toml::Table =
        read(&path)?.parse().with_context(|| format!("{} is no valid manifest", path.display()))?;
    let mut complaints = Vec::new();
    let mut sections = vec![&manifest];
    // Dependencies for one platform stand one level down: [target.'cfg(…)'.dependencies].
    if let Some(targets) = manifest.get("target").and_then(|t| t.as_table()) {
        sections.extend(targets.values().filter_map(|t| t.as_table()));
    }
    for section in sections {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let names = section.get(kind).and_then(|d| d.as_table()).into_iter().flatten();
            for (name, spec) in names {
                let package = spec.get("package").and_then(|p| p.as_str()).unwrap_or(name);
                if package != family && FAMILIES.contains(&package) {
                    complaints.push(format!(
                        "{}: {family} depends on {package} ({kind}); what two families share belongs in zoo-core",
                        shown(root, &path)
                    ));
                }
            }
        }
    }
    Ok(complaints)
}

/// Lines that ask for a device feature.
fn device_code(root: &Path, file: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    let text = read(file)?;
    for (number, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        if !(line.contains("cfg") || line.contains("any(") || line.contains("all(") || line.contains("not(")) {
            continue;
        }
        let compact: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        for feature in DEVICE_FEATURES {
            if compact.contains(&format!("feature=\"{feature}\"")) {
                complaints.push(format!(
                    "{}:{}: code for the feature `{feature}` belongs in zoo-core",
                    shown(root, file),
                    number + 1
                ));
            }
        }
    }
    Ok(complaints)
}

/// The text without line comments, so that a mention in prose registers nothing.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every Rust file of the tree but what was built.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = ["crates", "xtask", "tests"].map(|name| root.join(name)).to_vec();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small tree that keeps the rules.
    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in ["xtask", "tests", "crates/zoo-core/src"] {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        for family in FAMILIES {
            let folder = root.path().join("crates").join(family);
            fs::create_dir_all(folder.join("src")).unwrap();
            fs::write(folder.join("Cargo.toml"), "[dependencies]\nzoo-core.workspace = true\n").unwrap();
            fs::write(folder.join("src/lib.rs"), "pub mod net;\nconst M: &[&[M]] = &[net::MODELS];\n").unwrap();
            fs::write(folder.join("src/net.rs"), "").unwrap();
        }
        root
    }

    #[test]
    fn a_tree_that_keeps_the_rules_passes() {
        assert_eq!(check(tree().path()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_unregistered_model_file_is_named() {
        let root = tree();
        fs::write(root.path().join("crates/zoo-mlp/src/lib.rs"), "pub mod net;\n// net::MODELS\n").unwrap();
        fs::write(root.path().join("crates/zoo-cnn/src/extra.rs"), "").unwrap();
        let complaints = check(root.path()).unwrap();
        assert_eq!(complaints.len(), 3, "{complaints:?}");
        assert!(complaints.iter().any(|c| c.starts_with("crates/zoo-cnn/src/extra.rs") && c.contains("mod extra;")));
        assert!(complaints.iter().any(|c| c.starts_with("crates/zoo-mlp/src/net.rs") && c.contains("net::MODELS")));
    }

    #[test]
    fn a_family_that_depends_on_a_family_is_named() {
        let root = tree();
        let manifest = "[target.'cfg(unix)'.dev-dependencies]\nother = { package = \"zoo-cnn\", version = \"0.1\" }\n";
        fs::write(root.path().join("crates/zoo-resnet/Cargo.toml"), manifest).unwrap();
        let complaints = check(root.path()).unwrap();
        assert!(complaints.len() == 1 && complaints[0].contains("zoo-resnet depends on zoo-cnn"), "{complaints:?}");
    }

    #[test]
    fn device_code_outside_zoo_core_is_named() {
        let root = tree();
        let device = "#[cfg(feature = \"cuda\")]\nfn f() {}\n";
        fs::write(root.path().join("crates/zoo-core/src/lib.rs"), device).unwrap();
        assert!(check(root.path()).unwrap().is_empty());
        fs::write(root.path().join("xtask/x.rs"), device).unwrap();
        let complaints = check(root.path()).unwrap();
        assert!(complaints.len() == 1 && complaints[0].starts_with("xtask/x.rs:1"), "{complaints:?}");
    }

    #[test]
    fn this_repository_is_tidy() {
        run().unwrap();
    }
}
