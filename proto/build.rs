//! Generates the messages, and with the feature `grpc` the clients and servers, from `proto/tranship/v1`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .type_attribute(".", "#[serde(rename_all = \"snake_case\")]")
        .message_attribute(".", "#[serde(default)]")
        .compile_protos(
            &["proto/tranship/v1/api.proto", "proto/tranship/v1/peer.proto"],
            &["proto"],
        )?;
    Ok(())
}
