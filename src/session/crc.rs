//! CRC-32C (Castagnoli), the checksum behind each record of a journal.
//!
//! Polynomial 0x1EDC6F41, reflected, as in RFC 3720 (iSCSI), B.4. Eight bytes a step from tables
//! that the compiler makes: a journal is checked as fast as it is read.

const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLES: [[u32; 256]; 8] = tables();

#[expect(
    clippy::indexing_slicing,
    reason = "runs in the compiler, which would stop at a bad index"
)]
#[expect(clippy::cast_possible_truncation, reason = "the index is below 256")]
const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0_u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The checksum of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let Ok(eight) = <[u8; 8]>::try_from(chunk) else {
            continue;
        };
        let word = u64::from_le_bytes(eight) ^ u64::from(crc);
        let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
        crc = at(7, a) ^ at(6, b) ^ at(5, c) ^ at(4, d) ^ at(3, e) ^ at(2, f) ^ at(1, g) ^ at(0, h);
    }
    for byte in chunks.remainder() {
        let [low, ..] = crc.to_le_bytes();
        crc = (crc >> 8) ^ at(0, low ^ byte);
    }
    !crc
}

#[expect(clippy::indexing_slicing, reason = "eight tables, named by number; a byte is below 256")]
fn at(table: usize, byte: u8) -> u32 {
    TABLES[table][usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    /// The examples of RFC 3720, B.4, and the usual check value.
    #[test]
    fn it_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn every_flipped_bit_shows() {
        let text = b"{\"v\":\"3\",\"event\":\"turn.token\"}".to_vec();
        let right = crc32c(&text);
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(crc32c(&flipped), right, "bit {bit}");
        }
    }
}
