//! Mutated documents: decoding ends, without a panic, whatever a text contains.

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

use nanoserde::{DeJson, SerJson};

use super::{Raw, check, parse, text};

#[derive(Debug, DeJson, SerJson, PartialEq)]
struct Whole {
    count: u64,
    port: Option<u16>,
    offset: i64,
    ratio: f64,
    name: String,
    #[nserde(default)]
    on: bool,
    level: Option<Level>,
    list: Vec<i64>,
    part: Part,
    map: HashMap<String, Part>,
    pair: Option<(i64, String)>,
    any: Option<Raw>,
}

#[derive(Debug, DeJson, SerJson, PartialEq)]
struct Part {
    label: String,
    weight: Option<f64>,
    parts: Vec<Part>,
}

#[derive(Debug, DeJson, SerJson, PartialEq)]
enum Level {
    #[nserde(rename = "low")]
    Low,
    #[nserde(rename = "high")]
    High,
}

const DOCUMENTS: [&str; 3] = [
    r#"{"count":7,"offset":-3,"ratio":1.5E+3,"name":"a\u00e4\ud83d\ude00\n\"","on":true,
        "list":[1,2,-9223372036854775808],"part":{"label":"x","weight":null,"parts":[]},
        "map":{"k":{"label":"y","weight":0.25,"parts":[]}},"zz":[[],{"a":[null,false]}]}"#,
    r#"{"count":9223372036854775807,"port":9999,"offset":0,"ratio":-0,"name":"","level":"high",
        "list":[],"part":{"label":"Zoë","parts":[{"label":"","parts":[]}]},"map":{},
        "pair":[1,"b"],"any":{"x":[1e-7,18446744073709551615,"\\"],"y":"level"}}"#,
    r#"{"count":0,"offset":1,"ratio":1e308,"name":"\u0000\u007f\/","on":false,"list":[0],
        "part":{"label":"\t","weight":1,"parts":[{"label":"1","weight":2e0,"parts":[]}]},
        "map":{"":{"label":"","parts":[]},"b":{"label":"","parts":[]}},"any":null,"level":"low"}"#,
];

/// What mutations insert, separated by spaces.
const SPLICES: &str = "{ } [ ] , : \" \\ / + - . e E+ 0 9 null true \\u \\ud800 \\udc00 \0 \n // \
    /* \"\": [[[[ 1e400 18446744073709551615 9223372036854775808 \u{2028} \u{feff} \"q\":{},";

const SEEDS: std::ops::RangeInclusive<u64> = 1..=8;
const MUTATIONS_PER_SEED: usize = 5_000;
/// Hundreds of times what a debug build takes.
const TIME_MAX: Duration = Duration::from_secs(300);

#[test]
fn mutated_documents_neither_panic_nor_hang() {
    let (done, finished) = mpsc::channel();
    // Much smaller than any stack in use, to show that the depth is bounded.
    let small_stack = std::thread::Builder::new().stack_size(256 * 1024);
    let work = small_stack.spawn(move || {
        let decoded: usize = SEEDS.map(decoded_mutations).sum();
        done.send(decoded).unwrap();
    });
    match finished.recv_timeout(TIME_MAX) {
        // Mutations are useful only if many of them are decoded and many are not.
        Ok(decoded) => assert!((2_000..38_000).contains(&decoded), "{decoded} decoded"),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("still busy after {TIME_MAX:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => work.unwrap().join().unwrap(),
    }
}

#[test]
fn the_documents_themselves_are_decoded() {
    for document in DOCUMENTS {
        assert!(survives(document.as_bytes()), "{document}");
    }
}

fn decoded_mutations(seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut decoded = 0;
    for turn in 0..MUTATIONS_PER_SEED {
        let bytes = mutation(&mut random);
        match std::panic::catch_unwind(|| survives(&bytes)) {
            Ok(whole) => decoded += usize::from(whole),
            Err(_) => panic!("seed {seed}, turn {turn}: {}", bytes.escape_ascii()),
        }
    }
    decoded
}

/// A document with one or two random changes, which may leave it valid, or not even UTF-8.
fn mutation(random: &mut fastrand::Rng) -> Vec<u8> {
    let splices: Vec<&str> = SPLICES.split(' ').collect();
    let mut bytes = DOCUMENTS[random.usize(..DOCUMENTS.len())].as_bytes().to_vec();
    for _ in 0..random.usize(1..=2) {
        let at = random.usize(..=bytes.len());
        let end = (at + random.usize(..8)).min(bytes.len());
        match random.u8(..6) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.insert(at, random.u8(..128)),
            2 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.u8(..)),
            3 => {
                let copy = bytes[at..end].to_vec();
                let to = random.usize(..=bytes.len());
                drop(bytes.splice(to..to, copy));
            }
            4 if random.u8(..4) == 0 => bytes.truncate(at),
            _ => {
                let splice = splices[random.usize(..splices.len())].bytes();
                let to = if random.bool() { at } else { end };
                drop(bytes.splice(at..to, splice));
            }
        }
    }
    bytes
}

/// Decodes `bytes` if possible, and asserts that what was decoded is encoded as equal JSON. Returns
/// whether it was decoded.
fn survives(bytes: &[u8]) -> bool {
    if let Ok(raw) = parse::<Raw>(bytes) {
        check(raw.as_str()).unwrap();
        assert_eq!(Raw::parse(raw.as_str()), Ok(raw));
    }
    let Ok(whole) = parse::<Whole>(bytes) else {
        return false;
    };
    let encoded = text(&whole);
    check(&encoded).unwrap();
    assert_eq!(parse(encoded.as_bytes()), Ok(whole));
    true
}
