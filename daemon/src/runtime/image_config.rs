//! What an image says about how to run it: the part of the OCI image configuration that a container takes over.

use serde::{Deserialize, Deserializer};

/// The run-time part of an OCI (or Docker) image configuration. What the image leaves out is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// In front of the command.
    #[serde(rename = "Entrypoint", deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// The command, or the entrypoint's arguments.
    #[serde(rename = "Cmd", deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// `KEY=VALUE`.
    #[serde(rename = "Env", deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// `USER[:GROUP]`, names or ids.
    #[serde(rename = "User", deserialize_with = "null_is_empty")]
    pub user: String,
    /// Absolute path.
    #[serde(rename = "WorkingDir", deserialize_with = "null_is_empty")]
    pub workdir: String,
    /// Name or number of the signal that asks it to stop.
    #[serde(rename = "StopSignal", deserialize_with = "null_is_empty")]
    pub stop_signal: String,
}

/// Why an image configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the image's configuration is not of the OCI form")]
pub struct ImageConfigError(#[source] serde_json::Error);

impl ImageConfig {
    /// Takes what matters out of an image's configuration JSON.
    ///
    /// # Errors
    /// The text is not JSON, or a field has another type than the OCI image specification gives it.
    pub fn parse(config_json: &str) -> Result<Self, ImageConfigError> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default, deserialize_with = "null_is_empty")]
            config: ImageConfig,
        }
        serde_json::from_str::<Whole>(config_json)
            .map(|whole| whole.config)
            .map_err(ImageConfigError)
    }
}

/// Builders write `null` where the specification says that a field is left out.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_absent_fields_are_empty() {
        let json = r#"{"architecture":"amd64","config":{"Cmd":["sh","-c","id"],"Entrypoint":null,"Env":["A=b"],
            "Volumes":{"/data":{}},"User":"postgres"},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = ImageConfig::parse(json).unwrap();
        assert_eq!(config.cmd, ["sh", "-c", "id"]);
        assert_eq!(config.env, ["A=b"]);
        assert_eq!(config.user, "postgres");
        assert!(config.entrypoint.is_empty() && config.workdir.is_empty());
        assert_eq!(
            ImageConfig::parse(r#"{"config":null}"#).unwrap(),
            ImageConfig::default()
        );
        assert_eq!(ImageConfig::parse("{}").unwrap(), ImageConfig::default());
    }

    #[test]
    fn a_field_of_the_wrong_type_is_an_error() {
        assert!(ImageConfig::parse(r#"{"config":{"Cmd":"sh"}}"#).is_err());
        assert!(ImageConfig::parse("7").is_err());
    }
}
