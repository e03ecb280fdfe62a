//! Names of classes, read from the kinds of files that people have.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use zoo_core::weights::open_regular;

/// The largest file that is taken for a list of names, in bytes.
const MOST_BYTES: u64 = 64 << 20;

/// Reads names of classes, in the order of a network's outputs: one a line, or JSON, which is a list, a map `{"0":
/// "tench"}` or `{"0": ["n01440764", "tench"]}`, or has one under `id2label`.
///
/// # Errors
/// A file that cannot be read or is neither; a number that is missing in a map. Each names the file.
pub fn read(path: &Path) -> Result<Vec<String>> {
    parse(&text(path)?).with_context(|| path.display().to_string())
}

/// The text of a file of names.
///
/// # Errors
/// A file that cannot be read, is too large for one, or is no text. Each names the file.
pub fn text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let read = open_regular(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    let named = || path.display().to_string();
    ensure!(bytes.len() as u64 <= MOST_BYTES, "{}: over {MOST_BYTES} bytes, which is no list of names", named());
    String::from_utf8(bytes).ok().with_context(|| format!("{}: names that are not UTF-8", named()))
}

fn parse(text: &str) -> Result<Vec<String>> {
    let text = text.trim_start_matches('\u{FEFF}');
    if text.trim_start().starts_with(['[', '{']) {
        return from_json(serde_json::from_str(text).context("it begins as JSON and is none")?);
    }
    // A blank line between names is a class without one; behind the last there is no class.
    Ok(text.trim_end().lines().map(|line| line.trim().to_owned()).collect())
}

fn from_json(value: Value) -> Result<Vec<String>> {
    match value {
        Value::Array(names) => names.into_iter().enumerate().map(|(class, name)| as_name(class, name)).collect(),
        Value::Object(mut map) => {
            if let Some(names) = map.remove("id2label") {
                return from_json(names);
            }
            let mut names = BTreeMap::new();
            for (key, name) in map {
                let class = key.trim().parse().ok().with_context(|| {
                    let key: String = key.chars().take(40).collect();
                    format!("`{key}` is no class's number: expected {{\"0\": \"name\", …}}")
                })?;
                ensure!(names.insert(class, as_name(class, name)?).is_none(), "class {class} has two names");
            }
            if let Some((expected, _)) = names.keys().enumerate().find(|(expected, class)| expected != *class) {
                bail!("class {expected} has no name, but {} have one", names.len());
            }
            Ok(names.into_values().collect())
        }
        _ => bail!("expected a list of names, or a map of numbers to names"),
    }
}

/// A name, or the last of several: ImageNet's maps have the key of the word before it.
fn as_name(class: usize, value: Value) -> Result<String> {
    match value {
        Value::String(name) => Ok(name),
        Value::Array(mut names) if !names.is_empty() => as_name(class, names.pop().unwrap_or_default()),
        _ => bail!("class {class}: expected a name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_that_people_have_names_in() {
        let expected = ["tench", "goldfish", "great white shark"];
        for text in [
            "tench\ngoldfish\ngreat white shark",
            "\u{FEFF}tench\r\ngoldfish\r\ngreat white shark\r\n\r\n \n",
            r#"["tench", "goldfish", "great white shark"]"#,
            "\u{FEFF}\n{\"0\": \"tench\", \"1\": \"goldfish\", \"2\": \"great white shark\"}\n",
            r#"{"2": ["n01484850", "great white shark"], "0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}"#,
            r#"{"model_type": "vit", "id2label": {"0": "tench", "1": "goldfish", "2": "great white shark"}}"#,
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        assert_eq!(parse("a\n\nb\n").unwrap(), ["a", "", "b"]);
        // Not in the order of their letters.
        let twelve = (0..12).map(|class| format!("\"{class}\": \"c{class}\"")).collect::<Vec<_>>().join(",");
        assert_eq!(parse(&format!("{{{twelve}}}")).unwrap()[10], "c10");
    }

    #[test]
    fn what_is_no_list_of_names_is_said() {
        let message = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(message("[\"a\"").starts_with("it begins as JSON and is none: "), "{}", message("[\"a\""));
        assert_eq!(message(r#"{"0": "a", "2": "b"}"#), "class 1 has no name, but 2 have one");
        assert_eq!(message(r#"{"cat": 0}"#), "`cat` is no class's number: expected {\"0\": \"name\", …}");
        assert_eq!(message(r#"[1, 2]"#), "class 0: expected a name");
        assert_eq!(message(r#"{"0": "a", "00": "b"}"#), "class 0 has two names");
    }
}
