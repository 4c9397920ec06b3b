//! Follows a conversation for good: opens WatchItems whenever a stream ends, behind the last message that was dealt
//! with. What it does at each end of a stream is the table of docs/watch.md.

use std::error::Error;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic::{Code, Response, Status, Streaming};
use tonic_types::StatusExt;

use crate::backoff::Backoff;
use crate::pb::{WatchItemsRequest, WatchItemsResponse, item_change, watch_items_request};

const SILENCE: Duration = Duration::from_secs(90); // three times the pause between two messages of an idle stream
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What the generated method returns.
pub type Answer = Result<Response<Streaming<WatchItemsResponse>>, Status>;

#[derive(Debug)]
pub enum Event {
    Message(WatchItemsResponse),
    /// Forget what was told so far: the watch begins anew, as its request says.
    Reset,
}

/// A watch of one conversation. Dropping it ends its stream.
pub struct Watch<Open, Renew> {
    open: Open,
    request: WatchItemsRequest,
    silence: Duration,
    token: String,
    stream: Option<Streaming<WatchItemsResponse>>,
    told: Option<Told>, // the message that is being dealt with
    is_over: bool,
    recovery: Recovery<Renew>,
}

struct Told {
    token: String,
    is_last: bool,
}

impl<Open, Renew> Watch<Open, Renew>
where
    Open: AsyncFnMut(WatchItemsRequest) -> Answer,
    Renew: AsyncFnMut() -> Result<(), Status>,
{
    /// `open` calls the method, on a connection for watches. `renew` gets new credentials for the next call, after the
    /// server has refused the last ones. `request` says which conversation, and where to begin without a token.
    pub fn new(open: Open, renew: Renew, request: WatchItemsRequest) -> Self {
        Self {
            open,
            request,
            silence: SILENCE,
            token: String::new(),
            stream: None,
            told: None,
            is_over: false,
            recovery: Recovery::new(renew),
        }
    }

    /// Begins behind the last message that was dealt with before.
    pub fn behind(self, stored_token: String) -> Self {
        Self { token: stored_token, ..self }
    }

    /// After so long without a message the connection counts as broken.
    pub fn silent_at_most(self, silence: Duration) -> Self {
        Self { silence, ..self }
    }

    /// The next event; None when the conversation has been deleted. An error is one that the watch cannot go on after.
    ///
    /// This also says that the message before has been dealt with: store what has to survive a crash before, together
    /// with its `resume_token`.
    pub async fn next(&mut self) -> Result<Option<Event>, Status> {
        if let Some(Told { token, is_last }) = self.told.take() {
            self.token = token;
            self.is_over = is_last;
        }
        while !self.is_over {
            match timeout(self.silence, self.read()).await {
                Ok(Ok(Some(message))) => {
                    self.recovery.note_message();
                    self.told = Some(Told { token: message.resume_token.clone(), is_last: is_last(&message) });
                    return Ok(Some(Event::Message(message)));
                }
                Ok(Ok(None)) | Err(_) => {
                    self.stream = None;
                    self.recovery.after_end().await;
                }
                Ok(Err(error)) => {
                    self.stream = None;
                    if !self.token.is_empty() && is_stale(&error) {
                        self.token.clear();
                        return Ok(Some(Event::Reset));
                    }
                    self.recovery.after_error(error).await?;
                }
            }
        }
        self.stream = None;
        Ok(None)
    }

    /// The next message; None at the end with OK.
    async fn read(&mut self) -> Result<Option<WatchItemsResponse>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let mut request = self.request.clone();
                if !self.token.is_empty() {
                    request.start = Some(watch_items_request::Start::ResumeToken(self.token.clone()));
                }
                none.insert((self.open)(request).await?.into_inner())
            }
        };
        stream.message().await
    }
}

/// Returns when a stream that has ended may be opened again.
struct Recovery<Renew> {
    renew: Renew,
    has_renewed: bool,
    has_message: bool,
    backoff: Backoff,
}

impl<Renew: AsyncFnMut() -> Result<(), Status>> Recovery<Renew> {
    fn new(renew: Renew) -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, 2.0);
        Self { renew, has_renewed: false, has_message: false, backoff }
    }

    /// The server answers: whatever failed before has passed.
    fn note_message(&mut self) {
        self.has_renewed = false;
        self.has_message = true;
        self.backoff.reset();
    }

    /// At once, unless streams end before they have brought anything.
    async fn after_end(&mut self) {
        if !self.has_message {
            sleep(self.backoff.pause()).await;
        }
        self.has_message = false;
    }

    /// Returns the error if it is final, and if new credentials were refused too.
    async fn after_error(&mut self, error: Status) -> Result<(), Status> {
        match error.code() {
            Code::Unavailable | Code::ResourceExhausted | Code::Cancelled => {
                let least = error.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
                sleep(least + self.backoff.pause()).await;
                Ok(())
            }
            // tonic's own, which it also has for broken connections; the server's have no source.
            _ if error.source().is_some() => {
                sleep(self.backoff.pause()).await;
                Ok(())
            }
            Code::Unauthenticated if !self.has_renewed => {
                self.has_renewed = true;
                (self.renew)().await
            }
            _ => Err(error),
        }
    }
}

/// Whether a stream ended because its token cannot be used any more.
fn is_stale(error: &Status) -> bool {
    let reason = error.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    matches!(
        (error.code(), reason.as_str()),
        (Code::OutOfRange, "RESUME_TOKEN_EXPIRED") | (Code::InvalidArgument, "RESUME_TOKEN_INVALID")
    )
}

fn is_last(message: &WatchItemsResponse) -> bool {
    message.changes.iter().any(|each| matches!(each.change, Some(item_change::Change::ConversationDeleted(()))))
}
