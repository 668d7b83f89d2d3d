//! The underlay: a bridge in a namespace of its own, and a cable from it to each host.
//!
//! The cable's end on the bridge is called `p-HOST`, the other `eth0`. On a host `eth0` is a port of `br0`, which has the
//! host's address, as an operator would have it before containers may share the wire. Nothing of this is ever in the
//! machine's own network namespace.

use anyhow::{Context, Result, bail};

use super::holder::Holder;
use super::layout;
use crate::command;

const BRIDGE: &str = "underlay";

/// Makes the bridge.
///
/// # Errors
/// The kernel refuses it.
pub fn make_underlay(underlay: &Holder) -> Result<()> {
    ip(underlay, "link set lo up")?;
    ip(
        underlay,
        &format!("link add {BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"),
    )?;
    ip(underlay, &format!("link set {BRIDGE} up"))
}

/// Connects a host or the client.
///
/// # Errors
/// The kernel refuses a link or an address.
pub fn connect(underlay: &Holder, host: &Holder) -> Result<()> {
    let name = &host.name;
    let address = layout::address(name).with_context(|| format!("{name} has no address"))?;
    let (port, pid) = (port(name), host.pid);
    ip(
        underlay,
        &format!("link add {port} type veth peer name eth0 netns {pid}"),
    )?;
    ip(underlay, &format!("link set {port} master {BRIDGE} up"))?;
    ip(host, "link set lo up")?;
    if name == layout::CLIENT {
        ip(host, &format!("address add {address}/24 dev eth0"))?;
        return ip(host, "link set eth0 up");
    }
    let mac = format!("02:74:62:00:00:{:02x}", address.octets()[3]);
    ip(
        host,
        &format!("link add br0 address {mac} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"),
    )?;
    ip(host, "link set eth0 master br0 up")?;
    ip(host, &format!("address add {address}/24 dev br0"))?;
    ip(host, "link set br0 up")
}

/// Plugs the cable in or pulls it: the host sees its carrier come or go.
///
/// # Errors
/// The kernel refuses it.
pub fn set_link(underlay: &Holder, name: &str, up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    ip(underlay, &format!("link set {} {state}", port(name)))
}

/// Limits a cable in both directions, such as `8mbit`; `unlimited` takes the limit away.
///
/// A veth hands on packets of 64 KiB unless told otherwise: a shaper then releases them in bursts and one lost packet is
/// 44. So a shaped cable also gets segments of the size a wire has.
///
/// # Errors
/// The rate is not one, or the kernel refuses it.
pub fn set_rate(underlay: &Holder, host: &Holder, rate: &str) -> Result<()> {
    let port = port(&host.name);
    for (holder, device) in [(underlay, port.as_str()), (host, "eth0")] {
        if rate == "unlimited" {
            ip(
                holder,
                &format!("link set {device} gso_max_segs 65535 gso_max_size 65536"),
            )?;
            let mut show = holder.enter_network();
            show.args(["tc", "qdisc", "show", "dev", device]);
            if command::succeed(&mut show, command::SHORT)?
                .text()
                .contains("tbf")
            {
                tc(holder, &format!("qdisc del dev {device} root"))?;
            }
        } else {
            let burst = burst_bytes(rate)?;
            ip(
                holder,
                &format!("link set {device} gso_max_segs 1 gso_max_size 1600"),
            )?;
            tc(
                holder,
                &format!("qdisc replace dev {device} root tbf rate {rate} burst {burst} latency 200ms"),
            )?;
        }
    }
    Ok(())
}

/// Breaks two bytes of every packet between daemons that is long enough to have some of a message in it.
const BREAKING: &str = "
table inet breaking {
  counter broken { }
  chain arriving {
    type filter hook input priority 0;
    tcp dport 7077 meta length > 80 @th,320,16 set 0x5555 counter name broken
    tcp sport 7077 meta length > 80 @th,320,16 set 0x5555 counter name broken
  }
  chain leaving {
    type filter hook output priority 0;
    tcp sport 7077 meta length > 80 @th,320,16 set 0x5555 counter name broken
    tcp dport 7077 meta length > 80 @th,320,16 set 0x5555 counter name broken
  }
}";

/// Breaks what daemons send to a host and what its own sends, or no longer does. Checksums do not show it, as on a machine whose memory
/// or network card is at fault.
///
/// # Errors
/// The kernel refuses it.
pub fn set_breaking(host: &Holder, on: bool) -> Result<()> {
    nft(
        host,
        if on {
            BREAKING
        } else {
            "delete table inet breaking"
        },
    )
    .map(drop)
}

/// How many packets have been broken so far.
///
/// # Errors
/// None are.
pub fn broken_packets(host: &Holder) -> Result<u64> {
    counted(host, "breaking broken")
}

/// How many packets have been lost so far.
///
/// # Errors
/// None are.
pub fn lost_packets(host: &Holder) -> Result<u64> {
    counted(host, "losing lost")
}

fn counted(host: &Holder, counter: &str) -> Result<u64> {
    let told = nft(host, &format!("list counter inet {counter}"))?;
    let mut words = told.split_whitespace().skip_while(|word| *word != "packets");
    let packets = words.nth(1).context("a counter tells packets")?;
    packets.parse().context("packets are a number")
}

/// Loses so many percent of the packets from other daemons that come to a host, or none again. They are of the size a wire has only where
/// the cable's rate is limited ([`set_rate`]).
///
/// # Errors
/// The kernel refuses it.
pub fn set_loss(host: &Holder, percent: u8) -> Result<()> {
    // A table is made by whoever adds to it, so there is always one to be removed.
    let mut rules = "add table inet losing\ndelete table inet losing".to_owned();
    if percent > 0 {
        rules = format!(
            "{rules}
table inet losing {{
  counter lost {{ }}
  chain arriving {{
    type filter hook input priority 0;
    tcp dport 7077 numgen random mod 100 < {percent} counter name lost drop
    tcp sport 7077 numgen random mod 100 < {percent} counter name lost drop
  }}
}}"
        );
    }
    nft(host, &rules).map(drop)
}

fn nft(host: &Holder, rules: &str) -> Result<String> {
    let mut nft = host.enter_network();
    nft.args(["nft", rules]);
    Ok(command::succeed(&mut nft, command::SHORT)?.text())
}

/// A bucket of 4 ms at the rate, 16 KiB at least: enough for the timer, small enough not to show.
fn burst_bytes(rate: &str) -> Result<u64> {
    let digits = rate
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(rate.len());
    let (number, unit) = rate.split_at(digits);
    let number: u64 = number
        .parse()
        .with_context(|| format!("{rate:?} is no rate: write it like 8mbit"))?;
    let factor: u64 = match unit {
        "bit" => 1,
        "kbit" => 1_000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        _ => bail!("{rate:?} is no rate: write a number and bit, kbit, mbit or gbit, or `unlimited`"),
    };
    let bits = number
        .checked_mul(factor)
        .filter(|bits| (1_000..=100_000_000_000).contains(bits));
    let bits = bits.with_context(|| format!("{rate:?} is out of range: 1kbit to 100gbit"))?;
    Ok((bits / 8 / 250).max(16 << 10))
}

fn port(name: &str) -> String {
    format!("p-{name}")
}

fn ip(holder: &Holder, arguments: &str) -> Result<()> {
    in_network(holder, "ip", arguments)
}

fn tc(holder: &Holder, arguments: &str) -> Result<()> {
    in_network(holder, "tc", arguments)
}

fn in_network(holder: &Holder, program: &str, arguments: &str) -> Result<()> {
    let mut command = holder.enter_network();
    command.arg(program).args(arguments.split_whitespace());
    command::succeed(&mut command, command::SHORT)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_holds_4_ms_of_a_fast_link_and_some_packets_of_a_slow_one() {
        assert_eq!(burst_bytes("8mbit").unwrap(), 16 << 10);
        assert_eq!(burst_bytes("1gbit").unwrap(), 500_000);
        for bad in [
            "",
            "fast",
            "8",
            "8mb",
            "-1mbit",
            "0mbit",
            "99999999999999999999gbit",
            "900000gbit",
        ] {
            assert!(burst_bytes(bad).is_err(), "{bad:?} was taken for a rate");
        }
    }
}
