//! Downloads from servers on this machine that play the hub, and what they do wrong.
#![cfg(feature = "download")]

use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use zoo_hub::{Client, Error, HubFile, UrlFile};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a server is asked.
#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

impl Request {
    /// The first byte that is asked for.
    fn from(&self) -> usize {
        let range = self.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |from| from.parse().unwrap())
    }
}

/// What it answers. A body that is cut ends early, with the connection.
#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Reply {
    fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A file, from the byte on that is asked for.
    fn file(request: &Request, file: &[u8]) -> Self {
        match request.from() {
            0 => Self { body: file.to_vec(), ..Self::new(200) },
            from => Self { body: file[from..].to_vec(), ..Self::new(206) }
                .with("content-range", format!("bytes {from}-{}/{}", file.len() - 1, file.len())),
        }
    }
}

/// A server until the test ends, and what it was asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn new(answer: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
        let log = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                serve(&mut stream.unwrap(), &answer, &log);
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: &mut TcpStream, answer: &impl Fn(&Request) -> Reply, log: &Mutex<Vec<Request>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let headers = lines.take_while(|line| !line.is_empty());
    let headers =
        headers.filter_map(|line| Some((line.split_once(": ")?.0.to_lowercase(), line.split_once(": ")?.1.into())));
    let request = Request { method, path, headers: headers.collect() };
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut text = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("content-length: {}\r\n\r\n", reply.body.len());
    let mut bytes = text.into_bytes();
    if request.method != "HEAD" {
        bytes.extend(&reply.body[..reply.cut.unwrap_or(reply.body.len())]);
    }
    // The client may have gone.
    stream.write_all(&bytes).ok();
}

fn file() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Git's hash of `{}` and a line's end.
const CONFIG: (&str, &str) = ("{}\n", "0967ef424bce6791893e9a57bb952f80fd536e93");

/// A hub with one large file, which lies at another server, and one small one.
fn hub(far: &str, tag: String) -> impl Fn(&Request) -> Reply + Send + 'static {
    let far = far.to_owned();
    move |request| match request.path.rsplit('/').next().unwrap() {
        "model.safetensors" => Reply::new(302)
            .with("location", format!("{far}/blob?signed=1"))
            .with("x-linked-etag", format!("\"{tag}\""))
            .with("x-linked-size", "300000")
            .with("x-repo-commit", COMMIT),
        "config.json" => Reply { body: CONFIG.0.into(), ..Reply::new(200) }
            .with("etag", format!("W/\"{}\"", CONFIG.1))
            .with("x-repo-commit", COMMIT),
        _ => Reply::new(404).with("x-error-code", "EntryNotFound"),
    }
}

fn client(server: &Server) -> Client {
    Client::new(&server.url).token("secret").pause(Duration::ZERO)
}

fn fetch(name: &str, cache: &Path, client: &Client) -> Result<std::path::PathBuf, Error> {
    name.parse::<HubFile>().unwrap().fetch_into(cache, client, &mut |_| {})
}

/// The files that a transfer leaves behind.
fn left(cache: &Path) -> Vec<String> {
    let blobs = cache.join("models--timm--net/blobs");
    let mut names: Vec<String> = fs::read_dir(blobs)
        .map(|all| all.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[test]
fn a_broken_transfer_goes_on_and_python_finds_the_file() {
    let cache = tempfile::tempdir().unwrap();
    let far = Server::new(|request| {
        let reply = Reply::file(request, &file());
        // Each connection brings 120,000 bytes.
        Reply { cut: Some(reply.body.len().min(120_000)), ..reply }
    });
    let server = Server::new(hub(&far.url, sha256(&file())));
    let name: HubFile = "timm/net".parse().unwrap();
    let mut seen = Vec::new();
    let mut progress =
        |progress: zoo_hub::Progress| seen.push((progress.file.to_owned(), progress.done, progress.total));
    let path = name.fetch_into(cache.path(), &client(&server), &mut progress).unwrap();
    assert_eq!(fs::read(&path).unwrap(), file());
    let folder = cache.path().join("models--timm--net");
    assert_eq!(path, folder.join("snapshots").join(COMMIT).join("model.safetensors"));
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read_to_string(path.with_file_name("config.json")).unwrap(), CONFIG.0);
    let mut blobs = vec![sha256(&file()), CONFIG.1.to_owned()];
    blobs.sort();
    assert_eq!(left(cache.path()), blobs);
    #[cfg(unix)]
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("../../blobs").join(sha256(&file())));

    let from: Vec<usize> = far.asked().iter().map(Request::from).collect();
    assert_eq!(from, [0, 120_000, 240_000]);
    // Whoever keeps the bytes is told no token.
    assert!(far.asked().iter().all(|request| !request.headers.contains_key("authorization")));
    assert_eq!(server.asked()[0].headers["authorization"], "Bearer secret");
    assert_eq!(
        (&server.asked()[0].method[..], &server.asked()[0].path[..]),
        ("HEAD", "/timm/net/resolve/main/model.safetensors")
    );
    assert!(seen.iter().any(|step| *step == ("model.safetensors".into(), 300_000, Some(300_000))), "{seen:?}");
}

#[test]
fn what_is_not_the_promised_file_is_not_kept() {
    let far = Server::new(|request| Reply::file(request, &file()));
    let cache = tempfile::tempdir().unwrap();
    let server = Server::new(hub(&far.url, sha256(b"another")));
    let error = fetch("timm/net", cache.path(), &client(&server)).unwrap_err();
    assert!(matches!(&error, Error::Damaged { what, .. } if what.starts_with("the SHA-256")), "{error}");
    assert!(left(cache.path()).is_empty(), "{:?}", left(cache.path()));

    // Longer than promised, and by git's hash.
    let far = Server::new(|request| Reply::file(request, &[file(), vec![0]].concat()));
    let server = Server::new(hub(&far.url, sha256(&file())));
    let error = fetch("timm/net", cache.path(), &client(&server)).unwrap_err();
    assert!(matches!(&error, Error::Damaged { found, .. } if found == "300001 bytes"), "{error}");
    let server = Server::new(|_| {
        Reply { body: b"[]\n".to_vec(), ..Reply::new(200) }
            .with("etag", format!("\"{}\"", CONFIG.1))
            .with("x-repo-commit", COMMIT)
    });
    let error = fetch("timm/net:config.json", cache.path(), &client(&server)).unwrap_err();
    assert!(matches!(&error, Error::Damaged { what, .. } if what.starts_with("git's hash")), "{error}");
    assert!(left(cache.path()).is_empty(), "{:?}", left(cache.path()));
}

#[test]
fn a_server_that_cannot_go_on_begins_again() {
    let cache = tempfile::tempdir().unwrap();
    let far = Server::new(|request| Reply {
        // Whatever is asked for, the whole file; the first time half of it.
        cut: (request.from() == 0).then_some(150_000),
        body: file(),
        ..Reply::new(200)
    });
    let server = Server::new(hub(&far.url, sha256(&file())));
    let path = fetch("timm/net", cache.path(), &client(&server)).unwrap();
    assert_eq!(fs::read(path).unwrap(), file());
}

#[test]
fn a_network_that_goes_leaves_what_came_for_the_next_time() {
    let cache = tempfile::tempdir().unwrap();
    // Bytes until 100,000, then nothing more.
    let far = Server::new(|request| match request.from() {
        0 => Reply { cut: Some(100_000), ..Reply::file(request, &file()) },
        _ => Reply { cut: Some(0), ..Reply::file(request, &file()) },
    });
    let server = Server::new(hub(&far.url, sha256(&file())));
    let error = fetch("timm/net", cache.path(), &client(&server)).unwrap_err();
    assert!(matches!(error, Error::Network { .. }) && error.to_string().contains("goes on from it"), "{error}");
    assert_eq!(left(cache.path()), [format!("{}.incomplete", sha256(&file()))]);

    let far = Server::new(|request| Reply::file(request, &file()));
    let server = Server::new(hub(&far.url, sha256(&file())));
    let path = fetch("timm/net", cache.path(), &client(&server)).unwrap();
    assert_eq!((fs::read(path).unwrap(), far.asked()[0].from()), (file(), 100_000));

    // Nobody there at all.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fetch("timm/other", cache.path(), &Client::new(format!("http://{port}"))).unwrap_err();
    assert!(error.to_string().contains(&format!("{port} cannot be reached")), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let refused = |status, code: &'static str, with_token: bool| {
        let server = Server::new(move |_| Reply::new(status).with("x-error-code", code));
        let client = if with_token { client(&server) } else { Client::new(&server.url) };
        let error = fetch("timm/net", cache.path(), &client).unwrap_err();
        // Of a repository that is not open, other files are not asked for.
        let is_open = code == "EntryNotFound" || code.is_empty();
        assert_eq!(server.asked().len(), if is_open { 3 } else { 1 }, "{error}");
        error.to_string()
    };
    assert!(refused(401, "RepoNotFound", false).contains("set HF_TOKEN"));
    assert!(refused(401, "RepoNotFound", true).contains("the token in HF_TOKEN does not open it"));
    assert!(refused(403, "GatedRepo", true).contains("terms have to be accepted"));
    assert!(refused(404, "RevisionNotFound", true).contains("no such branch, tag or commit"));
    for code in ["EntryNotFound", ""] {
        assert!(refused(404, code, true).contains("hf:timm/net: there is none of the files that usually hold weights"));
    }
    let server = Server::new(|_| Reply::new(404).with("x-error-code", "EntryNotFound"));
    let error = fetch("timm/net:net.pth", cache.path(), &client(&server)).unwrap_err().to_string();
    assert_eq!(error, "hf:timm/net:net.pth: net.pth: the repository has no such file");
    assert!(left(cache.path()).is_empty());
    let server = Server::new(|_| Reply::new(503));
    assert!(fetch("timm/net", cache.path(), &client(&server)).unwrap_err().to_string().contains("status 503"));
}

#[test]
fn other_files_renamed_repositories_and_parts() {
    let cache = tempfile::tempdir().unwrap();
    let small = |body: &str| {
        let body = body.as_bytes().to_vec();
        let tag = sha256(&body);
        Reply { body, ..Reply::new(200) }.with("etag", format!("\"{tag}\"")).with("x-repo-commit", COMMIT)
    };
    // A repository of an old name: the new one has no model.safetensors but an index with two parts.
    let index = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors", "d": "../three", "e": ".."}}"#;
    let server = Server::new(move |request| {
        if let Some(path) = request.path.strip_prefix("/timm/net/") {
            return Reply::new(307).with("location", format!("/timm/renamed/{path}"));
        }
        match request.path.strip_prefix("/timm/renamed/resolve/v2/").unwrap() {
            "model.safetensors.index.json" => small(index),
            "one.safetensors" => small("one"),
            "two.safetensors" => small("two"),
            _ => Reply::new(404).with("x-error-code", "EntryNotFound"),
        }
    });
    let path = fetch("timm/net@v2", cache.path(), &client(&server)).unwrap();
    assert!(path.ends_with("model.safetensors.index.json"));
    assert_eq!(fs::read_to_string(path.with_file_name("two.safetensors")).unwrap(), "two");
    assert_eq!(fs::read_to_string(cache.path().join("models--timm--net/refs/v2")).unwrap(), COMMIT);
    assert!(server.asked().iter().all(|request| !request.path.contains("three")));
    // In a circle.
    let server = Server::new(|_| Reply::new(302).with("location", "/again"));
    assert!(fetch("timm/net", cache.path(), &client(&server)).unwrap_err().to_string().contains("redirects"));
}

#[test]
fn an_address_whose_name_states_a_hash_is_held_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|request| match request.path.contains("absent") {
        true => Reply::new(404),
        false => Reply::file(request, &file()),
    });
    let fetch = |name: &str| {
        let file: UrlFile = format!("{}/models/{name}", server.url).parse().unwrap();
        file.fetch_into(folder.path(), &client(&server), &mut |_| {})
    };
    let good = format!("net-{}.pth", &sha256(&file())[..8]);
    assert_eq!(fetch(&good).unwrap(), folder.path().join(&good));
    assert!(zoo_hub::check_name(&folder.path().join(&good)).unwrap());
    let error = fetch("net-0000000a.pth").unwrap_err();
    assert!(matches!(&error, Error::Damaged { what, .. } if what == "the SHA-256 0000000a"), "{error}");
    assert!(fetch("absent.pth").unwrap_err().to_string().contains("no such file"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // A file that was damaged afterwards.
    fs::write(folder.path().join(&good), "less").unwrap();
    let error = zoo_hub::check_name(&folder.path().join(&good)).unwrap_err().to_string();
    assert!(error.contains("fetch it again"), "{error}");
}
