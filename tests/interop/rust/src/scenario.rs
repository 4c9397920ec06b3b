//! The steps. Each continues with the conversation of the first one.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::client::{Client, is};
use crate::pb::{
    AppendItemsRequest, AttributeValues, Content, Conversation, CreateConversationRequest, CreateItemsRequest,
    FunctionCall, FunctionCallOutput, GetConversationRequest, InputText, Item, ItemStatus, ListItemsRequest, Message,
    NewItem, Order, Role, ToolOutput, UpdateConversationRequest, append_items_response, content, item,
    list_items_request, new_item, tool_output,
};

const LARGEST_PAGE: i32 = 100;

/// The state that the steps share.
#[derive(Clone)]
pub struct Scenario {
    pub client: Client,
    locked: String, // a conversation whose row is locked, so that appends wait
    pub conversation: Conversation,
}

impl Scenario {
    pub fn new(client: Client, locked: String) -> Self {
        Self { client, locked, conversation: Conversation::default() }
    }

    pub async fn create(&mut self) -> Result<()> {
        let bodies = [
            message("What is gRPC?"),
            item::Body::FunctionCall(FunctionCall {
                call_id: "call_1".into(),
                name: "search".into(),
                arguments: r#"{"q": "gRPC"}"#.into(),
                ..Default::default()
            }),
            item::Body::FunctionCallOutput(FunctionCallOutput {
                call_id: Some("call_1".into()),
                output: Some(ToolOutput { form: Some(tool_output::Form::Text("found".into())) }),
                ..Default::default()
            }),
        ];
        let topic = HashMap::from([("topic".into(), "interop".into())]);
        let request = CreateConversationRequest {
            conversation: Some(Conversation { metadata: topic.clone(), ..Default::default() }),
            items: bodies.iter().cloned().map(new_item).collect(),
            request_id: request_id(),
        };
        self.conversation = self.client.create_conversation(request).await?.into_inner();
        let made = &self.conversation;
        ensure!(made.last_sequence == 3 && made.metadata == topic && !made.etag.is_empty(), "unexpected: {made:?}");
        self.came_back(&bodies).await
    }

    /// The same with a conversation of its own, which begins with messages of the user.
    pub async fn branch(&self, words: &[&str]) -> Result<Self> {
        let metadata = HashMap::from([("topic".into(), "branch".into())]);
        let request = CreateConversationRequest {
            conversation: Some(Conversation { metadata, ..Default::default() }),
            items: words.iter().map(|each| new_item(message(each))).collect(),
            ..Default::default()
        };
        Ok(self.of(self.client.clone().create_conversation(request).await?.into_inner()))
    }

    /// The same with another conversation.
    pub fn of(&self, conversation: Conversation) -> Self {
        Self { conversation, ..self.clone() }
    }

    pub fn id(&self) -> String {
        self.conversation.id.clone()
    }

    /// Set fields are as sent, unset ones stay unset, and the server has filled in its own.
    async fn came_back(&self, sent: &[item::Body]) -> Result<()> {
        let items = self.list(Order::Ascending, LARGEST_PAGE).await?;
        let prefixes: Vec<_> = items.iter().filter_map(|item| item.id.split('_').next()).collect();
        ensure!(prefixes == ["msg", "fc", "fc"], "unexpected ids: {items:?}");
        ensure!(items.iter().map(|item| item.body.as_ref()).eq(sent.iter().map(Some)), "not as sent: {items:?}");
        for item in items {
            ensure!(item.status() == ItemStatus::Completed, "not the default status: {item:?}");
            ensure!(item.create_time.is_some(), "no create_time: {item:?}");
        }
        Ok(())
    }

    /// Sends a request twice, like a client that lost the first answer.
    pub async fn append(&self) -> Result<()> {
        let request = self.items_request(["And", "REST?"]);
        let first = self.client.clone().create_items(request.clone()).await?.into_inner();
        let second = self.client.clone().create_items(request).await?.into_inner();
        ensure!(first.items.len() == 2, "unexpected: {first:?}");
        ensure!(ids(&first.items) == ids(&second.items), "the same request gave {first:?}, then {second:?}");
        let last = self.read().await?.last_sequence;
        ensure!(last == 5, "want last_sequence 5, got {last}");
        Ok(())
    }

    pub async fn pages(&self) -> Result<()> {
        for (order, want) in [(Order::Ascending, [1, 2, 3, 4, 5]), (Order::Descending, [5, 4, 3, 2, 1])] {
            let items = self.list(order, 2).await?;
            let got: Vec<_> = items.iter().map(|item| item.sequence).collect();
            ensure!(got == want, "{order:?}: want {want:?}, got {got:?}");
        }
        Ok(())
    }

    /// Updates twice with the original etag.
    pub async fn etag(&self) -> Result<()> {
        self.update("first").await?;
        fails(self.update("second").await, Code::Aborted, "ETAG_MISMATCH")?;
        Ok(())
    }

    async fn update(&self, topic: &str) -> Result<(), Status> {
        let conversation = Conversation {
            id: self.conversation.id.clone(),
            etag: self.conversation.etag.clone(),
            metadata: HashMap::from([("topic".into(), topic.into())]),
            ..Default::default()
        };
        let request = UpdateConversationRequest { conversation: Some(conversation), ..Default::default() };
        self.client.clone().update_conversation(request).await.map(drop)
    }

    pub async fn not_found(&self) -> Result<()> {
        let mut client = self.client.clone();
        let nobody = GetConversationRequest { conversation_id: "conv_nobody".into() };
        fails(client.get_conversation(nobody).await, Code::NotFound, "CONVERSATION_NOT_FOUND")?;
        let wrong = ListItemsRequest { conversation_id: "x".into(), page_size: -1, ..Default::default() };
        let error = fails(client.list_items(wrong).await, Code::InvalidArgument, "FIELD_INVALID")?;
        let violations = error.get_details_bad_request().context("no BadRequest")?.field_violations;
        let fields: BTreeSet<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
        ensure!(fields == BTreeSet::from(["conversation_id", "page_size"]), "unexpected: {violations:?}");
        Ok(())
    }

    /// Tries to share, which the policy permits nobody.
    pub async fn denied(&self) -> Result<()> {
        let teams = AttributeValues { values: vec!["search".into()] };
        let attributes = HashMap::from([("teams".into(), teams)]);
        let shared = Conversation { id: self.id(), attributes, ..Default::default() };
        let request = UpdateConversationRequest { conversation: Some(shared), ..Default::default() };
        let answer = self.client.clone().update_conversation(request).await;
        fails(answer, Code::PermissionDenied, "ACTION_DENIED")?;
        Ok(())
    }

    pub async fn deadline(&self) -> Result<()> {
        let items = vec![new_item(message("too late"))];
        let locked = CreateItemsRequest { conversation_id: self.locked.clone(), items, ..Default::default() };
        let mut request = Request::new(locked);
        request.set_timeout(Duration::from_millis(300));
        let began = Instant::now();
        let answer = self.client.clone().create_items(request).await;
        let took = began.elapsed();
        let Err(error) = answer else { bail!("the append did not wait") };
        ensure!(error.code() == Code::DeadlineExceeded, "want DeadlineExceeded, got {error}");
        ensure!(took < Duration::from_secs(1), "the deadline of 300 ms passed after {took:?}");
        Ok(())
    }

    /// Sends all messages, then reads the answers.
    pub async fn stream(&self) -> Result<()> {
        let conversation_id = self.conversation.id.clone();
        let requests = ["one", "two", "three"].map(|words| AppendItemsRequest {
            conversation_id: conversation_id.clone(),
            items: vec![new_item(message(words))],
            ..Default::default()
        });
        let answers = self.client.clone().append_items(tokio_stream::iter(requests)).await?.into_inner();
        let answers: Vec<_> = answers.collect::<Result<_, Status>>().await?;
        let got: Vec<_> = answers.into_iter().filter_map(|answer| appended(answer.result?)).collect();
        ensure!(got == [6, 7, 8], "want answers for 6, 7 and 8, got {got:?}");
        Ok(())
    }

    pub async fn read(&self) -> Result<Conversation, Status> {
        let request = GetConversationRequest { conversation_id: self.conversation.id.clone() };
        Ok(self.client.clone().get_conversation(request).await?.into_inner())
    }

    /// Appends one item and returns its id. The request id makes the call safe to retry.
    pub async fn append_one(&self, words: &str) -> Result<String> {
        let answer = self.client.clone().create_items(self.items_request([words])).await?.into_inner();
        Ok(answer.items.into_iter().next().context("no item in the answer")?.id)
    }

    /// The ids of all items, in order.
    pub async fn all(&self) -> Result<Vec<String>> {
        Ok(ids(&self.items().await?))
    }

    /// All items, in order.
    pub async fn items(&self) -> Result<Vec<Item>> {
        self.list(Order::Ascending, LARGEST_PAGE).await
    }

    /// All items, read page by page.
    async fn list(&self, order: Order, page_size: i32) -> Result<Vec<Item>> {
        let conversation_id = self.conversation.id.clone();
        let mut request = ListItemsRequest { conversation_id, page_size, order: order.into(), ..Default::default() };
        let mut items = Vec::new();
        loop {
            let page = self.client.clone().list_items(request.clone()).await?.into_inner();
            items.extend(page.items);
            if !page.has_more {
                return Ok(items);
            }
            request.cursor = Some(list_items_request::Cursor::PageToken(page.next_page_token));
        }
    }

    fn items_request<const N: usize>(&self, words: [&str; N]) -> CreateItemsRequest {
        CreateItemsRequest {
            conversation_id: self.conversation.id.clone(),
            items: words.map(message).map(new_item).into(),
            request_id: request_id(),
            ..Default::default()
        }
    }
}

/// The error of a call that has to fail, with this code and this reason.
pub fn fails<T>(answer: Result<T, Status>, code: Code, reason: &str) -> Result<Status> {
    match answer {
        Err(error) if is(&error, code, reason) => Ok(error),
        Err(error) => bail!("want {code:?} with {reason}, got {error} with {:?}", error.get_error_details()),
        Ok(_) => bail!("want {code:?} with {reason}, got no error"),
    }
}

/// A message of the user.
fn message(words: &str) -> item::Body {
    let text = InputText { text: words.into(), ..Default::default() };
    let content = vec![Content { part: Some(content::Part::InputText(text)) }];
    item::Body::Message(Message { role: Role::User.into(), content, ..Default::default() })
}

fn new_item(body: item::Body) -> NewItem {
    NewItem { source: Some(new_item::Source::Item(Item { body: Some(body), ..Default::default() })) }
}

fn appended(result: append_items_response::Result) -> Option<i64> {
    match result {
        append_items_response::Result::Appended(appended) => Some(appended.first_sequence),
        append_items_response::Result::Error(_) => None,
    }
}

fn ids(items: &[Item]) -> Vec<String> {
    items.iter().map(|item| item.id.clone()).collect()
}

pub fn request_id() -> String {
    Uuid::new_v4().to_string()
}
