//! Networks of containers, as configured.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use tranship_proto::ids::Name;

use super::error::ConfigError;
use super::file::NetworkFile;
use super::position::Document;

/// Longest name of a network interface that Linux takes.
const MAX_INTERFACE_BYTES: usize = 15;

/// The networks that are there without being configured.
pub(super) const BUILT_IN: &[&str] = &["none", "host"];

/// A network that containers can be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkConfig {
    /// Containers on a bridge that the host's uplink is part of, so that an address can move between hosts.
    L2(L2Config),
}

/// A bridge and the addresses containers get on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Config {
    /// The bridge; made where it is missing.
    pub bridge: String,
    /// The interface to attach to it.
    pub uplink: Option<String>,
    /// The addresses on the link.
    pub subnet: Ipv4Network,
    /// Addresses handed out to containers that ask for none.
    pub range: RangeInclusive<Ipv4Addr>,
    /// Where containers send what is not on the link.
    pub gateway: Option<Ipv4Addr>,
    /// Largest packet in bytes; `None` is the bridge's own.
    pub mtu: Option<u32>,
}

/// An IPv4 network such as `10.77.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Network {
    address: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Network {
    /// Its first address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Length of the prefix in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Its last address, the broadcast address.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !mask(self.prefix))
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.address.to_bits()
    }

    fn is_for_hosts(&self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.address && address != self.broadcast()
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Ipv4Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Ipv4Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("must be ADDRESS/PREFIX such as 10.77.0.0/24, not {text:?}");
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        if !(8..=30).contains(&prefix) {
            return Err(format!("must have a prefix of 8 to 30 bits, not {prefix}"));
        }
        let network = Self {
            address: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)),
            prefix,
        };
        if network.address == address {
            Ok(network)
        } else {
            Err(format!("has bits set behind its prefix: did you mean {network}?"))
        }
    }
}

/// Checks one `[network.NAME]`.
pub(super) fn check(
    document: &Document,
    name: &str,
    file: NetworkFile,
) -> Result<(Name, NetworkConfig), ConfigError> {
    let table = format!("network.{name}");
    if BUILT_IN.contains(&name) {
        return Err(document.value(&table, "is built in and cannot be configured"));
    }
    let parsed: Name = name
        .parse()
        .map_err(|error| document.value(&table, format!("cannot be used: {error}")))?;
    let keys = Keys { document, table };
    match keys.required("kind", file.kind.clone())?.as_str() {
        "l2" => Ok((parsed, NetworkConfig::L2(check_l2(&keys, file)?))),
        other => Err(keys.refuse("kind", format!("must be \"l2\", not {other:?}"))),
    }
}

fn check_l2(keys: &Keys<'_>, file: NetworkFile) -> Result<L2Config, ConfigError> {
    let subnet: Ipv4Network = keys.parse("subnet", &keys.required("subnet", file.subnet)?)?;
    let range = check_range(keys, subnet, &keys.required("range", file.range)?)?;
    let gateway = file
        .gateway
        .map(|text| check_gateway(keys, subnet, &range, &text))
        .transpose()?;
    if let Some(mtu) = file.mtu.filter(|mtu| !(576..=65535).contains(mtu)) {
        return Err(keys.refuse("mtu", format!("must be 576 to 65535 bytes, not {mtu}")));
    }
    Ok(L2Config {
        bridge: keys.interface("bridge", keys.required("bridge", file.bridge)?)?,
        uplink: file
            .uplink
            .map(|name| keys.interface("uplink", name))
            .transpose()?,
        subnet,
        range,
        gateway,
        mtu: file.mtu,
    })
}

fn check_range(
    keys: &Keys<'_>,
    subnet: Ipv4Network,
    text: &str,
) -> Result<RangeInclusive<Ipv4Addr>, ConfigError> {
    let form = || {
        keys.refuse(
            "range",
            format!("must be FIRST-LAST such as 10.77.0.50-10.77.0.250, not {text:?}"),
        )
    };
    let (first, last) = text.split_once('-').ok_or_else(form)?;
    let first: Ipv4Addr = first.trim().parse().map_err(|_| form())?;
    let last: Ipv4Addr = last.trim().parse().map_err(|_| form())?;
    if first > last {
        return Err(keys.refuse("range", format!("begins at {first}, behind its end {last}")));
    }
    match [first, last]
        .into_iter()
        .find(|&address| !subnet.is_for_hosts(address))
    {
        Some(outside) => Err(keys.refuse("range", format!("has {outside}, which is no host's in {subnet}"))),
        None => Ok(first..=last),
    }
}

fn check_gateway(
    keys: &Keys<'_>,
    subnet: Ipv4Network,
    range: &RangeInclusive<Ipv4Addr>,
    text: &str,
) -> Result<Ipv4Addr, ConfigError> {
    let gateway: Ipv4Addr = keys.parse("gateway", text)?;
    if !subnet.is_for_hosts(gateway) {
        return Err(keys.refuse("gateway", format!("is {gateway}, which is no host's in {subnet}")));
    }
    if range.contains(&gateway) {
        return Err(keys.refuse(
            "gateway",
            format!("is {gateway}, which the range hands out to containers"),
        ));
    }
    Ok(gateway)
}

/// Refuses two networks that would fight over one interface.
pub(super) fn check_apart<'a>(
    document: &Document,
    networks: impl Iterator<Item = (&'a Name, &'a NetworkConfig)>,
) -> Result<(), ConfigError> {
    let mut taken: Vec<(&str, &Name)> = Vec::new();
    for (name, NetworkConfig::L2(network)) in networks {
        for interface in std::iter::once(&network.bridge).chain(&network.uplink) {
            if let Some((_, other)) = taken.iter().find(|(known, _)| known == interface) {
                let problem =
                    format!("uses the interface {interface} as a bridge or uplink, as network {other} does");
                return Err(document.value(&format!("network.{name}"), problem));
            }
            taken.push((interface, name));
        }
    }
    Ok(())
}

struct Keys<'a> {
    document: &'a Document,
    table: String,
}

impl Keys<'_> {
    fn refuse(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        self.document.value(&format!("{}.{key}", self.table), problem)
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| self.refuse(key, "is missing"))
    }

    fn parse<T: FromStr>(&self, key: &str, text: &str) -> Result<T, ConfigError>
    where
        T::Err: fmt::Display,
    {
        text.parse()
            .map_err(|error| self.refuse(key, format!("cannot be used: {error}")))
    }

    fn interface(&self, key: &str, name: String) -> Result<String, ConfigError> {
        let fits = (1..=MAX_INTERFACE_BYTES).contains(&name.len());
        let plain = name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
        if fits && plain && name != "." && name != ".." {
            return Ok(name);
        }
        let problem =
            format!("must be an interface name of 1 to {MAX_INTERFACE_BYTES} letters, not {name:?}");
        Err(self.refuse(key, problem))
    }
}
