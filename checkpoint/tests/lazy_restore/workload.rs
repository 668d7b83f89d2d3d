//! What runs inside the container: this very test program, with a task in its environment.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;

/// Started by runc with `TRANSHIP_WORKLOAD` set; as a test it has nothing to do.
#[test]
fn workload() {
    let Ok(task) = std::env::var("TRANSHIP_WORKLOAD") else {
        return;
    };
    let megabytes: usize = std::env::var("TRANSHIP_MEGABYTES").unwrap().parse().unwrap();
    let mut memory = sys::Memory::new(megabytes << 20);
    fill(memory.words(), 0);
    fs::write("/vol/ready", "").unwrap();
    while !Path::new("/vol/go").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let result = match task.as_str() {
        "verify" => verify(memory.words(), 0).map(|()| "ok".to_owned()),
        "change" => change(memory).map(|()| "ok".to_owned()),
        "probe" => Ok(probe(memory.words())),
        "exit" => Ok("ended".to_owned()),
        other => Err(format!("no such task: {other}")),
    };
    fs::write("/vol/result.new", result.unwrap_or_else(|error| error)).unwrap();
    fs::rename("/vol/result.new", "/vol/result").unwrap();
    if task == "exit" {
        std::process::exit(0);
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Every word says where it belongs.
fn word(index: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn fill(words: &mut [u64], first: usize) {
    for (index, slot) in words.iter_mut().enumerate() {
        *slot = word(first + index);
    }
}

fn verify(words: &[u64], first: usize) -> Result<(), String> {
    for (index, found) in words.iter().enumerate() {
        if *found != word(first + index) {
            let page = index / WORDS;
            return Err(format!("page {page} of {}: {found:#x}", words.len() / WORDS));
        }
    }
    Ok(())
}

fn verify_zero(words: &[u64], what: &str) -> Result<(), String> {
    match words.iter().position(|word| *word != 0) {
        Some(index) => Err(format!("page {} of what was {what} is not zero", index / WORDS)),
        None => Ok(()),
    }
}

/// Forks, moves, gives up and unmaps parts of its memory, all while they are being filled.
fn change(memory: sys::Memory) -> Result<(), String> {
    let eighth = memory.words_len() / 8;
    let parts = memory.split(8);
    let [mut same, moved, dropped, unmapped, shrunk, written, forked, last] = parts;
    // Those that are filled last are changed first.
    let child =
        sys::fork(|| verify(last.view(), 7 * eighth).and_then(|()| verify(forked.view(), 6 * eighth)));
    let mut moved = moved.moved();
    dropped.give_up();
    let again = unmapped.unmapped_and_mapped_again();
    let shrunk = shrunk.shrunk_to_half();
    let nested = sys::fork(|| {
        let inner = sys::fork(|| verify(moved.view(), eighth));
        verify(last.view(), 7 * eighth)?;
        inner.wait()
    });
    let mut written = written;
    for page in (0..eighth / WORDS).step_by(3) {
        written.words()[page * WORDS] = !word(5 * eighth + page * WORDS);
    }
    // Ends while its memory is being filled.
    let brief = sys::fork(|| Ok(()));
    brief.wait()?;
    verify_zero(dropped.view(), "given up")?;
    verify_zero(again.view(), "unmapped")?;
    verify(moved.words(), eighth)?;
    verify(shrunk.view(), 4 * eighth)?;
    for (index, found) in written.view().iter().enumerate() {
        let expected = word(5 * eighth + index);
        let changed = index % WORDS == 0 && (index / WORDS).is_multiple_of(3);
        if *found != if changed { !expected } else { expected } {
            return Err(format!("page {} of what was written: {found:#x}", index / WORDS));
        }
    }
    verify(forked.view(), 6 * eighth)?;
    verify(last.view(), 7 * eighth)?;
    verify(same.words(), 0)?;
    child.wait()?;
    nested.wait()
}

/// Touches pages far from each other, as a program does that has just been moved, and says how long each took.
fn probe(words: &[u64]) -> String {
    let pages = words.len() / WORDS;
    let begun = Instant::now();
    let mut times: Vec<u64> = (0..400)
        .map(|step| {
            let page = (step * 7919 * 31) % pages;
            let before = Instant::now();
            assert_eq!(words[page * WORDS], word(page * WORDS));
            u64::try_from(before.elapsed().as_nanos()).unwrap()
        })
        .collect();
    let all = begun.elapsed();
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100 - 1] / 1000;
    let verified = verify(words, 0);
    format!(
        "400 touches in {all:?}: median {} us, p90 {} us, p99 {} us; all memory {verified:?} after {:?}",
        at(50),
        at(90),
        at(99),
        begun.elapsed()
    )
}

mod sys {
    #![expect(unsafe_code, reason = "the workload maps, moves and forks by hand")]

    /// Anonymous private memory.
    pub struct Memory {
        start: *mut u64,
        bytes: usize,
    }

    impl Memory {
        pub fn new(bytes: usize) -> Self {
            Self::at(std::ptr::null_mut(), bytes, 0)
        }

        fn at(place: *mut u64, bytes: usize, flags: i32) -> Self {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
            // SAFETY: new memory, or in the place of memory that this program has just unmapped.
            let start = unsafe {
                libc::mmap(
                    place.cast(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    flags,
                    -1,
                    0,
                )
            };
            assert_ne!(start, libc::MAP_FAILED);
            Self {
                start: start.cast(),
                bytes,
            }
        }

        pub fn words_len(&self) -> usize {
            self.bytes / 8
        }

        pub fn view(&self) -> &[u64] {
            // SAFETY: the memory is mapped as long as `self` is there, and readable.
            unsafe { std::slice::from_raw_parts(self.start, self.bytes / 8) }
        }

        pub fn words(&mut self) -> &mut [u64] {
            // SAFETY: as above, writable, and nobody else has it.
            unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes / 8) }
        }

        pub fn split<const N: usize>(self, parts: usize) -> [Self; N] {
            let bytes = self.bytes / parts;
            std::array::from_fn(|part| Self {
                // SAFETY: within the mapping.
                start: unsafe { self.start.add(part * bytes / 8) },
                bytes,
            })
        }

        pub fn moved(self) -> Self {
            let place = Self::new(self.bytes);
            // SAFETY: both are mappings of this length that nobody else has; the old one is gone afterwards.
            let start = unsafe {
                libc::mremap(
                    self.start.cast(),
                    self.bytes,
                    self.bytes,
                    libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                    place.start,
                )
            };
            assert_ne!(start, libc::MAP_FAILED);
            Self {
                start: start.cast(),
                bytes: self.bytes,
            }
        }

        pub fn give_up(&self) {
            // SAFETY: a mapping of this program; its content becomes zero, which any word may be.
            let result = unsafe { libc::madvise(self.start.cast(), self.bytes, libc::MADV_DONTNEED) };
            assert_eq!(result, 0);
        }

        pub fn unmapped_and_mapped_again(self) -> Self {
            // SAFETY: a mapping of this program that nobody else has.
            assert_eq!(unsafe { libc::munmap(self.start.cast(), self.bytes) }, 0);
            Self::at(self.start, self.bytes, libc::MAP_FIXED_NOREPLACE)
        }

        pub fn shrunk_to_half(self) -> Self {
            // SAFETY: a mapping of this program that nobody else has; its second half is gone afterwards.
            let start = unsafe { libc::mremap(self.start.cast(), self.bytes, self.bytes / 2, 0) };
            assert_eq!(start, self.start.cast());
            Self {
                start: self.start,
                bytes: self.bytes / 2,
            }
        }
    }

    /// A child that ends with 0 if its work has.
    pub struct Child(libc::pid_t);

    pub fn fork(work: impl FnOnce() -> Result<(), String>) -> Child {
        // SAFETY: this program has a single thread that holds no lock here; the child only reads memory, writes a file
        // and ends.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            let code = match work() {
                Ok(()) => 0,
                Err(error) => {
                    let _ = std::fs::write("/vol/child", error);
                    1
                }
            };
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(code) };
        }
        Child(pid)
    }

    impl Child {
        pub fn wait(self) -> Result<(), String> {
            let mut status = 0;
            // SAFETY: `status` is valid for writing.
            let pid = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
            match (pid == self.0, status) {
                (true, 0) => Ok(()),
                _ => Err(format!(
                    "a child ended with {status:#x}: {}",
                    std::fs::read_to_string("/vol/child").unwrap_or_default()
                )),
            }
        }
    }
}
