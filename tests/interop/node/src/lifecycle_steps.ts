import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";

import { status } from "@grpc/grpc-js";

import { Duration } from "../gen/google/protobuf/duration.js";
import { Conversation } from "../gen/conversations/v1/conversation.js";
import {
  CreateConversationRequest,
  DeleteConversationRequest,
  DeleteConversationsRequest,
  ForkConversationRequest,
  ListConversationsRequest,
  Order,
  RewindConversationRequest,
  UndeleteConversationRequest,
  UpdateConversationRequest,
} from "../gen/conversations/v1/conversations_service.js";
import {
  EraseSubjectRequest,
  Erasure_State,
  type ErasureServiceClient,
  GetErasureRequest,
} from "../gen/conversations/v1/erasure_service.js";
import type { Item } from "../gen/conversations/v1/item.js";
import {
  ExportConversationsRequest,
  ImportConversationsRequest,
  type Record,
  type TransferServiceClient,
} from "../gen/conversations/v1/transfer_service.js";
import { call } from "./client.js";
import { expectFailure } from "./errors.js";
import type { Scenario } from "./scenario.js";

const hour = Duration.create({ seconds: 3600n });
const halfHour = Duration.create({ seconds: 1800n });
const tooShort = Duration.create({ seconds: 59n });
const nobody = "conv_nobody";

/** The steps about how conversations end, come back, branch off and move. Each has conversations of its own. */
export class LifecycleSteps {
  constructor(
    private readonly scenario: Scenario,
    private readonly transfers: TransferServiceClient,
    private readonly erasures: ErasureServiceClient,
  ) {}

  private get client() {
    return this.scenario.client;
  }

  /** A conversation ends when it was told to, until that is taken back. */
  async retention(): Promise<void> {
    const made = await this.createWith(hour);
    const end = made.expiration?.$case === "expireTime" ? made.expiration.value.seconds : 0n;
    const lives = Number(end - (made.createTime?.seconds ?? 0n));
    assert.ok(Math.abs(lives - 3600) < 60, `${lives}`);
    assert.deepEqual(made.idleTtl, halfHour);
    const conversation = Conversation.create({ id: made.id });
    const request = UpdateConversationRequest.create({ conversation, updateMask: ["expire_time", "idle_ttl"] });
    const kept = await call(this.client, this.client.updateConversation, request);
    assert.deepEqual([kept.expiration, kept.idleTtl], [undefined, undefined]);
    const failed = this.createWith(tooShort);
    const { badRequest } = await expectFailure(failed, status.INVALID_ARGUMENT, "FIELD_INVALID");
    assert.deepEqual(
      badRequest?.fieldViolations.map(({ field }) => field),
      ["conversation.ttl"],
    );
  }

  private createWith(ttl: Duration): Promise<Conversation> {
    const conversation = Conversation.create({ expiration: { $case: "ttl", value: ttl }, idleTtl: halfHour });
    return call(this.client, this.client.createConversation, CreateConversationRequest.create({ conversation }));
  }

  /** What is behind a place goes, unless somebody has appended meanwhile. */
  async rewind(): Promise<void> {
    const made = await this.scenario.branch("one", "two", "three");
    const before = await itemsOf(made);
    const { conversationId } = made;
    const rewind = (sequence: bigint, expectedLastSequence: bigint) => {
      const request = RewindConversationRequest.create({ conversationId, sequence, expectedLastSequence });
      return call(this.client, this.client.rewindConversation, { ...request, requestId: randomUUID() });
    };
    const { lastSequence } = await rewind(1n, 3n);
    assert.equal(lastSequence, 3n); // places are never used again
    assert.deepEqual(await itemsOf(made), before.slice(0, 1));
    await expectFailure(rewind(0n, 2n), status.ABORTED, "SEQUENCE_MISMATCH");
  }

  /** A fork has the items up to a place, and is found by its source. */
  async fork(): Promise<void> {
    const made = await this.scenario.branch("one", "two");
    const fork = await this.forkOf(made, { $case: "throughSequence", value: 1n });
    const { conversationId } = made;
    assert.deepEqual(fork.conversation.forkedFrom, { conversationId, sequence: 1n });
    assert.deepEqual(await itemsOf(fork), (await itemsOf(made)).slice(0, 1));
    const request = ListConversationsRequest.create({ filter: forksOf(made) });
    const { conversations } = await call(this.client, this.client.listConversations, request);
    assert.deepEqual(
      conversations.map(({ id }) => id),
      [fork.conversationId],
    );
    const nothing = this.forkOf(made, { $case: "throughItemId", value: "msg_nobody" });
    await expectFailure(nothing, status.NOT_FOUND, "ITEM_NOT_FOUND");
  }

  private async forkOf(source: Scenario, through?: ForkConversationRequest["through"]): Promise<Scenario> {
    const { conversationId } = source;
    const request = ForkConversationRequest.create({ conversationId, through, requestId: randomUUID() });
    return this.scenario.of(await call(this.client, this.client.forkConversation, request));
  }

  /** What was deleted comes back as it was. */
  async undelete(): Promise<void> {
    const made = await this.scenario.branch("one");
    const before = await itemsOf(made);
    const undelete = (conversationId: string) =>
      call(this.client, this.client.undeleteConversation, UndeleteConversationRequest.create({ conversationId }));
    await expectFailure(undelete(made.conversationId), status.ALREADY_EXISTS, "CONVERSATION_EXISTS");
    const { conversationId } = made;
    await call(this.client, this.client.deleteConversation, DeleteConversationRequest.create({ conversationId }));
    await this.expectGone(made);
    assert.deepEqual(await undelete(conversationId), made.conversation);
    assert.deepEqual(await itemsOf(made), before);
    await expectFailure(undelete(nobody), status.NOT_FOUND, "CONVERSATION_NOT_FOUND");
  }

  private async expectGone(made: Scenario): Promise<void> {
    const read = call(this.client, this.client.getConversation, made.get());
    await expectFailure(read, status.NOT_FOUND, "CONVERSATION_NOT_FOUND");
  }

  /** What matches a filter is counted, then deleted. */
  async deleteMany(): Promise<void> {
    const made = await this.scenario.branch("one");
    await this.forkOf(made);
    await this.forkOf(made);
    const deleteMany = (filter: string, validateOnly = false) => {
      const request = DeleteConversationsRequest.create({ filter, validateOnly });
      return call(this.client, this.client.deleteConversations, request);
    };
    assert.deepEqual(await deleteMany(forksOf(made), true), { deletedCount: 2, hasMore: false });
    assert.deepEqual(await deleteMany(forksOf(made)), { deletedCount: 2, hasMore: false });
    assert.deepEqual(await deleteMany(forksOf(made)), { deletedCount: 0, hasMore: false });
    await expectFailure(deleteMany("topic"), status.INVALID_ARGUMENT, "FILTER_INVALID");
  }

  /** An export goes on behind its first record; what was erased is imported as it was. */
  async transfer(): Promise<void> {
    const made = await this.scenario.branch("one", "two");
    const fork = await this.forkOf(made);
    const items = await itemsOf(fork);
    const records = await this.exportInTwo(fork.conversationId);
    assert.deepEqual(
      records.map(({ record }) => record?.$case),
      ["conversation", "items", "end"],
    );
    await this.erase(made);
    await this.expectGone(fork);
    assert.deepEqual(await this.importAll(records), [0n, true]);
    assert.deepEqual(await this.importAll(records), [2n, false]);
    assert.deepEqual(await itemsOf(fork), items);
    await expectFailure(this.export([nobody]), status.NOT_FOUND, "CONVERSATION_NOT_FOUND");
  }

  /** Leaves an export after its first record, and goes on with another one. */
  private async exportInTwo(conversationId: string): Promise<Record[]> {
    const request = ExportConversationsRequest.create({ conversationIds: [conversationId] });
    const stream = this.transfers.exportConversations(request);
    const [first] = (await once(stream, "data")) as [Record];
    stream.on("error", () => {}); // it is cancelled
    stream.cancel();
    return [first, ...(await this.export([conversationId], first.resumeToken))];
  }

  private async export(conversationIds: string[], resumeToken = ""): Promise<Record[]> {
    const request = ExportConversationsRequest.create({ conversationIds, resumeToken });
    return all(this.transfers.exportConversations(request));
  }

  /** Erases the forks of a conversation, and reads the receipt. */
  private async erase(source: Scenario): Promise<void> {
    const requestId = randomUUID();
    const subject = { $case: "filter", value: forksOf(source) } as const;
    const stream = this.erasures.eraseSubject(EraseSubjectRequest.create({ subject, requestId }));
    const told = await all(stream);
    const erasureOf = (erasureId: string) =>
      call(this.erasures, this.erasures.getErasure, GetErasureRequest.create({ erasureId }));
    const receipt = await erasureOf(requestId);
    assert.deepEqual(told.at(-1), receipt);
    const { state, conversationCount, itemCount } = receipt;
    assert.deepEqual([state, conversationCount, itemCount], [Erasure_State.STATE_DONE, 1n, 2n]);
    await expectFailure(erasureOf(randomUUID()), status.NOT_FOUND, "ERASURE_NOT_FOUND");
  }

  /** What is answered: up to where items are there, then whether the conversation was created. */
  private async importAll(records: Record[]): Promise<unknown[]> {
    const stream = this.transfers.importConversations();
    for (const record of records) {
      stream.write(ImportConversationsRequest.create({ record }));
    }
    stream.end();
    const answers = await all(stream);
    return answers.map(({ result }) => (result?.$case === "imported" ? result.value.created : result?.value));
  }
}

/** The messages of a stream that ends with OK. */
async function all<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const message of stream) {
    found.push(message);
  }
  return found;
}

async function itemsOf(scenario: Scenario): Promise<Item[]> {
  return scenario.list(Order.ORDER_ASCENDING, 100);
}

/** The filter that finds them. */
function forksOf(source: Scenario): string {
  return `forked_from = "${source.conversationId}"`;
}
