//! The rooms of zoo-core: an import runs downwards, never up.
//!
//! Sources are read as tokens, so that a path counts wherever it stands: in a `use`, in a body, in a macro's call.
//! Comments and strings hold none, and what `#[cfg(test)]` marks may look anywhere.

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rooms, bottom to top: name and modules. A module's own modules are in its room unless another room lists them.
const ROOMS: &[(&str, &[&str])] = &[
    ("numbers and machine", &["rng", "init", "memory", "preprocess", "testing"]),
    ("kernels", &["kernels"]),
    ("storage", &["storage"]),
    ("what a pass writes down", &["trace::graph", "trace::step", "tape::recording"]),
    ("pass", &["pass"]),
    ("trace", &["trace"]),
    ("tape and op", &["tape", "op", "threads"]),
    ("operations", &["ops", "precision"]),
    ("variables", &["vars"]),
    ("layers", &["layers", "loss"]),
    ("fusion", &["fuse"]),
    ("containers", &["containers"]),
    ("weights", &["weights"]),
    ("model", &["model"]),
    ("inspection", &["inspect"]),
];

/// A source file: as it is shown, its module as a path from the crate's root, and its text.
struct Source {
    shown: String,
    module: Vec<String>,
    text: String,
}

/// A path from the crate's root that a file names, and the line.
struct Named {
    path: Vec<String>,
    line: usize,
}

/// Every import below `folder` that breaks the order, one line each; files are shown from `root` on.
pub fn upward_imports(root: &Path, folder: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let source = |file: &PathBuf| -> Result<Source> {
        let module = module_of(file.strip_prefix(folder)?);
        Ok(Source { shown: super::shown(root, file), module, text: super::read(file)? })
    };
    let sources = files.iter().filter(|file| file.starts_with(folder)).map(source).collect::<Result<Vec<_>>>()?;
    check(&sources)
}

fn check(sources: &[Source]) -> Result<Vec<String>> {
    let tokens = |source: &Source| -> Result<Vec<TokenTree>> {
        let stream: TokenStream = source.text.parse().map_err(|error| anyhow!("{}: {error}", source.shown))?;
        Ok(stream.into_iter().collect())
    };
    let tokens = sources.iter().map(tokens).collect::<Result<Vec<_>>>()?;
    let files: BTreeSet<&[String]> = sources.iter().map(|source| source.module.as_slice()).collect();
    // Names that a file lends on, by its `use`s: what `crate::Conv2d` or `super::Window` are in truth.
    let mut lent: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
    for (source, tokens) in sources.iter().zip(&tokens) {
        for Named { path, .. } in uses(tokens, &source.module, &files) {
            if let Some(name) = path.last() {
                lent.insert([source.module.as_slice(), std::slice::from_ref(name)].concat(), path);
            }
        }
    }
    let mut imports: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let mut complaints = Vec::new();
    for (source, tokens) in sources.iter().zip(&tokens).filter(|(source, _)| !source.module.is_empty()) {
        let Source { shown, module, .. } = source;
        let Some(own) = room_of(module) else {
            complaints.push(format!("{shown}: this file stands in no room: list it in xtask/src/tidy/rooms.rs"));
            continue;
        };
        let mut all = Vec::new();
        collect(tokens, module, &mut all);
        for Named { path, line } in all {
            if path.first().is_some_and(|first| first == "candle_core") {
                complaints.extend(candle_below(&path, own).map(|why| format!("{shown}:{line}: {why}")));
                continue;
            }
            // The root is no room: a name that it lends is its module's.
            let path = if path.len() == 1 { lent.get(&path).cloned().unwrap_or(path) } else { path };
            let Some(other) = room_of(&path) else { continue };
            if other <= own {
                let named = file_of(&path, &files, &lent);
                // A folder is one: its `mod.rs` names its files, and they what it holds for all of them.
                if !module.starts_with(named) && !named.starts_with(module) {
                    imports.entry(module.clone()).or_default().insert(named.to_vec());
                }
                continue;
            }
            complaints.push(format!(
                "{shown}:{line}: `{}` is of the room `{}`, above this file's `{}`: what both need belongs further down",
                path.join("::"),
                ROOMS[other].0,
                ROOMS[own].0
            ));
        }
    }
    complaints.extend(circle(&imports).map(|files| format!("imports run in a circle: {}", files.join(" → "))));
    Ok(complaints)
}

/// The first circle among files, from a file back to it.
fn circle(imports: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Option<Vec<String>> {
    fn walk<'a>(
        module: &'a Vec<String>,
        imports: &'a BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
        done: &mut BTreeSet<&'a Vec<String>>,
        way: &mut Vec<&'a Vec<String>>,
    ) -> bool {
        if let Some(start) = way.iter().position(|&other| other == module) {
            way.drain(..start);
            way.push(module);
            return true;
        }
        if !done.insert(module) {
            return false;
        }
        way.push(module);
        if imports.get(module).into_iter().flatten().any(|other| walk(other, imports, done, way)) {
            return true;
        }
        way.pop();
        false
    }
    let (mut done, mut way) = (BTreeSet::new(), Vec::new());
    let found = imports.keys().any(|module| walk(module, imports, &mut done, &mut way));
    found.then(|| way.iter().map(|module| module.join("::")).collect())
}

/// The complaint about a name of candle's in a room below tensors: the kernels know its trait of element types alone.
fn candle_below(path: &[String], room: usize) -> Option<String> {
    let is_below = ROOMS[room].0 == "kernels" && path.get(1).is_some_and(|name| name != "WithDType");
    is_below.then(|| format!("`{}` in the room `kernels`, which knows slices and no tensors", path.join("::")))
}

/// The module of a file: `kernels/conv/mod.rs` is `kernels::conv`, `lib.rs` the root.
fn module_of(file: &Path) -> Vec<String> {
    let mut module: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    module
}

/// The room that lists the longest beginning of a path, counted from the bottom.
fn room_of(path: &[String]) -> Option<usize> {
    let length = |module: &str| {
        let parts: Vec<&str> = module.split("::").collect();
        (path.len() >= parts.len() && path.iter().zip(&parts).all(|(a, b)| a == b)).then_some(parts.len())
    };
    let listed = ROOMS.iter().enumerate().flat_map(|(room, (_, modules))| modules.iter().map(move |m| (room, m)));
    listed.filter_map(|(room, module)| Some((length(module)?, room))).max().map(|(_, room)| room)
}

/// Adds what `tokens`, which stand in `module`, name by `crate`, `self` or `super`, and of candle.
fn collect(tokens: &[TokenTree], module: &[String], all: &mut Vec<Named>) {
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at..] {
            [TokenTree::Punct(hash), TokenTree::Group(attribute), ..]
                if hash.as_char() == '#' && attribute.stream().to_string().replace(' ', "") == "cfg(test)" =>
            {
                at += 2 + item(&tokens[at + 2..]);
            }
            [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(body), ..] if word == "mod" => {
                collect(&inside(body), &[module, &[name.to_string()]].concat(), all);
                at += 3;
            }
            [TokenTree::Ident(start), ..] if start == "crate" || start == "super" || start == "self" => {
                let above = module.len().saturating_sub(1);
                let from =
                    if start == "crate" { &[] } else { &module[..if start == "super" { above } else { module.len() }] };
                at += 1 + tree(&tokens[at + 1..], from.to_vec(), start.span().start().line, all);
            }
            [TokenTree::Ident(candle), ..] if candle == "candle_core" => {
                at += 1 + tree(&tokens[at + 1..], vec![candle.to_string()], candle.span().start().line, all);
            }
            [TokenTree::Group(group), ..] => {
                collect(&inside(group), module, all);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

fn inside(group: &proc_macro2::Group) -> Vec<TokenTree> {
    group.stream().into_iter().collect()
}

/// The tokens of the item at the beginning: to its body's end or its semicolon.
fn item(tokens: &[TokenTree]) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(body) => body.delimiter() == Delimiter::Brace,
        TokenTree::Punct(end) => end.as_char() == ';',
        _ => false,
    };
    tokens.iter().position(ends).map_or(tokens.len(), |end| end + 1)
}

/// Adds the paths that begin with `path` and go on with `::a::{b, c}` in `tokens`; how many tokens that were.
fn tree(tokens: &[TokenTree], mut path: Vec<String>, mut line: usize, all: &mut Vec<Named>) -> usize {
    let mut at = 0;
    while let [TokenTree::Punct(a), TokenTree::Punct(b), next, ..] = &tokens[at..] {
        if (a.as_char(), b.as_char()) != (':', ':') {
            break;
        }
        match next {
            TokenTree::Ident(name) => {
                step(&mut path, &name.to_string());
                line = name.span().start().line;
            }
            TokenTree::Group(branches) => {
                for branch in inside(branches).split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ','))
                {
                    if let [TokenTree::Ident(name), rest @ ..] = branch {
                        let mut path = path.clone();
                        step(&mut path, &name.to_string());
                        tree(rest, path, name.span().start().line, all);
                    }
                }
                return at + 3;
            }
            _ => break,
        }
        at += 3;
    }
    all.push(Named { path, line });
    at
}

fn step(path: &mut Vec<String>, name: &str) {
    match name {
        "super" => _ = path.pop(),
        "self" => {}
        _ => path.push(name.to_string()),
    }
}

/// What the `use`s of a file name that stands in `module`, those of its own modules without `self` too.
fn uses(tokens: &[TokenTree], module: &[String], files: &BTreeSet<&[String]>) -> Vec<Named> {
    let mut all = Vec::new();
    for at in 0..tokens.len() {
        if let [TokenTree::Ident(word), TokenTree::Ident(first), rest @ ..] = &tokens[at..]
            && word == "use"
        {
            let child = [module, &[first.to_string()]].concat();
            match files.contains(child.as_slice()) {
                true => _ = tree(rest, child, 0, &mut all),
                false => collect(&tokens[at + 1..at + 1 + item(&tokens[at + 1..])], module, &mut all),
            }
        }
    }
    all
}

/// The file that holds what a path names, followed through what files lend on.
fn file_of<'a>(
    path: &[String],
    files: &BTreeSet<&'a [String]>,
    lent: &BTreeMap<Vec<String>, Vec<String>>,
) -> &'a [String] {
    let mut path = path.to_vec();
    // As many steps as a chain of names is ever long: a name may be lent in a circle.
    for _ in 0..8 {
        let Some(name) = (1..=path.len()).find(|&n| lent.get(&path[..n]).is_some_and(|own| own != &path[..n])) else {
            break;
        };
        path = [&lent[&path[..name]], &path[name..]].concat();
    }
    files.iter().filter(|file| path.starts_with(file)).max_by_key(|file| file.len()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(file: &str, text: &str) -> Source {
        Source { shown: file.into(), module: module_of(Path::new(file)), text: text.into() }
    }

    /// The complaints about one file beside a root that lends `conv`'s `Conv2d` and `rng`'s `Rng`.
    fn complaints(file: &str, text: &str) -> Vec<String> {
        let root = source("lib.rs", "mod layers; pub use layers::{Conv2d, Linear as Map}; pub use rng::Rng;");
        let layers = source("layers/mod.rs", "mod conv; pub use conv::Conv2d;");
        check(&[root, layers, source("layers/conv.rs", ""), source("rng.rs", ""), source(file, text)]).unwrap()
    }

    #[test]
    fn downward_imports_pass() {
        let text = "use crate::kernels::{conv::{self, Geometry}, simd}; use super::tape; use crate::Rng;\n\
            fn f(&self) -> crate::rng::Rng { self.x.g(crate::storage::read::<f32>(1)) }";
        assert_eq!(complaints("ops/conv2d.rs", text), Vec::<String>::new());
    }

    /// Wherever the path stands, and whichever way it is written.
    #[test]
    fn an_upward_import_is_named_with_its_line_and_both_rooms() {
        for text in [
            "\nuse crate::ops;",
            "\nuse crate::{rng, ops::{self}};",
            "\nuse crate::{rng,\nops::conv2d};",
            "\nuse super::super::ops::conv2d as x;",
            "\nfn f() { crate::ops::conv2d() }",
            "\nfn f() { assert!(g(crate::ops::conv2d(1))) }",
            "\nmod inner { use super::super::super::ops::conv2d; }",
        ] {
            let complaints = complaints("kernels/pool.rs", text);
            let [complaint] = complaints.as_slice() else { panic!("{text}: {complaints:?}") };
            let line = 1 + text[..text.find("ops").unwrap()].matches('\n').count();
            assert!(complaint.starts_with(&format!("kernels/pool.rs:{line}: `ops")), "{text}: {complaint}");
            assert!(complaint.contains("room `operations`") && complaint.contains("`kernels`"), "{text}: {complaint}");
        }
    }

    #[test]
    fn a_name_that_the_root_lends_is_of_its_module() {
        for text in ["use crate::Conv2d;", "fn f(x: &crate::Conv2d) {}", "use crate::layers::conv::Conv2d;"] {
            let complaints = complaints("ops/pool.rs", text);
            let names = |complaint: &String| complaint.contains("`layers::") && complaint.contains("Conv2d`");
            assert!(complaints.len() == 1 && names(&complaints[0]), "{text}: {complaints:?}");
        }
    }

    #[test]
    fn words_that_import_nothing_pass() {
        for text in [
            "// use crate::ops;",
            "/// See [`crate::ops`].\nfn f() {}",
            "/* crate::ops */ const X: &str = \"crate::ops\";",
            "#[cfg(test)]\nmod tests { use crate::ops::conv2d; }",
            "#[cfg(test)]\nuse crate::ops;\nuse crate::rng;",
            "pub(super) fn f(self) { self.ops::<f32>() }",
            "pub(crate) fn ops() {}",
            "use other::ops; use ::ops::x;",
        ] {
            assert_eq!(complaints("kernels/conv/mod.rs", text), Vec::<String>::new(), "{text}");
        }
        // Only what the attribute marks is left out.
        assert_eq!(complaints("kernels/pool.rs", "#[cfg(test)]\nmod tests {}\nuse crate::ops;").len(), 1);
        assert_eq!(complaints("kernels/pool.rs", "#[cfg(not(test))]\nuse crate::ops;").len(), 1);
    }

    /// What a tracer writes down is low, what runs under one is high: the longer name decides.
    #[test]
    fn a_module_may_stand_in_another_room_than_its_parent() {
        assert_eq!(complaints("trace.rs", "use crate::pass::Pass;"), Vec::<String>::new());
        assert_eq!(complaints("trace/graph.rs", "use crate::pass::Pass;").len(), 1);
    }

    #[test]
    fn kernels_know_no_tensor() {
        for text in ["use candle_core::{Tensor, WithDType};", "fn f(x: &candle_core::CpuStorage) {}"] {
            let found = complaints("kernels/pool.rs", text);
            assert!(found.len() == 1 && found[0].contains("no tensors"), "{text}: {found:?}");
            assert_eq!(complaints("ops/pool.rs", text), Vec::<String>::new());
        }
        let text = "use candle_core::WithDType; #[cfg(test)] mod tests { use candle_core::Tensor; }";
        assert_eq!(complaints("kernels/pool.rs", text), Vec::<String>::new());
    }

    #[test]
    fn a_file_without_a_room_is_named() {
        let complaints = complaints("attic.rs", "");
        assert!(complaints.len() == 1 && complaints[0].starts_with("attic.rs: "), "{complaints:?}");
    }

    #[test]
    fn a_circle_of_files_is_named_however_its_imports_are_written() {
        let circle = |texts: [&str; 3]| {
            let files = ["kernels/pool.rs", "kernels/gemm.rs", "kernels/conv/plan.rs"];
            let lent = source("kernels/mod.rs", "pub use gemm::Product; use conv::Plan;");
            let folder = source("kernels/conv/mod.rs", "pub use plan::Plan;");
            let sources = files.iter().zip(texts).map(|(file, text)| source(file, text));
            check(&sources.chain([lent, folder]).collect::<Vec<_>>()).unwrap()
        };
        for texts in [
            ["use super::gemm;", "use super::pool::x;", ""],
            ["use super::Product;", "fn f() { crate::kernels::pool::x() }", ""],
            ["use super::gemm;", "use super::Plan;", "use crate::kernels::pool;"],
            ["use super::gemm;", "use super::conv::Plan;", "use super::super::pool;"],
        ] {
            let complaints = circle(texts);
            assert!(complaints.len() == 1 && complaints[0].starts_with("imports run in a circle: "), "{complaints:?}");
            assert!(complaints[0].contains("kernels::pool → kernels::gemm"), "{complaints:?}");
        }
        assert_eq!(circle(["use super::gemm;", "use super::Plan;", "use super::super::sum;"]), Vec::<String>::new());
    }
}
