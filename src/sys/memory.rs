//! Memory that runs out: an allocation that fails would end the process. The program therefore
//! keeps a reserve of address space, and starts threads without what `std` cannot do without.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::check;

/// The system's allocator, which gives up the reserve before it fails.
struct Reserving;

#[global_allocator]
static ALLOCATOR: Reserving = Reserving;

/// The address space that is kept free, and its length; null if there is none.
static RESERVE: AtomicPtr<libc::c_void> = AtomicPtr::new(null_mut());
static RESERVE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Keeps this much address space free for allocations that would fail. Does nothing if there is
/// such a reserve; fails if the system has no memory to spare. It takes no memory. To be called by
/// one thread. mmap(2).
pub fn reserve(bytes: usize) -> io::Result<()> {
    if !RESERVE.load(Ordering::Acquire).is_null() {
        return Ok(());
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
    // SAFETY: a new mapping at an address that the system chooses; it is never accessed.
    let space = unsafe { libc::mmap(null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
    if space == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    RESERVE_BYTES.store(bytes, Ordering::Release);
    RESERVE.store(space, Ordering::Release);
    Ok(())
}

/// Gives the reserve back to the system. Takes no lock.
fn release() {
    let space = RESERVE.swap(null_mut(), Ordering::AcqRel);
    if !space.is_null() {
        // SAFETY: only one caller gets the address of the mapping, and nobody accesses it.
        drop(check(unsafe { libc::munmap(space, RESERVE_BYTES.load(Ordering::Acquire)) }));
    }
}

// SAFETY: every method returns what the system's allocator returned for the same arguments.
unsafe impl GlobalAlloc for Reserving {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            return block;
        }
        release();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            return block;
        }
        release();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `realloc`.
        let block = unsafe { System.realloc(old, layout, bytes) };
        if !block.is_null() {
            return block;
        }
        release();
        // SAFETY: as above; `old` is still allocated, because the first call failed.
        unsafe { System.realloc(old, layout, bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) };
    }
}

/// Makes all threads allocate from one arena. By default, glibc reserves 64 MiB of address space
/// for each of the first threads, which leaves none for others under a limit. mallopt(3).
#[cfg(target_env = "gnu")]
pub fn use_one_arena() {
    // SAFETY: mallopt takes two integers; no other thread runs yet. An error changes nothing.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Does nothing: other C libraries have one arena.
#[cfg(not(target_env = "gnu"))]
pub fn use_one_arena() {}

/// Unmaps the pages of the program's code. They stay in the system's cache, and are mapped again
/// when they are used: an idle daemon uses little of what a start needs. madvise(2).
#[cfg(target_os = "linux")]
pub fn release_code() {
    // SAFETY: the linker defines both; only their addresses are used.
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let start = (&raw const __executable_start).cast_mut();
    // SAFETY: sysconf takes a constant and touches no memory.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(1);
    let length = (&raw const etext).addr().saturating_sub(start.addr()) / page * page;
    // SAFETY: the range is the read-only beginning of the program's file; no page of it was
    // changed, so the system reads the same again. An error changes nothing.
    unsafe { libc::madvise(start.cast(), length, libc::MADV_DONTNEED) };
}

/// Does nothing.
#[cfg(not(target_os = "linux"))]
pub fn release_code() {}

/// Runs before `std` sets up the program. Where SIGSEGV and SIGBUS have no default disposition,
/// `std` reports no stack overflow, and gives no thread a signal stack, for which a failed
/// allocation would end the process. [`super::signal::restore_faults`] undoes this.
#[cfg(target_os = "linux")]
#[used]
// SAFETY: the C library calls each function in this section once, before `main`; this one calls
// only signal(2).
#[unsafe(link_section = ".init_array")]
static BEFORE_STD: extern "C" fn() = ignore_faults;

#[cfg(target_os = "linux")]
extern "C" fn ignore_faults() {
    for signal in super::signal::FAULTS {
        // SAFETY: a standard disposition runs none of our code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
