//! Which address a container gets. The choice is pure; who else has an address is asked by the caller.

use std::net::Ipv4Addr;

use super::error::NetworkError;
use crate::config::L2Config;

/// Whether a container may ask for this address.
pub(super) fn check(config: &L2Config, ip: Ipv4Addr, taken: &[Ipv4Addr]) -> Result<(), NetworkError> {
    let is_whole = ip == config.subnet.address() || ip == config.subnet.broadcast();
    if !config.subnet.contains(ip) || is_whole {
        return Err(NetworkError::OutsideSubnet {
            ip,
            subnet: config.subnet,
        });
    }
    if config.gateway == Some(ip) {
        return Err(NetworkError::Reserved {
            ip,
            owner: "the network's gateway",
        });
    }
    if taken.contains(&ip) {
        return Err(NetworkError::Reserved {
            ip,
            owner: "another container of this host",
        });
    }
    Ok(())
}

/// The addresses to try for a container that asks for none, in order.
pub(super) fn candidates(config: &L2Config, taken: &[Ipv4Addr]) -> impl Iterator<Item = Ipv4Addr> {
    let range = config.range.start().to_bits()..=config.range.end().to_bits();
    range
        .map(Ipv4Addr::from_bits)
        .filter(move |ip| check(config, *ip, taken).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> L2Config {
        L2Config {
            bridge: "br0".to_owned(),
            uplink: None,
            subnet: "10.0.0.0/24".parse().unwrap(),
            range: ip(7)..=ip(12),
            gateway: Some(ip(9)),
            mtu: None,
        }
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    #[test]
    fn neither_the_gateway_nor_a_taken_address_is_handed_out() {
        let found: Vec<_> = candidates(&config(), &[ip(7), ip(11)]).collect();
        assert_eq!(found, [ip(8), ip(10), ip(12)]);
    }

    #[test]
    fn an_address_asked_for_may_be_outside_of_the_range_but_not_of_the_subnet() {
        assert!(check(&config(), ip(200), &[]).is_ok());
        for (bad, taken) in [
            (ip(0), vec![]),
            (ip(255), vec![]),
            (ip(9), vec![]),
            (ip(20), vec![ip(20)]),
        ] {
            assert!(check(&config(), bad, &taken).is_err(), "{bad} was let through");
        }
        assert!(check(&config(), Ipv4Addr::new(10, 0, 1, 1), &[]).is_err());
    }
}
