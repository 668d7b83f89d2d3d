//! Resident pages, read slowly and simply.
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use tranship_checkpoint::memory::{PAGE_BYTES, PageRun, ResidentPages};

use super::Pages;

pub fn resident(cgroup: &str) -> (Vec<ResidentPages>, Pages) {
    let mut lists = Vec::new();
    let mut pages = Pages::new();
    for pid in tranship_checkpoint::process_tree::pids(cgroup).unwrap() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let process: u32 = status
            .lines()
            .find_map(|l| l.strip_prefix("NSpid:"))
            .unwrap()
            .split_whitespace()
            .last()
            .unwrap()
            .parse()
            .unwrap();
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let map = File::open(format!("/proc/{pid}/pagemap")).unwrap();
        let mut runs = Vec::new();
        let zero_page = zero_page();
        for line in fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines() {
            let mut words = line.split_whitespace();
            let (start, end) = words.next().unwrap().split_once('-').unwrap();
            let (start, end) = (
                u64::from_str_radix(start, 16).unwrap(),
                u64::from_str_radix(end, 16).unwrap(),
            );
            if words.next().unwrap().ends_with('s') || line.contains("[vvar") || line.contains("[vsyscall") {
                continue;
            }
            for address in (start..end).step_by(4096) {
                let mut word = [0; 8];
                map.read_exact_at(&mut word, address / 4096 * 8).unwrap();
                let word = u64::from_ne_bytes(word);
                let there = word >> 62 != 0
                    && (word >> 61) & 1 == 0
                    && (word >> 58) & 1 == 0
                    && word & ((1 << 55) - 1) != zero_page;
                if there || line.contains("[vdso]") {
                    let mut bytes = vec![0; 4096];
                    memory.read_exact_at(&mut bytes, address).unwrap();
                    pages.insert((process, address), bytes);
                    runs.push(PageRun {
                        start: address,
                        pages: 1,
                        zero: false,
                    });
                }
            }
        }
        assert!(runs.iter().all(|run| run.bytes() == PAGE_BYTES));
        lists.push(ResidentPages { process, runs });
    }
    (lists, pages)
}

fn zero_page() -> u64 {
    let zeros = vec![0_u8; (34 << 20) + (64 << 10)];
    let index = zeros.len() - 10000;
    let place = zeros.as_ptr().addr() as u64 + index as u64;
    assert_eq!(std::hint::black_box(&zeros)[index], 0);
    let mut word = [0; 8];
    File::open("/proc/self/pagemap")
        .unwrap()
        .read_exact_at(&mut word, place / 4096 * 8)
        .unwrap();
    u64::from_ne_bytes(word) & ((1 << 55) - 1)
}
