//! The system-call filter of a container. A process that was dumped brings its filters along, so the profile depends on the
//! architecture and the container's capabilities alone, never on the host.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::syscalls::{
    AF_VSOCK, ALWAYS, CLONE_NAMESPACE_FLAGS, ENOSYS, EPERM, ON_ARM, ON_X86, PERSONALITIES, WITH_CAPABILITY,
};

/// The architectures containers run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    X86_64,
    Aarch64,
}

impl Architecture {
    /// The one this program was built for.
    pub(super) const fn current() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Aarch64
        } else {
            Self::X86_64
        }
    }

    fn names(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            Self::Aarch64 => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        }
    }

    fn own_calls(self) -> &'static str {
        match self {
            Self::X86_64 => ON_X86,
            Self::Aarch64 => ON_ARM,
        }
    }
}

/// The OCI `linux.seccomp` of a container with these capabilities.
pub(super) fn profile(architecture: Architecture, capabilities: &BTreeSet<&'static str>) -> Value {
    let mut allowed: BTreeSet<&str> = words(ALWAYS).chain(words(architecture.own_calls())).collect();
    for (capability, calls) in WITH_CAPABILITY {
        if capabilities.contains(capability) {
            allowed.extend(words(calls));
        }
    }
    let mut rules = vec![json!({"names": &allowed, "action": "SCMP_ACT_ALLOW"})];
    rules.push(when(
        "socket",
        json!({"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE"}),
    ));
    for domain in PERSONALITIES {
        rules.push(when(
            "personality",
            json!({"index": 0, "value": domain, "op": "SCMP_CMP_EQ"}),
        ));
    }
    if !allowed.contains("clone") {
        let no_namespace =
            json!({"index": 0, "value": CLONE_NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"});
        rules.push(when("clone", no_namespace));
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architecture.names(),
        "syscalls": rules,
    })
}

fn when(name: &str, argument: Value) -> Value {
    json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]})
}

fn words(table: &'static str) -> impl Iterator<Item = &'static str> {
    table.split_ascii_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &Value) -> BTreeSet<&str> {
        profile["syscalls"][0]["names"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect()
    }

    fn rules_of<'a>(profile: &'a Value, name: &str) -> Vec<&'a Value> {
        let all = profile["syscalls"].as_array().unwrap();
        all.iter()
            .filter(|rule| rule["names"].as_array().unwrap().contains(&json!(name)))
            .collect()
    }

    #[test]
    fn the_tables_are_sorted_and_without_repeats() {
        let calls: Vec<&str> = words(ALWAYS).collect();
        assert!(
            calls.is_sorted(),
            "{:?}",
            calls.windows(2).find(|pair| pair[0] > pair[1])
        );
        assert_eq!(calls.iter().collect::<BTreeSet<_>>().len(), calls.len());
        assert!(calls.len() > 350, "{}", calls.len());
    }

    #[test]
    fn what_reaches_the_host_is_not_allowed_by_default() {
        let profile = profile(Architecture::X86_64, &BTreeSet::new());
        let allowed = allowed(&profile);
        for call in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "add_key",
            "io_uring_setup",
            "userfaultfd",
            "init_module",
            "reboot",
            "open_by_handle_at",
            "clone",
            "clone3",
            "personality",
            "socket",
            "chroot",
        ] {
            assert!(!allowed.contains(call), "{call}");
        }
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(rules_of(&profile, "clone3")[0]["errnoRet"], 38);
        assert_eq!(
            rules_of(&profile, "clone")[0]["args"][0]["value"],
            2_114_060_288_u64
        );
        assert_eq!(rules_of(&profile, "personality").len(), 5);
    }

    #[test]
    fn a_capability_brings_the_calls_that_need_it() {
        let profile = profile(
            Architecture::X86_64,
            &BTreeSet::from(["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]),
        );
        let allowed = allowed(&profile);
        assert!(allowed.contains("mount") && allowed.contains("clone3") && allowed.contains("chroot"));
        assert!(!allowed.contains("reboot"));
        assert_eq!(
            rules_of(&profile, "clone").len(),
            1,
            "a masked rule beside an open one"
        );
    }

    #[test]
    fn each_architecture_has_its_own_calls() {
        let arm = profile(Architecture::Aarch64, &BTreeSet::new());
        assert!(allowed(&arm).contains("cacheflush") && !allowed(&arm).contains("modify_ldt"));
        assert_eq!(
            arm["architectures"],
            json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
        );
    }
}
