import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import grpc from "@grpc/grpc-js";
import { loadFileDescriptorSetFromBuffer } from "@grpc/proto-loader";

const descriptors = new URL("../../generated/conversations/v1/descriptors.binpb", import.meta.url);
const { conversations } = grpc.loadPackageDefinition(
  loadFileDescriptorSetFromBuffer(readFileSync(descriptors), { keepCase: true, longs: String, enums: String, oneofs: true }),
);

/** Starts a service with an empty database; returns its address and what stops it. */
export async function startService() {
  const service = spawn("conversation-service", ["serve", "--ephemeral"], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise((resolve) => service.once("close", resolve));
  const line = await Promise.race([firstLine(service.stdout), ended]); // it serves when it has written this line
  if (typeof line !== "string") throw new Error("the service did not start");
  const stop = () => (service.kill("SIGTERM"), ended);
  return { address: JSON.parse(line).address, stop };
}

function firstLine(stream) {
  return new Promise((resolve) => createInterface({ input: stream }).once("line", resolve));
}

/** A client, made from the descriptors at run time. */
export function connect(address) {
  return new conversations.v1.ConversationsService(address, grpc.credentials.createInsecure());
}
