//! Downloads into the caches that Python reads.

use crate::Progress;
use crate::client::{Answer, Client, joined};
use crate::error::{Error, io};
use crate::hash;
use crate::hub_file::{HubFile, WEIGHTS, is_commit};
use crate::url_file::UrlFile;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;

/// Broken transfers in a row that bring nothing before it is given up.
const PATIENCE: u32 = 4;
/// Beside weights, what says how to use them.
const BESIDE: [&str; 2] = ["config.json", "preprocessor_config.json"];
/// The index of weights that are cut into several files.
const INDEX: &str = "model.safetensors.index.json";

/// What the server says of a file.
struct Meta {
    url: String,
    size: Option<u64>,
    /// A SHA-256 or what git calls it, if it is one.
    tag: Option<String>,
    commit: Option<String>,
}

impl HubFile {
    /// Downloads the file into a cache, whatever is there already; of the usual files the first that the repository has,
    /// with the configurations beside it and, of an index, its parts.
    ///
    /// # Errors
    /// What the server refuses, a network that is not there, and a file that is not what the server said.
    pub fn fetch_into(
        &self,
        cache: &Path,
        client: &Client,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, Error> {
        let repository = Repository { file: self, client, folder: self.folder_in(cache), locks: cache.join(".locks") };
        let wanted = self.wanted();
        for file in &wanted {
            match repository.fetch(file, progress) {
                Ok(path) => {
                    repository.beside(&path, file, progress)?;
                    return Ok(path);
                }
                // Another of the usual files may be there.
                Err(Error::Absent { .. }) if wanted.len() > 1 => {}
                Err(error) => return Err(error),
            }
        }
        let why =
            "there is none of the files that usually hold weights, or no such repository: name a file behind a colon";
        Err(Error::Absent { name: format!("hf:{self}"), why })
    }
}

impl UrlFile {
    /// Downloads the file into `folder`. If its name states a hash, it is held to that.
    ///
    /// # Errors
    /// As [`HubFile::fetch_into`].
    pub fn fetch_into(
        &self,
        folder: &Path,
        client: &Client,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, Error> {
        // The tag of a server of files is no hash of theirs; their names are.
        self.held_to(hash::stated_in(self.file_name()), folder, client, progress)
    }

    /// Downloads the file into `folder` and holds it to a SHA-256, in hexadecimal and small letters, that is known from
    /// elsewhere.
    ///
    /// # Errors
    /// As [`HubFile::fetch_into`].
    pub fn fetch_exactly_into(
        &self,
        sha256: &str,
        folder: &Path,
        client: &Client,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, Error> {
        self.held_to(Some(sha256), folder, client, progress)
    }

    fn held_to(
        &self,
        hash: Option<&str>,
        folder: &Path,
        client: &Client,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, Error> {
        let (name, path) = (self.url(), folder.join(self.file_name()));
        let answer = client.ask(name, name, None, |_| false)?;
        if let Some(error) = answer.refusal(name, false) {
            return Err(error);
        }
        fs::create_dir_all(folder).map_err(io(folder))?;
        let meta = Meta { tag: hash.map(str::to_owned), ..meta(&answer) };
        transfer(client, name, self.file_name(), &meta, &path, progress)?;
        Ok(path)
    }
}

struct Repository<'a> {
    file: &'a HubFile,
    client: &'a Client,
    folder: PathBuf,
    locks: PathBuf,
}

impl Repository<'_> {
    /// Brings one file into the snapshot of its commit.
    fn fetch(&self, file: &str, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, Error> {
        let name = format!("hf:{}: {file}", self.file);
        let url = self.client.file_url(self.file.repository(), self.file.revision(), file);
        // A large file is a redirect that says whose bytes they are.
        let answer = self.client.ask(&name, &url, None, |headers| headers.contains_key("x-linked-etag"))?;
        let is_redirect = (300..400).contains(&answer.status);
        if let Some(error) = answer.refusal(&name, self.client.has_token()).filter(|_| !is_redirect) {
            return Err(error);
        }
        let meta = meta(&answer);
        let odd = |why: &str| Error::Refused { name: name.clone(), status: answer.status, why: why.into() };
        let commit = meta.commit.clone().ok_or_else(|| odd("the answer names no commit: is HF_ENDPOINT a hub?"))?;
        let tag = meta.tag.clone().ok_or_else(|| odd("the answer has no hash to check the file with"))?;

        let blobs = self.folder.join("blobs");
        let blob = blobs.join(&tag);
        let locks = self.locks.join(self.folder.file_name().unwrap_or_default());
        for folder in [&blobs, &locks] {
            fs::create_dir_all(folder).map_err(io(folder))?;
        }
        // Two programs that want the same file: the second waits, and finds it.
        let lock = locks.join(format!("{tag}.lock"));
        let held = File::create(&lock).map_err(io(&lock))?;
        held.lock().map_err(io(&lock))?;
        if !blob.is_file() {
            transfer(self.client, &name, file, &meta, &blob, progress)?;
        }
        let snapshot = self.folder.join("snapshots").join(&commit);
        let path = snapshot.join(file);
        let parent = path.parent().unwrap_or(&snapshot);
        fs::create_dir_all(parent).map_err(io(parent))?;
        if !path.is_file() {
            point(&path, &blob, file)?;
        }
        let reference = self.folder.join("refs").join(self.file.revision());
        if !is_commit(self.file.revision()) {
            let parent = reference.parent().unwrap_or(&self.folder);
            fs::create_dir_all(parent).map_err(io(parent))?;
            fs::write(&reference, &commit).map_err(io(&reference))?;
        }
        Ok(path)
    }

    /// The parts that an index names, and the configurations, where the repository has some.
    fn beside(&self, path: &Path, file: &str, progress: &mut dyn FnMut(Progress)) -> Result<(), Error> {
        if file == INDEX {
            let text = fs::read_to_string(path).map_err(io(path))?;
            let index: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let parts = index["weight_map"].as_object().into_iter().flatten();
            let parts: BTreeSet<&str> = parts.filter_map(|(_, part)| part.as_str()).collect();
            // Names of files beside it, and nothing that leads elsewhere.
            let is_name = |part: &&str| !part.contains(['/', '\\']) && !part.starts_with('.');
            for part in parts.into_iter().filter(is_name) {
                self.fetch(part, progress)?;
            }
        }
        if WEIGHTS.contains(&file) {
            for file in BESIDE {
                match self.fetch(file, progress) {
                    Err(Error::Absent { .. }) | Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

fn meta(answer: &Answer) -> Meta {
    let number = |name: &str| answer.header(name).and_then(|text| text.parse().ok());
    let tag = answer.header("x-linked-etag").or_else(|| answer.header("etag"));
    let tag = tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_lowercase());
    Meta {
        url: answer.header("location").map_or_else(|| answer.url.clone(), |to| joined(&answer.url, to)),
        size: number("x-linked-size").or_else(|| number("content-length")),
        tag: tag.filter(|tag| matches!(tag.len(), 40 | 64) && tag.bytes().all(|byte| byte.is_ascii_hexdigit())),
        commit: answer.header("x-repo-commit").filter(|commit| is_commit(commit)).map(str::to_owned),
    }
}

/// Brings a file to `path` by way of one beside it that goes on from what an earlier try left, and checks it.
fn transfer(
    client: &Client,
    name: &str,
    file: &str,
    meta: &Meta,
    path: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let aside = path.with_file_name(format!("{}.incomplete", path.file_name().unwrap_or_default().display()));
    let mut out = OpenOptions::new().create(true).append(true).open(&aside).map_err(io(&aside))?;
    let mut done = out.metadata().map_err(io(&aside))?.len();
    if meta.size.is_some_and(|size| done > size) {
        out.set_len(0).map_err(io(&aside))?;
        done = 0;
    }
    let mut failures = 0;
    while meta.size.is_none_or(|size| done < size) {
        let before = done;
        match part(client, name, file, meta, &mut out, &mut done, progress) {
            Ok(()) => break,
            Err(Error::Io { source, .. }) => return Err(Error::Io { path: aside, source }),
            Err(error @ (Error::Refused { status: 400..=499, .. } | Error::Absent { .. })) => return Err(error),
            Err(error) => {
                failures = if done > before { 1 } else { failures + 1 };
                if failures >= PATIENCE {
                    return Err(error);
                }
                sleep(client.pause * 2u32.pow(failures - 1));
            }
        }
    }
    out.sync_all().map_err(io(&aside))?;
    drop(out);
    check(name, meta, &aside, done).inspect_err(|_| {
        fs::remove_file(&aside).ok();
    })?;
    fs::rename(&aside, path).map_err(io(path))
}

/// Appends what an answer brings; `done` counts it, also where it breaks off.
fn part(
    client: &Client,
    name: &str,
    file: &str,
    meta: &Meta,
    out: &mut File,
    done: &mut u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let answer = client.ask(name, &meta.url, Some(*done), |_| false)?;
    let broken = |why: String| Error::Network { name: name.into(), host: "the server".into(), why };
    match answer.status {
        // From the beginning, whatever was asked for.
        200 if *done > 0 => {
            out.set_len(0).map_err(io(file))?;
            *done = 0;
        }
        206 => {
            let range = answer.header("content-range").unwrap_or_default();
            if !range.starts_with(&format!("bytes {done}-")) {
                return Err(broken(format!("it sent `{range}` where bytes from {done} on were asked for")));
            }
        }
        // There is nothing from there on: what was kept is of another file.
        416 => {
            out.set_len(0).map_err(io(file))?;
            *done = 0;
            return Err(broken("it has no bytes from there on".into()));
        }
        _ => {}
    }
    if let Some(error) = answer.refusal(name, client.has_token()) {
        return Err(error);
    }
    let mut body = answer.body.into_reader();
    let mut buffer = vec![0; 1 << 18];
    loop {
        progress(Progress { file, done: *done, total: meta.size });
        match body.read(&mut buffer) {
            Ok(0) if meta.size.is_some_and(|size| *done < size) => {
                return Err(broken("the transfer ended early".into()));
            }
            Ok(0) => return Ok(()),
            Ok(n) => {
                out.write_all(&buffer[..n]).map_err(io(file))?;
                *done += n as u64;
            }
            Err(error) => return Err(broken(error.to_string())),
        }
    }
}

/// Compares a file with the size and the hash that were promised.
fn check(name: &str, meta: &Meta, path: &Path, length: u64) -> Result<(), Error> {
    let damaged = |what: String, found: String| Err(Error::Damaged { name: name.into(), what, found });
    if let Some(size) = meta.size.filter(|&size| size != length) {
        return damaged(format!("a file of {size} bytes"), format!("{length} bytes"));
    }
    let Some(tag) = &meta.tag else { return Ok(()) };
    let (what, found) = match tag.len() {
        40 => ("git's hash", hash::git_blob(path, length)?),
        _ => ("the SHA-256", hash::sha256(path)?),
    };
    if found.starts_with(tag.as_str()) {
        return Ok(());
    }
    damaged(format!("{what} {tag}"), found[..tag.len().min(found.len())].to_owned())
}

/// Lets a snapshot's file be a blob, by a relative link as Python writes it; where there are none, the blob itself moves.
fn point(path: &Path, blob: &Path, file: &str) -> Result<(), Error> {
    #[cfg(unix)]
    {
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}blobs/{}", blob.file_name().unwrap_or_default().display());
        // A link that leads nowhere is what a cleared cache leaves.
        fs::remove_file(path).ok();
        std::os::unix::fs::symlink(target, path).map_err(io(path))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        fs::rename(blob, path).map_err(io(path))
    }
}
