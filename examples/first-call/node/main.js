// Creates a conversation over TLS with a token, and prints its owner. The client is made of the descriptor set at run time.
import { readFileSync } from "node:fs";
import { promisify } from "node:util";

import grpc from "@grpc/grpc-js";
import { loadFileDescriptorSetFromBuffer } from "@grpc/proto-loader";

const { CONVERSATIONS_TARGET, CONVERSATIONS_TARGET_CA, CONVERSATIONS_TARGET_TOKEN_FILE, DESCRIPTORS } = process.env;
const { conversations } = grpc.loadPackageDefinition(
  loadFileDescriptorSetFromBuffer(readFileSync(DESCRIPTORS), { keepCase: true, longs: String, enums: String, oneofs: true }),
);

const token = grpc.credentials.createFromMetadataGenerator((_, done) => {
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${readFileSync(CONVERSATIONS_TARGET_TOKEN_FILE, "utf8").trim()}`);
  done(null, metadata);
});
const tls = grpc.credentials.createSsl(readFileSync(CONVERSATIONS_TARGET_CA));
const credentials = grpc.credentials.combineChannelCredentials(tls, token);
const client = new conversations.v1.ConversationsService(CONVERSATIONS_TARGET, credentials);

const made = await promisify(client.CreateConversation.bind(client))({});
console.log(made.owner);
client.close();
