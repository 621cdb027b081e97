//! Damaged journals: every whole record is read once and in order, nothing is deleted, and
//! appending continues without a gap.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::limits;
use crate::session::journal::{Durability, Journal};
use crate::session::reader::{FILE_NAME, JournalReport};
use crate::session::record::Record;

use super::{Scratch, append, id, put, record, seen, token};

/// Records with payloads of these sizes, and where each ends, after a 0.
fn recorded(sizes: &[usize]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = Vec::new();
    let mut ends = vec![0];
    for (seq, size) in (1..).zip(sizes) {
        bytes.extend(record(seq, *size));
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn open(directory: &Path) -> (Journal, JournalReport) {
    Journal::open(directory, &id("s"), "daemon_y").unwrap()
}

/// Opens the journal in `directory`, appends an event and opens it again. Returns the first report
/// and the events that were read before and after.
fn opened_twice(directory: &Path) -> (JournalReport, Vec<u64>, Vec<u64>) {
    let (mut journal, report) = open(directory);
    let before = seen(&journal, 0, 7);
    let seq = append(&mut journal);
    assert_eq!(seq, before.last().map_or(1, |last| last + 1));
    let (journal, again) = open(directory);
    assert_eq!((again.damaged, again.torn_bytes), (report.damaged, 0));
    assert_eq!(journal.state().seq, seq);
    (report, before, seen(&journal, 0, 3))
}

fn torn_files(directory: &Path) -> usize {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().starts_with("journal.torn-")).count()
}

#[test]
fn a_journal_cut_at_any_byte_keeps_its_whole_records_and_can_be_appended_to() {
    let (bytes, ends) = recorded(&[0, 40, 3, 0, 17]);
    let scratch = Scratch::new();
    for length in 0..=bytes.len() {
        let directory = scratch.session(&format!("cut{length}"), &bytes[..length]);
        let whole = ends.iter().rposition(|end| *end <= length).unwrap();
        let (report, before, after) = opened_twice(&directory);
        let torn = (length - ends[whole]) as u64;
        assert_eq!(
            report,
            JournalReport {
                records: whole as u64,
                damaged: 0,
                torn_bytes: torn,
                valid_bytes: ends[whole] as u64,
                ..JournalReport::default()
            }
        );
        assert_eq!(before, (1..=whole as u64).collect::<Vec<_>>(), "cut at {length}");
        assert_eq!(after, (1..=whole as u64 + 1).collect::<Vec<_>>(), "cut at {length}");
        assert!(fs::read(directory.join(FILE_NAME)).unwrap().starts_with(&bytes[..ends[whole]]));
        if torn > 0 {
            let copy = fs::read(directory.join("journal.torn-1")).unwrap();
            assert_eq!(copy, bytes[ends[whole]..length], "cut at {length}");
        }
        assert_eq!(torn_files(&directory), usize::from(torn > 0));
    }
}

/// Some file systems leave zeros up to the length that the file should have had.
#[test]
fn zeros_and_garbage_after_the_last_record_are_copied_and_cut_off() {
    let (bytes, _) = recorded(&[5, 5]);
    let scratch = Scratch::new();
    let tails: [&[u8]; 6] =
        [&[0; 1], &[0; 5000], b"\n", b"\n\n\0\n", b"{\"v\":\"3\"}\n", b"\xff\xfe\r\n{\n"];
    for (number, tail) in tails.iter().enumerate() {
        let directory = scratch.session(&format!("tail{number}"), &[&bytes, *tail].concat());
        put(&directory.join("journal.torn-1"), b"an earlier tail");
        let (report, before, after) = opened_twice(&directory);
        assert_eq!((report.records, report.torn_bytes), (2, tail.len() as u64));
        assert_eq!((before, after), (vec![1, 2], vec![1, 2, 3]));
        assert_eq!(fs::read(directory.join("journal.torn-1")).unwrap(), b"an earlier tail");
        assert_eq!(fs::read(directory.join("journal.torn-2")).unwrap(), *tail);
    }
}

#[test]
fn a_flipped_bit_damages_its_own_record_only() {
    let (bytes, ends) = recorded(&[2, 30, 0, 9]);
    let scratch = Scratch::new();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let directory = scratch.session("flipped", &damaged);
        let hit = ends.iter().rposition(|end| *end <= at).unwrap() as u64 + 1;
        // Without its line end, a record takes the next one with it.
        let joined = ends.contains(&(at + 1));
        let lost = |seq: &u64| *seq == hit || joined && *seq == hit + 1;
        let expected: Vec<u64> = (1..=4).filter(|seq| !lost(seq)).collect();
        let (report, before, after) = opened_twice(&directory);
        assert_eq!(before, expected, "byte {at}");
        let next = before.last().unwrap() + 1;
        assert_eq!(after, [expected, vec![next]].concat(), "byte {at}");
        let at_the_end = report.torn_bytes > 0;
        assert_eq!(at_the_end, hit == 4 || joined && hit == 3, "byte {at}");
        // Two only if the flip made a line end.
        let damaged_lines = if damaged[at] == b'\n' { 2 } else { 1 };
        assert_eq!(report.damaged, if at_the_end { 0 } else { damaged_lines }, "byte {at}");
        // A line with a line end was not torn.
        let torn_end = at + 1 == bytes.len();
        let lost = if torn_end { 0 } else { damaged_lines };
        assert_eq!(report.lost(), lost, "byte {at}");
        assert_eq!(report.incomplete_bytes() > 0, torn_end, "byte {at}");
        fs::remove_dir_all(directory).unwrap();
    }
}

#[test]
fn random_damage_loses_only_the_records_that_it_touches() {
    let sizes: Vec<usize> = (0..300).map(|number| number * 37 % 900).collect();
    let (bytes, ends) = recorded(&sizes);
    let scratch = Scratch::new();
    for _ in 0..30 {
        let at = fastrand::usize(..bytes.len());
        let length = fastrand::usize(1..3000).min(bytes.len() - at);
        let mut damaged = bytes.clone();
        damaged[at..at + length].fill_with(|| fastrand::u8(..));
        let directory = scratch.session("damaged", &damaged);
        let (journal, _) = open(&directory);
        let found = seen(&journal, 0, 1000);
        let first_hit = ends.iter().rposition(|end| *end <= at).unwrap() as u64 + 1;
        let last_hit = ends.iter().position(|end| *end >= at + length).unwrap() as u64;
        // One more if the last line end was overwritten.
        for seq in (1..first_hit).chain(last_hit + 2..=300) {
            assert!(found.binary_search(&seq).is_ok(), "{at}+{length} lost {seq}");
        }
        assert!(found.is_sorted_by(|left, right| left < right));
        fs::remove_dir_all(directory).unwrap();
    }
}

/// As left by a program that appends to a torn tail, or writes the same batch again.
#[test]
fn joined_and_repeated_records_count_as_damaged_and_are_never_read_twice() {
    let scratch = Scratch::new();
    let two = record(2, 1);
    let torn = &two[..two.len() - 1];
    let joined = [&record(1, 1), torn, &record(3, 1)[..], &record(4, 1)].concat();
    let directory = scratch.session("joined", &joined);
    let (report, before, _) = opened_twice(&directory);
    assert_eq!((report.damaged, before), (1, vec![1, 4]));

    let order = [1, 2, 3, 2, 3, 4, 1, 5, 5, 6];
    let bytes: Vec<u8> = order.iter().flat_map(|seq| record(*seq, 3)).collect();
    let directory = scratch.session("repeated", &bytes);
    let (report, before, after) = opened_twice(&directory);
    assert_eq!(report.damaged, 4);
    assert_eq!(before, [1, 2, 3, 4, 5, 6]);
    assert_eq!(after, [1, 2, 3, 4, 5, 6, 7]);
    let (journal, _) = open(&directory);
    for after in 0..=7 {
        for most in 1..=8 {
            assert_eq!(seen(&journal, after, most), (after + 1..=7).collect::<Vec<_>>());
        }
    }
    let mut all = Vec::new();
    journal.reader().all(|record| all.push(record.seq)).unwrap();
    assert_eq!(all, [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_record_with_the_highest_number_counts_as_damaged() {
    let scratch = Scratch::new();
    let bytes = [record(1, 1), record(u64::MAX, 1), record(2, 1)].concat();
    let directory = scratch.session("highest", &bytes);
    let (report, before, after) = opened_twice(&directory);
    assert_eq!(report.damaged, 1);
    assert_eq!((before, after), (vec![1, 2], vec![1, 2, 3]));
}

#[test]
fn lines_longer_than_any_buffer_are_read() {
    let sizes = [10, 3 << 20, 10, 129 * 1024, 128 * 1024, 10];
    let (mut bytes, _) = recorded(&sizes);
    let directory = Scratch::new();
    bytes.extend(vec![b'x'; 2 << 20]);
    let directory = directory.session("long", &bytes);
    let (report, before, after) = opened_twice(&directory);
    assert_eq!(report.torn_bytes, 2 << 20);
    assert_eq!((before, after), ((1..=6).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>()));
}

#[test]
fn the_index_finds_what_a_full_scan_finds() {
    let sizes: Vec<usize> = (0..1500).map(|_| fastrand::usize(0..600)).collect();
    let (bytes, _) = recorded(&sizes);
    assert!(bytes.len() as u64 > 5 * limits::INDEX_EVERY_BYTES);
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let records: Vec<Record<'_>> = lines.iter().filter_map(|line| Record::read(line)).collect();
    let scratch = Scratch::new();
    let directory = scratch.session("indexed", &bytes);
    let (journal, _) = open(&directory);
    let mut reader = journal.reader();
    let afters = [0, 1, 1498, 1499, 1500, 1501, u64::MAX - 1, u64::MAX];
    for after in afters.into_iter().chain((0..300).map(|_| fastrand::u64(0..1500))) {
        let most = fastrand::usize(1..100);
        let batch = reader.after(after, most, limits::EVENTS_BYTES_MAX).unwrap();
        let expected = records.iter().filter(|record| record.seq > after).take(most);
        let mut count = 0;
        for (event, record) in batch.iter().zip(expected.clone()) {
            assert_eq!((event.seq, &event.text), (record.seq, &record.envelope("s")));
            count += 1;
        }
        assert_eq!((count, batch.len()), (expected.count(), count), "after {after}");
    }
    assert!(reader.after(0, 0, limits::EVENTS_BYTES_MAX).unwrap().is_empty());
}

#[test]
fn a_batch_is_bounded_in_bytes_but_never_empty() {
    let (bytes, _) = recorded(&[limits::EVENTS_BYTES_MAX + 5, 10, 10, limits::EVENTS_BYTES_MAX]);
    let scratch = Scratch::new();
    let directory = scratch.session("big", &bytes);
    let (journal, _) = open(&directory);
    let mut reader = journal.reader();
    assert_eq!(reader.after(0, 9, limits::EVENTS_BYTES_MAX).unwrap().len(), 1);
    assert_eq!(reader.after(1, 9, limits::EVENTS_BYTES_MAX).unwrap().len(), 3);
    assert_eq!(seen(&journal, 0, 9), [1, 2, 3, 4]);
}

#[test]
fn a_concurrent_reader_sees_every_event_once() {
    const EVENTS: u64 = 300;
    let scratch = Scratch::new();
    let directory = scratch.session("live", b"");
    let (mut journal, _) = open(&directory);
    let written = AtomicBool::new(false);
    thread::scope(|scope| {
        for most in [1, 10, 1000] {
            let (mut reader, written) = (journal.reader(), &written);
            scope.spawn(move || {
                let mut after = 0;
                loop {
                    let finished = written.load(Ordering::SeqCst);
                    let batch = reader.after(after, most, limits::EVENTS_BYTES_MAX).unwrap();
                    for event in &batch {
                        assert_eq!(event.seq, after + 1);
                        after = event.seq;
                    }
                    if finished && batch.is_empty() {
                        return assert_eq!(after, EVENTS);
                    }
                }
            });
        }
        for _ in 0..EVENTS {
            append(&mut journal);
            if fastrand::u8(..) < 3 {
                journal.close_file();
            }
        }
        written.store(true, Ordering::SeqCst);
    });
}

#[test]
fn appends_fail_while_the_file_cannot_be_opened() {
    let (bytes, _) = recorded(&[5, 5]);
    let scratch = Scratch::new();
    let directory = scratch.session("gone", &bytes);
    let (mut journal, _) = open(&directory);
    journal.close_file();
    let path = directory.join(FILE_NAME);
    fs::rename(&path, directory.join("away")).unwrap();
    assert!(journal.append(&[token("y")], Durability::Synced).is_err());
    fs::rename(directory.join("away"), &path).unwrap();
    assert_eq!((journal.state().seq, seen(&journal, 0, 9)), (2, vec![1, 2]));
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(append(&mut journal), 3);
}

#[test]
fn a_journal_with_the_line_ends_of_another_system_is_read_and_continued() {
    let scratch = Scratch::new();
    let (bytes, _) = recorded(&[10, 70_000, 10]);
    let text = String::from_utf8(bytes).unwrap().replace('\n', "\r\n");
    let directory = scratch.session("s", text.as_bytes());
    let (report, before, after) = opened_twice(&directory);
    assert_eq!((report.records, report.damaged, report.torn_bytes), (3, 0, 0));
    assert_eq!((before, after), (vec![1, 2, 3], vec![1, 2, 3, 4]));
}

#[test]
fn a_number_that_clients_cannot_read_is_damage() {
    let scratch = Scratch::new();
    for number in [limits::SEQ_MAX + 1, u64::MAX - 1, u64::MAX] {
        let bytes = [record(1, 10), record(number, 10), record(2, 10)].concat();
        let directory = scratch.session("s", &bytes);
        let (journal, report) = open(&directory);
        assert_eq!((report.records, report.damaged, journal.state().seq), (2, 1, 2), "{number}");
    }
}
