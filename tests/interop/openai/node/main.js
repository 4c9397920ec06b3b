// The official SDK for Node against the HTTP edge: `node main.js <base URL>`. It says `ok` after every step.
import assert from "node:assert/strict";
import OpenAI, { BadRequestError, NotFoundError, UnprocessableEntityError } from "openai";

class Repeating extends OpenAI {
  idempotencyHeader = "Idempotency-Key"; // one key for all attempts of a call
}

const baseURL = process.argv[2];
const client = new OpenAI({ baseURL, apiKey: "unused" });
const message = (content) => ({ role: "user", content });

async function step(name, work) {
  await work();
  console.log(`${name} ok`);
}

await step("create", async () => {
  const made = await client.conversations.create({ metadata: { a: "b" }, items: [message("hello")] });
  assert.equal(made.object, "conversation");
  assert.deepEqual((await client.conversations.retrieve(made.id)).metadata, { a: "b" });
  assert.deepEqual((await client.conversations.update(made.id, { metadata: { c: "d" } })).metadata, { c: "d" });
  assert.equal((await client.conversations.delete(made.id)).deleted, true);
});

await step("pages", async () => {
  const { id } = await client.conversations.create({});
  for (let start = 0; start < 45; start += 15) {
    const items = Array.from({ length: 15 }, (_, number) => message(String(start + number)));
    await client.conversations.items.create(id, { items, include: ["message.output_text.logprobs"] });
  }
  for (const order of ["asc", "desc"]) {
    const found = [];
    const include = ["reasoning.encrypted_content", "file_search_call.results"];
    for await (const item of client.conversations.items.list(id, { limit: 7, order, include })) {
      found.push(Number(item.content[0].text));
    }
    const expected = Array.from({ length: 45 }, (_, number) => (order === "asc" ? number : 44 - number));
    assert.deepEqual(found, expected);
  }
});

await step("items", async () => {
  const { id } = await client.conversations.create({ items: [message("hello")] });
  const [item] = (await client.conversations.items.list(id)).data;
  assert.deepEqual(await client.conversations.items.retrieve(item.id, { conversation_id: id }), item);
  assert.equal((await client.conversations.items.delete(item.id, { conversation_id: id })).id, id);
  await assert.rejects(client.conversations.items.retrieve(item.id, { conversation_id: id }), NotFoundError);
});

await step("errors", async () => {
  const { id } = await client.conversations.create({});
  await assert.rejects(client.conversations.items.list(id, { limit: 1000 }), (error) => {
    assert.ok(error instanceof BadRequestError);
    assert.deepEqual([error.code, error.param], ["integer_above_max_value", "limit"]);
    assert.match(error.requestID, /^req_[0-9a-f]{32}$/);
    return true;
  });
  await assert.rejects(client.conversations.items.list(id, { after: "msg_x" }), (error) => {
    assert.ok(error instanceof NotFoundError);
    return error.param === "after";
  });
});

await step("keys", async () => {
  const headers = { "Idempotency-Key": `key-of-${process.pid}-${Date.now()}` };
  const made = await client.conversations.create({}, { headers });
  assert.equal((await client.conversations.create({}, { headers })).id, made.id);
  const other = client.conversations.create({ metadata: { a: "b" } }, { headers });
  await assert.rejects(other, UnprocessableEntityError);
  const repeating = new Repeating({ baseURL, apiKey: "unused" });
  assert.notEqual((await repeating.conversations.create({})).id, (await repeating.conversations.create({})).id);
});
