import assert from "node:assert/strict";

import { Metadata, status } from "@grpc/grpc-js";

import { Conversation } from "../gen/conversations/v1/conversation.js";
import {
  type ConversationsServiceClient,
  DeleteConversationRequest,
  DeleteItemRequest,
  type ItemChange,
  Order,
  UpdateConversationRequest,
  WatchItemsRequest,
  type WatchItemsResponse,
} from "../gen/conversations/v1/conversations_service.js";
import { call } from "./client.js";
import { expectFailure } from "./errors.js";
import { readAndAppend, workThrough } from "./restart.js";
import { ids, type Scenario } from "./scenario.js";
import { reset, watchItems, type WatchOptions } from "./watch.js";

type Watch = ReturnType<typeof watchItems>;

const end = "the end";
const shortSilenceMs = 500; // an idle stream is silent for 30 s

/** The steps that follow a conversation. Those that write have a conversation of their own. */
export class WatchSteps {
  constructor(
    private readonly scenario: Scenario,
    private readonly client: ConversationsServiceClient, // with a connection for watches
    private readonly scripted: ConversationsServiceClient, // of a service whose streams end as a script says
  ) {}

  /** All that happens is told in order, each once, also to one that goes on with the token of another. */
  async watch(): Promise<void> {
    const made = await this.scenario.branch("one", "two");
    const { client, conversationId } = made;
    const first = this.fromBeginning(conversationId);
    const { words, token } = await told(first, 3);
    assert.deepEqual(words, ["topic branch", "1 one", "2 two"]);
    await first.return();

    const itemId = await readAndAppend(made, "three");
    const watch = this.fromBeginning(conversationId, { resumeToken: token });
    await expectTold(watch, "3 three");
    await call(client, client.deleteItem, DeleteItemRequest.create({ conversationId, itemId }));
    await expectTold(watch, "3 deleted");
    const conversation = Conversation.create({ id: conversationId, metadata: { topic: "leaf" } });
    await call(client, client.updateConversation, UpdateConversationRequest.create({ conversation }));
    await expectTold(watch, "topic leaf");
    await call(client, client.deleteConversation, DeleteConversationRequest.create({ conversationId }));
    await expectTold(watch, "conversation deleted");
    assert.deepEqual(await watch.next(), { done: true, value: undefined });
  }

  /** The token of another conversation is refused: the watch says so, and begins anew. */
  async reset(): Promise<void> {
    const other = this.fromBeginning(this.scenario.conversationId);
    const { token } = await told(other, 1);
    await other.return();
    const made = await this.scenario.branch("one");
    const watch = this.fromBeginning(made.conversationId, { resumeToken: token });
    assert.equal((await watch.next()).value, reset);
    await expectTold(watch, "topic branch", "1 one");
    await watch.return();
  }

  /** Credentials that are refused are renewed once, and what is missing ends the watch. */
  async refused(): Promise<void> {
    let renewals = 0;
    const metadata = new Metadata();
    metadata.set("authorization", "Bearer expired"); // refused, since this server checks none
    const request = WatchItemsRequest.create({ conversationId: this.scenario.conversationId });
    const open = (request: WatchItemsRequest) => this.client.watchItems(request, metadata);

    const inVain = watchItems(open, request, { renew: async () => void renewals++ });
    await expectFailure(inVain.next(), status.UNAUTHENTICATED, "CREDENTIALS_INVALID");
    assert.equal(renewals, 1);

    const watch = watchItems(open, request, { renew: async () => metadata.remove("authorization") });
    await expectTold(watch, "topic first");
    await watch.return();

    await expectFailure(this.fromBeginning("conv_nobody").next(), status.NOT_FOUND, "CONVERSATION_NOT_FOUND");
  }

  /** A stream that is silent for too long is opened again: each begins with a message, here without changes. */
  async silence(): Promise<void> {
    const request = WatchItemsRequest.create({ conversationId: this.scenario.conversationId });
    const signal = AbortSignal.timeout(10_000);
    const open = (request: WatchItemsRequest) => this.client.watchItems(request);
    const watch = watchItems(open, request, { silenceMs: shortSilenceMs, signal });
    await expectTold(watch, "topic first");
    for (let i = 0; i < 3; i++) {
      assert.deepEqual((await nextMessage(watch)).changes, []);
    }
    await watch.return();
  }

  /** At each end of a stream it does what docs/watch.md says; the script also looks at what arrives there. */
  async ends(): Promise<void> {
    const metadata = new Metadata();
    metadata.set("authorization", "Bearer old");
    const renew = async () => metadata.set("authorization", "Bearer new");
    const open = (request: WatchItemsRequest) => this.scripted.watchItems(request, metadata);
    const start: WatchItemsRequest["start"] = { $case: "afterSequence", value: 0n };
    const events: string[] = [];
    for await (const event of watchItems(open, { conversationId: "conv_scripted", start }, { renew })) {
      events.push(event === reset ? "reset" : event.resumeToken);
    }
    assert.deepEqual(events, ["one", "two", "reset", "three", "reset", "four"]);
  }

  /** Through restarts of the server, one of them without a warning, every item is told once and in order. */
  async restart(): Promise<void> {
    const watched = this.idsUntilTheEnd();
    await workThrough("restart?", this.scenario);
    await workThrough("kill?", this.scenario);
    await readAndAppend(this.scenario, end);
    const stored = await this.scenario.list(Order.ORDER_ASCENDING, 100);
    assert.deepEqual(await watched, ids(stored));
  }

  private async idsUntilTheEnd(): Promise<string[]> {
    const found: string[] = [];
    for await (const event of this.fromBeginning(this.scenario.conversationId)) {
      assert.notEqual(event, reset);
      const { changes } = event as WatchItemsResponse;
      found.push(...changes.flatMap(({ change }) => (change?.$case === "item" ? [change.value.id] : [])));
      if (changes.some((change) => inWords(change).endsWith(end))) {
        break;
      }
    }
    return found;
  }

  private fromBeginning(conversationId: string, options: WatchOptions = {}): Watch {
    const request = WatchItemsRequest.create({ conversationId, start: { $case: "afterSequence", value: 0n } });
    return watchItems((request) => this.client.watchItems(request), request, options);
  }
}

async function nextMessage(watch: Watch): Promise<WatchItemsResponse> {
  const { value } = await watch.next();
  assert.ok(value && value !== reset);
  return value;
}

/** So many changes in words, and the token of the last message. */
async function told(watch: Watch, count: number): Promise<{ words: string[]; token: string }> {
  const words: string[] = [];
  for (;;) {
    const { changes, resumeToken } = await nextMessage(watch);
    words.push(...changes.map(inWords));
    if (words.length >= count) {
      return { words, token: resumeToken };
    }
  }
}

async function expectTold(watch: Watch, ...expected: string[]): Promise<void> {
  assert.deepEqual((await told(watch, expected.length)).words, expected);
}

function inWords({ change }: ItemChange): string {
  switch (change?.$case) {
    case "item": {
      const { sequence, body } = change.value;
      const content = body?.$case === "message" ? body.value.content : [];
      return [sequence, ...content.map(({ part }) => (part?.$case === "inputText" ? part.value.text : ""))].join(" ");
    }
    case "deletedItem":
      return `${change.value.sequence} deleted`;
    case "conversation":
      return `topic ${change.value.metadata["topic"]}`;
    case "conversationDeleted":
      return "conversation deleted";
    default:
      return `unexpected: ${change?.$case}`;
  }
}
