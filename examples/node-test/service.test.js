import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { promisify } from "node:util";

import { connect, startService } from "./service.js";

let service, client;

before(async () => {
  service = await startService();
  client = connect(service.address);
});

after(async () => {
  client?.close();
  await service?.stop();
});

// Of a descriptor set, proto-loader makes lists of entries where code from protoc has maps.
const metadata = [{ key: "topic", value: "tests" }];

test("a conversation is created", async () => {
  const create = promisify(client.CreateConversation.bind(client));
  const made = await create({ conversation: { metadata } });
  assert.deepEqual(made.metadata, metadata);
});
