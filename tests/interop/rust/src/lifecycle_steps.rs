//! The steps about how conversations end, come back, branch off and move. Each has conversations of its own.

use anyhow::{Context, Result, bail, ensure};
use prost_types::{Duration, FieldMask};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::client::{Client, ErasureClient, TransferClient};
use crate::pb::{
    Conversation, CreateConversationRequest, DeleteConversationRequest, DeleteConversationsRequest,
    EraseSubjectRequest, Erasure, ExportConversationsRequest, Fork, ForkConversationRequest, GetErasureRequest,
    ImportConversationsRequest, ListConversationsRequest, Record, RewindConversationRequest,
    UndeleteConversationRequest, UpdateConversationRequest, conversation, erase_subject_request, erasure,
    fork_conversation_request::Through, import_conversations_response, record,
};
use crate::scenario::{Scenario, fails, request_id};

const HOUR: Duration = Duration { seconds: 3600, nanos: 0 };
const HALF_HOUR: Duration = Duration { seconds: 1800, nanos: 0 };
const TOO_SHORT: Duration = Duration { seconds: 59, nanos: 0 };
const NOBODY: &str = "conv_nobody";

pub struct LifecycleSteps<'a> {
    pub scenario: &'a Scenario,
    pub transfers: TransferClient,
    pub erasures: ErasureClient,
}

impl LifecycleSteps<'_> {
    fn client(&self) -> Client {
        self.scenario.client.clone()
    }

    /// A conversation ends when it was told to, until that is taken back.
    pub async fn retention(&self) -> Result<()> {
        let made = self.create_with(HOUR).await?;
        let Some(conversation::Expiration::ExpireTime(end)) = made.expiration else { bail!("no end: {made:?}") };
        let lives = end.seconds - made.create_time.context("no create_time")?.seconds;
        ensure!((lives - HOUR.seconds).abs() < 60, "lives for {lives} s");
        ensure!(made.idle_ttl == Some(HALF_HOUR), "unexpected: {made:?}");
        let request = UpdateConversationRequest {
            conversation: Some(Conversation { id: made.id, ..Default::default() }),
            update_mask: Some(FieldMask { paths: vec!["expire_time".into(), "idle_ttl".into()] }),
            ..Default::default()
        };
        let kept = self.client().update_conversation(request).await?.into_inner();
        ensure!(kept.expiration.is_none() && kept.idle_ttl.is_none(), "still ends: {kept:?}");
        let error = fails(self.create_with(TOO_SHORT).await, Code::InvalidArgument, "FIELD_INVALID")?;
        let violations = error.get_details_bad_request().context("no BadRequest")?.field_violations;
        ensure!(violations.iter().map(|each| each.field.as_str()).eq(["conversation.ttl"]), "got {violations:?}");
        Ok(())
    }

    async fn create_with(&self, ttl: Duration) -> Result<Conversation, Status> {
        let conversation = Conversation {
            expiration: Some(conversation::Expiration::Ttl(ttl)),
            idle_ttl: Some(HALF_HOUR),
            ..Default::default()
        };
        let request = CreateConversationRequest { conversation: Some(conversation), ..Default::default() };
        Ok(self.client().create_conversation(request).await?.into_inner())
    }

    /// What is behind a place goes, unless somebody has appended meanwhile.
    pub async fn rewind(&self) -> Result<()> {
        let made = self.scenario.branch(&["one", "two", "three"]).await?;
        let before = made.items().await?;
        let now = self.rewind_to(&made, 1, 3).await?;
        ensure!(now.last_sequence == 3, "want last_sequence 3, got {now:?}"); // places are never used again
        ensure!(made.items().await? == before[..1], "not the first item");
        fails(self.rewind_to(&made, 0, 2).await, Code::Aborted, "SEQUENCE_MISMATCH")?;
        Ok(())
    }

    async fn rewind_to(&self, made: &Scenario, sequence: i64, expected: i64) -> Result<Conversation, Status> {
        let request = RewindConversationRequest {
            conversation_id: made.id(),
            sequence: Some(sequence),
            expected_last_sequence: Some(expected),
            request_id: request_id(),
        };
        Ok(self.client().rewind_conversation(request).await?.into_inner())
    }

    /// A fork has the items up to a place, and is found by its source.
    pub async fn fork(&self) -> Result<()> {
        let made = self.scenario.branch(&["one", "two"]).await?;
        let fork = self.fork_of(&made, Some(Through::ThroughSequence(1))).await?;
        let from = Fork { conversation_id: made.id(), sequence: 1 };
        ensure!(fork.conversation.forked_from.as_ref() == Some(&from), "unexpected: {:?}", fork.conversation);
        ensure!(fork.items().await? == made.items().await?[..1], "not the first item");
        let request = ListConversationsRequest { filter: forks_of(&made), ..Default::default() };
        let found = self.client().list_conversations(request).await?.into_inner().conversations;
        ensure!(found.iter().map(|each| &each.id).eq([&fork.id()]), "want one fork, got {found:?}");
        let nothing = self.fork_of(&made, Some(Through::ThroughItemId("msg_nobody".into()))).await;
        fails(nothing, Code::NotFound, "ITEM_NOT_FOUND")?;
        Ok(())
    }

    async fn fork_of(&self, source: &Scenario, through: Option<Through>) -> Result<Scenario, Status> {
        let request = ForkConversationRequest {
            conversation_id: source.id(),
            through,
            request_id: request_id(),
            ..Default::default()
        };
        Ok(self.scenario.of(self.client().fork_conversation(request).await?.into_inner()))
    }

    /// What was deleted comes back as it was.
    pub async fn undelete(&self) -> Result<()> {
        let made = self.scenario.branch(&["one"]).await?;
        let before = made.items().await?;
        fails(self.undelete_one(&made.id()).await, Code::AlreadyExists, "CONVERSATION_EXISTS")?;
        let request = DeleteConversationRequest { conversation_id: made.id(), ..Default::default() };
        self.client().delete_conversation(request).await?;
        fails(made.read().await, Code::NotFound, "CONVERSATION_NOT_FOUND")?;
        let back = self.undelete_one(&made.id()).await?;
        ensure!(back == made.conversation, "want {:?}, got {back:?}", made.conversation);
        ensure!(made.items().await? == before, "other items came back");
        fails(self.undelete_one(NOBODY).await, Code::NotFound, "CONVERSATION_NOT_FOUND")?;
        Ok(())
    }

    async fn undelete_one(&self, id: &str) -> Result<Conversation, Status> {
        let request = UndeleteConversationRequest { conversation_id: id.into(), ..Default::default() };
        Ok(self.client().undelete_conversation(request).await?.into_inner())
    }

    /// What matches a filter is counted, then deleted.
    pub async fn delete_many(&self) -> Result<()> {
        let made = self.scenario.branch(&["one"]).await?;
        self.fork_of(&made, None).await?;
        self.fork_of(&made, None).await?;
        for (validate_only, count) in [(true, 2), (false, 2), (false, 0)] {
            let request = DeleteConversationsRequest { filter: forks_of(&made), validate_only };
            let answer = self.client().delete_conversations(request).await?.into_inner();
            ensure!(answer.deleted_count == count && !answer.has_more, "want {count}, got {answer:?}");
        }
        let request = DeleteConversationsRequest { filter: "topic".into(), ..Default::default() };
        fails(self.client().delete_conversations(request).await, Code::InvalidArgument, "FILTER_INVALID")?;
        Ok(())
    }

    /// An export goes on behind its first record; what was erased is imported as it was.
    pub async fn transfer(&self) -> Result<()> {
        let made = self.scenario.branch(&["one", "two"]).await?;
        let fork = self.fork_of(&made, None).await?;
        let items = fork.items().await?;
        let records = self.export_in_two(fork.id()).await?;
        let kinds: Vec<_> = records.iter().map(|each| each.record.as_ref()).collect();
        use record::Record::{Conversation, End, Items};
        ensure!(matches!(kinds[..], [Some(Conversation(_)), Some(Items(_)), Some(End(_))]), "got {kinds:?}");
        self.erase(&made).await?;
        fails(fork.read().await, Code::NotFound, "CONVERSATION_NOT_FOUND")?;
        for created in [true, false] {
            ensure!(self.import(&records).await? == created, "want created {created}");
        }
        ensure!(fork.items().await? == items, "other items were imported");
        let request = ExportConversationsRequest { conversation_ids: vec![NOBODY.into()], ..Default::default() };
        fails(self.export(request).await, Code::NotFound, "CONVERSATION_NOT_FOUND")?;
        Ok(())
    }

    /// Leaves an export after its first record, and goes on with another one.
    async fn export_in_two(&self, id: String) -> Result<Vec<Record>> {
        let mut request = ExportConversationsRequest { conversation_ids: vec![id], ..Default::default() };
        let mut broken = self.transfers.clone().export_conversations(request.clone()).await?.into_inner();
        let first = broken.message().await?.context("no record")?;
        drop(broken);
        request.resume_token = first.resume_token.clone();
        let mut records = vec![first];
        records.extend(self.export(request).await?);
        Ok(records)
    }

    async fn export(&self, request: ExportConversationsRequest) -> Result<Vec<Record>, Status> {
        all(self.transfers.clone().export_conversations(request).await?.into_inner()).await
    }

    /// Erases the forks of a conversation, and reads the receipt.
    async fn erase(&self, source: &Scenario) -> Result<()> {
        let subject = Some(erase_subject_request::Subject::Filter(forks_of(source)));
        let request = EraseSubjectRequest { subject, request_id: request_id(), validate_only: false };
        let id = request.request_id.clone();
        let told = all(self.erasures.clone().erase_subject(request).await?.into_inner()).await?;
        let receipt = self.erasure(id).await?;
        ensure!(told.last() == Some(&receipt), "want {receipt:?}, got {told:?}");
        ensure!(receipt.state() == erasure::State::Done, "not done: {receipt:?}");
        ensure!((receipt.conversation_count, receipt.item_count) == (1, 2), "unexpected: {receipt:?}");
        fails(self.erasure(request_id()).await, Code::NotFound, "ERASURE_NOT_FOUND")?;
        Ok(())
    }

    async fn erasure(&self, erasure_id: String) -> Result<Erasure, Status> {
        Ok(self.erasures.clone().get_erasure(GetErasureRequest { erasure_id }).await?.into_inner())
    }

    /// Whether the conversation was created.
    async fn import(&self, records: &[Record]) -> Result<bool> {
        let requests: Vec<_> =
            records.iter().cloned().map(|record| ImportConversationsRequest { record: Some(record) }).collect();
        let stream = self.transfers.clone().import_conversations(tokio_stream::iter(requests)).await?.into_inner();
        let answers = all(stream).await?;
        match answers.last().and_then(|answer| answer.result.as_ref()) {
            Some(import_conversations_response::Result::Imported(imported)) => Ok(imported.created),
            _ => bail!("unexpected: {answers:?}"),
        }
    }
}

/// The messages of a stream that ends with OK.
async fn all<T>(stream: impl Stream<Item = Result<T, Status>>) -> Result<Vec<T>, Status> {
    stream.collect().await
}

/// The filter that finds them.
fn forks_of(source: &Scenario) -> String {
    format!("forked_from = {:?}", source.id())
}
