//! The processor's instruction for CRC-32C.

/// Continues a checksum with `words`; `None` if this processor has no instruction that opta uses.
#[cfg(target_arch = "x86_64")]
pub fn crc32c(crc: u32, words: &[[u8; 8]]) -> Option<u32> {
    let has_instruction = std::arch::is_x86_feature_detected!("sse4.2");
    // SAFETY: the processor has it.
    has_instruction.then(|| unsafe { by_instruction(crc, words) })
}

/// Continues a checksum with `words`; `None` if this processor has no instruction that opta uses.
#[cfg(target_arch = "aarch64")]
pub fn crc32c(crc: u32, words: &[[u8; 8]]) -> Option<u32> {
    let has_instruction = std::arch::is_aarch64_feature_detected!("crc");
    // SAFETY: the processor has it.
    has_instruction.then(|| unsafe { by_instruction(crc, words) })
}

/// Returns `None`: opta knows no instruction of other processors.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn crc32c(_crc: u32, _words: &[[u8; 8]]) -> Option<u32> {
    None
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
#[expect(clippy::cast_possible_truncation, reason = "the upper half of the result is zero")]
fn by_instruction(crc: u32, words: &[[u8; 8]]) -> u32 {
    let mut crc = u64::from(crc);
    for word in words {
        crc = std::arch::x86_64::_mm_crc32_u64(crc, u64::from_le_bytes(*word));
    }
    crc as u32
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "crc")]
fn by_instruction(mut crc: u32, words: &[[u8; 8]]) -> u32 {
    for word in words {
        crc = std::arch::aarch64::__crc32cd(crc, u64::from_le_bytes(*word));
    }
    crc
}
