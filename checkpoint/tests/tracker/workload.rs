//! What the tracked processes do: this very test program, started again.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::sys::{self, Memory, PAGE};

/// A sequence of numbers that looks random and is the same every time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

/// Says something to the test.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "> {text}").unwrap();
    out.flush().unwrap();
}

/// Runs the workload of this name. Most go on for ever.
pub fn run(name: &str) {
    match name {
        "rewrite" => rewrite(),
        "huge" => huge(),
        "churn" => churn(),
        "fork" => fork(),
        "exec" => exec(),
        "threads" => threads(),
        "refused" => {
            sys::forbid_userfaultfd(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
            assert_eq!(sys::try_userfaultfd(), libc::ENOSYS);
            rewrite();
        }
        "killed" => {
            sys::forbid_userfaultfd(libc::SECCOMP_RET_KILL_PROCESS);
            rewrite();
        }
        "reserved" => reserved(),
        "areas" => areas(),
        "unreadable" => unreadable(),
        "blocked" => blocked(),
        "alarms" => alarms(),
        "direct" => direct(),
        "figures" => figures(),
        "short" => short(),
        "calculators" => calculators(),
        "vforks" => vforks(),
        other => panic!("no workload {other}"),
    }
}

fn fill(memory: Memory) {
    for page in 0..memory.pages {
        memory.write(page, page % 512, page as u64 + 1);
    }
}

/// Writes somewhere in the memory, for ever.
fn write_for_ever(memory: Memory, mut random: Random) -> ! {
    loop {
        for _ in 0..50 {
            let (page, place) = (random.below(memory.pages), random.below(512));
            // Now and then a page is all zeros again.
            let value = if random.below(8) == 0 { 0 } else { random.next() };
            memory.write(page, place, value);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn rewrite() {
    let memory = sys::anonymous(16384);
    fill(memory);
    say("ready");
    write_for_ever(memory, Random(11));
}

fn huge() {
    let memory = sys::anonymous(8192);
    memory.advise(0, memory.pages, libc::MADV_HUGEPAGE);
    fill(memory);
    say("ready");
    write_for_ever(memory, Random(12));
}

/// Everything that can be done to memory, in random order.
fn churn() {
    let mut random = Random(13);
    let mut areas: Vec<Memory> = (0..20).map(|_| sys::anonymous(64)).collect();
    let program = std::fs::File::open("/proc/self/exe").unwrap();
    say("ready");
    loop {
        let place = random.below(areas.len());
        let area = areas[place];
        let from = random.below(area.pages);
        let pages = 1 + random.below(area.pages - from);
        match random.below(12) {
            0 => {
                areas.swap_remove(place).unmap();
                areas.push(sys::anonymous(1 + random.below(200)));
            }
            1 => areas[place] = area.remap(1 + random.below(200)),
            2 => area.advise(from, pages, libc::MADV_DONTNEED),
            3 => area.forget_lazily(from, pages),
            4 => {
                area.protect(from, pages, libc::PROT_READ);
                area.protect(from, pages, libc::PROT_READ | libc::PROT_WRITE);
            }
            5 => {
                areas.swap_remove(place).unmap();
                let file = Some(std::os::fd::AsRawFd::as_raw_fd(&program));
                areas.push(sys::map(100, libc::PROT_READ | libc::PROT_WRITE, 0, file));
            }
            6 => {
                area.read(from, 0);
            }
            _ => {
                for page in from..from + pages.min(10).min(area.pages - from) {
                    area.write(page, random.below(512), random.next());
                }
            }
        }
        if random.below(20) == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// A parent that writes, and children that share its memory and write their own version of it; some live on.
fn fork() {
    let memory = sys::anonymous(2048);
    fill(memory);
    let mut random = Random(14);
    sys::fork(|| write_for_ever(memory, Random(15)));
    say("ready");
    loop {
        let seed = random.next();
        let child = sys::fork(|| {
            let mut random = Random(seed);
            for _ in 0..200 {
                memory.write(random.below(memory.pages), 3, random.next());
            }
            std::thread::sleep(Duration::from_millis(5));
        });
        memory.write(random.below(memory.pages), 4, random.next());
        sys::reap(child);
    }
}

/// Becomes another program after a while, at the same addresses.
fn exec() {
    if std::env::var_os("AGAIN").is_none() {
        let memory = sys::anonymous(4096);
        fill(memory);
        say("ready");
        // The test says when, and begins the program again.
        sys::read_byte(0);
        let arguments: Vec<String> = std::env::args().collect();
        let error = std::os::unix::process::CommandExt::exec(
            std::process::Command::new(&arguments[0])
                .args(&arguments[1..])
                .env("AGAIN", "1"),
        );
        panic!("{error}");
    }
    let memory = sys::anonymous(3000);
    fill(memory);
    say("again");
    write_for_ever(memory, Random(16));
}

fn threads() {
    let memory = sys::anonymous(4096);
    fill(memory);
    for seed in 1..16 {
        std::thread::spawn(move || write_for_ever(memory, Random(seed)));
    }
    // Threads that come and go, with stacks that come and go.
    std::thread::spawn(|| {
        loop {
            let _ = std::thread::spawn(|| std::thread::sleep(Duration::from_micros(300))).join();
        }
    });
    say("ready");
    write_for_ever(memory, Random(17));
}

fn reserved() {
    let memory = sys::anonymous((100 << 30) / PAGE);
    memory.advise(0, memory.pages, libc::MADV_NOHUGEPAGE);
    let step = memory.pages / 50;
    for page in (0..memory.pages).step_by(step) {
        memory.write(page, 1, page as u64 + 1);
    }
    say("ready");
    let mut random = Random(18);
    loop {
        memory.write(random.below(50) * step, random.below(512), random.next());
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn areas() {
    let memory = sys::anonymous(20_000);
    fill(memory);
    for page in (0..memory.pages).step_by(2) {
        memory.protect(page, 1, libc::PROT_READ);
    }
    say("ready");
    let mut random = Random(19);
    loop {
        memory.write(random.below(10_000) * 2 + 1, random.below(512), random.next());
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Memory that holds something which nobody may read, or write any more; locked memory; and pages of zeros.
fn unreadable() {
    let hidden = sys::anonymous(100);
    fill(hidden);
    hidden.protect(0, 100, libc::PROT_NONE);
    let constant = sys::anonymous(100);
    fill(constant);
    constant.protect(0, 100, libc::PROT_READ);
    let locked = sys::anonymous(100);
    locked.lock();
    fill(locked);
    let zeros = sys::anonymous(100);
    for page in 0..50 {
        zeros.write(page, 0, 0);
        zeros.read(50 + page, 0);
    }
    say("ready");
    write_for_ever(locked, Random(20));
}

/// Calls that block and are restarted when a thread is stopped in them, each with what it says at last.
fn blocked() {
    say("ready");
    for round in 0.. {
        let start = Instant::now();
        let result = match round % 4 {
            0 => sys::nanosleep(250),
            1 => sys::poll(250),
            2 => sys::futex(250) - libc::ETIMEDOUT,
            // The test writes to it.
            _ => sys::read_byte(0) - i32::from(b'x'),
        };
        let took = start.elapsed();
        // All of them end well, and only the last before its time.
        let fine = result == 0 && (round % 4 == 3 || took >= Duration::from_millis(250));
        say(&format!(
            "{} {result} {took:?}",
            if fine { "fine" } else { "wrong" }
        ));
    }
}

/// Signals all the time, in loops and in calls.
fn alarms() {
    sys::alarm_every(500, false);
    say("ready");
    let mut seen = 0;
    loop {
        // Without restarts every signal cuts it short.
        let result = sys::nanosleep(1000);
        if result != libc::EINTR {
            say(&format!("wrong {result}"));
        }
        let now = sys::alarms();
        if now <= seen {
            say(&format!("wrong {now} after {seen}"));
        }
        seen = now;
        if seen % 1000 == 0 {
            say("fine");
        }
    }
}

/// Reads from a disk into its memory, past all caches.
fn direct() {
    const BLOCKS: usize = 256;
    const BLOCK: usize = 16;
    let path = std::env::temp_dir().join(format!("tracker-direct-{}", std::process::id()));
    let mut content = vec![0; BLOCK * PAGE];
    let mut file = std::fs::File::create(&path).unwrap();
    for block in 0..BLOCKS {
        content.fill(u8::try_from(block % 255).unwrap() + 1);
        file.write_all(&content).unwrap();
    }
    file.sync_all().unwrap();
    let file = &sys::open_direct(&path);
    std::fs::remove_file(&path).unwrap();
    let memory = sys::anonymous(65536);
    fill(memory);
    say("ready");
    let read = |seed| -> ! {
        let mut random = Random(seed);
        loop {
            let page = random.below(memory.pages / BLOCK) * BLOCK;
            memory.read_file(page, BLOCK, file, random.below(BLOCKS) * BLOCK);
        }
    };
    std::thread::scope(|scope| {
        for seed in 1..4 {
            scope.spawn(move || read(seed));
        }
    });
}

/// Writes at random, and says how many writes there were in each half second.
fn figures() {
    let memory = sys::anonymous(524_288);
    let mut random = Random(21);
    for page in 0..memory.pages {
        for place in (0..512).step_by(64) {
            memory.write(page, place, random.next());
        }
    }
    say("ready");
    loop {
        let (start, mut count) = (Instant::now(), 0_u64);
        while start.elapsed() < Duration::from_millis(500) {
            for _ in 0..20 {
                // Some work for each write, and most of them in a small part.
                let spread = if random.below(10) == 0 { memory.pages } else { 4096 };
                let page = random.below(spread);
                let sum = (0..64).fold(0, |sum: u64, place| {
                    sum.wrapping_add(memory.read(page, place * 8))
                });
                memory.write(page, random.below(512), sum | 1);
                count += 1;
            }
        }
        say(&(count * 2).to_string());
    }
}

/// Much memory, and a short life.
fn short() {
    let memory = sys::anonymous(16384);
    fill(memory);
    say("ready");
    std::thread::sleep(Duration::from_millis(30));
}

/// Processes that calculate the same thing again and again, between system calls, and end when it comes out wrong.
fn calculators() {
    for seed in 1..=16 {
        sys::fork(|| {
            let result = || {
                let mut random = Random(seed);
                for step in 0..20_000 {
                    random.next();
                    if step % 1000 == 0 {
                        std::thread::yield_now();
                    }
                }
                random.next()
            };
            let first = result();
            while result() == first {}
        });
    }
    say("ready");
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// A process of one thread that waits for children in a way that nothing interrupts, and says when it goes on.
fn vforks() {
    sys::fork(|| {
        loop {
            sys::vfork(|| {
                sys::nanosleep(300);
            });
            say("fine");
        }
    });
    say("ready");
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}
