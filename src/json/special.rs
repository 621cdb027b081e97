//! Finding the bytes of a string that are special.

/// Returns the index of the first byte that `is_special`, which no others may be than control
/// characters, quotes, backslashes and bytes above `~`. It looks at eight bytes at a time.
pub fn find_special(bytes: &[u8], is_special: impl Fn(u8) -> bool) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let mut suspects = suspects(u64::from_le_bytes(*word));
        while suspects != 0 {
            let at = suspects.trailing_zeros() as usize / 8;
            if word.get(at).is_some_and(|byte| is_special(*byte)) {
                return Some(index * 8 + at);
            }
            suspects &= suspects - 1;
        }
    }
    let at = rest.iter().position(|byte| is_special(*byte))?;
    Some(bytes.len() - rest.len() + at)
}

/// Returns the highest bit of each byte of a word that may be special, and perhaps of bytes above
/// the lowest of these.
fn suspects(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // A byte that is smaller than the limit borrows, so that its highest bit changes.
    let below = |word: u64, limit: u8| word.wrapping_sub(EACH * u64::from(limit)) & !word;
    let equal = |byte: u8| below(word ^ (EACH * u64::from(byte)), 1);
    let above = word | word.wrapping_add(EACH);
    (below(word, b' ') | equal(b'"') | equal(b'\\') | above) & (EACH << 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_special_byte_is_found_wherever_it_is() {
        let is_special = |byte: u8| matches!(byte, ..b' ' | b'"' | b'\\' | 0x7f..);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let length = random.usize(..40);
            let byte = |random: &mut fastrand::Rng| match random.u8(..20) {
                0 => random.u8(..),
                1 => *random.choice(b"\x00\x01\x1f \"!#[]\\~\x7f\x80\xff").unwrap(),
                _ => random.u8(b'a'..=b'z'),
            };
            let bytes: Vec<u8> = (0..length).map(|_| byte(&mut random)).collect();
            let expected = bytes.iter().position(|byte| is_special(*byte));
            assert_eq!(find_special(&bytes, is_special), expected, "{bytes:?}");
            let is_quote = |byte: u8| byte == b'"';
            let expected = bytes.iter().position(|byte| is_quote(*byte));
            assert_eq!(find_special(&bytes, is_quote), expected, "{bytes:?}");
        }
    }
}
