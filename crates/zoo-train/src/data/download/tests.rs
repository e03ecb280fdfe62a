//! Downloads from a server on this machine, and what it does wrong.

use super::archive::{Archive, CIFAR10};
use crate::data::cifar10;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zoo_hub::Client;

/// Ten images for training and one for tests, as CIFAR-10's archive has them.
fn files() -> Vec<(String, Vec<u8>)> {
    let records = |labels: &[u8]| -> Vec<u8> {
        // Pixels that gzip cannot make much smaller, so that a transfer can break off within them.
        let pixels = |label: u8| (0..3072u32).map(move |i| (i.wrapping_mul(i + u32::from(label)) >> 5) as u8);
        labels.iter().flat_map(|&label| std::iter::once(label).chain(pixels(label))).collect()
    };
    vec![
        ("cifar-10-batches-bin/data_batch_1.bin".into(), records(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])),
        ("cifar-10-batches-bin/test_batch.bin".into(), records(&[3])),
    ]
}

fn packed(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        // By hand: the crate itself writes no name that leads elsewhere.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append(&header, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The address of a server until the test ends that sends at most `cut` bytes of `file` a connection, from the byte on
/// that is asked for, and those bytes as they were asked for. No file is a 404.
fn serve(file: Option<Vec<u8>>, cut: usize) -> (String, Arc<Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/cifar.tar.gz", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<usize>>> = Arc::default();
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines: Vec<String> =
                BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let Some(file) = &file else {
                stream.write_all(b"HTTP/1.1 404 X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").ok();
                continue;
            };
            let range =
                lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
            let from = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
            let status = if from > 0 { "206" } else { "200" };
            let (length, last) = (file.len() - from, file.len() - 1);
            let head = format!(
                "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\ncontent-range: bytes {from}-{last}/{}\r\n\r\n",
                file.len()
            );
            stream.write_all(head.as_bytes()).ok();
            if !lines[0].starts_with("HEAD") {
                log.lock().unwrap().push(from);
                stream.write_all(&file[from..(from + cut).min(file.len())]).ok();
            }
        }
    });
    (url, asked)
}

fn fetch(url: &str, sha256: &str, cache: &Path) -> Result<std::path::PathBuf, String> {
    let client = Client::new(url).pause(Duration::ZERO);
    let fetched = Archive { url, sha256, ..CIFAR10 }.fetch_into(cache, &client, &mut |_| {});
    fetched.map_err(|error| error.to_string())
}

/// What lies in the cache, without locks.
fn left(cache: &Path) -> Vec<String> {
    let names = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".lock")).collect()
}

#[test]
fn a_broken_transfer_goes_on_and_the_data_is_found_again() {
    let cache = tempfile::tempdir().unwrap();
    let file = packed(&files());
    let cut = file.len() / 2 + 1;
    let (url, asked) = serve(Some(file.clone()), cut);
    let path = fetch(&url, &sha256(&file), cache.path()).unwrap();
    assert_eq!(
        (path.as_path(), asked.lock().unwrap().as_slice()),
        (cache.path().join("cifar-10-batches-bin").as_path(), &[0, cut][..])
    );
    let data = cifar10::load(&path).unwrap();
    assert_eq!((data.train.len(), data.test.labels()), (10, &[3][..]));
    // Neither the archive nor what was unpacked aside is left.
    assert_eq!(left(cache.path()), ["cifar-10-batches-bin"]);
    // Nobody is asked again.
    assert_eq!(fetch("http://127.0.0.1:1/none", "", cache.path()).unwrap(), path);
    assert_eq!(asked.lock().unwrap().len(), 2);
}

#[test]
fn what_is_not_the_published_file_is_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    let (url, _) = serve(Some(packed(&files())), usize::MAX / 2);
    let error = fetch(&url, CIFAR10.sha256, cache.path()).unwrap_err();
    assert!(error.contains("the SHA-256 c4a38c50") && error.contains("it is not kept"), "{error}");
    assert!(
        error.contains("--data DIR") && error.contains("--data synthetic") && error.lines().count() == 1,
        "{error}"
    );
    let (url, _) = serve(None, 0);
    let error = fetch(&url, CIFAR10.sha256, cache.path()).unwrap_err();
    assert!(error.contains("there is no such file"), "{error}");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fetch(&format!("http://{port}/x.tar.gz"), CIFAR10.sha256, cache.path()).unwrap_err();
    assert!(error.contains("cannot be reached") && error.contains("ZOO_CIFAR10_URL"), "{error}");
    assert!(fetch("ftp://x/y", CIFAR10.sha256, cache.path()).unwrap_err().contains("is no address of a file"));
    assert!(left(cache.path()).is_empty(), "{:?}", left(cache.path()));
}

#[test]
fn an_archive_that_leads_out_of_its_folder_is_not_unpacked() {
    for (name, told) in [
        ("../outside.bin", "`../outside.bin` in it leads out of its folder"),
        ("cifar-10-batches-bin/../../outside.bin", "leads out of its folder"),
        ("/tmp/outside.bin", "leads out of its folder"),
        ("other/data_batch_1.bin", "no folder cifar-10-batches-bin in it"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let within = cache.path().join("cache");
        let file = packed(&[(name.into(), vec![1; 10])]);
        let (url, _) = serve(Some(file.clone()), file.len());
        let error = fetch(&url, &sha256(&file), &within).unwrap_err();
        assert!(error.contains(told) && error.contains("cifar.tar.gz"), "{error}");
        assert!(left(&within).is_empty() && left(cache.path()) == ["cache"], "{name}");
    }
    // Damaged within, although its hash is right.
    let cache = tempfile::tempdir().unwrap();
    let mut file = packed(&files());
    file.truncate(file.len() / 2);
    let (url, _) = serve(Some(file.clone()), file.len());
    assert!(fetch(&url, &sha256(&file), cache.path()).unwrap_err().contains("not unpacked: "));
    assert!(left(cache.path()).is_empty());
}

#[test]
#[cfg(unix)]
fn links_are_not_unpacked() {
    let cache = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "cifar-10-batches-bin", "/tmp").unwrap();
    let file = tar.into_inner().unwrap().finish().unwrap();
    let (url, _) = serve(Some(file.clone()), file.len());
    let error = fetch(&url, &sha256(&file), cache.path()).unwrap_err();
    assert!(error.contains("`cifar-10-batches-bin` in it is neither file nor folder"), "{error}");
    assert!(left(cache.path()).is_empty());
}

/// A disk without room: `/dev/full` takes no byte.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_said_with_its_place() {
    let cache = tempfile::tempdir().unwrap();
    let file = packed(&files());
    std::os::unix::fs::symlink("/dev/full", cache.path().join("cifar.tar.gz.incomplete")).unwrap();
    let (url, _) = serve(Some(file.clone()), file.len());
    let error = fetch(&url, &sha256(&file), cache.path()).unwrap_err();
    assert!(error.contains("cifar.tar.gz.incomplete: No space left on device"), "{error}");
}
