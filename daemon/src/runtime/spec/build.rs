//! The whole of a `config.json`.

use std::fs;

use serde_json::{Map, Value, json};
use tranship_proto::v1::{ContainerSpec, UsernsMode};

use super::confinement::{self, MASKED_PATHS, READ_ONLY_PATHS};
use super::error::SpecError;
use super::limits;
use super::mounts::{self, ResolvedMount, text};
use super::process;
use super::seccomp::{self, Architecture};
use super::user::User;
use crate::runtime::image_config::ImageConfig;
use crate::runtime::paths::ContainerPaths;

/// The form of the runtime specification that the oldest runc in use reads.
const OCI_VERSION: &str = "1.0.2";

/// Ids in a container's user namespace, mapped to themselves: all that a distribution's own users and groups have.
pub(super) const USERNS_IDS: u32 = 65_536;

/// In front of the user's labels: runtimes act on annotations of other names, which is not a user's to ask for.
const LABEL_PREFIX: &str = "tranship.label.";

/// The network of containers that have none of their own.
const HOST_NETWORK: &str = "host";

/// Everything a container's configuration is made from.
#[derive(Clone, Copy, Debug)]
pub struct SpecRequest<'a> {
    /// What the user asked for.
    pub spec: &'a ContainerSpec,
    /// What the image says.
    pub image: &'a ImageConfig,
    /// Where the container's parts are; its root filesystem must be mounted.
    pub paths: &'a ContainerPaths,
    /// The mounts of `spec`, with their sources on this host.
    pub mounts: &'a [ResolvedMount],
}

/// The OCI runtime configuration of a container, as JSON.
///
/// # Errors
/// Something that was asked for cannot be had; nothing has been made.
pub fn build(request: &SpecRequest<'_>) -> Result<String, SpecError> {
    let SpecRequest {
        spec, image, paths, ..
    } = *request;
    if spec.init {
        return Err(SpecError::InitUnsupported);
    }
    let hostname = hostname(spec, paths)?;
    let config = json!({
        "ociVersion": OCI_VERSION,
        "hostname": hostname,
        "root": {"path": text(&paths.rootfs())?, "readonly": spec.read_only},
        "process": first_process(spec, image, paths, hostname)?,
        "mounts": mounts::mounts(paths, request.mounts, has_own_network(spec))?,
        "annotations": annotations(spec),
        "linux": linux(request)?,
    });
    Ok(config.to_string())
}

fn first_process(
    spec: &ContainerSpec,
    image: &ImageConfig,
    paths: &ContainerPaths,
    hostname: &str,
) -> Result<Value, SpecError> {
    let wanted = if spec.user.is_empty() {
        &image.user
    } else {
        &spec.user
    };
    let user = User::resolve(wanted, &paths.rootfs())?;
    check_ids(&user, spec.userns())?;
    let kept = confinement::capabilities(&spec.cap_add, &spec.cap_drop)?;
    Ok(json!({
        "terminal": false,
        "args": process::arguments(spec, image)?,
        "env": process::environment(hostname, &[&image.env, &spec.env])?,
        "cwd": process::workdir(&spec.workdir, &image.workdir)?,
        "user": process::user(&user),
        "capabilities": process::capability_sets(user.uid, &kept),
        "noNewPrivileges": false,
        "oomScoreAdj": oom_score(),
    }))
}

fn linux(request: &SpecRequest<'_>) -> Result<Value, SpecError> {
    let spec = request.spec;
    let kept = confinement::capabilities(&spec.cap_add, &spec.cap_drop)?;
    let mut namespaces = vec![
        json!({"type": "pid"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        json!({"type": "mount"}),
    ];
    if has_own_network(spec) {
        // Made together with the user namespace, and so owned by it: only then may a restore put back its connections.
        namespaces.push(json!({"type": "network"}));
    }
    let mut linux = json!({
        "cgroupsPath": request.paths.cgroup,
        "resources": limits::resources(spec)?,
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READ_ONLY_PATHS,
        "seccomp": seccomp::profile(Architecture::current(), &kept),
    });
    if spec.userns() == UsernsMode::Keep {
        namespaces.push(json!({"type": "user"}));
        let identity = json!([{"containerID": 0, "hostID": 0, "size": USERNS_IDS}]);
        linux["uidMappings"] = identity.clone();
        linux["gidMappings"] = identity;
    }
    linux["namespaces"] = Value::Array(namespaces);
    Ok(linux)
}

/// On every network but the host's own.
fn has_own_network(spec: &ContainerSpec) -> bool {
    spec.network != HOST_NETWORK
}

fn hostname<'a>(spec: &'a ContainerSpec, paths: &'a ContainerPaths) -> Result<&'a str, SpecError> {
    let name = if spec.hostname.is_empty() {
        paths.id.short()
    } else {
        &spec.hostname
    };
    let fits = name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if fits {
        Ok(name)
    } else {
        Err(SpecError::Hostname(name.to_owned()))
    }
}

fn annotations(spec: &ContainerSpec) -> Value {
    let labels = spec
        .labels
        .iter()
        .map(|(key, value)| (format!("{LABEL_PREFIX}{key}"), json!(value)));
    Value::Object(
        labels
            .chain([("tranship.name".to_owned(), json!(spec.name))])
            .collect::<Map<_, _>>(),
    )
}

pub(super) fn check_ids(user: &User, userns: UsernsMode) -> Result<(), SpecError> {
    // The last number means "none" to the kernel.
    let limit = if userns == UsernsMode::Keep {
        USERNS_IDS
    } else {
        u32::MAX
    };
    match user.ids().find(|id| *id >= limit) {
        Some(id) => Err(SpecError::IdOutOfRange { id, limit }),
        None => Ok(()),
    }
}

/// 0, so that a daemon which is protected from the OOM killer does not protect its containers; more if the daemon itself
/// has more, because only a privilege it may lack takes it down again.
fn oom_score() -> i32 {
    let own = fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    own.unwrap_or(0).max(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use oci_spec::runtime::Spec;
    use tranship_proto::ids::ContainerId;

    use super::*;

    fn request(spec: &ContainerSpec) -> Result<Value, SpecError> {
        let dir = tempfile::tempdir().unwrap();
        let id = ContainerId::from_random([0xab; 32]);
        let paths = ContainerPaths::new(Path::new("/state"), dir.path(), "/tranship", &id);
        fs::create_dir_all(paths.rootfs().join("etc")).unwrap();
        fs::write(paths.rootfs().join("etc/passwd"), "db:x:70:71::/var/db:/bin/sh\n").unwrap();
        fs::write(paths.rootfs().join("etc/group"), "tls:x:101:db\n").unwrap();
        let image = ImageConfig {
            cmd: vec!["sh".to_owned()],
            ..ImageConfig::default()
        };

        let request = SpecRequest {
            spec,
            image: &image,
            paths: &paths,
            mounts: &[],
        };
        let text = build(&request)?;
        serde_json::from_str::<Spec>(&text).expect("not of the OCI form");
        Ok(serde_json::from_str(&text).unwrap())
    }

    fn namespaces(config: &Value) -> Vec<&str> {
        config["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|n| n["type"].as_str())
            .collect()
    }

    #[test]
    fn a_plain_container_is_confined_as_dockers_users_expect() {
        let config = request(&ContainerSpec::default()).unwrap();
        assert_eq!(
            namespaces(&config),
            ["pid", "ipc", "uts", "mount", "network", "user"]
        );
        assert_eq!(
            config["linux"]["uidMappings"],
            json!([{"containerID": 0, "hostID": 0, "size": 65536}])
        );
        assert_eq!(
            config["process"]["capabilities"]["effective"]
                .as_array()
                .unwrap()
                .len(),
            14
        );
        assert_eq!(config["process"]["terminal"], false);
        assert_eq!(config["process"]["env"][1], "HOSTNAME=abababababab");
        assert_eq!(
            config["linux"]["cgroupsPath"],
            format!("/tranship/{}", "ab".repeat(32))
        );
        assert!(
            config["linux"]["maskedPaths"]
                .as_array()
                .unwrap()
                .contains(&json!("/proc/kcore"))
        );
        let sys = config["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .find(|mount| mount["destination"] == "/sys")
            .unwrap();
        assert_eq!(sys["type"], "sysfs");
        assert!(sys["options"].as_array().unwrap().contains(&json!("ro")));
    }

    #[test]
    fn host_modes_leave_namespaces_out() {
        let spec = ContainerSpec {
            userns: UsernsMode::Host.into(),
            network: "host".to_owned(),
            ..ContainerSpec::default()
        };
        let config = request(&spec).unwrap();
        assert_eq!(namespaces(&config), ["pid", "ipc", "uts", "mount"]);
        assert!(config["linux"].get("uidMappings").is_none());
    }

    #[test]
    fn a_user_is_looked_up_in_the_container() {
        let spec = ContainerSpec {
            user: "db".to_owned(),
            ..ContainerSpec::default()
        };
        let config = request(&spec).unwrap();
        assert_eq!(
            config["process"]["user"],
            json!({"uid": 70, "gid": 71, "additionalGids": [71, 101]})
        );
        assert_eq!(config["process"]["capabilities"]["effective"], json!([]));
    }

    #[test]
    fn ids_beyond_the_user_namespace_are_refused() {
        let spec = |userns: UsernsMode| ContainerSpec {
            user: "65536:0".to_owned(),
            userns: userns.into(),
            ..ContainerSpec::default()
        };
        let refused = request(&spec(UsernsMode::Keep));
        assert!(matches!(refused, Err(SpecError::IdOutOfRange { id: 65_536, .. })));
        assert!(request(&spec(UsernsMode::Host)).is_ok());
    }

    #[test]
    fn a_label_cannot_be_an_annotation_that_runtimes_act_on() {
        let labels = [("org.criu.config".to_owned(), "/evil".to_owned())].into();
        let config = request(&ContainerSpec {
            labels,
            ..ContainerSpec::default()
        })
        .unwrap();
        assert!(config["annotations"].get("org.criu.config").is_none());
        assert_eq!(config["annotations"]["tranship.label.org.criu.config"], "/evil");
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        let init = ContainerSpec {
            init: true,
            ..ContainerSpec::default()
        };
        assert!(request(&init).unwrap_err().to_string().contains("--init"));
        let hostname = ContainerSpec {
            hostname: "a b".to_owned(),
            ..ContainerSpec::default()
        };
        assert!(matches!(request(&hostname), Err(SpecError::Hostname(_))));
    }
}
