//! What a container takes from its image.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use tranship_proto::v1;

/// Why an image cannot be run here.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the configuration of an image.
    #[error("the configuration of image {image} cannot be understood")]
    Document {
        /// Digest of the image.
        image: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Programs for another processor.
    #[error("the image is for {image}, this host is {host}: import one for {host}")]
    Architecture {
        /// Whose programs it has.
        image: String,
        /// What this host is.
        host: &'static str,
    },
}

/// What a container takes from its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// What always runs; empty for nothing.
    pub entrypoint: Vec<String>,
    /// Its arguments, or what runs without an entrypoint.
    pub cmd: Vec<String>,
    /// KEY=VALUE.
    pub env: Vec<String>,
    /// USER[:GROUP]; empty is root.
    pub user: String,
    /// Where it runs; empty is `/`.
    pub workdir: String,
    /// What `stop` sends first; empty is SIGTERM.
    pub stop_signal: String,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// Whose programs it has, as Go names processors; empty where the image does not say.
    pub architecture: String,
}

impl ImageConfig {
    /// Reads the configuration of an image.
    ///
    /// # Errors
    /// [`ConfigError::Document`].
    pub fn of(image: &v1::Image) -> Result<Self, ConfigError> {
        let parsed: ImageConfiguration =
            serde_json::from_str(&image.config_json).map_err(|source| ConfigError::Document {
                image: image.digest.clone(),
                source,
            })?;
        let run = parsed.config().clone().unwrap_or_default();
        Ok(Self {
            entrypoint: run.entrypoint().clone().unwrap_or_default(),
            cmd: run.cmd().clone().unwrap_or_default(),
            env: run.env().clone().unwrap_or_default(),
            user: run.user().clone().unwrap_or_default(),
            workdir: run.working_dir().clone().unwrap_or_default(),
            stop_signal: run.stop_signal().clone().unwrap_or_default(),
            labels: run.labels().clone().unwrap_or_default().into_iter().collect(),
            architecture: parsed.architecture().to_string(),
        })
    }
}

/// Refuses an image with programs for another processor; to be asked when a container is to run.
///
/// # Errors
/// [`ConfigError::Architecture`].
pub fn check_architecture(image: &v1::Image) -> Result<(), ConfigError> {
    let host = host_architecture();
    if image.architecture.is_empty() || image.architecture == host {
        return Ok(());
    }
    Err(ConfigError::Architecture {
        image: image.architecture.clone(),
        host,
    })
}

/// This host's processor, as Go and image formats name it.
#[must_use]
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(config_json: &str) -> v1::Image {
        let architecture = "s390x".to_owned();
        v1::Image {
            config_json: config_json.to_owned(),
            architecture,
            ..v1::Image::default()
        }
    }

    #[test]
    fn a_configuration_as_docker_writes_it_is_read() {
        let config = ImageConfig::of(&image(
            r#"{"architecture":"amd64","config":{"Hostname":"","AttachStdin":false,"Env":["PATH=/bin"],
            "Cmd":["redis-server"],"Image":"sha256:aa","Volumes":{"/data":{}},"WorkingDir":"/data",
            "Entrypoint":["docker-entrypoint.sh"],"OnBuild":null,"Labels":null,"ExposedPorts":{"6379/tcp":{}},
            "StopSignal":"SIGQUIT"},"container":"x","docker_version":"20","history":[{"created_by":"x"}],
            "os":"linux","rootfs":{"type":"layers","diff_ids":[]},"created":"2024-01-01T00:00:00Z"}"#,
        ))
        .unwrap();
        assert_eq!(
            (config.entrypoint, config.cmd),
            (vec!["docker-entrypoint.sh".into()], vec!["redis-server".into()])
        );
        assert_eq!(
            (config.env, config.workdir.as_str()),
            (vec!["PATH=/bin".into()], "/data")
        );
        assert_eq!(
            (config.stop_signal.as_str(), config.architecture.as_str()),
            ("SIGQUIT", "amd64")
        );
        assert!(config.labels.is_empty() && config.user.is_empty());
    }

    #[test]
    fn programs_for_another_processor_are_refused_when_they_are_to_run() {
        let error = check_architecture(&image("{}")).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "the image is for s390x, this host is {0}: import one for {0}",
                host_architecture()
            )
        );
        let here = v1::Image {
            architecture: host_architecture().into(),
            ..v1::Image::default()
        };
        assert!(check_architecture(&here).is_ok());
        assert!(ImageConfig::of(&image("{")).is_err());
    }
}
