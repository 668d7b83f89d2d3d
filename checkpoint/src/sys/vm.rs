//! Reads the memory of another process without stopping it, many pieces in one call.
#![expect(
    unsafe_code,
    reason = "process_vm_readv has no safe wrapper that takes another process's addresses"
)]

use std::io;
use std::ops::Range;

/// The most pieces of the other process that the kernel takes in one call (`IOV_MAX`).
const PIECES: usize = 1024;
const PAGE: usize = 4096;

/// Reads the `pieces` of the process `pid` one after the other into `into`, whose length must be the sum of theirs.
/// Pieces are whole pages, by their addresses.
///
/// A page that cannot be read (it is not mapped, or has no read permission) is left as it was in `into`, and where it
/// is in `into` is added to `unreadable`, in ascending order. `ESRCH` means that the process is gone. The caller makes
/// sure that `pid` still is who it takes it for.
pub fn read(
    pid: i32,
    pieces: &[Range<u64>],
    into: &mut [u8],
    unreadable: &mut Vec<Range<usize>>,
) -> io::Result<()> {
    let mut remote = Vec::with_capacity(pieces.len().min(PIECES));
    read_with(pid, pieces, into, unreadable, &mut remote)
}

fn read_with(
    pid: i32,
    pieces: &[Range<u64>],
    into: &mut [u8],
    unreadable: &mut Vec<Range<usize>>,
    remote: &mut Vec<libc::iovec>,
) -> io::Result<()> {
    let mut place = 0;
    let (mut index, mut within) = (0, 0);
    while index < pieces.len() {
        remote.clear();
        for (number, piece) in pieces[index..].iter().take(PIECES).enumerate() {
            let skip = if number == 0 { within } else { 0 };
            remote.push(remote_piece(piece, skip)?);
        }
        let want: usize = remote.iter().map(|piece| piece.iov_len).sum();
        let Some(room) = into.get_mut(place..place + want) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut done = read_once(pid, remote, room)?;
        if done < want {
            // Whole pages: the part of a page that was read before it went away is worth nothing.
            done -= done % PAGE;
            unreadable.push(place + done..place + done + PAGE);
            done += PAGE;
        }
        place += done;
        (index, within) = advance(pieces, index, within, done);
    }
    Ok(())
}

fn remote_piece(piece: &Range<u64>, skip: usize) -> io::Result<libc::iovec> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let start = usize::try_from(piece.start).map_err(invalid)?;
    let bytes = usize::try_from(piece.end.saturating_sub(piece.start)).map_err(invalid)?;
    if bytes == 0 || bytes % PAGE != 0 || start % PAGE != 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(libc::iovec {
        iov_base: std::ptr::without_provenance_mut(start + skip),
        iov_len: bytes - skip,
    })
}

/// Where the piece is that holds the byte `done` bytes behind `within` of piece `index`.
fn advance(pieces: &[Range<u64>], mut index: usize, mut within: usize, mut done: usize) -> (usize, usize) {
    while let Some(piece) = pieces.get(index) {
        let left = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX) - within;
        if done < left {
            return (index, within + done);
        }
        done -= left;
        within = 0;
        index += 1;
    }
    (index, 0)
}

/// Bytes read before the first one that cannot be.
fn read_once(pid: i32, remote: &[libc::iovec], into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    // SAFETY: `local` describes exactly the exclusively borrowed `into`; the remote pieces are addresses in the other
    // process, which the kernel checks and only reads; both counts are right and within IOV_MAX.
    let read = unsafe {
        libc::process_vm_readv(
            pid,
            &raw const local,
            1,
            remote.as_ptr(),
            remote.len() as libc::c_ulong,
            0,
        )
    };
    match usize::try_from(read) {
        Ok(read) => Ok(read),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{PAGE, advance, read};
    use proptest::prelude::*;
    use std::slice;

    fn own_pid() -> i32 {
        std::process::id().cast_signed()
    }

    /// Memory of whole pages, each filled with its number, and the address of the first.
    fn memory(pages: usize) -> (Vec<u8>, u64) {
        let mut memory = vec![0_u8; (pages + 1) * PAGE];
        let address = memory.as_ptr().expose_provenance().next_multiple_of(PAGE);
        let skip = address - memory.as_ptr().expose_provenance();
        for (number, page) in memory[skip..].chunks_exact_mut(PAGE).take(pages).enumerate() {
            page.fill(u8::try_from(number % 251).unwrap());
        }
        (memory, address as u64)
    }

    #[test]
    fn more_pieces_than_one_call_takes_arrive_in_order() {
        let (_memory, address) = memory(5000);
        // Every other page, backwards.
        let pieces: Vec<_> = (0..2500_u64)
            .rev()
            .map(|number| address + 2 * number * PAGE as u64)
            .map(|start| start..start + PAGE as u64)
            .collect();
        let mut into = vec![255_u8; 2500 * PAGE];
        let mut unreadable = Vec::new();
        read(own_pid(), &pieces, &mut into, &mut unreadable).unwrap();
        assert!(unreadable.is_empty());
        for (place, page) in into.chunks_exact(PAGE).enumerate() {
            let number = (2499 - place) * 2;
            assert!(
                page.iter().all(|byte| usize::from(*byte) == number % 251),
                "{place}"
            );
        }
    }

    #[test]
    fn pages_that_cannot_be_read_are_named_and_the_rest_is_read() {
        let (_memory, address) = memory(4);
        let page = PAGE as u64;
        // The first pages of an address space are never mapped.
        let pieces = [
            0..2 * page,
            address..address + 2 * page,
            0..page,
            address + 3 * page..address + 4 * page,
        ];
        let mut into = vec![255_u8; 6 * PAGE];
        let mut unreadable = Vec::new();
        read(own_pid(), &pieces, &mut into, &mut unreadable).unwrap();
        assert_eq!(unreadable, [0..PAGE, PAGE..2 * PAGE, 4 * PAGE..5 * PAGE]);
        let first = |place: usize| into[place * PAGE];
        assert_eq!([0, 1, 2, 3, 4, 5].map(first), [255, 255, 0, 1, 255, 3]);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id().cast_signed();
        child.wait().unwrap();
        let refused = read(pid, slice::from_ref(&(0..4096)), &mut [0; 4096], &mut Vec::new());
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_buffer_of_the_wrong_size_and_half_a_page_are_refused() {
        let (_memory, address) = memory(2);
        for (end, room) in [(8192, 4096), (100, 100), (0, 0)] {
            let piece = address..address + end;
            assert!(
                read(
                    own_pid(),
                    slice::from_ref(&piece),
                    &mut vec![0; room],
                    &mut Vec::new()
                )
                .is_err()
            );
        }
    }

    proptest! {
        #[test]
        fn advancing_in_steps_arrives_where_one_step_does(
            pages in prop::collection::vec(1_u64..5, 1..20),
            steps in prop::collection::vec(1_usize..4, 1..60),
        ) {
            let pieces: Vec<_> = pages.iter().map(|pages| 0..pages * PAGE as u64).collect();
            let mut at = (0, 0);
            let mut total = 0;
            for step in steps {
                at = advance(&pieces, at.0, at.1, step * PAGE);
                total += step * PAGE;
                if at.0 < pieces.len() {
                    prop_assert_eq!(at, advance(&pieces, 0, 0, total));
                }
            }
        }
    }
}
