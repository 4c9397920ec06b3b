import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";

import { CreateItemsRequest, Order } from "../gen/conversations/v1/conversations_service.js";
import { call } from "./client.js";
import { ids, type Scenario, text } from "./scenario.js";

const workers = 4;
const after = 20; // calls of each kind after the restart

/**
 * Keeps calling while the server restarts. No call may fail, and no append may be lost or duplicated.
 *
 * Only the service config retries.
 */
export async function restart(scenario: Scenario): Promise<void> {
  const before = await scenario.list(Order.ORDER_ASCENDING, 100);
  const answered = await workThrough("restart?", scenario);
  const items = await scenario.list(Order.ORDER_ASCENDING, 100);
  // Finds items that are lost, duplicated or foreign.
  assert.deepEqual(ids(items.slice(before.length)).sort(), answered.sort());
}

/** Asks for a restart, and calls until it has been over for a while; the ids of the items whose append was answered. */
export async function workThrough(ask: string, scenario: Scenario): Promise<string[]> {
  let back = false;
  void once(process.stdin, "data").then(() => (back = true));
  console.log(ask);

  const work = async () => {
    const appended: string[] = [];
    for (let left = after; left > 0; left -= Number(back)) {
      appended.push(await readAndAppend(scenario, "still there?"));
    }
    return appended;
  };
  return (await Promise.all(Array.from({ length: workers }, work))).flat();
}

/** The id of the item that was appended. The request id makes that safe to retry. */
export async function readAndAppend(scenario: Scenario, words: string): Promise<string> {
  const { client, conversationId } = scenario;
  await call(client, client.getConversation, scenario.get());
  const request = CreateItemsRequest.create({
    conversationId,
    items: [text(words)],
    requestId: randomUUID(),
  });
  const { items } = await call(client, client.createItems, request);
  return items.map(({ id }) => id).join();
}
