//! Generates the client from the descriptors of the contract, so that no protoc is needed.

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result};
use prost::Message;
use prost_types::FileDescriptorSet;

const DESCRIPTORS: &str = "../../../generated/conversations/v1/descriptors.binpb";

fn main() -> Result<()> {
    let contract = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join(DESCRIPTORS);
    println!("cargo:rerun-if-changed={}", contract.display());
    let content = fs::read(&contract).with_context(|| contract.display().to_string())?;
    let mut files = FileDescriptorSet::decode(content.as_slice())?;
    for file in &mut files.file {
        file.source_code_info = None; // incomplete: prost needs the comments of all files or of none
    }
    tonic_prost_build::configure()
        .build_server(false)
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(files)?;
    Ok(())
}
