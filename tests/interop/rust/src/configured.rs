//! The parts of a service config that tonic lacks: waiting for a ready server, retries by policy and by the pushback of
//! the server, throttling of retries, and one deadline for all attempts.
//!
//! `loadBalancingConfig` is not supported, because the endpoints of a tonic channel are fixed when it is made.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use crate::backoff::Backoff;
use crate::health;
use crate::service_config::{MethodConfig, RetryPolicy, RetryThrottling, ServiceConfig};

const TIMEOUT: &str = "grpc-timeout";
const PUSHBACK: &str = "grpc-retry-pushback-ms";
const PREVIOUS_ATTEMPTS: &str = "grpc-previous-rpc-attempts";

type Answer = Result<Response<Body>, Status>;

/// A channel with a service config; generated clients accept it as their channel.
#[derive(Clone)]
pub struct Configured {
    channel: Channel,
    serving: Receiver<bool>,
    config: Arc<ServiceConfig>,
    throttle: Arc<Throttle>,
}

impl Configured {
    pub fn new(channel: Channel, mut config: ServiceConfig) -> Self {
        let serving = health::watch(channel.clone(), config.health_check_config.service_name.clone());
        let throttle = Arc::new(Throttle::new(config.retry_throttling.take()));
        Self { channel, serving, config: Arc::new(config), throttle }
    }

    /// One deadline for the call: the caller's or that of the config, whichever is earlier.
    async fn answer(self, request: Request<Body>) -> Answer {
        let method = self.config.method(request.uri().path());
        let timeout = timeout_of(request.headers()).into_iter().chain(method.timeout).min();
        let Some(deadline) = timeout.map(|timeout| Instant::now() + timeout) else {
            return self.attempts(request, &method, None).await;
        };
        let answer = timeout_at(deadline, self.attempts(request, &method, Some(deadline)));
        let response = answer.await.unwrap_or_else(|_| Err(too_late()))?;
        Ok(response.map(|body| Body::new(Until { body, end: Box::pin(sleep_until(deadline)) })))
    }

    async fn attempts(&self, request: Request<Body>, method: &MethodConfig, deadline: Option<Instant>) -> Answer {
        let Some(policy) = &method.retry_policy else {
            return self.attempt(request, method, deadline).await;
        };
        // A retry needs the whole request. So streaming methods need an entry without a retryPolicy.
        let (head, body) = request.into_parts();
        let message = body.collect().await?.to_bytes();
        let mut retries = Retries::new(policy, &self.throttle);
        loop {
            let mut request = Request::from_parts(head.clone(), Body::new(Full::new(message.clone())));
            if retries.count > 0 {
                request.headers_mut().insert(PREVIOUS_ATTEMPTS, retries.count.into());
            }
            let answer = self.attempt(request, method, deadline).await;
            match retries.pause_after(&answer) {
                Some(pause) => sleep(pause).await,
                None => return answer,
            }
        }
    }

    async fn attempt(&self, mut request: Request<Body>, method: &MethodConfig, deadline: Option<Instant>) -> Answer {
        self.ready(method.wait_for_ready).await?;
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            request.headers_mut().insert(TIMEOUT, milliseconds(left));
        }
        let answer = self.channel.clone().oneshot(request).await;
        answer.map_err(|error| match deadline {
            Some(deadline) if Instant::now() >= deadline => too_late(), // tonic has a timer too, and reports CANCELLED
            _ => Status::unavailable(format!("the connection failed: {error}")), // tonic often reports UNKNOWN
        })
    }

    async fn ready(&self, wait: bool) -> Result<(), Status> {
        let mut serving = self.serving.clone();
        if wait {
            let _ = serving.wait_for(|serving| *serving).await; // fails without a health service, which counts as ready
        }
        match *serving.borrow() {
            true => Ok(()),
            false => Err(Status::unavailable("the server is not ready")),
        }
    }
}

impl Service<Request<Body>> for Configured {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(())) // each attempt waits for the channel
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}

/// The retries of one call, by gRPC's rules (proposal A6).
struct Retries<'a> {
    policy: &'a RetryPolicy,
    throttle: &'a Throttle,
    count: u32,
    backoff: Backoff,
}

impl<'a> Retries<'a> {
    fn new(policy: &'a RetryPolicy, throttle: &'a Throttle) -> Self {
        let backoff = Backoff::new(policy.initial_backoff, policy.max_backoff, policy.backoff_multiplier);
        Self { policy, throttle, count: 0, backoff }
    }

    /// How long to wait before the next attempt; None if this answer is final.
    fn pause_after(&mut self, answer: &Answer) -> Option<Duration> {
        let Some(status) = failure(answer) else {
            self.throttle.succeeded();
            return None;
        };
        if !self.policy.retryable_status_codes.contains(&status.code()) {
            return None;
        }
        self.count += 1;
        if !self.throttle.failed() || self.count >= self.policy.max_attempts {
            return None;
        }
        match status.metadata().get(PUSHBACK) {
            Some(word) => {
                self.backoff.reset();
                word.to_str().ok()?.parse().ok().map(Duration::from_millis) // anything but a time means: do not retry
            }
            None => Some(self.backoff.pause()),
        }
    }
}

/// The error of an answer without messages; a call whose answer has begun is never retried.
fn failure(answer: &Answer) -> Option<Status> {
    match answer {
        Ok(response) => Status::from_header_map(response.headers()),
        Err(status) => Some(status.clone()),
    }
}

/// Stops retries while too many calls fail, so that retries do not overload a failing server.
struct Throttle {
    limits: Option<RetryThrottling>,
    tokens: Mutex<f64>,
}

impl Throttle {
    fn new(limits: Option<RetryThrottling>) -> Self {
        let tokens = Mutex::new(limits.as_ref().map_or(0.0, |limits| limits.max_tokens));
        Self { limits, tokens }
    }

    fn succeeded(&self) {
        if let Some(limits) = &self.limits {
            let mut tokens = self.tokens.lock().unwrap();
            *tokens = (*tokens + limits.token_ratio).min(limits.max_tokens);
        }
    }

    /// Whether a call may be retried.
    fn failed(&self) -> bool {
        let Some(limits) = &self.limits else { return true };
        let mut tokens = self.tokens.lock().unwrap();
        *tokens = (*tokens - 1.0).max(0.0);
        *tokens > limits.max_tokens / 2.0
    }
}

/// A response that ends at the deadline, finished or not.
struct Until {
    body: Body,
    end: Pin<Box<Sleep>>,
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => self.end.as_mut().poll(context).map(|()| Some(Err(too_late()))),
            ready => ready,
        }
    }
}

fn too_late() -> Status {
    Status::deadline_exceeded("the deadline of the call has passed")
}

/// The timeout that a caller gave by `Request::set_timeout`.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(TIMEOUT)?.to_str().ok()?;
    let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let number = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The form of `grpc-timeout`: at most eight digits, which is enough for a day here.
fn milliseconds(left: Duration) -> HeaderValue {
    let number = left.as_millis().min(99_999_999);
    HeaderValue::try_from(format!("{number}m")).expect("digits and a letter")
}
