//! Finding the bytes of a string that are special.

/// Passes the index of each byte that may be special to `visit` until it returns something, and
/// returns that. No bytes are special but control characters, quotes, backslashes and those above
/// `~`. It looks at eight bytes at a time.
pub fn find_special<T>(bytes: &[u8], mut visit: impl FnMut(usize) -> Option<T>) -> Option<T> {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [b'a'; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let mut start = 0;
    while start < bytes.len() {
        let word = words.get(start / last.len()).unwrap_or(&last);
        let mut candidates = candidates(u64::from_le_bytes(*word));
        while candidates != 0 {
            let found = visit(start + candidates.trailing_zeros() as usize / 8);
            if found.is_some() {
                return found;
            }
            candidates &= candidates - 1;
        }
        start += word.len();
    }
    None
}

/// Returns the highest bit of each byte of a word that may be special, and perhaps of bytes above
/// the lowest of these.
#[inline(always)]
fn candidates(word: u64) -> u64 {
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
    fn every_special_byte_is_found_wherever_it_is() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let length = random.usize(..40);
            let byte = |random: &mut fastrand::Rng| match random.u8(..20) {
                0 => random.u8(..),
                1 => *random.choice(b"\x00\x01\x1f \"!#[]\\~\x7f\x80\xff").unwrap(),
                _ => random.u8(b'a'..=b'z'),
            };
            let bytes: Vec<u8> = (0..length).map(|_| byte(&mut random)).collect();
            let is_special = |at: usize| matches!(bytes[at], ..b' ' | b'"' | b'\\' | 0x7f..);
            let mut found = Vec::new();
            let all = find_special(&bytes, |at| {
                found.extend(is_special(at).then_some(at));
                None::<()>
            });
            let expected: Vec<usize> = (0..length).filter(|at| is_special(*at)).collect();
            assert_eq!((all, &found), (None, &expected), "{bytes:?}");
            let first = find_special(&bytes, |at| is_special(at).then_some(at));
            assert_eq!(first, expected.first().copied(), "{bytes:?}");
        }
    }
}
