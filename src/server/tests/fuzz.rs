//! Thousands of mutated requests.

use super::*;

const ROUNDS: usize = 20_000;

#[test]
fn mutated_requests_leak_nothing() {
    if !is_alone("fuzz::mutated_requests_leak_nothing", 256) {
        return;
    }
    let seed = fastrand::u64(..);
    // Printed if the test fails.
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let daemon = Daemon::start();
    let seeds = [
        HEALTH.to_owned(),
        daemon.request("GET", "/v3/metrics", ""),
        daemon.request("POST", "/v3/shutdown", r#"{"ifIdle":true}"#),
        HEALTH.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"),
        HEALTH.replace("\r\n\r\n", "\r\nOrigin: http://localhost:1\r\nConnection: close\r\n\r\n"),
        HEALTH.repeat(3),
    ];
    let before = Resources::count();
    for round in 0..ROUNDS {
        let request = mutated(&seeds[random.usize(..seeds.len())], &mut random);
        let all = exchange(&daemon, &request);
        let sound = all.is_empty() || all.starts_with(b"HTTP/1.1 ");
        assert!(sound, "round {round}, seed {seed}: {:?}", request.escape_ascii().to_string());
    }
    before.wait_until_released();
    assert!(daemon.is_healthy());
}

/// Sends `request` and nothing more; returns everything that the server sends.
fn exchange(daemon: &Daemon, request: &[u8]) -> Vec<u8> {
    let mut client = daemon.connect();
    let mut all = Vec::new();
    // Both may fail: the server may close the connection, but must not keep it open.
    drop(client.stream.write_all(request));
    drop(client.stream.shutdown(Shutdown::Write));
    if let Err(error) = client.stream.read_to_end(&mut all) {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    all
}

fn mutated(seed: &str, random: &mut fastrand::Rng) -> Vec<u8> {
    const ODDITIES: [&[u8]; 16] = [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b"\xff\xfe",
        b"%00",
        b"/../",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: evil.com\r\n",
        b"HTTP/2.0",
        b"token=",
    ];
    let mut bytes = seed.as_bytes().to_vec();
    for _ in 0..random.usize(1..4) {
        let at = random.usize(..=bytes.len());
        let rest = bytes.len() - at;
        match random.u8(..6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + random.usize(..=rest.min(8)))),
            2 => drop(bytes.splice(at..at, random.choice(&ODDITIES).unwrap().iter().copied())),
            3 if rest > 0 => bytes[at] ^= 1 << random.u8(..8),
            4 => bytes.extend_from_within(at..),
            _ => bytes.insert(at, random.u8(..)),
        }
    }
    bytes
}
