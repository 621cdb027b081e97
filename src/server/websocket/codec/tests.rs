//! Frames: each rule of RFC 6455 at its limit and just beyond it, and mutated frames.

use super::*;

/// A frame as a client sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = Vec::new();
    write_frame(first, payload, &mut bytes);
    bytes[1] |= MASKED;
    let start = bytes.len() - payload.len();
    bytes.splice(start..start, mask);
    for (at, byte) in bytes.iter_mut().skip(start + 4).enumerate() {
        *byte ^= mask[at % 4];
    }
    bytes
}

fn decode(bytes: &[u8]) -> Result<Vec<Incoming>, Violation> {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    let mut all = Vec::new();
    while let Some(one) = decoder.next()? {
        all.push(one);
    }
    Ok(all)
}

fn code(bytes: &[u8]) -> Option<u16> {
    decode(bytes).err().map(|violation| violation.code)
}

fn text(text: &str) -> Incoming {
    Incoming::Text(text.to_owned())
}

/// The examples of RFC 6455, 5.7.
#[test]
fn the_examples_of_the_rfc_are_read_and_written() {
    let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode(&masked), Ok(vec![text("Hello")]));
    let mut out = Vec::new();
    write_text("Hello", &mut out);
    assert_eq!(out, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
    let fragments = [frame(0x01, b"Hel"), frame(0x80, b"lo")].concat();
    assert_eq!(decode(&fragments), Ok(vec![text("Hello")]));
    let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode(&pong), Ok(vec![Incoming::Pong]));
    out.clear();
    write_ping(&mut out);
    write_pong(b"Hello", &mut out);
    assert_eq!(out, [0x89, 0x00, 0x8a, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
    for (length, header) in [(256, vec![0x81, 0x7e, 1, 0]), (65_535, vec![0x81, 0x7e, 255, 255])] {
        out.clear();
        write_frame(0x81, &vec![b'x'; length], &mut out);
        assert_eq!((out.len(), &out[..4]), (length + 4, header.as_slice()));
    }
    out.clear();
    write_frame(0x82, &[0; 65_536], &mut out);
    assert_eq!(out[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
}

#[test]
fn each_length_is_read_in_its_shortest_form_only() {
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20] {
        let payload = "x".repeat(length);
        assert_eq!(decode(&frame(0x81, payload.as_bytes())), Ok(vec![text(&payload)]));
    }
    assert_eq!(code(&[0x81, 0xfe, 0, 125, 0, 0, 0, 0]), Some(1002));
    assert_eq!(code(&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]), Some(1002));
    assert_eq!(code(&[0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Some(1002));
}

#[test]
fn a_message_is_limited_by_what_its_headers_announce() {
    // Before any of the payload.
    let header = |length: u64| {
        let mut bytes = vec![0x81, 0xff];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0; 4]);
        bytes
    };
    assert_eq!(code(&header(1 << 20)), None);
    assert_eq!(code(&header((1 << 20) + 1)), Some(1009));
    assert_eq!(code(&header(u64::MAX / 2)), Some(1009));
    let half = vec![b'x'; 1 << 19];
    let whole = [frame(0x01, &half), frame(0x80, &half)].concat();
    assert_eq!(decode(&whole).unwrap().len(), 1);
    let more = [frame(0x01, &half), frame(0x00, &half), frame(0x80, b"x")].concat();
    assert_eq!(code(&more), Some(1009));
}

#[test]
fn frames_that_break_a_rule_are_refused() {
    for (what, bytes) in [
        ("not masked", vec![0x81, 0x01, b'x']),
        ("RSV1", frame(0xc1, b"x")),
        ("RSV2", frame(0xa1, b"x")),
        ("RSV3", frame(0x91, b"x")),
        ("a fragment of nothing", frame(0x80, b"x")),
        ("a first fragment of nothing", frame(0x00, b"x")),
        ("text within text", [frame(0x01, b"x"), frame(0x81, b"y")].concat()),
        ("binary within text", [frame(0x01, b"x"), frame(0x02, b"y")].concat()),
        ("a long ping", frame(0x89, &[0; 126])),
        ("a long close", frame(0x88, &[3; 126])),
        ("a fragmented ping", frame(0x09, b"")),
        ("a fragmented pong", frame(0x0a, b"")),
        ("a fragmented close", frame(0x08, b"")),
        ("a close of one byte", frame(0x88, &[3])),
    ] {
        assert_eq!(code(&bytes), Some(1002), "{what}");
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(code(&frame(0x80 | opcode, b"")), Some(1002), "opcode {opcode}");
    }
    assert_eq!(decode(&frame(0x89, &[7; 125])), Ok(vec![Incoming::Ping(vec![7; 125])]));
}

#[test]
fn control_frames_come_between_fragments() {
    let bytes = [
        frame(0x01, b"a"),
        frame(0x89, b"p"),
        frame(0x00, b"b"),
        frame(0x8a, b""),
        frame(0x80, b"c"),
        frame(0x82, b""),
        frame(0x88, &[0x03, 0xe8, b'b', b'y', b'e']),
    ]
    .concat();
    let expected = vec![
        Incoming::Ping(b"p".to_vec()),
        Incoming::Pong,
        text("abc"),
        Incoming::Binary,
        Incoming::Close(Some(1000)),
    ];
    assert_eq!(decode(&bytes), Ok(expected));
    // Byte by byte it is the same.
    let mut decoder = Decoder::default();
    let mut count = 0;
    for byte in &bytes {
        decoder.push(&[*byte]);
        count += usize::from(decoder.next().unwrap().is_some());
    }
    assert_eq!((count, decoder.is_incomplete()), (5, false));
}

#[test]
fn texts_are_utf_8_and_may_be_split_anywhere() {
    let bytes = "κόσμε😀".as_bytes();
    for at in 0..=bytes.len() {
        let both = [frame(0x01, &bytes[..at]), frame(0x80, &bytes[at..])].concat();
        assert_eq!(decode(&both), Ok(vec![text("κόσμε😀")]), "{at}");
    }
    for bad in [&b"\xff"[..], b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2\x82"] {
        assert_eq!(code(&frame(0x81, bad)), Some(1007), "{bad:?}");
    }
    assert_eq!(code(&frame(0x88, &[3, 232, 0xff])), Some(1007));
}

#[test]
fn only_status_codes_that_may_be_sent_are_taken() {
    let close = |code: u16| frame(0x88, &code.to_be_bytes());
    for good in [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 4001, 4999] {
        assert_eq!(decode(&close(good)), Ok(vec![Incoming::Close(Some(good))]));
    }
    for bad in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        assert_eq!(code(&close(bad)), Some(1002), "{bad}");
    }
    assert_eq!(decode(&frame(0x88, b"")), Ok(vec![Incoming::Close(None)]));
}

#[test]
fn a_close_frame_is_never_too_long() {
    let mut out = Vec::new();
    write_close(Some(1000), &"ä".repeat(100), &mut out);
    assert_eq!((out[0], usize::from(out[1])), (0x88, out.len() - 2));
    assert!(out.len() <= 127 && std::str::from_utf8(&out[4..]).is_ok());
    out.clear();
    write_close(None, "unused", &mut out);
    assert_eq!(out, [0x88, 0]);
}

#[test]
fn long_texts_are_fragments_that_end_where_they_say() {
    let long = "é".repeat(limits::WEBSOCKET_FRAME_BYTES_MAX);
    let mut out = Vec::new();
    write_text("first", &mut out);
    let first = out.len();
    write_text(&long, &mut out);
    write_ping(&mut out);
    let fragment = limits::WEBSOCKET_FRAME_BYTES_MAX + 4;
    assert_eq!(out.len(), first + 2 * fragment + 2);
    for (written, end) in [
        (0, 0),
        (1, first),
        (first, first),
        (first + 1, first + fragment),
        (first + fragment, first + fragment),
        (first + fragment + 1, first + 2 * fragment),
        (out.len() - 1, out.len()),
    ] {
        assert_eq!(frame_end(&out, written), end, "{written}");
    }
}

#[test]
fn nothing_is_held_between_messages() {
    let mut decoder = Decoder::default();
    decoder.push(&frame(0x81, &[b'x'; 100_000]));
    assert!(decoder.next().unwrap().is_some());
    assert_eq!((decoder.unread.capacity(), decoder.is_incomplete()), (0, false));
    decoder.push(&frame(0x01, b"x"));
    assert!(decoder.next().unwrap().is_none() && decoder.is_incomplete());
}

const ROUNDS: usize = 100_000;

/// Whatever arrives, in whatever pieces: the same messages, or the same refusal, and no panic.
#[test]
fn mutated_frames_are_read_or_refused() {
    let mut random = fastrand::Rng::with_seed(1);
    let (mut whole, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let bytes = mutation(&mut random);
        let at_once = decode(&bytes);
        let mut decoder = Decoder::default();
        let mut in_pieces = Ok(Vec::new());
        for piece in bytes.chunks(random.usize(1..=9)) {
            decoder.push(piece);
            while let Ok(all) = &mut in_pieces {
                match decoder.next() {
                    Ok(Some(one)) => all.push(one),
                    Ok(None) => break,
                    Err(violation) => in_pieces = Err(violation),
                }
            }
        }
        assert_eq!(at_once, in_pieces, "round {round}: {bytes:02x?}");
        match at_once {
            Ok(_) => whole += 1,
            Err(violation) => {
                assert!([1002, 1007, 1009].contains(&violation.code), "{violation:?}");
                refused += 1;
            }
        }
    }
    // Mutations are useful only if many are read and many are not.
    assert!(whole > ROUNDS / 10 && refused > ROUNDS / 10, "{whole} read, {refused} refused");
}

/// Some frames with one or two random changes.
fn mutation(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.usize(1..=4) {
        let payload: Vec<u8> = match random.u8(..4) {
            0 => 1000_u16.to_be_bytes().to_vec(),
            1 => "ß".repeat(random.usize(..80)).into_bytes(),
            _ => vec![b'x'; random.usize(..130)],
        };
        let first = [0x81, 0x01, 0x80, 0x00, 0x82, 0x88, 0x89, 0x8a][random.usize(..8)];
        bytes.extend(frame(first, &payload));
    }
    for _ in 0..random.usize(..=2) {
        let at = random.usize(..bytes.len());
        match random.u8(..4) {
            0 => bytes[at] ^= 1 << random.u8(..8),
            1 => bytes[at] = random.u8(..),
            2 => drop(bytes.drain(at..(at + random.usize(..8)).min(bytes.len()))),
            _ => bytes.insert(at, random.u8(..)),
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}
