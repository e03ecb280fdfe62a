//! Files that chance has damaged: whatever they say, reading them ends in a value or an error, and in little memory.
//!
//! `ZOO_FUZZ_SECONDS=300 cargo test --release -p zoo-core --test weights_fuzz` goes on for that long.

use candle_core::Device;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};
use zoo_core::rng::Rng;
use zoo_core::weights::Weights;

thread_local! {
    // Signed: what one thread allocates another may free.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, counting what the current thread holds.
struct Counting;

fn account(add: usize, remove: usize) {
    // A thread that is ending has no counters any more, and nobody reads them.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + add as isize - remove as isize);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call goes to the system's allocator with its arguments unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        account(layout.size(), 0);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        account(0, layout.size());
        // SAFETY: as for `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may exist side by side.
        account(size, 0);
        account(0, layout.size());
        // SAFETY: as for `alloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `f` held at once, and its result.
fn peak_of<T>(f: impl FnOnce() -> T) -> (usize, T) {
    let before = LIVE.get();
    PEAK.set(before);
    let value = f();
    ((PEAK.get() - before) as usize, value)
}

/// An instruction of one byte may leave a value in the machine, and lists grow by doubling: 46 is the most that the
/// second test below gets out of it.
const MEMORY_PER_BYTE: usize = 64;
/// Names, messages, the first capacity of lists.
const MEMORY_AT_LEAST: usize = 16 << 10;

/// Opens a file and reads all of it; true if it opens.
fn read(name: &str, bytes: Vec<u8>) -> bool {
    let len = bytes.len();
    let (peak, opened) = peak_of(|| match Weights::from_bytes(name, bytes) {
        Ok(weights) => {
            for key in weights.keys() {
                weights.tensor(key, &Device::Cpu).unwrap();
            }
            true
        }
        Err(error) => {
            assert!(error.to_string().len() < 2000, "{error}");
            false
        }
    });
    assert!(peak <= len * MEMORY_PER_BYTE + MEMORY_AT_LEAST, "{name}: {len} bytes took {peak} bytes of memory");
    opened
}

const FILES: [&str; 7] = [
    "expected.safetensors",
    "zip.pt",
    "zip_protocol4.pt",
    "rezipped.pt",
    "legacy.pth",
    "training_legacy.pth",
    "old_python.pth",
];

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// What precedes the object in the old format: magic number, version, facts about the system.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";

const INSTRUCTIONS: &[u8] =
    b"\x80\x95.N\x88\x89JKM\x8a\x8bGUXTBC\x8c\x8d\x8e\x96()tld\x85\x86\x87]}aesu012hjqr\x94cRb\x81\x92\x93Q";

/// Does to `bytes` what tends to hurt readers.
fn mutate(bytes: &mut Vec<u8>, donor: &[u8], rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.below(bytes.len());
    let span = 1 + rng.below(24.min(bytes.len() - at));
    match rng.below(10) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.next_u32() as u8,
        2 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][rng.below(5)],
        3 => bytes[at..at + span].fill([0, 0xFF][rng.below(2)]),
        4 => drop(bytes.drain(at..at + span)),
        5 => {
            let copy = bytes[at..at + span].to_vec();
            let to = rng.below(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        6 => {
            let from = rng.below(donor.len());
            let to = bytes.len().min(at + span);
            bytes.splice(at..to, donor[from..donor.len().min(from + span)].iter().copied());
        }
        // A pickle instruction, or a length, that was not there.
        7 => bytes.insert(at, INSTRUCTIONS[rng.below(INSTRUCTIONS.len())]),
        8 => {
            // A digit of the JSON header, or of a key.
            if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                bytes[at + digit] = b'0' + rng.below(10) as u8;
            }
        }
        _ => bytes.truncate(at),
    }
}

fn rounds(name: &str, rng: &mut Rng, until: impl Fn(usize) -> bool) -> (usize, usize) {
    let original = fixture(name);
    let donor = fixture(FILES[rng.below(FILES.len())]);
    let (mut done, mut opened) = (0, 0);
    while !until(done) {
        let mut bytes = original.clone();
        for _ in 0..1 + rng.below(6) {
            mutate(&mut bytes, &donor, rng);
        }
        opened += usize::from(read(name, bytes));
        done += 1;
    }
    (done, opened)
}

#[test]
fn damaged_files_end_in_a_value_or_an_error() {
    let seconds = std::env::var("ZOO_FUZZ_SECONDS").ok().and_then(|s| s.parse::<u64>().ok());
    // The files as they are also bound what honest ones need.
    for name in FILES {
        assert!(read(name, fixture(name)));
    }
    let start = Instant::now();
    for name in FILES {
        let seed = seconds.map_or(0, |_| std::process::id().into());
        let mut rng = Rng::new(seed, name);
        let (done, opened) = match seconds {
            None => rounds(name, &mut rng, |done| done == 3000),
            Some(seconds) => {
                let share = Duration::from_secs(seconds) / FILES.len() as u32;
                let begin = Instant::now();
                rounds(name, &mut rng, |_| begin.elapsed() > share)
            }
        };
        println!("{name}: {done} damaged files (seed {seed}), {opened} of which open; {:?}", start.elapsed());
        // Were they all refused at the first byte, nothing would be tested.
        assert!(opened > 0 && opened < done, "{opened} of {done}");
    }
}

/// Programs of well-formed instructions in no order at all: they get further than damaged ones.
#[test]
fn random_programs_end_in_a_value_or_an_error() {
    const TENSOR: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n(\
        (U\x07storagectorch\nFloatStorage\nU\x01kU\x03cpuK\x03tQK\0K\x03\x85K\x01\x85tR";
    const PIECES: &[&[u8]] = &[
        // Values.
        b"N",
        b"\x88",
        b"K\0",
        b"K\x01",
        b"K\x03",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08\0\0\0\0\0\0\0\x40",
        b"U\x01k",
        b"U\x01w",
        b"U\x05model",
        TENSOR,
        b"(U\x07storagectorch\nFloatStorage\nU\x01kU\x03cpuK\x03t",
        // Containers, the stack, the memo.
        b"(",
        b")",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"]",
        b"}",
        b"a",
        b"e",
        b"s",
        b"u",
        b"l",
        b"d",
        b"\x8f",
        b"\x90",
        b"\x91",
        b"0",
        b"1",
        b"2",
        b"q\0",
        b"q\x01",
        b"q\x02",
        b"h\0",
        b"h\x01",
        b"h\x02",
        b"\x94",
        // Names and calls.
        b"R",
        b"b",
        b"\x81",
        b"\x92",
        b"\x93",
        b"Q",
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cos\nsystem\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch\nBoolStorage\n",
        // Values in threes, as many an instruction wants them, and the way back to the state dict.
        b"h\x01h\x01h\x01",
        b"NNN",
        b"h\x01U\x01w",
        b"U\x01wNN",
        b"K\0K\x03\x85K\x01\x85",
    ];
    let programs = if std::env::var("ZOO_FUZZ_SECONDS").is_ok() { 10_000_000 } else { 30_000 };
    let mut rng = Rng::new(0, "programs");
    let mut opened = 0;
    for _ in 0..programs {
        let mut program: Vec<u8> = MAGIC.to_vec();
        // Most programs fail soon if they take what they have not made: give them something to take.
        program.extend_from_slice(b"}N}]q\0}q\x01U\x01v");
        program.extend_from_slice(TENSOR);
        program.extend_from_slice(b"q\x02sN}]}NN");
        for _ in 0..rng.below(24) {
            program.extend_from_slice(PIECES[rng.below(PIECES.len())]);
        }
        program.extend_from_slice(if rng.bernoulli(0.5) { b"h\x01." } else { b"." });
        program.extend_from_slice(b"]U\x01ka.\x03\0\0\0\0\0\0\0............");
        opened += usize::from(read("program", program));
    }
    println!("{programs} random programs, {opened} of which open");
    assert!(opened > programs / 100 && opened < programs);
}

/// Bytes that are made to take memory, not damaged by chance.
#[test]
fn memory_stays_within_a_multiple_of_the_file() {
    let pickle = |prefix: &[u8], unit: &[u8]| [MAGIC, prefix, &unit.repeat(1_000_000 / unit.len())].concat();
    let json = |prefix: &str, unit: &str, suffix: &str| {
        let header = format!("{prefix}{}{suffix}", unit.repeat(1_000_000 / unit.len()));
        [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
    };
    let storage = b"(U\x07storagectorch\nFloatStorage\nU\x01kU\x03cpuK\x01tq\0Q";
    let tensor = [storage.as_slice(), b"q\x01ctorch._utils\n_rebuild_tensor_v2\nq\0(h\x01K\0)))Ntq\x02"].concat();
    let metadata: String = (0..50_000).map(|i| format!(r#""{i:x}":"","#)).collect();
    let info = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let infos: String = (0..20_000).map(|i| format!(r#""{i:x}":{info},"#)).collect();
    let files = [
        ("values", pickle(b"", b"N")),
        ("memo", pickle(b"N", b"\x94")),
        ("duplicates", pickle(b"N", b"2")),
        ("dictionaries", pickle(b"", b"}")),
        ("marks", pickle(b"", b"(")),
        ("tuples", pickle(b")", b"\x85")),
        ("triples", pickle(b"NNN", b"\x87NN")),
        ("items", pickle(b"}", b"NNs")),
        ("appended", pickle(b"]", b"Na")),
        ("globals", pickle(b"", b"c\n\n")),
        ("storages", pickle(storage, b"h\0Q")),
        ("tensors", pickle(&tensor, b"h\0h\x02R")),
        ("big memo", pickle(b"N", b"r\xff\xff\xff\xff2")),
        ("axes", json(r#"{"w":{"shape":["#, "1,", r#"1],"dtype":"F32","data_offsets":[0,0]}}"#)),
        ("metadata", json(&format!(r#"{{"__metadata__":{{{metadata}"#), " ", "")),
        ("empty tensors", json(&format!("{{{infos}"), " ", "")),
        ("ignored", json(r#"{"w":{"x":["#, "[],", r#"[]]}}"#)),
        ("nesting", json(r#"{"w":{"x":"#, "[", "")),
        ("long name", json(r#"{""#, "w", r#"":1}"#)),
    ];
    for (name, bytes) in files {
        let len = bytes.len();
        let (peak, opened) = peak_of(|| Weights::from_bytes(name, bytes).is_ok());
        println!("{name}: {:.1} bytes a byte", peak as f64 / len as f64);
        assert!(!opened, "{name}");
        assert!(peak <= len * MEMORY_PER_BYTE + MEMORY_AT_LEAST, "{name}: {len} bytes took {peak} bytes of memory");
    }
}
