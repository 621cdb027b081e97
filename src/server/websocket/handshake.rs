//! The opening handshake of a WebSocket, and the hash that it needs. Pure. RFC 6455, 4.2.

use crate::server::reply::Reply;
use crate::server::request::{RequestHead, Upgrade};

/// What a server appends to the key of a client.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Returns the head of the reply that opens the WebSocket, or why it cannot be opened.
pub fn accept(head: &RequestHead<'_>) -> Result<String, Reply> {
    let Upgrade { is_requested, protocol, key, version } = &head.upgrade;
    let is_websocket = protocol.is_some_and(|protocols| {
        protocols.split(',').any(|one| one.trim().eq_ignore_ascii_case("websocket"))
    });
    if !is_requested || !is_websocket {
        return Err(refusal("this path takes only the upgrade to a WebSocket"));
    }
    if *version != Some("13") {
        return Err(refusal("the Sec-WebSocket-Version is not 13"));
    }
    let Some(key) = key.filter(|key| is_key(key)) else {
        return Err(Reply::invalid("the Sec-WebSocket-Key is not 16 bytes in base64"));
    };
    if head.content_length > 0 {
        return Err(Reply::invalid("the request for a WebSocket has a body"));
    }
    let accept = digest(format!("{key}{GUID}").as_bytes());
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nServer: opta\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    ))
}

/// Returns the SHA-1 of `bytes` in base64.
pub fn digest(bytes: &[u8]) -> String {
    base64(&sha1(bytes))
}

fn refusal(message: &str) -> Reply {
    Reply::error(426, "INVALID_REQUEST", message)
        .with("Upgrade", "websocket")
        .with("Sec-WebSocket-Version", "13")
}

/// Returns whether `key` is 16 bytes in base64.
fn is_key(key: &str) -> bool {
    let digits = key.strip_suffix("==").unwrap_or_default();
    digits.len() == 22 && digits.bytes().all(|byte| DIGITS.contains(&byte))
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Encodes in base64. RFC 4648, 4.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | usize::from(*chunk.get(at).unwrap_or(&0)));
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            let is_used = digit <= chunk.len();
            text.push(DIGITS.get(value).filter(|_| is_used).map_or('=', |byte| char::from(*byte)));
        }
    }
    text
}

/// Returns the SHA-1 of `bytes`. RFC 3174. It is broken as a signature; here it only shows that the
/// server understood the request, or that a reply has changed.
fn sha1(bytes: &[u8]) -> [u8; 20] {
    let mut padded = bytes.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((bytes.len() as u64 * 8).to_be_bytes());
    let mut hash: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let (blocks, _) = padded.as_chunks::<64>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        let mut words: Vec<u32> = words.iter().map(|word| u32::from_be_bytes(*word)).collect();
        for at in 16..80 {
            let word = |back: usize| words.get(at - back).copied().unwrap_or_default();
            let next = word(3) ^ word(8) ^ word(14) ^ word(16);
            words.push(next.rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = hash;
        for (at, word) in words.iter().enumerate() {
            let (mixed, constant) = match at {
                0..20 => (b & c | !b & d, 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let sum = a.rotate_left(5).wrapping_add(mixed).wrapping_add(e);
            let next = sum.wrapping_add(*word).wrapping_add(constant);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, value) in hash.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(value);
        }
    }
    let mut bytes = [0; 20];
    for (place, byte) in bytes.iter_mut().zip(hash.iter().flat_map(|word| word.to_be_bytes())) {
        *place = byte;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 3174, 7.3, and the lengths around a block.
    #[test]
    fn the_hash_is_sha_1() {
        for (text, hash) in [
            (String::new(), "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ("abc".to_owned(), "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (
                "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq".to_owned(),
                "84983e441c3bd26ebaae4aa1f95129e5e54670f1",
            ),
            ("a".repeat(1_000_000), "34aa973cd4c4daa4f61eeb2bdbad27316534016f"),
            ("0123456701234567".repeat(40), "dea356a2cddd90c7a7ecedc5ebb563934f460452"),
        ] {
            assert_eq!(hex(&sha1(text.as_bytes())), hash, "{} bytes", text.len());
        }
    }

    /// RFC 4648, 10.
    #[test]
    fn the_encoding_is_base64() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    fn accept_text(text: &str) -> Result<String, u16> {
        let head = crate::server::request::parse(text.as_bytes()).ok().unwrap();
        accept(&head).map_err(|reply| reply.status())
    }

    fn accept_lines(lines: &str) -> Result<String, u16> {
        accept_text(&format!("GET /v3/ws HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n"))
    }

    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    /// The example of RFC 6455, 1.3.
    #[test]
    fn the_key_is_answered() {
        let lines = format!(
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n{KEY}"
        );
        let text = accept_lines(&lines).unwrap();
        assert!(
            text.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
            "{text}"
        );
        assert!(text.starts_with("HTTP/1.1 101 ") && text.ends_with("\r\n\r\n"), "{text}");
    }

    #[test]
    fn only_a_whole_handshake_is_accepted() {
        const UPGRADE: &str = "Upgrade: websocket\r\n";
        const CONNECTION: &str = "Connection: keep-alive, upgrade\r\n";
        const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";
        let status = |lines: &[&str]| accept_lines(&lines.concat()).err();
        assert_eq!(status(&[UPGRADE, CONNECTION, VERSION, KEY]), None);
        assert_eq!(status(&["Upgrade: WebSocket\r\n", CONNECTION, VERSION, KEY]), None);
        assert_eq!(status(&["Upgrade: x, websocket\r\n", CONNECTION, VERSION, KEY]), None);
        assert_eq!(status(&[CONNECTION, VERSION, KEY]), Some(426));
        assert_eq!(status(&[UPGRADE, VERSION, KEY]), Some(426));
        assert_eq!(status(&["Upgrade: h2c\r\n", CONNECTION, VERSION, KEY]), Some(426));
        assert_eq!(status(&[UPGRADE, "Connection: close\r\n", VERSION, KEY]), Some(426));
        assert_eq!(status(&[UPGRADE, CONNECTION, KEY]), Some(426));
        for version in ["8", "12", "14", "013", "13, 8", ""] {
            let version = format!("Sec-WebSocket-Version: {version}\r\n");
            assert_eq!(status(&[UPGRADE, CONNECTION, &version, KEY]), Some(426), "{version}");
        }
        assert_eq!(status(&[UPGRADE, CONNECTION, VERSION]), Some(400));
        for key in [
            "",
            "x",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25j!Q==",
        ] {
            let key = format!("Sec-WebSocket-Key: {key}\r\n");
            assert_eq!(status(&[UPGRADE, CONNECTION, VERSION, &key]), Some(400), "{key}");
        }
        let body = "Content-Length: 1\r\n";
        assert_eq!(status(&[UPGRADE, CONNECTION, VERSION, KEY, body]), Some(400));
    }

    #[test]
    fn http_1_0_has_no_upgrade() {
        let text = format!(
            "GET /v3/ws HTTP/1.0\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\n{KEY}\r\n"
        );
        assert_eq!(accept_text(&text).err(), Some(426));
    }
}
