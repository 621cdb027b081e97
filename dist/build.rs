//! Packs the relocations of the static program: a tenth of the file, which each start would read.
//!
//! Only where the C library of the Rust target can unpack them: musl 1.2.4, of which Rust 1.93 is
//! the first release. Elsewhere the program is as large as without this.

#![expect(clippy::disallowed_methods, reason = "cargo passes its settings in the environment")]

use std::env;
use std::process::Command;

const FIRST_RELEASE: u32 = 93;

fn main() {
    println!("cargo::rerun-if-changed=dist/build.rs");
    let is = |name, value| env::var(name).is_ok_and(|found| found == value);
    if is("CARGO_CFG_TARGET_ENV", "musl")
        && is("CARGO_CFG_TARGET_ARCH", "x86_64")
        && release() >= Some(FIRST_RELEASE)
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Returns N if the compiler is Rust 1.N.
fn release() -> Option<u32> {
    let output = Command::new(env::var_os("RUSTC")?).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}
