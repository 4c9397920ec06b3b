//! The steps that follow a conversation. Those that write have a conversation of their own.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::time::timeout;
use tokio::try_join;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::client::{Client, is};
use crate::pb::{
    Conversation, DeleteConversationRequest, DeleteItemRequest, ItemChange, UpdateConversationRequest,
    WatchItemsRequest, WatchItemsResponse, content, item, item_change, watch_items_request,
};
use crate::restart::work_through;
use crate::scenario::Scenario;
use crate::watch::{Answer, Event, Watch};

const END: &str = "the end";
const SHORT_SILENCE: Duration = Duration::from_millis(500); // an idle stream is silent for 30 s

pub struct WatchSteps {
    pub scenario: Scenario,
    pub client: Client,   // on a connection for watches
    pub scripted: Client, // of a service whose streams end as a script says
}

impl WatchSteps {
    /// All that happens is told in order, each once, also to one that goes on with the token of another.
    pub async fn watch(&self) -> Result<()> {
        let made = self.scenario.branch(&["one", "two"]).await?;
        let (mut client, id) = (made.client.clone(), made.id());
        let mut first = self.from_beginning(id.clone());
        let token = expect(&mut first, &["topic branch", "1 one", "2 two"]).await?;
        drop(first);

        let item_id = made.append_one("three").await?;
        let mut watch = self.from_beginning(id.clone()).behind(token);
        expect(&mut watch, &["3 three"]).await?;
        let request = DeleteItemRequest { conversation_id: id.clone(), item_id, ..Default::default() };
        client.delete_item(request).await?;
        expect(&mut watch, &["3 deleted"]).await?;
        let metadata = [("topic".into(), "leaf".into())].into();
        let changed = Conversation { id: id.clone(), metadata, ..Default::default() };
        let request = UpdateConversationRequest { conversation: Some(changed), ..Default::default() };
        client.update_conversation(request).await?;
        expect(&mut watch, &["topic leaf"]).await?;
        client.delete_conversation(DeleteConversationRequest { conversation_id: id, ..Default::default() }).await?;
        expect(&mut watch, &["conversation deleted"]).await?;
        let end = watch.next().await?;
        ensure!(end.is_none(), "want the end, got {end:?}");
        Ok(())
    }

    /// The token of another conversation is refused: the watch says so, and begins anew.
    pub async fn reset(&self) -> Result<()> {
        let mut other = self.from_beginning(self.scenario.id());
        let Some(Event::Message(WatchItemsResponse { resume_token, .. })) = other.next().await? else {
            bail!("want a message");
        };
        let made = self.scenario.branch(&["one"]).await?;
        let mut watch = self.from_beginning(made.id()).behind(resume_token);
        let event = watch.next().await?;
        ensure!(matches!(event, Some(Event::Reset)), "want a reset, got {event:?}");
        expect(&mut watch, &["topic branch", "1 one"]).await?;
        Ok(())
    }

    /// Credentials that are refused are renewed once, and what is missing ends the watch.
    pub async fn refused(&self) -> Result<()> {
        let token = Cell::new("Bearer expired"); // refused, since this server checks none
        let renewals = Cell::new(0);
        let in_vain = async || {
            renewals.set(renewals.get() + 1);
            Ok(())
        };
        let now = WatchItemsRequest { conversation_id: self.scenario.id(), start: None };
        let error = Watch::new(open_with(&self.client, &token), in_vain, now.clone())
            .next()
            .await
            .expect_err("the credentials are refused");
        ensure!(is(&error, Code::Unauthenticated, "CREDENTIALS_INVALID"), "unexpected: {error:?}");
        ensure!(renewals.get() == 1, "{} renewals", renewals.get());

        let renew = async || {
            token.set("");
            Ok(())
        };
        expect(&mut Watch::new(open_with(&self.client, &token), renew, now), &["topic first"]).await?;

        let error = self.from_beginning("conv_nobody".into()).next().await.expect_err("nothing is there");
        ensure!(is(&error, Code::NotFound, "CONVERSATION_NOT_FOUND"), "unexpected: {error:?}");
        Ok(())
    }

    /// A stream that is silent for too long is opened again: each begins with a message, here without changes.
    pub async fn silence(&self) -> Result<()> {
        let now = WatchItemsRequest { conversation_id: self.scenario.id(), start: None };
        let mut watch = Watch::new(self.open(), keep, now).silent_at_most(SHORT_SILENCE);
        expect(&mut watch, &["topic first"]).await?;
        for _ in 0..3 {
            let event = timeout(Duration::from_secs(3), watch.next()).await??;
            let Some(Event::Message(message)) = event else { bail!("want a message, got {event:?}") };
            ensure!(message.changes.is_empty(), "want no changes, got {message:?}");
        }
        Ok(())
    }

    /// At each end of a stream it does what docs/watch.md says; the script also looks at what arrives there.
    pub async fn ends(&self) -> Result<()> {
        let token = Cell::new("Bearer old");
        let renew = async || {
            token.set("Bearer new");
            Ok(())
        };
        let start = Some(watch_items_request::Start::AfterSequence(0));
        let request = WatchItemsRequest { conversation_id: "conv_scripted".into(), start };
        let mut watch = Watch::new(open_with(&self.scripted, &token), renew, request);
        let mut events = Vec::new();
        while let Some(event) = watch.next().await? {
            events.push(match event {
                Event::Message(message) => message.resume_token,
                Event::Reset => "reset".into(),
            });
        }
        ensure!(events == ["one", "two", "reset", "three", "reset", "four"], "unexpected: {events:?}");
        Ok(())
    }

    /// Through restarts of the server, one of them without a warning, every item is told once and in order.
    pub async fn restart(&self) -> Result<()> {
        let write = async {
            work_through("restart?", &self.scenario).await?;
            work_through("kill?", &self.scenario).await?;
            self.scenario.append_one(END).await?;
            self.scenario.all().await
        };
        let (stored, told) = try_join!(write, self.ids_until_the_end())?;
        ensure!(stored == told, "{} are stored, {} were told: {stored:?}, {told:?}", stored.len(), told.len());
        Ok(())
    }

    async fn ids_until_the_end(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut watch = self.from_beginning(self.scenario.id());
        while let Some(event) = watch.next().await? {
            let Event::Message(WatchItemsResponse { changes, .. }) = event else {
                bail!("want a message, got {event:?}")
            };
            let is_end = changes.iter().any(|change| in_words(change).ends_with(END));
            found.extend(changes.into_iter().filter_map(|each| match each.change {
                Some(item_change::Change::Item(item)) => Some(item.id),
                _ => None,
            }));
            if is_end {
                break;
            }
        }
        Ok(found)
    }

    /// A watch of a conversation and all its items.
    fn from_beginning(
        &self,
        conversation_id: String,
    ) -> Watch<impl AsyncFnMut(WatchItemsRequest) -> Answer, impl AsyncFnMut() -> Result<(), Status>> {
        let start = Some(watch_items_request::Start::AfterSequence(0));
        Watch::new(self.open(), keep, WatchItemsRequest { conversation_id, start })
    }

    fn open(&self) -> impl AsyncFnMut(WatchItemsRequest) -> Answer {
        async move |request: WatchItemsRequest| self.client.clone().watch_items(request).await
    }
}

/// Sends a token with each stream, if there is one.
fn open_with(client: &Client, token: &Cell<&'static str>) -> impl AsyncFnMut(WatchItemsRequest) -> Answer {
    async move |request: WatchItemsRequest| {
        let mut request = Request::new(request);
        if !token.get().is_empty() {
            request.metadata_mut().insert("authorization", MetadataValue::from_static(token.get()));
        }
        client.clone().watch_items(request).await
    }
}

async fn keep() -> Result<(), Status> {
    Ok(())
}

/// Reads until so many changes have been told, and compares them; the token of the last message.
async fn expect(
    watch: &mut Watch<impl AsyncFnMut(WatchItemsRequest) -> Answer, impl AsyncFnMut() -> Result<(), Status>>,
    words: &[&str],
) -> Result<String> {
    let (mut told, mut token) = (Vec::new(), String::new());
    while told.len() < words.len() {
        let event = watch.next().await?;
        let Some(Event::Message(message)) = event else { bail!("want {words:?}, got {told:?}, then {event:?}") };
        told.extend(message.changes.iter().map(in_words));
        token = message.resume_token;
    }
    ensure!(told == words, "want {words:?}, got {told:?}");
    Ok(token)
}

fn in_words(change: &ItemChange) -> String {
    use item_change::Change;
    match &change.change {
        Some(Change::Item(item)) => match &item.body {
            Some(item::Body::Message(message)) => message.content.iter().filter_map(|each| each.part.as_ref()).fold(
                item.sequence.to_string(),
                |words, part| match part {
                    content::Part::InputText(text) => format!("{words} {}", text.text),
                    _ => words,
                },
            ),
            _ => item.sequence.to_string(),
        },
        Some(Change::DeletedItem(place)) => format!("{} deleted", place.sequence),
        Some(Change::Conversation(conversation)) => format!("topic {}", conversation.metadata["topic"]),
        Some(Change::ConversationDeleted(())) => "conversation deleted".into(),
        other => format!("unexpected: {other:?}"),
    }
}
