//! Starts and ends the daemon of a host. Containers and their monitors go on without it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::host::Host;
use super::layout;
use crate::{command, programs};

/// Until a daemon that was started answers: it finds its containers again first.
const START: Duration = Duration::from_secs(20);
/// Until a daemon that was asked to end has ended.
const STOP: Duration = Duration::from_secs(20);

/// Where the daemon's socket is on its host.
const SOCKET: &str = "/run/tranship/transhipd.sock";

/// Starts `transhipd` and waits until it answers.
///
/// # Errors
/// It runs already, has not been built, or ends or stays silent; the message holds the end of its log.
pub fn start(host: &Host) -> Result<()> {
    start_with(host, &[])
}

/// As [`start`], with variables in the daemon's environment.
///
/// # Errors
/// As [`start`].
pub fn start_with(host: &Host, environment: &[(&str, &str)]) -> Result<()> {
    start_program(host, "transhipd", environment)
}

/// As [`start_with`], for another build of the daemon.
///
/// # Errors
/// As [`start`].
pub fn start_program(host: &Host, program: &str, environment: &[(&str, &str)]) -> Result<()> {
    let name = host.name();
    if let Some(pid) = pid(host) {
        bail!("transhipd runs on host {name} already (pid {pid} there)");
    }
    let program = programs::find(program)?;
    let log_path = host.layout.log(name);
    let log = File::options().create(true).append(true).open(&log_path);
    let log = log.with_context(|| format!("cannot open {}", log_path.display()))?;
    // The shell leaves at once, so that the daemon becomes a child of the holder; its output is the log. Nobody but the daemon has its
    // variables: some change what a program does before it begins.
    let script = r#"setsid env "$@" </dev/null >&2 & echo $!"#;
    let mut command = host.command("sh", ["-c", script, "sh"]);
    command.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
    command.arg(program).arg("--config").arg(host.layout.config(name));
    command.stdin(Stdio::null()).stderr(log).stdout(Stdio::piped());
    let output = command
        .spawn()
        .context("cannot start nsenter")?
        .wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let pid: i32 = text
        .parse()
        .with_context(|| format!("cannot start transhipd on host {name}"))?;
    fs::write(host.layout.pid_file(name), format!("{pid}\n"))?;
    wait_until_it_answers(host)
}

/// Asks the daemon to end and waits for it. One that does not run is fine.
///
/// # Errors
/// It is still there after 20 s.
pub fn stop(host: &Host) -> Result<()> {
    signal(host, "TERM")
}

/// Kills the daemon and waits for its end. One that does not run is fine.
///
/// # Errors
/// It is still there after 20 s.
pub fn kill(host: &Host) -> Result<()> {
    signal(host, "KILL")
}

/// The daemon's pid as its host numbers it, while it runs.
#[must_use]
pub fn pid(host: &Host) -> Option<i32> {
    let text = fs::read_to_string(host.layout.pid_file(host.name())).ok()?;
    let pid: i32 = text.trim().parse().ok()?;
    let stat = fs::read_to_string(host.path(format!("/proc/{pid}/stat"))).ok()?;
    let (name, _) = stat.split_once('(')?.1.rsplit_once(") ")?;
    // `setsid` and `env` are what the daemon is for a moment. A zombie counts: its threads may still hold the daemon's files, and
    // the host's first process reaps it once they are gone.
    // A name is cut off after fifteen characters.
    ["transhipd", "transhipd-fault", "setsid", "env", "sh"]
        .contains(&name)
        .then_some(pid)
}

/// Makes the link to the daemon's socket that works from outside.
///
/// # Errors
/// The testbed's directory cannot be written.
pub fn link_socket(host: &Host) -> Result<()> {
    let link = host.layout.socket(host.name());
    symlink(host.path(SOCKET), &link).with_context(|| format!("cannot make {}", link.display()))
}

fn signal(host: &Host, signal: &str) -> Result<()> {
    let Some(pid) = pid(host) else { return Ok(()) };
    let name = host.name();
    host.run("kill", [format!("-{signal}"), pid.to_string()])
        .with_context(|| format!("cannot signal transhipd on host {name}"))?;
    let end = Instant::now() + STOP;
    while self::pid(host).is_some() {
        if Instant::now() >= end {
            bail!("transhipd on host {name} (pid {pid} there) still runs {STOP:?} after SIG{signal}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn wait_until_it_answers(host: &Host) -> Result<()> {
    let (name, socket) = (host.name(), host.path(SOCKET));
    let log = host.layout.log(name);
    let end = Instant::now() + START;
    loop {
        if UnixStream::connect(&socket).is_ok() {
            return Ok(());
        }
        let problem = if pid(host).is_none() {
            "ended as soon as it was started"
        } else if Instant::now() >= end {
            "does not open its socket"
        } else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        bail!(
            "transhipd on host {name} {problem}; the end of {}:\n{}",
            log.display(),
            tail(&log).unwrap_or_else(|error| error.to_string())
        );
    }
}

/// The last two KiB of a log.
fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(2048)))?;
    let mut bytes = Vec::new();
    file.take(2048).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Writes the daemon's configuration and the folders it names.
///
/// # Errors
/// The host's disk cannot be written.
pub fn configure(host: &Host, hosts: u8) -> Result<()> {
    let (layout, name) = (&host.layout, host.name());
    let state = layout.state_dir(name);
    fs::create_dir_all(&state).with_context(|| format!("cannot make {}", state.display()))?;
    let config = layout.config(name);
    fs::write(&config, layout::daemon_config(layout, name, hosts)?)
        .with_context(|| format!("cannot write {}", config.display()))
}

/// Puts lines such as `criu = "/some/where"` at the head of the daemon's configuration, instead of those that were put
/// there before, and restarts it.
///
/// # Errors
/// The configuration cannot be written, or the daemon does not come back with it.
pub fn restart_with(host: &Host, lines: &str) -> Result<()> {
    set_lines(host, lines)?;
    stop(host)?;
    start(host)
}

/// As [`restart_with`], for whoever starts it himself.
///
/// # Errors
/// The configuration cannot be written.
pub fn set_lines(host: &Host, lines: &str) -> Result<()> {
    let config = host.layout.config(host.name());
    let text = fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    // What `configure` wrote begins with the name.
    let own = text
        .find("name = ")
        .with_context(|| format!("{} is not of the testbed", config.display()))?;
    fs::write(&config, format!("{lines}\n{}", &text[own..]))
        .with_context(|| format!("cannot write {}", config.display()))
}

/// A command of the `tranship` program that talks to this host's daemon, from the machine's own namespaces.
///
/// # Errors
/// The program has not been built.
pub fn cli(host: &Host, arguments: &[&str]) -> Result<std::process::Command> {
    let mut command = command::command(programs::find("tranship")?, arguments);
    command.env(
        "TRANSHIP_HOST",
        format!("unix://{}", host.layout.socket(host.name()).display()),
    );
    Ok(command)
}
