/** Uses the service as a Node client does, and says after each step that it went well. */

import { connect, connectForWatches } from "./client.js";
import { restart } from "./restart.js";
import { Scenario } from "./scenario.js";
import { WatchSteps } from "./watch_steps.js";

const { TARGET = "", SERVICE_CONFIG = "", LOCKED = "", SCRIPTED = "" } = process.env;
const client = connect(TARGET, SERVICE_CONFIG);
const watchingClient = connectForWatches(TARGET, SERVICE_CONFIG);
const scriptedClient = connectForWatches(SCRIPTED, SERVICE_CONFIG);
const scenario = new Scenario(client, LOCKED);
const watches = new WatchSteps(scenario, watchingClient, scriptedClient);
const steps: [string, () => Promise<void>][] = [
  ["create", () => scenario.create()],
  ["append", () => scenario.append()],
  ["pages", () => scenario.pages()],
  ["etag", () => scenario.etag()],
  ["not_found", () => scenario.notFound()],
  ["denied", () => scenario.denied()],
  ["deadline", () => scenario.deadline()],
  ["stream", () => scenario.stream()],
  ["restart", () => restart(scenario)],
  ["watch", () => watches.watch()],
  ["watch_reset", () => watches.reset()],
  ["watch_refused", () => watches.refused()],
  ["watch_silence", () => watches.silence()],
  ["watch_ends", () => watches.ends()],
  ["watch_restart", () => watches.restart()],
];

for (const [name, run] of steps) {
  try {
    await run();
  } catch (error) {
    console.error(`${name}:`, error);
    process.exitCode = 1;
    break;
  }
  console.log("ok", name);
}
client.close();
watchingClient.close();
scriptedClient.close();
process.stdin.destroy();
