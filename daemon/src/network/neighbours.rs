//! The neighbours a container knows, carried along: the first packet at its new host then needs no question that could get
//! lost. They are told as old news: good for a packet, and asked again soon after.

use std::net::Ipv4Addr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::arrivals::read;
use super::error::NetworkError;
use super::inside::INNER_LINK;
use super::mac::MacAddr;

/// Most neighbours that are carried along.
const MOST: usize = 1024;

/// Longest file of them: an entry takes less than 64 bytes.
const MOST_BYTES: usize = 64 * MOST;

/// `ATF_COM` of linux/if_arp.h: the hardware address is known.
const COMPLETE: u32 = 2;

/// A neighbour on the container's own link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Where that is.
    pub mac: MacAddr,
}

/// The neighbours that the process `pid` sees on its container's interface.
///
/// # Errors
/// It is gone, or the kernel says so.
pub fn neighbours_of(pid: i32) -> Result<Vec<Neighbour>, NetworkError> {
    let path = Path::new("/proc").join(pid.to_string()).join("net/arp");
    let table = std::fs::read_to_string(&path).map_err(|source| NetworkError::File {
        what: "read",
        path,
        source,
    })?;
    Ok(table.lines().skip(1).filter_map(entry).take(MOST).collect())
}

/// Writes neighbours to a file.
///
/// # Errors
/// It cannot be written.
pub fn save_neighbours(path: &Path, neighbours: &[Neighbour]) -> Result<(), NetworkError> {
    let written = serde_json::to_vec(neighbours)
        .map_err(std::io::Error::from)
        .and_then(|bytes| std::fs::write(path, bytes));
    written.map_err(|source| NetworkError::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

/// Reads a file that another host has written; without one there are none.
///
/// # Errors
/// It is longer or says more than it may, or cannot be read.
pub fn load_neighbours(path: &Path) -> Result<Vec<Neighbour>, NetworkError> {
    let bytes = read(path, MOST_BYTES)?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    parse(&bytes).map_err(|why| NetworkError::File {
        what: "read the container's neighbours from",
        path: path.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, why),
    })
}

fn parse(bytes: &[u8]) -> Result<Vec<Neighbour>, Box<dyn std::error::Error + Send + Sync>> {
    let neighbours: Vec<Neighbour> = serde_json::from_slice(bytes)?;
    if neighbours.len() > MOST {
        return Err("it names too many".into());
    }
    Ok(neighbours)
}

/// A line of `/proc/PID/net/arp`: address, type, flags, hardware address, mask, link.
fn entry(line: &str) -> Option<Neighbour> {
    let mut words = line.split_whitespace();
    let ip = words.next()?.parse().ok()?;
    let flags = u32::from_str_radix(words.nth(1)?.strip_prefix("0x")?, 16).ok()?;
    let mac = words.next()?.parse().ok()?;
    let link = words.nth(1)?;
    (flags & COMPLETE != 0 && link == INNER_LINK).then_some(Neighbour { ip, mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_for_certain_on_its_own_link_is_carried_along() {
        let known = "10.77.0.9  0x1  0x2  02:00:00:00:00:99  *  eth0";
        let neighbour = entry(known).unwrap();
        assert_eq!(neighbour.ip, Ipv4Addr::new(10, 77, 0, 9));
        assert_eq!(neighbour.mac.to_string(), "02:00:00:00:00:99");
        assert_eq!(entry("10.77.0.8  0x1  0x0  00:00:00:00:00:00  *  eth0"), None);
        assert_eq!(entry(&known.replace("eth0", "eth1")), None);
        assert_eq!(entry("IP address       HW type     Flags"), None);
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("neighbours.json");
        assert_eq!(load_neighbours(&path).unwrap(), []);
        let mac = MacAddr::from_bytes([2, 255, 255, 255, 255, 255]);
        let known = vec![
            Neighbour {
                ip: Ipv4Addr::BROADCAST,
                mac
            };
            MOST
        ];
        save_neighbours(&path, &known).unwrap();
        assert_eq!(load_neighbours(&path).unwrap(), known);
    }

    #[test]
    fn a_file_that_says_too_much_or_nonsense_is_refused() {
        let one = br#"{"ip":"10.0.0.1","mac":"02:00:00:00:00:01"}"#.as_slice();
        let many = [b"[", one, b"]"].concat();
        assert_eq!(parse(&many).unwrap().len(), 1);
        let mut many = b"[".to_vec();
        for _ in 0..=MOST {
            many.extend_from_slice(one);
            many.push(b',');
        }
        many.pop();
        many.push(b']');
        assert!(parse(&many).is_err());
        assert!(parse(br#"[{"ip":"10.0.0.1","mac":"ff:ff:ff:ff:ff:ff"}]"#).is_err());
        assert!(parse(b"[").is_err());
    }
}
