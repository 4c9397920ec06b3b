//! Clients with a service config, and the details of their errors.

use std::time::Duration;

use anyhow::Result;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::configured::Configured;
use crate::pb::conversations_service_client::ConversationsServiceClient;
use crate::pb::erasure_service_client::ErasureServiceClient;
use crate::pb::transfer_service_client::TransferServiceClient;

pub type Client = ConversationsServiceClient<Configured>;
pub type TransferClient = TransferServiceClient<Configured>;
pub type ErasureClient = ErasureServiceClient<Configured>;

const DOMAIN: &str = "conversations.v1";
const MAX_MESSAGE_BYTES: usize = 32 << 20; // limit of the server; tonic receives at most 4 MiB by default

/// A client of `host:port` or `unix:/path`, without TLS. It connects at the first call.
pub fn connect(target: &str, service_config: &str) -> Result<Client> {
    Ok(client_on(channel(target, service_config)?))
}

pub fn client_on(channel: Configured) -> Client {
    ConversationsServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

pub fn transfers_on(channel: Configured) -> TransferClient {
    TransferServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

pub fn erasures_on(channel: Configured) -> ErasureClient {
    ErasureServiceClient::new(channel)
}

/// A connection that the clients of several services may share.
pub fn channel(target: &str, service_config: &str) -> Result<Configured> {
    let channel = endpoint(target)?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(30)) // notices a server that is gone without a word
        .keep_alive_timeout(Duration::from_secs(10))
        .connect_lazy();
    Ok(Configured::new(channel, serde_json::from_str(service_config)?))
}

fn endpoint(target: &str) -> Result<Endpoint> {
    if target.starts_with("unix:") {
        let authority = Uri::from_static("http://localhost"); // tonic's own would be "tonic"
        return Ok(Endpoint::from_shared(target.to_owned())?.origin(authority));
    }
    Ok(Endpoint::from_shared(format!("http://{target}"))?)
}

/// Whether the error has this code and this reason. Messages may change; reasons do not.
pub fn is(status: &Status, code: Code, reason: &str) -> bool {
    let told = status.get_details_error_info();
    status.code() == code && told.is_some_and(|info| info.domain == DOMAIN && info.reason == reason)
}
