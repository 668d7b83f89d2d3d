//! A whole testbed: `up`, what can be done with it, and its end.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::holder::Holder;
use super::host::Host;
use super::layout::{self, Layout};
use super::pool::PoolKind;
use super::{cluster, daemon, network, pool, teardown};

/// What `up` can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Number of hosts, 1 to [`layout::MAX_HOSTS`].
    pub hosts: u8,
    /// Rate of each cable, such as `1gbit`; none is as fast as the machine.
    pub link: Option<String>,
    /// File system below the storage drivers.
    pub pool: PoolKind,
    /// The testbed's directory: TB_DIR, or the usual one.
    pub dir: PathBuf,
    /// Take down a testbed that an earlier run left there.
    #[serde(skip)]
    pub force: bool,
    /// Leave what a failed `up` has made, so that one can look into it.
    #[serde(skip)]
    pub keep_failed: bool,
}

impl Default for Options {
    fn default() -> Self {
        let dir = std::env::var_os("TB_DIR").map_or_else(|| layout::DEFAULT_DIR.into(), PathBuf::from);
        Self {
            hosts: 2,
            link: None,
            pool: PoolKind::default(),
            dir,
            force: false,
            keep_failed: false,
        }
    }
}

/// A testbed that is up. One made by [`Testbed::up`] is taken down when it is dropped, one opened is not.
#[derive(Debug)]
pub struct Testbed {
    layout: Layout,
    hosts: Vec<Host>,
    client: Host,
    underlay: Holder,
    owned: bool,
}

impl Testbed {
    /// Brings a testbed up: namespaces, links, disks, then daemons that know each other.
    ///
    /// # Errors
    /// One is there already (see [`Options::force`]), or a step fails; then nothing stays, see
    /// [`Options::keep_failed`].
    pub fn up(options: &Options) -> Result<Self> {
        let mut bed = Self::up_without_daemons(options)?;
        bed.owned = !options.keep_failed;
        bed.start_daemons()?;
        bed.owned = true;
        Ok(bed)
    }

    /// Brings up everything but the daemons.
    ///
    /// # Errors
    /// As [`Testbed::up`].
    pub fn up_without_daemons(options: &Options) -> Result<Self> {
        check(options)?;
        let layout = Layout::new(&options.dir)?;
        make_room(&layout, options.force)?;
        Self::build(&layout, options).inspect_err(|_| {
            if !options.keep_failed
                && let Err(error) = Self::take_down(&layout)
            {
                eprintln!("testbed: {error:#}");
            }
        })
    }

    fn build(layout: &Layout, options: &Options) -> Result<Self> {
        make_folders(layout, options)?;
        let underlay = Holder::start(layout, layout::UNDERLAY)?;
        network::make_underlay(&underlay)?;
        let join = |name: &str| -> Result<Host> {
            let holder = Holder::start(layout, name)?;
            network::connect(&underlay, &holder)?;
            if let Some(rate) = &options.link {
                network::set_rate(&underlay, &holder, rate)?;
            }
            Ok(Host {
                holder,
                layout: layout.clone(),
            })
        };
        let client = join(layout::CLIENT)?;
        let mut hosts = Vec::new();
        for name in layout::host_names(options.hosts) {
            let host = join(&name)?;
            pool::make(&host, options.pool)?;
            daemon::configure(&host, options.hosts)?;
            daemon::link_socket(&host)?;
            hosts.push(host);
        }
        Ok(Self {
            layout: layout.clone(),
            hosts,
            client,
            underlay,
            owned: true,
        })
    }

    fn start_daemons(&self) -> Result<()> {
        for host in &self.hosts {
            daemon::start(host)?;
        }
        cluster::form(&self.hosts)
    }

    /// The testbed that is up in this directory.
    ///
    /// # Errors
    /// There is none, or only a part of one.
    pub fn open(dir: &Path) -> Result<Self> {
        let layout = Layout::new(dir)?;
        let mut holders = Holder::find(&layout)?;
        let mut take = |name: &str| {
            let place = holders.iter().position(|holder| holder.name == name);
            place.map(|place| holders.remove(place)).with_context(|| {
                format!(
                    "no testbed is up in {}: run `testbed up` (`testbed down` first if it failed)",
                    dir.display()
                )
            })
        };
        let underlay = take(layout::UNDERLAY)?;
        let client = Host {
            holder: take(layout::CLIENT)?,
            layout: layout.clone(),
        };
        let hosts = holders
            .into_iter()
            .map(|holder| Host {
                holder,
                layout: layout.clone(),
            })
            .collect();
        Ok(Self {
            layout,
            hosts,
            client,
            underlay,
            owned: false,
        })
    }

    /// Its directories.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The hosts with a daemon, in the order of their names.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The namespace with no daemon.
    #[must_use]
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// A host by its name, or `client`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let found = self
            .hosts
            .iter()
            .chain([&self.client])
            .find(|host| host.name() == name);
        found.with_context(|| {
            let names: Vec<_> = self.hosts.iter().map(Host::name).collect();
            format!(
                "there is no host {name}: the testbed has {} and client",
                names.join(", ")
            )
        })
    }

    /// Plugs a host's cable in or pulls it.
    ///
    /// # Errors
    /// No such host, or the kernel refuses it.
    pub fn set_link(&self, name: &str, up: bool) -> Result<()> {
        network::set_link(&self.underlay, self.host(name)?.name(), up)
    }

    /// Limits a host's cable in both directions, such as `8mbit`; `unlimited` takes the limit away.
    ///
    /// # Errors
    /// No such host, or no such rate.
    pub fn set_rate(&self, name: &str, rate: &str) -> Result<()> {
        network::set_rate(&self.underlay, &self.host(name)?.holder, rate)
    }

    /// Breaks bytes of what daemons send to a host and what its own sends, or no longer does.
    ///
    /// # Errors
    /// No such host, or it is so already.
    pub fn set_breaking(&self, name: &str, on: bool) -> Result<()> {
        network::set_breaking(&self.host(name)?.holder, on)
    }

    /// How many packets were broken since that began.
    ///
    /// # Errors
    /// No such host, or none are.
    pub fn broken_packets(&self, name: &str) -> Result<u64> {
        network::broken_packets(&self.host(name)?.holder)
    }

    /// Loses so many percent of the packets that come to any host from another one's daemon; none with 0.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_loss(&self, percent: u8) -> Result<()> {
        let mut hosts = self.hosts().iter();
        hosts.try_for_each(|host| network::set_loss(&host.holder, percent))
    }

    /// How many packets all hosts have lost since that began.
    ///
    /// # Errors
    /// None are lost.
    pub fn lost_packets(&self) -> Result<u64> {
        let lost = self
            .hosts()
            .iter()
            .map(|host| network::lost_packets(&host.holder));
        lost.sum()
    }

    /// Takes this testbed down.
    ///
    /// # Errors
    /// Something could not be removed; the message lists all of it.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        Self::take_down(&self.layout)
    }

    /// Takes down whatever is left of a testbed in this place; nothing is fine too.
    ///
    /// # Errors
    /// As [`Testbed::down`].
    pub fn take_down(layout: &Layout) -> Result<()> {
        let left = teardown::remove_all(layout);
        if left.is_empty() {
            return Ok(());
        }
        bail!("could not remove:\n  {}", left.join("\n  "))
    }

    /// Leaves the testbed up when this value is dropped.
    pub fn keep(mut self) {
        self.owned = false;
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = Self::take_down(&self.layout)
        {
            eprintln!("testbed: {error:#}");
        }
    }
}

fn check(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the testbed makes namespaces and mounts: run it as root");
    }
    if !(1..=layout::MAX_HOSTS).contains(&options.hosts) {
        bail!("--hosts is 1 to {}, not {}", layout::MAX_HOSTS, options.hosts);
    }
    Ok(())
}

/// A testbed that is there already is an error, unless it may be taken down.
fn make_room(layout: &Layout, force: bool) -> Result<()> {
    let traces = teardown::traces(layout)?;
    if traces.is_empty() {
        return Ok(());
    }
    if force {
        return Testbed::take_down(layout);
    }
    bail!(
        "a testbed is there already ({}): use it, or `testbed down` it, or `testbed up --force`",
        traces.join(", ")
    )
}

fn make_folders(layout: &Layout, options: &Options) -> Result<()> {
    let make =
        |path: &Path| fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()));
    make(layout.dir())?;
    for name in layout::host_names(options.hosts) {
        make(&layout.host_dir(&name))?;
        make(&layout.disk(&name))?;
    }
    let record = serde_json::to_vec_pretty(options)?;
    fs::write(layout.record(), record).with_context(|| format!("cannot write {}", layout.record().display()))
}
