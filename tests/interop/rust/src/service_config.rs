//! The parts of gRPC's service config that `Configured` supports, in the JSON form of `grpc.service_config`.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error};
use tonic::Code;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceConfig {
    #[serde(default)]
    method_config: Vec<MethodConfig>,
    pub retry_throttling: Option<RetryThrottling>,
    /// Required, because a tonic channel does not tell whether it is connected; watching the health service does.
    pub health_check_config: HealthCheckConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheckConfig {
    pub service_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryThrottling {
    pub max_tokens: f64,
    pub token_ratio: f64,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MethodConfig {
    name: Vec<Name>,
    pub wait_for_ready: bool,
    #[serde(deserialize_with = "optional_seconds")]
    pub timeout: Option<Duration>,
    pub retry_policy: Option<RetryPolicy>,
}

#[derive(Clone, Default, Deserialize, PartialEq)]
#[serde(default)]
struct Name {
    service: String,
    method: String,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryPolicy {
    pub max_attempts: u32,
    #[serde(deserialize_with = "seconds")]
    pub initial_backoff: Duration,
    #[serde(deserialize_with = "seconds")]
    pub max_backoff: Duration,
    pub backoff_multiplier: f64,
    #[serde(deserialize_with = "codes")]
    pub retryable_status_codes: HashSet<Code>,
}

impl ServiceConfig {
    /// The entry for `/package.Service/Method`: that of the method, else of the service, else the default.
    pub fn method(&self, path: &str) -> MethodConfig {
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
        [(service, method), (service, ""), ("", "")]
            .into_iter()
            .find_map(|(service, method)| self.named(service, method))
            .cloned()
            .unwrap_or_default()
    }

    fn named(&self, service: &str, method: &str) -> Option<&MethodConfig> {
        let name = Name { service: service.into(), method: method.into() };
        self.method_config.iter().find(|entry| entry.name.contains(&name))
    }
}

/// A duration as protobuf writes it: `0.1s`.
fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    text.strip_suffix('s')
        .and_then(|number| number.parse().ok())
        .and_then(|number| Duration::try_from_secs_f64(number).ok())
        .ok_or_else(|| D::Error::custom(format!("{text}: not a duration")))
}

fn optional_seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    seconds(from).map(Some)
}

/// Codes by their names, `DEADLINE_EXCEEDED`; tonic knows them as `DeadlineExceeded`.
fn codes<'de, D: Deserializer<'de>>(from: D) -> Result<HashSet<Code>, D::Error> {
    let known = |name: &str| {
        let plain = name.replace('_', "");
        (0..=16).map(Code::from_i32).find(|code| format!("{code:?}").eq_ignore_ascii_case(&plain))
    };
    Vec::<String>::deserialize(from)?
        .iter()
        .map(|name| known(name).ok_or_else(|| D::Error::custom(format!("{name}: not a code"))))
        .collect()
}
