import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

import { status } from "@grpc/grpc-js";

import { type Content, InputText, Role } from "../gen/conversations/v1/content.js";
import { AttributeValues, Conversation } from "../gen/conversations/v1/conversation.js";
import {
  AppendItemsRequest,
  type ConversationsServiceClient,
  CreateConversationRequest,
  CreateItemsRequest,
  GetConversationRequest,
  ListItemsRequest,
  Order,
  UpdateConversationRequest,
} from "../gen/conversations/v1/conversations_service.js";
import { Item, NewItem } from "../gen/conversations/v1/item.js";
import { FunctionCall, FunctionCallOutput, Message } from "../gen/conversations/v1/item_body.js";
import { ItemStatus } from "../gen/conversations/v1/item_status.js";
import { call } from "./client.js";
import { expectFailure, failure } from "./errors.js";

/** The steps; each goes on with the conversation that the first one made. */
export class Scenario {
  conversation = Conversation.create();

  constructor(
    readonly client: ConversationsServiceClient,
    private readonly locked: string, // a conversation whose row is locked, so that appends wait
  ) {}

  get conversationId(): string {
    return this.conversation.id;
  }

  async create(): Promise<void> {
    const functionCall = FunctionCall.create({ callId: "call_1", name: "search", arguments: '{"q": "gRPC"}' });
    const functionCallOutput = FunctionCallOutput.create({
      callId: "call_1",
      output: { form: { $case: "text", value: "found" } },
    });
    const request = CreateConversationRequest.create({
      conversation: { metadata: { topic: "interop" } },
      items: [
        text("What is gRPC?"),
        item({ body: { $case: "functionCall", value: functionCall } }),
        item({ body: { $case: "functionCallOutput", value: functionCallOutput } }),
      ],
      requestId: randomUUID(),
    });
    this.conversation = await call(this.client, this.client.createConversation, request);
    assert.equal(this.conversation.lastSequence, 3n);
    assert.deepEqual(this.conversation.metadata, { topic: "interop" });
    assert.notEqual(this.conversation.etag, "");
    await this.cameBack(functionCall, functionCallOutput);
  }

  /** The same with a conversation of its own, which begins with messages of the user. */
  async branch(...words: string[]): Promise<Scenario> {
    const conversation = Conversation.create({ metadata: { topic: "branch" } });
    const request = CreateConversationRequest.create({ conversation, items: words.map(text) });
    return this.of(await call(this.client, this.client.createConversation, request));
  }

  /** The same with another conversation. */
  of(conversation: Conversation): Scenario {
    const made = new Scenario(this.client, this.locked);
    made.conversation = conversation;
    return made;
  }

  /** The items of the first step are as sent: set fields are the same, unset ones stay unset. */
  private async cameBack(functionCall: FunctionCall, functionCallOutput: FunctionCallOutput): Promise<void> {
    const items = await this.list(Order.ORDER_ASCENDING, 20);
    assert.deepEqual(
      items.map(({ id }) => id.replace(/_.*/, "_")),
      ["msg_", "fc_", "fc_"],
    );
    assert.deepEqual(
      items.map(({ body }) => body),
      [
        Item.create(text("What is gRPC?").source?.value).body,
        { $case: "functionCall", value: functionCall },
        { $case: "functionCallOutput", value: functionCallOutput },
      ],
    );
    assert.equal(functionCall.namespace, undefined);
    assert.ok(items.every((each) => each.status === ItemStatus.ITEM_STATUS_COMPLETED)); // the default
  }

  /** Sends one request twice, as a client does that lost the first answer. */
  async append(): Promise<void> {
    const request = CreateItemsRequest.create({
      conversationId: this.conversationId,
      items: [text("And"), text("REST?")],
      requestId: randomUUID(),
    });
    const first = await call(this.client, this.client.createItems, request);
    const second = await call(this.client, this.client.createItems, request);
    assert.equal(first.items.length, 2);
    assert.deepEqual(ids(second.items), ids(first.items));
    const now = await call(this.client, this.client.getConversation, this.get());
    assert.equal(now.lastSequence, 5n);
  }

  async pages(): Promise<void> {
    assert.deepEqual(sequences(await this.list(Order.ORDER_ASCENDING, 2)), [1n, 2n, 3n, 4n, 5n]);
    assert.deepEqual(sequences(await this.list(Order.ORDER_DESCENDING, 2)), [5n, 4n, 3n, 2n, 1n]);
  }

  /** All items, read page by page. */
  async list(order: Order, pageSize: number): Promise<Item[]> {
    const items: Item[] = [];
    let cursor: ListItemsRequest["cursor"];
    for (;;) {
      const request = ListItemsRequest.create({ conversationId: this.conversationId, order, pageSize, cursor });
      const page = await call(this.client, this.client.listItems, request);
      items.push(...page.items);
      if (!page.hasMore) {
        return items;
      }
      cursor = { $case: "pageToken", value: page.nextPageToken };
    }
  }

  /** Updates twice with the etag of before. */
  async etag(): Promise<void> {
    const { id, etag } = this.conversation;
    const update = (topic: string) => {
      const request = UpdateConversationRequest.create({ conversation: { id, etag, metadata: { topic } } });
      return call(this.client, this.client.updateConversation, request);
    };
    await update("first");
    await expectFailure(update("second"), status.ABORTED, "ETAG_MISMATCH");
  }

  async notFound(): Promise<void> {
    const nobody = call(this.client, this.client.getConversation, this.get("conv_nobody"));
    await expectFailure(nobody, status.NOT_FOUND, "CONVERSATION_NOT_FOUND");

    const wrong = ListItemsRequest.create({ conversationId: "x", pageSize: -1 });
    const listed = call(this.client, this.client.listItems, wrong);
    const { badRequest } = await expectFailure(listed, status.INVALID_ARGUMENT, "FIELD_INVALID");
    const fields = badRequest?.fieldViolations.map(({ field }) => field);
    assert.deepEqual(new Set(fields), new Set(["conversation_id", "page_size"]));
  }

  /** Tries to share, which the policy permits nobody. */
  async denied(): Promise<void> {
    const conversation = Conversation.create({
      id: this.conversationId,
      attributes: { teams: AttributeValues.create({ values: ["search"] }) },
    });
    const request = UpdateConversationRequest.create({ conversation });
    const shared = call(this.client, this.client.updateConversation, request);
    await expectFailure(shared, status.PERMISSION_DENIED, "ACTION_DENIED");
  }

  async deadline(): Promise<void> {
    const began = performance.now();
    const request = CreateItemsRequest.create({ conversationId: this.locked, items: [text("too late")] });
    const options = { deadline: new Date(Date.now() + 300) };
    const error = await failure(call(this.client, this.client.createItems, request, options));
    assert.equal(status[error.code], "DEADLINE_EXCEEDED", error.message);
    assert.ok(performance.now() - began < 1000);
  }

  /** Sends ahead, and reads the answers after that. */
  async stream(): Promise<void> {
    const stream = this.client.appendItems();
    for (const words of ["one", "two", "three"]) {
      stream.write(AppendItemsRequest.create({ conversationId: this.conversationId, items: [text(words)] }));
    }
    stream.end();
    const got: unknown[] = [];
    for await (const { result } of stream) {
      got.push(result?.$case === "appended" ? result.value.firstSequence : result);
    }
    assert.deepEqual(got, [6n, 7n, 8n]);
  }

  get(conversationId = this.conversationId): GetConversationRequest {
    return GetConversationRequest.create({ conversationId });
  }
}

/** A message of the user. */
export function text(words: string): NewItem {
  const content: Content = { part: { $case: "inputText", value: InputText.create({ text: words }) } };
  return item({ body: { $case: "message", value: Message.create({ role: Role.ROLE_USER, content: [content] }) } });
}

function item(fields: Partial<Item>): NewItem {
  return NewItem.create({ source: { $case: "item", value: Item.create(fields) } });
}

export function ids(items: Item[]): string[] {
  return items.map(({ id }) => id);
}

function sequences(items: Item[]): bigint[] {
  return items.map(({ sequence }) => sequence);
}
