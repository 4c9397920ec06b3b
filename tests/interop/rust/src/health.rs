//! gRPC's client-side health check: whether the health service of the server reports SERVING.

use std::time::Duration;

use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::time::sleep;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::backoff::Backoff;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// True while the server reports SERVING for `service`; watched until the receiver is dropped.
pub fn watch(server: Channel, service: String) -> Receiver<bool> {
    let (tell, serving) = channel(false);
    tokio::spawn(async move {
        tokio::select! {
            () = tell.closed() => {}
            () = keep_following(&server, &service, &tell) => {}
        }
    });
    serving
}

/// Returns only if the server has no health service, which counts as serving.
async fn keep_following(server: &Channel, service: &str, tell: &Sender<bool>) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, 2.0);
    loop {
        let ended = follow(HealthClient::new(server.clone()), service, tell, &mut backoff).await;
        let unknown = ended.is_err_and(|status| status.code() == Code::Unimplemented);
        tell.send_replace(unknown);
        if unknown {
            return;
        }
        sleep(backoff.pause()).await;
    }
}

async fn follow(
    mut health: HealthClient<Channel>,
    service: &str,
    tell: &Sender<bool>,
    backoff: &mut Backoff,
) -> Result<(), Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let mut states = health.watch(request).await?.into_inner();
    while let Some(state) = states.next().await {
        backoff.reset();
        tell.send_replace(state?.status() == ServingStatus::Serving);
    }
    Ok(())
}
